package policy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/broker/policy"
)

// canary stands in for a value that no message may hold.
const canary = "hunter2-canary"

// TestT08RolesThatDoNotLoad holds what Compile refuses: each case breaks the
// valid world in one way.
func TestT08RolesThatDoNotLoad(t *testing.T) {
	t.Parallel()
	prod := func(s *policy.Spec) *policy.RoleSpec { return &s.Roles[0] }
	tests := []struct {
		name   string
		change func(*policy.Spec)
		path   string
		want   string
	}{
		{"no projects and no id", func(s *policy.Spec) { prod(s).Projects = nil }, "roles.prod.match.github", "any project of this issuer"},
		{"only the owner's id", func(s *policy.Spec) {
			prod(s).Projects = nil
			prod(s).Match = []policy.MatchSpec{match("github", claim("repository_owner_id", "7"), claim("ref", "x"))}
		}, "roles.prod.match.github", "any project of this issuer"},
		{"neither event nor ref", func(s *policy.Spec) { prod(s).Match[0] = match("github", claim("environment", "production")) }, "roles.prod.match.github", "neither an event nor a ref"},
		{"a glob for any ref", func(s *policy.Spec) { prod(s).Match[0] = match("github", claim("ref", "~refs/**")) }, "roles.prod.match.github", "neither an event nor a ref"},
		{"a glob for any of three", func(s *policy.Spec) { prod(s).Match[0] = match("github", claim("ref", "refs/heads/main", "~*/*/*")) }, "roles.prod.match.github", "neither an event nor a ref"},
		{"a glob for anything", func(s *policy.Spec) { prod(s).Match[0] = match("github", claim("ref", "~**")) }, "roles.prod.match.github.ref", "matches anything"},
		{"a star in a literal", func(s *policy.Spec) { prod(s).Match[0].Claims[0] = claim("ref", "refs/heads/*") }, "roles.prod.match.github.ref", "taken literally"},
		{"a glob for an id", func(s *policy.Spec) { s.Roles[1].Match[0].Claims[0] = claim("repository_id", "~10*") }, "roles.pinned.match.github.repository_id", "not an id"},
		{"an id with a zero", func(s *policy.Spec) { s.Roles[1].Match[0].Claims[0] = claim("repository_id", "02002") }, "roles.pinned.match.github.repository_id", "not an id"},
		{"no match", func(s *policy.Spec) { prod(s).Match = nil }, "roles.prod", "no match"},
		{"empty match", func(s *policy.Spec) { prod(s).Match[0].Claims = nil }, "roles.prod.match.github", "an empty match"},
		{"empty list", func(s *policy.Spec) { prod(s).Match[0].Claims[0].Values = nil }, "roles.prod.match.github.ref", "an empty list"},
		{"empty value", func(s *policy.Spec) { prod(s).Match[0].Claims[0] = claim("ref", "") }, "roles.prod.match.github.ref", "an empty value"},
		{"unknown claim", func(s *policy.Spec) { prod(s).Match[0].Claims[0] = claim("event", canary) }, "roles.prod.match.github", `did you mean "event_name"?`},
		{"GitLab's claim for GitHub", func(s *policy.Spec) { prod(s).Match[0].Claims[0] = claim("project_path", canary) }, "roles.prod.match.github", "no such claim"},
		{"unknown issuer", func(s *policy.Spec) { prod(s).Match[0].Issuer = text("githb") }, "roles.prod.match", `did you mean "github"?`},
		{"unknown project", func(s *policy.Spec) { prod(s).Projects = names("shop-apu") }, "roles.prod.projects", `did you mean "shop-api"?`},
		{"unknown variable", func(s *policy.Spec) { prod(s).Projects.Vars[0].Name = text("tem") }, "roles.prod.projects", `did you mean "team"?`},
		{"unknown value", func(s *policy.Spec) { prod(s).Projects.Vars[0].Values = texts("shop", canary) }, "roles.prod.projects.team", "no project has this value"},
		{"selects nothing", func(s *policy.Spec) { prod(s).Projects = names() }, "roles.prod.projects", "selects no project"},
		{"no leases", func(s *policy.Spec) { prod(s).Leases = nil }, "roles.prod.leases", "no leases"},
		{"a glob for anything in a back end", func(s *policy.Spec) { prod(s).References = texts("vault://**") }, "roles.prod.references", "grants too much"},
		{"not a glob of references", func(s *policy.Spec) { prod(s).References = texts(canary) }, "roles.prod.references", "begins with vault://"},
		{"a glob with an open template", func(s *policy.Spec) { prod(s).References = texts("vault://secret/{{project.name/**") }, "roles.prod.references", "no path has"},
		{"a glob twice", func(s *policy.Spec) { prod(s).References = texts("vault://secret/a", "vault://secret/a") }, "roles.prod.references", "stands here twice"},
		{"too many globs", func(s *policy.Spec) { prod(s).References = make([]policy.Text, 101) }, "roles.prod.references", "over 100 globs"},
		{"unknown lease", func(s *policy.Spec) { prod(s).Leases = texts("npn") }, "roles.prod.leases", `did you mean "npm"?`},
		{"a lease twice", func(s *policy.Spec) { prod(s).Leases = texts("npm", "npm") }, "roles.prod.leases", "stands here twice"},
		{"one variable twice", func(s *policy.Spec) { s.Leases[0].Env = texts("NPM_TOKEN") }, "roles.prod.leases", "both set the variable NPM_TOKEN"},
		{"a denied event", func(s *policy.Spec) { prod(s).Match[0].Claims[2] = claim("event_name", "issue_comment") }, "roles.prod.match.github.event_name", "issue_comment is denied"},
		{"an event that isn't denied", func(s *policy.Spec) { prod(s).AllowEvents = reasons("push", "x") }, "roles.prod.allow_events", "not an event that would be denied"},
		{"an event of another CI", func(s *policy.Spec) { s.Roles[2].AllowEvents = reasons("merge_request_event", "x") }, "roles.after.allow_events", "not an event that would be denied"},
		{"an event without reason", func(s *policy.Spec) { s.Roles[2].AllowEvents = reasons("workflow_run", " ") }, "roles.after.allow_events.workflow_run", "an empty reason"},
		{"unknown unsafe rule", func(s *policy.Spec) { prod(s).Unsafe = reasons("anything", "x") }, "roles.prod.unsafe", "any-project and any-ref"},
		{"unsafe without reason", func(s *policy.Spec) { prod(s).Unsafe = reasons("any-ref", "") }, "roles.prod.unsafe.any-ref", "an empty reason"},
		{"role name", func(s *policy.Spec) { prod(s).Name = text("Prod_" + canary) }, "roles", "not a role name"},
		{"role twice", func(s *policy.Spec) { s.Roles[1].Name = text("prod") }, "roles.prod", "stands already at a.yaml:1:2"},
		{"session too long", func(s *policy.Spec) { prod(s).SessionTTL = 25 * time.Hour }, "roles.prod.session_ttl", "not within"},
		{"heartbeat too short", func(s *policy.Spec) { prod(s).HeartbeatTimeout = time.Second }, "roles.prod.heartbeat_timeout", "not within"},
		{"heartbeat over session", func(s *policy.Spec) { prod(s).HeartbeatTimeout, prod(s).SessionTTL = time.Hour, time.Minute }, "roles.prod.heartbeat_timeout", "longer than the session"},
		{"limits", func(s *policy.Spec) { prod(s).Limits.Sessions = -1 }, "roles.prod.limits.sessions", "not within 1 and 1000"},
		{"project without id", func(s *policy.Spec) { s.Projects[0].Pins[0].Value = text("acme/shop-api") }, "projects.shop-api.github", "not NAME@ID"},
		{"project with a word for an id", func(s *policy.Spec) { s.Projects[0].Pins[0].Value = text("acme/shop-api@" + canary) }, "projects.shop-api.github", "not NAME@ID"},
		{"project without pin", func(s *policy.Spec) { s.Projects[0].Pins = nil }, "projects.shop-api", "no issuer pins"},
		{"project's issuer", func(s *policy.Spec) { s.Projects[0].Pins[0].Issuer = text("gitlap") }, "projects.shop-api", "no issuer of that name"},
		{"one id twice", func(s *policy.Spec) { s.Projects[1].Pins[0].Value = text("acme/x@1001") }, "projects.other.github", "another project has this id or name"},
		{"one name twice", func(s *policy.Spec) { s.Projects[1].Pins[0].Value = text("Acme/shop-api@5") }, "projects.other.github", "another project has this id or name"},
		{"deny of nothing", func(s *policy.Spec) { s.Deny[0].Match = nil }, "deny[0]", "an empty rule"},
		{"deny with a star", func(s *policy.Spec) { s.Deny[0].Match[0].Claims[0] = claim("ref", "refs/*") }, "deny[0].github.ref", "taken literally"},
		{"deny on an unknown claim", func(s *policy.Spec) { s.Deny[0].Match[0].Claims[0] = claim("visibility", canary) }, "deny[0].github", "no such claim"},
		{"test of an unknown role", func(s *policy.Spec) { s.Tests = []policy.TestSpec{{Role: text("prd"), Want: text("deny")}} }, "tests[0].role", `did you mean "prod"?`},
		{"test that wants something else", func(s *policy.Spec) { s.Tests = []policy.TestSpec{{Role: text("pinned"), Want: text(canary)}} }, "tests[0].want", "neither allow nor deny"},
		{"test without project", func(s *policy.Spec) { s.Tests = []policy.TestSpec{{Role: text("prod"), Want: text("deny")}} }, "tests[0]", "names no project"},
		{"test on a glob alone", func(s *policy.Spec) { s.Tests = []policy.TestSpec{{Role: text("pinned"), Want: text("deny")}} }, "tests[0]", "only a glob for the claim ref"},
		{"test with an unknown claim", func(s *policy.Spec) {
			s.Tests = []policy.TestSpec{{Role: text("prod"), Project: text("shop-api"), Want: text("deny"), Change: []policy.ClaimSpec{claim("branch", canary)}}}
		}, "tests[0].change", "no such claim"},
		{"test with an id that none can be", func(s *policy.Spec) {
			s.Tests = []policy.TestSpec{{Role: text("prod"), Project: text("shop-api"), Want: text("deny"), Change: []policy.ClaimSpec{claim("repository_id", canary)}}}
		}, "tests[0].change", "no token could hold"},
		{"test at another issuer", func(s *policy.Spec) {
			s.Tests = []policy.TestSpec{{Role: text("prod"), Project: text("shop-api"), Issuer: text("gitlab"), Want: text("deny")}}
		}, "tests[0].issuer", "not an issuer that this test can be about"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			spec := world()
			spec.Roles[0].Name.Pos = policy.Pos{File: "a.yaml", Line: 1, Column: 2}
			tt.change(&spec)
			p, problems := policy.Compile(spec)
			if len(problems) == 0 || p != nil {
				t.Fatalf("Compile() = %v, %v, want a problem and no policy", p, problems)
			}
			found := false
			for _, problem := range problems {
				if strings.Contains(problem.String(), canary) {
					t.Errorf("a message holds a value: %v", problem)
				}
				found = found || problem.Path == tt.path && strings.Contains(problem.String(), tt.want)
			}
			if !found {
				t.Errorf("Compile() = %v, want %s: …%s…", problems, tt.path, tt.want)
			}
		})
	}
}

