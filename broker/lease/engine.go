package lease

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/shape"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// DefaultTTL is the life of a lease whose definition names none. A credential
// that can't be revoked lives as long as its session instead.
const DefaultTTL = 15 * time.Minute

const (
	issueTimeout  = 45 * time.Second // one request, logins included
	revokeTimeout = 20 * time.Second // one call that ends a credential
	// noticeAfter is when an intent that nobody finished is taken for one
	// that a crash left. It is longer than issueTimeout.
	noticeAfter = 2 * time.Minute
	claimFor    = time.Minute
	// maxAnswerBytes bounds the values of one request's leases together, in
	// bytes: in base64 they must fit an answer.
	maxAnswerBytes = 16 << 20
	// overheadBytes is what stands around a value in an answer at most.
	overheadBytes = 128
	// maxParallel bounds the provider calls of one request or one end. It is
	// more than most requests have leases, so that they take one round trip;
	// what ends credentials is bounded by provider besides (turns).
	maxParallel = 64

	// A revocation that failed maxAttempts times with back-off (about two
	// hours) is called irrevocable and tried again daily.
	maxAttempts = 30
	minBackOff  = time.Second
	maxBackOff  = 5 * time.Minute
	retryDaily  = 24 * time.Hour
)

// A Definition is an entry under `leases:`, opened.
type Definition struct {
	Name         string
	ProviderName string
	Provider     providers.Provider
	Provides     providers.Definition
	// Env says how the variables are made of a credential's fields.
	Env []shape.Var
	// Sole: a variable of all fields (As) is the field itself where the
	// credential has just one. References have it.
	Sole bool
	// TTL is the life of one lease and MaxTTL the bound on its renewals; zero
	// for the default and for the session's length.
	TTL, MaxTTL time.Duration
}

// An Issued lease is a row and what it delivers.
type Issued struct {
	Lease store.Lease
	shape.Made
}

// A Failure says which lease of a request failed. It wraps the provider's
// error.
type Failure struct {
	Lease string
	Err   error
}

func (f *Failure) Error() string { return fmt.Sprintf("leasing %q: %v", f.Lease, f.Err) }

// Unwrap returns the provider's error.
func (f *Failure) Unwrap() error { return f.Err }

// A MissingError says what the definitions of a request want and the
// credentials don't have: names, of all of its leases at once. It wraps
// providers.ErrNotFound.
type MissingError struct{ Leases []Missing }

// Missing are the fields that one lease lacks.
type Missing struct {
	Lease  string
	Fields []string
}

func (e *MissingError) Error() string {
	var parts []string
	for _, m := range e.Leases {
		parts = append(parts, fmt.Sprintf("lease %q has no %s", m.Lease, strings.Join(m.Fields, ", ")))
	}
	return strings.Join(parts, "; ")
}

// Unwrap returns providers.ErrNotFound.
func (*MissingError) Unwrap() error { return providers.ErrNotFound }

// A ShapeError says which variable can't be made of a credential, and why. It
// holds no value, and wraps providers.ErrMalformed.
type ShapeError struct{ Err error }

func (e *ShapeError) Error() string { return e.Err.Error() }

// Unwrap returns providers.ErrMalformed.
func (*ShapeError) Unwrap() error { return providers.ErrMalformed }

// An Event tells of a lease that was renewed, or that nears its end and can't
// be (Expiring), or, with no Lease, of a session that ended.
type Event struct {
	Session  string
	Lease    *store.Lease
	Expiring bool
	Reason   string
}

// Config is what an engine works with. All but Notify and Log is required.
type Config struct {
	Store  store.Store
	Sealer seal.Sealer
	// Provider finds an open provider by its entry's name.
	Provider func(name string) (providers.Provider, bool)
	// Tokens gives the source of the broker's own ID tokens for a session.
	Tokens func(store.Session) providers.TokenSource
	// Judge returns today's definition of a lease if today's policy still
	// grants it to the session, and that policy's digest.
	Judge func(ctx context.Context, s store.Session, lease string) (Definition, string, error)
	// Notify is told of events; it doesn't block.
	Notify func(Event)
	Now    func() time.Time
	Log    *slog.Logger
}

// An Engine issues, renews and ends leases. It is safe for concurrent use.
type Engine struct {
	cfg    Config
	worker string
	locks  keyed
	wake   chan struct{}
	looks  atomic.Int64 // when Run looks next by itself, in microseconds; or looking
	work   tasks
	turns  turns
}

