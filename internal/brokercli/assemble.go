package brokercli

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/runenv/action/broker"
	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/broker/identity"
	"github.com/runenv/action/broker/issuer"
	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/broker/store/sqlite"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/aws"
	"github.com/runenv/action/providers/gcp"
	"github.com/runenv/action/providers/static"
	"github.com/runenv/action/providers/vault"
)

// types are the kinds of provider that this program has.
func types() []providers.Type {
	return []providers.Type{static.Type(), vault.Type(), aws.Type(), gcp.Type()}
}

// A mode is whom a broker serves; its zero is that of serve.
type mode struct {
	dev bool // a local world, of dev
	// ci, of run, gives the job's own tokens for the back end of the named
	// provider; nil for all others.
	ci func(provider string) providers.TokenSource
}

// load reads the broker's file.
func load(env Env, path string, m mode) (*config.File, error) {
	var names []string
	for _, t := range types() {
		names = append(names, t.Name)
	}
	return config.Load(path, config.Options{Getenv: env.LookupEnv, ProviderTypes: names, Dev: m.dev, Direct: m.ci != nil})
}

// maxProblems bounds how many problems are reported: one template can fail for
// every project.
const maxProblems = 100

func ordered(problems config.Problems) config.Problems {
	slices.SortStableFunc(problems, func(a, b config.Problem) int { return a.Pos.Compare(b.Pos) })
	problems = slices.Compact(problems)
	if over := len(problems) - maxProblems; over > 0 {
		problems = append(problems[:maxProblems:maxProblems], config.Problem{Message: fmt.Sprintf("%d more problems", over)})
	}
	return problems
}

// registry keeps providers findable by name, also those that the latest file
// no longer has: what they issued must still be ended.
type registry struct {
	mu sync.RWMutex
	m  map[string]providers.Provider
}

func (r *registry) find(name string) (providers.Provider, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	p, ok := r.m[name]
	return p, ok
}

// add returns how to take the addition back.
func (r *registry) add(m map[string]providers.Provider) (undo func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.m
	r.m = maps.Clone(before)
	if r.m == nil {
		r.m = map[string]providers.Provider{}
	}
	maps.Copy(r.m, m)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.m = before
	}
}

// world is a broker with everything that it works with.
type world struct {
	file     *config.File
	mode     mode
	now      func() time.Time // the wall's time, then the broker's own
	log      *slog.Logger
	store    store.Store
	audit    *audit.Log
	registry registry
	verifier *identity.Verifier
	broker   *broker.Broker
}

// assemble puts a broker together and records that it started. It makes no
// network call.
func assemble(ctx context.Context, env Env, file *config.File, m mode, log *slog.Logger) (_ *world, err error) {
	w := &world{file: file, mode: m, now: env.Now, log: log}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	compiled, err := w.compile(file)
	if err != nil {
		return nil, err
	}
	w.verifier = compiled.rules.Verifier
	w.registry.add(compiled.providers)
	sealer, err := sealerOf(file)
	if err != nil {
		return nil, err
	}
	w.store, err = openStore(ctx, file, log)
	if err != nil {
		return nil, err
	}
	highWater, err := w.store.HighWater(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the store's clock: %w", err)
	}
	clock := lease.NewClock(highWater, env.Now)
	w.now = clock.Now
	if ahead := highWater.Sub(env.Now()); ahead > time.Minute {
		log.WarnContext(ctx, "the store has seen a later time than this machine shows: the broker's clock stands until the machine's catches up", "ahead", ahead)
	}
	u, err := url.Parse(file.URL)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	w.audit, err = audit.Open(ctx, audit.Config{Store: w.store, Keys: w.store, Sealer: sealer, Origin: u.Host, Now: clock.Now, Log: log})
	if err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	own := issuer.Mute()
	if m.ci == nil {
		if own, err = issuer.Open(ctx, issuer.Config{URL: file.IssuerURL, BrokerURL: file.URL, Keys: w.store, Sealer: sealer, Now: clock.Now}); err != nil {
			return nil, fmt.Errorf("opening the broker's own keys: %w", err)
		}
	}
	if err := w.store.Restart(ctx, clock.Now()); err != nil {
		return nil, fmt.Errorf("taking up the store: %w", err)
	}
	entry, err := audit.Record{Time: clock.Now(), Event: "broker.started", Policy: file.Compiled.Digest()}.Entry()
	if err != nil {
		return nil, err
	}
	if err := w.store.Record(ctx, clock.Now(), []store.Entry{entry}); err != nil {
		return nil, fmt.Errorf("recording the start: %w", err)
	}
	w.broker, err = broker.New(broker.Config{
		URL: file.URL, Version: Version(), Store: w.store, Sealer: sealer, Audit: w.audit, Issuer: own,
		Provider: w.registry.find, Rules: compiled.rules, Now: clock.Now, Log: log,
	})
	return w, err
}

// time is for what is made before the store can say how late it is: tokens are
// judged by the same clock that says when they are forgotten (T24).
func (w *world) time() time.Time { return w.now() }

func (w *world) close() {
	if w.verifier != nil {
		w.verifier.Close()
	}
	if w.store == nil {
		return
	}
	if err := w.store.Close(); err != nil {
		w.log.Error("closing the store", "err", err)
	}
}

// compiled is a file ready to be put in force.
type compiled struct {
	rules     *broker.Rules
	providers map[string]providers.Provider
}

