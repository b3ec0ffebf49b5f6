package policy_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/identity"
	"github.com/runenv/action/broker/policy"
)

// Short ways to write a Spec.

func text(s string) policy.Text { return policy.Text{Value: s} }

func texts(list ...string) []policy.Text {
	var out []policy.Text
	for _, s := range list {
		out = append(out, text(s))
	}
	return out
}

// claim takes values; one that begins with ~ is a glob.
func claim(name string, values ...string) policy.ClaimSpec {
	c := policy.ClaimSpec{Name: text(name)}
	for _, v := range values {
		glob, isGlob := strings.CutPrefix(v, "~")
		c.Values = append(c.Values, policy.ValueSpec{Text: text(glob), Glob: isGlob})
	}
	return c
}

func match(issuer string, claims ...policy.ClaimSpec) policy.MatchSpec {
	return policy.MatchSpec{Issuer: text(issuer), Claims: claims}
}

func project(name, issuer, pin string, vars ...string) policy.ProjectSpec {
	p := policy.ProjectSpec{Name: text(name), Pins: []policy.PinSpec{{Issuer: text(issuer), Value: text(pin)}}}
	for i := 0; i < len(vars); i += 2 {
		p.Vars = append(p.Vars, policy.VarSpec{Name: text(vars[i]), Value: text(vars[i+1])})
	}
	return p
}

func names(list ...string) *policy.SelectorSpec { return &policy.SelectorSpec{Names: texts(list...)} }

func reasons(pairs ...string) []policy.ReasonSpec {
	var out []policy.ReasonSpec
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, policy.ReasonSpec{Name: text(pairs[i]), Reason: text(pairs[i+1])})
	}
	return out
}

// world is the example of the design, as a Spec.
func world() policy.Spec {
	return policy.Spec{
		Issuers: []policy.IssuerSpec{
			{Name: text("github"), Profile: "github", Enabled: true, Text: "g"},
			{Name: text("gitlab"), Profile: "gitlab", Enabled: true, Text: "l"},
			{Name: text("ghes"), Profile: "github", Enabled: false, Text: "e"},
		},
		Projects: []policy.ProjectSpec{
			project("shop-api", "github", "acme/shop-api@1001", "team", "shop", "account", "111122223333"),
			project("other", "github", "acme/other@1002", "team", "other"),
			project("pay-api", "gitlab", "pay/api@88", "team", "pay"),
		},
		Leases: []policy.LeaseSpec{
			{Name: text("db"), Env: texts("DB_USER", "DB_PASSWORD"), Text: "d"},
			{Name: text("npm"), Env: texts("NPM_TOKEN"), Text: "n"},
		},
		Roles: []policy.RoleSpec{
			{
				Name:     text("prod"),
				Projects: &policy.SelectorSpec{Vars: []policy.VarSelectorSpec{{Name: text("team"), Values: texts("shop", "pay")}}},
				Match: []policy.MatchSpec{
					match("github", claim("ref", "refs/heads/main"), claim("environment", "production"), claim("event_name", "push", "workflow_dispatch")),
					match("gitlab", claim("ref_path", "refs/heads/main"), claim("pipeline_source", "push")),
				},
				Leases: texts("db", "npm"),
			},
			{
				Name:   text("pinned"),
				Match:  []policy.MatchSpec{match("github", claim("repository_id", "2002"), claim("ref", "~refs/tags/v*"))},
				Leases: texts("npm"),
			},
			{
				Name:     text("after"),
				Projects: names("shop-api"),
				Match:    []policy.MatchSpec{match("github", claim("event_name", "workflow_run"))},
				Leases:   texts("npm"), AllowEvents: reasons("workflow_run", "the workflow is ours"),
			},
			{
				Name:     text("review"),
				Projects: names("pay-api"),
				Match:    []policy.MatchSpec{match("gitlab", claim("pipeline_source", "merge_request_event"))},
				Leases:   texts("npm"), AllowEvents: reasons("merge_request_event", "reviewed by hand"),
			},
			{
				Name:   text("forks"),
				Match:  []policy.MatchSpec{match("gitlab", claim("project_id", "99"), claim("job_project_id", "88"), claim("pipeline_source", "merge_request_event"))},
				Leases: texts("npm"), AllowEvents: reasons("merge_request_event", "reviewed by hand"),
			},
		},
		Deny: []policy.DenySpec{{Match: []policy.MatchSpec{match("github", claim("repository_visibility", "public"))}}},
	}
}

