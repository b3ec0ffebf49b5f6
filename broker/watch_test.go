package broker_test

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/runenv/action/broker/api"
)

// deadlines notes under which write deadline each write of a stream is made.
type deadlines struct {
	mu      sync.Mutex
	current time.Time
	writes  []time.Duration // left until the deadline; 0 without one
}

type deadlined struct {
	http.ResponseWriter
	seen *deadlines
}

func (d deadlined) Unwrap() http.ResponseWriter { return d.ResponseWriter }

func (d deadlined) SetWriteDeadline(at time.Time) error {
	d.seen.mu.Lock()
	d.seen.current = at
	d.seen.mu.Unlock()
	return http.NewResponseController(d.ResponseWriter).SetWriteDeadline(at)
}

func (d deadlined) Write(b []byte) (int, error) {
	d.seen.mu.Lock()
	left := time.Duration(0)
	if !d.seen.current.IsZero() {
		left = time.Until(d.seen.current)
	}
	d.seen.writes = append(d.seen.writes, left)
	d.seen.mu.Unlock()
	return d.ResponseWriter.Write(b)
}

// Whoever opens a stream and doesn't read it would else hold a goroutine and a
// connection for ever, beyond the end of its session.
func TestT21AStreamThatIsntReadIsGivenUp(t *testing.T) {
	t.Parallel()
	var seen deadlines
	r := newRig(t, func(s *settings) {
		s.wrap = func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.URL.Path == api.PathWatch {
					w = deadlined{w, &seen}
				}
				next.ServeHTTP(w, req)
			})
		}
	})
	s := r.open("prod")
	stream := s.watch(t.Context())
	stream.want(api.EventHello, "")
	if a := s.call(http.MethodDelete, api.PathSession, ""); a.status != http.StatusOK {
		t.Fatalf("ending = %d", a.status)
	}
	stream.want(api.EventEnded, "client")
	stream.wantEnd()
	seen.mu.Lock()
	defer seen.mu.Unlock()
	if len(seen.writes) != 2 {
		t.Fatalf("%d writes, want hello and the end", len(seen.writes))
	}
	for _, left := range seen.writes {
		if left <= 0 || left > time.Minute {
			t.Errorf("a write with %v until its deadline", left)
		}
	}
	if !seen.current.IsZero() {
		t.Error("the deadline of a write outlived it: it would end the stream")
	}
}
