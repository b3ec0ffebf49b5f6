package identity

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/runenv/action/broker/identity/identitytest"
	"github.com/runenv/action/secret"
)

const brokerURL = "https://runenv.example.com"

// A clock stands still until it is moved.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 11, 3, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// A world is an issuer of the profile's tokens, the verifier that trusts it,
// and the clock of both.
type world struct {
	*identitytest.Issuer
	clock    *clock
	verifier *Verifier
}

func newWorld(tb testing.TB, profile string) *world {
	tb.Helper()
	w := &world{Issuer: identitytest.New(tb), clock: newClock()}
	w.SetNow(w.clock.now)
	w.verifier = newTestVerifier(tb, w.clock, IssuerConfig{Name: profile, Profile: profile, URL: w.URL, Loopback: true})
	return w
}

func newTestVerifier(tb testing.TB, c *clock, issuers ...IssuerConfig) *Verifier {
	tb.Helper()
	v, err := NewVerifier(Config{Audience: brokerURL, Issuers: issuers, Now: c.now})
	if err != nil {
		tb.Fatalf("NewVerifier: %v", err)
	}
	tb.Cleanup(v.Close)
	return v
}

func (w *world) verify(token string) (*Identity, error) {
	return w.verifier.Verify(context.Background(), secret.FromString(token))
}

// reasonOf returns the reason of a refusal, "" for nil.
func reasonOf(tb testing.TB, err error) string {
	tb.Helper()
	if err == nil {
		return ""
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		tb.Fatalf("the error is a %T, want *Error: %v", err, err)
	}
	return e.Reason
}

func (w *world) wantReason(tb testing.TB, token, want string) {
	tb.Helper()
	if _, err := w.verify(token); reasonOf(tb, err) != want {
		tb.Errorf("Verify = %v, want reason %q", err, want)
	}
}

type object = map[string]any
