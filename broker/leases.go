package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/store"
)

const maxIdempotencyKey = 128

// lease issues leases of a session, all or none.
func (b *Broker) lease(w http.ResponseWriter, r *http.Request, request string) error {
	s, proof, err := b.holder(r)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, api.MaxRequest+1))
	if err != nil {
		return badRequest("the body couldn't be read", err)
	}
	if len(body) > api.MaxRequest {
		return refuse(http.StatusRequestEntityTooLarge, api.CodeInvalidRequest, "the body is too large", nil)
	}
	var in api.LeaseRequest
	if err := api.Decode(bytes.NewReader(body), api.MaxRequest, &in); err != nil {
		return badRequest("the body isn't a lease request", err)
	}
	key := r.Header.Get(api.HeaderIdempotency)
	if len(key) > maxIdempotencyKey {
		return badRequest("the Idempotency-Key is too long", nil)
	}
	asked, err := wanted(in)
	if err != nil {
		return err
	}
	g, err := b.authorise(s, asked)
	if err != nil {
		return b.refuseLeases(r, request, s, g, err)
	}
	for _, id := range in.Replaces {
		if _, err := b.own(r.Context(), s, id); err != nil {
			return err
		}
	}
	issued, err := b.engine.Issue(r.Context(), lease.Request{
		Session: s, Definitions: g.definitions, Vars: g.Vars, Proof: proof,
		IdempotencyKey: key, Body: body, Limit: g.Role.Limits.Leases,
		RequestID: request, PolicyDigest: g.digest, Replaces: in.Replaces,
	})
	switch {
	case errors.Is(err, lease.ErrTooSoon):
		err = refuse(http.StatusConflict, api.CodeInvalidRequest, "a lease can be replaced once half of its life is over", err)
	case len(in.Replaces) > 0 && errors.Is(err, store.ErrConflict):
		err = refuse(http.StatusConflict, api.CodeInvalidRequest, "a lease to replace isn't active, or was replaced before", err)
	}
	if err != nil {
		return b.refuseLeases(r, request, s, g, err)
	}
	return writeJSON(w, http.StatusOK, b.deliver(issued))
}

// deliver is the answer that hands leases out.
func (b *Broker) deliver(issued []lease.Issued) *api.Leases {
	answer := &api.Leases{Checkpoint: b.cfg.Audit.Latest()}
	for _, is := range issued {
		answer.Leases = append(answer.Leases, delivered(is))
		b.metrics.issued.WithLabelValues(is.Lease.Provider).Inc()
	}
	return answer
}

// refuseLeases records a refusal before it is answered. Where that can't be
// done the caller isn't told what was decided.
func (b *Broker) refuseLeases(r *http.Request, request string, s store.Session, g grant, err error) error {
	answer := toAPI(err)
	rec := audit.Record{
		Time: b.cfg.Now(), Event: "lease.refused", Request: request, Session: s.ID, Role: s.Role, Project: s.Project,
		Issuer: s.Issuer, LeaseName: answer.Lease, Reason: answer.Code, Policy: g.digest,
	}
	if !g.Allowed && g.Reason != "" {
		rec.Reason, rec.Detail = g.Reason, g.Detail
	}
	if rerr := b.record(r.Context(), rec); rerr != nil {
		return fmt.Errorf("%w, after a refusal: %s", rerr, answer.Code)
	}
	return err
}

// own returns a lease of the session. Unknown ones, other sessions', and
// logins are all the same.
func (b *Broker) own(ctx context.Context, s store.Session, id string) (store.Lease, error) {
	row, err := b.cfg.Store.Lease(ctx, id)
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
	s, proof, err := b.holder(r)
	if err != nil {
		return err
	}
	row, err := b.own(r.Context(), s, r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := b.cfg.Store.UseProof(r.Context(), b.cfg.Now(), proof); err != nil {
		return err
	}
	g, err := b.authorise(s, wantedAgain(row.Name))
	if err != nil {
		return b.refuseLeases(r, request, s, g, err)
	}
	renewed, err := b.engine.Renew(r.Context(), s, row, request)
	if errors.Is(err, store.ErrConflict) {
		return refuse(http.StatusConflict, api.CodeInvalidRequest, "this lease can't be renewed in place; lease it again, with its id in replaces", err)
	}
	if err != nil {
		return b.refuseLeases(r, request, s, g, err)
	}
	return writeJSON(w, http.StatusOK, wire([]store.Lease{renewed})[0])
}

func (b *Broker) endLease(w http.ResponseWriter, r *http.Request, request string) error {
	s, _, err := b.holder(r)
	if err != nil {
		return err
	}
	row, err := b.own(r.Context(), s, r.PathValue("id"))
	if err != nil {
		return err
	}
	ended, err := b.engine.EndLease(r.Context(), row, request, endWait)
	if err != nil && !errors.Is(err, store.ErrConflict) {
		return err
	}
	return writeJSON(w, http.StatusOK, api.Ended{Leases: wire([]store.Lease{ended})})
}

// delivered is how a lease looks to a client with its values.
func delivered(is lease.Issued) api.Lease {
	out := wire([]store.Lease{is.Lease})[0]
	for _, v := range is.Env {
		if v.File == "" {
			out.Env = append(out.Env, api.Var{Name: v.Name, Value: api.NewValue(v.Value), Mask: v.Mask})
			continue
		}
		out.Files = append(out.Files, api.File{Variable: v.Name, Name: v.File, Value: api.NewValue(v.Value), Mask: v.Mask, Kind: v.Kind})
	}
	for _, v := range is.Hide {
		out.Hide = append(out.Hide, api.NewValue(v))
	}
	return out
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
