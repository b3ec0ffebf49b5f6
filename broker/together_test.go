package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runenv/action/broker"
	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/policy"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/ref"
	"github.com/runenv/action/secret"
)

// together asks for a session and leases in one request.
func (r *rig) together(k key, token, role, leases string, options ...option) answer {
	r.t.Helper()
	return r.exchangeForm(k, formWith(token, role, leases), options...)
}

func formWith(token, role, leases string) string {
	f := form(token, role)
	f.Set(api.ParamLeases, leases)
	return f.Encode()
}

// lastMade is the session that was made last.
func (r *rig) lastMade() *session {
	r.t.Helper()
	s := &session{r: r}
	for _, e := range r.entries() {
		if e.Event == "session.created" {
			s.id = e.Session
		}
	}
	return s
}

// live is the number of live sessions.
func (r *rig) live() int {
	r.t.Helper()
	counts, err := r.sqlite.Counts(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return counts["session"]
}

func (r *rig) fine(_ context.Context, req providers.Request) (*providers.Credential, error) {
	return &providers.Credential{
		Fields: map[string]secret.Value{"value": secret.FromString("fine")}, Handle: secret.FromString("h-" + req.Marker),
		Expires: r.clock.Now().Add(req.TTL), Revocability: providers.Revocable,
	}, nil
}

func TestExchangeWithLeases(t *testing.T) {
	t.Parallel()
	const vaultToken = "vault://secret/ci/npm#token"
	tests := []struct {
		name, role, leases, want, events, states string
	}{
		{"by name", "prod", `{"leases":["db"]}`, "db", "session.created login.issued lease.issued", "login=active db=active"},
		{"several", "prod", `{"leases":["db","npm"]}`, "db npm", "session.created login.issued lease.issued lease.disclosed", "login=active db=active npm=disclosed"},
		{"all that the role has", "prod", `{}`, "npm db", "session.created login.issued lease.disclosed lease.issued", "login=active npm=disclosed db=active"},
		{"all, by an empty list", "prod", `{"leases":[]}`, "npm db", "session.created login.issued lease.disclosed lease.issued", "login=active npm=disclosed db=active"},
		{"a stored value alone", "prod", `{"leases":["npm"]}`, "npm", "session.created lease.disclosed", "npm=disclosed"},
		{"a reference", "odd", `{"leases":[],"references":[{"ref":"` + vaultToken + `","variable":"TOKEN"}]}`, "vault://secret/ci/npm", "session.created lease.issued", "vault://secret/ci/npm=active"},
		{"a name and a reference", "odd", `{"leases":["npm"],"references":[{"ref":"` + vaultToken + `","variable":"TOKEN"}]}`, "npm vault://secret/ci/npm", "session.created lease.disclosed lease.issued", "npm=disclosed vault://secret/ci/npm=active"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.grants = map[string]error{"vault://secret/ci/npm": nil}
			r.odd.set(func(ctx context.Context, req providers.Request) (*providers.Credential, error) {
				cred, err := r.fine(ctx, req)
				cred.Fields = map[string]secret.Value{"token": secret.FromString("t0k3n")}
				return cred, err
			})
			k := newKey(t)
			a := r.together(k, r.jobToken(), tt.role, tt.leases)
			s := r.opened(k, a)
			if got := names(s.leased(a)); got != tt.want || len(s.token.Leases.Leases[0].Env) == 0 {
				t.Errorf("leases = %q, want %q with values", got, tt.want)
			}
			if got := events(r.audited(a.header.Get(api.HeaderRequestID))); got != tt.events {
				t.Errorf("audit = %q, want %q", got, tt.events)
			}
			if got := s.states(); got != tt.states {
				t.Errorf("states = %q, want %q", got, tt.states)
			}
			if a.header.Get("Cache-Control") != "no-store" {
				t.Error("the answer may be stored")
			}
			// It is a session as any.
			if a := s.call(http.MethodPost, api.PathHeartbeat, ""); a.status != http.StatusOK {
				t.Errorf("heartbeat = %v", a)
			}
			if a := s.call(http.MethodDelete, api.PathSession, ""); a.status != http.StatusOK || strings.Contains(s.states(), "active") {
				t.Errorf("end = %v, states %q", a, s.states())
			}
		})
	}
}

