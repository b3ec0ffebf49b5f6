// Package broker is the HTTP service: it identifies a caller, decides, records,
// issues and answers.
//
// The order is the promise. A CI token is verified before anything is read
// from it; policy decides before anything is recorded as allowed; a value
// leaves only after the record that says so is durable. A refused caller gets
// a class, a request id and its own claims; why it was refused stands in the
// audit log. One function authenticates every path of a session and one
// authorises it.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/identity"
	"github.com/runenv/action/broker/issuer"
	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/policy"
	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/ref"
)

const (
	// endWait bounds how long the end of a session waits for back ends; the
	// client gives the whole call two seconds.
	endWait = 1700 * time.Millisecond
	// streamGrace is what the end of a watch stream leaves: a death, or a
	// proxy's idle cut after which a heartbeat comes.
	streamGrace = 30 * time.Second
	// streamWrite bounds how long a stream's client may leave an event unread
	// when no buffer on the way has room for it.
	streamWrite = 10 * time.Second
	// maxTokenClaim bounds what the broker's own tokens say of a job, in bytes.
	maxTokenClaim = 512
)

// Features are what discovery announces beyond the base.
var features = []string{"dpop", "heartbeat", "watch", "renew", "references", "replaces", "files", "report", "explain", "leases-at-exchange"}

// Rules are what the broker's file says, compiled. They are swapped whole when
// the file is loaded again.
type Rules struct {
	Policy      *policy.Policy
	Definitions map[string]lease.Definition
	// Reference is the definition of what r, which has no field, names for a
	// role and a job's variables; its Name, Env and Sole are set by the broker.
	// fields are those that are wanted of it, "" being the whole; none for a
	// lease that goes on. Its error wraps [ErrNotGranted], or else the reference
	// can't be used. Nil: no role grants any.
	Reference func(role *policy.Role, vars providers.Vars, r ref.Ref, fields []string) (lease.Definition, error)
	Verifier  *identity.Verifier // of the issuers
}

func (r *Rules) complete() bool { return r != nil && r.Policy != nil && r.Verifier != nil }

// Config is what a broker works with. All but Log and Version is required.
type Config struct {
	URL     string // its origin
	Version string
	Store   store.Store
	Sealer  seal.Sealer
	Audit   *audit.Log
	Issuer  *issuer.Issuer
	// Provider finds an open provider by its entry's name, also one that the
	// latest file no longer has.
	Provider func(name string) (providers.Provider, bool)
	Rules    *Rules
	Now      func() time.Time
	Log      *slog.Logger
}

// A Broker serves the API. It is safe for concurrent use.
type Broker struct {
	cfg      Config
	host     string // of URL, if it is a loopback literal
	rules    atomic.Pointer[Rules]
	engine   *lease.Engine
	watchers hub
	metrics  *metrics
	ready    readiness
	closing  atomic.Bool

	byAddr    *limiter
	byOwner   *limiter
	bySession *limiter
	byReport  *limiter
	byRefused *limiter
}

