package broker

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/policy"
	"github.com/runenv/action/broker/store"
)

const maxBearer = 256

// authenticate returns the session whose access token and key the request
// proves to hold. An ended session gives store.ErrEnded beside the session,
// so that its end can be asked for twice.
func (b *Broker) authenticate(r *http.Request) (store.Session, store.Proof, error) {
	scheme, token := credentials(r)
	if !strings.EqualFold(scheme, api.SchemeDPoP) {
		return store.Session{}, store.Proof{}, noToken(errors.New("no DPoP access token"))
	}
	proof, err := b.proof(r, token)
	if err != nil {
		return store.Session{}, store.Proof{}, refuse(http.StatusUnauthorized, api.CodeInvalidDPoP, "the DPoP proof isn't valid for this request", err)
	}
	id, _, _ := strings.Cut(token, ".")
	s, err := b.cfg.Store.Session(r.Context(), id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return store.Session{}, store.Proof{}, fmt.Errorf("reading a session: %w", err)
	}
	// An unknown session costs the same comparison as a known one.
	if len(s.AccessHash) == 0 {
		s.AccessHash = make([]byte, 32)
	}
	right := subtle.ConstantTimeCompare(s.AccessHash, hash(token)) == 1
	if err != nil || !right {
		return store.Session{}, store.Proof{}, noToken(errors.New("no session has this access token"))
	}
	if subtle.ConstantTimeCompare([]byte(s.Thumbprint), []byte(proof.Thumbprint)) != 1 {
		return store.Session{}, store.Proof{}, noToken(fmt.Errorf("session %s is bound to another key", s.ID))
	}
	if !s.Live(b.cfg.Now()) {
		return s, proof, store.ErrEnded
	}
	return s, proof, nil
}

// credentials returns what the one Authorization header of a request says, or
// nothing.
func credentials(r *http.Request) (scheme, token string) {
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 {
		return "", ""
	}
	scheme, token, _ = strings.Cut(headers[0], " ")
	if token == "" || len(token) > maxBearer {
		return "", ""
	}
	return scheme, token
}

// holder is authenticate within the session's limits, for whatever doesn't
// end one.
func (b *Broker) holder(r *http.Request) (store.Session, store.Proof, error) {
	s, proof, err := b.authenticate(r)
	if err == nil && !b.bySession.allow(s.ID, b.cfg.Now()) {
		err = errTooMany
	}
	return s, proof, err
}

func noToken(cause error) error {
	return refuse(http.StatusUnauthorized, api.CodeInvalidToken, "the access token isn't accepted", cause)
}

// grant is what authorise decided, and by which policy.
type grant struct {
	policy.Decision
	digest      string
	definitions []lease.Definition
}

// authorise says whether today's policy still gives the session its role and
// what it wants of it, and returns the definitions.
func (b *Broker) authorise(s store.Session, w wants) (grant, error) {
	rules := b.rules.Load()
	id, err := recall(s)
	if err != nil {
		return grant{digest: rules.Policy.Digest()}, err
	}
	return rules.grant(rules.Policy.Decide(id, s.Role), w)
}

// grant is authorise once policy has decided.
func (rules *Rules) grant(d policy.Decision, w wants) (grant, error) {
	g := grant{Decision: d, digest: rules.Policy.Digest()}
	if !d.Allowed {
		return g, refuse(http.StatusForbidden, api.CodeAccessDenied, "today's policy no longer gives this job this RunEnv role", fmt.Errorf("policy: %s %s", d.Reason, d.Detail))
	}
	names := w.names
	if len(names) == 0 && len(w.credentials) == 0 {
		if names = d.Role.Leases; len(names) == 0 {
			return g, badRequest("the RunEnv role has no leases by name: ask for references", nil)
		}
	}
	for _, name := range names {
		def, ok := rules.Definitions[name]
		if !ok || !slices.Contains(d.Role.Leases, name) {
			return g, &refusal{&api.Error{
				Status: http.StatusForbidden, Code: api.CodeAccessDenied, Lease: printable(name, 63),
				Description: "the RunEnv role doesn't have this lease",
			}, nil}
		}
		g.definitions = append(g.definitions, def)
	}
	for _, c := range w.credentials {
		def, err := rules.reference(g, c)
		if err != nil {
			return g, err
		}
		g.definitions = append(g.definitions, def)
	}
	return g, collision(g.definitions)
}

// printable keeps a name that a caller made up from steering a terminal. It has
// at most limit bytes.
func printable(name string, limit int) string {
	if len(name) > limit {
		name = name[:limit]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, name)
}

