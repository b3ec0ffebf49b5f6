package lease_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/shape"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/providers"
)

func (r *rig) row(id string) store.Lease {
	r.t.Helper()
	row, err := r.store.Lease(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return row
}

func (r *rig) login(s store.Session) store.Lease {
	r.t.Helper()
	rows, err := r.store.Leases(r.t.Context(), s.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	i := slices.IndexFunc(rows, func(row store.Lease) bool { return row.IsLogin })
	if i < 0 {
		r.t.Fatal("no login")
	}
	return rows[i]
}

func (r *rig) issue(s store.Session, defs ...lease.Definition) []lease.Issued {
	r.t.Helper()
	issued, err := r.engine.Issue(r.t.Context(), r.request(s, defs...))
	if err != nil {
		r.t.Fatal(err)
	}
	return issued
}

func (r *rig) end(s store.Session) {
	r.t.Helper()
	if _, err := r.engine.End(r.t.Context(), s, "client", "", time.Minute); err != nil {
		r.t.Fatal(err)
	}
}

// live lets time pass with heartbeats, the engine working at each step.
func (r *rig) live(s store.Session, d time.Duration) {
	r.t.Helper()
	for d > 0 {
		step := min(d, time.Minute)
		d -= step
		r.time.add(step)
		if _, err := r.store.Heartbeat(r.t.Context(), r.time.Now(), s.ID); err != nil {
			r.t.Fatal(err)
		}
		r.step(s)
	}
}

// A login that nobody can end "expires", and what was made under it lives by
// its own time.
func TestP11ALoginThatOnlyExpires(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.provider = expireOnly{r.back}
	r.back.ttl = 30 * time.Minute
	s := r.session()
	issued := r.issue(s, r.def("sts", providers.Expires))[0].Lease
	login := r.login(s)
	if want := r.time.Now().Add(10 * time.Minute); login.Revocability != "expires" || !login.DiesBy.Equal(want) || !login.NextAt.Equal(want) {
		t.Errorf("login = %s, dies by %v, due %v, want expires at %v", login.Revocability, login.DiesBy, login.NextAt, want)
	}
	if !issued.DiesBy.Equal(issued.ExpiresAt) || issued.DiesBy.Before(login.DiesBy) {
		t.Errorf("dies by %v, want its own end %v", issued.DiesBy, issued.ExpiresAt)
	}
	// Near its end a later request gets another; nobody renews it.
	r.live(s, 9*time.Minute+30*time.Second)
	r.issue(s, r.def("more", providers.Expires))
	if got, want := r.states(s), "login=active login=active more=active sts=active"; got != want {
		t.Errorf("rows = %q, want %q", got, want)
	}
	r.live(s, 2*time.Minute)
	if got, want := r.states(s), "login=active login=expired more=active sts=active"; got != want {
		t.Errorf("after the first login's end rows = %q, want %q", got, want)
	}
	r.end(s)
	if got, want := r.states(s), "login=expired login=expiring more=expiring sts=expiring"; got != want {
		t.Errorf("rows = %q, want %q", got, want)
	}
	r.time.add(time.Hour)
	r.settle(r.engine, s, "login=expired login=expired more=expired sts=expired")
	if n := r.back.calls("renew") + r.back.calls("logout") + r.back.calls("revoke"); n != 0 {
		t.Errorf("%d calls that the back end doesn't have", n)
	}
	for _, event := range r.entries(s.ID) {
		if strings.Contains(event, "revok") {
			t.Errorf("the audit log says %s", event)
		}
	}
}

// revocableUnderIt is an expire-only login under which there is something to
// revoke.
type revocableUnderIt struct {
	expireOnly
	providers.Revoker
}

// The end of a login that took nothing along isn't taken for an end.
func TestP4NoCascadeUnderALoginThatOnlyExpires(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.provider = revocableUnderIt{expireOnly{r.back}, r.back}
	r.back.ttl = time.Hour
	s := r.session()
	r.issue(s, r.def("key", providers.Revocable))
	r.live(s, 11*time.Minute)
	if got, want := r.states(s), "key=active login=expired"; got != want {
		t.Fatalf("rows = %q, want %q", got, want)
	}
	r.back.set("revoke", providers.ErrUnavailable)
	r.end(s)
	if got, want := r.states(s), "key=revoking login=expired"; got != want {
		t.Errorf("rows = %q, want %q", got, want)
	}
	r.back.set("revoke", nil)
	r.time.add(time.Minute)
	r.settle(r.engine, s, "key=revoked login=expired")
}

// What a crash leaves of a login that can't be ended is bound by its own life.
func TestT14BoundOfALoginIsItsProvidersOwn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.provider = expireOnly{r.back}
	s := r.session()
	r.back.set("login", providers.ErrUnavailable)
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("sts", providers.Expires))); err == nil {
		t.Fatal("Issue() = nil without a login")
	}
	login := r.login(s)
	if want := r.time.Now().Add(10*time.Minute + 45*time.Second); login.State != store.Expiring || !login.DiesBy.Equal(want) {
		t.Errorf("login = %s, dies by %v, want expiring by %v", login.State, login.DiesBy, want)
	}
}

