package broker_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runenv/action/broker"
	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/broker/identity"
	"github.com/runenv/action/broker/identity/identitytest"
	"github.com/runenv/action/broker/issuer"
	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/policy"
	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/broker/store/sqlite"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/static"
	"github.com/runenv/action/providers/vault"
	"github.com/runenv/action/providers/vault/vaulttest"
	"github.com/runenv/action/ref"
	"github.com/runenv/action/secret"
)

// canary is the value of a static lease. No sink of the broker may show it.
const canary = "c4n4ry-npm-token"

// brokerFile is the file of the broker under test. URL, GITHUB, GITLAB and
// VAULT are put in.
const brokerFile = `
url: URL
issuers:
  github: {profile: github, url: "GITHUB"}
  gitlab: {profile: gitlab, url: "GITLAB"}
providers:
  local: {type: static}
  vault: {type: vault, address: "VAULT"}
  odd: {type: odd}
projects:
  shop-api: {github: acme/shop-api@1001, vars: {team: shop}}
  shop-web: {github: acme/shop-web@1002, vars: {team: shop}}
  pay-api: {gitlab: pay/api@88, vars: {team: pay}}
leases:
  npm: {provider: local, values: {token: "` + canary + `", registry: "https://npm.example.com"}, env: {NPM_TOKEN: token, NPM_REGISTRY: {field: registry, mask: false}}}
  db: {provider: vault, path: "database/creds/{{project.name}}-ro", env: {DB_USER: username, DB_PASSWORD: password}, ttl: 15m, max_ttl: 1h}
  odd: {provider: odd, env: {ODD: value}}
  secret-lease: {provider: local, values: {token: "` + canary + `-other"}, env: {OTHER: token}}
roles:
  prod:
    projects: [shop-api, shop-web, pay-api]
    match:
      github: {ref: refs/heads/main, environment: production, event_name: [push, workflow_dispatch]}
      gitlab: {ref_path: refs/heads/main, environment: production, pipeline_source: push}
    leases: [npm, db]
    session_ttl: 2h
    heartbeat_timeout: 3m
    limits: {sessions: 2, leases: 4}
  odd:
    projects: [shop-api]
    match: {github: {ref: refs/heads/main, event_name: push}}
    leases: [odd, npm]
  elsewhere:
    projects: [pay-api]
    match: {gitlab: {ref_path: refs/heads/main, pipeline_source: push}}
    leases: [secret-lease]
`

// A clock is moved by the test alone.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// A buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// failing is a store of which single verbs can be made to fail, and Heartbeat
// to panic.
type failing struct {
	store.Store
	mu    sync.Mutex
	verbs map[string]bool
}

func (f *failing) fail(verbs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.verbs = map[string]bool{}
	for _, v := range verbs {
		f.verbs[v] = true
	}
}

func (f *failing) err(verb string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.verbs[verb] {
		return fmt.Errorf("%s: no space left on device", verb)
	}
	return nil
}

func (f *failing) Record(ctx context.Context, now time.Time, entries []store.Entry) error {
	if err := f.err("Record"); err != nil {
		return err
	}
	return f.Store.Record(ctx, now, entries)
}

func (f *failing) CreateSession(ctx context.Context, now time.Time, n store.NewSession) (store.Created, error) {
	if err := f.err("CreateSession"); err != nil {
		return store.Created{}, err
	}
	return f.Store.CreateSession(ctx, now, n)
}

func (f *failing) Intend(ctx context.Context, now time.Time, in store.Intended) error {
	if err := f.err("Intend"); err != nil {
		return err
	}
	return f.Store.Intend(ctx, now, in)
}

func (f *failing) Advance(ctx context.Context, now time.Time, changes []store.Change) ([]error, error) {
	if err := f.err("Advance"); err != nil {
		return nil, err
	}
	return f.Store.Advance(ctx, now, changes)
}

func (f *failing) Heartbeat(ctx context.Context, now time.Time, id string) (time.Time, error) {
	if err := f.err("Heartbeat"); err != nil {
		panic(canary + err.Error())
	}
	return f.Store.Heartbeat(ctx, now, id)
}

