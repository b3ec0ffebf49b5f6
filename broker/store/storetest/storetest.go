// Package storetest holds every store to the contract of package store: each
// verb, each refusal, what races may and may not do.
//
// It can't show what outlives a crash; each store has its own tests for that.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/store"
)

// t0 is when every test begins. It is on a microsecond, as all that is kept.
var t0 = time.Date(2026, 11, 23, 12, 0, 0, 123456000, time.UTC)

// Run tests the stores that open returns, which are empty and each for one
// test. The tests close them.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	groups := []map[string]func(*world){sessionTests, beginTests, endTests, leaseTests, replaceTests, claimTests, auditTests, upkeepTests, raceTests}
	for _, group := range groups {
		for name, test := range group {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := &world{T: t, s: open(t), ctx: t.Context()}
				t.Cleanup(func() {
					if err := w.s.Close(); err != nil {
						t.Errorf("Close() = %v", err)
					}
				})
				test(w)
			})
		}
	}
}

// A world is one store and what a test does with it.
type world struct {
	*testing.T
	s   store.Store
	ctx context.Context
	n   int
}

// at is a time after the test's beginning.
func at(d time.Duration) time.Time { return t0.Add(d) }

func entry(event, session, lease string) store.Entry {
	return store.Entry{
		Event: event, Request: "r-" + event, Session: session, Lease: lease,
		Body: fmt.Appendf(nil, `{"event":%q,"session":%q,"lease":%q}`, event, session, lease),
	}
}

// newSession is a session as the tests want it, by its id: it lives for three
// minutes without a heartbeat and for an hour at most.
func newSession(id string) store.NewSession {
	return store.NewSession{
		Session: store.Session{
			ID: id, Role: "deploy", Project: "shop", Issuer: "github", Job: "job-1", Thumbprint: "key-" + id,
			AccessHash: []byte("access-" + id), EndHash: []byte("end-" + id), Claims: []byte(`{"sub":"x"}`),
			PolicyDigest: "digest", CreatedAt: t0, HardEnd: at(time.Hour), HeartbeatTimeout: 3 * time.Minute,
			Deadline: at(3 * time.Minute),
		},
		Token:      store.Token{Issuer: "github", JTI: "token-" + id, Expires: at(10 * time.Minute), Body: []byte("body-" + id)},
		Proof:      store.Proof{Thumbprint: "key-" + id, JTI: "proof-" + id, Expires: at(5 * time.Minute)},
		Limit:      100,
		Entries:    []store.Entry{entry("session.created", id, "")},
		EndedEntry: entry("session.ended", store.EndedSession, ""),
	}
}

// session makes one.
func (w *world) session(id string) store.Session {
	w.Helper()
	n := newSession(id)
	if _, err := w.s.CreateSession(w.ctx, t0, n); err != nil {
		w.Fatalf("CreateSession(%s) = %v", id, err)
	}
	return n.Session
}

// newLease is an intent that is noticed after a minute.
func newLease(id string) store.Lease {
	return store.Lease{
		ID: id, Name: "db", Provider: "vault", Revocability: "revocable", State: store.Intent, Marker: "m-" + id,
		PolicyDigest: "digest", CreatedAt: t0, DiesBy: at(2 * time.Hour), NextAt: at(time.Minute),
	}
}

func (w *world) proof() store.Proof {
	w.n++
	return store.Proof{Thumbprint: "key", JTI: fmt.Sprint("proof-", w.n), Expires: at(5 * time.Minute)}
}

func (w *world) intend(session string, leases ...store.Lease) {
	w.Helper()
	in := store.Intended{Session: session, Proof: w.proof(), Leases: leases, Limit: 100}
	if err := w.s.Intend(w.ctx, t0, in); err != nil {
		w.Fatalf("Intend(%s) = %v", session, err)
	}
}