// A roll-back keeps a login that nobody could end anyway.
func TestRollBackKeepsALoginThatOnlyExpires(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.provider = expireOnly{r.back}
	s := r.session()
	r.back.set("issue", providers.ErrDenied)
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("sts", providers.Expires))); !errors.Is(err, providers.ErrDenied) {
		t.Fatalf("Issue() = %v", err)
	}
	r.back.set("issue", nil)
	r.issue(s, r.def("sts", providers.Expires))
	if got, want := r.states(s), "login=active sts=active sts=void"; got != want || r.back.calls("login") != 1 {
		t.Errorf("rows = %q, %d logins, want %q and one", got, r.back.calls("login"), want)
	}
}

// A certificate outlives the login under which it was made, though that is
// ended.
func TestP4WhatOutlivesAnEndedLogin(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.back.ttl = 24 * time.Hour
	s := r.session()
	issued := r.issue(s, r.def("cert", providers.Expires))[0].Lease
	if !issued.DiesBy.Equal(issued.ExpiresAt) {
		t.Errorf("dies by %v, want %v", issued.DiesBy, issued.ExpiresAt)
	}
	r.end(s)
	if got, want := r.states(s), "cert=expiring login=revoked"; got != want {
		t.Errorf("rows = %q, want %q", got, want)
	}
}

func TestLoginless(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	d := r.def("direct", providers.Expires)
	d.Provides = loginless{def{"direct", providers.Expires}}
	r.issue(s, d)
	if got, want := r.states(s), "direct=active"; got != want || r.back.calls("login") != 0 {
		t.Errorf("rows = %q, want %q and no login", got, want)
	}
	req := r.back.requests[0]
	token, err := req.Tokens(t.Context(), "aud")
	if req.Role != "prod" || req.Session != s.ID || req.Login.Len() != 0 || token != "token" || err != nil {
		t.Errorf("the provider was asked with role %q, session %q, a login of %d bytes and tokens %q, %v", req.Role, req.Session, req.Login.Len(), token, err)
	}
}

func TestBoundsOfALife(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name              string
		shortest, longest time.Duration
		ttl, max          time.Duration
		age               time.Duration // of the session, which lives two hours
		want              time.Duration
	}{
		{"within", 15 * time.Minute, time.Hour, 30 * time.Minute, 0, 0, 30 * time.Minute},
		{"raised", 15 * time.Minute, time.Hour, 5 * time.Minute, 0, 0, 15 * time.Minute},
		{"raised over the cap", 15 * time.Minute, time.Hour, 5 * time.Minute, 10 * time.Minute, 0, 15 * time.Minute},
		{"raised over the session", 15 * time.Minute, time.Hour, 0, 0, 118 * time.Minute, 15 * time.Minute},
		{"lowered", 15 * time.Minute, time.Hour, 0, 0, 0, time.Hour},
		{"fixed", 12 * time.Hour, 12 * time.Hour, 0, 0, 0, 12 * time.Hour},
		{"no longest", 0, 0, 0, 0, 0, 2 * time.Hour},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			s := r.session()
			r.live(s, tt.age)
			r.back.ttl = tt.want
			d := r.def("sts", providers.Expires)
			d.TTL, d.MaxTTL = tt.ttl, tt.max
			d.Provides = bounded{def{"sts", providers.Expires}, tt.shortest, tt.longest}
			row := r.issue(s, d)[0].Lease
			if got := r.back.requests[0].TTL; got != tt.want {
				t.Errorf("asked for %v, want %v", got, tt.want)
			}
			// P4, P11: the end that is told is the true one, beyond the session's
			// or not.
			if want := r.time.Now().Add(tt.want); !row.DiesBy.Equal(want) || !row.ExpiresAt.Equal(want) {
				t.Errorf("dies by %v, expires %v, want %v", row.DiesBy, row.ExpiresAt, want)
			}
			r.end(s)
			if got, want := r.states(s), "login=revoked sts=expiring"; got != want {
				t.Errorf("rows = %q, want %q", got, want)
			}
		})
	}
}