func compile(t testing.TB, spec policy.Spec) *policy.Policy {
	t.Helper()
	p, problems := policy.Compile(spec)
	if len(problems) > 0 {
		t.Fatalf("Compile: %v", problems)
	}
	return p
}

type claims map[string]any

func (c claims) with(changes claims) claims {
	out := maps.Clone(c)
	for name, value := range changes {
		if value == nil {
			delete(out, name)
		} else {
			out[name] = value
		}
	}
	return out
}

func id(t testing.TB, profile, issuer string, c claims) *identity.Identity {
	t.Helper()
	p, ok := identity.ProfileByName(profile)
	if !ok {
		t.Fatalf("no profile %q", profile)
	}
	got, err := identity.New(p, issuer, c)
	if err != nil {
		t.Fatalf("identity.New: %v", err)
	}
	return got
}

var (
	githubJob = claims{
		"repository": "acme/shop-api", "repository_id": "1001", "ref": "refs/heads/main", "environment": "production",
		"event_name": "push", "repository_visibility": "private",
	}
	gitlabJob = claims{
		"project_path": "pay/api", "project_id": "88", "job_project_path": "pay/api", "job_project_id": "88",
		"ref_path": "refs/heads/main", "pipeline_source": "push",
	}
)

func TestDecide(t *testing.T) {
	t.Parallel()
	p := compile(t, world())
	tests := []struct {
		name, role, profile, issuer string
		claims                      claims
		want                        string
		notes                       []string
	}{
		{"the job", "prod", "github", "github", githubJob, policy.ReasonAllowed, nil},
		{"another event of the list", "prod", "github", "github", githubJob.with(claims{"event_name": "workflow_dispatch"}), policy.ReasonAllowed, nil},
		{"GitLab", "prod", "gitlab", "gitlab", gitlabJob, policy.ReasonAllowed, nil},
		{"GitLab of before 18.4", "prod", "gitlab", "gitlab", gitlabJob.with(claims{"job_project_id": nil, "job_project_path": nil}), policy.ReasonAllowed, nil},

		{"no role", "", "github", "github", githubJob, policy.ReasonRoleUnknown, nil},
		{"unknown role", "prod2", "github", "github", githubJob, policy.ReasonRoleUnknown, nil},
		{"role in another case", "Prod", "github", "github", githubJob, policy.ReasonRoleUnknown, nil},
		{"unknown issuer", "prod", "github", "mallory", githubJob, policy.ReasonIssuerUnknown, nil},
		{"disabled issuer", "prod", "github", "ghes", githubJob, policy.ReasonIssuerUnknown, nil},
		{"issuer of another profile", "prod", "gitlab", "github", gitlabJob, policy.ReasonIssuerUnknown, nil},
		{"issuer without match", "pinned", "gitlab", "gitlab", gitlabJob, policy.ReasonIssuerNotInRole, nil},

		{"ref with a suffix", "prod", "github", "github", githubJob.with(claims{"ref": "refs/heads/main2"}), policy.ReasonClaimMismatch, nil},
		{"ref with a prefix", "prod", "github", "github", githubJob.with(claims{"ref": "xrefs/heads/main"}), policy.ReasonClaimMismatch, nil},
		{"tag named like the branch", "prod", "github", "github", githubJob.with(claims{"ref": "refs/tags/main"}), policy.ReasonClaimMismatch, nil},
		{"ref in another case", "prod", "github", "github", githubJob.with(claims{"ref": "refs/heads/Main"}), policy.ReasonClaimMismatch, nil},
		{"empty ref", "prod", "github", "github", githubJob.with(claims{"ref": ""}), policy.ReasonClaimMismatch, nil},
		{"ref with a line break", "prod", "github", "github", githubJob.with(claims{"ref": "refs/heads/main\n"}), policy.ReasonClaimMismatch, nil},
		{"no environment", "prod", "github", "github", githubJob.with(claims{"environment": nil}), policy.ReasonClaimAbsent, nil},
		{"another event", "prod", "github", "github", githubJob.with(claims{"event_name": "schedule"}), policy.ReasonClaimMismatch, nil},
		{"no claims", "prod", "github", "github", claims{}, policy.ReasonProjectAbsent, nil},

		{"tag by glob", "pinned", "github", "github", githubJob.with(claims{"repository_id": "2002", "repository": "acme/new", "ref": "refs/tags/v1"}), policy.ReasonAllowed, nil},
		{"glob stops at a slash", "pinned", "github", "github", githubJob.with(claims{"repository_id": "2002", "repository": "acme/new", "ref": "refs/tags/v1/x"}), policy.ReasonClaimMismatch, nil},
		{"another pinned id", "pinned", "github", "github", githubJob.with(claims{"repository_id": "20022", "repository": "acme/new", "ref": "refs/tags/v1"}), policy.ReasonClaimMismatch, nil},

		{"deny", "prod", "github", "github", githubJob.with(claims{"repository_visibility": "public"}), policy.ReasonDenyRule, nil},
		{"deny beats a pinned id", "pinned", "github", "github", githubJob.with(claims{"repository_id": "2002", "ref": "refs/tags/v1", "repository_visibility": "public"}), policy.ReasonDenyRule, nil},
		{"deny on an absent claim", "prod", "github", "github", githubJob.with(claims{"repository_visibility": nil}), policy.ReasonAllowed, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := p.Decide(id(t, tt.profile, tt.issuer, tt.claims), tt.role)
			check(t, got, tt.want, tt.notes)
		})
	}
}