// ways are the changes that lead from an intent to each state.
var ways = map[store.State][]store.State{
	store.Intent:      {},
	store.Issuing:     {store.Issuing},
	store.Active:      {store.Issuing, store.Active},
	store.Revoking:    {store.Issuing, store.Active, store.Revoking},
	store.Expiring:    {store.Issuing, store.Active, store.Expiring},
	store.Irrevocable: {store.Issuing, store.Active, store.Revoking, store.Irrevocable},
	store.Revoked:     {store.Issuing, store.Active, store.Revoking, store.Revoked},
	store.Expired:     {store.Issuing, store.Active, store.Expiring, store.Expired},
	store.Disclosed:   {store.Issuing, store.Disclosed},
	store.Void:        {store.Void},
}

// lease makes one of session and brings it to state. Where it isn't terminal,
// work on it is due after ten minutes.
func (w *world) lease(session, id string, state store.State) {
	w.Helper()
	w.leaseLike(session, newLease(id), state)
}

func (w *world) leaseLike(session string, l store.Lease, state store.State) {
	w.Helper()
	w.intend(session, l)
	from := store.Intent
	for _, to := range ways[state] {
		w.advance(nil, store.Change{
			Lease: l.ID, From: []store.State{from}, To: to, NextAt: at(10 * time.Minute),
			Entries: []store.Entry{entry("lease."+string(to), session, l.ID)},
		})
		from = to
	}
}

// advance makes one change and wants its result.
func (w *world) advance(want error, ch store.Change) {
	w.Helper()
	w.advanceAt(t0, want, ch)
}

func (w *world) advanceAt(now time.Time, want error, ch store.Change) {
	w.Helper()
	got, err := w.s.Advance(w.ctx, now, []store.Change{ch})
	if err != nil {
		w.Fatalf("Advance(%s to %s) = %v", ch.Lease, ch.To, err)
	}
	if len(got) != 1 || !errors.Is(got[0], want) {
		w.Fatalf("Advance(%s to %s) gave the row %v, want %v", ch.Lease, ch.To, got, want)
	}
}

func (w *world) get(id string) store.Lease {
	w.Helper()
	l, err := w.s.Lease(w.ctx, id)
	if err != nil {
		w.Fatalf("Lease(%s) = %v", id, err)
	}
	return l
}

// wantState holds leases, given as pairs of id and state, to their states.
func (w *world) wantState(pairs ...string) {
	w.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if got := w.get(pairs[i]).State; got != store.State(pairs[i+1]) {
			w.Errorf("lease %s is %s, want %s", pairs[i], got, pairs[i+1])
		}
	}
}

func (w *world) end(now time.Time, session, worker string) []store.Lease {
	w.Helper()
	left, err := w.s.EndSession(w.ctx, now, store.End{
		Session: session, Reason: "test", Worker: worker, Until: now.Add(30 * time.Second),
		Entries: []store.Entry{entry("session.ended", session, "")},
	})
	if err != nil {
		w.Fatalf("EndSession(%s) = %v", session, err)
	}
	return left
}

func (w *world) claim(now time.Time, worker string, n, perProvider int) []store.Lease {
	w.Helper()
	got, err := w.s.Claim(w.ctx, now, worker, n, perProvider, now.Add(30*time.Second))
	if err != nil {
		w.Fatalf("Claim(%s) = %v", worker, err)
	}
	return got
}

// events are the events of all pending entries.
func (w *world) events() []string {
	w.Helper()
	pending, err := w.s.Pending(w.ctx, 1000)
	if err != nil {
		w.Fatalf("Pending() = %v", err)
	}
	out := []string{}
	for _, e := range pending {
		out = append(out, e.Event)
	}
	return out
}

func (w *world) wantEvents(want ...string) {
	w.Helper()
	if want == nil {
		want = []string{}
	}
	if diff := cmp.Diff(want, w.events()); diff != "" {
		w.Errorf("events differ (-want +got):\n%s", diff)
	}
}

func (w *world) wantErr(call string, got, want error) {
	w.Helper()
	if !errors.Is(got, want) {
		w.Errorf("%s = %v, want %v", call, got, want)
	}
}

func ids(leases []store.Lease) []string {
	out := []string{}
	for _, l := range leases {
		out = append(out, l.ID)
	}
	return out
}

func (w *world) same(what string, want, got any) {
	w.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		w.Errorf("%s differs (-want +got):\n%s", what, diff)
	}
}
