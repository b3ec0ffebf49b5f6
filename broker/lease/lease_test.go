package lease_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/broker/store/sqlite"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// backEnd is a back end in memory, with logins and credentials that end with
// them, which can be told to fail. It stands in for a real one where a test
// needs to stop time or break a call at an exact point; the same engine meets
// a real Vault end to end.
type backEnd struct {
	mu      sync.Mutex
	now     func() time.Time
	logins  map[string]bool
	creds   map[string]string // credential -> its login
	log     []string
	fail    map[string]error // call or "call name" -> error
	hold    map[string]chan struct{}
	held    chan string
	ttl     time.Duration
	count   int
	renewed int
}

func newBackEnd(now func() time.Time) *backEnd {
	return &backEnd{
		now: now, logins: map[string]bool{}, creds: map[string]string{}, fail: map[string]error{},
		hold: map[string]chan struct{}{}, held: make(chan string, 64), ttl: 15 * time.Minute,
	}
}

func (b *backEnd) call(ctx context.Context, what, name string) error {
	b.mu.Lock()
	b.log = append(b.log, what+" "+name)
	err := b.fail[what]
	if e, ok := b.fail[what+" "+name]; ok {
		err = e
	}
	hold := b.hold[what]
	b.mu.Unlock()
	if hold != nil {
		b.held <- what
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (b *backEnd) set(what string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		delete(b.fail, what)
	} else {
		b.fail[what] = err
	}
}

// alive is the number of credentials and logins that work.
func (b *backEnd) alive() (creds, logins int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.creds), len(b.logins)
}

func (b *backEnd) calls(prefix string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, l := range b.log {
		if strings.HasPrefix(l, prefix) {
			n++
		}
	}
	return n
}

type def struct {
	name string
	kind providers.Revocability
}

func (def) Templates() []providers.Template                             { return nil }
func (d def) Revocability() providers.Revocability                      { return d.kind }
func (b *backEnd) Define(func(any) error) (providers.Definition, error) { return def{}, nil }

func (b *backEnd) Login(ctx context.Context, req providers.LoginRequest) (*providers.Login, error) {
	if err := b.call(ctx, "login", req.Role); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count++
	id := fmt.Sprintf("login-%d", b.count)
	b.logins[id] = true
	return &providers.Login{Handle: secret.FromString(id), Expires: b.now().Add(providers.LoginTTL)}, nil
}

func (b *backEnd) RenewLogin(ctx context.Context, login secret.Value) (time.Time, error) {
	if err := b.call(ctx, "renew-login", string(login.Reveal())); err != nil {
		return time.Time{}, err
	}
	return b.now().Add(providers.LoginTTL), nil
}

func (b *backEnd) Logout(ctx context.Context, login secret.Value) error {
	id := string(login.Reveal())
	if err := b.call(ctx, "logout", id); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.logins, id)
	for cred, of := range b.creds {
		if of == id {
			delete(b.creds, cred)
		}
	}
	return nil
}

func (b *backEnd) Issue(ctx context.Context, req providers.Request) (*providers.Credential, error) {
	d := req.Definition.(def)
	if err := b.call(ctx, "issue", d.name); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count++
	id := fmt.Sprintf("cred-%d", b.count)
	cred := &providers.Credential{Fields: map[string]secret.Value{"value": secret.FromString("v-" + id)}, Revocability: d.kind}
	if d.kind != providers.Static {
		b.creds[id] = string(req.Login.Reveal())
		cred.Handle = secret.FromString(id)
		cred.Expires = b.now().Add(b.ttl)
		cred.Renewable = d.kind == providers.Revocable
	}
	return cred, nil
}

func (b *backEnd) Renew(ctx context.Context, handle, _ secret.Value, ttl time.Duration) (time.Time, error) {
	if err := b.call(ctx, "renew", string(handle.Reveal())); err != nil {
		return time.Time{}, err
	}
	return b.now().Add(ttl), nil
}

func (b *backEnd) Revoke(ctx context.Context, handle, _ secret.Value) error {
	if err := b.call(ctx, "revoke", string(handle.Reveal())); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.creds, string(handle.Reveal()))
	return nil
}

// fakeTime is a clock that tests move.
type fakeTime struct {
	mu sync.Mutex
	t  time.Time
}

func (f *fakeTime) Now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.t
}

func (f *fakeTime) add(d time.Duration) {
	f.mu.Lock()
	f.t = f.t.Add(d)
	f.mu.Unlock()
}

