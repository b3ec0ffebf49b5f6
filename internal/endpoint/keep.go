package endpoint

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/internal/backoff"
	"github.com/runenv/action/secret"
)

const (
	// A lease can be leased anew past half of its life; the broker renews those
	// that it can renew in place after two thirds, and tells us.
	dueAnew, dueInPlace = 0.58, 0.85
	dueJitter           = 0.05

	// A lease is never renewed more often than that.
	leastInterval = time.Second

	firstRetry, mostRetry = time.Second, 30 * time.Second
)

// A Renewer gives a lease a longer life, or another lease in its stead;
// [github.com/runenv/action/client.Session] is one.
type Renewer interface {
	Renew(ctx context.Context, lease api.Lease, references ...api.Reference) (api.Lease, error)
}

// KeepConfig is what [Keep] needs. Session and Leases must be set.
type KeepConfig struct {
	Session Renewer
	// References are those of the request that the leases came from.
	References []api.Reference
	// Leases are kept fresh, with the values that they came with. One that
	// never expires is left as it is.
	Leases []api.Lease
	// OnlyServed keeps those alone that a [Server] serves; the others are left
	// as they are.
	OnlyServed bool
	// OnValues is called with each lease that came with new values, before
	// these are served to anybody; one call at a time. What hides values and
	// what looks for leaks learns of them here, and so does what starts the
	// command again. Nil means nobody.
	OnValues func(api.Lease)
	// OnFailure is called when a lease can't be renewed, once until it is
	// renewed after all; it may be called for several leases at once. Nil means
	// nobody.
	OnFailure func(lease api.Lease, err error)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log gets each try that failed, at level debug; nil means nowhere.
	Log *slog.Logger
}

// A Keeper keeps leases fresh until it is closed.
type Keeper struct {
	cfg     KeepConfig
	leases  []*kept
	telling sync.Mutex // held during OnValues
	start   func(*kept)
	stop    context.CancelFunc
	running sync.WaitGroup
}

// Keep starts to keep leases fresh. Each is renewed well ahead of its end,
// and tried again, less and less often, where that fails.
func Keep(cfg KeepConfig) (*Keeper, error) {
	if cfg.Session == nil {
		return nil, errors.New("keeping leases fresh: no session given")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ctx, stop := context.WithCancel(context.Background())
	k := &Keeper{cfg: cfg, stop: stop}
	k.start = func(l *kept) { k.running.Go(func() { l.keep(ctx) }) }
	for _, lease := range cfg.Leases {
		if k.lease(lease.Name) != nil {
			stop()
			return nil, fmt.Errorf("keeping leases fresh: two are named %q", lease.Name)
		}
		k.leases = append(k.leases, &kept{
			k: k, name: lease.Name, lease: lease, since: cfg.Now(), values: rand.Text(),
			hurry: make(chan struct{}, 1), tried: make(chan struct{}),
		})
	}
	for _, l := range k.leases {
		if !cfg.OnlyServed {
			l.begin()
		}
	}
	return k, nil
}

// Serves reports whether a [Server] serves the lease of that name.
func (k *Keeper) Serves(name string) bool {
	l := k.lease(name)
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.need) > 0
}

// Observe takes what the broker tells of a lease: give it the events of
// [github.com/runenv/action/client.Session.KeepAlive]. It returns at once.
func (k *Keeper) Observe(event api.Event) {
	if event.Lease == nil {
		return
	}
	for _, l := range k.leases {
		l.observe(event)
	}
}

// Close ends every renewal under way. What is being served by then is served
// until it expires.
func (k *Keeper) Close() {
	k.stop()
	k.running.Wait()
}

// lease finds one by its name; nil if there is none.
func (k *Keeper) lease(name string) *kept {
	for _, l := range k.leases {
		if l.name == name {
			return l
		}
	}
	return nil
}

// kept is one lease.
type kept struct {
	k     *Keeper
	name  string
	once  sync.Once     // it is kept fresh
	hurry chan struct{} // asks for a renewal before it is due

	mu       sync.Mutex
	lease    api.Lease
	since    time.Time     // when lease came or was lengthened
	values   string        // names the lease's values; new ones have another name
	need     []string      // variables that somebody serves
	failures int           // in a row
	tried    chan struct{} // closed after the next try
}

// An ExpiredError says that a lease's values are no longer good.
type ExpiredError struct{ Lease string }

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("lease %q has expired and couldn't be renewed; runenv tries again (its --debug says why it fails)", e.Lease)
}

// current gives the lease as long as it is good. If it isn't, it waits for a
// renewal, unless the last try failed: then it is an [*ExpiredError].
func (l *kept) current(ctx context.Context) (lease api.Lease, values string, err error) {
	for {
		l.mu.Lock()
		lease, values, tried, failures := l.lease, l.values, l.tried, l.failures
		l.mu.Unlock()
		if lease.ExpiresAt.IsZero() || l.k.cfg.Now().Before(lease.ExpiresAt) {
			return lease, values, nil
		}
		if failures > 0 {
			return api.Lease{}, "", &ExpiredError{l.name}
		}
		l.ask()
		select {
		case <-tried:
		case <-ctx.Done():
			return api.Lease{}, "", &ExpiredError{l.name}
		}
	}
}

// now is the lease, expired or not.
func (l *kept) now() api.Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lease
}

// require names variables that whatever takes the lease's place must have.
// It is served from then on, and so kept fresh.
func (l *kept) require(names ...string) {
	l.mu.Lock()
	l.need = append(l.need, names...)
	l.mu.Unlock()
	l.begin()
}