// New checks the configuration and makes a broker that hasn't started.
func New(cfg Config) (*Broker, error) {
	switch {
	case cfg.Store == nil, cfg.Sealer == nil, cfg.Audit == nil, cfg.Issuer == nil, cfg.Provider == nil, cfg.Now == nil:
		return nil, errors.New("broker: Store, Sealer, Audit, Issuer, Provider and Now are required")
	case !cfg.Rules.complete():
		return nil, errors.New("broker: Rules without a policy or a verifier")
	}
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != cfg.URL {
		return nil, errors.New("broker: url isn't an origin")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	b := &Broker{
		cfg:       cfg,
		byAddr:    newLimiter(addrRate, addrBurst),
		byOwner:   newLimiter(ownerRate, ownerBurst),
		bySession: newLimiter(sessionRate, sessionBurst),
		byReport:  newLimiter(reportRate, reportBurst),
		byRefused: newLimiter(refusedRate, refusedBurst),
	}
	if u.Scheme == "http" {
		b.host = u.Host
	}
	b.rules.Store(cfg.Rules)
	b.engine, err = lease.New(lease.Config{
		Store: cfg.Store, Sealer: cfg.Sealer, Provider: cfg.Provider,
		Tokens: b.tokens, Judge: b.judge, Notify: b.watchers.notify, Now: cfg.Now, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	b.metrics = newMetrics(cfg.Store, cfg.Now)
	return b, nil
}

// Run does the broker's own work (ending, renewing, the audit log) until ctx
// ends. Watch streams end with it, and their sessions aren't blamed for it.
func (b *Broker) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { b.engine.Run(ctx) })
	wg.Go(func() {
		<-ctx.Done()
		b.closing.Store(true)
		b.watchers.closeAll()
	})
	err := b.cfg.Audit.Run(ctx)
	cancel()
	wg.Wait()
	return err
}

// Swap puts other rules in force. Live sessions are judged by them from their
// next lease or renewal on.
func (b *Broker) Swap(ctx context.Context, rules *Rules) error {
	if !rules.complete() {
		return errors.New("broker: Rules without a policy or a verifier")
	}
	entry, err := audit.Record{Time: b.cfg.Now(), Event: "policy.loaded", Policy: rules.Policy.Digest()}.Entry()
	if err != nil {
		return err
	}
	if err := b.cfg.Store.Record(ctx, b.cfg.Now(), []store.Entry{entry}); err != nil {
		return fmt.Errorf("recording the new policy: %w", err)
	}
	b.rules.Store(rules)
	return nil
}

// Handler is the API.
func (b *Broker) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+api.PathToken, b.call(b.token))
	mux.HandleFunc("POST "+api.PathLeases, b.call(b.lease))
	mux.HandleFunc("POST "+api.PathExplain, b.call(b.explain))
	mux.HandleFunc("POST "+api.PathLeases+"/{id}/renew", b.call(b.renew))
	mux.HandleFunc("DELETE "+api.PathLeases+"/{id}", b.call(b.endLease))
	mux.HandleFunc("POST "+api.PathHeartbeat, b.call(b.heartbeat))
	mux.HandleFunc("GET "+api.PathWatch, b.call(b.watch))
	mux.HandleFunc("POST "+api.PathReport, b.call(b.report))
	mux.HandleFunc("DELETE "+api.PathSession, b.call(b.endSession))
	mux.HandleFunc("GET "+api.PathDiscovery, b.call(b.discovery))
	mux.HandleFunc("GET "+api.PathOIDC, document(b.cfg.Issuer.Discovery()))
	mux.HandleFunc("GET "+api.PathJWKS, document(b.cfg.Issuer.JWKS()))
	mux.HandleFunc("GET "+api.PathLive, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET "+api.PathReady, b.call(b.readyNow))
	mux.Handle("GET "+api.PathMetrics, b.metrics.handler())
	return b.guard(mux)
}

// guard refuses what no client of ours sends, before anything is routed.
func (b *Broker) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		switch {
		case len(r.Header.Values("Origin")) > 0:
			// No page calls a broker; one that does was made to.
			writeError(w, &api.Error{Status: http.StatusForbidden, Code: api.CodeAccessDenied, Description: "requests from a browser aren't served"})
			return
		case b.host != "" && r.Host != b.host:
			writeError(w, &api.Error{Status: http.StatusForbidden, Code: api.CodeAccessDenied, Description: "another host was asked for"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

func document(body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "public, max-age=300")
		_, _ = w.Write(body)
	}
}

func (b *Broker) discovery(w http.ResponseWriter, _ *http.Request, _ string) error {
	return writeJSON(w, http.StatusOK, api.Discovery{
		Issuer: b.cfg.URL, TokenEndpoint: b.cfg.URL + api.PathToken, Version: b.cfg.Version,
		Features: features, AuditKey: b.cfg.Audit.VerifierKey(),
	})
}

// readiness is what was found when it was last looked. Whoever can reach the
// broker may ask, and each look writes to the disk.
type readiness struct {
	mu  sync.Mutex
	at  time.Time
	err error
}

// readyNow says 204 when a job could be served now: a policy is loaded, store
// and audit are writable, and the issuers' keys are at hand. It looks once a
// second at most.
func (b *Broker) readyNow(w http.ResponseWriter, r *http.Request, _ string) error {
	b.ready.mu.Lock()
	defer b.ready.mu.Unlock()
	if now := b.cfg.Now(); b.ready.at.IsZero() || now.Sub(b.ready.at) >= time.Second {
		// Others hear the result too, so that no single caller may cut it off.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 5*time.Second)
		defer cancel()
		b.ready.err = errors.Join(b.cfg.Store.Ready(ctx), b.rules.Load().Verifier.Ready(ctx))
		b.ready.at = now
	}
	if b.ready.err != nil {
		return refuse(http.StatusServiceUnavailable, api.CodeTemporarily, "not ready; the broker's log says why", b.ready.err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// tokens gives a session its source of the broker's own ID tokens.
func (b *Broker) tokens(s store.Session) providers.TokenSource {
	return func(ctx context.Context, audience string) (string, error) {
		extra := map[string]string{"project": s.Project} // left out where it is empty
		if id, err := recall(s); err == nil {
			for name, value := range id.AuditClaims() {
				// A ref may be longer than a token's claim may be; what the
				// back end is told is for its log alone.
				if len(value) <= maxTokenClaim {
					extra[name] = value
				}
			}
		}
		return b.cfg.Issuer.Mint(ctx, issuer.Claims{Audience: audience, Role: s.Role, Session: s.ID, Extra: extra}, "")
	}
}