type rig struct {
	t      *testing.T
	time   *fakeTime
	store  *sqlite.Store
	back   *backEnd
	engine *lease.Engine
	events chan lease.Event
	sealer seal.Sealer
	denied error // what Judge says
	proofs int
	bare   bool // the engine sees a back end without logins
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, time: &fakeTime{t: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}, events: make(chan lease.Event, 64)}
	st, err := sqlite.Open(t.Context(), sqlite.Config{Path: sqlite.Memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	r.store, r.back, r.sealer = st, newBackEnd(r.time.Now), seal.Ephemeral()
	r.engine = r.newEngine()
	return r
}

func (r *rig) newEngine() *lease.Engine {
	r.t.Helper()
	e, err := lease.New(lease.Config{
		Store: r.store, Sealer: r.sealer, Now: r.time.Now,
		Provider: func(name string) (providers.Provider, bool) {
			if r.bare {
				return bare{r.back, r.back}, name == "back"
			}
			return r.back, name == "back"
		},
		Tokens: func(store.Session) providers.TokenSource {
			return func(context.Context, string) (string, error) { return "token", nil }
		},
		Judge: func(_ context.Context, _ store.Session, name string) (lease.Definition, string, error) {
			return r.def(name, providers.Revocable), "today", r.denied
		},
		Notify: func(ev lease.Event) { r.events <- ev },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return e
}

func (r *rig) def(name string, kind providers.Revocability) lease.Definition {
	return lease.Definition{
		Name: name, ProviderName: "back", Provider: r.back, Provides: def{name, kind},
		Env: []lease.EnvVar{{Name: strings.ToUpper(name), Field: "value", Mask: true}},
		TTL: 15 * time.Minute, MaxTTL: time.Hour,
	}
}

func (r *rig) session() store.Session {
	r.t.Helper()
	now := r.time.Now()
	id := lease.NewID("s")
	s := store.Session{
		ID: id, Role: "prod", Issuer: "github", Job: id, Thumbprint: "thumb", AccessHash: []byte("a" + id), EndHash: []byte("e" + id),
		Claims: []byte("{}"), CreatedAt: now, HardEnd: now.Add(2 * time.Hour), HeartbeatTimeout: 3 * time.Minute, Deadline: now.Add(3 * time.Minute),
	}
	_, err := r.store.CreateSession(r.t.Context(), now, store.NewSession{
		Session: s, Limit: 4, Proof: r.proof(), EndedEntry: store.Entry{Event: "session.ended", Body: []byte("{}")},
		Token: store.Token{Issuer: "github", JTI: id, Expires: now.Add(5 * time.Minute), Body: []byte("b")},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) proof() store.Proof {
	r.proofs++
	return store.Proof{Thumbprint: "thumb", JTI: fmt.Sprint(r.proofs), Expires: r.time.Now().Add(time.Minute)}
}

func (r *rig) request(s store.Session, defs ...lease.Definition) lease.Request {
	return lease.Request{Session: s, Definitions: defs, Proof: r.proof(), Limit: 20, RequestID: "r-1"}
}

// states are the session's rows as name=state, logins as login=state, sorted.
func (r *rig) states(s store.Session) string {
	r.t.Helper()
	rows, err := r.store.Leases(r.t.Context(), s.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for _, row := range rows {
		name := row.Name
		if row.IsLogin {
			name = "login"
		}
		out = append(out, name+"="+string(row.State))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// settle runs the engine until the session's rows are as wanted.
func (r *rig) settle(e *lease.Engine, s store.Session, want string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Run(ctx)
	}()
	defer func() {
		cancel()
		<-done
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for r.states(s) != want {
		select {
		case <-ctx.Done():
			r.t.Fatalf("rows are %q, want %q", r.states(s), want)
		case <-tick.C:
			e.Wake()
		}
	}
}

func (r *rig) entries(id string) []string {
	r.t.Helper()
	logged, err := r.store.EntriesAbout(r.t.Context(), id, 1000)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for _, l := range logged {
		out = append(out, l.Event)
	}
	return out
}

func TestIssueAndEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	issued, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable), r.def("npm", providers.Static)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.states(s), "db=active login=active npm=disclosed"; got != want {
		t.Errorf("rows = %q, want %q", got, want)
	}
	if len(issued) != 2 || issued[0].Env[0].Name != "DB" || !strings.HasPrefix(string(issued[0].Env[0].Value.Reveal()), "v-cred-") {
		t.Errorf("Issue() delivers %+v", issued)
	}
	if issued[0].Lease.Marker != "runenv-"+issued[0].Lease.ID {
		t.Errorf("marker = %q", issued[0].Lease.Marker)
	}
	rows, err := r.engine.End(t.Context(), s, "client", "r-2", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 2 {
		t.Errorf("End() returns %d leases, want 2 and no login", len(rows))
	}
	if got, want := r.states(s), "db=revoked login=revoked npm=disclosed"; got != want {
		t.Errorf("after the end rows = %q, want %q", got, want)
	}
	if creds, logins := r.back.alive(); creds+logins != 0 {
		t.Errorf("the back end still has %d credentials and %d logins", creds, logins)
	}
	want := []string{"login.issued", "lease.issued", "lease.disclosed", "session.ended", "lease.revoked", "login.revoked"}
	got := r.entries(s.ID)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("audit entries = %v, want %v", got, want)
	}
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable))); !errors.Is(err, store.ErrEnded) {
		t.Errorf("Issue() after the end: %v, want ErrEnded", err)
	}
}

func TestLeasesEndBeforeTheirLogin(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("a", providers.Revocable), r.def("b", providers.Revocable))); err != nil {
		t.Fatal(err)
	}
	if _, err := r.engine.End(t.Context(), s, "client", "", time.Minute); err != nil {
		t.Fatal(err)
	}
	r.back.mu.Lock()
	defer r.back.mu.Unlock()
	last := r.back.log[len(r.back.log)-1]
	if !strings.HasPrefix(last, "logout") {
		t.Errorf("the last call was %q, want the logout; all: %v", last, r.back.log)
	}
}

func TestOneLoginForASession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	var wg sync.WaitGroup
	for i := range 4 {
		req := r.request(s, r.def(fmt.Sprint("l", i), providers.Revocable))
		wg.Go(func() {
			if _, err := r.engine.Issue(context.Background(), req); err != nil {
				t.Errorf("Issue() = %v", err)
			}
		})
	}
	wg.Wait()
	if n := r.back.calls("login"); n != 1 {
		t.Errorf("%d logins for one session, want 1", n)
	}
}

