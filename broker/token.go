package broker

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/identity"
	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/policy"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/secret"
)

// token is the exchange of RFC 8693: a CI's ID token for a session of one
// role.
func (b *Broker) token(w http.ResponseWriter, r *http.Request, request string) error {
	if !b.byAddr.allow(addrOf(r), b.cfg.Now()) {
		return errTooMany
	}
	form, body, err := readForm(r)
	if err != nil {
		return err
	}
	proof, err := b.proof(r, "")
	if err != nil {
		return refuse(http.StatusBadRequest, api.CodeInvalidDPoP, "the DPoP proof isn't valid for this request", err)
	}
	rules := b.rules.Load()
	id, err := rules.Verifier.Verify(r.Context(), secret.FromString(form.Get("subject_token")))
	if err != nil {
		return b.unverified(r.Context(), rules, request, form.Get("audience"), err)
	}
	if !b.byOwner.allow(ownerOf(id.Issuer, id), b.cfg.Now()) {
		return errTooMany
	}
	role := form.Get("audience")
	d := rules.Policy.Decide(id, role)
	if !d.Allowed {
		return b.deny(r.Context(), rules, request, role, id, d)
	}
	asked, err := askedBeside(form) // not for strangers: it costs more than a form
	if err != nil {
		return err
	}
	n, answer, err := b.newSession(rules, request, id, d, proof, body)
	if err != nil {
		return err
	}
	if asked == nil {
		if err := b.create(r.Context(), rules, request, id, n); err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, answer)
	}
	return b.createWithLeases(w, r, rules, request, id, d, n, answer, *asked)
}

// endUnused ends a session whose client never heard of it.
func (b *Broker) endUnused(ctx context.Context, s store.Session, request string) {
	if _, err := b.engine.End(ctx, s, "unused", request, 0); err != nil {
		// Its missing heartbeats end it.
		b.cfg.Log.WarnContext(ctx, "ending a session that nobody got", "session", s.ID, "err", err)
	}
}

// askedBeside reads which leases are asked for with the session; nil: none.
func askedBeside(form url.Values) (*wants, error) {
	if !form.Has(api.ParamLeases) {
		return nil, nil
	}
	var in api.LeaseRequest
	if err := api.Decode(strings.NewReader(form.Get(api.ParamLeases)), api.MaxRequest, &in); err != nil {
		return nil, badRequest("the parameter leases isn't a lease request", err)
	}
	if len(in.Replaces) > 0 {
		return nil, badRequest("a new session has no leases to replace", nil)
	}
	w, err := wanted(in)
	return &w, err
}

var errTooMany = refuse(http.StatusTooManyRequests, api.CodeRateLimited, "too many requests", nil)

// readForm reads the parameters of RFC 8693 that we know, each once, and
// returns the body's hash beside them.
func readForm(r *http.Request) (url.Values, []byte, error) {
	if mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mt != "application/x-www-form-urlencoded" {
		return nil, nil, badRequest("the body isn't application/x-www-form-urlencoded", nil)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, api.MaxTokenRequest+1))
	if err != nil {
		return nil, nil, badRequest("the body couldn't be read", err)
	}
	if len(body) > api.MaxTokenRequest {
		return nil, nil, refuse(http.StatusRequestEntityTooLarge, api.CodeInvalidRequest, "the body is too large", nil)
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		// The parser's own text quotes the body.
		return nil, nil, badRequest("the body isn't well-formed", nil)
	}
	for name, values := range form {
		switch name {
		case "grant_type", "subject_token", "subject_token_type", "audience", "requested_token_type", api.ParamLeases:
		default:
			return nil, nil, badRequest("an unknown parameter", nil)
		}
		if len(values) != 1 {
			return nil, nil, badRequest("a parameter stands twice", nil)
		}
	}
	requested := form.Get("requested_token_type")
	switch {
	case form.Get("grant_type") == "":
		return nil, nil, badRequest("grant_type is missing", nil)
	case form.Get("grant_type") != api.GrantTokenExchange:
		return nil, nil, refuse(http.StatusBadRequest, api.CodeUnsupportedGrantType, "grant_type isn't token exchange", nil)
	case form.Get("subject_token") == "":
		return nil, nil, badRequest("subject_token is missing", nil)
	case form.Get("subject_token_type") != api.TokenTypeID:
		return nil, nil, badRequest("subject_token_type isn't id_token", nil)
	case form.Get("audience") == "":
		return nil, nil, badRequest("audience, the role, is missing", nil)
	case requested != "" && requested != api.TokenTypeAccess:
		return nil, nil, badRequest("requested_token_type isn't access_token", nil)
	}
	sum := sha256.Sum256(body)
	return form, sum[:], nil
}

