package lease_test

import (
	"testing"
	"time"

	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/providers"
)

// renewed is a session with one lease that was renewed past its first end.
func (r *rig) renewed() (store.Session, store.Lease) {
	r.t.Helper()
	s := r.session()
	issued, err := r.engine.Issue(r.t.Context(), r.request(s, r.def("db", providers.Revocable)))
	if err != nil {
		r.t.Fatal(err)
	}
	for range 8 {
		r.time.add(2 * time.Minute)
		if _, err := r.store.Heartbeat(r.t.Context(), r.time.Now(), s.ID); err != nil {
			r.t.Fatal(err)
		}
		r.step(s)
	}
	return s, issued[0].Lease
}

// What was renewed outlives its first bound: a revocation that fails then
// isn't given up as if time had ended the credential.
func TestT14ARenewedLeaseIsntTakenForDead(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s, first := r.renewed()
	if now := r.time.Now(); !now.After(first.DiesBy) {
		t.Fatalf("it is %v, not past the first bound %v", now, first.DiesBy)
	}
	row, err := r.store.Lease(t.Context(), first.ID)
	if err != nil {
		t.Fatal(err)
	}
	if row.DiesBy.Before(row.ExpiresAt) {
		t.Errorf("the lease lives until %v, and its bound is %v", row.ExpiresAt, row.DiesBy)
	}
	r.back.set("revoke", providers.ErrUnavailable)
	r.back.set("logout", providers.ErrUnavailable)
	if _, err := r.engine.End(t.Context(), s, "client", "r-2", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if got, want := r.states(s), "db=revoking login=revoking"; got != want {
		t.Errorf("with the back end down the rows are %q, want %q", got, want)
	}
}

// The bound is durable before the back end is asked to renew, and a renewal
// whose answer got lost is ended at the back end, not only in the books.
func TestT14ARenewalWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	issued, err := r.engine.Issue(t.Context(), r.request(s, r.def("db", providers.Revocable)))
	if err != nil {
		t.Fatal(err)
	}
	first := issued[0].Lease
	r.back.set("renew", providers.ErrUnavailable)
	for range 8 {
		r.time.add(2 * time.Minute)
		if _, err := r.store.Heartbeat(t.Context(), r.time.Now(), s.ID); err != nil {
			t.Fatal(err)
		}
		r.step(s)
		row, err := r.store.Lease(t.Context(), first.ID)
		if err != nil {
			t.Fatal(err)
		}
		if r.back.calls("renew ") > 0 && !row.DiesBy.After(first.ExpiresAt) {
			t.Fatalf("the back end was asked to renew, and the bound is still %v", row.DiesBy)
		}
	}
	if got, want := r.states(s), "db=revoked login=active"; got != want {
		t.Errorf("rows are %q, want %q", got, want)
	}
	if creds, _ := r.back.alive(); creds != 0 {
		t.Errorf("%d credentials are alive", creds)
	}
}