// A renewal that would have to be longer than what is left isn't asked for.
func TestRenewalIsNeverShorterThanTheShortest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.judged = bounded{def{"db", providers.Revocable}, 10 * time.Minute, time.Hour}
	s := r.session()
	d := r.def("db", providers.Revocable)
	d.TTL, d.MaxTTL, d.Provides = 10*time.Minute, 15*time.Minute, r.judged
	r.back.ttl = 10 * time.Minute
	r.issue(s, d)
	r.live(s, 9*time.Minute)
	if n := r.back.calls("renew "); n != 0 {
		t.Errorf("%d renewals, want none: 5 minutes are left until the cap", n)
	}
}

// P4: what never ends by itself has no bound, and is revoked until it is.
func TestP4WithoutALoginAndWithoutAnExpiry(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.provider = bare{r.back, r.back}
	r.back.endless = true
	s := r.session()
	row := r.row(r.issue(s, r.def("key", providers.Revocable))[0].Lease.ID)
	if !row.DiesBy.IsZero() || !row.ExpiresAt.IsZero() || row.NextAt.IsZero() {
		t.Errorf("dies by %v, expires %v, due %v, want no bound and a time to end it", row.DiesBy, row.ExpiresAt, row.NextAt)
	}
	r.back.set("revoke", providers.ErrUnavailable)
	r.live(s, 61*time.Minute) // past its cap
	if got, want := r.states(s), "key=revoking"; got != want {
		t.Errorf("at its cap rows = %q, want %q", got, want)
	}
	r.end(s)
	for r.states(s) == "key=revoking" {
		r.time.add(5 * time.Minute)
		r.step(s)
	}
	r.time.add(100 * 24 * time.Hour)
	r.step(s)
	if got, want := r.states(s), "key=irrevocable"; got != want {
		t.Errorf("after 100 days rows = %q, want %q", got, want)
	}
	r.back.set("revoke", nil)
	r.time.add(24 * time.Hour)
	r.settle(r.engine, s, "key=revoked")
}

// A credential that only expires, and doesn't say when, can't be recorded
// honestly.
func TestP11WhatOnlyExpiresSaysWhen(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.back.endless = true
	s := r.session()
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("sts", providers.Expires))); !errors.Is(err, providers.ErrMalformed) {
		t.Errorf("Issue() = %v, want ErrMalformed", err)
	}
	r.settle(r.engine, s, "login=revoked sts=expiring")
	r.end(s)
	r.time.add(3 * time.Hour)
	r.settle(r.engine, s, "login=revoked sts=expired")
}

// crashed leaves a row in Issuing whose provider was called, or not.
func (r *rig) crashed(s store.Session, issued bool) {
	r.t.Helper()
	never := make(chan struct{})
	r.back.hold["issue"] = never
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan struct{})
	req := r.request(s, r.def("key", providers.Revocable))
	go func() {
		defer close(gone)
		// The engine that dies records nothing.
		_, _ = r.newEngine().Issue(ctx, req)
	}()
	<-r.back.held
	r.t.Cleanup(func() { cancel(); <-gone })
	if issued {
		rows, err := r.store.Leases(r.t.Context(), s.ID)
		if err != nil {
			r.t.Fatal(err)
		}
		r.back.mu.Lock()
		r.back.creds["lost"] = ""
		r.back.markers["lost"] = rows[0].Marker
		r.back.mu.Unlock()
	}
	if err := r.store.Restart(r.t.Context(), r.time.Now()); err != nil {
		r.t.Fatal(err)
	}
}

// A back end that can be asked by marker is asked after a crash.
func TestT14FoundByItsMarker(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.provider = finder{bare{r.back, r.back}}
	s := r.session()
	r.crashed(s, true)
	r.back.set("find", providers.ErrUnavailable)
	r.step(s)
	if got, want := r.states(s), "key=revoking"; got != want {
		t.Errorf("with the back end down rows = %q, want %q", got, want)
	}
	r.back.set("find", nil)
	r.time.add(time.Minute)
	r.settle(r.newEngine(), s, "key=revoked")
	if creds, _ := r.back.alive(); creds != 0 {
		t.Errorf("the back end still has %d credentials", creds)
	}
}