func check(t *testing.T, got policy.Decision, want string, notes []string) {
	t.Helper()
	if got.Reason != want || got.Allowed != (want == policy.ReasonAllowed) {
		t.Errorf("Decide() = allowed %v, %s (%s), want %s", got.Allowed, got.Reason, got.Detail, want)
	}
	if diff := cmp.Diff(notes, got.Notes); diff != "" {
		t.Errorf("Decide().Notes differ (-want +got):\n%s", diff)
	}
	if (got.Vars != nil) != got.Allowed {
		t.Errorf("Decide().Vars = %v with allowed %v", got.Vars, got.Allowed)
	}
}

func TestT09RenamedAndReregistered(t *testing.T) {
	t.Parallel()
	p := compile(t, world())
	renamed := []string{policy.NoteProjectRenamed}
	tests := []struct {
		name, role string
		change     claims
		want       string
		notes      []string
	}{
		{"renamed", "prod", claims{"repository": "acme/shop-backend"}, policy.ReasonAllowed, renamed},
		{"transferred", "prod", claims{"repository": "newco/shop-api"}, policy.ReasonAllowed, renamed},
		{"renamed to a known name", "prod", claims{"repository": "acme/other"}, policy.ReasonAllowed, renamed},
		{"another case is no rename", "prod", claims{"repository": "Acme/Shop-API"}, policy.ReasonAllowed, nil},
		{"re-registered", "prod", claims{"repository_id": "6666"}, policy.ReasonProjectReregistered, nil},
		{"re-registered in another case", "prod", claims{"repository_id": "6666", "repository": "ACME/shop-api"}, policy.ReasonProjectReregistered, nil},
		{"re-registered, with its id pinned by the role", "pinned", claims{"repository_id": "2002", "ref": "refs/tags/v1"}, policy.ReasonProjectReregistered, nil},
		{"another project", "prod", claims{"repository_id": "1002", "repository": "acme/other"}, policy.ReasonProjectNotInRole, nil},
		{"another project that took the name", "prod", claims{"repository_id": "1002"}, policy.ReasonProjectNotInRole, nil},
		{"unknown", "prod", claims{"repository_id": "7777", "repository": "mallory/x"}, policy.ReasonProjectUnknown, nil},
		{"id with a suffix", "prod", claims{"repository_id": "10010", "repository": "mallory/x"}, policy.ReasonProjectUnknown, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			check(t, p.Decide(id(t, "github", "github", githubJob.with(tt.change)), tt.role), tt.want, tt.notes)
		})
	}
	t.Run("the same id at another issuer", func(t *testing.T) {
		t.Parallel()
		job := gitlabJob.with(claims{"project_id": "1001", "job_project_id": "1001", "project_path": "x/y", "job_project_path": "x/y"})
		check(t, p.Decide(id(t, "gitlab", "gitlab", job), "prod"), policy.ReasonProjectUnknown, nil)
	})
}