func TestT14AllOrNone(t *testing.T) {
	t.Parallel()
	unavailable := fmt.Errorf("stub: %w", providers.ErrUnavailable)
	tests := []struct {
		name, fail string
		err        error
		want       string
	}{
		{"a neighbour denied", "issue b", providers.ErrDenied, "a=revoked b=void login=revoked"},
		{"a neighbour unknown", "issue b", unavailable, "a=revoked b=revoked login=revoked"},
		{"login denied", "login", providers.ErrDenied, "a=void b=void login=void"},
		// Whether a login was made isn't known: it is recorded until it must
		// have died.
		{"login unknown", "login", unavailable, "a=void b=void login=expiring"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			s := r.session()
			r.back.set(tt.fail, tt.err)
			_, err := r.engine.Issue(t.Context(), r.request(s, r.def("a", providers.Revocable), r.def("b", providers.Revocable)))
			if _, ok := errors.AsType[*lease.Failure](err); !ok || !errors.Is(err, tt.err) {
				t.Errorf("Issue() = %v, want a Failure that wraps %v", err, tt.err)
			}
			r.settle(r.engine, s, tt.want)
			if creds, logins := r.back.alive(); creds+logins != 0 {
				t.Errorf("the back end still has %d credentials and %d logins", creds, logins)
			}
		})
	}
}

func TestRollBackKeepsTheSharedLogin(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("first", providers.Revocable))); err != nil {
		t.Fatal(err)
	}
	r.back.set("issue bad", providers.ErrNotFound)
	_, err := r.engine.Issue(t.Context(), r.request(s, r.def("good", providers.Revocable), r.def("bad", providers.Revocable)))
	if !errors.Is(err, providers.ErrNotFound) {
		t.Fatalf("Issue() = %v, want ErrNotFound", err)
	}
	r.settle(r.engine, s, "bad=void first=active good=revoked login=active")
}

func TestSessionEndsWhileIssuing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	release := make(chan struct{})
	r.back.hold["issue"] = release
	failed := make(chan error, 1)
	req := r.request(s, r.def("db", providers.Revocable))
	go func() {
		_, err := r.engine.Issue(context.Background(), req)
		failed <- err
	}()
	<-r.back.held
	if _, err := r.engine.End(t.Context(), s, "client", "", time.Minute); err != nil {
		t.Fatal(err)
	}
	close(release)
	if err := <-failed; !errors.Is(err, store.ErrEnded) {
		t.Errorf("Issue() = %v, want ErrEnded: nothing may be delivered", err)
	}
	r.settle(r.engine, s, "db=revoked login=revoked")
	if slices.Contains(r.entries(s.ID), "lease.issued") {
		t.Error("the log says that a lease was issued which nobody got")
	}
}

