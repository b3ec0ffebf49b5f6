package broker_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/runenv/action/broker/api"
)

// A stream is what a session watches.
type stream struct {
	r     *rig
	lines chan api.Event // closed at its end
	close context.CancelFunc
}

func (s *session) watch(ctx context.Context) *stream {
	s.r.t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.r.base+api.PathWatch, nil)
	if err != nil {
		s.r.t.Fatal(err)
	}
	for _, o := range s.proved(http.MethodGet, api.PathWatch) {
		o(req)
	}
	resp, err := s.r.http.Do(req) //nolint:bodyclose // by the goroutine that reads it
	if err != nil {
		s.r.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/x-ndjson" {
		s.r.t.Fatalf("watch = %d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	out := &stream{s.r, make(chan api.Event, 16), cancel}
	go func() {
		defer func() { _ = resp.Body.Close() }()
		defer close(out.lines)
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			var ev api.Event
			if err := json.Unmarshal(lines.Bytes(), &ev); err != nil {
				s.r.t.Errorf("line %q: %v", lines.Bytes(), err)
			}
			out.lines <- ev
		}
	}()
	s.r.t.Cleanup(cancel)
	return out
}

// next is the next event; false at the stream's end.
func (s *stream) next() (api.Event, bool) {
	s.r.t.Helper()
	late := time.NewTimer(20 * time.Second)
	defer late.Stop()
	select {
	case ev, ok := <-s.lines:
		return ev, ok
	case <-late.C:
		s.r.t.Fatal("no event within 20 s")
		return api.Event{}, false
	}
}

func (s *stream) want(event, reason string) api.Event {
	s.r.t.Helper()
	ev, ok := s.next()
	if !ok || ev.Event != event || ev.Reason != reason {
		s.r.t.Fatalf("event = %+v, %v; want %s %q", ev, ok, event, reason)
	}
	return ev
}

func (s *stream) wantEnd() {
	s.r.t.Helper()
	if ev, ok := s.next(); ok {
		s.r.t.Fatalf("event = %+v, want the stream's end", ev)
	}
}

// left waits until n watch calls are over.
func (r *rig) left(n float64) {
	r.t.Helper()
	r.until("watch calls are over", func() bool {
		return r.metric(`runenv_calls_total{outcome="ok",route="GET `+api.PathWatch+`"}`) == n
	})
}

func TestP5Heartbeat(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	opened := r.clock.Now()
	beat := func() api.Heartbeat {
		t.Helper()
		a := s.call(http.MethodPost, api.PathHeartbeat, "")
		var h api.Heartbeat
		if err := json.Unmarshal(a.body, &h); err != nil || a.status != http.StatusOK {
			t.Fatalf("heartbeat = %v (%v)", a, err)
		}
		if row := s.row(); !row.Deadline.Equal(h.Deadline) {
			t.Errorf("deadline told %v, stored %v", h.Deadline, row.Deadline)
		}
		return h
	}
	if got := s.row().Deadline; !got.Equal(opened.Add(3 * time.Minute)) {
		t.Errorf("first deadline = %v", got.Sub(opened))
	}
	hardEnd := opened.Add(2 * time.Hour)
	for r.clock.Now().Add(2 * time.Minute).Before(hardEnd) {
		r.clock.add(2 * time.Minute)
		want := r.clock.Now().Add(3 * time.Minute)
		if want.After(hardEnd) {
			want = hardEnd
		}
		if h := beat(); !h.Deadline.Equal(want) || h.HeartbeatSeconds != 30 {
			t.Fatalf("at %v: heartbeat = %v in %d s, want %v", r.clock.Now().Sub(opened), h.Deadline.Sub(opened), h.HeartbeatSeconds, want.Sub(opened))
		}
	}
	r.clock.add(2 * time.Minute) // the hard end itself
	if a := s.call(http.MethodPost, api.PathHeartbeat, ""); !a.is(http.StatusUnauthorized, api.CodeSessionEnded) {
		t.Errorf("heartbeat at the hard end = %v, want 401 session_ended", a)
	}
	r.open("odd") // whose exchange makes the engine look
	r.until("the session has ended", func() bool { return s.row().EndReason == "hard_end" })
}

func TestP5MissedHeartbeatEndsAll(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	s.lease()
	lines := s.watch(t.Context())
	lines.want(api.EventHello, "")
	r.clock.add(3 * time.Minute)
	for _, c := range []struct{ method, path string }{{http.MethodPost, api.PathHeartbeat}, {http.MethodPost, api.PathLeases}, {http.MethodGet, api.PathWatch}} {
		if a := s.call(c.method, c.path, "{}"); !a.is(http.StatusUnauthorized, api.CodeSessionEnded) {
			t.Errorf("%s %s after the deadline = %v, want 401 session_ended", c.method, c.path, a)
		}
	}
	r.open("odd")
	lines.want(api.EventEnded, "heartbeat")
	lines.wantEnd()
	r.until("all is revoked", func() bool {
		return s.states() == "login=revoked npm=disclosed db=revoked" && r.vault.Leases() == 0 && r.vault.Tokens() == 0
	})
}