func TestT10JobsThatStrangersStart(t *testing.T) {
	t.Parallel()
	spec := world()
	// A role for any event, so that only the built-in denials stand in the way.
	spec.Roles = append(spec.Roles, policy.RoleSpec{
		Name: text("any"), Projects: names("shop-api", "pay-api"), Leases: texts("npm"),
		Match: []policy.MatchSpec{match("github", claim("ref", "refs/heads/main")), match("gitlab", claim("ref_path", "refs/heads/main"))},
	})
	p := compile(t, spec)
	for profile, job := range map[string]claims{"github": githubJob, "gitlab": gitlabJob} {
		described, _ := identity.ProfileByName(profile)
		if len(described.DeniedEvents) == 0 {
			t.Errorf("profile %s denies no event", profile)
		}
		for _, event := range described.DeniedEvents {
			got := p.Decide(id(t, profile, profile, job.with(claims{described.EventClaim: event})), "any")
			check(t, got, policy.ReasonEventDenied, nil)
		}
		check(t, p.Decide(id(t, profile, profile, job.with(claims{described.EventClaim: nil})), "any"), policy.ReasonEventAbsent, nil)
		check(t, p.Decide(id(t, profile, profile, job), "any"), policy.ReasonAllowed, nil)
	}

	run := githubJob.with(claims{"event_name": "workflow_run"})
	check(t, p.Decide(id(t, "github", "github", run), "after"), policy.ReasonAllowed, nil)
	check(t, p.Decide(id(t, "github", "github", run.with(claims{"event_name": "pull_request_target"})), "after"), policy.ReasonEventDenied, nil)

	merge := gitlabJob.with(claims{"pipeline_source": "merge_request_event"})
	fork := merge.with(claims{"project_id": "99", "project_path": "mallory/api"})
	check(t, p.Decide(id(t, "gitlab", "gitlab", merge), "review"), policy.ReasonAllowed, nil)
	check(t, p.Decide(id(t, "gitlab", "gitlab", fork), "review"), policy.ReasonSourceProject, nil)
	check(t, p.Decide(id(t, "gitlab", "gitlab", fork), "forks"), policy.ReasonAllowed, nil)
	check(t, p.Decide(id(t, "gitlab", "gitlab", fork.with(claims{"project_id": "98"})), "forks"), policy.ReasonClaimMismatch, nil)
	check(t, p.Decide(id(t, "gitlab", "gitlab", fork.with(claims{"job_project_id": "99"})), "forks"), policy.ReasonProjectReregistered, nil)
	// The fork's own pipeline has the fork's ids.
	own := gitlabJob.with(claims{"project_id": "99", "job_project_id": "99", "project_path": "mallory/api", "job_project_path": "mallory/api"})
	check(t, p.Decide(id(t, "gitlab", "gitlab", own), "prod"), policy.ReasonProjectUnknown, nil)
}