// P6, P8: who may not have all gets nothing, and hears no more than whoever
// asks in two requests, and its own claims. The record is one.
func TestP6LeaseNotInRoleWithTheExchange(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.grants = map[string]error{"vault://secret/broken": errors.New("no such mount " + canary[:3])}
	for name, tt := range map[string]struct {
		role, leases string
		status       int
		code, lease  string
	}{
		"another role's":          {"prod", `{"leases":["db","secret-lease"]}`, 403, api.CodeAccessDenied, "secret-lease"},
		"nobody's":                {"prod", `{"leases":["nonesuch"]}`, 403, api.CodeAccessDenied, "nonesuch"},
		"a terminal's":            {"prod", `{"leases":["\u001b[2J"]}`, 403, api.CodeAccessDenied, "?[2J"},
		"a reference not granted": {"odd", `{"references":[{"ref":"vault://secret/x#y","variable":"X"}]}`, 403, api.CodeAccessDenied, "vault://secret/x"},
		"a reference of no use":   {"odd", `{"references":[{"ref":"vault://secret/broken#y","variable":"X"}]}`, 400, api.CodeInvalidRequest, "vault://secret/broken"},
		"two of one variable":     {"odd", `{"leases":["npm","odd"],"references":[{"ref":"vault://secret/broken#y","variable":"X"}]}`, 400, api.CodeInvalidRequest, "vault://secret/broken"},
	} {
		k, token := newKey(t), r.jobToken()
		a := r.together(k, token, tt.role, tt.leases)
		e := a.refusal()
		if !a.is(tt.status, tt.code) || e.Lease != tt.lease || (e.Claims != nil) != (tt.code == api.CodeAccessDenied) {
			t.Errorf("%s: exchange = %v, want %d %s of %q", name, a, tt.status, tt.code, tt.lease)
		}
		if e.Claims != nil && e.Claims["repository"] != "acme/shop-api" {
			t.Errorf("%s: claims = %v", name, e.Claims)
		}
		records := r.audited(e.RequestID)
		if events(records) != "session.refused("+tt.code+")" || records[0].LeaseName != tt.lease || records[0].Role != tt.role || records[0].Session != "" || records[0].Claims["run_id"] == "" {
			t.Errorf("%s: audit = %+v", name, records)
		}
		// Nothing was used up.
		if a := r.exchange(k, token, tt.role); a.status != http.StatusOK {
			t.Errorf("%s: the next exchange = %v", name, a)
		} else {
			r.opened(k, a)
		}
	}
	if len(r.vault.Requests("")) != 0 || r.odd.calls != 0 {
		t.Errorf("%d requests to Vault, %d to odd: want none", len(r.vault.Requests("")), r.odd.calls)
	}
}

func TestLeaseLimitWithTheExchange(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.odd.set(r.fine)
	r.grants = map[string]error{}
	in := api.LeaseRequest{Leases: []string{"odd"}}
	for i := range 20 { // the default limit
		name := fmt.Sprint("vault://secret/", i)
		r.grants[name] = nil
		in.References = append(in.References, api.Reference{Ref: name + "#value", Variable: fmt.Sprint("V", i)})
	}
	ask := func() answer {
		t.Helper()
		body, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		return r.together(newKey(t), r.jobToken(), "odd", string(body))
	}
	a := ask()
	if !a.is(http.StatusForbidden, api.CodeLimitExceeded) || events(r.audited(a.refusal().RequestID)) != "session.refused(limit_exceeded)" || r.odd.calls != 0 || r.live() != 0 {
		t.Errorf("21 leases = %v, %d calls, %d sessions", a, r.odd.calls, r.live())
	}
	in.Leases = []string{}
	in.References = in.References[:20]
	if a := ask(); a.status != http.StatusOK {
		t.Errorf("20 leases = %v", a)
	}
}

