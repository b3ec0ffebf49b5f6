package storetest

import (
	"context"
	"fmt"
	"time"

	"github.com/runenv/action/broker/store"
)

var upkeepTests = map[string]func(*world){
	"T06ForgetDropsNothingThatCouldStillBeReplayed": func(w *world) {
		n := newSession("s1") // the proof counts for 5 minutes, the token for 10
		w.session("s1")
		replay := func() error {
			again := newSession("s1")
			again.Session.ID, again.Session.Thumbprint = fmt.Sprint("again-", w.n), "thief"
			again.Proof = w.proof()
			_, err := w.s.CreateSession(w.ctx, t0, again)
			return err
		}
		forget := func(now time.Duration) {
			w.Helper()
			w.wantErr("Forget", w.s.Forget(w.ctx, at(now), t0, 100), nil)
		}
		forget(5*time.Minute - time.Microsecond)
		w.wantErr("the proof", w.s.UseProof(w.ctx, t0, n.Proof), store.ErrProofReplayed)
		forget(5 * time.Minute)
		w.wantErr("the proof after its end", w.s.UseProof(w.ctx, t0, n.Proof), nil)
		forget(10*time.Minute - time.Microsecond)
		w.wantErr("the token", replay(), store.ErrReplayed)
		forget(10 * time.Minute)
		w.wantErr("the token after its end", replay(), nil)
		_, err := w.s.Session(w.ctx, "s1")
		w.wantErr("the session", err, nil)
	},

	"ForgetDropsSessionsThatAreOver": func(w *world) {
		for _, id := range []string{"live", "done", "recent", "open"} {
			w.session(id)
			w.lease(id, "lease-of-"+id, store.Revoked)
		}
		w.lease("open", "irrevocable", store.Irrevocable)
		w.end(at(time.Minute), "done", "w")
		w.end(at(time.Hour), "recent", "w")
		w.end(at(time.Minute), "open", "w")
		w.wantErr("Forget", w.s.Forget(w.ctx, t0, at(time.Hour), 100), nil)
		for id, want := range map[string]error{"live": nil, "done": store.ErrNotFound, "recent": nil, "open": nil} {
			_, err := w.s.Session(w.ctx, id)
			w.wantErr("session "+id, err, want)
			_, err = w.s.Lease(w.ctx, "lease-of-"+id)
			w.wantErr("its lease", err, want)
		}
		if told, err := w.s.EntriesAbout(w.ctx, "done", 10); err != nil || len(told) == 0 {
			w.Errorf("the log forgot a session: %v, %v", told, err)
		}
	},

	"ForgetKeepsToItsBound": func(w *world) {
		for i := range 3 {
			id := fmt.Sprint("s", i)
			w.session(id)
			w.lease(id, "a-"+id, store.Void)
			w.lease(id, "b-"+id, store.Void)
			w.end(t0, id, "w")
		}
		rows := func() (n int) {
			for i := range 3 {
				id := fmt.Sprint("s", i)
				leases, err := w.s.Leases(w.ctx, id)
				w.wantErr("Leases", err, nil)
				n += len(leases)
				if _, err := w.s.Session(w.ctx, id); err == nil {
					n++
				}
			}
			return n
		}
		for left := 9; left > 0; {
			w.wantErr("Forget", w.s.Forget(w.ctx, t0.Add(-time.Hour), at(time.Hour), 2), nil)
			now := rows()
			if now >= left || left-now > 2 {
				w.Fatalf("Forget of at most 2 rows went from %d to %d", left, now)
			}
			left = now
		}
	},

	"CountsAreByState": func(w *world) {
		counts := func() map[string]int {
			got, err := w.s.Counts(w.ctx)
			w.wantErr("Counts", err, nil)
			return got
		}
		w.same("nothing", map[string]int{"session": 0}, counts())
		w.session("s1")
		w.session("s2")
		w.lease("s1", "a", store.Active)
		w.lease("s1", "b", store.Active)
		w.lease("s2", "c", store.Intent)
		w.end(t0, "s2", "w")
		w.same("counts", map[string]int{"session": 1, "active": 2, "void": 1}, counts())
	},

	"KeysAreMadeOnce": func(w *world) {
		k := func(purpose, id string) store.Key {
			return store.Key{Purpose: purpose, ID: id, Algorithm: "ed25519", Public: []byte("public-" + id), Sealed: []byte("sealed-" + id), CreatedAt: t0}
		}
		ensure := func(keys ...store.Key) []store.Key {
			got, err := w.s.EnsureKeys(w.ctx, t0, keys)
			w.wantErr("EnsureKeys", err, nil)
			return got
		}
		w.same("new", []store.Key{k("b", "1"), k("a", "2")}, ensure(k("b", "1"), k("a", "2")))
		w.same("one is there", []store.Key{k("c", "3"), k("a", "2")}, ensure(k("c", "3"), k("a", "4")))
		w.same("a purpose twice", []store.Key{k("d", "5"), k("d", "5")}, ensure(k("d", "5"), k("d", "6")))
		all, err := w.s.Keys(w.ctx)
		w.wantErr("Keys", err, nil)
		w.same("all", []store.Key{k("b", "1"), k("a", "2"), k("c", "3"), k("d", "5")}, all)
		for _, bad := range []store.Key{{ID: "x"}, {Purpose: "x"}} {
			if _, err := w.s.EnsureKeys(w.ctx, t0, []store.Key{bad}); err == nil {
				w.Errorf("EnsureKeys(%+v) = nil, want an error", bad)
			}
		}
	},

	"T24HighWaterNeverFalls": func(w *world) {
		mark := func(want time.Time) {
			w.Helper()
			got, err := w.s.HighWater(w.ctx)
			if err != nil || !got.Equal(want) {
				w.Errorf("HighWater() = %v, %v, want %v", got, err, want)
			}
		}
		mark(time.Time{})
		w.session("s1")
		mark(t0)
		w.wantErr("Record", w.s.Record(w.ctx, at(time.Minute), []store.Entry{entry("e", "", "")}), nil)
		mark(at(time.Minute))
		w.wantErr("UseProof", w.s.UseProof(w.ctx, t0.Add(-time.Hour), w.proof()), nil)
		mark(at(time.Minute))
		_, err := w.s.Heartbeat(w.ctx, at(time.Hour), "s1")
		w.wantErr("a refused heartbeat", err, store.ErrEnded)
		mark(at(time.Hour))
	},

	"UseProofCountsOncePerKey": func(w *world) {
		p := store.Proof{Thumbprint: "k", JTI: "1", Expires: at(time.Minute)}
		w.wantErr("the first use", w.s.UseProof(w.ctx, t0, p), nil)
		w.wantErr("the second", w.s.UseProof(w.ctx, t0, p), store.ErrProofReplayed)
		w.wantErr("the second, long after", w.s.UseProof(w.ctx, at(time.Hour), p), store.ErrProofReplayed)
		p.Thumbprint = "other"
		w.wantErr("another key's", w.s.UseProof(w.ctx, t0, p), nil)
		for _, bad := range []store.Proof{{JTI: "1", Expires: t0}, {Thumbprint: "k", Expires: t0}, {}} {
			if err := w.s.UseProof(w.ctx, t0, bad); err == nil {
				w.Errorf("UseProof(%+v) = nil, want an error", bad)
			}
		}
	},

	"ReadyUntilClosed": func(w *world) {
		w.wantErr("Ready", w.s.Ready(w.ctx), nil)
		gone, cancel := context.WithCancel(w.ctx)
		cancel()
		w.wantErr("Ready for nobody", w.s.Ready(gone), context.Canceled)
		_, err := w.s.CreateSession(gone, t0, newSession("s1"))
		w.wantErr("CreateSession for nobody", err, context.Canceled)
		_, err = w.s.Session(gone, "s1")
		w.wantErr("Session for nobody", err, context.Canceled)
		w.wantErr("Close", w.s.Close(), nil)
		for name, err := range map[string]error{
			"Ready":    w.s.Ready(w.ctx),
			"UseProof": w.s.UseProof(w.ctx, t0, w.proof()),
			"Session":  func() error { _, err := w.s.Session(w.ctx, "s1"); return err }(),
		} {
			if err == nil {
				w.Errorf("%s after Close = nil, want an error", name)
			}
		}
		w.wantErr("Close again", w.s.Close(), nil)
	},
}
