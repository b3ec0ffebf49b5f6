package lease_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/providers"
)

// told are the events so far that say that a lease nears its end.
func (r *rig) told() []string {
	var out []string
	for {
		select {
		case ev := <-r.events:
			if ev.Expiring {
				out = append(out, ev.Lease.ID)
			}
		default:
			return out
		}
	}
}

// P11: the client is told once, in time to lease anew, of what nobody renews.
func TestTheClientIsToldOfALeasesEnd(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		kind providers.Revocability
		prep func(r *rig, d *lease.Definition)
		at   time.Duration // when it is told; 0: never
	}{
		{"it only expires", providers.Expires, func(r *rig, _ *lease.Definition) { r.back.ttl = 30 * time.Minute }, 20 * time.Minute},
		{"it expires with the session", providers.Expires, func(r *rig, d *lease.Definition) { r.back.ttl, d.MaxTTL = 2*time.Hour, 0 }, 0},
		{"it is renewed until the session's end", providers.Revocable, func(_ *rig, d *lease.Definition) { d.MaxTTL = 0 }, 0},
		{"its definition's cap", providers.Revocable, func(r *rig, d *lease.Definition) {
			d.TTL, d.MaxTTL, r.back.ttl = 30*time.Minute, 30*time.Minute, 30*time.Minute
		}, 20 * time.Minute},
		{"the back end denies a renewal", providers.Revocable, func(r *rig, _ *lease.Definition) { r.back.set("renew", providers.ErrDenied) }, 10 * time.Minute},
		// Told at two thirds of what the last renewal left: it is renewed after
		// 10 minutes until the 21st.
		{"the back end's maximum", providers.Revocable, func(r *rig, _ *lease.Definition) { r.back.most = r.time.Now().Add(21 * time.Minute) }, 10*time.Minute + 11*time.Minute*2/3},
		{"today's policy", providers.Revocable, func(r *rig, _ *lease.Definition) { r.denied = errors.New("no longer") }, 10 * time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			s := r.session()
			d := r.def("db", tt.kind)
			tt.prep(r, &d)
			r.capped = d.MaxTTL
			id := r.issue(s, d)[0].Lease.ID
			for past := time.Duration(0); past < 100*time.Minute; past += time.Minute {
				told := r.told()
				want := tt.at != 0 && past >= tt.at && past < tt.at+time.Minute
				if slices.Contains(told, id) != want || len(told) > 1 {
					t.Errorf("after %v told of %v, want at %v", past, told, tt.at)
				}
				r.live(s, time.Minute)
			}
		})
	}
}

// A lease that a client would renew past its end says so, and isn't touched.
func TestRenewInPlaceOrNotAtAll(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.back.most = r.time.Now().Add(15 * time.Minute)
	s := r.session()
	row := r.issue(s, r.def("db", providers.Revocable))[0].Lease
	r.live(s, 8*time.Minute)
	if _, err := r.engine.Renew(t.Context(), s, r.row(row.ID), "r-1"); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Renew() at the back end's maximum = %v, want ErrConflict", err)
	}
	if got := r.row(row.ID); got.State != store.Active || !got.ExpiresAt.Equal(row.ExpiresAt) {
		t.Errorf("it is %s until %v, want active until %v", got.State, got.ExpiresAt, row.ExpiresAt)
	}
}

