package lease

import (
	"sync"
	"time"
)

// A Clock is wall time that never runs backwards: not while the process lives
// (it follows the monotonic clock when the wall clock is set back) and not
// across a restart (it starts at the store's high-water mark at the earliest).
// A wall clock set forward is followed, so that of two readings of a hard end
// the earlier one counts.
type Clock struct {
	mu    sync.Mutex
	wall  func() time.Time
	start time.Time // carries the monotonic reading
	base  time.Time // what the clock showed at start
	last  time.Time
}

// NewClock returns a clock that shows at least highWater. wall is time.Now but
// in tests.
func NewClock(highWater time.Time, wall func() time.Time) *Clock {
	start := wall()
	base := start.Round(0)
	if highWater.After(base) {
		base = highWater
	}
	return &Clock{wall: wall, start: start, base: base, last: base}
}

// Now returns the time, in UTC and without a monotonic reading.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	wall := c.wall()
	now := wall.Round(0)
	if steady := c.base.Add(wall.Sub(c.start)); steady.After(now) {
		now = steady
	}
	if c.last.After(now) {
		now = c.last
	}
	c.last = now
	return now.UTC()
}