// unverified answers a token that the verifier refused. Only one whose
// signature was good is recorded: strangers can't fill the disk.
func (b *Broker) unverified(ctx context.Context, rules *Rules, request, role string, err error) error {
	var refused *identity.Error
	if !errors.As(err, &refused) {
		return err
	}
	b.metrics.rejected.WithLabelValues(refused.Reason).Inc()
	if refused.Class == identity.ClassUnavailable {
		return refuse(http.StatusServiceUnavailable, api.CodeTemporarily, "the token's issuer can't be asked now", err)
	}
	if refused.SignatureVerified {
		rec := audit.Record{Request: request, Role: role, Issuer: refused.Issuer, Reason: refused.Reason}
		if rerr := b.recordRefusal(ctx, rules, rec, refused.Identity()); rerr != nil {
			return rerr
		}
	}
	// RFC 8693 section 2.2.2: a subject token that is invalid for any reason.
	answer := &api.Error{Status: http.StatusBadRequest, Code: api.CodeInvalidRequest, Description: "the subject token isn't accepted"}
	if id := refused.Identity(); id != nil {
		answer.Claims = id.Claims()
	}
	return &refusal{answer, err}
}

// deny answers a caller that the policy refuses. A role that isn't there and
// one that isn't the caller's look alike.
func (b *Broker) deny(ctx context.Context, rules *Rules, request, role string, id *identity.Identity, d policy.Decision) error {
	rec := audit.Record{Request: request, Role: role, Issuer: id.Issuer, Reason: d.Reason, Detail: d.Detail}
	if d.Project != nil {
		rec.Project = d.Project.Name
	}
	if err := b.recordRefusal(ctx, rules, rec, id); err != nil {
		return err
	}
	return &refusal{
		&api.Error{
			Status: http.StatusBadRequest, Code: api.CodeInvalidTarget, Claims: id.Claims(),
			Description: "this job may not have this RunEnv role",
		},
		fmt.Errorf("policy: %s %s", d.Reason, d.Detail),
	}
}

// recordRefusal records why a token whose signature was good got no session;
// id is nil where its claims can't be read. What one project's tokens can
// write is bounded, and beyond that they aren't told yes or no.
func (b *Broker) recordRefusal(ctx context.Context, rules *Rules, rec audit.Record, id *identity.Identity) error {
	now := b.cfg.Now()
	if !b.byRefused.allow(ownerOf(rec.Issuer, id), now) {
		return errTooMany
	}
	rec.Time, rec.Event, rec.Policy = now, "session.refused", rules.Policy.Digest()
	if id != nil {
		rec.Claims = id.AuditClaims()
	}
	return b.record(ctx, rec)
}

// ownerOf is whom a limit concerns: a project of an issuer.
func ownerOf(issuer string, id *identity.Identity) string {
	if id == nil {
		return issuer
	}
	return issuer + "\x00" + id.ProjectID
}

// record outlives a caller that hangs up.
func (b *Broker) record(ctx context.Context, rec audit.Record) error {
	ctx = context.WithoutCancel(ctx)
	entry, err := rec.Entry()
	if err != nil {
		return err
	}
	if err := b.cfg.Store.Record(ctx, b.cfg.Now(), []store.Entry{entry}); err != nil {
		return fmt.Errorf("recording %s: %w", rec.Event, err)
	}
	return nil
}

