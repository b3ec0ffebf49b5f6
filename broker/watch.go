package broker

import (
	"net/http"
	"slices"
	"sync"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/lease"
)

const (
	// maxWatchers bounds the streams of one session.
	maxWatchers = 4
	// watchBuffer is how far a stream may fall behind before events are
	// dropped; the end of the session is never dropped.
	watchBuffer = 32
)

// hub passes events to the streams that watch a session.
type hub struct {
	mu     sync.Mutex
	closed bool
	m      map[string][]chan lease.Event
}

// join subscribes to a session's events. leave says whether it was the
// session's last stream.
func (h *hub) join(session string) (events <-chan lease.Event, leave func() (last bool), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, nil, refuse(http.StatusServiceUnavailable, api.CodeTemporarily, "the broker stops", nil)
	}
	if len(h.m[session]) >= maxWatchers {
		return nil, nil, refuse(http.StatusForbidden, api.CodeLimitExceeded, "the session is watched often enough", nil)
	}
	if h.m == nil {
		h.m = map[string][]chan lease.Event{}
	}
	ch := make(chan lease.Event, watchBuffer+1)
	h.m[session] = append(h.m[session], ch)
	return ch, func() bool { return h.leave(session, ch) }, nil
}

func (h *hub) leave(session string, ch chan lease.Event) (last bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.Index(h.m[session], ch)
	if i < 0 {
		return false // left before
	}
	all := slices.Delete(slices.Clone(h.m[session]), i, i+1)
	if len(all) == 0 {
		delete(h.m, session)
		return true
	}
	h.m[session] = all
	return false
}

// notify never blocks: the last place in the buffer is kept for the end.
func (h *hub) notify(ev lease.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ch := range h.m[ev.Session] {
		if ev.Lease == nil || len(ch) < watchBuffer {
			select {
			case ch <- ev:
			default:
			}
		}
	}
}

// closeAll ends every stream without blaming its session.
func (h *hub) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.closed = true
	for _, all := range h.m {
		for _, ch := range all {
			close(ch)
		}
	}
	h.m = nil
}
