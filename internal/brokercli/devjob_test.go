package brokercli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestJobOfFlags(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	push := file("push.json", `{"ref": "refs/heads/dev"}`)
	fork := file("fork.json", `{"pull_request": {"head": {"repo": null}}}`)
	tests := []struct {
		name    string
		flags   jobFlags
		claims  map[string]any
		noToken bool
	}{
		{"nothing", jobFlags{}, map[string]any{}, false},
		{
			"claims", jobFlags{claims: []string{"environment=a=b", "base_ref=", "repo_property_tier=1"}},
			map[string]any{"environment": "a=b", "base_ref": "", "repo_property_tier": "1"}, false,
		},
		{"an event", jobFlags{event: push}, map[string]any{"event_name": "push", "ref": "refs/heads/dev"}, false},
		{
			"a claim over an event", jobFlags{event: push, claims: []string{"ref=refs/heads/main"}},
			map[string]any{"event_name": "push", "ref": "refs/heads/main"}, false,
		},
		{"a fork", jobFlags{event: fork}, map[string]any{"event_name": "pull_request", "ref": "refs/pull/1/merge"}, true},
		{
			"another event of the same payload", jobFlags{event: fork, claims: []string{"event_name=pull_request_target"}},
			map[string]any{"event_name": "pull_request_target"}, false,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := tt.flags.job()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.claims, got.Claims); diff != "" || (got.NoToken != "") != tt.noToken {
				t.Errorf("job: NoToken = %q, want one: %v; claims (-want +got):\n%s", got.NoToken, tt.noToken, diff)
			}
		})
	}

	refused := []struct {
		name  string
		flags jobFlags
		want  string
	}{
		{"no value", jobFlags{claims: []string{"ref"}}, `--claim "ref" has no =`},
		{"a slip", jobFlags{claims: []string{"environmnt=x"}}, "--claim environmnt isn't a claim of GitHub's"},
		{"the issuer's own", jobFlags{claims: []string{"aud=x"}}, "--claim aud isn't a claim of GitHub's"},
		{"twice", jobFlags{claims: []string{"ref=a", "ref=b"}}, "--claim ref is given twice"},
		{"no file", jobFlags{event: filepath.Join(dir, "none.json")}, "none.json: the file isn't there"},
		{"no event", jobFlags{event: file("bad.json", "c4n4ry")}, "bad.json: it isn't a JSON object"},
	}
	for _, tt := range refused {
		t.Run("refuses "+tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := tt.flags.job()
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "c4n4ry") {
				t.Errorf("job = %v, want %q", err, tt.want)
			}
		})
	}
}
