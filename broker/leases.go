package broker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/store"
)

const maxIdempotencyKey = 128

// lease issues leases of a session, all or none.
func (b *Broker) lease(w http.ResponseWriter, r *http.Request, request string) error {
	s, proof, err := b.authenticate(r)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, api.MaxRequest+1))
	if err != nil {
		return badRequest("the body couldn't be read", err)
	}
	var in api.LeaseRequest
	if err := api.Decode(bytes.NewReader(body), api.MaxRequest, &in); err != nil {
		return badRequest("the body isn't a lease request", err)
	}
	key := r.Header.Get(api.HeaderIdempotency)
	switch {
	case len(in.Leases) > api.MaxLeaseNames:
		return badRequest("too many leases", nil)
	case len(key) > maxIdempotencyKey:
		return badRequest("the Idempotency-Key is too long", nil)
	}
	for i, name := range in.Leases {
		if slices.Contains(in.Leases[:i], name) {
			return badRequest("a lease stands twice", nil)
		}
	}
	defs, d, err := b.authorise(s, in.Leases)
	if err != nil {
		return b.refuseLeases(r, request, s, d.Reason, err)
	}
	issued, err := b.engine.Issue(r.Context(), lease.Request{
		Session: s, Definitions: defs, Vars: d.Vars, Proof: proof,
		IdempotencyKey: key, Body: body, Limit: d.Role.Limits.Leases,
		RequestID: request, PolicyDigest: b.rules.Load().Policy.Digest(),
	})
	if err != nil {
		reason := toAPI(err).Code
		return b.refuseLeases(r, request, s, reason, err)
	}
	answer := api.Leases{Checkpoint: b.cfg.Audit.Latest()}
	for _, is := range issued {
		out := wire([]store.Lease{is.Lease})[0]
		for _, v := range is.Env {
			out.Env = append(out.Env, api.Var{Name: v.Name, Value: api.NewValue(v.Value), Mask: v.Mask})
		}
		answer.Leases = append(answer.Leases, out)
		b.metrics.issued.WithLabelValues(is.Lease.Provider).Inc()
	}
	return writeJSON(w, http.StatusOK, answer)
}

// refuseLeases records a refusal before it is answered.
func (b *Broker) refuseLeases(r *http.Request, request string, s store.Session, reason string, err error) error {
	rec := audit.Record{
		Time: b.cfg.Now(), Event: "lease.refused", Request: request, Session: s.ID, Role: s.Role, Project: s.Project,
		Issuer: s.Issuer, Reason: reason, Policy: b.rules.Load().Policy.Digest(),
	}
	answer := toAPI(err)
	rec.LeaseName = answer.Lease
	if reason == "" || reason == "allowed" {
		rec.Reason = answer.Code
	}
	return errors.Join(err, b.record(r.Context(), rec))
}

// own returns a lease of the session. Unknown ones, other sessions', and
// logins are all the same.
func (b *Broker) own(r *http.Request, s store.Session) (store.Lease, error) {
	row, err := b.cfg.Store.Lease(r.Context(), r.PathValue("id"))
	switch {
	case errors.Is(err, store.ErrNotFound):
		return row, errNotFound
	case err != nil:
		return row, fmt.Errorf("reading a lease: %w", err)
	case row.Session != s.ID || row.IsLogin:
		return row, errNotFound
	}
	return row, nil
}

func (b *Broker) renew(w http.ResponseWriter, r *http.Request, request string) error {
	s, proof, err := b.authenticate(r)
	if err != nil {
		return err
	}
	row, err := b.own(r, s)
	if err != nil {
		return err
	}
	if err := b.cfg.Store.UseProof(r.Context(), b.cfg.Now(), proof); err != nil {
		return err
	}
	if _, d, err := b.authorise(s, []string{row.Name}); err != nil {
		return b.refuseLeases(r, request, s, d.Reason, err)
	}
	renewed, err := b.engine.Renew(r.Context(), s, row, request)
	if errors.Is(err, store.ErrConflict) {
		return refuse(http.StatusConflict, api.CodeInvalidRequest, "this lease can't be renewed", err)
	}
	if err != nil {
		return b.refuseLeases(r, request, s, toAPI(err).Code, err)
	}
	return writeJSON(w, http.StatusOK, wire([]store.Lease{renewed})[0])
}

func (b *Broker) endLease(w http.ResponseWriter, r *http.Request, request string) error {
	s, _, err := b.authenticate(r)
	if err != nil {
		return err
	}
	row, err := b.own(r, s)
	if err != nil {
		return err
	}
	ended, err := b.engine.EndLease(r.Context(), row, request, endWait)
	if err != nil && !errors.Is(err, store.ErrConflict) {
		return err
	}
	return writeJSON(w, http.StatusOK, api.Ended{Leases: wire([]store.Lease{ended})})
}

// wire is how rows look to a client, without values.
func wire(rows []store.Lease) []api.Lease {
	out := make([]api.Lease, 0, len(rows))
	for _, row := range rows {
		out = append(out, api.Lease{
			ID: row.ID, Name: row.Name, Provider: row.Provider, State: string(row.State),
			Revocability: row.Revocability, Renewable: row.Renewable, ExpiresAt: row.ExpiresAt,
		})
	}
	return out
}
