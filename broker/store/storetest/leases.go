package storetest

import (
	"fmt"
	"slices"
	"time"

	"github.com/runenv/action/broker/store"
)

var leaseTests = map[string]func(*world){
	"LeaseComesBackWhole": func(w *world) {
		w.session("s1")
		login := newLease("login")
		login.IsLogin, login.Name, login.State = true, "vault", store.Issuing
		l := newLease("l1")
		l.Login, l.Renewable, l.ExpiresAt, l.EndsAt, l.Attempts = "login", true, at(30*time.Minute), at(40*time.Minute), 2
		in := store.Intended{Session: "s1", Proof: w.proof(), Leases: []store.Lease{login, l}, Batch: "batch", Limit: 1, Entries: []store.Entry{entry("lease.intended", "s1", "l1")}}
		w.wantErr("Intend", w.s.Intend(w.ctx, t0, in), nil)
		login.Session = "s1"
		l.Session, l.Batch = "s1", "batch"
		got, err := w.s.Leases(w.ctx, "s1")
		w.wantErr("Leases", err, nil)
		w.same("leases", []store.Lease{login, l}, got)
		w.same("lease", l, w.get("l1"))
		_, err = w.s.Lease(w.ctx, "nothing")
		w.wantErr("Lease(nothing)", err, store.ErrNotFound)
		got, err = w.s.Leases(w.ctx, "nobody")
		if err != nil || len(got) != 0 {
			w.Errorf("Leases(nobody) = %v, %v", got, err)
		}
		w.wantEvents("session.created", "lease.intended")
	},

	"IntendIsAllOrNone": func(w *world) {
		w.session("s1")
		w.session("ended")
		w.end(t0, "ended", "w")
		w.lease("s1", "taken", store.Active)
		if err := w.s.UseProof(w.ctx, t0, store.Proof{Thumbprint: "k", JTI: "used", Expires: at(time.Minute)}); err != nil {
			w.Fatal(err)
		}
		events := w.events()
		good := func() store.Intended {
			return store.Intended{
				Session: "s1", Proof: w.proof(), Leases: []store.Lease{newLease("n1"), newLease("n2")}, Limit: 100,
				Entries: []store.Entry{entry("lease.intended", "s1", "n1")},
			}
		}
		other := newLease("n2")
		other.Session = "s2"
		tests := []struct {
			name   string
			now    time.Time
			change func(*store.Intended)
			want   error // nil: any
		}{
			{"no session", t0, func(in *store.Intended) { in.Session = "nobody" }, store.ErrNotFound},
			{"ended session", t0, func(in *store.Intended) { in.Session = "ended" }, store.ErrEnded},
			{"session past its deadline", at(3 * time.Minute), func(*store.Intended) {}, store.ErrEnded},
			{"used proof", t0, func(in *store.Intended) { in.Proof = store.Proof{Thumbprint: "k", JTI: "used"} }, store.ErrProofReplayed},
			{"half a proof", t0, func(in *store.Intended) { in.Proof.JTI = "" }, nil},
			{"limit", t0, func(in *store.Intended) { in.Limit = 2 }, store.ErrLimit},
			{"an id that exists", t0, func(in *store.Intended) { in.Leases[1].ID = "taken" }, nil},
			{"one id twice", t0, func(in *store.Intended) { in.Leases[1].ID = "n1" }, nil},
			{"no id", t0, func(in *store.Intended) { in.Leases[1].ID = "" }, nil},
			{"no provider", t0, func(in *store.Intended) { in.Leases[1].Provider = "" }, nil},
			{"another session's lease", t0, func(in *store.Intended) { in.Leases[1] = other }, nil},
			{"replaced before it begins", t0, func(in *store.Intended) { in.Leases[1].ReplacedBy = "n1" }, nil},
			{"disclosed without an entry of its own", t0, func(in *store.Intended) { in.Leases[1].State, in.Leases[1].NextAt = store.Disclosed, time.Time{} }, nil},
			{"disclosed with work left", t0, func(in *store.Intended) { in.Leases[0].State = store.Disclosed }, nil},
			{"replaces what isn't there", t0, func(in *store.Intended) { in.Replaces = []string{"nothing"} }, store.ErrConflict},
			{"already active", t0, func(in *store.Intended) { in.Leases[1].State = store.Active }, nil},
			{"a crash that nobody would notice", t0, func(in *store.Intended) { in.Leases[1].NextAt = time.Time{} }, nil},
			{"entry of two lines", t0, func(in *store.Intended) { in.Entries[0].Body = []byte("{\n}") }, nil},
		}
		for _, tt := range tests {
			in := good()
			tt.change(&in)
			err := w.s.Intend(w.ctx, tt.now, in)
			if err == nil {
				w.Errorf("%s: Intend = nil, want an error", tt.name)
			} else if tt.want != nil {
				w.wantErr(tt.name, err, tt.want)
			}
			left, err := w.s.Leases(w.ctx, "s1")
			if err != nil || len(left) != 1 {
				w.Fatalf("%s: %d leases, %v, want none of them made", tt.name, len(left), err)
			}
		}
		w.wantEvents(events...)
		in := good()
		in.Limit = 2
		w.wantErr("refused", w.s.Intend(w.ctx, t0, in), store.ErrLimit)
		in.Limit = 3
		w.wantErr("the same within the limit, with the same proof", w.s.Intend(w.ctx, t0, in), nil)
		in = store.Intended{Session: "s1", Leases: []store.Lease{newLease("n3")}, Limit: 100}
		w.wantErr("a proof that was counted before", w.s.Intend(w.ctx, t0, in), nil)
	},

	"LeaseLimitCountsWhatIsHeld": func(w *world) {
		w.session("s1")
		for _, s := range []store.State{store.Revoked, store.Expired, store.Disclosed, store.Void} {
			w.lease("s1", "done-"+string(s), s)
		}
		login := newLease("login")
		login.IsLogin = true
		w.leaseLike("s1", login, store.Active)
		held := []store.State{store.Intent, store.Issuing, store.Active, store.Revoking, store.Expiring, store.Irrevocable}
		for _, s := range held {
			w.lease("s1", "held-"+string(s), s)
		}
		second := newLease("login-2")
		second.IsLogin = true
		in := store.Intended{Session: "s1", Proof: w.proof(), Leases: []store.Lease{newLease("n1"), second}, Limit: len(held)}
		w.wantErr("one too many", w.s.Intend(w.ctx, t0, in), store.ErrLimit)
		in.Limit++
		w.wantErr("exactly as many", w.s.Intend(w.ctx, t0, in), nil)
	},

	"RepeatedRequestReplacesItsLeases": func(w *world) {
		w.session("s1")
		intend := func(batch string, limit int, leases ...store.Lease) error {
			return w.s.Intend(w.ctx, t0, store.Intended{Session: "s1", Proof: w.proof(), Leases: leases, Batch: batch, Limit: limit})
		}
		login := newLease("login")
		login.IsLogin = true
		expires := newLease("expires")
		expires.Revocability = "expires"
		w.wantErr("the request", intend("b", 4, login, newLease("active"), newLease("intent"), newLease("issuing"), expires), nil)
		w.wantErr("another", intend("other", 5, newLease("elsewhere")), nil)
		for _, id := range []string{"login", "active", "issuing", "expires", "elsewhere"} {
			w.advance(nil, store.Change{Lease: id, From: []store.State{store.Intent}, To: store.Issuing, NextAt: at(time.Minute)})
			if id != "issuing" {
				w.advance(nil, store.Change{Lease: id, From: []store.State{store.Issuing}, To: store.Active, NextAt: at(time.Minute), Entries: []store.Entry{entry("lease.issued", "s1", id)}})
			}
		}
		w.wantErr("beyond the limit", intend("b", 2, newLease("again")), store.ErrLimit)
		w.wantState("active", "active", "intent", "intent")
		// What stays: the one that is under way, and the other request's.
		w.wantErr("the request again", intend("b", 3, newLease("again")), nil)
		w.wantState("login", "active", "active", "revoking", "intent", "void", "issuing", "issuing", "expires", "expiring", "elsewhere", "active", "again", "intent")
		w.same("due now", []string{"active"}, ids(w.claim(t0, "w", 10, 10)))
		// The replaced ones count until they are gone: repeating isn't a way
		// around the limit.
		w.wantErr("once more", intend("b", 4, newLease("again-2")), store.ErrLimit)
		w.wantErr("once more", intend("b", 5, newLease("again-2")), nil)
		w.wantErr("without a key", intend("", 7, newLease("plain")), nil)
		w.wantErr("without a key again", intend("", 7, newLease("plain-2")), nil)
		w.wantState("plain", "intent")
	},

	"AdvanceReplacesWhatItNames": func(w *world) {
		w.session("s1")
		w.lease("s1", "l1", store.Issuing)
		before := w.get("l1")
		yes, no := true, false
		w.advance(nil, store.Change{
			Lease: "l1", From: []store.State{store.Intent, store.Issuing}, To: store.Active, Handle: []byte("sealed"), Revocability: "expires", Renewable: &yes,
			ExpiresAt: at(20 * time.Minute), EndsAt: at(30 * time.Minute), DiesBy: at(40 * time.Minute), NextAt: at(5 * time.Minute), Attempts: 3,
			Entries: []store.Entry{entry("lease.issued", "s1", "l1"), entry("lease.noted", "s1", "l1")}, ElseEntries: []store.Entry{entry("lease.never", "s1", "l1")},
		})
		want := before
		want.State, want.Handle, want.Revocability, want.Renewable = store.Active, []byte("sealed"), "expires", true
		want.ExpiresAt, want.EndsAt, want.DiesBy, want.NextAt, want.Attempts = at(20*time.Minute), at(30*time.Minute), at(40*time.Minute), at(5*time.Minute), 3
		w.same("all set", want, w.get("l1"))
		w.wantEvents("session.created", "lease.issuing", "lease.issued", "lease.noted")

		w.advance(nil, store.Change{Lease: "l1", From: []store.State{store.Active}, To: store.Active})
		want.NextAt, want.Attempts = time.Time{}, 0
		w.same("nothing named", want, w.get("l1"))
		w.advance(nil, store.Change{Lease: "l1", From: []store.State{store.Active}, To: store.Active, Renewable: &no})
		want.Renewable = false
		w.same("no longer renewable", want, w.get("l1"))
		if next, err := w.s.NextDue(w.ctx); err != nil || !next.Equal(at(3*time.Minute)) {
			w.Errorf("NextDue() = %v, %v, want the session's deadline alone", next, err)
		}
	},

	"AdvanceStartsOnlyFromWhereItMay": func(w *world) {
		w.session("s1")
		w.lease("s1", "l1", store.Issuing)
		w.advance(store.ErrConflict, store.Change{Lease: "l1", From: []store.State{store.Intent}, To: store.Revoking, Entries: []store.Entry{entry("lease.never", "s1", "l1")}})
		w.advance(store.ErrConflict, store.Change{Lease: "l1", To: store.Revoking})
		w.advance(store.ErrNotFound, store.Change{Lease: "nothing", From: []store.State{store.Intent}, To: store.Revoking, Entries: []store.Entry{entry("lease.never", "s1", "l1")}})
		w.wantState("l1", "issuing")
		w.wantEvents("session.created", "lease.issuing")
	},

	"TerminalIsFinal": func(w *world) {
		w.session("s1")
		all := []store.State{store.Intent, store.Issuing, store.Active, store.Revoking, store.Expiring, store.Irrevocable, store.Revoked, store.Expired, store.Disclosed, store.Void}
		for _, s := range all {
			if !s.Terminal() {
				continue
			}
			id := string(s)
			w.lease("s1", id, s)
			if got := w.get(id); !got.NextAt.IsZero() {
				w.Errorf("work on a lease that is %s is due at %v", s, got.NextAt)
			}
			for _, to := range all[1:] {
				w.advance(store.ErrConflict, store.Change{Lease: id, From: all, To: to, NextAt: at(time.Second), Entries: []store.Entry{entry("lease.never", "s1", id)}})
			}
			w.wantState(id, id)
		}
		w.end(t0, "s1", "w")
		w.same("work", []string{}, ids(w.claim(at(24*time.Hour), "w", 100, 100)))
		if slices.Contains(w.events(), "lease.never") {
			w.Error("a change that wasn't made was recorded")
		}
	},

	"P3NothingIsHandedOutUnrecorded": func(w *world) {
		w.session("s1")
		w.lease("s1", "l1", store.Issuing)
		for _, to := range []store.State{store.Active, store.Disclosed} {
			if _, err := w.s.Advance(w.ctx, t0, []store.Change{{Lease: "l1", From: []store.State{store.Issuing}, To: to}}); err == nil {
				w.Errorf("Advance to %s without an entry = nil, want an error", to)
			}
			ch := store.Change{Lease: "l1", From: []store.State{store.Issuing}, To: to, Entries: []store.Entry{{Body: []byte("two\nlines")}}}
			if got, err := w.s.Advance(w.ctx, t0, []store.Change{ch}); err == nil && got[0] == nil {
				w.Errorf("Advance to %s with an entry that can't be written = nil, want an error", to)
			}
		}
		for _, to := range []store.State{store.Intent, "renewing", ""} {
			if _, err := w.s.Advance(w.ctx, t0, []store.Change{{Lease: "l1", From: []store.State{store.Issuing}, To: to}}); err == nil {
				w.Errorf("Advance to %q = nil, want an error", to)
			}
		}
		ch := store.Change{Lease: "l1", From: []store.State{store.Issuing}, To: store.Revoking, NeedsLive: true, Else: store.Active}
		if _, err := w.s.Advance(w.ctx, t0, []store.Change{ch}); err == nil {
			w.Error("Advance to Active as the way out of an ended session = nil, want an error")
		}
		w.wantState("l1", "issuing")
	},

	"P5ActiveNeedsALiveSession": func(w *world) {
		w.session("s1")
		late := at(3 * time.Minute) // the deadline has come, nobody has noticed
		for i, tt := range []struct {
			to, otherwise, want store.State
			needsLive           bool
			result              error
			due                 time.Time
		}{
			{store.Active, store.Revoking, store.Revoking, false, store.ErrEnded, late},
			{store.Active, store.Expiring, store.Expiring, false, store.ErrEnded, late},
			{store.Active, store.Void, store.Void, false, store.ErrEnded, time.Time{}},
			{store.Active, "", store.Issuing, false, store.ErrEnded, at(10 * time.Minute)},
			{store.Disclosed, store.Void, store.Void, true, store.ErrEnded, time.Time{}},
			{store.Disclosed, store.Void, store.Disclosed, false, nil, time.Time{}},
			{store.Irrevocable, store.Revoked, store.Revoked, true, store.ErrEnded, time.Time{}},
			{store.Irrevocable, store.Revoked, store.Irrevocable, false, nil, at(20 * time.Minute)},
		} {
			id := fmt.Sprint("l", i)
			w.lease("s1", id, store.Issuing)
			w.advanceAt(late, tt.result, store.Change{
				Lease: id, From: []store.State{store.Issuing}, To: tt.to, Else: tt.otherwise, NeedsLive: tt.needsLive, NextAt: at(20 * time.Minute),
				Entries: []store.Entry{entry("to", "s1", id)}, ElseEntries: []store.Entry{entry("else", "s1", id)},
			})
			got := w.get(id)
			if got.State != tt.want || !got.NextAt.Equal(tt.due) {
				w.Errorf("case %d: %s due %v, want %s due %v", i, got.State, got.NextAt, tt.want, tt.due)
			}
			told, err := w.s.EntriesAbout(w.ctx, id, 10)
			w.wantErr("EntriesAbout", err, nil)
			want := "to"
			switch {
			case tt.want == store.Issuing:
				want = "lease.issuing" // nothing new
			case tt.result != nil:
				want = "else"
			}
			if got := told[len(told)-1].Event; got != want {
				w.Errorf("case %d: the last entry is %q, want %q", i, got, want)
			}
		}
	},

	"ChangesOfOneCallStandAlone": func(w *world) {
		w.session("s1")
		w.session("ended")
		w.lease("s1", "a", store.Issuing)
		w.lease("s1", "b", store.Issuing)
		w.lease("ended", "c", store.Issuing)
		w.lease("s1", "d", store.Revoked)
		w.end(t0, "ended", "w")
		active := func(id string) store.Change {
			return store.Change{Lease: id, From: []store.State{store.Issuing}, To: store.Active, Else: store.Revoking, Entries: []store.Entry{entry("lease.issued", "s1", id)}}
		}
		got, err := w.s.Advance(w.ctx, t0, []store.Change{active("a"), active("nothing"), active("c"), active("d"), active("b"), active("a")})
		w.wantErr("Advance", err, nil)
		want := []error{nil, store.ErrNotFound, store.ErrEnded, store.ErrConflict, nil, store.ErrConflict}
		if len(got) != len(want) {
			w.Fatalf("%d results, want %d", len(got), len(want))
		}
		for i := range want {
			w.wantErr(fmt.Sprint("change ", i), got[i], want[i])
		}
		w.wantState("a", "active", "b", "active", "c", "revoking", "d", "revoked")
	},
}
