package endpoint

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runenv/action/broker/api"
)

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *syncBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// A bubble is a keeper of one lease of an hour, in a time of its own.
type bubble struct {
	*Keeper
	session *fakeSession
	one     *kept
	log     *syncBuffer
	told    []string
	failed  []error
	start   time.Time
}

func inBubble(t *testing.T, change func(*api.Lease), test func(t *testing.T, b *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{session: &fakeSession{life: time.Hour, now: time.Now}, log: &syncBuffer{}, start: time.Now()}
		lease := numbered("db", 0, time.Now().Add(time.Hour), vars("DB_PASSWORD"))
		if change != nil {
			change(&lease)
		}
		k, err := Keep(KeepConfig{
			Session: b.session, Leases: []api.Lease{lease}, Log: b.log.logger(),
			OnValues: func(l api.Lease) {
				if now := b.one.now(); now.ID == l.ID {
					t.Errorf("lease %s is served before it was announced", l.ID)
				}
				b.told = append(b.told, l.ID)
			},
			OnFailure: func(_ api.Lease, err error) { b.failed = append(b.failed, err) },
		})
		if err != nil {
			t.Fatal(err)
		}
		b.Keeper, b.one = k, k.leases[0]
		test(t, b)
		k.Close()
	})
}

// at goes to a time after the start.
func (b *bubble) at(d time.Duration) {
	<-time.After(time.Until(b.start.Add(d)))
	synctest.Wait()
}

func (b *bubble) is(t *testing.T, calls int, id string) {
	t.Helper()
	lease, _, err := b.one.current(t.Context())
	if got := b.session.count(); got != calls || err != nil || lease.ID != id {
		t.Errorf("at %v: %d renewals, lease %q, %v; want %d and %q", time.Since(b.start), got, lease.ID, err, calls, id)
	}
}

func TestLeaseIsRenewedAheadOfItsEnd(t *testing.T) {
	t.Parallel()
	inBubble(t, nil, func(t *testing.T, b *bubble) {
		b.at(32 * time.Minute) // not before the broker takes it: half of its life
		b.is(t, 0, "db-0")
		b.at(37 * time.Minute)
		b.is(t, 1, "db-1")
		b.at(37*time.Minute + 37*time.Minute)
		b.is(t, 2, "db-2")
		if got := strings.Join(b.told, " "); got != "db-1 db-2" {
			t.Errorf("announced: %s", got)
		}
	})
}

func TestLeaseThatTheBrokerRenewsIsLeftToIt(t *testing.T) {
	t.Parallel()
	inBubble(t, func(l *api.Lease) { l.Renewable = true }, func(t *testing.T, b *bubble) {
		b.session.set(func(f *fakeSession) { f.inPlace = time.Hour })
		b.at(40 * time.Minute)
		renewed := b.one.now()
		renewed.ExpiresAt, renewed.Env = time.Now().Add(time.Hour), nil
		b.Observe(api.Event{Event: api.EventRenewed, Lease: &renewed})
		b.at(80 * time.Minute)
		b.is(t, 0, "db-0")
		// No word of the broker's: ours is asked for.
		b.at(95 * time.Minute)
		b.is(t, 1, "db-0")
		if value, _ := variable(b.one.now(), "DB_PASSWORD"); string(value.Reveal()) != valueOf("DB_PASSWORD", 0) {
			t.Error("a renewal in place lost the values")
		}
		// It nears its longest life: another takes its place at once.
		last := b.one.now()
		b.Observe(api.Event{Event: api.EventExpiring, Lease: &last})
		synctest.Wait()
		b.is(t, 2, "db-1")
		if len(b.told) != 1 {
			t.Errorf("announced: %q, want the new values alone", b.told)
		}
		b.Observe(api.Event{Event: api.EventExpiring, Lease: &last}) // of a lease that is no longer served
		b.Observe(api.Event{Event: api.EventEnded})
		synctest.Wait()
		b.is(t, 2, "db-1")
	})
}

func TestLeaseThatCantLiveLongerIsLeasedAnew(t *testing.T) {
	t.Parallel()
	inBubble(t, func(l *api.Lease) { l.Renewable = true }, func(t *testing.T, b *bubble) {
		b.session.set(func(f *fakeSession) { f.inPlace = -time.Hour }) // no later than it was
		b.at(55 * time.Minute)
		b.is(t, 2, "db-1")
	})
}