func (f *failing) Ready(ctx context.Context) error {
	if err := f.err("Ready"); err != nil {
		return err
	}
	return f.Store.Ready(ctx)
}

// odd is a provider that does what the test says.
type odd struct {
	mu    sync.Mutex
	issue func(context.Context, providers.Request) (*providers.Credential, error)
	calls int
}

func (o *odd) set(issue func(context.Context, providers.Request) (*providers.Credential, error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.issue = issue
}

type oddDefinition struct{}

func (oddDefinition) Templates() []providers.Template      { return nil }
func (oddDefinition) Revocability() providers.Revocability { return providers.Revocable }

func (o *odd) Define(decode func(any) error) (providers.Definition, error) {
	var keys struct{}
	return oddDefinition{}, decode(&keys)
}

func (o *odd) Issue(ctx context.Context, req providers.Request) (*providers.Credential, error) {
	o.mu.Lock()
	o.calls++
	issue := o.issue
	o.mu.Unlock()
	return issue(ctx, req)
}

func (o *odd) Revoke(context.Context, secret.Value, secret.Value) error { return nil }

// A rig is a broker with everything around it: two CIs' issuers, a Vault, a
// store, and a real HTTP server whose URL is the broker's.
type rig struct {
	t      testing.TB
	clock  *clock
	github *identitytest.Issuer
	gitlab *identitytest.Issuer
	vault  *vaulttest.Server
	odd    *odd
	sqlite *sqlite.Store
	store  *failing
	own    *issuer.Issuer
	broker *broker.Broker
	server *httptest.Server
	http   *http.Client
	url    string // the broker's
	base   string // where its server listens
	file   *config.File
	log    *buffer
	vaults map[string]providers.Provider
	grants map[string]error // by reference: nil grants it; what isn't here isn't
	stop   func()           // ends the broker's own work

	mu      sync.Mutex
	secrets []string // what no sink may show
}

type settings struct {
	url  string                          // if not where the server listens
	file string                          // the broker's, if not brokerFile
	path string                          // of the store, if not in memory
	wrap func(http.Handler) http.Handler // around the broker's handler
	now  func() time.Time                // if not the rig's clock
}

// newRig starts one, whose sinks are searched for secrets when the test ends.
func newRig(t testing.TB, change ...func(*settings)) *rig {
	t.Helper()
	set := settings{file: brokerFile, path: sqlite.Memory}
	for _, c := range change {
		c(&set)
	}
	r := &rig{
		t: t, clock: &clock{t: time.Now().UTC().Truncate(time.Second)}, odd: &odd{}, log: &buffer{},
		github: identitytest.New(t), gitlab: identitytest.New(t), vault: vaulttest.New(t), secrets: []string{canary, vaulttest.Echo},
	}
	if set.now == nil {
		set.now = r.clock.Now
	}
	r.github.SetNow(set.now)
	r.gitlab.SetNow(set.now)
	r.server = httptest.NewUnstartedServer(nil)
	r.base = "http://" + r.server.Listener.Addr().String()
	if r.url = set.url; r.url == "" {
		r.url = r.base
	}
	r.vault.Roles["runenv-prod"] = vaulttest.Role{Subject: "runenv:role:prod", Audience: r.vault.URL}
	r.vault.Mount("database", "database", vaulttest.Database(15*time.Minute))

	log := slog.New(slog.NewJSONHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	r.sqlite, err = sqlite.Open(t.Context(), sqlite.Config{Path: set.path, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	r.store = &failing{Store: r.sqlite}
	sealer := seal.Ephemeral()
	auditLog, err := audit.Open(t.Context(), audit.Config{Store: r.store, Keys: r.store, Sealer: sealer, Origin: "broker.test", Now: set.now, Log: log, Interval: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	r.own, err = issuer.Open(t.Context(), issuer.Config{URL: r.url, BrokerURL: r.url, Keys: r.store, Sealer: sealer, Now: set.now})
	if err != nil {
		t.Fatal(err)
	}
	r.file = r.parse(set.file)
	open := r.openProviders(set.now, log)
	r.vaults = open
	r.broker, err = broker.New(broker.Config{
		URL: r.url, Version: "test", Store: r.store, Sealer: sealer, Audit: auditLog, Issuer: r.own,
		Provider: func(name string) (providers.Provider, bool) { p, ok := open[name]; return p, ok },
		Rules:    &broker.Rules{Policy: r.file.Compiled, Definitions: r.definitions(r.file, open), Reference: r.reference, Verifier: r.verifier(set.now, log)},
		Now:      set.now, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	handler := r.broker.Handler()
	if set.wrap != nil {
		handler = set.wrap(handler)
	}
	r.server.Config.Handler = handler
	r.server.Config.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	r.server.Start()
	r.http = &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: 128, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       time.Minute,
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.broker.Run(ctx) // a test may have closed the store
	}()
	r.stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(func() {
		r.http.CloseIdleConnections()
		r.stop()
		r.server.CloseClientConnections()
		r.server.Close()
		r.search()
		_ = r.sqlite.Close()
	})
	return r
}

func (r *rig) parse(text string) *config.File {
	r.t.Helper()
	text = strings.NewReplacer("URL", r.url, "GITHUB", r.github.URL, "GITLAB", r.gitlab.URL, "VAULT", r.vault.URL).Replace(text)
	file, err := config.Parse("broker.yaml", []byte(text), config.Options{Dev: true})
	if err != nil {
		r.t.Fatal(err)
	}
	return file
}

func (r *rig) openProviders(now func() time.Time, log *slog.Logger) map[string]providers.Provider {
	r.t.Helper()
	types := map[string]providers.Type{
		"static": static.Type(), "vault": vault.Type(),
		"odd": {Open: func(cfg providers.Config) (providers.Provider, error) {
			var keys struct{}
			return r.odd, cfg.Decode(&keys)
		}},
	}
	open := map[string]providers.Provider{}
	for _, entry := range r.file.Providers {
		p, err := types[entry.Type].Open(providers.Config{Name: entry.Name, Decode: entry.Decode, Dev: true, Now: now, Log: log})
		if err != nil {
			r.t.Fatal(err)
		}
		open[entry.Name] = p
	}
	return open
}

func (r *rig) definitions(file *config.File, open map[string]providers.Provider) map[string]lease.Definition {
	r.t.Helper()
	defs := map[string]lease.Definition{}
	for _, entry := range file.Leases {
		p := open[entry.Provider]
		provides, err := p.Define(entry.Decode)
		if err != nil {
			r.t.Fatal(err)
		}
		def := lease.Definition{Name: entry.Name, ProviderName: entry.Provider, Provider: p, Provides: provides, TTL: entry.TTL, MaxTTL: entry.MaxTTL}
		for _, v := range entry.Env {
			def.Env = append(def.Env, v.Var)
		}
		defs[entry.Name] = def
	}
	return defs
}

// reference grants what the test says to role odd, and dynamic to role prod.
func (r *rig) reference(role *policy.Role, vars providers.Vars, ref ref.Ref, _ []string) (lease.Definition, error) {
	if ref.String() == dynamic && role.Name == "prod" {
		return r.definitions(r.file, r.vaults)["db"], r.grants[dynamic]
	}
	err, granted := r.grants[ref.String()]
	if !granted || role.Name != "odd" || vars["project.name"] != "shop-api" {
		err = fmt.Errorf("%s: %w", ref.String(), broker.ErrNotGranted)
	}
	return lease.Definition{ProviderName: "odd", Provider: r.odd, Provides: oddDefinition{}}, err
}

func (r *rig) verifier(now func() time.Time, log *slog.Logger) *identity.Verifier {
	r.t.Helper()
	cfg := identity.Config{Audience: r.url, Now: now, Log: log}
	for _, i := range r.file.Issuers {
		cfg.Issuers = append(cfg.Issuers, identity.IssuerConfig{Name: i.Name, Profile: i.Profile, URL: i.URL, Loopback: true})
	}
	v, err := identity.NewVerifier(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(v.Close)
	return v
}

// swap puts another file in force.
func (r *rig) swap(text string) {
	r.t.Helper()
	log := slog.New(slog.DiscardHandler)
	r.file = r.parse(text)
	err := r.broker.Swap(r.t.Context(), &broker.Rules{
		Policy: r.file.Compiled, Definitions: r.definitions(r.file, r.openProviders(r.clock.Now, log)), Reference: r.reference, Verifier: r.verifier(r.clock.Now, log),
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// hide adds to what no sink may show.
func (r *rig) hide(secrets ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secrets = append(r.secrets, secrets...)
}

// shown returns the first secret that the text holds, plain or encoded.
func (r *rig) shown(text string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.secrets {
		for _, form := range []string{s, base64.StdEncoding.EncodeToString([]byte(s)), base64.RawURLEncoding.EncodeToString([]byte(s)), url.QueryEscape(s)} {
			if strings.Contains(text, form) {
				return s
			}
		}
	}
	return ""
}

// search looks into every sink (T18).
func (r *rig) search() {
	if s := r.shown(r.log.String()); s != "" {
		r.t.Errorf("the log shows %q", s)
	}
	for _, e := range r.entries() {
		if s := r.shown(string(e.Body)); s != "" {
			r.t.Errorf("the audit log shows %q in %s", s, e.Event)
		}
	}
	rec := httptest.NewRecorder()
	r.broker.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, r.url+api.PathMetrics, nil))
	if s := r.shown(rec.Body.String()); s != "" {
		r.t.Errorf("the metrics show %q", s)
	}
}

// entries are all of the audit log.
func (r *rig) entries() []store.Logged {
	ctx := context.Background()
	// An entry that is sequenced meanwhile is seen twice, not missed.
	pending, _ := r.sqlite.Pending(ctx, 10_000)
	var all []store.Logged
	for {
		more, err := r.sqlite.Entries(ctx, int64(len(all)), 1000)
		if err != nil || len(more) == 0 {
			break // a store that the test closed has nothing to show
		}
		all = append(all, more...)
	}
	for _, p := range pending {
		if !slices.ContainsFunc(all, func(l store.Logged) bool { return l.Row == p.Row }) {
			all = append(all, p)
		}
	}
	return all
}

// audited returns the records about a request, session or lease.
func (r *rig) audited(id string) []audit.Record {
	r.t.Helper()
	logged, err := audit.Show(r.t.Context(), r.sqlite, id)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []audit.Record
	for _, l := range logged {
		var rec audit.Record
		if err := json.Unmarshal(l.Body, &rec); err != nil {
			r.t.Fatal(err)
		}
		out = append(out, rec)
	}
	return out
}

// events are the records' events with their reasons.
func events(records []audit.Record) string {
	var out []string
	for _, rec := range records {
		s := rec.Event
		if rec.Reason != "" {
			s += "(" + rec.Reason + ")"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// row is the session as the store has it.
func (s *session) row() store.Session {
	s.r.t.Helper()
	row, err := s.r.sqlite.Session(s.r.t.Context(), s.id)
	if err != nil {
		s.r.t.Fatal(err)
	}
	return row
}

// states are the session's rows as name=state, in order.
func (s *session) states() string {
	s.r.t.Helper()
	rows, err := s.r.sqlite.Leases(s.r.t.Context(), s.id)
	if err != nil {
		s.r.t.Fatal(err)
	}
	var out []string
	for _, row := range rows {
		name := row.Name
		if row.IsLogin {
			name = "login"
		}
		out = append(out, name+"="+string(row.State))
	}
	return strings.Join(out, " ")
}

// until waits for what the broker does in its own time.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(20 * time.Second)
	defer late.Stop()
	for !ok() {
		select {
		case <-late.C:
			r.t.Fatalf("not within 20 s: %s", what)
		case <-tick.C:
		}
	}
}

// metric returns the value of a metric, named with its labels as it stands in
// /metrics; 0 if it isn't there.
func (r *rig) metric(name string) float64 {
	r.t.Helper()
	a := r.send(http.MethodGet, api.PathMetrics, "")
	for line := range strings.SplitSeq(string(a.body), "\n") {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			var f float64
			if _, err := fmt.Sscan(value, &f); err != nil {
				r.t.Fatal(err)
			}
			return f
		}
	}
	return 0
}

// closedFolder is a folder for a store on disk.
func closedFolder(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}