// Nothing found is believed once no call of before the crash can be under way.
func TestT14NothingFoundIsVoid(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.provider = finder{bare{r.back, r.back}}
	s := r.session()
	r.crashed(s, false)
	r.step(s)
	if got, want := r.states(s), "key=revoking"; got != want || r.back.calls("find") != 1 {
		t.Errorf("rows = %q after %d questions, want %q after one", got, r.back.calls("find"), want)
	}
	// The call arrives late.
	r.time.add(2 * time.Minute)
	r.settle(r.newEngine(), s, "key=void")
	if n := r.back.calls("revoke"); n != 0 {
		t.Errorf("%d revocations of nothing", n)
	}
	if !slices.Contains(r.entries(s.ID), "lease.void") {
		t.Error("the log doesn't say void")
	}
}

func TestT14ACallThatArrivesAfterTheCrash(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.provider = finder{bare{r.back, r.back}}
	s := r.session()
	r.crashed(s, false)
	r.step(s)
	rows, err := r.store.Leases(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	r.back.mu.Lock()
	r.back.creds["late"], r.back.markers["late"] = "", rows[0].Marker
	r.back.mu.Unlock()
	r.time.add(2 * time.Minute)
	r.settle(r.newEngine(), s, "key=revoked")
	if creds, _ := r.back.alive(); creds != 0 {
		t.Errorf("the back end still has %d credentials", creds)
	}
}

// What credentials lack is told at once, for all leases.
func TestAllThatIsMissing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	a, b, c := r.def("a", providers.Revocable), r.def("b", providers.Revocable), r.def("c", providers.Static)
	a.Env = append(a.Env, shape.Var{Name: "X", Field: "user"}, shape.Var{Name: "Y", Field: "password"})
	c.Env = []shape.Var{{Name: "Z", Field: "token"}}
	_, err := r.engine.Issue(t.Context(), r.request(s, a, b, c))
	missing, ok := errors.AsType[*lease.MissingError](err)
	if !ok || !errors.Is(err, providers.ErrNotFound) {
		t.Fatalf("Issue() = %v, want a MissingError", err)
	}
	want := []lease.Missing{{Lease: "a", Fields: []string{"user", "password"}}, {Lease: "c", Fields: []string{"token"}}}
	if diff := cmp.Diff(want, missing.Leases); diff != "" {
		t.Error(diff)
	}
	r.settle(r.engine, s, "a=revoked b=revoked c=void login=revoked")
}

// A whole map whose names aren't known before can collide with a neighbour.
func TestVariablesThatCollideAreRolledBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	a, b := r.def("a", providers.Revocable), r.def("b", providers.Revocable)
	a.Env = []shape.Var{{Name: "DB_VALUE", Field: "value"}}
	b.Env = []shape.Var{{Name: shape.All, Prefix: "DB_"}}
	_, err := r.engine.Issue(t.Context(), r.request(s, a, b))
	if c, ok := errors.AsType[*shape.CollisionError](err); !ok || c.Name != "DB_VALUE" {
		t.Errorf("Issue() = %v, want a CollisionError of DB_VALUE", err)
	}
	r.settle(r.engine, s, "a=revoked b=revoked login=revoked")
}

// A variable that can't be made names itself, and no value.
func TestT18AShapeThatFails(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	d := r.def("a", providers.Revocable)
	d.Env[0].Decode = "hex"
	_, err := r.engine.Issue(t.Context(), r.request(s, d))
	if e, ok := errors.AsType[*lease.ShapeError](err); !ok || !errors.Is(err, providers.ErrMalformed) || strings.Contains(e.Error(), "v-cred") {
		t.Errorf("Issue() = %v, want a ShapeError without a value", err)
	}
	r.settle(r.engine, s, "a=revoked login=revoked")
}

func TestSoleField(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	d := r.def("ref", providers.Revocable)
	d.Env = []shape.Var{{Name: "WHOLE", As: "json"}, {Name: "NAMED", Field: "value"}, {Name: "OF_FIELD", Field: "value"}}
	for _, sole := range []bool{true, false} {
		d.Sole = sole
		env := r.issue(s, d)[0].Env
		whole, named := string(env[0].Value.Reveal()), string(env[1].Value.Reveal())
		if want := map[bool]string{true: named, false: fmt.Sprintf(`{"value":%q}`, named)}[sole]; whole != want {
			t.Errorf("sole %v: the whole is %q, want %q", sole, whole, want)
		}
	}
	if d.Env[0].As != "json" {
		t.Error("the definition was changed")
	}
}