func TestRevocationIsRetried(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable))); err != nil {
		t.Fatal(err)
	}
	down := fmt.Errorf("stub: %w", providers.ErrUnavailable)
	r.back.set("revoke", down)
	r.back.set("logout", down)
	if _, err := r.engine.End(t.Context(), s, "client", "", time.Minute); err != nil {
		t.Fatal(err)
	}
	if got, want := r.states(s), "db=revoking login=revoking"; got != want {
		t.Errorf("rows = %q, want %q", got, want)
	}
	r.back.set("revoke", nil)
	r.back.set("logout", nil)
	r.time.add(time.Minute)
	r.settle(r.engine, s, "db=revoked login=revoked")
}

func TestT15WhatCannotBeRevokedExpires(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	r.back.ttl = 24 * time.Hour
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable))); err != nil {
		t.Fatal(err)
	}
	r.back.set("revoke", fmt.Errorf("stub: %w", providers.ErrUnavailable))
	r.back.set("logout", fmt.Errorf("stub: %w", providers.ErrUnavailable))
	if _, err := r.engine.End(t.Context(), s, "client", "", time.Minute); err != nil {
		t.Fatal(err)
	}
	// The login dies by itself within five minutes, and what is under it too.
	r.time.add(providers.LoginTTL)
	r.settle(r.engine, s, "db=expired login=expired")
}

// bare is a back end without logins and renewal.
type bare struct {
	providers.Provider
	providers.Revoker
}

func TestT15LongFailureBecomesIrrevocable(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.bare = true
	s := r.session()
	r.back.ttl = 100 * time.Hour
	d := r.def("key", providers.Revocable)
	d.Provider = bare{r.back, r.back}
	if _, err := r.engine.Issue(t.Context(), r.request(s, d)); err != nil {
		t.Fatal(err)
	}
	r.back.set("revoke", fmt.Errorf("stub: %w", providers.ErrUnavailable))
	if _, err := r.engine.End(t.Context(), s, "client", "", time.Minute); err != nil {
		t.Fatal(err)
	}
	for r.states(s) == "key=revoking" {
		r.time.add(5 * time.Minute)
		r.step(s)
	}
	if got, want := r.states(s), "key=irrevocable"; got != want {
		t.Fatalf("rows = %q, want %q", got, want)
	}
	if n := r.back.calls("revoke"); n != 30 {
		t.Errorf("called irrevocable after %d tries, want 30", n)
	}
	// It is tried again every day, and ends when the back end comes back.
	r.back.set("revoke", nil)
	r.time.add(23 * time.Hour)
	r.step(s)
	if got, want := r.states(s), "key=irrevocable"; got != want {
		t.Errorf("after 23 hours rows = %q, want %q", got, want)
	}
	r.time.add(time.Hour)
	r.settle(r.engine, s, "key=revoked")
	if creds, _ := r.back.alive(); creds != 0 {
		t.Errorf("the back end still has %d credentials", creds)
	}
}

func TestEndsWithLoginOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	r.back.set("revoke", providers.ErrWithLogin)
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable))); err != nil {
		t.Fatal(err)
	}
	if _, err := r.engine.End(t.Context(), s, "client", "", time.Minute); err != nil {
		t.Fatal(err)
	}
	if got, want := r.states(s), "db=revoked login=revoked"; got != want {
		t.Errorf("rows = %q, want %q", got, want)
	}
}

func TestMissedHeartbeatsEndTheSession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable))); err != nil {
		t.Fatal(err)
	}
	r.time.add(s.HeartbeatTimeout)
	r.settle(r.engine, s, "db=revoked login=revoked")
	got, err := r.store.Session(t.Context(), s.ID)
	if err != nil || got.EndReason != "heartbeat" {
		t.Errorf("session ended for %q, %v, want heartbeat", got.EndReason, err)
	}
	if ev := <-r.events; ev.Session != s.ID || ev.Lease != nil || ev.Reason != "heartbeat" {
		t.Errorf("event = %+v, want the session's end", ev)
	}
}

func TestRenewal(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	issued, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable)))
	if err != nil {
		t.Fatal(err)
	}
	first := issued[0].Lease.ExpiresAt
	// Keep the session alive beyond the lease's first life.
	for range 6 {
		r.time.add(2 * time.Minute)
		if _, err := r.store.Heartbeat(t.Context(), r.time.Now(), s.ID); err != nil {
			t.Fatal(err)
		}
		r.step(s)
	}
	row, err := r.store.Lease(t.Context(), issued[0].Lease.ID)
	if err != nil {
		t.Fatal(err)
	}
	if row.State != store.Active || !row.ExpiresAt.After(first) {
		t.Errorf("after 12 minutes the lease is %s until %v, first until %v: not renewed", row.State, row.ExpiresAt, first)
	}
	if r.back.calls("renew-login") == 0 {
		t.Error("the login was never renewed")
	}
}

