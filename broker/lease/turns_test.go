package lease_test

import (
	"testing"

	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/providers"
)

// When many sessions end at once their back end sees a bounded number of
// calls, and nobody who wants a lease waits for them.
func TestT15RevocationStormIsBounded(t *testing.T) {
	t.Parallel()
	const storm, bound = 80, 32
	r := newRig(t)
	var sessions []store.Session
	for range storm {
		s := r.session()
		if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable))); err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, s)
	}
	release := make(chan struct{})
	r.back.mu.Lock()
	r.back.hold["revoke"] = release
	r.back.held = make(chan string, 4*storm)
	r.back.mu.Unlock()
	for _, s := range sessions {
		if _, err := r.engine.End(t.Context(), s, "client", "", 0); err != nil {
			t.Fatal(err)
		}
	}
	for range bound {
		<-r.back.held
	}
	fresh := r.session()
	if _, err := r.engine.Issue(t.Context(), r.request(fresh, r.def("db", providers.Revocable))); err != nil {
		t.Errorf("Issue() during the storm = %v", err)
	}
	if n := r.back.calls("revoke "); n != bound {
		t.Errorf("%d revocations under way at one back end, want %d", n, bound)
	}
	close(release)
	r.engine.Wait()
	for _, s := range sessions {
		if got := r.states(s); got != "db=revoked login=revoked" {
			t.Errorf("after the storm rows = %q", got)
		}
	}
}