// newSession draws up a session and the answer that tells of it.
func (b *Broker) newSession(rules *Rules, request string, id *identity.Identity, d policy.Decision, proof store.Proof, body []byte) (n store.NewSession, answer api.Token, err error) {
	now := b.cfg.Now()
	claims, err := remember(id)
	if err != nil {
		return n, answer, err
	}
	sid := lease.NewID("s")
	access, end := sid+"."+random(), "e-"+random()
	s := store.Session{
		ID: sid, Role: d.Role.Name, Issuer: id.Issuer, Job: id.Job, Thumbprint: proof.Thumbprint,
		AccessHash: hash(access), EndHash: hash(end), Claims: claims, PolicyDigest: rules.Policy.Digest(),
		CreatedAt: now, HardEnd: now.Add(d.Role.SessionTTL), HeartbeatTimeout: d.Role.HeartbeatTimeout,
	}
	if d.Project != nil {
		s.Project = d.Project.Name
	}
	s.Deadline = s.HardEnd
	if beat := now.Add(s.HeartbeatTimeout); beat.Before(s.Deadline) {
		s.Deadline = beat
	}
	rec := audit.Record{
		Time: now, Event: "session.created", Request: request, Session: sid, Role: s.Role, Project: s.Project,
		Issuer: s.Issuer, Claims: id.AuditClaims(), Policy: s.PolicyDigest, ExpiresAt: s.HardEnd, Notes: d.Notes,
	}
	created, err := rec.Entry()
	if err != nil {
		return n, answer, err
	}
	replaced, err := audit.Record{Time: now, Event: "session.ended", Request: request, Session: store.EndedSession, Role: s.Role, Reason: "exchanged_again"}.Entry()
	if err != nil {
		return n, answer, err
	}
	// The verifier's leeway, and what may pass between its look at the clock and
	// the store's: a token isn't forgotten while it may still be accepted.
	const leeway = 30*time.Second + time.Minute
	n = store.NewSession{
		Session: s, Proof: proof, Limit: d.Role.Limits.Sessions,
		Token: store.Token{
			Issuer: id.Issuer, JTI: id.JTI, Expires: id.Expires.Add(leeway),
			SameJob: id.Reuse == identity.ReuseSameJob, Body: body,
		},
		Entries: []store.Entry{created}, EndedEntry: replaced,
	}
	return n, api.Token{
		AccessToken: api.NewText(access), IssuedTokenType: api.TokenTypeAccess, TokenType: api.SchemeDPoP,
		ExpiresIn: int64(s.HardEnd.Sub(now) / time.Second), SessionID: sid, EndToken: api.NewText(end),
		HardEnd: s.HardEnd, HeartbeatSeconds: heartbeatSeconds(s),
	}, nil
}

// create makes a session durable. What forbids it is recorded.
func (b *Broker) create(ctx context.Context, rules *Rules, request string, id *identity.Identity, n store.NewSession) error {
	made, err := b.cfg.Store.CreateSession(ctx, b.cfg.Now(), n)
	s := n.Session
	refused := audit.Record{Request: request, Role: s.Role, Project: s.Project, Issuer: s.Issuer}
	switch {
	case errors.Is(err, store.ErrReplayed):
		refused.Reason = "replayed"
		if rerr := b.recordRefusal(ctx, rules, refused, id); rerr != nil {
			return rerr
		}
		if errors.Is(err, store.ErrProofReplayed) {
			return refuse(http.StatusBadRequest, api.CodeInvalidDPoP, "the DPoP proof was used before", err)
		}
		return badRequest("the subject token isn't accepted", err)
	case errors.Is(err, store.ErrLimit):
		refused.Reason = "session_limit"
		if rerr := b.recordRefusal(ctx, rules, refused, id); rerr != nil {
			return rerr
		}
		return refuse(http.StatusForbidden, api.CodeLimitExceeded, "this job has as many live sessions of this role as the role allows", err)
	case err != nil:
		return fmt.Errorf("creating a session: %w", err)
	}
	b.engine.Due(s.Deadline)
	if made.Ended != "" {
		b.engine.Wake() // for its leases
		b.watchers.notify(lease.Event{Session: made.Ended, Reason: "replaced"})
	}
	return nil
}

