package storetest

import (
	"fmt"
	"time"

	"github.com/runenv/action/broker/store"
)

var sessionTests = map[string]func(*world){
	"SessionComesBackWhole": func(w *world) {
		want := w.session("s1")
		got, err := w.s.Session(w.ctx, "s1")
		w.wantErr("Session(s1)", err, nil)
		w.same("session", want, got)
		got, err = w.s.SessionByEndHash(w.ctx, []byte("end-s1"))
		w.wantErr("SessionByEndHash", err, nil)
		w.same("session by end hash", want, got)
		w.wantEvents("session.created")
		_, err = w.s.Session(w.ctx, "s2")
		w.wantErr("Session(s2)", err, store.ErrNotFound)
		_, err = w.s.Session(w.ctx, "")
		w.wantErr("Session of no id", err, store.ErrNotFound)
		_, err = w.s.SessionByEndHash(w.ctx, []byte("access-s1"))
		w.wantErr("SessionByEndHash of the access token", err, store.ErrNotFound)
		_, err = w.s.SessionByEndHash(w.ctx, nil)
		w.wantErr("SessionByEndHash of nothing", err, store.ErrNotFound)
	},

	"TimesAreKeptToTheMicrosecondRoundedDown": func(w *world) {
		n := newSession("s1")
		n.Session.Deadline = n.Session.Deadline.Add(999 * time.Nanosecond)
		n.Session.CreatedAt = time.Time{}
		_, err := w.s.CreateSession(w.ctx, at(999*time.Nanosecond), n)
		w.wantErr("CreateSession", err, nil)
		got, err := w.s.Session(w.ctx, "s1")
		w.wantErr("Session", err, nil)
		if !got.Deadline.Equal(at(3*time.Minute)) || !got.CreatedAt.Equal(t0) {
			w.Errorf("deadline %v, created %v, want %v and %v", got.Deadline, got.CreatedAt, at(3*time.Minute), t0)
		}
	},

	"T06TokenAndProofCountOnce": func(w *world) {
		w.session("s1")
		tests := []struct {
			name   string
			change func(*store.NewSession)
		}{
			{"another key", func(n *store.NewSession) { n.Session.Thumbprint, n.Proof.Thumbprint = "thief", "thief" }},
			{"another body", func(n *store.NewSession) { n.Token.Body = []byte("other") }},
			{"no body", func(n *store.NewSession) { n.Token.Body = nil }},
			{"said to be reusable only now", func(n *store.NewSession) { n.Token.SameJob = true }},
			{"the proof again", func(n *store.NewSession) { n.Proof.JTI = "proof-s1" }},
			{"the proof again with a fresh token", func(n *store.NewSession) { n.Proof.JTI, n.Token.JTI = "proof-s1", "fresh" }},
		}
		for i, tt := range tests {
			n := newSession("s1")
			n.Session.ID = fmt.Sprint("again-", i)
			n.Proof.JTI = fmt.Sprint("fresh-", i)
			tt.change(&n)
			_, err := w.s.CreateSession(w.ctx, t0, n)
			w.wantErr(tt.name, err, store.ErrReplayed)
			_, err = w.s.Session(w.ctx, n.Session.ID)
			w.wantErr(tt.name+": the session", err, store.ErrNotFound)
		}
		first, err := w.s.Session(w.ctx, "s1")
		if err != nil || !first.EndedAt.IsZero() {
			w.Errorf("the first session was ended by replays: %+v, %v", first, err)
		}
		w.wantEvents("session.created")

		other := newSession("s1")
		other.Session.ID, other.Token.Issuer, other.Proof.JTI = "s2", "gitlab", "fresh"
		_, err = w.s.CreateSession(w.ctx, t0, other)
		w.wantErr("the same jti of another issuer", err, nil)
	},

	"RefusedExchangeUsesNothingUp": func(w *world) {
		n := newSession("s1")
		n.Limit = 0
		_, err := w.s.CreateSession(w.ctx, t0, n)
		w.wantErr("CreateSession beyond the limit", err, store.ErrLimit)
		w.wantEvents()
		n.Limit = 1
		_, err = w.s.CreateSession(w.ctx, t0, n)
		w.wantErr("CreateSession within it, with the same token and proof", err, nil)
	},

	"T06RetryAfterALostReplyEndsTheFirst": func(w *world) {
		w.session("s1")
		w.lease("s1", "active", store.Active)
		w.lease("s1", "intent", store.Intent)
		n := newSession("s1")
		n.Limit = 1 // the first one makes room
		n.Session.ID, n.Proof.JTI = "s2", "fresh"
		n.Entries = []store.Entry{entry("session.created", "s2", "")}
		created, err := w.s.CreateSession(w.ctx, at(time.Second), n)
		w.wantErr("CreateSession", err, nil)
		w.same("created", store.Created{Ended: "s1"}, created)
		first, err := w.s.Session(w.ctx, "s1")
		if err != nil || !first.EndedAt.Equal(at(time.Second)) || first.EndReason == "" {
			w.Errorf("the first session is %+v, %v, want it ended, with a reason", first, err)
		}
		w.wantState("active", "revoking", "intent", "void")
		w.same("what is due", []string{"active"}, ids(w.claim(at(time.Second), "w", 10, 10)))

		told, err := w.s.EntriesAbout(w.ctx, "s1", 100)
		w.wantErr("EntriesAbout", err, nil)
		last := told[len(told)-1]
		want := entry("session.ended", "s1", "")
		w.same("the entry about the end", want, last.Entry)

		// The reply may be lost again.
		n.Session.ID, n.Proof.JTI = "s3", "fresh-2"
		created, err = w.s.CreateSession(w.ctx, at(2*time.Second), n)
		w.wantErr("CreateSession once more", err, nil)
		w.same("created", store.Created{Ended: "s2"}, created)

		// A session that ended meanwhile isn't ended again.
		w.end(at(3*time.Second), "s3", "w")
		n.Session.ID, n.Proof.JTI = "s4", "fresh-3"
		created, err = w.s.CreateSession(w.ctx, at(4*time.Second), n)
		w.wantErr("CreateSession after an end", err, nil)
		w.same("created", store.Created{}, created)

		n.Session.ID, n.Proof.JTI = "s5", "fresh-4"
		_, err = w.s.CreateSession(w.ctx, n.Token.Expires, n)
		w.wantErr("CreateSession when the token has expired", err, store.ErrReplayed)
	},

	"T06SameJobReusesItsToken": func(w *world) {
		use := func(i int, change func(*store.NewSession)) error {
			n := newSession(fmt.Sprint("s", i))
			n.Token.JTI, n.Token.SameJob, n.Limit = "shared", true, 2
			change(&n)
			created, err := w.s.CreateSession(w.ctx, t0, n)
			if created.Ended != "" {
				w.Errorf("use %d ended %s", i, created.Ended)
			}
			return err
		}
		none := func(*store.NewSession) {}
		w.wantErr("the first use", use(1, none), nil)
		w.wantErr("another job", use(2, func(n *store.NewSession) { n.Session.Job = "job-2" }), store.ErrReplayed)
		w.wantErr("no longer reusable", use(3, func(n *store.NewSession) { n.Token.SameJob = false }), store.ErrReplayed)
		w.wantErr("the second use", use(4, none), nil)
		w.wantErr("the third, beyond the limit", use(5, none), store.ErrLimit)
		w.end(t0, "s1", "w")
		w.wantErr("after an end", use(6, none), nil)
		n := newSession("s7")
		n.Token.JTI, n.Token.SameJob = "shared", true
		_, err := w.s.CreateSession(w.ctx, n.Token.Expires, n)
		w.wantErr("after the token's end", err, store.ErrReplayed)
	},

	"SessionLimitIsPerIssuerJobAndRole": func(w *world) {
		try := func(id string, change func(*store.NewSession)) error {
			n := newSession(id)
			n.Limit = 1
			change(&n)
			_, err := w.s.CreateSession(w.ctx, t0, n)
			return err
		}
		w.wantErr("the first", try("a", func(*store.NewSession) {}), nil)
		w.wantErr("the same job and role", try("b", func(*store.NewSession) {}), store.ErrLimit)
		w.wantErr("another issuer", try("c", func(n *store.NewSession) { n.Session.Issuer = "gitlab" }), nil)
		w.wantErr("another job", try("d", func(n *store.NewSession) { n.Session.Job = "job-2" }), nil)
		w.wantErr("another role", try("e", func(n *store.NewSession) { n.Session.Role = "test" }), nil)
		n := newSession("f")
		n.Limit, n.Session.Deadline = 1, at(6*time.Minute)
		_, err := w.s.CreateSession(w.ctx, at(3*time.Minute), n)
		w.wantErr("when the first has passed its deadline", err, nil)
		w.end(at(3*time.Minute), "f", "w")
		n = newSession("g")
		n.Limit, n.Session.Deadline = 1, at(6*time.Minute)
		_, err = w.s.CreateSession(w.ctx, at(3*time.Minute), n)
		w.wantErr("when the second has ended", err, nil)
	},

	"HalfASessionIsRefused": func(w *world) {
		for name, change := range map[string]func(*store.NewSession){
			"no id":                      func(n *store.NewSession) { n.Session.ID = "" },
			"no token":                   func(n *store.NewSession) { n.Token.JTI = "" },
			"no proof":                   func(n *store.NewSession) { n.Proof = store.Proof{} },
			"no heartbeat timeout":       func(n *store.NewSession) { n.Session.HeartbeatTimeout = 0 },
			"no deadline":                func(n *store.NewSession) { n.Session.Deadline = time.Time{} },
			"deadline past the hard end": func(n *store.NewSession) { n.Session.Deadline = at(2 * time.Hour) },
			"entry of two lines":         func(n *store.NewSession) { n.Entries = []store.Entry{{Body: []byte("{\n}")}} },
			"empty entry":                func(n *store.NewSession) { n.Entries = []store.Entry{{}} },
		} {
			n := newSession("s1")
			change(&n)
			if _, err := w.s.CreateSession(w.ctx, t0, n); err == nil {
				w.Errorf("%s: CreateSession = nil, want an error", name)
			}
			if _, err := w.s.CreateSession(w.ctx, time.Time{}, newSession("s1")); err == nil {
				w.Errorf("CreateSession at no time = nil, want an error")
			}
			if _, err := w.s.Session(w.ctx, "s1"); err == nil {
				w.Fatalf("%s: the session exists", name)
			}
		}
		w.wantEvents()
	},

	"T24HeartbeatGivesOneTimeoutWithinTheHardEnd": func(w *world) {
		w.session("s1")
		beat := func(now time.Duration, want time.Duration, wantErr error) {
			w.Helper()
			got, err := w.s.Heartbeat(w.ctx, at(now), "s1")
			w.wantErr(fmt.Sprint("Heartbeat at ", now), err, wantErr)
			if wantErr == nil && !got.Equal(at(want)) {
				w.Errorf("Heartbeat at %v gives life until %v, want %v", now, got.Sub(t0), want)
			}
			s, err := w.s.Session(w.ctx, "s1")
			if err != nil || !s.Deadline.Equal(at(want)) || !s.HardEnd.Equal(at(time.Hour)) {
				w.Errorf("after the heartbeat at %v: %+v, %v, want deadline %v and the hard end as it was", now, s, err, want)
			}
		}
		beat(time.Minute, 4*time.Minute, nil)
		beat(0, 3*time.Minute, nil) // the clock ran backwards: the earlier end is the safe one
		for m := time.Duration(2); m < 60; m += 2 {
			beat(m*time.Minute, min(m+3, 60)*time.Minute, nil)
		}
		beat(59*time.Minute, time.Hour, nil)
		beat(time.Hour, time.Hour, store.ErrEnded)
		_, err := w.s.Heartbeat(w.ctx, t0, "nobody")
		w.wantErr("Heartbeat(nobody)", err, store.ErrNotFound)

		w.session("s2")
		w.end(t0, "s2", "w")
		_, err = w.s.Heartbeat(w.ctx, t0, "s2")
		w.wantErr("Heartbeat of an ended session", err, store.ErrEnded)
	},

	"HastenOnlyLowers": func(w *world) {
		w.session("s1")
		hasten := func(now, deadline, want time.Duration, wantErr error) {
			w.Helper()
			w.wantErr("Hasten", w.s.Hasten(w.ctx, at(now), "s1", at(deadline)), wantErr)
			s, err := w.s.Session(w.ctx, "s1")
			if err != nil || !s.Deadline.Equal(at(want)) {
				w.Errorf("deadline %v, %v, want %v", s.Deadline.Sub(t0), err, want)
			}
		}
		hasten(0, 10*time.Minute, 3*time.Minute, nil)
		hasten(0, 30*time.Second, 30*time.Second, nil)
		_, err := w.s.Heartbeat(w.ctx, at(time.Second), "s1")
		w.wantErr("Heartbeat", err, nil)
		hasten(time.Second, 40*time.Second, 40*time.Second, nil)
		hasten(40*time.Second, 30*time.Second, 40*time.Second, store.ErrEnded)
		w.wantErr("Hasten(nobody)", w.s.Hasten(w.ctx, t0, "nobody", t0), store.ErrNotFound)
	},

	"DueSessionsAreThoseThatPassedTheirDeadline": func(w *world) {
		for i, d := range []time.Duration{5, 2, 4, 3} {
			n := newSession(fmt.Sprint("s", i))
			n.Session.Deadline = at(d * time.Minute)
			_, err := w.s.CreateSession(w.ctx, t0, n)
			w.wantErr("CreateSession", err, nil)
		}
		w.end(t0, "s3", "w")
		due := func(d time.Duration, n int) []string {
			got, err := w.s.DueSessions(w.ctx, at(d), n)
			w.wantErr("DueSessions", err, nil)
			out := []string{}
			for _, s := range got {
				out = append(out, s.ID)
			}
			return out
		}
		w.same("just before", []string{}, due(2*time.Minute-time.Microsecond, 10))
		w.same("on the dot", []string{"s1"}, due(2*time.Minute, 10))
		w.same("later", []string{"s1", "s2", "s0"}, due(time.Hour, 10))
		w.same("the oldest", []string{"s1", "s2"}, due(time.Hour, 2))
		next, err := w.s.NextDue(w.ctx)
		if err != nil || !next.Equal(at(2*time.Minute)) {
			w.Errorf("NextDue() = %v, %v, want %v", next, err, at(2*time.Minute))
		}
	},

	"P5RestartGivesOneTimeoutAndNoSecond": func(w *world) {
		w.session("s1")
		w.session("ended")
		w.end(t0, "ended", "w")
		n := newSession("late")
		n.Session.HardEnd, n.Session.Deadline = at(21*time.Minute), at(3*time.Minute)
		_, err := w.s.CreateSession(w.ctx, t0, n)
		w.wantErr("CreateSession", err, nil)
		deadline := func(id string, want time.Duration) {
			w.Helper()
			s, err := w.s.Session(w.ctx, id)
			if err != nil || !s.Deadline.Equal(at(want)) {
				w.Errorf("%s has deadline %v, %v, want %v", id, s.Deadline.Sub(t0), err, want)
			}
		}
		restart := func(now time.Duration) {
			w.Helper()
			w.wantErr("Restart", w.s.Restart(w.ctx, at(now)), nil)
		}
		restart(20 * time.Minute) // long after their deadline: the broker's fault, not theirs
		deadline("s1", 23*time.Minute)
		deadline("late", 21*time.Minute)
		deadline("ended", 3*time.Minute)
		restart(22 * time.Minute)
		deadline("s1", 23*time.Minute)
		_, err = w.s.Heartbeat(w.ctx, at(22*time.Minute), "s1")
		w.wantErr("Heartbeat", err, nil)
		restart(24 * time.Minute)
		deadline("s1", 27*time.Minute)
		restart(59 * time.Minute)
		deadline("s1", 27*time.Minute)
	},

	"RestartDropsClaimsAndTakesUpWhatWasUnderWay": func(w *world) {
		w.session("s1")
		w.lease("s1", "intent", store.Intent)
		w.lease("s1", "issuing", store.Issuing)
		w.lease("s1", "active", store.Active)
		w.lease("s1", "revoking", store.Revoking)
		claimed := w.claim(at(10*time.Minute), "dead", 10, 10)
		w.same("claimed", 4, len(claimed))
		w.wantErr("Restart", w.s.Restart(w.ctx, at(20*time.Second)), nil)
		again, err := w.s.Claim(w.ctx, at(20*time.Second), "w", 10, 10, at(time.Hour))
		w.wantErr("Claim", err, nil)
		w.same("due at once", []string{"intent", "issuing"}, ids(again))
		w.same("due when it was", []string{"active", "revoking"}, ids(w.claim(at(10*time.Minute), "w", 10, 10)))
		for _, l := range claimed {
			w.advance(store.ErrConflict, store.Change{Lease: l.ID, From: []store.State{l.State}, Epoch: l.Epoch, To: store.Revoking})
		}
	},
}
