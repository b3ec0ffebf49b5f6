package sqlite

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
)

const (
	// maxBatch bounds the verbs of one transaction, so that its callers don't
	// wait for more than a few tens of milliseconds.
	maxBatch = 256

	// queueLength is how many verbs may wait before their callers block, which
	// costs the writer nothing.
	queueLength = 1024
)

// Fates of a job, so that a caller who leaves knows whether it can still
// happen.
const (
	waiting int32 = iota
	taken
	left
)

// A job is one verb on its way through the writer.
type job struct {
	// run makes the verb's changes. It may run twice: what it hands out it
	// sets anew each time. An error undoes its changes, and its only.
	run  func(*conn) error
	fate atomic.Int32
	done chan error // of capacity 1
	err  error      // between run and commit
}

// write runs a verb in the writer and returns when it is durable.
func (s *Store) write(ctx context.Context, now time.Time, run func(*conn) error) error {
	if s.readOnly {
		return errReadOnly
	}
	return s.change(ctx, now, run)
}

// change is write, also in a store that takes no more than records.
func (s *Store) change(ctx context.Context, now time.Time, run func(*conn) error) error {
	if now.IsZero() {
		return errors.New("a verb needs the time")
	}
	s.raise(now)
	return s.submit(ctx, run)
}

// raise lifts the high-water mark; the next commit makes it durable.
func (s *Store) raise(now time.Time) {
	for n := now.UnixMicro(); ; {
		old := s.highWater.Load()
		if n <= old || s.highWater.CompareAndSwap(old, n) {
			return
		}
	}
}

// submit hands run to the writer and waits for it.
func (s *Store) submit(ctx context.Context, run func(*conn) error) error {
	j := &job{run: run, done: make(chan error, 1)}
	select {
	case <-s.closing:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	default:
	}
	select {
	case s.jobs <- j:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return errClosed
	}
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		if j.fate.CompareAndSwap(waiting, left) {
			return ctx.Err()
		}
		return fmt.Errorf("left before the answer, which may be yes: %w", ctx.Err())
	case <-s.closed:
		// The writer is gone. It answered what it took; a job that slipped
		// into the queue after that was never run.
		select {
		case err := <-j.done:
			return err
		default:
			return errClosed
		}
	}
}

// serve is the writer: it takes what waits, makes one transaction of it, and
// answers everybody once that is durable.
func (s *Store) serve(c *conn) {
	defer close(s.closed)
	batch := make([]*job, 0, maxBatch)
	for {
		batch = batch[:0]
		select {
		case j := <-s.jobs:
			batch = append(batch, j)
		case <-s.closing:
			if batch = s.drain(batch); len(batch) == 0 {
				return
			}
		}
		// Those whom the last commit woke get their turn to ask again, or
		// every other batch would hold a single verb.
		runtime.Gosched()
		batch = s.drain(batch)
		n := 0
		for _, j := range batch {
			if j.fate.CompareAndSwap(waiting, taken) {
				batch[n], n = j, n+1
			}
		}
		s.together(c, batch[:n])
	}
}

// drain adds what waits in the queue to batch.
func (s *Store) drain(batch []*job) []*job {
	for len(batch) < maxBatch {
		select {
		case j := <-s.jobs:
			batch = append(batch, j)
		default:
			return batch
		}
	}
	return batch
}

// together runs the jobs in one transaction. Verbs check before they write, so
// a refusal leaves nothing to undo; should a verb fail after it wrote, all is
// rolled back and each runs once more in a transaction of its own.
func (s *Store) together(c *conn, jobs []*job) {
	if len(jobs) == 0 {
		return
	}
	if err := s.attempt(c, jobs); err != nil {
		if len(jobs) == 1 {
			jobs[0].done <- err
			return
		}
		for i := range jobs {
			s.together(c, jobs[i:i+1])
		}
		return
	}
	for _, j := range jobs {
		j.done <- j.err
	}
}

// attempt runs the jobs and commits. If it returns an error nothing was
// changed, and the jobs may be run again.
func (s *Store) attempt(c *conn, jobs []*job) error {
	if err := c.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	wrote := false
	for _, j := range jobs {
		before := c.writes
		j.err = j.run(c)
		changed := c.writes != before
		var f *fault
		if j.err != nil && (changed || errors.As(j.err, &f)) {
			return rollback(c, j.err)
		}
		wrote = wrote || changed
	}
	if wrote {
		if err := c.exec("UPDATE meta SET high_water = max(high_water, ?)", s.highWater.Load()); err != nil {
			return rollback(c, err)
		}
	}
	if err := c.exec("COMMIT"); err != nil {
		return rollback(c, err)
	}
	return nil
}

// rollback returns why. SQLite may have rolled back by itself, so that there
// is no transaction any more is no failure.
func rollback(c *conn, why error) error {
	_ = c.exec("ROLLBACK")
	return why
}

// read runs a query that sees every committed change.
func (s *Store) read(ctx context.Context, run func(*conn) error) error {
	if s.readers == nil {
		// In memory there is one connection. What it reads within a
		// transaction might still be rolled back, so a read goes in as a job
		// of its own and is answered after the commit.
		return s.submit(ctx, run)
	}
	select {
	case <-s.closing:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	default:
	}
	select {
	case c := <-s.readers:
		defer func() { s.readers <- c }()
		return run(c)
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return errClosed
	}
}