func TestOldValuesAreServedUntilTheyExpire(t *testing.T) {
	t.Parallel()
	inBubble(t, nil, func(t *testing.T, b *bubble) {
		b.session.set(func(f *fakeSession) { f.fail = errDown })
		b.at(59 * time.Minute)
		lease, _, err := b.one.current(t.Context())
		if err != nil || lease.ID != "db-0" {
			t.Errorf("a minute before its end: %q, %v", lease.ID, err)
		}
		before := b.session.count()
		if before < 10 || before > 150 {
			t.Errorf("%d tries in about 24 minutes, want one each 15 to 30 seconds", before)
		}
		b.at(time.Hour)
		for range 100 { // nobody's asking makes it try more often
			_, _, err := b.one.current(t.Context())
			if _, ok := errors.AsType[*ExpiredError](err); !ok {
				t.Fatalf("at its end: %v, want an ExpiredError", err)
			}
		}
		if got := b.session.count(); got > before+5 {
			t.Errorf("%d tries more within a minute", got-before)
		}
		if len(b.failed) != 1 || !errors.Is(b.failed[0], errDown) {
			t.Errorf("told of failures: %v, want one", b.failed)
		}
		// Nor does what the broker tells keep it from trying.
		before = b.session.count()
		for n := range 300 {
			b.at(time.Hour + time.Duration(n)*time.Second)
			lease := b.one.now()
			b.Observe(api.Event{Event: api.EventExpiring, Lease: &lease})
		}
		if got := b.session.count() - before; got < 8 || got > 25 {
			t.Errorf("%d tries within five minutes of events", got)
		}
		b.session.set(func(f *fakeSession) { f.fail = nil })
		b.at(66 * time.Minute)
		b.is(t, b.session.count(), "db-1")
	})
}

func TestReadersOfAnExpiredLeaseShareOneRenewal(t *testing.T) {
	t.Parallel()
	inBubble(t, nil, func(t *testing.T, b *bubble) {
		hold := make(chan struct{})
		b.session.set(func(f *fakeSession) { f.hold = hold })
		b.at(61 * time.Minute)
		var readers sync.WaitGroup
		for range 100 {
			readers.Go(func() {
				lease, _, err := b.one.current(t.Context())
				if err != nil || lease.ID != "db-1" {
					t.Errorf("current() = %q, %v, want db-1", lease.ID, err)
				}
			})
		}
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := b.one.current(impatient); err == nil {
			t.Error("an expired lease was served")
		}
		close(hold)
		readers.Wait()
		b.is(t, 1, "db-1")
	})
}

// What can't stand in for a lease isn't taken: the old one is served on.
func TestLeaseThatDoesNotFitIsRefused(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]func(*fakeSession){
		"expired by our clock": func(f *fakeSession) { f.life = -time.Hour },
		"expires now":          func(f *fakeSession) { f.life = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, nil, func(t *testing.T, b *bubble) {
				b.session.set(bad)
				b.at(50 * time.Minute)
				b.is(t, b.session.count(), "db-0")
				if n := b.session.count(); n < 2 || n > 100 {
					t.Errorf("%d tries", n)
				}
				if len(b.told) != 0 || len(b.failed) != 1 {
					t.Errorf("announced %q, failures %v", b.told, b.failed)
				}
			})
		})
	}
	t.Run("lacks a variable", func(t *testing.T) {
		t.Parallel()
		inBubble(t, nil, func(t *testing.T, b *bubble) {
			b.one.require("DB_HOST")
			b.at(50 * time.Minute)
			b.is(t, b.session.count(), "db-0")
			if len(b.failed) != 1 || !strings.Contains(b.failed[0].Error(), "DB_HOST") {
				t.Errorf("failures: %v", b.failed)
			}
		})
	})
}

func TestCloseEndsRenewals(t *testing.T) {
	t.Parallel()
	inBubble(t, nil, func(t *testing.T, b *bubble) {
		b.session.set(func(f *fakeSession) { f.hold = make(chan struct{}) })
		b.at(40 * time.Minute)
		b.Close() // must return
		if len(b.failed) != 0 {
			t.Errorf("told of failures: %v", b.failed)
		}
	})
}

func TestStaticLeaseIsLeftAlone(t *testing.T) {
	t.Parallel()
	inBubble(t, func(l *api.Lease) { l.ExpiresAt = time.Time{} }, func(t *testing.T, b *bubble) {
		b.at(1000 * time.Hour)
		b.is(t, 0, "db-0")
	})
}

func TestKeepChecksItsConfiguration(t *testing.T) {
	t.Parallel()
	lease := numbered("db", 0, time.Time{}, nil)
	for want, cfg := range map[string]KeepConfig{
		"no session": {Leases: []api.Lease{lease}},
		"two are":    {Session: &fakeSession{}, Leases: []api.Lease{lease, lease}},
	} {
		if _, err := Keep(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Keep = %v, want %q", err, want)
		}
	}
}
