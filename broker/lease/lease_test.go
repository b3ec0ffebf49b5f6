package lease_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/providers"
)

func TestIssueAndEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	issued, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable), r.def("npm", providers.Static)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.states(s), "db=active login=active npm=disclosed"; got != want {
		t.Errorf("rows = %q, want %q", got, want)
	}
	if len(issued) != 2 || issued[0].Env[0].Name != "DB" || !strings.HasPrefix(string(issued[0].Env[0].Value.Reveal()), "v-cred-") {
		t.Errorf("Issue() delivers %+v", issued)
	}
	if issued[0].Lease.Marker != "runenv-"+issued[0].Lease.ID {
		t.Errorf("marker = %q", issued[0].Lease.Marker)
	}
	rows, err := r.engine.End(t.Context(), s, "client", "r-2", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 2 {
		t.Errorf("End() returns %d leases, want 2 and no login", len(rows))
	}
	if got, want := r.states(s), "db=revoked login=revoked npm=disclosed"; got != want {
		t.Errorf("after the end rows = %q, want %q", got, want)
	}
	if creds, logins := r.back.alive(); creds+logins != 0 {
		t.Errorf("the back end still has %d credentials and %d logins", creds, logins)
	}
	want := []string{"login.issued", "lease.issued", "lease.disclosed", "session.ended", "lease.revoked", "login.revoked"}
	got := r.entries(s.ID)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("audit entries = %v, want %v", got, want)
	}
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable))); !errors.Is(err, store.ErrEnded) {
		t.Errorf("Issue() after the end: %v, want ErrEnded", err)
	}
}

func TestLeasesEndBeforeTheirLogin(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("a", providers.Revocable), r.def("b", providers.Revocable))); err != nil {
		t.Fatal(err)
	}
	if _, err := r.engine.End(t.Context(), s, "client", "", time.Minute); err != nil {
		t.Fatal(err)
	}
	r.back.mu.Lock()
	defer r.back.mu.Unlock()
	last := r.back.log[len(r.back.log)-1]
	if !strings.HasPrefix(last, "logout") {
		t.Errorf("the last call was %q, want the logout; all: %v", last, r.back.log)
	}
}

func TestOneLoginForASession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	var wg sync.WaitGroup
	for i := range 4 {
		req := r.request(s, r.def(fmt.Sprint("l", i), providers.Revocable))
		wg.Go(func() {
			if _, err := r.engine.Issue(context.Background(), req); err != nil {
				t.Errorf("Issue() = %v", err)
			}
		})
	}
	wg.Wait()
	if n := r.back.calls("login"); n != 1 {
		t.Errorf("%d logins for one session, want 1", n)
	}
}

func TestT14AllOrNone(t *testing.T) {
	t.Parallel()
	unavailable := fmt.Errorf("stub: %w", providers.ErrUnavailable)
	tests := []struct {
		name, fail string
		err        error
		want       string
	}{
		{"a neighbour denied", "issue b", providers.ErrDenied, "a=revoked b=void login=revoked"},
		{"a neighbour unknown", "issue b", unavailable, "a=revoked b=revoked login=revoked"},
		{"login denied", "login", providers.ErrDenied, "a=void b=void login=void"},
		// Whether a login was made isn't known: it is recorded until it must
		// have died.
		{"login unknown", "login", unavailable, "a=void b=void login=expiring"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			s := r.session()
			r.back.set(tt.fail, tt.err)
			_, err := r.engine.Issue(t.Context(), r.request(s, r.def("a", providers.Revocable), r.def("b", providers.Revocable)))
			if _, ok := errors.AsType[*lease.Failure](err); !ok || !errors.Is(err, tt.err) {
				t.Errorf("Issue() = %v, want a Failure that wraps %v", err, tt.err)
			}
			r.settle(r.engine, s, tt.want)
			if creds, logins := r.back.alive(); creds+logins != 0 {
				t.Errorf("the back end still has %d credentials and %d logins", creds, logins)
			}
		})
	}
}

