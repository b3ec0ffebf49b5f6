package redact

import (
	"io"
	"time"
)

// A clock goes on by hand.
type clock struct {
	now    time.Time
	timers []timer
}

type timer struct {
	at time.Time
	f  func()
}

func newClock() *clock { return &clock{now: time.Unix(1_800_000_000, 0)} }

func (c *clock) writer(r *Redactor, w io.Writer) *Writer {
	rw := r.Writer(w)
	rw.AfterFunc = func(d time.Duration, f func()) { c.timers = append(c.timers, timer{c.now.Add(d), f}) }
	return rw
}

// advance runs what is due within d, in order.
func (c *clock) advance(d time.Duration) {
	until := c.now.Add(d)
	for {
		next := -1
		for i, t := range c.timers {
			if !t.at.After(until) && (next < 0 || t.at.Before(c.timers[next].at)) {
				next = i
			}
		}
		if next < 0 {
			c.now = until
			return
		}
		t := c.timers[next]
		c.timers = append(c.timers[:next], c.timers[next+1:]...)
		c.now = t.at
		t.f()
	}
}
