package identity

import (
	"context"
	"crypto"
	"errors"
	"log/slog"
	"sync"
	"time"
)

const (
	// refreshWindow is how far apart two fetches of one issuer's keys are, at
	// least, whoever asks and whatever the first one gave.
	refreshWindow = time.Minute

	// softTTL is the age from which keys are fetched anew in the background,
	// so that one the issuer withdrew is soon gone here too.
	softTTL = 15 * time.Minute

	// hardTTL is the age from which keys aren't used any more.
	hardTTL = 12 * time.Hour

	// maxMisses bounds the remembered ids of keys that don't exist.
	maxMisses = 1000

	// maxMissWait bounds for how long an id isn't worth another fetch.
	maxMissWait = 16 * refreshWindow
)

// A keySet holds one issuer's keys. All its methods may be called at once.
type keySet struct {
	issuer string // its name, for the log
	fetch  func(context.Context) ([]publicKey, error)
	now    func() time.Time
	log    *slog.Logger

	mu        sync.Mutex
	keys      map[string][]publicKey // by kid
	fetched   time.Time              // when the fetch that gave keys began
	attempted time.Time              // when the last fetch began
	flight    *flight                // nil if none is under way
	misses    map[string]miss        // by kid
	closed    bool
}

// A flight is one fetch that any number of callers wait for.
type flight struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // set before done is closed
}

// A miss says that the key wasn't there when last fetched. An id that is asked
// for again and again is worth a fetch ever more rarely.
type miss struct {
	wait  time.Duration
	until time.Time
}

var errClosed = errors.New("verifier closed")

// newStaticKeySet returns a set that never changes.
func newStaticKeySet(keys []publicKey) *keySet {
	s := &keySet{}
	s.install(keys)
	return s
}

// lookup finds the key by id and algorithm, and fetches the set if that may
// help and is due.
func (s *keySet) lookup(ctx context.Context, kid, alg string) (crypto.PublicKey, *Error) {
	s.mu.Lock()
	if key, e, ok := s.find(kid, alg); ok {
		s.mu.Unlock()
		return key, e
	}
	if s.fetch == nil {
		s.mu.Unlock()
		return nil, invalidToken(ReasonKeyUnknown)
	}
	usable := s.usable()
	if usable && s.now().Before(s.misses[kid].until) {
		s.mu.Unlock()
		return nil, invalidToken(ReasonKeyUnknown)
	}
	f := s.refresh()
	s.mu.Unlock()
	if f == nil {
		if usable {
			return nil, unavailable(ReasonKeyUnconfirmed, nil)
		}
		return nil, unavailable(ReasonKeysUnavailable, nil)
	}
	if e := f.wait(ctx); e != nil {
		return nil, e
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if key, e, ok := s.find(kid, alg); ok {
		return key, e
	}
	s.missed(kid)
	return nil, invalidToken(ReasonKeyUnknown)
}

// ready returns nil when keys are at hand, after fetching them if it must.
func (s *keySet) ready(ctx context.Context) *Error {
	s.mu.Lock()
	if s.usable() {
		s.refreshIfStale()
		s.mu.Unlock()
		return nil
	}
	f := s.refresh()
	s.mu.Unlock()
	if f == nil {
		return unavailable(ReasonKeysUnavailable, nil)
	}
	return f.wait(ctx)
}

func (f *flight) wait(ctx context.Context) *Error {
	select {
	case <-f.done:
		if f.err != nil {
			return unavailable(ReasonKeysUnavailable, f.err)
		}
		return nil
	case <-ctx.Done():
		return unavailable(ReasonCanceled, ctx.Err())
	}
}

// close ends a fetch under way and allows no other.
func (s *keySet) close() {
	s.mu.Lock()
	s.closed = true
	f := s.flight
	s.mu.Unlock()
	if f != nil {
		f.cancel()
		<-f.done
	}
}

// find looks only among the keys at hand. Not found is (nil, nil, false); a
// key of that id for another algorithm is a refusal. s.mu is held, as it is
// for all that follow.
func (s *keySet) find(kid, alg string) (crypto.PublicKey, *Error, bool) {
	if !s.usable() {
		return nil, nil, false
	}
	candidates := s.keys[kid]
	if len(candidates) == 0 {
		return nil, nil, false
	}
	s.refreshIfStale()
	for _, k := range candidates {
		if k.alg == alg {
			return k.key, nil, true
		}
	}
	return nil, invalidToken(ReasonAlgorithm), true
}

// usable reports whether there are keys that aren't too old.
func (s *keySet) usable() bool {
	return s.fetch == nil || !s.fetched.IsZero() && s.now().Sub(s.fetched) < hardTTL
}

func (s *keySet) refreshIfStale() {
	if s.fetch != nil && s.now().Sub(s.fetched) >= softTTL {
		s.refresh()
	}
}

// refresh returns the fetch under way, or begins one if the window allows it,
// or returns nil.
func (s *keySet) refresh() *flight {
	if s.flight != nil || s.closed {
		return s.flight
	}
	now := s.now()
	// A clock that was set back doesn't hold up fetches until it caught up.
	if since := now.Sub(s.attempted); !s.attempted.IsZero() && since >= 0 && since < refreshWindow {
		return nil
	}
	s.attempted = now
	// The fetch isn't the caller's alone: it goes on when he hangs up.
	ctx, cancel := context.WithTimeout(context.Background(), 2*requestTimeout)
	f := &flight{cancel: cancel, done: make(chan struct{})}
	s.flight = f
	go func() {
		defer cancel()
		keys, err := s.fetch(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case s.closed:
			err = errClosed
		case err != nil:
			s.log.Warn("issuer keys not refreshed, keeping the old ones", "issuer", s.issuer,
				"error", err, "keys", len(s.keys), "fetched", s.fetched)
		default:
			s.fetched = now
			s.install(keys)
		}
		f.err = err
		s.flight = nil
		close(f.done)
	}()
	return f
}

func (s *keySet) install(keys []publicKey) {
	s.keys = make(map[string][]publicKey, len(keys))
	for _, k := range keys {
		s.keys[k.kid] = append(s.keys[k.kid], k)
	}
}

// missed remembers that a fetch didn't bring the key.
func (s *keySet) missed(kid string) {
	now := s.now()
	m, known := s.misses[kid]
	if known && now.Before(m.until) {
		return // somebody else waited for the same fetch
	}
	if !known && len(s.misses) >= maxMisses {
		// Strangers choose the ids: forgetting all costs at most a fetch in
		// the next window.
		clear(s.misses)
	}
	if s.misses == nil {
		s.misses = make(map[string]miss)
	}
	wait := min(max(2*m.wait, refreshWindow), maxMissWait)
	s.misses[kid] = miss{wait, now.Add(wait)}
}
