package storetest

import (
	"fmt"
	"time"

	"github.com/runenv/action/broker/store"
)

// replacing is the change that makes a lease of the session active in the stead
// of others.
func replacing(id string, ids ...string) store.Change {
	return store.Change{
		Lease: id, From: []store.State{store.Issuing}, To: store.Active, NextAt: at(10 * time.Minute), Else: store.Revoking, Replaces: ids,
		Entries: []store.Entry{entry("lease.issued", "s1", id)}, ElseEntries: []store.Entry{entry("lease.revoking", "s1", id)},
	}
}

var replaceTests = map[string]func(*world){
	"ReplacedWithTheOtherOne": func(w *world) {
		w.session("s1")
		w.lease("s1", "old", store.Active)
		before := w.get("old")
		n := newLease("new")
		n.State = store.Issuing
		intend := func(limit int, ids ...string) error {
			return w.s.Intend(w.ctx, t0, store.Intended{Session: "s1", Proof: w.proof(), Leases: []store.Lease{n}, Replaces: ids, Limit: limit})
		}
		w.wantErr("without replacing", intend(1), store.ErrLimit)
		w.wantErr("replacing", intend(1, "old"), nil)
		w.same("an intent replaces nothing yet", before, w.get("old"))
		w.advance(nil, replacing("new", "old"))
		before.ReplacedBy = "new"
		w.same("it lives on as it is", before, w.get("old"))
		w.wantState("new", "active")
		// It no longer counts.
		n.ID = "third"
		w.wantErr("beyond the limit", intend(1), store.ErrLimit)
		w.wantErr("within", intend(2), nil)
		// Its session's end is its own too.
		w.end(t0, "s1", "w")
		w.wantState("old", "revoking")
	},

	"T17TwoGenerationsLiveAtMost": func(w *world) {
		w.session("s1")
		bounded := newLease("l0")
		bounded.DiesBy = at(time.Minute)
		w.leaseLike("s1", bounded, store.Active)
		intend := func(now time.Time, id, old string) error {
			l := newLease(id)
			l.State, l.DiesBy = store.Issuing, at(time.Hour)
			return w.s.Intend(w.ctx, now, store.Intended{Session: "s1", Proof: w.proof(), Leases: []store.Lease{l}, Replaces: []string{old}, Limit: 1})
		}
		w.wantErr("the second generation", intend(t0, "l1", "l0"), nil)
		w.advance(nil, replacing("l1", "l0"))
		w.wantErr("the third beside the first", intend(t0, "l2", "l1"), store.ErrLimit)
		w.wantErr("the third after it", intend(at(time.Minute), "l2", "l1"), nil)
	},

	"T12OnlyWhatIsTheSessionsOwnAndLivesIsReplaced": func(w *world) {
		w.session("s1")
		w.session("s2")
		w.lease("s2", "foreign", store.Active)
		login := newLease("login")
		login.IsLogin = true
		w.leaseLike("s1", login, store.Active)
		ids := []string{"nothing", "", "foreign", "login"}
		for _, s := range []store.State{store.Intent, store.Issuing, store.Revoking, store.Expiring, store.Irrevocable, store.Revoked, store.Expired, store.Disclosed, store.Void} {
			w.lease("s1", "is-"+string(s), s)
			ids = append(ids, "is-"+string(s))
		}
		w.lease("s1", "good", store.Active)
		w.lease("s1", "new", store.Issuing)
		events := w.events()
		for _, id := range ids {
			n := newLease("n")
			in := store.Intended{Session: "s1", Proof: w.proof(), Leases: []store.Lease{n}, Replaces: []string{"good", id}, Limit: 100}
			w.wantErr(fmt.Sprintf("Intend replacing %q", id), w.s.Intend(w.ctx, t0, in), store.ErrConflict)
			if _, err := w.s.Lease(w.ctx, "n"); err == nil {
				w.Errorf("replacing %q: the intent was recorded", id)
			}
			w.advance(store.ErrConflict, replacing("new", "good", id))
			w.wantState("new", "issuing")
		}
		if got := w.get("good").ReplacedBy; got != "" {
			w.Errorf("the good one is replaced by %s", got)
		}
		w.wantEvents(events...)
	},

	"NothingIsReplacedTwice": func(w *world) {
		w.session("s1")
		w.lease("s1", "old", store.Active)
		for _, id := range []string{"first", "second"} {
			w.lease("s1", id, store.Issuing)
		}
		w.advance(nil, replacing("first", "old"))
		w.advance(store.ErrConflict, replacing("second", "old"))
		w.wantState("second", "issuing")
		if got := w.get("old").ReplacedBy; got != "first" {
			w.Errorf("replaced by %s, want the first", got)
		}
		in := store.Intended{Session: "s1", Proof: w.proof(), Leases: []store.Lease{newLease("n")}, Replaces: []string{"old"}, Limit: 100}
		w.wantErr("Intend", w.s.Intend(w.ctx, t0, in), store.ErrConflict)
	},

	"ARepeatReplacesAgain": func(w *world) {
		w.session("s1")
		w.lease("s1", "old", store.Active)
		intend := func(id, batch string) error {
			l := newLease(id)
			l.State = store.Issuing
			return w.s.Intend(w.ctx, t0, store.Intended{Session: "s1", Proof: w.proof(), Leases: []store.Lease{l}, Batch: batch, Replaces: []string{"old"}, Limit: 1})
		}
		w.wantErr("the request", intend("first", "b"), nil)
		w.advance(nil, replacing("first", "old"))
		w.wantErr("another request", intend("other", "c"), store.ErrConflict)
		w.wantErr("one without a key", intend("other", ""), store.ErrConflict)
		w.wantErr("the request again", intend("second", "b"), nil)
		w.advance(nil, replacing("second", "old"))
		w.wantState("first", "revoking", "second", "active", "old", "active")
		if got := w.get("old").ReplacedBy; got != "second" {
			w.Errorf("replaced by %s, want the second", got)
		}
	},

	"P5AnEndedSessionReplacesNothing": func(w *world) {
		w.session("s1")
		w.lease("s1", "old", store.Active)
		w.lease("s1", "new", store.Issuing)
		w.advanceAt(at(3*time.Minute), store.ErrEnded, replacing("new", "old"))
		w.wantState("new", "revoking")
		if got := w.get("old").ReplacedBy; got != "" {
			w.Errorf("replaced by %s, which nobody got", got)
		}
	},

	"P4EndlessHasNoBound": func(w *world) {
		w.session("s1")
		l := newLease("l1")
		l.ExpiresAt, l.EndsAt = at(30*time.Minute), at(40*time.Minute)
		w.leaseLike("s1", l, store.Issuing)
		before := w.get("l1")
		w.advance(nil, store.Change{
			Lease: "l1", From: []store.State{store.Issuing}, To: store.Active, Endless: true, NextAt: at(40 * time.Minute),
			Entries: []store.Entry{entry("lease.issued", "s1", "l1")},
		})
		before.State, before.ExpiresAt, before.DiesBy, before.NextAt = store.Active, time.Time{}, time.Time{}, at(40*time.Minute)
		w.same("endless", before, w.get("l1"))
		for _, ch := range []store.Change{{ExpiresAt: at(time.Minute)}, {DiesBy: at(time.Minute)}} {
			ch.Lease, ch.From, ch.To, ch.Endless = "l1", []store.State{store.Active}, store.Active, true
			if _, err := w.s.Advance(w.ctx, t0, []store.Change{ch}); err == nil {
				w.Error("a change to endless with an end = nil, want an error")
			}
		}
	},

	"P3AStoredValueIsDisclosedInOneStep": func(w *world) {
		w.session("s1")
		l := newLease("l1")
		l.State, l.Revocability, l.NextAt, l.DiesBy = store.Disclosed, "static", time.Time{}, time.Time{}
		in := store.Intended{Session: "s1", Proof: w.proof(), Leases: []store.Lease{l}, Limit: 0, Entries: []store.Entry{entry("lease.disclosed", "s1", "l1")}}
		w.wantErr("beyond the limit", w.s.Intend(w.ctx, t0, in), store.ErrLimit)
		w.wantEvents("session.created")
		in.Limit = 1
		w.wantErr("Intend", w.s.Intend(w.ctx, t0, in), nil)
		l.Session = "s1"
		w.same("the row", l, w.get("l1"))
		w.wantEvents("session.created", "lease.disclosed")
		// It is terminal: it doesn't count, and no verb moves it.
		w.advance(store.ErrConflict, store.Change{Lease: "l1", From: []store.State{store.Disclosed}, To: store.Void})
		in.Proof, in.Leases, in.Entries = w.proof(), []store.Lease{newLease("n")}, nil
		w.wantErr("one more", w.s.Intend(w.ctx, t0, in), nil)
	},
}
