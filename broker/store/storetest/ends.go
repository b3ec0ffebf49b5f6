package storetest

import (
	"time"

	"github.com/runenv/action/broker/store"
)

var endTests = map[string]func(*world){
	"EndSessionSendsEveryLeaseOnItsWay": func(w *world) {
		w.session("s1")
		w.session("neighbour")
		w.lease("neighbour", "other", store.Active)
		before := map[string]store.State{
			"a-intent": store.Intent, "b-issuing": store.Issuing, "c-active": store.Active, "e-revoking": store.Revoking,
			"f-irrevocable": store.Irrevocable, "g-revoked": store.Revoked, "h-expired": store.Expired,
			"i-disclosed": store.Disclosed, "j-void": store.Void,
		}
		for _, id := range []string{"a-intent", "b-issuing", "c-active", "e-revoking", "f-irrevocable", "g-revoked", "h-expired", "i-disclosed", "j-void"} {
			w.lease("s1", id, before[id])
		}
		l := newLease("d-active-expires")
		l.Revocability = "expires"
		w.leaseLike("s1", l, store.Active)
		l = newLease("k-login")
		l.IsLogin = true
		w.leaseLike("s1", l, store.Active)

		now := at(time.Minute)
		leases := w.end(now, "s1", "me")
		type row struct {
			ID    string
			State store.State
			Mine  bool
			Due   time.Time
		}
		var got []row
		for _, l := range leases {
			got = append(got, row{l.ID, l.State, l.Epoch != 0, l.NextAt})
			if l.Epoch != 0 && (l.ClaimedBy != "me" || !l.ClaimedUntil.Equal(now.Add(30*time.Second))) {
				w.Errorf("%s is claimed by %q until %v", l.ID, l.ClaimedBy, l.ClaimedUntil)
			}
			stored := w.get(l.ID)
			if l.Epoch != 0 {
				w.same(l.ID+" as stored", l, stored)
			}
		}
		w.same("the leases, oldest first", []row{
			{"a-intent", store.Void, false, time.Time{}},
			{"b-issuing", store.Issuing, false, at(10 * time.Minute)},
			{"c-active", store.Revoking, true, now},
			{"e-revoking", store.Revoking, true, at(10 * time.Minute)},
			{"f-irrevocable", store.Revoking, true, now},
			{"g-revoked", store.Revoked, false, time.Time{}},
			{"h-expired", store.Expired, false, time.Time{}},
			{"i-disclosed", store.Disclosed, false, time.Time{}},
			{"j-void", store.Void, false, time.Time{}},
			{"d-active-expires", store.Expiring, true, at(2 * time.Hour)},
			{"k-login", store.Revoking, true, now},
		}, got)
		w.wantState("a-intent", "void", "g-revoked", "revoked", "h-expired", "expired", "i-disclosed", "disclosed", "j-void", "void", "other", "active")
		s, err := w.s.Session(w.ctx, "s1")
		if err != nil || !s.EndedAt.Equal(now) || s.EndReason != "test" {
			w.Errorf("the session is %+v, %v", s, err)
		}
		_, err = w.s.EndSession(w.ctx, now, store.End{Session: "nobody", Worker: "me", Until: now})
		w.wantErr("EndSession(nobody)", err, store.ErrNotFound)
	},

	"EndingTwiceWritesOnceAndTakesNothingAway": func(w *world) {
		w.session("s1")
		w.lease("s1", "a", store.Active)
		w.lease("s1", "b", store.Active)
		events := len(w.events())
		first := w.end(t0, "s1", "one")
		w.same("events written", events+1, len(w.events()))
		second := w.end(at(time.Second), "s1", "two")
		w.same("events written", events+1, len(w.events()))
		w.same("the leases", []string{"a", "b"}, ids(second))
		for _, l := range second {
			if l.Epoch != 0 {
				w.Errorf("%s was taken from the worker that ends it", l.ID)
			}
		}
		s, err := w.s.Session(w.ctx, "s1")
		if err != nil || !s.EndedAt.Equal(t0) {
			w.Errorf("ended at %v, %v, want %v", s.EndedAt, err, t0)
		}
		w.advance(nil, store.Change{Lease: "a", From: []store.State{store.Revoking}, Epoch: first[0].Epoch, To: store.Revoked})
		w.advance(nil, store.Change{Lease: "b", From: []store.State{store.Revoking}, Epoch: first[1].Epoch, To: store.Revoking, NextAt: at(time.Minute), Attempts: 1})
		third := w.end(at(30*time.Second), "s1", "three")
		if len(third) != 2 || third[0].Epoch != 0 || third[1].ID != "b" || third[1].Epoch != 0 {
			w.Errorf("a third end returned %+v, want a, which is over, and b, which isn't due, unclaimed", third)
		}
		fourth := w.end(at(time.Minute), "s1", "four")
		if len(fourth) != 2 || fourth[0].Epoch != 0 || fourth[1].Epoch == 0 || fourth[1].ClaimedBy != "four" || fourth[1].Attempts != 1 {
			w.Errorf("an end when b is due returned %+v, want it alone claimed", fourth)
		}
	},

	"EndTakesARenewalOverButNoRevocation": func(w *world) {
		w.session("s1")
		w.lease("s1", "active", store.Active)
		w.lease("s1", "revoking", store.Revoking)
		held := w.claim(at(10*time.Minute), "other", 10, 10)
		w.same("held", []string{"active", "revoking"}, ids(held))
		left := w.end(at(10*time.Minute), "s1", "me")
		if len(left) != 2 || left[0].ClaimedBy != "me" || left[0].Epoch != held[0].Epoch+1 || left[1].Epoch != 0 {
			w.Fatalf("EndSession returned %+v", left)
		}
		w.advance(store.ErrConflict, store.Change{Lease: "active", From: []store.State{store.Active, store.Revoking}, Epoch: held[0].Epoch, To: store.Revoked})
		w.advance(nil, store.Change{Lease: "active", From: []store.State{store.Revoking}, Epoch: left[0].Epoch, To: store.Revoked})
		w.advance(nil, store.Change{Lease: "revoking", From: []store.State{store.Revoking}, Epoch: held[1].Epoch, To: store.Revoked})
		for _, l := range w.end(at(10*time.Minute), "s1", "me") {
			if l.State != store.Revoked || l.Epoch != 0 {
				w.Errorf("an end when all is over returned %+v, want it revoked and unclaimed", l)
			}
		}
	},

	"P4AnIssuingLeaseOfAnEndedSessionGoesElsewhere": func(w *world) {
		w.session("s1")
		w.lease("s1", "l1", store.Issuing)
		w.end(t0, "s1", "me")
		w.advanceAt(at(time.Second), store.ErrEnded, store.Change{
			Lease: "l1", From: []store.State{store.Issuing}, To: store.Active, Else: store.Revoking, Handle: []byte("sealed"), NextAt: at(time.Hour),
			Entries: []store.Entry{entry("lease.issued", "s1", "l1")}, ElseEntries: []store.Entry{entry("lease.revoking", "s1", "l1")},
		})
		l := w.get("l1")
		if l.State != store.Revoking || string(l.Handle) != "sealed" || !l.NextAt.Equal(at(time.Second)) {
			w.Errorf("the lease is %+v, want it due for revocation by its handle", l)
		}
		w.wantEvents("session.created", "lease.issuing", "session.ended", "lease.revoking")
	},

	"AbandonedEndIsTakenUpByTheNext": func(w *world) {
		w.session("s1")
		w.lease("s1", "l1", store.Active)
		w.end(t0, "s1", "dead")
		w.same("while it is held", []string{}, ids(w.claim(at(29*time.Second), "w", 10, 10)))
		next, err := w.s.NextDue(w.ctx)
		if err != nil || !next.Equal(at(30*time.Second)) {
			w.Errorf("NextDue() = %v, %v, want the end of the claim", next, err)
		}
		w.same("when the claim has lapsed", []string{"l1"}, ids(w.claim(at(30*time.Second), "w", 10, 10)))
	},
}