func TestUnsafeSetsRulesAside(t *testing.T) {
	t.Parallel()
	spec := world()
	spec.Roles[0].Projects = nil
	spec.Roles[0].Match = []policy.MatchSpec{match("github", claim("environment", "production"))}
	spec.Roles[0].Unsafe = reasons("any-project", "a lab without secrets", "any-ref", "a lab without secrets")
	p := compile(t, spec)
	check(t, p.Decide(id(t, "github", "github", githubJob.with(claims{"repository_id": "5", "repository": "x/y"})), "prod"), policy.ReasonAllowed, nil)
	// Built-in denials stand: unsafe is about loading alone.
	check(t, p.Decide(id(t, "github", "github", githubJob.with(claims{"event_name": "pull_request_target"})), "prod"), policy.ReasonEventDenied, nil)
}

func TestProblemsAreSortedAndComplete(t *testing.T) {
	t.Parallel()
	spec := world()
	spec.Roles[0].Leases = []policy.Text{{Value: "x1", Pos: policy.Pos{File: "b", Line: 9}}, {Value: "x2", Pos: policy.Pos{File: "a", Line: 4}}}
	spec.Projects[0].Pins[0].Value = policy.Text{Value: "x3", Pos: policy.Pos{File: "a", Line: 10}}
	_, problems := policy.Compile(spec)
	var got []string
	for _, p := range problems {
		if p.Pos.File != "" {
			got = append(got, p.Pos.String())
		}
	}
	if want := "a:4:0 a:10:0 b:9:0"; strings.Join(got, " ") != want {
		t.Errorf("problems at %v, want %s", got, want)
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	known := []string{"session_ttl", "heartbeat_timeout", "leases", "env"}
	for word, want := range map[string]string{
		"sesion_ttl": "session_ttl", "session-ttl": "session_ttl", "lease": "leases", "haertbeat_timeout": "heartbeat_timeout",
		"evn": "env", "zzz": "", "": "", "completely-different": "",
	} {
		got := policy.Nearest(word, known)
		if want != "" {
			want = `did you mean "` + want + `"?`
		}
		if got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}

func TestValidName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"shop-api": true, "a": true, "1.2_x": true, strings.Repeat("a", 63): true,
		"": false, strings.Repeat("a", 64): false, "-a": false, ".a": false, "a..b": false, "A": false, "a/b": false, "ä": false, "a b": false,
	} {
		if got := policy.ValidName(name); got != want {
			t.Errorf("ValidName(%q) = %v, want %v", name, got, want)
		}
	}
}