func TestListClaims(t *testing.T) {
	t.Parallel()
	spec := world()
	spec.Roles = spec.Roles[:1]
	spec.Roles[0].Match = []policy.MatchSpec{match("gitlab", claim("groups_direct", "acme/ops"), claim("ref_path", "refs/heads/main"))}
	spec.Deny = []policy.DenySpec{{Match: []policy.MatchSpec{match("gitlab", claim("groups_direct", "~acme/guests-*"))}}}
	p := compile(t, spec)
	for want, groups := range map[string][]string{
		policy.ReasonAllowed:       {"acme/dev", "acme/ops"},
		policy.ReasonClaimMismatch: {"acme/ops2", "acme"},
		policy.ReasonDenyRule:      {"acme/ops", "acme/guests-1"},
	} {
		check(t, p.Decide(id(t, "gitlab", "gitlab", gitlabJob.with(claims{"groups_direct": groups})), "prod"), want, nil)
	}
	check(t, p.Decide(id(t, "gitlab", "gitlab", gitlabJob.with(claims{"groups_direct": []string{}})), "prod"), policy.ReasonClaimMismatch, nil)
}

// TestT36Vars: templates read the operator's words and nothing that a caller
// or a rename can choose.
func TestT36Vars(t *testing.T) {
	t.Parallel()
	spec := world()
	spec.Roles = append(spec.Roles, policy.RoleSpec{
		Name: text("loose"), Projects: names("shop-api"), Leases: texts("npm"),
		Match: []policy.MatchSpec{match("github", claim("ref", "refs/heads/main"), claim("environment", "production", "~review-*"))},
	})
	p := compile(t, spec)
	renamed := githubJob.with(claims{"repository": "../../etc", "actor": "mallory", "head_ref": "x"})
	got := p.Decide(id(t, "github", "github", renamed), "prod")
	want := map[string]string{
		"project.name": "shop-api", "project.vars.team": "shop", "project.vars.account": "111122223333",
		"role.name": "prod", "environment": "production",
	}
	if diff := cmp.Diff(want, got.Vars); diff != "" {
		t.Errorf("Vars differ (-want +got):\n%s", diff)
	}
	for _, environment := range []string{"production", "review-../../x"} {
		got := p.Decide(id(t, "github", "github", githubJob.with(claims{"environment": environment})), "loose")
		if value, ok := got.Vars["environment"]; ok {
			t.Errorf("environment = %q where a glob stands beside literals, want none", value)
		}
	}
	got = p.Decide(id(t, "github", "github", githubJob.with(claims{"repository_id": "2002", "repository": "acme/new", "ref": "refs/tags/v1"})), "pinned")
	if diff := cmp.Diff(map[string]string{"role.name": "pinned"}, got.Vars); diff != "" {
		t.Errorf("Vars of an unlisted project differ (-want +got):\n%s", diff)
	}
}

func TestGrants(t *testing.T) {
	t.Parallel()
	spec := world()
	spec.Roles[0].Match[0] = match("github", claim("ref", "refs/heads/main"), claim("environment", "production", "staging"))
	p := compile(t, spec)
	var got []string
	for g := range p.Grants("npm") {
		name := "-"
		if g.Project != nil {
			name = g.Project.Name
		}
		got = append(got, fmt.Sprint(g.Role.Name, " ", g.Issuer, " ", name, " ", g.Vars["project.vars.team"], " ", g.Vars["environment"]))
	}
	want := []string{
		"after github shop-api shop ",
		"forks gitlab pay-api pay ",
		"pinned github -  ",
		"prod github shop-api shop production",
		"prod github shop-api shop staging",
		"prod gitlab pay-api pay ",
		"review gitlab pay-api pay ",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Grants(npm) differ (-want +got):\n%s", diff)
	}
}

