package broker

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/store"
)

func TestT21LimiterIsBounded(t *testing.T) {
	t.Parallel()
	l := newLimiter(1, 2)
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	for _, want := range []bool{true, true, false} {
		if got := l.allow("a", now); got != want {
			t.Errorf("allow = %v, want %v", got, want)
		}
	}
	for i := range 3 * maxLimited {
		if !l.allow(fmt.Sprint(i), now) {
			t.Fatalf("key %d was refused its first", i)
		}
		if n := len(l.current) + len(l.old); n > maxLimited {
			t.Fatalf("%d keys in memory, want at most %d", n, maxLimited)
		}
		// One that goes on asking isn't forgotten.
		if i%1000 == 0 && l.allow("a", now) {
			t.Fatalf("after %d other keys the flood goes on", i)
		}
	}
	if !l.allow("a", now.Add(time.Second)) {
		t.Error("a second later it is refused")
	}
}

func TestT21AddressesOfOneMachine(t *testing.T) {
	t.Parallel()
	for remote, want := range map[string]string{
		"192.0.2.7:1234":             "192.0.2.7",
		"[::ffff:192.0.2.7]:1":       "192.0.2.7",
		"[2001:db8:1:2::1]:1":        "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff:1::9]:1": "2001:db8:1:2::/64",
		"[2001:db8:1:3::1]:1":        "2001:db8:1:3::/64",
		"[fe80::1%eth0]:1":           "fe80::/64",
		"@":                          "@",
	} {
		if got := addrOf(&http.Request{RemoteAddr: remote}); got != want {
			t.Errorf("addrOf(%s) = %s, want %s", remote, got, want)
		}
	}
}

// A stream that nobody reads loses renewals and never the end.
func TestHubKeepsTheEnd(t *testing.T) {
	t.Parallel()
	var h hub
	events, leave, err := h.join("s")
	if err != nil {
		t.Fatal(err)
	}
	for range 10 * watchBuffer {
		h.notify(lease.Event{Session: "s", Lease: &store.Lease{}})
	}
	h.notify(lease.Event{Session: "s", Reason: "client"})
	h.notify(lease.Event{Session: "s", Reason: "again"})
	for range watchBuffer {
		if ev := <-events; ev.Lease == nil {
			t.Fatal("the end overtook a renewal")
		}
	}
	if ev := <-events; ev.Reason != "client" {
		t.Errorf("the last event is %+v, want the end", ev)
	}
	if !leave() || leave() {
		t.Error("leaving isn't once")
	}
	h.closeAll()
	h.closeAll()
	if _, _, err := h.join("s"); err == nil {
		t.Error("join after the close = nil, want a refusal")
	}
}
