package lease

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/runenv/action/providers"
)

const (
	// maxEnding bounds the calls under way that end credentials at one
	// provider: when a whole build farm goes down, its back end isn't next.
	maxEnding = 32
	// turnWithin bounds the wait for a turn, so that a claim outlives wait and
	// call. Whoever gets none comes back as after any failure.
	turnWithin = 30 * time.Second
)

// errNoTurn: the provider is busy ending others.
var errNoTurn = fmt.Errorf("too many calls that end credentials are under way: %w", providers.ErrUnavailable)

// turns are the calls that end credentials, by provider. Issuing doesn't wait
// for them, nor does one provider for another.
type turns struct {
	mu sync.Mutex
	m  map[string]chan struct{}
}

// take waits for a turn at the provider.
func (t *turns) take(ctx context.Context, provider string) (release func(), err error) {
	t.mu.Lock()
	if t.m == nil {
		t.m = map[string]chan struct{}{}
	}
	slots := t.m[provider]
	if slots == nil {
		slots = make(chan struct{}, maxEnding)
		t.m[provider] = slots
	}
	t.mu.Unlock()
	timer := time.NewTimer(turnWithin)
	defer timer.Stop()
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-timer.C:
		return nil, errNoTurn
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", errNoTurn, context.Cause(ctx))
	}
}
