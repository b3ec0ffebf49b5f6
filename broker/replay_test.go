package broker_test

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/runenv/action/broker/api"
)

func TestT06TokenUsedTwice(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	k, thief := newKey(t), newKey(t)
	token := r.jobToken()
	first := r.opened(k, r.exchange(k, token, "prod"))
	refused := func(name string, a answer) {
		t.Helper()
		e := a.refusal()
		if !a.is(http.StatusBadRequest, api.CodeInvalidRequest) || e.Description != "the subject token isn't accepted" || e.Claims != nil {
			t.Errorf("%s: exchange = %v, want 400 invalid_request", name, a)
		}
		if got := events(r.audited(e.RequestID)); got != "session.refused(replayed)" {
			t.Errorf("%s: audit = %q", name, got)
		}
	}
	refused("another key", r.exchange(thief, token, "prod"))
	refused("another role", r.exchange(k, token, "odd"))
	body := form(token, "prod")
	body.Set("requested_token_type", api.TokenTypeAccess)
	refused("another body", r.exchangeForm(k, body.Encode()))
	if !first.row().EndedAt.IsZero() {
		t.Error("a refused replay ended the session")
	}
}

func TestT06RetryAfterLostReply(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	k := newKey(t)
	token := r.jobToken()
	first := r.opened(k, r.exchange(k, token, "prod"))
	first.lease("db")
	lines := first.watch(t.Context())
	lines.want(api.EventHello, "")

	second := r.opened(k, r.exchange(k, token, "prod"))
	if second.id == first.id || second.access == first.access || second.end == first.end {
		t.Error("the second session has something of the first")
	}
	if got := first.row().EndReason; got != "replaced" {
		t.Errorf("the first session's end reason is %q, want replaced", got)
	}
	lines.want(api.EventEnded, "replaced")
	r.until("the first session's leases are revoked", func() bool { return first.states() == "login=revoked db=revoked" && r.vault.Leases() == 0 })
	if a := first.call(http.MethodPost, api.PathHeartbeat, ""); !a.is(http.StatusUnauthorized, api.CodeSessionEnded) {
		t.Errorf("the first session's heartbeat = %v", a)
	}
	second.lease("db")
	for _, rec := range r.audited(first.id) {
		if rec.Event == "session.ended" && rec.Reason != "exchanged_again" {
			t.Errorf("audit = %+v", rec)
		}
	}
	// The token is good no longer than it says, retries included.
	r.clock.add(5*time.Minute + 31*time.Second)
	if a := r.exchange(k, token, "prod"); a.status != http.StatusBadRequest {
		t.Errorf("a retry after the token's end = %v", a)
	}
}

// GitLab mints one token for a job: it opens sessions for that job, as many as
// the role's limit says.
func TestT06SameJobWithinLimit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.gitlabToken()
	open := func() *session {
		t.Helper()
		k := newKey(t)
		return r.opened(k, r.exchange(k, token, "prod"))
	}
	first, second := open(), open()
	a := r.exchange(newKey(t), token, "prod")
	if !a.is(http.StatusForbidden, api.CodeLimitExceeded) || events(r.audited(a.refusal().RequestID)) != "session.refused(session_limit)" {
		t.Errorf("third session of a job = %v", a)
	}
	for _, s := range []*session{first, second} {
		if !s.row().EndedAt.IsZero() {
			t.Error("reuse within a job ended a session")
		}
	}
	// The limit is of the job and role.
	k := newKey(t)
	r.opened(k, r.exchange(k, token, "elsewhere"))
	r.opened(k, r.exchange(k, r.gitlabToken(map[string]any{"job_id": "30003"}), "prod"))
	// And of sessions that live.
	if a := first.call(http.MethodDelete, api.PathSession, ""); a.status != http.StatusOK {
		t.Fatal(a)
	}
	open()
}

func TestT06Race(t *testing.T) {
	t.Parallel()
	const n = 50
	race := func(r *rig, token string, keyOf func(int) key) (answers []answer) {
		answers = make([]answer, n)
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range n {
			k := keyOf(i)
			p := dpop(r.proof(k, http.MethodPost, api.PathToken, ""))
			wg.Go(func() {
				<-start
				var err error
				answers[i], err = r.try(t.Context(), http.MethodPost, api.PathToken, form(token, "prod").Encode(), header("Content-Type", formType), p)
				if err != nil {
					t.Error(err)
				}
			})
		}
		close(start)
		wg.Wait()
		return answers
	}
	count := func(answers []answer) (good int) {
		for _, a := range answers {
			switch {
			case a.status == http.StatusOK:
				good++
			case !a.is(http.StatusBadRequest, api.CodeInvalidRequest) && !a.is(http.StatusForbidden, api.CodeLimitExceeded):
				t.Errorf("exchange = %v", a)
			}
		}
		return good
	}
	live := func(r *rig) int {
		counts, err := r.sqlite.Counts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return counts["session"]
	}
	t.Run("fifty thieves", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		if good := count(race(r, r.jobToken(), func(int) key { return newKey(t) })); good != 1 || live(r) != 1 {
			t.Errorf("%d exchanges of one token, %d live sessions: want 1 and 1", good, live(r))
		}
	})
	t.Run("one client that retries", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		k := newKey(t)
		if good := count(race(r, r.jobToken(), func(int) key { return k })); good != n || live(r) != 1 {
			t.Errorf("%d exchanges by the token's key, %d live sessions: want %d and 1", good, live(r), n)
		}
	})
	t.Run("one GitLab job", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		if good := count(race(r, r.gitlabToken(), func(int) key { return newKey(t) })); good != 2 || live(r) != 2 {
			t.Errorf("%d exchanges of a job with a limit of 2, %d live sessions", good, live(r))
		}
	})
}