func TestRoleDefaults(t *testing.T) {
	t.Parallel()
	spec := world()
	spec.Roles[1].SessionTTL = time.Minute
	spec.Roles[2].HeartbeatTimeout = 3 * time.Second
	spec.Roles[2].Limits = policy.Limits{Sessions: 1, Leases: 2}
	p := compile(t, spec)
	type view struct {
		ttl, heartbeat time.Duration
		limits         policy.Limits
	}
	for name, want := range map[string]view{
		"prod":   {time.Hour, 3 * time.Minute, policy.Limits{Sessions: 4, Leases: 20}},
		"pinned": {time.Minute, time.Minute, policy.Limits{Sessions: 4, Leases: 20}},
		"after":  {time.Hour, 3 * time.Second, policy.Limits{Sessions: 1, Leases: 2}},
	} {
		r, ok := p.Role(name)
		if !ok {
			t.Fatalf("Role(%q) isn't there", name)
		}
		if got := (view{r.SessionTTL, r.HeartbeatTimeout, r.Limits}); got != want {
			t.Errorf("Role(%q) = %+v, want %+v", name, got, want)
		}
	}
	if got := len(p.Roles()); got != 5 {
		t.Errorf("Roles() has %d, want 5", got)
	}
	if got := len(p.Projects()); got != 3 {
		t.Errorf("Projects() has %d, want 3", got)
	}
}

func TestDigest(t *testing.T) {
	t.Parallel()
	base := compile(t, world()).Digest()
	same := map[string]func(*policy.Spec){
		"order of entries": func(s *policy.Spec) { s.Projects[0], s.Projects[1] = s.Projects[1], s.Projects[0] },
		"order of values": func(s *policy.Spec) {
			v := s.Roles[0].Match[0].Claims[2].Values
			v[0], v[1] = v[1], v[0]
		},
		"places": func(s *policy.Spec) { s.Roles[0].Name.Pos = policy.Pos{File: "x", Line: 9, Column: 9} },
	}
	other := map[string]func(*policy.Spec){
		"a value":             func(s *policy.Spec) { s.Roles[0].Match[0].Claims[0].Values[0].Value = "refs/heads/dev" },
		"a literal":           func(s *policy.Spec) { s.Roles[1].Match[0].Claims[1] = claim("ref", "refs/tags/v") },
		"an id":               func(s *policy.Spec) { s.Projects[0].Pins[0].Value.Value = "acme/shop-api@1009" },
		"a variable":          func(s *policy.Spec) { s.Projects[0].Vars[1].Value.Value = "9" },
		"a lease":             func(s *policy.Spec) { s.Leases[0].Text = "d2" },
		"a role's references": func(s *policy.Spec) { s.Roles[0].References = texts("vault://secret/ci/**") },
		"a role's leases":     func(s *policy.Spec) { s.Roles[0].Leases = s.Roles[0].Leases[:1] },
		"an issuer":           func(s *policy.Spec) { s.Issuers[0].Text = "g2" },
		"deny":                func(s *policy.Spec) { s.Deny = nil },
		"a time":              func(s *policy.Spec) { s.Roles[0].SessionTTL = time.Minute },
		"a reason":            func(s *policy.Spec) { s.Roles[2].AllowEvents[0].Reason.Value = "y" },
	}
	for name, change := range same {
		spec := world()
		change(&spec)
		if got := compile(t, spec).Digest(); got != base {
			t.Errorf("Digest() changed with %s", name)
		}
	}
	for name, change := range other {
		spec := world()
		change(&spec)
		if got := compile(t, spec).Digest(); got == base {
			t.Errorf("Digest() is the same although %s changed", name)
		}
	}
}