// createWithLeases makes a session with its first leases and hands both out, or
// neither: where the leases can't all be issued, or nobody is there any more to
// get them, the session ends at once. A retry makes one of its own.
func (b *Broker) createWithLeases(w http.ResponseWriter, r *http.Request, rules *Rules, request string, id *identity.Identity, d policy.Decision, n store.NewSession, answer api.Token, asked wants) error {
	refused := func(err error) error {
		answer := toAPI(err)
		rec := audit.Record{
			Request: request, Role: n.Session.Role, Project: n.Session.Project, Issuer: id.Issuer,
			LeaseName: answer.Lease, Reason: answer.Code,
		}
		if rerr := b.recordRefusal(r.Context(), rules, rec, id); rerr != nil {
			return rerr
		}
		if answer.Code == api.CodeAccessDenied {
			answer.Claims = id.Claims()
			return &refusal{answer, errors.Unwrap(err)}
		}
		return err
	}
	g, err := rules.grant(d, asked)
	if err == nil && len(g.definitions) > d.Role.Limits.Leases {
		err = store.ErrLimit
	}
	if err != nil {
		return refused(err)
	}
	begun, made, given := false, false, false
	defer func() {
		if made && !given {
			b.endUnused(r.Context(), n.Session, request)
		}
	}()
	issued, err := b.engine.Issue(r.Context(), lease.Request{
		Session: n.Session, Definitions: g.definitions, Vars: g.Vars, Limit: d.Role.Limits.Leases,
		RequestID: request, PolicyDigest: g.digest,
		Begin: func(ctx context.Context, leases []store.Lease, entries []store.Entry) error {
			begun = true
			n.Leases, n.Entries = leases, append(n.Entries, entries...)
			err := b.create(ctx, rules, request, id, n) // which records what it refuses
			made = err == nil
			return err
		},
	})
	switch {
	case err != nil && made:
		return b.refuseLeases(r, request, n.Session, g, err)
	case err != nil && !begun:
		return refused(err)
	case err != nil:
		return err
	case r.Context().Err() != nil: // there's nobody to give it to
		return r.Context().Err()
	}
	answer.Leases = b.deliver(issued)
	given, err = sendJSON(w, http.StatusOK, answer)
	return err
}

// heartbeatSeconds is how often a client is to be heard: a sixth of the time
// after which its silence ends the session.
func heartbeatSeconds(s store.Session) int {
	return max(1, int(s.HeartbeatTimeout/(6*time.Second)))
}

// remembered is the identity as a session keeps it.
type remembered struct {
	Profile string         `json:"profile"`
	Claims  map[string]any `json:"claims"`
}

// remember keeps of an identity what policy may ask for again, and no more:
// claims that no rule can name (such as e-mail addresses of custom tokens)
// are left out.
func remember(id *identity.Identity) ([]byte, error) {
	profile, ok := identity.ProfileByName(id.Profile)
	if !ok {
		return nil, fmt.Errorf("identity of unknown profile %q", id.Profile)
	}
	claims := map[string]any{}
	for name, value := range id.Claims() {
		if profile.Knows(name) {
			claims[name] = value
		}
	}
	return json.Marshal(remembered{id.Profile, claims})
}

// recall is the identity behind a session, for today's policy to judge.
func recall(s store.Session) (*identity.Identity, error) {
	var kept remembered
	if err := json.Unmarshal(s.Claims, &kept); err != nil {
		return nil, fmt.Errorf("reading the identity of session %s: %w", s.ID, err)
	}
	profile, ok := identity.ProfileByName(kept.Profile)
	if !ok {
		return nil, fmt.Errorf("session %s has the unknown profile %q", s.ID, kept.Profile)
	}
	return identity.New(profile, s.Issuer, kept.Claims)
}

func random() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func hash(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// addrOf is the caller's address as limits count it: of IPv6 the network, since
// one machine has all addresses of it.
func addrOf(r *http.Request) string {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	addr := at.Addr().Unmap()
	if addr.Is4() {
		return addr.String()
	}
	network, err := addr.WithZone("").Prefix(64)
	if err != nil {
		return addr.String()
	}
	return network.String()
}
