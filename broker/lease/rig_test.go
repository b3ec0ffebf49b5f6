package lease_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/shape"
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
	mu     sync.Mutex
	now    func() time.Time
	logins map[string]bool
	creds  map[string]string // credential -> its login
	log    []string
	fail   map[string]error // call or "call name" -> error
	hold   map[string]chan struct{}
	held   chan string
	ttl    time.Duration
	count  int
	size   int // bytes added to each value

	markers  map[string]string // credential -> its marker
	requests []providers.Request
	endless  bool      // credentials have no expiry
	most     time.Time // no renewal goes past it
}

func newBackEnd(now func() time.Time) *backEnd {
	return &backEnd{
		now: now, logins: map[string]bool{}, creds: map[string]string{}, fail: map[string]error{},
		markers: map[string]string{}, hold: map[string]chan struct{}{}, held: make(chan string, 64), ttl: 15 * time.Minute,
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

// named is a def, whatever it was wrapped into.
type named interface{ of() def }

func (d def) of() def { return d }

// bounded is a def whose life has bounds, and loginless one without a login.
type (
	bounded struct {
		def
		shortest, longest time.Duration
	}
	loginless struct{ def }
)

func (d bounded) Bounds() (shortest, longest time.Duration) { return d.shortest, d.longest }
func (loginless) Loginless() bool                           { return true }

// expireOnly is a back end like a cloud's: nothing of it can be ended, renewed
// or found.
type expireOnly struct{ b *backEnd }

func (p expireOnly) Define(func(any) error) (providers.Definition, error) { return def{}, nil }
func (p expireOnly) LoginTTL() time.Duration                              { return 10 * time.Minute }

func (p expireOnly) Issue(ctx context.Context, req providers.Request) (*providers.Credential, error) {
	return p.b.Issue(ctx, req)
}

func (p expireOnly) Login(ctx context.Context, req providers.LoginRequest) (*providers.Login, error) {
	login, err := p.b.Login(ctx, req)
	if err == nil {
		login.Expires = p.b.now().Add(p.LoginTTL())
	}
	return login, err
}

// finder is a back end without logins that can be asked by marker.
type finder struct{ bare }

func (f finder) Find(ctx context.Context, marker string, _ secret.Value) ([]secret.Value, error) {
	b := f.Provider.(*backEnd)
	if err := b.call(ctx, "find", marker); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []secret.Value
	for cred, m := range b.markers {
		if _, lives := b.creds[cred]; lives && m == marker {
			found = append(found, secret.FromString(cred))
		}
	}
	return found, nil
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

func (*backEnd) LoginTTL() time.Duration { return providers.LoginTTL }

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
	d := req.Definition.(named).of()
	b.mu.Lock()
	b.requests = append(b.requests, req)
	b.mu.Unlock()
	if err := b.call(ctx, "issue", d.name); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count++
	id := fmt.Sprintf("cred-%d", b.count)
	cred := &providers.Credential{Fields: map[string]secret.Value{"value": secret.FromString("v-" + id + strings.Repeat("x", b.size))}, Revocability: d.kind}
	if d.kind != providers.Static {
		b.creds[id] = string(req.Login.Reveal())
		cred.Handle = secret.FromString(id)
		b.markers[id] = req.Marker
		if !b.endless {
			cred.Expires = b.now().Add(b.ttl)
		}
		cred.Renewable = d.kind == providers.Revocable
	}
	return cred, nil
}

func (b *backEnd) Renew(ctx context.Context, handle, _ secret.Value, ttl time.Duration) (time.Time, error) {
	if err := b.call(ctx, "renew", string(handle.Reveal())); err != nil {
		return time.Time{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.most.IsZero() && b.now().Add(ttl).After(b.most) {
		return b.most, nil
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
	t      testing.TB
	time   *fakeTime
	store  *sqlite.Store
	verbs  store.Store // store, as the engine sees it
	back   *backEnd
	engine *lease.Engine
	events chan lease.Event
	sealer seal.Sealer
	denied error                // what Judge says
	capped time.Duration        // Judge's max_ttl, if not def's
	judged providers.Definition // what Judge has, if not a def
	moved  string               // Judge's provider, if not the one that issued
	proofs int
	// provider is what the engine sees, if not back.
	provider providers.Provider
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, time: &fakeTime{t: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}, events: make(chan lease.Event, 1024)}
	st, err := sqlite.Open(t.Context(), sqlite.Config{Path: sqlite.Memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	r.store, r.verbs, r.back, r.sealer = st, st, newBackEnd(r.time.Now), seal.Ephemeral()
	r.engine = r.newEngine()
	return r
}

func (r *rig) newEngine() *lease.Engine {
	r.t.Helper()
	e, err := lease.New(lease.Config{
		Store: r.verbs, Sealer: r.sealer, Now: r.time.Now,
		Provider: func(name string) (providers.Provider, bool) {
			return r.seen(), name == "back"
		},
		Tokens: func(store.Session) providers.TokenSource {
			return func(context.Context, string) (string, error) { return "token", nil }
		},
		Judge: func(_ context.Context, _ store.Session, name string) (lease.Definition, string, error) {
			d := r.def(name, providers.Revocable)
			if r.capped != 0 {
				d.MaxTTL = r.capped
			}
			if r.judged != nil {
				d.Provides = r.judged
			}
			if r.moved != "" {
				d.ProviderName = r.moved
			}
			return d, "today", r.denied
		},
		Notify: func(ev lease.Event) { r.events <- ev },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return e
}

func (r *rig) seen() providers.Provider {
	if r.provider != nil {
		return r.provider
	}
	return r.back
}

func (r *rig) def(name string, kind providers.Revocability) lease.Definition {
	return lease.Definition{
		Name: name, ProviderName: "back", Provider: r.seen(), Provides: def{name, kind},
		Env: []shape.Var{{Name: strings.ToUpper(name), Field: "value", Mask: true}},
		TTL: 15 * time.Minute, MaxTTL: time.Hour,
	}
}

func (r *rig) session() store.Session {
	r.t.Helper()
	n := r.newSession()
	r.create(n)
	return n.Session
}

// newSession is one that isn't made yet.
func (r *rig) newSession() store.NewSession {
	now := r.time.Now()
	id := lease.NewID("s")
	return store.NewSession{
		Session: store.Session{
			ID: id, Role: "prod", Issuer: "github", Job: id, Thumbprint: "thumb", AccessHash: []byte("a" + id), EndHash: []byte("e" + id),
			Claims: []byte("{}"), CreatedAt: now, HardEnd: now.Add(2 * time.Hour), HeartbeatTimeout: 3 * time.Minute, Deadline: now.Add(3 * time.Minute),
		},
		Limit: 4, Proof: r.proof(), EndedEntry: store.Entry{Event: "session.ended", Body: []byte("{}")},
		Token: store.Token{Issuer: "github", JTI: id, Expires: now.Add(5 * time.Minute), Body: []byte("b")},
	}
}

func (r *rig) create(n store.NewSession) {
	r.t.Helper()
	if _, err := r.store.CreateSession(r.t.Context(), n.Session.CreatedAt, n); err != nil {
		r.t.Fatal(err)
	}
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