func TestRollBackKeepsTheSharedLogin(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("first", providers.Revocable))); err != nil {
		t.Fatal(err)
	}
	r.back.set("issue bad", providers.ErrNotFound)
	_, err := r.engine.Issue(t.Context(), r.request(s, r.def("good", providers.Revocable), r.def("bad", providers.Revocable)))
	if !errors.Is(err, providers.ErrNotFound) {
		t.Fatalf("Issue() = %v, want ErrNotFound", err)
	}
	r.settle(r.engine, s, "bad=void first=active good=revoked login=active")
}

func TestSessionEndsWhileIssuing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	release := make(chan struct{})
	r.back.hold["issue"] = release
	failed := make(chan error, 1)
	req := r.request(s, r.def("db", providers.Revocable))
	go func() {
		_, err := r.engine.Issue(context.Background(), req)
		failed <- err
	}()
	<-r.back.held
	if _, err := r.engine.End(t.Context(), s, "client", "", time.Minute); err != nil {
		t.Fatal(err)
	}
	close(release)
	if err := <-failed; !errors.Is(err, store.ErrEnded) {
		t.Errorf("Issue() = %v, want ErrEnded: nothing may be delivered", err)
	}
	r.settle(r.engine, s, "db=revoked login=revoked")
	if slices.Contains(r.entries(s.ID), "lease.issued") {
		t.Error("the log says that a lease was issued which nobody got")
	}
}

func TestRevocationIsRetried(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable))); err != nil {
		t.Fatal(err)
	}
	down := fmt.Errorf("stub: %w", providers.ErrUnavailable)
	r.back.set("revoke", down)
	r.back.set("logout", down)
	if _, err := r.engine.End(t.Context(), s, "client", "", time.Minute); err != nil {
		t.Fatal(err)
	}
	if got, want := r.states(s), "db=revoking login=revoking"; got != want {
		t.Errorf("rows = %q, want %q", got, want)
	}
	r.back.set("revoke", nil)
	r.back.set("logout", nil)
	r.time.add(time.Minute)
	r.settle(r.engine, s, "db=revoked login=revoked")
}

func TestT15WhatCannotBeRevokedExpires(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	r.back.ttl = 24 * time.Hour
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable))); err != nil {
		t.Fatal(err)
	}
	r.back.set("revoke", fmt.Errorf("stub: %w", providers.ErrUnavailable))
	r.back.set("logout", fmt.Errorf("stub: %w", providers.ErrUnavailable))
	if _, err := r.engine.End(t.Context(), s, "client", "", time.Minute); err != nil {
		t.Fatal(err)
	}
	// The login dies by itself within five minutes, and what is under it too.
	r.time.add(providers.LoginTTL)
	r.settle(r.engine, s, "db=expired login=expired")
}

// bare is a back end without logins and renewal.
type bare struct {
	providers.Provider
	providers.Revoker
}

func TestT15LongFailureBecomesIrrevocable(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.provider = bare{r.back, r.back}
	s := r.session()
	r.back.ttl = 100 * time.Hour
	d := r.def("key", providers.Revocable)
	if _, err := r.engine.Issue(t.Context(), r.request(s, d)); err != nil {
		t.Fatal(err)
	}
	r.back.set("revoke", fmt.Errorf("stub: %w", providers.ErrUnavailable))
	if _, err := r.engine.End(t.Context(), s, "client", "", time.Minute); err != nil {
		t.Fatal(err)
	}
	for r.states(s) == "key=revoking" {
		r.time.add(5 * time.Minute)
		r.step(s)
	}
	if got, want := r.states(s), "key=irrevocable"; got != want {
		t.Fatalf("rows = %q, want %q", got, want)
	}
	if n := r.back.calls("revoke"); n != 30 {
		t.Errorf("called irrevocable after %d tries, want 30", n)
	}
	// It is tried again every day, and ends when the back end comes back.
	r.back.set("revoke", nil)
	r.time.add(23 * time.Hour)
	r.step(s)
	if got, want := r.states(s), "key=irrevocable"; got != want {
		t.Errorf("after 23 hours rows = %q, want %q", got, want)
	}
	r.time.add(time.Hour)
	r.settle(r.engine, s, "key=revoked")
	if creds, _ := r.back.alive(); creds != 0 {
		t.Errorf("the back end still has %d credentials", creds)
	}
}

