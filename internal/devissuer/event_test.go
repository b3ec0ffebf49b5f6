package devissuer_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/internal/devissuer"
)

func TestParseEvent(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		payload string
		event   string // as said by the caller
		claims  map[string]any
		noToken bool
	}{
		{name: "nothing said", payload: `{}`, claims: map[string]any{"event_name": "push"}},
		{
			name: "a push",
			payload: `{"ref": "refs/heads/dev", "after": "1111111111111111111111111111111111111111",
				"repository": {"id": 9007199254740993, "full_name": "pay/api", "private": false, "owner": {"id": 7, "login": "pay"}},
				"sender": {"login": "sam", "id": 12}}`,
			claims: map[string]any{
				"event_name": "push", "ref": "refs/heads/dev", "repository": "pay/api", "repository_id": "9007199254740993",
				"repository_owner_id": "7", "repository_visibility": "public", "actor": "sam", "actor_id": "12",
				"sha":          "1111111111111111111111111111111111111111",
				"workflow_sha": "1111111111111111111111111111111111111111", "job_workflow_sha": "1111111111111111111111111111111111111111",
			},
		},
		{name: "a tag", payload: `{"ref": "refs/tags/v1"}`, claims: map[string]any{"event_name": "push", "ref": "refs/tags/v1", "ref_type": "tag"}},
		{
			name:    "visibility before private",
			payload: `{"repository": {"visibility": "internal", "private": true}}`,
			claims:  map[string]any{"event_name": "push", "repository_visibility": "internal"},
		},
		{name: "by hand", payload: `{"inputs": {"dry": "yes"}, "ref": "refs/heads/main"}`, claims: map[string]any{"event_name": "workflow_dispatch", "ref": "refs/heads/main"}},
		{
			name:    "a pull request of the repository itself",
			payload: `{"number": 7, "pull_request": {"head": {"ref": "feat", "repo": {"id": 1, "fork": true}}, "base": {"ref": "main", "repo": {"id": 1}}}}`,
			claims:  map[string]any{"event_name": "pull_request", "ref": "refs/pull/7/merge", "head_ref": "feat", "base_ref": "main"},
		},
		{
			name:    "a pull request from a fork",
			payload: `{"pull_request": {"number": 8, "head": {"ref": "main", "repo": {"id": 2}}, "base": {"ref": "main", "repo": {"id": 1}}}}`,
			claims:  map[string]any{"event_name": "pull_request", "ref": "refs/pull/8/merge", "head_ref": "main", "base_ref": "main"},
			noToken: true,
		},
		{
			name:    "from a fork by its name",
			payload: `{"repository": {"full_name": "acme/shop-api"}, "pull_request": {"head": {"repo": {"full_name": "mallory/shop-api"}}}}`,
			claims:  map[string]any{"event_name": "pull_request", "ref": "refs/pull/1/merge", "repository": "acme/shop-api"},
			noToken: true,
		},
		{
			name:    "from a fork that is gone",
			payload: `{"pull_request": {"head": {"repo": null}}}`,
			claims:  map[string]any{"event_name": "pull_request", "ref": "refs/pull/1/merge"},
			noToken: true,
		},
		{
			name:    "from what is only said to be a fork",
			payload: `{"pull_request": {"head": {"repo": {"fork": true}}}}`,
			claims:  map[string]any{"event_name": "pull_request", "ref": "refs/pull/1/merge"},
			noToken: true,
		},
		{
			name:    "the same as pull_request_target has a token and the default branch",
			payload: `{"repository": {"default_branch": "trunk"}, "pull_request": {"head": {"repo": {"id": 2}}, "base": {"repo": {"id": 1}}}}`,
			event:   "pull_request_target",
			claims:  map[string]any{"event_name": "pull_request_target", "ref": "refs/heads/trunk"},
		},
		{name: "a review", payload: `{"review": {}, "pull_request": {"number": 3}}`, claims: map[string]any{"event_name": "pull_request_review", "ref": "refs/pull/3/merge"}},
		{name: "a review's comment", payload: `{"comment": {}, "pull_request": {"number": 3}}`, claims: map[string]any{"event_name": "pull_request_review_comment", "ref": "refs/pull/3/merge"}},
		{name: "an issue's comment", payload: `{"comment": {}, "issue": {}}`, claims: map[string]any{"event_name": "issue_comment"}},
		{name: "a release", payload: `{"release": {"tag_name": "v2"}}`, claims: map[string]any{"event_name": "release", "ref": "refs/tags/v2", "ref_type": "tag"}},
		{name: "Dependabot", payload: `{"ref": "refs/heads/x", "sender": {"login": "dependabot[bot]"}}`, claims: map[string]any{"event_name": "push", "ref": "refs/heads/x", "actor": "dependabot[bot]"}, noToken: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := devissuer.ParseEvent([]byte(tt.payload), tt.event)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.claims, got.Claims); diff != "" {
				t.Errorf("claims (-want +got):\n%s", diff)
			}
			if (got.NoToken != "") != tt.noToken {
				t.Errorf("NoToken = %q, want one: %v", got.NoToken, tt.noToken)
			}
		})
	}
}

func TestParseEventRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, payload, want string }{
		{"nothing", ``, "it isn't a JSON object"},
		{"null", `null`, "it isn't a JSON object"},
		{"a list", `[]`, "it isn't a JSON object"},
		{"half an object", `{"ref": "c4n4ry`, "it isn't a JSON object"},
		{"two objects", `{} {}`, "something follows its JSON object"},
		{"a name for a ref", `{"ref": "c4n4ry"}`, "its field ref isn't a whole ref, like refs/heads/main"},
		{"a repository that is a string", `{"repository": "c4n4ry"}`, "its field repository isn't an object"},
		{"a name that is a number", `{"repository": {"full_name": 1}}`, "its field repository.full_name isn't a string"},
		{"an id that is a string", `{"repository": {"id": "c4n4ry"}}`, "its field repository.id isn't an id"},
		{"an id with a fraction", `{"repository": {"id": 1.5}}`, "its field repository.id isn't an id"},
		{"a private that is a string", `{"repository": {"private": "yes"}}`, "its field repository.private isn't a boolean"},
		{"too much", `{"a": "` + strings.Repeat("x", devissuer.MaxEventBytes) + `"}`, "it has more than 26214400 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, err := devissuer.ParseEvent([]byte(tt.payload), ""); err == nil || err.Error() != tt.want {
				t.Errorf("ParseEvent = %v, want %q", err, tt.want)
			}
		})
	}
}

// What an event says reaches the token, with the claims that follow from it.
func TestEventReachesToken(t *testing.T) {
	t.Parallel()
	event, err := devissuer.ParseEvent([]byte(`{"ref": "refs/tags/v1", "repository": {"id": 5, "full_name": "pay/api", "owner": {"id": 6}}}`), "")
	if err != nil {
		t.Fatal(err)
	}
	iss, issuerURL := start(t, event.Claims)
	claims := verify(t, issuerURL, "https://runenv.example.com", request(t, iss, "https://runenv.example.com"))
	for name, want := range map[string]any{
		"sub": "repo:pay@6/api@5:ref:refs/tags/v1", "repository_owner": "pay", "ref_type": "tag",
		"workflow_ref": "pay/api/.github/workflows/ci.yml@refs/tags/v1", "event_name": "push",
	} {
		if claims[name] != want {
			t.Errorf("claim %s = %v, want %v", name, claims[name], want)
		}
	}
}

// Whatever a file holds, its claims are strings and none that the issuer keeps
// for itself.
func FuzzParseEvent(f *testing.F) {
	f.Add([]byte(`{"ref": "refs/heads/main", "repository": {"id": 1, "owner": {"id": 2}}}`), "")
	f.Add([]byte(`{"pull_request": {"head": {"repo": null}}, "comment": {}}`), "push")
	f.Add([]byte(`{"sender": {"login": "dependabot[bot]"}}`), "pull_request")
	f.Fuzz(func(t *testing.T, payload []byte, name string) {
		event, err := devissuer.ParseEvent(payload, name)
		if err != nil {
			if bytes.Contains(payload, []byte("c4n4ry")) && strings.Contains(err.Error(), "c4n4ry") {
				t.Errorf("the error holds the file's content: %v", err)
			}
			return
		}
		for claim, value := range event.Claims {
			if s, ok := value.(string); !ok || s == "" || claim == "iss" || claim == "aud" || claim == "exp" {
				t.Errorf("claim %s = %v", claim, value)
			}
		}
	})
}