// judge is authorise for the engine's own renewals.
func (b *Broker) judge(_ context.Context, s store.Session, name string) (lease.Definition, string, error) {
	g, err := b.authorise(s, wantedAgain(name))
	if err != nil {
		return lease.Definition{}, "", err
	}
	return g.definitions[0], g.digest, nil
}

func (b *Broker) heartbeat(w http.ResponseWriter, r *http.Request, _ string) error {
	s, _, err := b.holder(r)
	if err != nil {
		return err
	}
	deadline, err := b.cfg.Store.Heartbeat(r.Context(), b.cfg.Now(), s.ID)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, api.Heartbeat{Deadline: deadline, HeartbeatSeconds: heartbeatSeconds(s)})
}

// endSession ends a session at the word of its holder, or of whoever has its
// end token.
func (b *Broker) endSession(w http.ResponseWriter, r *http.Request, request string) error {
	s, reason, err := b.ending(r)
	if err != nil {
		return err
	}
	rows, err := b.engine.End(r.Context(), s, reason, request, endWait)
	if err != nil {
		return err
	}
	b.metrics.ended.WithLabelValues(reason).Inc()
	return writeJSON(w, http.StatusOK, api.Ended{Leases: wire(rows)})
}

func (b *Broker) ending(r *http.Request) (store.Session, string, error) {
	scheme, token := credentials(r)
	if !strings.EqualFold(scheme, "Bearer") {
		s, _, err := b.authenticate(r)
		if errors.Is(err, store.ErrEnded) {
			err = nil
		}
		return s, "client", err
	}
	s, err := b.cfg.Store.SessionByEndHash(r.Context(), hash(token))
	if errors.Is(err, store.ErrNotFound) {
		return store.Session{}, "", noToken(errors.New("no session has this end token"))
	}
	return s, "end_token", err
}

// watch holds a stream by which a client hears of renewals, of leases that near
// their end, and of its session's end, and the broker of the client's death.
func (b *Broker) watch(w http.ResponseWriter, r *http.Request, _ string) error {
	s, _, err := b.holder(r)
	if err != nil {
		return err
	}
	events, leave, err := b.watchers.join(s.ID)
	if err != nil {
		return err
	}
	defer leave()
	rc := http.NewResponseController(w)
	if err := rc.SetWriteDeadline(time.Time{}); err != nil {
		return fmt.Errorf("lifting a stream's write deadline: %w", err)
	}
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("lifting a stream's read deadline: %w", err)
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	write := func(ev api.Event) bool {
		line, err := json.Marshal(ev)
		if err != nil {
			return false
		}
		// One that isn't read is given up, and doesn't stay for ever.
		if rc.SetWriteDeadline(time.Now().Add(streamWrite)) != nil {
			return false
		}
		_, err = w.Write(append(line, '\n'))
		return err == nil && rc.Flush() == nil && rc.SetWriteDeadline(time.Time{}) == nil
	}
	if !write(api.Event{Event: api.EventHello}) {
		b.left(s, leave())
		return nil
	}
	// The session may have ended between its check and the join.
	if now, err := b.cfg.Store.Session(r.Context(), s.ID); err == nil && !now.EndedAt.IsZero() {
		write(api.Event{Event: api.EventEnded, Reason: now.EndReason})
		return nil
	}
	for {
		select {
		case <-r.Context().Done():
			b.left(s, leave())
			return nil
		case ev, open := <-events:
			if !open { // the broker stops
				return nil
			}
			if ev.Lease == nil {
				write(api.Event{Event: api.EventEnded, Reason: ev.Reason})
				return nil
			}
			row := wire([]store.Lease{*ev.Lease})[0]
			what := api.EventRenewed
			if ev.Expiring {
				what = api.EventExpiring
			}
			if !write(api.Event{Event: what, Lease: &row}) {
				b.left(s, leave())
				return nil
			}
		}
	}
}

// left shortens a session's life after its last stream broke. Any heartbeat
// restores it.
func (b *Broker) left(s store.Session, last bool) {
	if !last || b.closing.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	now := b.cfg.Now()
	deadline := now.Add(streamGrace)
	err := b.cfg.Store.Hasten(ctx, now, s.ID, deadline)
	if err != nil && !errors.Is(err, store.ErrEnded) && !errors.Is(err, store.ErrNotFound) {
		b.cfg.Log.WarnContext(ctx, "hastening a session", "session", s.ID, "err", err)
	}
	b.engine.Due(deadline)
}