func TestExchangeRefusesLeasesParameter(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var many []string
	for i := range api.MaxLeaseNames + 1 {
		many = append(many, fmt.Sprint("l", i))
	}
	k, token := newKey(t), r.jobToken()
	for name, leases := range map[string]string{
		"nothing": "", "half": "{", "a list": `["npm"]`, "a name": `"npm"`, "data behind": `{} {}`, "an unknown field": `{"role":"odd"}`,
		"a doubled key": `{"leases":["npm"],"leases":["db"]}`, "a key in two cases": `{"leases":["npm"],"Leases":["db"]}`,
		"a duplicate": leaseBody("npm", "npm"), "101 names": leaseBody(many...),
		"something to replace": `{"leases":["db"],"replaces":["l-x"]}`, "nothing to replace by": `{"replaces":["l-x"]}`,
		"no reference":     `{"references":[{"ref":"x","variable":"X"}]}`,
		"runs code":        `{"references":[{"ref":"vault://secret/x#y","variable":"LD_PRELOAD"}]}`,
		"64 KiB and more":  leaseBody(strings.Repeat("x", api.MaxRequest)),
		"nested deeply":    `{"leases":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}`,
		"deeper than that": strings.Repeat("[", 20_000),
	} {
		if a := r.together(k, token, "prod", leases); !a.is(http.StatusBadRequest, api.CodeInvalidRequest) || a.refusal().Description == "the subject token isn't accepted" {
			t.Errorf("%s: exchange = %v, want 400 invalid_request", name, a)
		}
	}
	if a := r.exchangeForm(k, formWith(token, "prod", "{}")+"&leases=%7B%7D"); !a.is(http.StatusBadRequest, api.CodeInvalidRequest) {
		t.Errorf("a doubled parameter = %v", a)
	}
	if a := r.exchangeForm(k, formWith(token, "prod", leaseBody(strings.Repeat("x", api.MaxTokenRequest)))); !a.is(http.StatusRequestEntityTooLarge, api.CodeInvalidRequest) {
		t.Errorf("128 KiB and more = %v", a)
	}
	if n := len(r.entries()); n != 0 {
		t.Errorf("%d entries", n)
	}
	r.opened(k, r.exchange(k, token, "prod"))
}

// T21: what nobody signed isn't parsed, and who may not have the role isn't
// told what is wrong with the rest.
func TestT21StrangersLeasesArentRead(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	forged := r.jobToken()
	forged = forged[:len(forged)-8] + "AAAAAAAA"
	if a := r.together(newKey(t), forged, "prod", "{"); !a.is(http.StatusBadRequest, api.CodeInvalidRequest) || a.refusal().Description != "the subject token isn't accepted" || len(r.entries()) != 0 {
		t.Errorf("forged: exchange = %v, %d entries", a, len(r.entries()))
	}
	if a := r.together(newKey(t), r.jobToken(), "elsewhere", "{"); !a.is(http.StatusBadRequest, api.CodeInvalidTarget) {
		t.Errorf("another's role: exchange = %v", a)
	}
}

// P4, T14: whatever a provider does, a session whose leases can't be had ends,
// and so does what was issued for it. The client's next try isn't the worse for
// it, though the role allows two sessions of a job.
func TestT14NoLeasesNoSession(t *testing.T) {
	t.Parallel()
	type issue = func(context.Context, providers.Request) (*providers.Credential, error)
	answers := func(err error) issue {
		return func(context.Context, providers.Request) (*providers.Credential, error) { return nil, err }
	}
	tests := map[string]struct {
		issue  issue
		status int
		code   string
		events string
		states string
	}{
		"denied": {answers(fmt.Errorf("no: %w", providers.ErrDenied)), 502, api.CodeProviderDenied,
			"session.created lease.void(rolled_back) lease.void(provider_denied) lease.refused(provider_denied) session.ended(unused)", "npm=void odd=void"},
		"unavailable": {answers(errors.New("no route")), 503, api.CodeProviderUnavailable,
			"session.created lease.void(rolled_back) lease.revoking(provider_unavailable) lease.refused(provider_unavailable) session.ended(unused)", "npm=void odd=revoking"},
		"panics": {func(context.Context, providers.Request) (*providers.Credential, error) { panic("index out of range") }, 503, api.CodeProviderUnavailable,
			"session.created lease.void(rolled_back) lease.revoking(provider_unavailable) lease.refused(provider_unavailable) session.ended(unused)", "npm=void odd=revoking"},
		"gives nothing": {answers(nil), 502, api.CodeProviderFailed,
			"session.created lease.void(rolled_back) lease.revoking(provider_malformed) lease.refused(provider_failed) session.ended(unused)", "npm=void odd=revoking"},
		"gives no such field": {func(context.Context, providers.Request) (*providers.Credential, error) {
			return &providers.Credential{Fields: map[string]secret.Value{"other": secret.FromString("x")}, Handle: secret.FromString("h"), Revocability: providers.Revocable}, nil
		}, 502, api.CodeProviderNotFound,
			"session.created lease.void(rolled_back) lease.revoking(rolled_back) lease.refused(provider_not_found) session.ended(unused)", "npm=void odd=revoked"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.odd.set(tt.issue)
			k, token := newKey(t), r.jobToken()
			for range 6 { // limits.sessions is 4
				a := r.together(k, token, "odd", `{"leases":["npm","odd"]}`)
				e := a.refusal()
				if !a.is(tt.status, tt.code) || e.Lease != "odd" {
					t.Fatalf("exchange = %v, want %d %s of odd", a, tt.status, tt.code)
				}
				s := r.lastMade()
				if got := events(r.audited(e.RequestID)); got != tt.events {
					t.Errorf("audit = %q, want %q", got, tt.events)
				}
				if row := s.row(); row.EndedAt.IsZero() || row.EndReason != "unused" {
					t.Errorf("the session ended at %v: %q", row.EndedAt, row.EndReason)
				}
				r.until("its leases are over: "+s.states(), func() bool { return s.states() == tt.states })
			}
			r.odd.set(r.fine)
			a := r.together(k, token, "odd", `{"leases":["npm","odd"]}`)
			if got := names(r.opened(k, a).leased(a)); got != "npm odd" || r.live() != 1 {
				t.Errorf("leases = %q, %d live sessions", got, r.live())
			}
		})
	}
}