func TestEndLease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	issued, err := r.engine.Issue(t.Context(), r.request(s, r.def("a", providers.Revocable), r.def("b", providers.Revocable)))
	if err != nil {
		t.Fatal(err)
	}
	row, err := r.engine.EndLease(t.Context(), issued[0].Lease, "r-2", time.Minute)
	if err != nil || row.State != store.Revoked {
		t.Errorf("EndLease() = %s, %v, want revoked", row.State, err)
	}
	if got, want := r.states(s), "a=revoked b=active login=active"; got != want {
		t.Errorf("rows = %q, want %q", got, want)
	}
	if _, err := r.engine.EndLease(t.Context(), row, "r-3", time.Minute); !errors.Is(err, store.ErrConflict) {
		t.Errorf("EndLease() again = %v, want ErrConflict", err)
	}
}

func TestEndsWithLoginOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	r.back.set("revoke", providers.ErrWithLogin)
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable))); err != nil {
		t.Fatal(err)
	}
	if _, err := r.engine.End(t.Context(), s, "client", "", time.Minute); err != nil {
		t.Fatal(err)
	}
	if got, want := r.states(s), "db=revoked login=revoked"; got != want {
		t.Errorf("rows = %q, want %q", got, want)
	}
}

func TestMissedHeartbeatsEndTheSession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable))); err != nil {
		t.Fatal(err)
	}
	r.time.add(s.HeartbeatTimeout)
	r.settle(r.engine, s, "db=revoked login=revoked")
	got, err := r.store.Session(t.Context(), s.ID)
	if err != nil || got.EndReason != "heartbeat" {
		t.Errorf("session ended for %q, %v, want heartbeat", got.EndReason, err)
	}
	if ev := <-r.events; ev.Session != s.ID || ev.Lease != nil || ev.Reason != "heartbeat" {
		t.Errorf("event = %+v, want the session's end", ev)
	}
}

func TestRenewal(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	issued, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable)))
	if err != nil {
		t.Fatal(err)
	}
	first := issued[0].Lease.ExpiresAt
	// Keep the session alive beyond the lease's first life.
	for range 6 {
		r.time.add(2 * time.Minute)
		if _, err := r.store.Heartbeat(t.Context(), r.time.Now(), s.ID); err != nil {
			t.Fatal(err)
		}
		r.step(s)
	}
	row, err := r.store.Lease(t.Context(), issued[0].Lease.ID)
	if err != nil {
		t.Fatal(err)
	}
	if row.State != store.Active || !row.ExpiresAt.After(first) {
		t.Errorf("after 12 minutes the lease is %s until %v, first until %v: not renewed", row.State, row.ExpiresAt, first)
	}
	if r.back.calls("renew-login") == 0 {
		t.Error("the login was never renewed")
	}
}

// step runs the engine until the session isn't due, nor anything of it.
func (r *rig) step(s store.Session) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.engine.Run(ctx)
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for due := true; due; {
		// A session that ends makes its leases due: first the one, then the others.
		sessions, err := r.store.DueSessions(ctx, r.time.Now(), 1)
		if err != nil {
			r.t.Fatal(err)
		}
		rows, err := r.store.Leases(ctx, s.ID)
		if err != nil {
			r.t.Fatal(err)
		}
		due = len(sessions) != 0 || slices.ContainsFunc(rows, func(row store.Lease) bool {
			return !row.NextAt.IsZero() && !row.NextAt.After(r.time.Now())
		})
		<-tick.C
	}
	cancel()
	<-done
}