func TestReplace(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.back.ttl = 30 * time.Minute
	s := r.session()
	old := r.issue(s, r.def("sts", providers.Expires))[0].Lease
	replace := func(limit int, ids ...string) (string, error) {
		req := r.request(s, r.def("sts", providers.Expires))
		req.Replaces, req.Limit = ids, limit
		issued, err := r.engine.Issue(t.Context(), req)
		if err != nil {
			return "", err
		}
		return issued[0].Lease.ID, nil
	}
	r.live(s, 14*time.Minute)
	if _, err := replace(20, old.ID); !errors.Is(err, lease.ErrTooSoon) || !errors.Is(err, store.ErrConflict) {
		t.Errorf("in the first half of its life: %v, want ErrTooSoon", err)
	}
	r.live(s, 2*time.Minute)
	// What can't be issued replaces nothing.
	r.back.set("issue", providers.ErrUnavailable)
	if _, err := replace(20, old.ID); !errors.Is(err, providers.ErrUnavailable) {
		t.Errorf("with the back end down: %v", err)
	}
	r.back.set("issue", nil)
	if got := r.row(old.ID).ReplacedBy; got != "" {
		t.Fatalf("replaced by %s, which was never issued", got)
	}
	// A replaced lease doesn't count, the one that failed does: it may live.
	id, err := replace(2, old.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.row(old.ID); got.ReplacedBy != id || got.State != store.Active {
		t.Errorf("the old one is %s and replaced by %q, want active and by %s", got.State, got.ReplacedBy, id)
	}
	if !slices.Contains(r.entries(old.ID), "lease.replaced") {
		t.Errorf("the log says %v of it", r.entries(old.ID))
	}
	for _, ids := range [][]string{{old.ID}, {"l-unknown"}, {r.login(s).ID}, {id, old.ID}} {
		if _, err := replace(20, ids...); !errors.Is(err, store.ErrConflict) {
			t.Errorf("replacing %v = %v, want ErrConflict", ids, err)
		}
	}
	// It lives on to its own end, and nobody is told of that.
	r.told()
	r.live(s, 10*time.Minute)
	if told := r.told(); slices.Contains(told, old.ID) {
		t.Error("told of a replaced lease's end")
	}
	if got := r.row(old.ID).State; got != store.Active {
		t.Errorf("it is %s before its end", got)
	}
	r.live(s, 5*time.Minute)
	if got := r.row(old.ID).State; got != store.Expired {
		t.Errorf("it is %s after its end", got)
	}
}

// T17: replacing is no way around the limit: two generations live at most.
func TestT17ReplacingDoesntGetAroundTheLimit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.back.ttl = 20 * time.Minute
	s := r.session()
	ids := []string{r.issue(s, r.def("sts", providers.Expires))[0].Lease.ID}
	for range 40 {
		req := r.request(s, r.def("sts", providers.Expires))
		req.Replaces, req.Limit = ids[len(ids)-1:], 1
		if issued, err := r.engine.Issue(t.Context(), req); err == nil {
			ids = append(ids, issued[0].Lease.ID)
		}
		live := 0
		for _, id := range ids {
			if r.row(id).ExpiresAt.After(r.time.Now()) {
				live++
			}
		}
		if live > 2 {
			t.Fatalf("%d leases live where 1 is the limit", live)
		}
		r.live(s, 2*time.Minute)
	}
	if len(ids) < 5 {
		t.Errorf("leased %d times in 80 minutes, want it every 10", len(ids))
	}
}

// T17: nor where each ends with the session, so that half of its life is over
// sooner and sooner.
func TestT17ReplacingWhatEndsWithTheSession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	def := r.def("sts", providers.Expires)
	def.TTL, def.MaxTTL = 0, 0
	r.back.ttl = s.HardEnd.Sub(r.time.Now())
	ids := []string{r.issue(s, def)[0].Lease.ID}
	for s.HardEnd.Sub(r.time.Now()) > 2*time.Minute {
		r.back.ttl = s.HardEnd.Sub(r.time.Now())
		req := r.request(s, def)
		req.Replaces, req.Limit = ids[len(ids)-1:], 1
		issued, err := r.engine.Issue(t.Context(), req)
		switch {
		case err == nil:
			ids = append(ids, issued[0].Lease.ID)
		case !errors.Is(err, lease.ErrTooSoon) && !errors.Is(err, store.ErrLimit):
			t.Fatal(err)
		}
		r.live(s, time.Minute)
	}
	if len(ids) != 2 {
		t.Errorf("%d leases live until the session's end where 1 is the limit, want 2", len(ids))
	}
}

