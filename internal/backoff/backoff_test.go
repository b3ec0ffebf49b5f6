package backoff_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/runenv/action/internal/backoff"
)

func TestDelayGrowsToItsBoundAndVaries(t *testing.T) {
	t.Parallel()
	const first, most = 100 * time.Millisecond, time.Second
	for n, want := range map[int]time.Duration{1: first, 2: 2 * first, 3: 4 * first, 4: 8 * first, 5: most, 1000: most} {
		seen := map[time.Duration]bool{}
		for range 100 {
			d := backoff.Delay(n, first, most)
			if d < want/2 || d > want {
				t.Fatalf("Delay(%d) = %v, want between %v and %v", n, d, want/2, want)
			}
			seen[d] = true
		}
		if len(seen) < 50 {
			t.Errorf("Delay(%d) gave %d different waits out of 100", n, len(seen))
		}
	}
}

func TestWaitEndsWithTheContext(t *testing.T) {
	t.Parallel()
	cause := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := backoff.Wait(ctx, time.Hour); !errors.Is(err, cause) {
		t.Errorf("Wait under a done context = %v, want its cause", err)
	}
	if err := backoff.Wait(t.Context(), time.Nanosecond); err != nil {
		t.Errorf("Wait = %v, want nil", err)
	}
}

func TestPauseIsNoLongerThanTheContext(t *testing.T) {
	t.Parallel()
	if !backoff.Pause(t.Context(), time.Nanosecond) {
		t.Error("Pause = false with all the time there is")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	began := time.Now()
	if backoff.Pause(ctx, 2*time.Hour) || time.Since(began) > time.Minute {
		t.Error("Pause waited for what comes after the deadline")
	}
	cancel()
	if backoff.Pause(ctx, time.Minute) || time.Since(began) > 30*time.Second {
		t.Error("Pause waited under a context that is over")
	}
}
