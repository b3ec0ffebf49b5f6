package devissuer

import (
	"crypto/rand"
	"fmt"
	"maps"
	"strings"
	"time"
)

// The lives of tokens as the CIs give them: GitHub's begins ten minutes before
// it is issued and ends five minutes after; GitLab's ends with the job's
// timeout, whose default is an hour.
const (
	githubEarly = 10 * time.Minute
	githubLife  = 5 * time.Minute
	gitlabEarly = 5 * time.Second
	gitlabLife  = time.Hour
)

// commit is the commit at which every job here runs.
const commit = "6dcb09b5b57875f334f61aebed695e2e4193db5e"

// githubClaims returns the claims of a push to the main branch of
// acme/shop-api, with the given ones laid over them. A nil value removes a
// claim. Claims that GitHub makes out of others follow those: the owner, the
// workflow's references and the subject.
func githubClaims(overrides map[string]any) map[string]any {
	c := map[string]any{
		"actor":                 "octocat",
		"actor_id":              "583231",
		"base_ref":              "",
		"check_run_id":          "40000000001",
		"event_name":            "push",
		"head_ref":              "",
		"job_workflow_sha":      commit,
		"ref":                   "refs/heads/main",
		"ref_protected":         "true",
		"ref_type":              "branch",
		"repository":            "acme/shop-api",
		"repository_id":         "1001",
		"repository_owner_id":   "501",
		"repository_visibility": "private",
		"run_attempt":           "1",
		"run_id":                "20000000001",
		"run_number":            "42",
		"runner_environment":    "self-hosted",
		"sha":                   commit,
		"workflow":              "CI",
		"workflow_sha":          commit,
	}
	lay(c, overrides)
	workflow := fmt.Sprintf("%v/.github/workflows/ci.yml@%v", c["repository"], c["ref"])
	owner, name, _ := strings.Cut(fmt.Sprint(c["repository"]), "/")
	derived := map[string]any{
		"job_workflow_ref": workflow,
		"repository_owner": owner,
		"workflow_ref":     workflow,
	}
	// The form that new, renamed and transferred repositories have had since
	// July 2026: names with their ids.
	job := fmt.Sprintf("ref:%s", part(c["ref"]))
	switch {
	case c["environment"] != nil:
		job = fmt.Sprintf("environment:%s", part(c["environment"]))
	case c["event_name"] == "pull_request":
		job = "pull_request"
	}
	derived["sub"] = fmt.Sprintf("repo:%s@%v/%s@%v:%s",
		part(owner), c["repository_owner_id"], part(name), c["repository_id"], job)
	return merged(c, derived, overrides)
}

// part is one part of a GitHub subject, whose separator it may not hold.
func part(v any) string { return strings.ReplaceAll(fmt.Sprint(v), ":", "%3A") }

// gitlabClaims returns the claims of a push to the main branch of pay/api,
// with the given ones laid over them as in githubClaims.
func gitlabClaims(overrides map[string]any) map[string]any {
	c := map[string]any{
		"ci_config_sha":         commit,
		"environment_protected": "false",
		"groups_direct":         []string{"pay"},
		"job_id":                "30000000001",
		"job_source":            "push",
		"namespace_id":          "72",
		"pipeline_id":           "10000000001",
		"pipeline_source":       "push",
		"project_id":            "88",
		"project_path":          "pay/api",
		"project_visibility":    "private",
		"ref":                   "main",
		"ref_protected":         "true",
		"ref_type":              "branch",
		"runner_environment":    "self-hosted",
		"runner_id":             1,
		"sha":                   commit,
		"user_access_level":     "developer",
		"user_email":            "sam@example.com",
		"user_id":               "7",
		"user_identities":       []map[string]string{{"provider": "saml", "extern_uid": "sam"}},
		"user_login":            "sam",
	}
	lay(c, overrides)
	path := fmt.Sprint(c["project_path"])
	namespace := path[:max(strings.LastIndexByte(path, '/'), 0)]
	refPath := fmt.Sprintf("refs/heads/%v", c["ref"])
	switch {
	case c["pipeline_source"] == "merge_request_event":
		refPath = fmt.Sprint(c["ref"]) // refs/merge-requests/N/head, already whole
	case c["ref_type"] == "tag":
		refPath = fmt.Sprintf("refs/tags/%v", c["ref"])
	}
	return merged(c, map[string]any{
		"ci_config_ref_uri":  fmt.Sprintf("gitlab.example.com/%s//.gitlab-ci.yml@%s", path, refPath),
		"job_namespace_id":   c["namespace_id"],
		"job_namespace_path": namespace,
		"job_project_id":     c["project_id"],
		"job_project_path":   path,
		"namespace_path":     namespace,
		"ref_path":           refPath,
		"sub":                fmt.Sprintf("project_path:%s:ref_type:%v:ref:%v", path, c["ref_type"], c["ref"]),
	}, overrides)
}

// times returns the claims that no two tokens share.
func times(now time.Time, early, life time.Duration) map[string]any {
	return map[string]any{
		"jti": uuid(),
		"nbf": now.Add(-early).Unix(),
		"iat": now.Unix(),
		"exp": now.Add(life).Unix(),
	}
}

// uuid is a random id in the form that both CIs give their tokens.
func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: the runtime ends the process instead
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// merged lays each map over those before it, into a new one.
func merged(layers ...map[string]any) map[string]any {
	out := map[string]any{}
	for _, layer := range layers {
		lay(out, layer)
	}
	return out
}

// lay puts the claims of over into c; a nil value removes one.
func lay(c, over map[string]any) {
	maps.Copy(c, over)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
}