// A replaced lease isn't renewed, by client or engine, and ends with its
// session.
func TestAReplacedLeaseIsntRenewed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.capped = 2 * time.Hour
	s := r.session()
	old := r.issue(s, r.def("db", providers.Revocable))[0].Lease
	r.live(s, 8*time.Minute)
	req := r.request(s, r.def("db", providers.Revocable))
	req.Replaces, req.IdempotencyKey = []string{old.ID}, "key"
	first, err := r.engine.Issue(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	renewals := r.back.calls("renew ")
	if _, err := r.engine.Renew(t.Context(), s, r.row(old.ID), "r-2"); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Renew() = %v, want ErrConflict", err)
	}
	r.live(s, 3*time.Minute)
	if n := r.back.calls("renew "); n != renewals {
		t.Errorf("%d renewals of a replaced lease", n-renewals)
	}
	// The same request again, its answer lost: the first set ends, and what it
	// replaced stays replaced.
	req.Proof = r.proof()
	second, err := r.engine.Issue(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.row(old.ID); got.ReplacedBy != second[0].Lease.ID {
		t.Errorf("replaced by %s, want %s", got.ReplacedBy, second[0].Lease.ID)
	}
	r.settle(r.engine, s, "db=active db=active db=revoked login=active")
	if got := r.row(first[0].Lease.ID).State; got != store.Revoked {
		t.Errorf("the first set is %s", got)
	}
	r.end(s)
	if got, want := r.states(s), "db=revoked db=revoked db=revoked login=revoked"; got != want {
		t.Errorf("rows = %q, want %q", got, want)
	}
}

// P5: a session that ends while a lease is replaced leaves neither.
func TestP5ReplacingInAnEndedSession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	old := r.issue(s, r.def("db", providers.Revocable))[0].Lease
	r.live(s, 9*time.Minute)
	release := make(chan struct{})
	r.back.hold["issue"] = release
	failed := make(chan error, 1)
	req := r.request(s, r.def("db", providers.Revocable))
	req.Replaces = []string{old.ID}
	go func() {
		_, err := r.engine.Issue(t.Context(), req)
		failed <- err
	}()
	<-r.back.held
	r.end(s)
	close(release)
	if err := <-failed; !errors.Is(err, store.ErrEnded) {
		t.Errorf("Issue() = %v, want ErrEnded", err)
	}
	r.settle(r.engine, s, "db=revoked db=revoked login=revoked")
	if got := r.row(old.ID).ReplacedBy; got != "" {
		t.Errorf("replaced by %s, which nobody got", got)
	}
}

// T17: a client that asks for a renewal before the lease is replaced, and is
// served after, gets none.
func TestT17ARenewalThatWaitedForAReplacement(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	r.issue(s, r.def("db", providers.Revocable))
	old := r.issue(s, r.def("db", providers.Revocable))[0].Lease
	r.live(s, 8*time.Minute)
	before := r.row(old.ID)
	req := r.request(s, r.def("db", providers.Revocable))
	req.Replaces = []string{old.ID}
	if _, err := r.engine.Issue(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	renewals := r.back.calls("renew ")
	if _, err := r.engine.Renew(t.Context(), s, before, "r-2"); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Renew() = %v, want ErrConflict", err)
	}
	if n := r.back.calls("renew "); n != renewals || !r.row(old.ID).ExpiresAt.Equal(before.ExpiresAt) {
		t.Errorf("%d renewals of a replaced lease, which lives until %v, want %v", n-renewals, r.row(old.ID).ExpiresAt, before.ExpiresAt)
	}
}

// T16: today's policy grants the lease of a back end. That it once was another's
// is no reason to keep that one's credential alive.
func TestT16ALeaseThatMovedToAnotherProviderIsntRenewed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	row := r.issue(s, r.def("db", providers.Revocable))[0].Lease
	r.moved = "elsewhere"
	r.live(s, time.Minute)
	if _, err := r.engine.Renew(t.Context(), s, r.row(row.ID), "r-2"); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Renew() = %v, want ErrConflict", err)
	}
	r.live(s, 12*time.Minute)
	if n := r.back.calls("renew "); n != 0 {
		t.Errorf("%d renewals at a back end that the policy no longer names", n)
	}
	if !slices.Contains(r.told(), row.ID) {
		t.Error("the client isn't told of its end")
	}
}