// compile changes nothing that is in force. The verifier is the one in force
// where the issuers are the same, and with it the keys at hand.
func (w *world) compile(file *config.File) (*compiled, error) {
	parts, err := open(file, w.mode, w.time, w.log)
	if err != nil {
		return nil, err
	}
	verifier := w.verifier
	if verifier == nil || !sameIssuers(w.file.Issuers, file.Issuers) {
		if verifier, err = verifierOf(file, w.mode, w.time, w.log); err != nil {
			return nil, err
		}
	}
	return &compiled{&broker.Rules{
		Policy: file.Compiled, Definitions: parts.definitions, Reference: parts.references.definition, Verifier: verifier,
	}, parts.providers}, nil
}

// reload puts a new file in force, or changes nothing.
func (w *world) reload(ctx context.Context, file *config.File) error {
	for _, fixed := range []struct {
		key  string
		same bool
	}{
		{"url", w.file.URL == file.URL},
		{"issuer_url", w.file.IssuerURL == file.IssuerURL},
		{"listen", w.file.Listen == file.Listen},
		{"store", w.file.Store == file.Store},
		{"seal", w.file.Seal.Equal(file.Seal)},
	} {
		if !fixed.same {
			return hinted{fmt.Errorf("%s can't be changed while the broker runs", fixed.key), "put it back, or restart the broker"}
		}
	}
	next, err := w.compile(file)
	if err != nil {
		return err
	}
	// Before the rules that need them: what is issued can then be ended.
	undo := w.registry.add(next.providers)
	before, after := w.verifier, next.rules.Verifier
	if err := w.broker.Swap(ctx, next.rules); err != nil {
		undo()
		if after != before {
			after.Close()
		}
		return err
	}
	if after != before {
		// Exchanges under way finish with it.
		time.AfterFunc(time.Minute, before.Close)
	}
	w.file, w.verifier = file, after
	return nil
}

func sameIssuers(a, b []config.Issuer) bool {
	return slices.EqualFunc(a, b, func(x, y config.Issuer) bool {
		x.Pos, y.Pos = config.Pos{}, config.Pos{}
		// The files that an entry names may have changed.
		return reflect.DeepEqual(x, y) && x.CAFile == "" && x.JWKSFile == ""
	})
}

// verifierOf makes no network call. Its error is a [config.Problems].
func verifierOf(file *config.File, m mode, now func() time.Time, log *slog.Logger) (*identity.Verifier, error) {
	cfg := identity.Config{Audience: file.URL, Now: now, Log: log}
	var problems config.Problems
	for _, entry := range file.Issuers {
		if !entry.Enabled {
			continue
		}
		ic := identity.IssuerConfig{
			Name: entry.Name, Profile: entry.Profile, URL: entry.URL, Audience: entry.Audience,
			AllowNetworks: entry.AllowNetworks, Reuse: identity.Reuse(entry.Reuse),
			Loopback: m.dev && strings.HasPrefix(entry.URL, "http://"),
		}
		named := func(key, path string, use func([]byte) error) {
			if path == "" {
				return
			}
			b, err := readBounded(path, maxIssuerFileBytes)
			if err == nil {
				err = use(b)
			}
			if err != nil {
				problems = append(problems, config.Problem{Pos: entry.Pos, Path: "issuers." + entry.Name + "." + key, Message: err.Error()})
			}
		}
		named("ca_file", entry.CAFile, func(pem []byte) error {
			ic.RootCAs = x509.NewCertPool()
			if !ic.RootCAs.AppendCertsFromPEM(pem) {
				return fmt.Errorf("%s holds no certificate in PEM", entry.CAFile)
			}
			return nil
		})
		named("jwks_file", entry.JWKSFile, func(jwks []byte) error {
			ic.JWKS = jwks
			return nil
		})
		cfg.Issuers = append(cfg.Issuers, ic)
	}
	if len(problems) > 0 {
		return nil, ordered(problems)
	}
	if len(cfg.Issuers) == 0 {
		return nil, config.Problems{{Message: "no issuers: nobody could be identified", Hint: "name one, enabled: issuers: {github: {profile: github, url: https://token.actions.githubusercontent.com}}"}}
	}
	v, err := identity.NewVerifier(cfg)
	if err != nil {
		return nil, config.Problems{{Pos: file.Issuers[0].Pos, Path: "issuers", Message: err.Error(), Hint: hintOf(err)}}
	}
	return v, nil
}

// maxIssuerFileBytes bounds `ca_file` and `jwks_file` of an issuer, in bytes:
// a whole system's bundle of authorities has about 250 KiB.
const maxIssuerFileBytes = 1 << 20

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s holds over %d bytes", path, limit)
	}
	return b, nil
}

func sealerOf(file *config.File) (seal.Sealer, error) {
	if file.Seal.Len() == 0 {
		return seal.Ephemeral(), nil
	}
	s, err := seal.NewKey(file.Seal.Reveal())
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return s, nil
}

// openStore opens the store for a broker that will be alone with it.
func openStore(ctx context.Context, file *config.File, log *slog.Logger) (store.Store, error) {
	path, _ := strings.CutPrefix(file.Store, "sqlite:")
	if file.Store == "memory:" {
		path = sqlite.Memory
	}
	s, err := sqlite.Open(ctx, sqlite.Config{Path: path, Log: log})
	if err != nil {
		return nil, err // s would be a store that isn't nil, and isn't there
	}
	return s, nil
}