// unread is a provider of stored values that can't be read.
type unread struct{}

func (unread) Define(func(any) error) (providers.Definition, error) { return nil, nil }

func (unread) Issue(context.Context, providers.Request) (*providers.Credential, error) {
	return nil, errors.New("permission denied")
}

type storedDefinition struct{ oddDefinition }

func (storedDefinition) Revocability() providers.Revocability { return providers.Static }

// P8: where stored values can't be read there was no session yet, and there is
// a record all the same.
func TestP8UnreadableValueIsRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	err := r.broker.Swap(t.Context(), &broker.Rules{
		Policy: r.file.Compiled, Verifier: r.verifier(r.clock.Now, nil),
		Reference: func(*policy.Role, providers.Vars, ref.Ref, []string) (lease.Definition, error) {
			return lease.Definition{ProviderName: "unread", Provider: unread{}, Provides: storedDefinition{}}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	a := r.together(newKey(t), r.jobToken(), "odd", `{"references":[{"ref":"vault://secret/x","variable":"X"}]}`)
	e := a.refusal()
	if !a.is(http.StatusServiceUnavailable, api.CodeProviderUnavailable) || e.Lease != "vault://secret/x" || r.live() != 0 {
		t.Errorf("exchange = %v, %d live sessions", a, r.live())
	}
	if got := events(r.audited(e.RequestID)); got != "session.refused(provider_unavailable)" {
		t.Errorf("audit = %q", got)
	}
}

// P3, P9: what can't be recorded isn't done, or not told.
func TestP3StoreUnwritableWithTheExchange(t *testing.T) {
	t.Parallel()
	for verb, leases := range map[string]string{"CreateSession": `{}`, "Advance": `{}`, "Record": `{"leases":["nonesuch"]}`} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.store.fail(verb)
			a := r.together(newKey(t), r.jobToken(), "prod", leases)
			r.store.fail()
			if !a.is(http.StatusInternalServerError, api.CodeServerError) || a.refusal().Lease != "" || a.refusal().Claims != nil || strings.Contains(string(a.body), "value") {
				t.Errorf("exchange = %v, want 500 and nothing else", a)
			}
			if r.live() != 0 || (verb != "Advance" && len(r.vault.Requests("")) != 0) {
				t.Errorf("%d live sessions, %d requests to Vault", r.live(), len(r.vault.Requests("")))
			}
		})
	}
}

// P5, T14: a caller that hangs up while the provider works, or is gone when it
// is done, leaves nothing that lives on.
func TestT14CallerHangsUp(t *testing.T) {
	t.Parallel()
	for _, finishes := range []bool{false, true} {
		t.Run(fmt.Sprint("the provider finishes: ", finishes), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			ctx, hangUp := context.WithCancel(t.Context())
			defer hangUp()
			r.odd.set(func(ctx context.Context, req providers.Request) (*providers.Credential, error) {
				hangUp()
				<-ctx.Done()
				if finishes {
					return r.fine(ctx, req)
				}
				return nil, ctx.Err()
			})
			_, err := r.try(ctx, http.MethodPost, api.PathToken, formWith(r.jobToken(), "odd", `{"leases":["odd","npm"]}`),
				header("Content-Type", formType), dpop(r.proof(newKey(t), http.MethodPost, api.PathToken, "")))
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("exchange = %v", err)
			}
			r.until("the session has ended", func() bool { return strings.Contains(r.log.String(), "POST "+api.PathToken) && r.live() == 0 })
			s := r.lastMade()
			if got := s.row().EndReason; got != "unused" {
				t.Errorf("end reason = %q, want unused", got)
			}
			want := "odd=revoking npm=void" // until it dies: nobody knows what was issued
			if finishes {
				want = "odd=revoked npm=disclosed" // it stood in the record by then
			}
			r.until("its leases are over", func() bool { return s.states() == want })
		})
	}
}

