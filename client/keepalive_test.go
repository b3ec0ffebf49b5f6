package client_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/client/clienttest"
)

// kept is a session under KeepAlive. Its waits last until the test lets one
// pass.
type kept struct {
	*clienttest.Broker
	session *client.Session
	waiting chan time.Duration // each wait, as it begins
	pass    chan struct{}      // ends one wait
	events  chan api.Event
	ended   chan error
}

func keep(t *testing.T, cfg clienttest.Config) *kept {
	t.Helper()
	if cfg.Roles == nil {
		cfg.Roles = roles
	}
	k := &kept{
		Broker:  clienttest.Start(cfg),
		waiting: make(chan time.Duration, 100),
		pass:    make(chan struct{}),
		events:  make(chan api.Event, 10),
		ended:   make(chan error, 1),
	}
	t.Cleanup(k.Close)
	c, err := client.New(client.Config{
		URL:    k.URL,
		Source: &source{now: time.Now, lives: []time.Duration{time.Hour}},
		Wait: func(ctx context.Context, d time.Duration) error {
			if d == 250*time.Millisecond { // before the stream: waits after failures are longer
				return nil
			}
			k.waiting <- d
			select {
			case <-k.pass:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if k.session, err = c.Exchange(t.Context(), "demo"); err != nil {
		t.Fatal(err)
	}
	return k
}

// start returns once the stream is open.
func (k *kept) start(ctx context.Context, t *testing.T) {
	t.Helper()
	if _, err := k.session.Lease(ctx); err != nil {
		t.Fatal(err)
	}
	go func() { k.ended <- k.session.KeepAlive(ctx, func(e api.Event) { k.events <- e }) }()
	k.untilWatched(t)
}

// untilWatched makes the fake speak on the stream until it is heard.
func (k *kept) untilWatched(t *testing.T) {
	t.Helper()
	until(t, func() bool { return k.Sessions()[k.session.ID()].Watching == 1 })
}

// until polls what another goroutine brings about.
func until(t *testing.T, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("the test ended first")
		}
	}
}

func TestHeartbeatsFollowTheBrokersInterval(t *testing.T) {
	t.Parallel()
	k := keep(t, clienttest.Config{HeartbeatSeconds: 20})
	ctx, cancel := context.WithCancel(t.Context())
	k.start(ctx, t)
	seen := map[time.Duration]bool{}
	for range 10 {
		d := <-k.waiting
		if d < 18*time.Second || d > 22*time.Second {
			t.Errorf("a wait of %v, want 20 s ± 10 %%", d)
		}
		seen[d] = true
		k.pass <- struct{}{}
	}
	if len(seen) < 5 {
		t.Errorf("%d different waits of 10: there is no jitter", len(seen))
	}
	<-k.waiting
	if n := k.Sessions()[k.session.ID()].Heartbeats; n != 10 {
		t.Errorf("%d heartbeats, want 10", n)
	}
	cancel()
	if err := <-k.ended; err != nil {
		t.Errorf("KeepAlive = %v, want nil once its context is done", err)
	}
}

// The broker gives 30 s after a stream broke, unless a heartbeat comes: it
// comes at once, not at the next interval.
func TestBrokenStreamIsFollowedByAHeartbeat(t *testing.T) {
	t.Parallel()
	k := keep(t, clienttest.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k.start(ctx, t)
	<-k.waiting // the heartbeats' first
	k.CutWatches()
	until(t, func() bool { return k.Sessions()[k.session.ID()].Heartbeats == 1 })
	// The stream waits for its retry, and the heartbeats for their interval.
	a, b := <-k.waiting, <-k.waiting
	if min(a, b) > time.Second || max(a, b) < 27*time.Second {
		t.Errorf("waits of %v and %v, want one of about 1 s and one of about 30 s", a, b)
	}
	// Whichever of them is faster may be let through more than once.
	until(t, func() bool {
		select {
		case k.pass <- struct{}{}:
		default:
		}
		return k.Sessions()[k.session.ID()].Watching == 1
	})
}

func TestRenewalsAreTold(t *testing.T) {
	t.Parallel()
	k := keep(t, clienttest.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k.start(ctx, t)
	expires := time.Now().Add(2 * time.Hour)
	k.Renewed("db", expires)
	if e := <-k.events; e.Event != api.EventRenewed || e.Lease.Name != "db" || !e.Lease.ExpiresAt.Equal(expires) {
		t.Errorf("event %+v", e)
	}
}

// What nears its end is leased anew from within the callback, while heartbeats
// go on.
func TestWhatNearsItsEndIsLeasedAnew(t *testing.T) {
	t.Parallel()
	k := keep(t, clienttest.Config{Roles: map[string][]api.Lease{"demo": {{Name: "sts", Revocability: "expires", Env: []api.Var{{Name: "AWS_SESSION_TOKEN"}}}}}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := k.session.Lease(ctx); err != nil {
		t.Fatal(err)
	}
	renewed := make(chan api.Lease, 1)
	go func() {
		k.ended <- k.session.KeepAlive(ctx, func(e api.Event) {
			if e.Event != api.EventExpiring {
				t.Errorf("event %+v", e)
			}
			l, err := k.session.Renew(ctx, *e.Lease)
			if err != nil {
				t.Errorf("Renew = %v", err)
			}
			renewed <- l
		})
	}()
	k.untilWatched(t)
	k.Expiring("sts")
	l := <-renewed
	if l.Name != "sts" || len(l.Env) != 1 || l.ID == "" {
		t.Errorf("leased %+v", l)
	}
	if n := k.Count("POST /v1/leases"); n != 2 {
		t.Errorf("%d lease requests, want 2", n)
	}
	// It isn't replaced twice: the fake, as the broker, says no.
	old := k.Sessions()[k.session.ID()].Leases[0]
	if old.Name != "sts" || old.ID == l.ID {
		t.Fatalf("leases %+v", k.Sessions()[k.session.ID()].Leases)
	}
	_, err := k.session.Renew(ctx, old)
	if refusal, ok := errors.AsType[*api.Error](err); !ok || refusal.Status != http.StatusConflict {
		t.Errorf("replacing twice = %v, want 409", err)
	}
}

func TestBrokerEndsTheSession(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]func(k *kept){
		"by the stream": func(k *kept) { k.EndAll("revoked by its operator") },
		"by a heartbeat": func(k *kept) {
			k.Next("POST "+api.PathHeartbeat, clienttest.Refuse(http.StatusUnauthorized, api.CodeSessionEnded, ""))
			k.pass <- struct{}{}
		},
		"by an unknown token": func(k *kept) {
			k.Next("POST "+api.PathHeartbeat, clienttest.Refuse(http.StatusUnauthorized, api.CodeInvalidToken, ""))
			k.pass <- struct{}{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := keep(t, clienttest.Config{})
			k.start(t.Context(), t)
			<-k.waiting
			by(k)
			err := <-k.ended
			ended, ok := errors.AsType[*client.EndedError](err)
			if !ok || name == "by the stream" && !strings.Contains(ended.Reason, "its operator") {
				t.Errorf("KeepAlive = %v", err)
			}
		})
	}
}

// What isn't the session's end is tried again: a network that fails, a busy
// broker, a clock that is off.
func TestHeartbeatFailuresAreTriedSooner(t *testing.T) {
	t.Parallel()
	k := keep(t, clienttest.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k.start(ctx, t)
	k.Next("POST "+api.PathHeartbeat, clienttest.Cut,
		clienttest.Refuse(http.StatusServiceUnavailable, api.CodeTemporarily, ""),
		clienttest.Refuse(http.StatusUnauthorized, api.CodeInvalidDPoP, ""),
		clienttest.Answer(http.StatusBadGateway, nil, "<html>"))
	var waits []time.Duration
	for range 5 {
		waits = append(waits, <-k.waiting)
		k.pass <- struct{}{}
	}
	last := <-k.waiting
	if n := k.Sessions()[k.session.ID()].Heartbeats; n != 1 {
		t.Errorf("%d heartbeats got through, want 1", n)
	}
	for i, most := range []time.Duration{33, 1, 2, 4, 8} {
		if waits[i] > most*time.Second {
			t.Errorf("wait %d took %v, want %d s at most", i, waits[i], most)
		}
	}
	if last < 27*time.Second {
		t.Errorf("after success the wait is %v", last)
	}
}

// A broker without streams, or one that sends nonsense, is kept up with by
// heartbeats alone.
func TestNoStreamIsNoMatter(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]clienttest.Fault{
		"no such path":    clienttest.Refuse(http.StatusNotFound, api.CodeNotFound, ""),
		"nonsense":        clienttest.Answer(http.StatusOK, nil, "{\n"),
		"an endless line": clienttest.Answer(http.StatusOK, nil, strings.Repeat("x", 1<<20)),
		"too many":        clienttest.Refuse(http.StatusForbidden, api.CodeLimitExceeded, ""),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := keep(t, clienttest.Config{})
			k.Next("GET "+api.PathWatch, fault, fault, fault)
			ctx, cancel := context.WithCancel(t.Context())
			var done sync.WaitGroup
			done.Go(func() {
				if err := k.session.KeepAlive(ctx, nil); err != nil {
					t.Errorf("KeepAlive = %v", err)
				}
			})
			until(t, func() bool {
				select {
				case k.pass <- struct{}{}:
				default:
				}
				select {
				case <-k.waiting:
				default:
				}
				return k.Sessions()[k.session.ID()].Heartbeats >= 3
			})
			cancel()
			done.Wait()
		})
	}
}