// step runs the engine until nothing of the session is due.
func (r *rig) step(s store.Session) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.engine.Run(ctx)
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for due := true; due; {
		rows, err := r.store.Leases(ctx, s.ID)
		if err != nil {
			r.t.Fatal(err)
		}
		due = slices.ContainsFunc(rows, func(row store.Lease) bool {
			return !row.NextAt.IsZero() && !row.NextAt.After(r.time.Now())
		})
		<-tick.C
	}
	cancel()
	<-done
}

func TestT16RenewalIsJudgedByTodaysPolicy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	issued, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable)))
	if err != nil {
		t.Fatal(err)
	}
	r.denied = errors.New("no longer")
	for range 5 {
		r.time.add(150 * time.Second)
		if _, err := r.store.Heartbeat(t.Context(), r.time.Now(), s.ID); err != nil {
			t.Fatal(err)
		}
		r.step(s)
	}
	row, err := r.store.Lease(t.Context(), issued[0].Lease.ID)
	if err != nil {
		t.Fatal(err)
	}
	if !row.ExpiresAt.Equal(issued[0].Lease.ExpiresAt) {
		t.Errorf("renewed to %v although today's policy says no", row.ExpiresAt)
	}
	if _, err := r.engine.Renew(t.Context(), s, row, "r-9"); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Renew() = %v, want ErrConflict", err)
	}
	if n := r.back.calls("renew "); n != 0 {
		t.Errorf("the back end was asked %d times", n)
	}
}

func TestCapEndsALeaseOfALiveSession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	d := r.def("db", providers.Revocable)
	d.TTL, d.MaxTTL = 2*time.Minute, 2*time.Minute
	if _, err := r.engine.Issue(t.Context(), r.request(s, d)); err != nil {
		t.Fatal(err)
	}
	if r.back.calls("renew ") != 1 {
		t.Error("the back end wasn't asked to shorten a credential that outlives its ttl")
	}
	r.back.set("renew", providers.ErrDenied) // so that only the engine's own end is left
	r.time.add(2 * time.Minute)
	r.settle(r.engine, s, "db=expired login=active")
}

// A crash leaves rows in the middle; a new engine on the same store brings each
// to an end.
func TestT14Restart(t *testing.T) {
	t.Parallel()
	for kind, want := range map[providers.Revocability]string{
		providers.Revocable: "db=revoked login=revoked",
		providers.Static:    "db=void login=revoked", // the answer comes after the record
		providers.Expires:   "db=expiring login=revoked",
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			s := r.session()
			never := make(chan struct{})
			r.back.hold["issue"] = never
			ctx, cancel := context.WithCancel(context.Background())
			gone := make(chan struct{})
			req := r.request(s, r.def("db", kind))
			go func() {
				defer close(gone)
				_, _ = r.engine.Issue(ctx, req)
			}()
			<-r.back.held
			if got, want := r.states(s), "db=issuing login=active"; got != want {
				t.Fatalf("rows = %q, want %q", got, want)
			}
			if err := r.store.Restart(t.Context(), r.time.Now()); err != nil {
				t.Fatal(err)
			}
			// The session gets one heartbeat's time, and then all must end.
			r.time.add(s.HeartbeatTimeout)
			r.settle(r.newEngine(), s, want)
			cancel()
			<-gone
		})
	}
}

func TestT24Clock(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	wall := start
	c := lease.NewClock(start.Add(-time.Hour), func() time.Time { return wall })
	if got := c.Now(); !got.Equal(start) {
		t.Errorf("Now() = %v, want the wall's %v", got, start)
	}
	wall = start.Add(-time.Hour)
	if got := c.Now(); got.Before(start) {
		t.Errorf("the wall was set back and Now() followed to %v", got)
	}
	wall = start.Add(time.Hour)
	if got := c.Now(); !got.Equal(wall) {
		t.Errorf("the wall was set forward to %v, Now() = %v", wall, got)
	}
	if got := lease.NewClock(start.Add(2*time.Hour), func() time.Time { return start }).Now(); !got.Equal(start.Add(2 * time.Hour)) {
		t.Errorf("after a restart with a clock behind the store's Now() = %v, want the high-water mark", got)
	}
}