// broken loses what is written of a successful exchange, as it is told to.
type broken struct {
	http.ResponseWriter
	write func() error
	sends bool
}

func (b *broken) WriteHeader(status int) {
	b.sends = status == http.StatusOK
	b.ResponseWriter.WriteHeader(status)
}

func (b *broken) Write(p []byte) (int, error) {
	if b.sends {
		if err := b.write(); err != nil {
			return 0, err
		}
	}
	return b.ResponseWriter.Write(p)
}

func TestT14AnswerThatIsLost(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		write   func() error
		expires time.Time
	}{
		"the connection breaks": {func() error { return errors.New("broken pipe") }, time.Time{}},
		"the handler panics":    {func() error { panic("index out of range") }, time.Time{}},
		"it can't be encoded":   {func() error { return nil }, time.Date(10001, 1, 1, 0, 0, 0, 0, time.UTC)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(set *settings) {
				set.wrap = func(next http.Handler) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if r.URL.Path == api.PathToken {
							w = &broken{ResponseWriter: w, write: tt.write}
						}
						next.ServeHTTP(w, r)
					})
				}
			})
			r.odd.set(func(ctx context.Context, req providers.Request) (*providers.Credential, error) {
				cred, err := r.fine(ctx, req)
				if !tt.expires.IsZero() {
					cred.Expires = tt.expires
				}
				return cred, err
			})
			a := r.together(newKey(t), r.jobToken(), "odd", `{"leases":["odd"]}`)
			if strings.Contains(string(a.body), "access_token") {
				t.Fatalf("exchange = %v", a)
			}
			s := r.lastMade()
			if got := s.row().EndReason; got != "unused" {
				t.Errorf("end reason = %q, want unused", got)
			}
			r.until("its lease is over", func() bool { return s.states() == "odd=revoked" })
		})
	}
}

// A retry after a lost reply ends the session that it was about, with its
// leases, whichever reuse the issuer has; under another key it's a replay, or
// another session of the job.
func TestT06RetryEndsTheFirstLeases(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		token  func(*rig) string
		others int
	}{
		"never":    {func(r *rig) string { return r.jobToken() }, http.StatusBadRequest},
		"same-job": {func(r *rig) string { return r.gitlabToken() }, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			k, token := newKey(t), tt.token(r)
			ask := func(k key) answer { return r.together(k, token, "prod", `{"leases":["db"]}`) }
			a := ask(k)
			first := r.opened(k, a)
			first.leased(a)
			for range 3 { // limits.sessions is 2
				a = ask(k)
				retried := r.opened(k, a)
				retried.leased(a)
				if got := first.row().EndReason; got != "replaced" {
					t.Errorf("the first session's end reason is %q, want replaced", got)
				}
				r.until("the first leases are revoked", func() bool { return first.states() == "login=revoked db=revoked" && r.vault.Leases() == 1 })
				first = retried
			}
			if a := ask(newKey(t)); a.status != tt.others {
				t.Errorf("by another key: exchange = %v, want %d", a, tt.others)
			}
			if row := first.row(); !row.EndedAt.IsZero() {
				t.Errorf("another key ended the session: %q", row.EndReason)
			}
		})
	}
}

func TestT06RaceWithLeases(t *testing.T) {
	t.Parallel()
	for name, same := range map[string]bool{"thieves": false, "one client": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const n = 20
			r := newRig(t)
			token, k := r.jobToken(), newKey(t)
			answers := make([]answer, n)
			var wg sync.WaitGroup
			start := make(chan struct{})
			for i := range n {
				if !same {
					k = newKey(t)
				}
				p := dpop(r.proof(k, http.MethodPost, api.PathToken, ""))
				wg.Go(func() {
					<-start
					var err error
					if answers[i], err = r.try(t.Context(), http.MethodPost, api.PathToken, formWith(token, "prod", `{"leases":["db"]}`), header("Content-Type", formType), p); err != nil {
						t.Error(err)
					}
				})
			}
			close(start)
			wg.Wait()
			good := 0
			for _, a := range answers {
				if a.status == http.StatusOK {
					good++
				}
			}
			// Of one client's the last one wins; those before may have been ended
			// while they leased.
			if (!same && good != 1) || good < 1 || r.live() != 1 {
				t.Errorf("%d of %d exchanges of one token, %d live sessions", good, n, r.live())
			}
			r.until("one lease lives", func() bool { return r.vault.Leases() == 1 && r.vault.Tokens() == 1 })
		})
	}
}
