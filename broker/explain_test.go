package broker_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/api"
)

// explain asks what leases would deliver.
func (s *session) explain(body string) api.Explanation {
	s.r.t.Helper()
	a := s.call(http.MethodPost, api.PathExplain, body)
	if a.status != http.StatusOK {
		s.r.t.Fatal(a)
	}
	var out api.Explanation
	if err := json.Unmarshal(a.body, &out); err != nil {
		s.r.t.Fatal(err)
	}
	if shown := s.r.shown(string(a.body)); shown != "" {
		s.r.t.Errorf("an explanation shows %q", shown)
	}
	return out
}

func TestExplainTellsNamesAndTakesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	want := []api.Explained{
		{Name: "npm", Provider: "local", Revocability: "static", Variables: []api.ExplainedVar{{Name: "NPM_TOKEN", Mask: true}, {Name: "NPM_REGISTRY"}}},
		{Name: "db", Provider: "vault", Revocability: "revocable", TTLSeconds: 900, Variables: []api.ExplainedVar{{Name: "DB_USER", Mask: true}, {Name: "DB_PASSWORD", Mask: true}}},
	}
	if diff := cmp.Diff(want, s.explain(`{"leases":[]}`).Leases); diff != "" {
		t.Errorf("the role's leases (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[1:], s.explain(leaseBody("db")).Leases); diff != "" {
		t.Errorf("one lease (-want +got):\n%s", diff)
	}
	r.grants = map[string]error{dynamic: nil}
	got := s.explain(ask(t, api.LeaseRequest{Leases: []string{}, References: []api.Reference{reference(dynamic, "APP_*")}})).Leases
	if len(got) != 1 || got[0].Name != dynamic || len(got[0].Variables) != 1 || got[0].Variables[0].Name != "APP_*" {
		t.Errorf("a reference = %+v", got)
	}
	if states := s.states(); states != "" {
		t.Errorf("an explanation took %s", states)
	}
}

// T12, T20: what a role doesn't have isn't explained, and a lease of another
// role is refused as one that never was.
func TestT12T20ExplainIsRefusedAlike(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	refused := map[string]string{}
	for _, name := range []string{"secret-lease", "never-was-one"} {
		a := s.call(http.MethodPost, api.PathExplain, leaseBody(name))
		if !a.is(http.StatusForbidden, api.CodeAccessDenied) {
			t.Fatalf("%s = %v, want 403 access_denied", name, a)
		}
		refused[name] = strings.ReplaceAll(a.anonymous(t), name, "NAME")
	}
	if diff := cmp.Diff(refused["secret-lease"], refused["never-was-one"]); diff != "" {
		t.Errorf("another role's lease and one that isn't there are told apart:\n%s", diff)
	}
	if got := events(r.audited(s.id)); strings.Count(got, "lease.refused") != 2 {
		t.Errorf("the audit log has %s, want both refusals", got)
	}
	for _, body := range []string{"", "{}x", `{"leases":["npm"],"more":1}`, `{"leases":["npm","npm"]}`, `{"leases":[],"replaces":["l-1"]}`} {
		if a := s.call(http.MethodPost, api.PathExplain, body); !a.is(http.StatusBadRequest, api.CodeInvalidRequest) {
			t.Errorf("%q = %v, want 400", body, a)
		}
	}
	// T16: today's policy is asked.
	r.swap(strings.Replace(brokerFile, "leases: [npm, db]", "leases: [npm]", 1))
	if a := s.call(http.MethodPost, api.PathExplain, leaseBody("db")); !a.is(http.StatusForbidden, api.CodeAccessDenied) {
		t.Errorf("a lease that the role has lost = %v", a)
	}
	if a := s.call(http.MethodDelete, api.PathSession, ""); a.status != http.StatusOK {
		t.Fatal(a)
	}
	if a := s.call(http.MethodPost, api.PathExplain, leaseBody("npm")); !a.is(http.StatusUnauthorized, api.CodeSessionEnded) {
		t.Errorf("in an ended session = %v", a)
	}
}
