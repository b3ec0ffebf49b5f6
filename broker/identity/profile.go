package identity

import (
	"slices"
	"strings"
	"time"
)

// Reuse says when one CI token may be exchanged more than once.
type Reuse string

const (
	// ReuseNever allows one exchange. (A retry after a lost reply, with the
	// same key and body, isn't a second one; that is the broker's to know.)
	ReuseNever Reuse = "never"

	// ReuseSameJob allows more exchanges for the same job until the token
	// expires. It is for CIs whose jobs can't mint a second token.
	ReuseSameJob Reuse = "same-job"
)

// A Profile describes the tokens of one kind of CI: which claims they carry,
// which of them identify, and how long they may live. [ProfileByName] makes a
// fresh one each time, so a caller that changes its copy harms nobody.
//
// Claim names here are raw ones, as they stand in the token.
type Profile struct {
	Name string // "github", "gitlab"

	// Known are the claims that `match` and `deny` may name. Claims that only
	// the verifier reads (iss, aud, exp, iat, nbf, jti) aren't among them, nor
	// are those that hold objects: neither can be matched.
	Known []string

	// KnownPrefixes begin the names of claims that users define themselves.
	KnownPrefixes []string

	// The ids are immutable; the names are only cross-checked.
	ProjectIDClaim, ProjectNameClaim string
	OwnerIDClaim, OwnerNameClaim     string

	// JobProjectIDClaim and JobProjectNameClaim tell where the job runs, for
	// CIs where that may differ from the project that the code comes from.
	// When a token has them they are the [Identity]'s project, and
	// ProjectIDClaim is its SourceProjectID. Empty where the CI has none.
	JobProjectIDClaim, JobProjectNameClaim string

	// IDClaims are the claims of which one, matched literally, pins a role
	// without `projects`. An owner's id isn't among them: it lets in every
	// project that the owner has or will have.
	IDClaims []string

	// EventClaim tells what started the job.
	EventClaim string

	// RefClaims are the claims of which a role must name at least one: those
	// that say which event or which ref. The source branch of a merge request
	// isn't one, since whoever opens it chooses its name; nor is an
	// environment, which restricts refs only if somebody configured it to.
	RefClaims []string

	// DeniedEvents are refused unless the role allows them by name. A stranger
	// can start such jobs.
	DeniedEvents []string

	// Reuse is the default for issuers of this profile.
	Reuse Reuse

	// MaxLife caps exp − iat and MaxAge caps now − iat.
	MaxLife, MaxAge time.Duration

	// Algorithms are the JWS algorithms that a token may name. Each key is
	// besides pinned to one of them.
	Algorithms []string

	// auditClaims are what [Identity.AuditClaims] returns.
	auditClaims []string

	// job derives [Identity.Job] from claims that are decimal ids and claims
	// that are text; "" if it can't.
	job func(number, text func(string) string) string
}

// Knows reports whether match and deny may name the claim.
func (p *Profile) Knows(claim string) bool {
	if slices.Contains(p.Known, claim) {
		return true
	}
	return slices.ContainsFunc(p.KnownPrefixes, func(prefix string) bool {
		return len(claim) > len(prefix) && strings.HasPrefix(claim, prefix)
	})
}

// ProfileByName returns the profile of that name.
func ProfileByName(name string) (*Profile, bool) {
	switch name {
	case "github":
		return github(), true
	case "gitlab":
		return gitlab(), true
	}
	return nil, false
}

// ProfileNames returns the names of all profiles, sorted.
func ProfileNames() []string { return []string{"github", "gitlab"} }

// github describes GitHub Actions, on github.com, GHE.com and GHES.
// https://docs.github.com/actions/reference/security/oidc
func github() *Profile {
	return &Profile{
		Name: "github",
		Known: []string{
			"sub",
			"actor", "actor_id", "base_ref", "check_run_id", "enterprise", "enterprise_id",
			"environment", "environment_node_id", "event_name", "head_ref", "issuer_scope",
			"job_workflow_ref", "job_workflow_sha", "ref", "ref_protected", "ref_type",
			"repository", "repository_id", "repository_owner", "repository_owner_id",
			"repository_visibility", "run_attempt", "run_id", "run_number",
			"runner_environment", "sha", "workflow", "workflow_ref", "workflow_sha",
		},
		KnownPrefixes:    []string{"repo_property_"},
		ProjectIDClaim:   "repository_id",
		ProjectNameClaim: "repository",
		OwnerIDClaim:     "repository_owner_id",
		OwnerNameClaim:   "repository_owner",
		IDClaims:         []string{"repository_id"},
		EventClaim:       "event_name",
		RefClaims:        []string{"ref", "event_name"},
		DeniedEvents: []string{
			"pull_request_target", "workflow_run", "issue_comment", "issues",
			"discussion", "discussion_comment", "gollum", "watch", "fork",
		},
		Reuse: ReuseNever,
		// A token lives 5 minutes and is minted just before it is used.
		MaxLife:    10 * time.Minute,
		MaxAge:     10 * time.Minute,
		Algorithms: []string{"RS256", "ES256"},
		auditClaims: []string{
			"actor", "actor_id", "base_ref", "check_run_id", "environment", "event_name", "head_ref",
			"job_workflow_ref", "job_workflow_sha", "ref", "ref_protected", "repository",
			"repository_id", "repository_owner", "repository_owner_id", "repository_visibility",
			"run_attempt", "run_id", "runner_environment", "sha", "workflow_ref", "workflow_sha",
		},
		job: githubJob,
	}
}

// gitlab describes GitLab CI, on gitlab.com and self-managed.
// https://docs.gitlab.com/ci/secrets/id_token_authentication/
func gitlab() *Profile {
	return &Profile{
		Name: "gitlab",
		Known: []string{
			"sub",
			"ci_config_ref_uri", "ci_config_sha", "deployment_tier", "environment",
			"environment_action", "environment_protected", "groups_direct", "job_id",
			"job_namespace_id", "job_namespace_path", "job_project_id", "job_project_path",
			"job_source", "namespace_id", "namespace_path", "pipeline_id", "pipeline_source",
			"project_id", "project_path", "project_visibility", "ref", "ref_path",
			"ref_protected", "ref_type", "runner_environment", "runner_id", "sha",
			"user_access_level", "user_id", "user_login",
		},
		ProjectIDClaim:      "project_id",
		ProjectNameClaim:    "project_path",
		OwnerIDClaim:        "namespace_id",
		OwnerNameClaim:      "namespace_path",
		JobProjectIDClaim:   "job_project_id",
		JobProjectNameClaim: "job_project_path",
		IDClaims:            []string{"project_id", "job_project_id"},
		EventClaim:          "pipeline_source",
		RefClaims:           []string{"ref", "ref_path", "pipeline_source"},
		DeniedEvents:        []string{"merge_request_event", "external_pull_request_event"},
		Reuse:               ReuseSameJob,
		// A token lives as long as its job may run, and is minted as the job
		// starts. Jobs that may run for more than a day are refused.
		MaxLife:    24 * time.Hour,
		MaxAge:     24 * time.Hour,
		Algorithms: []string{"RS256", "ES256"},
		auditClaims: []string{
			"ci_config_ref_uri", "ci_config_sha", "deployment_tier", "environment", "job_id",
			"job_project_id", "job_project_path", "namespace_id", "namespace_path", "pipeline_id",
			"pipeline_source", "project_id", "project_path", "project_visibility", "ref",
			"ref_path", "ref_protected", "ref_type", "runner_environment", "runner_id", "sha",
			"user_id", "user_login",
		},
		job: func(number, _ func(string) string) string { return number("job_id") },
	}
}
