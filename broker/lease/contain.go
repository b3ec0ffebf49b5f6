package lease

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/runenv/action/providers"
)

// errPanicked is what a provider's panic becomes. It wraps ErrUnavailable, so
// that the credential counts as one that may have been issued.
var errPanicked = fmt.Errorf("the provider panicked: %w", providers.ErrUnavailable)

// contain, deferred around a call to a provider, turns its panic into err:
// calls run in goroutines of their own, where a panic would end the broker and
// print its text, which may hold anything.
func (e *Engine) contain(ctx context.Context, provider string, err *error) {
	if recover() == nil {
		return
	}
	*err = errPanicked
	e.cfg.Log.ErrorContext(ctx, "a provider panicked", "provider", provider, "stack", string(debug.Stack()))
}