func TestT16RenewalIsJudgedByTodaysPolicy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	issued, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable)))
	if err != nil {
		t.Fatal(err)
	}
	r.denied = errors.New("no longer")
	for range 5 {
		r.time.add(150 * time.Second)
		if _, err := r.store.Heartbeat(t.Context(), r.time.Now(), s.ID); err != nil {
			t.Fatal(err)
		}
		r.step(s)
	}
	row, err := r.store.Lease(t.Context(), issued[0].Lease.ID)
	if err != nil {
		t.Fatal(err)
	}
	if !row.ExpiresAt.Equal(issued[0].Lease.ExpiresAt) {
		t.Errorf("renewed to %v although today's policy says no", row.ExpiresAt)
	}
	if _, err := r.engine.Renew(t.Context(), s, row, "r-9"); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Renew() = %v, want ErrConflict", err)
	}
	if n := r.back.calls("renew "); n != 0 {
		t.Errorf("the back end was asked %d times", n)
	}
}

func TestCapEndsALeaseOfALiveSession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	d := r.def("db", providers.Revocable)
	d.TTL, d.MaxTTL = 2*time.Minute, 2*time.Minute
	if _, err := r.engine.Issue(t.Context(), r.request(s, d)); err != nil {
		t.Fatal(err)
	}
	if r.back.calls("renew ") != 1 {
		t.Error("the back end wasn't asked to shorten a credential that outlives its ttl")
	}
	r.back.set("renew", providers.ErrDenied) // so that only the engine's own end is left
	r.time.add(2 * time.Minute)
	r.settle(r.engine, s, "db=expired login=active")
}

// A crash leaves rows in the middle; a new engine on the same store brings each
// to an end.
func TestT14Restart(t *testing.T) {
	t.Parallel()
	for kind, want := range map[providers.Revocability]string{
		providers.Revocable: "db=revoked login=revoked",
		providers.Static:    "db=void login=revoked", // the answer comes after the record
		providers.Expires:   "db=expiring login=revoked",
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			s := r.session()
			never := make(chan struct{})
			r.back.hold["issue"] = never
			ctx, cancel := context.WithCancel(context.Background())
			gone := make(chan struct{})
			req := r.request(s, r.def("db", kind))
			go func() {
				defer close(gone)
				_, _ = r.engine.Issue(ctx, req)
			}()
			<-r.back.held
			if got, want := r.states(s), "db=issuing login=active"; got != want {
				t.Fatalf("rows = %q, want %q", got, want)
			}
			if err := r.store.Restart(t.Context(), r.time.Now()); err != nil {
				t.Fatal(err)
			}
			// The session gets one heartbeat's time, and then all must end.
			r.time.add(s.HeartbeatTimeout)
			r.settle(r.newEngine(), s, want)
			cancel()
			<-gone
		})
	}
}

func TestT24Clock(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	wall := start
	c := lease.NewClock(start.Add(-time.Hour), func() time.Time { return wall })
	if got := c.Now(); !got.Equal(start) {
		t.Errorf("Now() = %v, want the wall's %v", got, start)
	}
	wall = start.Add(-time.Hour)
	if got := c.Now(); got.Before(start) {
		t.Errorf("the wall was set back and Now() followed to %v", got)
	}
	wall = start.Add(time.Hour)
	if got := c.Now(); !got.Equal(wall) {
		t.Errorf("the wall was set forward to %v, Now() = %v", wall, got)
	}
	if got := lease.NewClock(start.Add(2*time.Hour), func() time.Time { return start }).Now(); !got.Equal(start.Add(2 * time.Hour)) {
		t.Errorf("after a restart with a clock behind the store's Now() = %v, want the high-water mark", got)
	}
}

func TestLeasesThatFitNoAnswerAreRolledBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	r.back.size = 7 << 19
	var defs []lease.Definition
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		d := r.def(name, providers.Revocable)
		d.Env[0].File = name // the environment has a bound of its own
		defs = append(defs, d)
	}
	_, err := r.engine.Issue(t.Context(), r.request(s, defs...))
	if f, ok := errors.AsType[*lease.Failure](err); !ok || f.Lease != "e" || !errors.Is(err, providers.ErrMalformed) {
		t.Errorf("Issue() = %v, want a Failure of e", err)
	}
	r.settle(r.engine, s, "a=revoked b=revoked c=revoked d=revoked e=revoked login=revoked")
}