func TestEnd(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(s *session) answer{
		"client": func(s *session) answer { return s.call(http.MethodDelete, api.PathSession, "") },
		"end_token": func(s *session) answer {
			return s.r.send(http.MethodDelete, api.PathSession, "", authorization("Bearer", s.end))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			s := r.open("prod")
			s.lease()
			lines := s.watch(t.Context())
			lines.want(api.EventHello, "")
			var first string
			for i := range 2 { // ending twice is no error
				a := end(s)
				var ended api.Ended
				if err := json.Unmarshal(a.body, &ended); err != nil || a.status != http.StatusOK {
					t.Fatalf("end = %v (%v)", a, err)
				}
				if len(ended.Leases) != 2 || ended.Leases[0].State != "disclosed" || ended.Leases[1].State != "revoked" || ended.Leases[1].Env != nil {
					t.Errorf("ended = %s", a.body)
				}
				if i == 0 {
					first = string(a.body)
				} else if string(a.body) != first {
					t.Errorf("the second answer differs: %s", a.body)
				}
			}
			lines.want(api.EventEnded, name)
			lines.wantEnd()
			if r.vault.Leases() != 0 || r.vault.Tokens() != 0 {
				t.Errorf("%d leases and %d tokens live on in Vault", r.vault.Leases(), r.vault.Tokens())
			}
			ends := 0
			for _, rec := range r.audited(s.id) {
				if rec.Event == "session.ended" {
					ends++
					if rec.Reason != name || rec.Request == "" {
						t.Errorf("audit = %+v", rec)
					}
				}
			}
			if ends != 1 {
				t.Errorf("%d ends recorded, want 1", ends)
			}
			// A stream's end after the session's is no death.
			r.left(1)
			if a := s.call(http.MethodGet, api.PathWatch, ""); !a.is(http.StatusUnauthorized, api.CodeSessionEnded) {
				t.Errorf("watch of an ended session = %v", a)
			}
		})
	}
}

func TestWatchTellsOfRenewals(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s, other := r.open("prod"), r.open("prod")
	db := s.lease("db")[0]
	lines, others := s.watch(t.Context()), other.watch(t.Context())
	lines.want(api.EventHello, "")
	others.want(api.EventHello, "")
	r.clock.add(time.Minute)
	a := s.call(http.MethodPost, api.PathLeases+"/"+db.ID+"/renew", "")
	var renewed api.Lease
	if err := json.Unmarshal(a.body, &renewed); err != nil || a.status != http.StatusOK {
		t.Fatalf("renew = %v (%v)", a, err)
	}
	if renewed.ID != db.ID || !renewed.ExpiresAt.After(db.ExpiresAt) || renewed.Env != nil {
		t.Errorf("renewed = %s", a.body)
	}
	ev := lines.want(api.EventRenewed, "")
	if ev.Lease == nil || ev.Lease.ID != db.ID || !ev.Lease.ExpiresAt.Equal(renewed.ExpiresAt) || ev.Lease.Env != nil {
		t.Errorf("event = %+v", ev.Lease)
	}
	// The neighbour hears of its own end and of nothing before.
	if a := other.call(http.MethodDelete, api.PathSession, ""); a.status != http.StatusOK {
		t.Fatal(a)
	}
	others.want(api.EventEnded, "client")
}

// A stream that breaks is a sign of death, and leaves 30 s; a heartbeat is the
// truth.
func TestWatchBroken(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	one, two := s.watch(t.Context()), s.watch(t.Context())
	one.want(api.EventHello, "")
	two.want(api.EventHello, "")
	full := s.row().Deadline

	one.close()
	r.left(1)
	if got := s.row().Deadline; !got.Equal(full) {
		t.Errorf("one of two streams broke: deadline in %v, want %v", got.Sub(r.clock.Now()), full.Sub(r.clock.Now()))
	}
	two.close()
	r.left(2)
	if got := s.row().Deadline; !got.Equal(r.clock.Now().Add(30 * time.Second)) {
		t.Errorf("the last stream broke: deadline in %v, want 30 s", got.Sub(r.clock.Now()))
	}
	if a := s.call(http.MethodPost, api.PathHeartbeat, ""); a.status != http.StatusOK {
		t.Fatal(a)
	}
	if got := s.row().Deadline; !got.Equal(full) {
		t.Errorf("after a heartbeat: deadline in %v, want the full life", got.Sub(r.clock.Now()))
	}
	// It never lengthens a life.
	r.clock.add(170 * time.Second)
	three := s.watch(t.Context())
	three.want(api.EventHello, "")
	three.close()
	r.left(3)
	if got := s.row().Deadline; !got.Equal(full) {
		t.Errorf("a stream broke 10 s before the deadline: deadline %v later", got.Sub(full))
	}
}

func TestWatchOutlivesItsBroker(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	lines := s.watch(t.Context())
	lines.want(api.EventHello, "")
	full := s.row().Deadline
	r.stop()
	lines.wantEnd()
	r.left(1)
	if got := s.row().Deadline; !got.Equal(full) {
		t.Errorf("the broker stopped: deadline in %v, want the full life", got.Sub(r.clock.Now()))
	}
	if a := s.call(http.MethodGet, api.PathWatch, ""); !a.is(http.StatusServiceUnavailable, api.CodeTemporarily) {
		t.Errorf("watch of a broker that stops = %v", a)
	}
}

func TestT21StreamsAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	for range 4 {
		s.watch(t.Context()).want(api.EventHello, "")
	}
	if a := s.call(http.MethodGet, api.PathWatch, ""); !a.is(http.StatusForbidden, api.CodeLimitExceeded) {
		t.Errorf("fifth stream = %v, want 403 limit_exceeded", a)
	}
	r.open("prod").watch(t.Context()).want(api.EventHello, "")
}
