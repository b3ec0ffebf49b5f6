package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/broker/store"
)

var t0 = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// newStores returns one on disk and one in memory.
func newStores(t *testing.T) map[string]*Store {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	stores := map[string]*Store{}
	for name, path := range map[string]string{"disk": filepath.Join(dir, "broker.db"), "memory": Memory} {
		s, err := Open(t.Context(), Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		stores[name] = s
	}
	return stores
}

// do runs a function in the writer, outside of any verb.
func (s *Store) do(t *testing.T, run func(*conn) error) {
	t.Helper()
	if err := s.submit(t.Context(), run); err != nil {
		t.Fatal(err)
	}
}

func proof(i int) store.Proof {
	return store.Proof{Thumbprint: "k", JTI: fmt.Sprint(i), Expires: t0}
}

// hold keeps the writer busy until release is called; the verbs that are asked
// for meanwhile then share a transaction.
func (s *Store) hold(t *testing.T) (release func()) {
	t.Helper()
	busy, free, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		done <- s.submit(context.Background(), func(*conn) error {
			select {
			case busy <- struct{}{}:
			default: // a second run
			}
			<-free
			return nil
		})
	}()
	<-busy
	return func() {
		close(free)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// waiting waits until n jobs are in the queue.
func (s *Store) waiting(n int) {
	for tick := time.NewTicker(time.Millisecond); len(s.jobs) < n; <-tick.C {
	}
}

func TestWhoLeavesInTimeChangesNothing(t *testing.T) {
	t.Parallel()
	for name, s := range newStores(t) {
		release := s.hold(t)
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error)
		go func() { left <- s.UseProof(ctx, t0, proof(1)) }()
		s.waiting(1)
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "may be yes") {
			t.Errorf("%s: UseProof = %v, want a plain cancellation", name, err)
		}
		release()
		if err := s.UseProof(t.Context(), t0, proof(1)); err != nil {
			t.Errorf("%s: the proof was used: %v", name, err)
		}
	}
}

func TestWhoLeavesTooLateIsTold(t *testing.T) {
	t.Parallel()
	for name, s := range newStores(t) {
		ctx, cancel := context.WithCancel(t.Context())
		running, left := make(chan struct{}), make(chan struct{})
		go func() {
			<-running
			cancel()
		}()
		err := s.write(ctx, t0, func(c *conn) error {
			close(running)
			<-left
			return useProof(c, proof(1))
		})
		close(left)
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "may be yes") {
			t.Errorf("%s: write = %v, want to be told that it may have happened", name, err)
		}
		if err := s.UseProof(t.Context(), t0, proof(1)); !errors.Is(err, store.ErrReplayed) {
			t.Errorf("%s: UseProof = %v, want ErrReplayed", name, err)
		}
	}
}

// A verb that fails after it wrote is undone alone, though it shared a
// transaction.
func TestAFailureUndoesOnlyItself(t *testing.T) {
	t.Parallel()
	for name, s := range newStores(t) {
		release := s.hold(t)
		const n = 9
		results := make(chan error, n)
		for i := range n {
			go func() {
				results <- s.write(t.Context(), t0, func(c *conn) error {
					if err := useProof(c, proof(i)); err != nil {
						return err
					}
					if i%3 == 0 {
						return errors.New("second thoughts")
					}
					if i%3 == 1 {
						return c.exec("INSERT INTO meta VALUES (2, 0, 0, 0, 0, NULL)")
					}
					return nil
				})
			}()
		}
		s.waiting(n)
		release()
		failed := 0
		for range n {
			if <-results != nil {
				failed++
			}
		}
		if failed != n/3*2 {
			t.Errorf("%s: %d failed, want %d", name, failed, n/3*2)
		}
		for i := range n {
			want := error(nil)
			if i%3 == 2 {
				want = store.ErrReplayed
			}
			if err := s.UseProof(t.Context(), t0, proof(i)); !errors.Is(err, want) {
				t.Errorf("%s: UseProof(%d) = %v, want %v", name, i, err, want)
			}
		}
	}
}

// A full disk refuses what doesn't fit, undoes it whole, and is forgotten once
// there is space.
func TestAFullDiskLosesNothing(t *testing.T) {
	t.Parallel()
	for name, s := range newStores(t) {
		var pages row
		s.do(t, func(c *conn) (err error) { pages, err = c.one("PRAGMA page_count"); return err })
		limit := func(n int64) {
			t.Helper()
			s.do(t, func(c *conn) error { _, err := c.one(fmt.Sprintf("PRAGMA max_page_count = %d", n)); return err })
		}
		limit(pages.int64(0) + 16)
		entry := func(i int) store.Entry {
			return store.Entry{Event: "e", Session: fmt.Sprint(i), Body: bytes.Repeat([]byte("x"), 4000)}
		}
		written := 0
		var err error
		for ; err == nil; written++ {
			if written > 1000 {
				t.Fatalf("%s: the disk doesn't fill up", name)
			}
			err = s.Record(t.Context(), t0, []store.Entry{entry(written), entry(written)})
		}
		written--
		check := func() {
			t.Helper()
			got, err := s.Pending(t.Context(), 10_000)
			if err != nil || len(got) != 2*written {
				t.Fatalf("%s: %d entries, %v, want %d", name, len(got), err, 2*written)
			}
			for i, e := range got {
				if e.Session != fmt.Sprint(i/2) {
					t.Errorf("%s: entry %d is about %s, want %d", name, i, e.Session, i/2)
				}
			}
		}
		check()
		if err := s.UseProof(t.Context(), t0, proof(1)); err != nil {
			t.Errorf("%s: a small change that fits = %v", name, err)
		}
		limit(1 << 30)
		if err := s.Record(t.Context(), t0, []store.Entry{entry(written), entry(written)}); err != nil {
			t.Errorf("%s: Record with space again = %v", name, err)
		}
		written++
		check()
	}
}

