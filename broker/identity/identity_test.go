package identity_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/identity"
)

func profile(t *testing.T, name string) *identity.Profile {
	t.Helper()
	p, ok := identity.ProfileByName(name)
	if !ok {
		t.Fatalf("no profile %q", name)
	}
	return p
}

func TestNewGivesEachClaimOneSpelling(t *testing.T) {
	t.Parallel()
	tests := []struct {
		value any
		want  []string // nil means that there is no such claim
	}{
		{"text", []string{"text"}},
		{"", []string{""}},
		{true, []string{"true"}},
		{false, []string{"false"}},
		{7, []string{"7"}},
		{int64(-7), []string{"-7"}},
		{7.0, []string{"7"}},
		{0.5, []string{"0.5"}},
		{json.Number("7"), []string{"7"}},
		{json.Number("7.0"), []string{"7"}},
		{json.Number("70e-1"), []string{"7"}},
		{json.Number("-0"), []string{"0"}},
		{json.Number("1e3"), []string{"1000"}},
		{json.Number("9223372036854775807"), []string{"9223372036854775807"}},
		{json.Number("0.25"), []string{"0.25"}},
		{[]any{"a", json.Number("1"), true}, []string{"a", "1", "true"}},
		{[]string{"a"}, []string{"a"}},
		{[]any{}, []string{}},
		{nil, nil},
		{map[string]any{"a": 1}, nil},
		{[]any{"a", map[string]any{}}, nil},
		{[]any{"a", nil}, nil},
		{[]any{[]any{"a"}}, nil},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%T %v", tt.value, tt.value), func(t *testing.T) {
			t.Parallel()
			id, err := identity.New(profile(t, "github"), "hub", map[string]any{"x": tt.value})
			if err != nil {
				t.Fatalf("New: %v", err)
			}
			got, ok := id.Claim("x")
			if diff := cmp.Diff(tt.want, got); diff != "" || ok != (tt.want != nil) {
				t.Errorf("Claim = %#v, %v, want %#v", got, ok, tt.want)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for name, claims := range map[string]map[string]any{
		"a number over 2^53":       {"x": json.Number("9007199254740993.0")},
		"a number over 2^63":       {"x": json.Number("9223372036854775808")},
		"a number without end":     {"x": json.Number("1e999999999")},
		"a long number":            {"x": json.Number("0." + strings.Repeat("1", 40))},
		"a number in a list":       {"x": []any{json.Number("1e400")}},
		"a name as project":        {"repository_id": "acme/shop-api"},
		"a name as owner":          {"repository_owner_id": "acme"},
		"a padded id":              {"repository_id": "007"},
		"a time with a fraction":   {"exp": json.Number("1.5")},
		"a time before 1970":       {"iat": json.Number("-1")},
		"a time after the year 9k": {"exp": json.Number("253402300800")},
	} {
		if id, err := identity.New(profile(t, "github"), "hub", claims); err == nil {
			t.Errorf("%s: New = %+v, want an error", name, id)
		}
	}
}

func TestAnIdentityIsntChangedThroughWhatItGivesAway(t *testing.T) {
	t.Parallel()
	claims := map[string]any{"ref": "main", "groups_direct": []any{"pay", "ops"}, "project_id": "88"}
	id, err := identity.New(profile(t, "gitlab"), "lab", claims)
	if err != nil {
		t.Fatal(err)
	}
	claims["ref"] = "evil"
	values, _ := id.Claim("groups_direct")
	values[0] = "evil"
	all := id.Claims()
	all["groups_direct"].([]string)[1] = "evil"
	all["ref"] = "evil"
	id.AuditClaims()["ref"] = "evil"
	want := map[string]any{"ref": "main", "groups_direct": []string{"pay", "ops"}, "project_id": "88"}
	if diff := cmp.Diff(want, id.Claims()); diff != "" {
		t.Errorf("Claims (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"ref": "main", "project_id": "88"}, id.AuditClaims()); diff != "" {
		t.Errorf("AuditClaims (-want +got):\n%s", diff)
	}
}

func TestAuditClaimsHoldNoAddress(t *testing.T) {
	t.Parallel()
	for _, name := range identity.ProfileNames() {
		p := profile(t, name)
		claims := map[string]any{"user_email": "sam@example.com", "unheard_of": "sam@example.com"}
		for _, known := range p.Known {
			if !strings.HasSuffix(known, "_id") && known != "run_attempt" {
				claims[known] = "x"
			}
		}
		id, err := identity.New(p, name, claims)
		if err != nil {
			t.Fatal(err)
		}
		audit := id.AuditClaims()
		if len(audit) < 10 {
			t.Errorf("%s: AuditClaims = %v, want those that tell what happened", name, audit)
		}
		for claim, value := range audit {
			if strings.Contains(value, "@") || !p.Knows(claim) {
				t.Errorf("%s: AuditClaims has %s = %q", name, claim, value)
			}
		}
	}
}

func TestJobTellsJobsApart(t *testing.T) {
	t.Parallel()
	base := map[string]any{
		"sub": "repo:acme/shop-api:ref:refs/heads/main", "run_id": "12", "run_attempt": "1", "check_run_id": "34",
		"job_workflow_ref": "acme/shop-api/.github/workflows/a.yml@refs/heads/main",
	}
	job := func(changes ...any) string {
		claims := map[string]any{}
		for k, v := range base {
			claims[k] = v
		}
		for i := 0; i < len(changes); i += 2 {
			claims[changes[i].(string)] = changes[i+1]
		}
		id, err := identity.New(profile(t, "github"), "hub", claims)
		if err != nil {
			t.Fatal(err)
		}
		return id.Job
	}
	if got := job(); got != "12/1/34" {
		t.Errorf("Job = %q, want 12/1/34", got)
	}
	seen := map[string]bool{}
	for _, j := range []string{
		job(), job("run_id", "1", "run_attempt", "21"), job("run_attempt", "2"), job("check_run_id", "35"),
		// Runners that don't name the job.
		job("check_run_id", nil), job("check_run_id", nil, "environment", "prod"), job("check_run_id", nil, "sub", "s"),
		job("check_run_id", nil, "job_workflow_ref", nil), job("check_run_id", nil, "run_attempt", "2"),
	} {
		if j == "" || seen[j] {
			t.Errorf("job %q is empty or stands for two", j)
		}
		seen[j] = true
	}
	if got := job("run_id", nil); got != "" {
		t.Errorf("Job without a run = %q, want none", got)
	}
}

func TestProfilesAreConsistent(t *testing.T) {
	t.Parallel()
	if _, ok := identity.ProfileByName("GitHub"); ok {
		t.Error(`ProfileByName("GitHub") is found, want exact names only`)
	}
	for _, name := range identity.ProfileNames() {
		p := profile(t, name)
		if p.Name != name {
			t.Errorf("profile %q calls itself %q", name, p.Name)
		}
		named := slices.Concat(p.IDClaims, p.RefClaims, []string{
			p.ProjectIDClaim, p.ProjectNameClaim, p.OwnerIDClaim, p.OwnerNameClaim, p.EventClaim,
		})
		for _, c := range named {
			if !p.Knows(c) {
				t.Errorf("%s: %q is named, but not known", name, c)
			}
		}
		for _, c := range []string{"iss", "aud", "exp", "iat", "nbf", "jti", "", "Ref", "refs", "repo_property_"} {
			if p.Knows(c) {
				t.Errorf("%s: Knows(%q) = true, want false", name, c)
			}
		}
		if p.MaxLife <= 0 || p.MaxAge <= 0 || len(p.Algorithms) == 0 || len(p.DeniedEvents) == 0 {
			t.Errorf("%s: an open door: %+v", name, p)
		}
		p.DeniedEvents[0] = "nothing"
		if again := profile(t, name); again.DeniedEvents[0] == "nothing" {
			t.Errorf("%s: a profile is shared between callers", name)
		}
	}
	if !profile(t, "github").Knows("repo_property_team") || profile(t, "gitlab").Knows("repo_property_team") {
		t.Error("repo_property_* is for github, and only there")
	}
}
