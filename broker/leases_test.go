package broker_test

import (
	"net/http"
	"testing"

	"github.com/runenv/action/broker/api"
)

func TestLease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	leases := s.lease()
	if len(leases) != 2 || leases[0].Name != "npm" || leases[1].Name != "db" {
		t.Fatalf("leases = %v", leases)
	}
	if a := s.call(http.MethodDelete, api.PathSession, ""); a.status != 200 {
		t.Errorf("end = %v", a)
	}
	t.Log(s.states(), string(r.log.String()))
}
