// Package backoff says how long to wait before a request is tried again.
//
// Waits grow and are drawn at random: the jobs of a matrix, which fail
// together, don't come back together.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Delay is the wait before retry n, counted from 1: between a half and the
// whole of first doubled n-1 times, and of most where that is less.
func Delay(n int, first, most time.Duration) time.Duration {
	d := first
	for i := 1; i < n && d < most; i++ {
		d *= 2
	}
	return Jitter(min(d, most)*3/4, 1.0/3)
}

// Jitter is d, longer or shorter by up to the given part of it.
func Jitter(d time.Duration, part float64) time.Duration {
	return d + time.Duration((rand.Float64()*2-1)*part*float64(d)) //nolint:gosec // spreads load, guards nothing
}

// Wait returns after d, or with the context's cause once that is done.
func Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Pause waits for d and reports true; where the context's deadline is sooner it
// reports false at once, since there is no time for another attempt.
func Pause(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d {
		return false
	}
	return Wait(ctx, d) == nil
}