// begin keeps the lease fresh from now on, unless it never expires.
func (l *kept) begin() {
	if !l.now().ExpiresAt.IsZero() {
		l.once.Do(func() { l.k.start(l) })
	}
}

func (l *kept) ask() {
	select {
	case l.hurry <- struct{}{}:
	default: // it is asked for already
	}
}

func (l *kept) observe(event api.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if event.Lease.ID != l.lease.ID {
		return
	}
	switch event.Event {
	case api.EventRenewed:
		l.lengthen(event.Lease.ExpiresAt)
		l.ask() // to wait anew
	case api.EventExpiring:
		l.lease.Renewable = false // in place
		l.since = time.Time{}
		l.ask()
	}
}

// lengthen is called with mu held.
func (l *kept) lengthen(until time.Time) {
	if until.After(l.lease.ExpiresAt) {
		l.lease.ExpiresAt, l.since = until, l.k.cfg.Now()
	}
}

// keep renews the lease whenever it is due, until ctx is done.
func (l *kept) keep(ctx context.Context) {
	var last time.Time
	for {
		wait, failing := l.wait()
		if !last.IsZero() {
			wait = max(wait, leastInterval-l.k.cfg.Now().Sub(last))
		}
		hurry := l.hurry
		if failing {
			hurry = nil // nobody's haste shortens a wait after a failure
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-hurry:
			timer.Stop()
			if left, _ := l.wait(); left > 0 {
				continue // it was lengthened meanwhile
			}
		case <-timer.C:
		}
		l.renew(ctx)
		last = l.k.cfg.Now()
	}
}

// wait is how long the lease needs nothing.
func (l *kept) wait() (d time.Duration, failing bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failures > 0 {
		return backoff.Delay(l.failures, firstRetry, mostRetry), true
	}
	now := l.k.cfg.Now()
	if l.since.IsZero() || !now.Before(l.lease.ExpiresAt) {
		return 0, false
	}
	part := dueAnew
	if l.lease.Renewable {
		part = dueInPlace
	}
	life := l.lease.ExpiresAt.Sub(l.since)
	return l.since.Add(backoff.Jitter(time.Duration(float64(life)*part), dueJitter)).Sub(now), false
}

// renew makes one try.
func (l *kept) renew(ctx context.Context) {
	old := l.now()
	next, err := l.k.cfg.Session.Renew(ctx, old, l.k.cfg.References...)
	if err == nil {
		err = l.take(old, next)
	}
	l.mu.Lock()
	if err == nil {
		l.failures = 0
	} else {
		l.failures++
	}
	failures := l.failures
	close(l.tried)
	l.tried = make(chan struct{})
	l.mu.Unlock()

	if err == nil || ctx.Err() != nil {
		return
	}
	l.k.cfg.Log.DebugContext(ctx, "renewing a lease failed", "lease", old.Name, "error", err, "failures", failures)
	if failures == 1 && l.k.cfg.OnFailure != nil {
		l.k.cfg.OnFailure(old, err)
	}
}

// take serves next from now on, if it can stand in for old.
func (l *kept) take(old, next api.Lease) error {
	if next.ID == old.ID && len(next.Env)+len(next.Files) == 0 {
		return l.takeTime(old, next.ExpiresAt)
	}
	if !next.ExpiresAt.IsZero() && !l.k.cfg.Now().Before(next.ExpiresAt) {
		return fmt.Errorf("lease %q was leased anew and had expired by this machine's clock", old.Name)
	}
	l.mu.Lock()
	need := slices.Clone(l.need)
	l.mu.Unlock()
	for _, name := range need {
		if _, ok := variable(next, name); !ok {
			return fmt.Errorf("lease %q was leased anew without its variable %s", old.Name, name)
		}
	}
	next.Name = old.Name
	changed := !sameValues(old, next)
	if changed && l.k.cfg.OnValues != nil {
		l.k.telling.Lock()
		l.k.cfg.OnValues(next)
		l.k.telling.Unlock()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lease, l.since = next, l.k.cfg.Now()
	if changed {
		l.values = rand.Text()
	}
	return nil
}

// takeTime takes the new end of a lease that was renewed in place.
func (l *kept) takeTime(old api.Lease, until time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lengthen(until)
	now := l.k.cfg.Now()
	if l.lease.ExpiresAt.After(old.ExpiresAt) && now.Before(l.lease.ExpiresAt) {
		return nil
	}
	l.lease.Renewable = false // the next try asks for another
	return fmt.Errorf("lease %q can't live longer than %s", old.Name, l.lease.ExpiresAt.UTC().Format(time.RFC3339))
}

// variable gives the value of a lease's variable that is set in place: one in
// a file can't be served.
func variable(lease api.Lease, name string) (secret.Value, bool) {
	for _, v := range lease.Env {
		if v.Name == name {
			return v.Value.Value, true
		}
	}
	return secret.Value{}, false
}

func sameValues(a, b api.Lease) bool {
	same := func(v, w api.Value) bool { return bytes.Equal(v.Reveal(), w.Reveal()) }
	return slices.EqualFunc(a.Env, b.Env, func(v, w api.Var) bool { return v.Name == w.Name && same(v.Value, w.Value) }) &&
		slices.EqualFunc(a.Files, b.Files, func(f, g api.File) bool {
			return f.Variable == g.Variable && f.Name == g.Name && same(f.Value, g.Value)
		}) &&
		slices.EqualFunc(a.Hide, b.Hide, same)
}
