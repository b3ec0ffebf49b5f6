package storetest

import (
	"fmt"
	"slices"
	"time"

	"github.com/runenv/action/broker/store"
)

// due makes a lease of a provider on which work is due at a time.
func (w *world) due(id, provider string, when time.Duration) {
	w.Helper()
	l := newLease(id)
	l.Provider = provider
	l.NextAt = at(when)
	w.intend("s1", l)
}

var claimTests = map[string]func(*world){
	"ClaimTakesWhatIsDueOldestFirst": func(w *world) {
		w.session("s1")
		w.due("c", "vault", 3*time.Minute)
		w.due("a", "vault", time.Minute)
		w.due("b", "aws", 2*time.Minute)
		w.due("later", "aws", 5*time.Minute)
		w.due("none", "aws", time.Second)
		w.advance(nil, store.Change{Lease: "none", From: []store.State{store.Intent}, To: store.Issuing})

		w.same("before anything is due", []string{}, ids(w.claim(at(time.Minute-time.Microsecond), "w", 10, 10)))
		w.same("on the dot", []string{"a"}, ids(w.claim(at(time.Minute), "w", 10, 10)))
		got := w.claim(at(4*time.Minute), "w", 2, 10)
		w.same("the oldest two", []string{"a", "b"}, ids(got)) // a's claim has lapsed
		for i, epoch := range []int64{2, 1} {
			l := got[i]
			if l.Epoch != epoch || l.ClaimedBy != "w" || !l.ClaimedUntil.Equal(at(4*time.Minute+30*time.Second)) {
				w.Errorf("%s is claimed by %q until %v, epoch %d, want w, in 30 s, %d", l.ID, l.ClaimedBy, l.ClaimedUntil, l.Epoch, epoch)
			}
			w.same(l.ID, l, w.get(l.ID))
		}
		w.same("what is left", []string{"c"}, ids(w.claim(at(4*time.Minute), "other", 10, 10)))
		w.same("nothing", []string{}, ids(w.claim(at(4*time.Minute), "other", 10, 10)))
		w.same("no room", []string{}, ids(w.claim(at(time.Hour), "other", 0, 10)))
		if _, err := w.s.Claim(w.ctx, t0, "", 1, 1, at(time.Hour)); err == nil {
			w.Error("a claim by nobody = nil, want an error")
		}
	},

	"T15ClaimIsFairBetweenProviders": func(w *world) {
		w.session("s1")
		for i := range 50 {
			w.due(fmt.Sprint("storm-", i), "vault", time.Second)
		}
		w.due("aws-1", "aws", time.Minute)
		w.due("gcp-1", "gcp", 2*time.Minute)
		w.due("gcp-2", "gcp", 2*time.Minute)
		got := w.claim(at(3*time.Minute), "w", 10, 3)
		providers := map[string]int{}
		for _, l := range got {
			providers[l.Provider]++
		}
		w.same("claimed", map[string]int{"vault": 3, "aws": 1, "gcp": 2}, providers)
		if !slices.IsSortedFunc(got, func(a, b store.Lease) int { return a.NextAt.Compare(b.NextAt) }) {
			w.Errorf("claimed %v, want the oldest first", ids(got))
		}
	},

	"ALostClaimIsRecognised": func(w *world) {
		w.session("s1")
		w.lease("s1", "l1", store.Revoking)
		slow := w.claim(at(10*time.Minute), "slow", 1, 1)[0]
		fast := w.claim(at(10*time.Minute+30*time.Second), "fast", 1, 1)[0]
		if fast.Epoch != slow.Epoch+1 {
			w.Errorf("epoch %d follows %d", fast.Epoch, slow.Epoch)
		}
		change := func(epoch int64, to store.State) store.Change {
			return store.Change{Lease: "l1", From: []store.State{store.Revoking}, Epoch: epoch, To: to, NextAt: at(20 * time.Minute)}
		}
		w.advance(store.ErrConflict, change(slow.Epoch, store.Revoked))
		w.advance(store.ErrConflict, change(fast.Epoch+1, store.Revoked))
		w.wantState("l1", "revoking")
		w.advance(nil, change(fast.Epoch, store.Revoking))
		if l := w.get("l1"); l.ClaimedBy != "" || !l.ClaimedUntil.IsZero() || l.Epoch != fast.Epoch {
			w.Errorf("after the change: %+v, want the claim given up", l)
		}
		w.advance(store.ErrConflict, change(fast.Epoch, store.Revoked)) // given up is given up
		w.same("not yet due", []string{}, ids(w.claim(at(11*time.Minute), "w", 1, 1)))
		w.same("due again", []string{"l1"}, ids(w.claim(at(20*time.Minute), "w", 1, 1)))
	},

	"AnUnclaimedChangeTakesTheRowFromItsWorker": func(w *world) {
		w.session("s1")
		w.lease("s1", "l1", store.Active)
		held := w.claim(at(10*time.Minute), "renewer", 1, 1)[0]
		w.advance(nil, store.Change{Lease: "l1", From: []store.State{store.Active}, To: store.Revoking, NextAt: at(10 * time.Minute)})
		w.advance(store.ErrConflict, store.Change{Lease: "l1", From: []store.State{store.Active, store.Revoking}, Epoch: held.Epoch, To: store.Revoked})
		w.same("due at once", []string{"l1"}, ids(w.claim(at(10*time.Minute), "w", 1, 1)))
	},

	"NextDueIsTheEarliest": func(w *world) {
		next := func(want time.Time) {
			w.Helper()
			got, err := w.s.NextDue(w.ctx)
			if err != nil || !got.Equal(want) {
				w.Errorf("NextDue() = %v, %v, want %v", got, err, want)
			}
		}
		next(time.Time{})
		w.session("s1")
		next(at(3 * time.Minute))
		w.due("a", "vault", 2*time.Minute)
		w.due("b", "aws", time.Minute)
		next(at(time.Minute))
		w.claim(at(time.Minute), "w", 1, 1)
		next(at(90 * time.Second))
		w.advance(nil, store.Change{Lease: "b", From: []store.State{store.Intent}, To: store.Void})
		next(at(2 * time.Minute))
		w.end(t0, "s1", "w")
		next(time.Time{})
	},
}