func TestRunTests(t *testing.T) {
	t.Parallel()
	spec := world()
	spec.Projects[0].Pins = append(spec.Projects[0].Pins, policy.PinSpec{Issuer: text("gitlab"), Value: text("acme/mirror@5")})
	on := func(role, project, issuer, want string, change ...policy.ClaimSpec) policy.TestSpec {
		return policy.TestSpec{Role: text(role), Project: text(project), Issuer: text(issuer), Want: text(want), Change: change}
	}
	spec.Tests = []policy.TestSpec{
		on("prod", "shop-api", "github", "allow"),
		on("prod", "shop-api", "gitlab", "allow"),
		on("prod", "shop-api", "github", "deny", claim("ref", "refs/heads/dev")),
		on("prod", "shop-api", "github", "deny", claim("repository_visibility", "public")),
		on("prod", "shop-api", "github", "allow", claim("repository", "acme/renamed")),
		on("prod", "other", "", "deny"),
		on("prod", "pay-api", "", "deny", claim("project_id", "99")),
		on("pinned", "", "", "allow", claim("ref", "refs/tags/v1")),
		on("pinned", "", "", "deny", claim("ref", "refs/tags/v1"), claim("event_name", "watch")),
		on("prod", "shop-api", "github", "allow", claim("ref", "refs/heads/dev")), // is wrong
		on("prod", "shop-api", "github", "deny"),                                  // is wrong
	}
	var failed []int
	results := compile(t, spec).RunTests()
	for i, r := range results {
		if !r.Passed {
			failed = append(failed, i)
		}
	}
	if diff := cmp.Diff([]int{9, 10}, failed); diff != "" || len(results) != len(spec.Tests) {
		t.Errorf("RunTests(): %d results, failed differ (-want +got):\n%s", len(results), diff)
	}
}

func BenchmarkDecide(b *testing.B) {
	spec := world()
	for i := range 1000 {
		spec.Projects = append(spec.Projects, project(fmt.Sprintf("p%d", i), "github", fmt.Sprintf("acme/p%d@%d", i, 10_000+i), "team", fmt.Sprintf("t%d", i%10)))
	}
	for i := range 100 {
		spec.Roles = append(spec.Roles, policy.RoleSpec{
			Name: text(fmt.Sprintf("r%d", i)), Leases: texts("db"),
			Projects: &policy.SelectorSpec{Vars: []policy.VarSelectorSpec{{Name: text("team"), Values: texts(fmt.Sprintf("t%d", i%10))}}},
			Match:    []policy.MatchSpec{match("github", claim("ref", "~refs/heads/release/**"), claim("environment", "production"), claim("event_name", "push"))},
		})
	}
	p := compile(b, spec)
	job := githubJob.with(claims{"repository": "acme/p507", "repository_id": "10507", "ref": "refs/heads/release/2026/11"})
	allowed, refused := id(b, "github", "github", job), id(b, "github", "github", job.with(claims{"environment": "dev"}))
	b.Run("allowed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !p.Decide(allowed, "r57").Allowed {
				b.Fatal("refused")
			}
		}
	})
	b.Run("refused", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if p.Decide(refused, "r57").Allowed {
				b.Fatal("allowed")
			}
		}
	})
}

func TestARoleMayGrantReferencesAlone(t *testing.T) {
	t.Parallel()
	spec := world()
	spec.Roles[0].Leases = nil
	spec.Roles[0].References = texts("vault://secret/ci/{{project.vars.team}}/**", "aws-sm://{{ project.name }}-*")
	p := compile(t, spec)
	role, _ := p.Role(spec.Roles[0].Name.Value)
	if diff := cmp.Diff(spec.Roles[0].References, role.References); diff != "" {
		t.Errorf("References (-want +got):\n%s", diff)
	}
	grants := 0
	for g := range p.RoleGrants(role) {
		if g.Role != role {
			t.Errorf("a grant of role %q", g.Role.Name)
		}
		grants++
	}
	if grants == 0 {
		t.Error("RoleGrants yields nothing")
	}
}