// New checks the configuration.
func New(cfg Config) (*Engine, error) {
	if cfg.Store == nil || cfg.Sealer == nil || cfg.Provider == nil || cfg.Tokens == nil || cfg.Judge == nil || cfg.Now == nil {
		return nil, errors.New("lease: Store, Sealer, Provider, Tokens, Judge and Now are required")
	}
	if cfg.Notify == nil {
		cfg.Notify = func(Event) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Engine{cfg: cfg, worker: NewID("w"), wake: make(chan struct{}, 1)}, nil
}

// NewID returns kind, a hyphen, and 26 characters of [0-9a-v]: 48 bits of the
// time in milliseconds and 80 random ones. Ids that sort by age keep a store's
// inserts together: docs/performance.md has both. An id is no capability.
func NewID(kind string) string {
	var b [16]byte
	_, _ = rand.Read(b[6:]) // never fails
	ms := uint64(time.Now().UnixMilli())
	binary.BigEndian.PutUint16(b[:2], uint16(ms>>32))
	binary.BigEndian.PutUint32(b[2:6], uint32(ms))
	return kind + "-" + strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))
}

// Due tells the engine of what comes due at a time, such as the deadline of a
// session that was just made. It looks by then; a look costs as much as a
// verb or two, so that it isn't woken where it would be in time anyway, unless
// the clock jumped.
func (e *Engine) Due(at time.Time) {
	looks := e.looks.Load()
	overslept := e.cfg.Now().UnixMicro() >= looks // also while it looks
	if overslept || at.UnixMicro() < looks {
		e.Wake()
	}
}

// Wake makes the engine look for due work.
func (e *Engine) Wake() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Wait waits for ends that are under way in the background.
func (e *Engine) Wait() { e.work.Wait() }

// entry writes what happened to a row.
func (e *Engine) entry(event string, row store.Lease, request, reason string) store.Entry {
	entry, err := audit.Record{
		Time:         e.cfg.Now(),
		Event:        event,
		Request:      request,
		Session:      row.Session,
		Lease:        row.ID,
		LeaseName:    row.Name,
		Provider:     row.Provider,
		Revocability: row.Revocability,
		Marker:       row.Marker,
		Policy:       row.PolicyDigest,
		Reason:       reason,
		ExpiresAt:    row.ExpiresAt,
		DiesBy:       row.DiesBy,
	}.Entry()
	if err != nil {
		// Only an id that can't be looked up fails, and those are the broker's
		// own; a name, which may be a reference of the caller's, is cut.
		panic(err)
	}
	return entry
}

func (e *Engine) sealHandle(ctx context.Context, id string, handle secret.Value) ([]byte, error) {
	if handle.Len() == 0 {
		return nil, nil
	}
	return seal.Seal(ctx, e.cfg.Sealer, handleField(id), handle.Reveal())
}

func (e *Engine) openHandle(ctx context.Context, row store.Lease) (secret.Value, error) {
	if len(row.Handle) == 0 {
		return secret.Value{}, nil
	}
	b, err := seal.Open(ctx, e.cfg.Sealer, handleField(row.ID), row.Handle)
	if err != nil {
		return secret.Value{}, fmt.Errorf("opening the handle of %s: %w", row.ID, err)
	}
	return secret.New(b), nil
}

func handleField(id string) seal.Field {
	return seal.Field{Table: "leases", Row: id, Column: "handle"}
}

// keyed is a mutex for each key that is in use.
type keyed struct {
	mu sync.Mutex
	m  map[string]*keyedEntry
}

type keyedEntry struct {
	mu    sync.Mutex
	users int
}

func (k *keyed) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.m == nil {
		k.m = map[string]*keyedEntry{}
	}
	entry := k.m[key]
	if entry == nil {
		entry = new(keyedEntry)
		k.m[key] = entry
	}
	entry.users++
	k.mu.Unlock()
	entry.mu.Lock()
	return func() {
		entry.mu.Unlock()
		k.mu.Lock()
		if entry.users--; entry.users == 0 {
			delete(k.m, key)
		}
		k.mu.Unlock()
	}
}

// each calls f for every index below n, at most maxParallel at a time, and
// waits for all.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxParallel)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wg.Wait()
}
