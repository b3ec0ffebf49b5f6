package storetest

import (
	"fmt"
	"slices"
	"time"

	"github.com/runenv/action/broker/store"
)

// withLeases is a new session whose leases begin with it: a login, one made
// under it, one that needs none, and a stored value that is handed out.
func withLeases(id string) store.NewSession {
	n := newSession(id)
	login, under, alone, stored := newLease("login-"+id), newLease("under-"+id), newLease("alone-"+id), newLease("stored-"+id)
	login.IsLogin, login.State = true, store.Issuing
	under.Login = login.ID
	alone.State, alone.Session = store.Issuing, id
	stored.State, stored.Revocability, stored.NextAt, stored.DiesBy = store.Disclosed, "static", time.Time{}, time.Time{}
	n.Leases = []store.Lease{login, under, alone, stored}
	n.Entries = append(n.Entries, entry("lease.disclosed", id, stored.ID))
	return n
}

var beginTests = map[string]func(*world){
	"P3LeasesBeginWithTheirSessionInOneStep": func(w *world) {
		n := withLeases("s1")
		created, err := w.s.CreateSession(w.ctx, t0, n)
		w.wantErr("CreateSession", err, nil)
		w.same("created", store.Created{}, created)
		w.wantEvents("session.created", "lease.disclosed")
		rows, err := w.s.Leases(w.ctx, "s1")
		w.wantErr("Leases", err, nil)
		for i := range n.Leases {
			n.Leases[i].Session = "s1"
		}
		w.same("leases", n.Leases, rows)
		// They go the way of all leases from there.
		w.advance(nil, store.Change{
			Lease: "login-s1", From: []store.State{store.Issuing}, To: store.Active, NextAt: at(10 * time.Minute), NeedsLive: true,
			Entries: []store.Entry{entry("login.issued", "s1", "login-s1")},
		})
		w.end(t0, "s1", "w")
		// What is asked of a provider at this moment is looked at when its time comes.
		w.wantState("login-s1", "revoking", "under-s1", "void", "alone-s1", "issuing", "stored-s1", "disclosed")
		w.same("what a crash leaves is noticed", []string{"alone-s1", "login-s1"}, slices.Sorted(slices.Values(ids(w.claim(at(time.Minute), "x", 10, 10)))))
	},

	"P3RefusedSessionLeavesNoLease": func(w *world) {
		w.session("s1")
		for name, tt := range map[string]struct {
			change func(*store.NewSession)
			want   error
		}{
			"beyond the limit":           {func(n *store.NewSession) { n.Limit = 1 }, store.ErrLimit},
			"a token that was used":      {func(n *store.NewSession) { n.Token.JTI = "token-s1" }, store.ErrReplayed},
			"a proof that was used":      {func(n *store.NewSession) { n.Proof = newSession("s1").Proof }, store.ErrProofReplayed},
			"an id that's a session's":   {func(n *store.NewSession) { *n = withLeases("s1"); n.Token.JTI, n.Proof.JTI = "fresh", "fresh" }, nil},
			"an id that's a lease's too": {func(n *store.NewSession) { n.Leases[1].ID = n.Leases[2].ID }, nil},
		} {
			n := withLeases("s2")
			tt.change(&n)
			_, err := w.s.CreateSession(w.ctx, t0, n)
			if err == nil {
				w.Errorf("%s: CreateSession = nil, want an error", name)
			}
			if tt.want != nil {
				w.wantErr(name, err, tt.want)
			}
			for _, l := range n.Leases {
				_, err := w.s.Lease(w.ctx, l.ID)
				w.wantErr(fmt.Sprintf("%s: Lease(%s)", name, l.ID), err, store.ErrNotFound)
			}
		}
		_, err := w.s.Session(w.ctx, "s2")
		w.wantErr("Session(s2)", err, store.ErrNotFound)
		w.wantEvents("session.created")
		_, err = w.s.CreateSession(w.ctx, t0, withLeases("s2"))
		w.wantErr("CreateSession with nothing against it", err, nil)
	},

	"HalfALeaseDoesntBeginWithASession": func(w *world) {
		for name, change := range map[string]func(*store.NewSession){
			"no id":                   func(n *store.NewSession) { n.Leases[0].ID = "" },
			"no provider":             func(n *store.NewSession) { n.Leases[1].Provider = "" },
			"of another session":      func(n *store.NewSession) { n.Leases[2].Session = "s2" },
			"replaced":                func(n *store.NewSession) { n.Leases[2].ReplacedBy = "x" },
			"active":                  func(n *store.NewSession) { n.Leases[2].State = store.Active },
			"revoked":                 func(n *store.NewSession) { n.Leases[2].State = store.Revoked },
			"never noticed":           func(n *store.NewSession) { n.Leases[2].NextAt = time.Time{} },
			"disclosed with work":     func(n *store.NewSession) { n.Leases[3].NextAt = at(time.Minute) },
			"disclosed, not recorded": func(n *store.NewSession) { n.Entries = n.Entries[:1] },
		} {
			n := withLeases("s1")
			change(&n)
			if _, err := w.s.CreateSession(w.ctx, t0, n); err == nil {
				w.Errorf("%s: CreateSession = nil, want an error", name)
			}
			_, err := w.s.Session(w.ctx, "s1")
			w.wantErr(name+": Session", err, store.ErrNotFound)
		}
		w.wantEvents()
	},

	"T06RetryEndsWhatBeganWithTheFirst": func(w *world) {
		for _, sameJob := range []bool{false, true} {
			name := func(s string) string { return fmt.Sprint(s, "-", sameJob) }
			first := withLeases(name("first"))
			first.Session.Job = name("job")
			first.Token.SameJob, first.Limit = sameJob, 1
			_, err := w.s.CreateSession(w.ctx, t0, first)
			w.wantErr("the first", err, nil)

			retry := withLeases(name("retry"))
			retry.Session.Job = first.Session.Job
			retry.Token, retry.Limit = first.Token, 1
			_, err = w.s.CreateSession(w.ctx, t0, retry)
			want := store.ErrReplayed
			if sameJob {
				want = store.ErrLimit // by another key it's another session of the job
			}
			w.wantErr("by another key", err, want)
			w.wantState(first.Leases[2].ID, "issuing")

			retry.Session.Thumbprint, retry.Proof.Thumbprint = first.Session.Thumbprint, first.Proof.Thumbprint
			created, err := w.s.CreateSession(w.ctx, at(time.Second), retry)
			w.wantErr("the retry", err, nil)
			w.same("ended", store.Created{Ended: name("first")}, created)
			w.wantState(first.Leases[1].ID, "void", retry.Leases[1].ID, "intent")
			w.advance(store.ErrEnded, store.Change{
				Lease: first.Leases[2].ID, From: []store.State{store.Issuing}, To: store.Active, NeedsLive: true, Else: store.Revoking, NextAt: t0,
				Entries: []store.Entry{entry("lease.issued", name("first"), first.Leases[2].ID)}, ElseEntries: []store.Entry{entry("lease.revoking", name("first"), first.Leases[2].ID)},
			})
			w.wantState(first.Leases[2].ID, "revoking", retry.Leases[2].ID, "issuing")
		}
	},

	// What another process of the job did meanwhile isn't ended by a retry that
	// comes late.
	"T06LateRetryOfASameJobEndsNoOther": func(w *world) {
		use := func(id, key string) string {
			n := newSession(id)
			n.Token.JTI, n.Token.SameJob, n.Token.Body = "shared", true, []byte("body")
			n.Session.Thumbprint, n.Proof.Thumbprint = key, key
			created, err := w.s.CreateSession(w.ctx, t0, n)
			w.wantErr("CreateSession "+id, err, nil)
			return created.Ended
		}
		w.same("a ends", "", use("a1", "a"))
		w.same("b ends", "", use("b1", "b"))
		w.same("a, late, ends", "", use("a2", "a"))
		w.same("a, once more, ends", "a2", use("a3", "a"))
		s, err := w.s.Session(w.ctx, "b1")
		if err != nil || !s.EndedAt.IsZero() {
			w.Errorf("b1 = %+v, %v, want it live", s, err)
		}
	},
}
