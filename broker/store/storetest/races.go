package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/runenv/action/broker/store"
)

// together runs n calls at once and returns their errors.
func together(n int, call func(i int) error) []error {
	out := make([]error, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			out[i] = call(i)
		})
	}
	close(start)
	wg.Wait()
	return out
}

// wantResults holds a race to so many successes, and to one error for the rest.
func (w *world) wantResults(errs []error, successes int, otherwise error) {
	w.Helper()
	n := 0
	for i, err := range errs {
		if err == nil {
			n++
		} else if !errors.Is(err, otherwise) {
			w.Errorf("call %d = %v, want nil or %v", i, err, otherwise)
		}
	}
	if n != successes {
		w.Errorf("%d of %d succeeded, want %d", n, len(errs), successes)
	}
}

var raceTests = map[string]func(*world){
	"T06OneTokenOneSession": func(w *world) {
		errs := together(32, func(i int) error {
			n := newSession(fmt.Sprint("s", i))
			n.Token.JTI = "shared"
			_, err := w.s.CreateSession(w.ctx, t0, n)
			return err
		})
		w.wantResults(errs, 1, store.ErrReplayed)
		w.wantEvents("session.created")
	},

	"T06OneProofOneUse": func(w *world) {
		w.session("s1")
		p := w.proof()
		errs := together(32, func(i int) error {
			if i%2 == 0 {
				return w.s.UseProof(w.ctx, t0, p)
			}
			return w.s.Intend(w.ctx, t0, store.Intended{Session: "s1", Proof: p, Leases: []store.Lease{newLease(fmt.Sprint("l", i))}, Limit: 100})
		})
		w.wantResults(errs, 1, store.ErrReplayed)
	},

	"SessionLimitIsExact": func(w *world) {
		errs := together(32, func(i int) error {
			n := newSession(fmt.Sprint("s", i))
			n.Limit = 4
			_, err := w.s.CreateSession(w.ctx, t0, n)
			return err
		})
		w.wantResults(errs, 4, store.ErrLimit)
		w.same("entries", 4, len(w.events()))
	},

	"LeaseLimitIsExact": func(w *world) {
		w.session("s1")
		errs := together(16, func(i int) error {
			return w.s.Intend(w.ctx, t0, store.Intended{
				Session: "s1", Proof: store.Proof{Thumbprint: "k", JTI: fmt.Sprint(i), Expires: at(time.Minute)}, Limit: 10,
				Leases: []store.Lease{newLease(fmt.Sprint("a", i)), newLease(fmt.Sprint("b", i)), newLease(fmt.Sprint("c", i))},
			})
		})
		w.wantResults(errs, 3, store.ErrLimit)
		got, err := w.s.Leases(w.ctx, "s1")
		if err != nil || len(got) != 9 {
			w.Errorf("%d leases, %v, want 9", len(got), err)
		}
	},

	"ARefusalHarmsNoNeighbour": func(w *world) {
		w.session("s1")
		w.lease("s1", "taken", store.Active)
		bad := []store.Entry{{Body: []byte("two\nlines")}}
		errs := together(64, func(i int) error {
			id := fmt.Sprint("n", i)
			switch i % 4 {
			case 0:
				_, err := w.s.CreateSession(w.ctx, t0, newSession(id))
				return err
			case 1: // refused by a check
				n := newSession(id)
				n.Token.JTI = "token-s1"
				_, err := w.s.CreateSession(w.ctx, t0, n)
				return err
			case 2: // fails after it has written
				return w.s.Intend(w.ctx, t0, store.Intended{Session: "s1", Leases: []store.Lease{newLease(id), newLease("taken")}, Limit: 1000})
			default:
				n := newSession(id)
				n.Entries = append(n.Entries, bad...)
				_, err := w.s.CreateSession(w.ctx, t0, n)
				return err
			}
		})
		for i, err := range errs {
			if (err == nil) != (i%4 == 0) {
				w.Errorf("call %d = %v", i, err)
			}
			_, err = w.s.Session(w.ctx, fmt.Sprint("n", i))
			if (err == nil) != (i%4 == 0) {
				w.Errorf("session n%d: %v", i, err)
			}
		}
		leases, err := w.s.Leases(w.ctx, "s1")
		w.wantErr("Leases", err, nil)
		w.same("leases", []string{"taken"}, ids(leases))
		want := []string{"session.created", "lease.issuing", "lease.active"}
		for range 16 {
			want = append(want, "session.created")
		}
		w.wantEvents(want...)
	},

	"AClaimIsOneWorkers": func(w *world) {
		w.session("s1")
		for i := range 40 {
			w.due(fmt.Sprint("l", i), fmt.Sprint("p", i%3), time.Second)
		}
		var mu sync.Mutex
		var all []string
		errs := together(8, func(i int) error {
			got, err := w.s.Claim(w.ctx, at(time.Minute), fmt.Sprint("w", i), 6, 6, at(time.Hour))
			mu.Lock()
			defer mu.Unlock()
			all = append(all, ids(got)...)
			return err
		})
		w.wantResults(errs, 8, nil)
		slices.Sort(all)
		if len(all) != 40 || len(slices.Compact(all)) != 40 {
			w.Errorf("%d rows were claimed, %d different ones, want each of 40 once", len(all), len(slices.Compact(all)))
		}
	},

	"EndAndIssueNeverLeaveALiveLease": func(w *world) {
		for i := range 8 {
			sid, lid := fmt.Sprint("s", i), fmt.Sprint("l", i)
			w.session(sid)
			w.lease(sid, lid, store.Issuing)
			var left []store.Lease
			errs := together(2, func(k int) (err error) {
				if k == 0 {
					left, err = w.s.EndSession(w.ctx, t0, store.End{Session: sid, Worker: "w", Until: at(time.Minute)})
					return err
				}
				got, err := w.s.Advance(w.ctx, t0, []store.Change{{
					Lease: lid, From: []store.State{store.Issuing}, To: store.Active, Else: store.Revoking, Entries: []store.Entry{entry("lease.issued", sid, lid)},
				}})
				if err == nil && got[0] != nil && !errors.Is(got[0], store.ErrEnded) {
					err = got[0]
				}
				return err
			})
			w.wantResults(errs, 2, nil)
			w.wantState(lid, "revoking")
			if len(left) != 1 {
				w.Errorf("EndSession returned %d leases, want 1", len(left))
			}
		}
	},

	"ASessionEndsOnce": func(w *world) {
		w.session("s1")
		w.lease("s1", "l1", store.Active)
		var mu sync.Mutex
		mine := 0
		errs := together(16, func(i int) error {
			left, err := w.s.EndSession(w.ctx, t0, store.End{
				Session: "s1", Worker: fmt.Sprint("w", i), Until: at(time.Minute), Entries: []store.Entry{entry("session.ended", "s1", "")},
			})
			mu.Lock()
			defer mu.Unlock()
			for _, l := range left {
				if l.Epoch != 0 {
					mine++
				}
			}
			return err
		})
		w.wantResults(errs, 16, nil)
		if mine != 1 {
			w.Errorf("%d callers were given the lease to revoke, want 1", mine)
		}
		w.wantEvents("session.created", "lease.issuing", "lease.active", "session.ended")
	},

	"ReadsSeeWhatWasAnswered": func(w *world) {
		errs := together(16, func(i int) error {
			for k := range 8 {
				n := newSession(fmt.Sprint("s", i, "-", k))
				n.Limit = 1000
				if _, err := w.s.CreateSession(w.ctx, t0, n); err != nil {
					return err
				}
				if _, err := w.s.Session(w.ctx, n.Session.ID); err != nil {
					return fmt.Errorf("reading what was just written: %w", err)
				}
			}
			return nil
		})
		w.wantResults(errs, 16, nil)
	},
}