// What a client can cause is found by an index, however many rows there are.
func TestNoVerbScansATable(t *testing.T) {
	t.Parallel()
	s := newStores(t)["memory"]
	ctx := t.Context()
	// Each verb once, so that its statements are prepared.
	_, err := s.CreateSession(ctx, t0, store.NewSession{
		Session: store.Session{ID: "s", HeartbeatTimeout: time.Minute, Deadline: t0.Add(time.Minute), HardEnd: t0.Add(time.Hour)},
		Token:   store.Token{Issuer: "i", JTI: "j", Expires: t0.Add(time.Minute)}, Proof: proof(1), Limit: 9,
		EndedEntry: store.Entry{Body: []byte("{}")},
	})
	errs := []error{err}
	add := func(_ any, err error) { errs = append(errs, err) }
	add(s.CreateSession(ctx, t0, store.NewSession{
		Session: store.Session{ID: "s2", HeartbeatTimeout: time.Minute, Deadline: t0.Add(time.Minute), HardEnd: t0.Add(time.Hour)},
		Token:   store.Token{Issuer: "i", JTI: "j", Expires: t0.Add(time.Minute)}, Proof: proof(2), Limit: 9,
		EndedEntry: store.Entry{Body: []byte("{}")},
	}))
	errs = append(errs, s.Intend(ctx, t0, store.Intended{Session: "s2", Batch: "b", Proof: proof(3), Limit: 9, Leases: []store.Lease{{ID: "l", Provider: "p", State: store.Intent, NextAt: t0}}}))
	errs = append(errs, s.Intend(ctx, t0, store.Intended{Session: "s2", Batch: "b", Proof: proof(4), Limit: 9, Leases: []store.Lease{{ID: "m", Provider: "p", State: store.Intent, NextAt: t0}}}))
	add(s.Claim(ctx, t0, "w", 1, 1, t0))
	add(s.Advance(ctx, t0, []store.Change{{Lease: "m", From: []store.State{store.Intent}, To: store.Issuing, NextAt: t0, NeedsLive: true}}))
	add(s.Heartbeat(ctx, t0, "s2"))
	errs = append(errs, s.Hasten(ctx, t0, "s2", t0.Add(time.Second)), s.UseProof(ctx, t0, proof(5)))
	add(s.NextDue(ctx))
	add(s.DueSessions(ctx, t0, 1))
	add(s.EndSession(ctx, t0, store.End{Session: "s2", Worker: "w", Until: t0}))
	add(s.Session(ctx, "s"))
	add(s.SessionByEndHash(ctx, []byte("h")))
	add(s.Leases(ctx, "s"))
	add(s.Lease(ctx, "l"))
	errs = append(errs, s.Forget(ctx, t0.Add(time.Hour), t0.Add(time.Hour), 100), s.Record(ctx, t0, []store.Entry{{Body: []byte("{}")}}))
	pending, err := s.Pending(ctx, 1)
	errs = append(errs, err)
	errs = append(errs, s.Grow(ctx, t0, store.Sequence{Rows: []int64{pending[0].Row}, Checkpoint: []byte("c")}))
	add(s.Entries(ctx, 0, 1))
	add(s.EntriesAbout(ctx, "s", 1))
	for i, err := range errs {
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			t.Errorf("call %d = %v", i, err)
		}
	}

	s.do(t, func(c *conn) error {
		var queries []string
		for q := range c.stmts {
			queries = append(queries, q)
		}
		checked := 0
		for _, q := range queries {
			if !strings.Contains(q, "FROM ") && !strings.HasPrefix(q, "UPDATE") || strings.Contains(q, "sqlite_schema") {
				continue
			}
			checked++
			err := c.query(func(r row) error {
				plan := r.text(3)
				if strings.HasPrefix(plan, "SCAN") && plan != "SCAN meta" && !strings.HasPrefix(plan, "SCAN (") {
					t.Errorf("%s\n\t%s", q, plan)
				}
				return nil
			}, "EXPLAIN QUERY PLAN "+q, make([]any, 32)...)
			if err != nil {
				return err
			}
		}
		if checked < 30 {
			t.Errorf("%d statements were checked, want all of them", checked)
		}
		return nil
	})
}

// A kill of the process can't show what a power cut would; this setting is
// what SQLite promises to survive one with.
func TestP3CommitsAreSynced(t *testing.T) {
	t.Parallel()
	s := newStores(t)["disk"]
	s.do(t, func(c *conn) error {
		for pragma, want := range map[string]any{"journal_mode": "wal", "synchronous": int64(2), "fullfsync": int64(1), "checkpoint_fullfsync": int64(1)} {
			r, err := c.one("PRAGMA " + pragma)
			if err != nil {
				return err
			}
			if r[0] != want {
				t.Errorf("%s is %v, want %v", pragma, r[0], want)
			}
		}
		return nil
	})
}
