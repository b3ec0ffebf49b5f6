package e2e_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every example runs as it stands, but for the broker's address and the place
// of the component.
func TestExamples(t *testing.T) {
	t.Parallel()
	registry := newRegistry(t)
	g := newGallery(t, map[string]string{"npm": registry.token, "state-read": word(), "state-write": word(), "deploy": word()})
	want := []string{fmt.Sprintf("WANT=%x", sha256.Sum256([]byte(g.values["deploy"])))}
	fork := `{"pull_request": {"number": 1, "head": {"ref": "x", "repo": {"id": 2}}, "base": {"ref": "main", "repo": {"id": 1}}}}`
	own := `{"pull_request": {"number": 1, "head": {"ref": "x", "repo": {"id": 1}}, "base": {"ref": "main", "repo": {"id": 1}}}}`

	github := map[string]func(t *testing.T, name string){
		"database.yml": func(t *testing.T, name string) {
			g.github(t, scene{kind: "push"}, name).database(t, 1, `built with the database user ""`, "with [REDACTED:db]")
		},
		"matrix.yml": func(t *testing.T, name string) {
			g.github(t, scene{kind: "push"}, name).database(t, 3, "passed 1 ", "passed 2 ", "passed 3 ")
		},
		"reusable-caller.yml": func(t *testing.T, name string) {
			g.github(t, scene{kind: "push"}, name, "reusable-workflow.yml").database(t, 1, "with [REDACTED:db]", "made the change")
		},
		"reusable-workflow.yml": func(*testing.T, string) {}, // with its caller, above
		"pull-request.yml": func(t *testing.T, name string) {
			g.github(t, scene{kind: "pulls", event: "pull_request", eventFile: own}, name).database(t, 1, "with [REDACTED:db]")
			v := g.github(t, scene{noToken: true, event: "pull_request", eventFile: fork}, name)
			v.ends(t, true, "built with", "forks get no database")
		},
		"environment.yml": func(t *testing.T, name string) {
			s := scene{kind: "production", env: want}
			g.github(t, s, name).ends(t, true, "deployed with [REDACTED:deploy-key]")
			s.kind = "push" // the same job without the environment
			g.github(t, s, name).ends(t, false, "invalid_target")
		},
		"npm-publish.yml": func(t *testing.T, name string) {
			s := scene{kind: "release", event: "release", files: registry.files("shop-github")}
			g.github(t, s, name).ends(t, true, "tested without a token")
			registry.has(t, "shop-github")
		},
		"docker-build.yml": func(t *testing.T, name string) {
			d := g.newDocker(t)
			g.github(t, scene{kind: "push", files: d.files(t), path: d.path}, name).ends(t, true)
			d.built(t)
		},
		"terraform.yml": func(t *testing.T, name string) {
			b := g.newBackend(t)
			v := g.github(t, b.scene(t, scene{kind: "push"}), name)
			v.ends(t, true)
			b.applied(t, v)
		},
	}
	gitlab := map[string]func(t *testing.T, name string){
		"database.yml": func(t *testing.T, name string) {
			g.gitlab(t, scene{job: "integration-test"}, name).database(t, 1, "with [REDACTED:db]")
		},
		"matrix.yml": func(t *testing.T, name string) {
			g.gitlab(t, scene{}, name).database(t, 3, "passed 1 ", "passed 2 ", "passed 3 ")
		},
		"reusable-caller.yml": func(t *testing.T, name string) {
			g.gitlab(t, scene{}, name, "reusable-template.yml").database(t, 1, "with [REDACTED:db]")
		},
		"reusable-template.yml": func(*testing.T, string) {}, // with its caller, above
		"merge-request.yml": func(t *testing.T, name string) {
			s := scene{
				claims:    map[string]any{"pipeline_source": "merge_request_event", "ref": "refs/merge-requests/1/head"},
				variables: []string{"CI_PIPELINE_SOURCE=merge_request_event", "CI_PROJECT_ID=88", "CI_MERGE_REQUEST_SOURCE_PROJECT_ID=88"},
			}
			g.gitlab(t, s, name).database(t, 1, "built with", "with [REDACTED:db]")
			s.variables[2] = "CI_MERGE_REQUEST_SOURCE_PROJECT_ID=99"
			v := g.gitlab(t, s, name)
			v.ends(t, true, "built with")
		},
		"environment.yml": func(t *testing.T, name string) {
			s := scene{env: want, claims: map[string]any{"environment": "production"}}
			g.gitlab(t, s, name).ends(t, true, "deployed with [REDACTED:deploy-key]")
			s.claims = nil // the same job without the environment
			g.gitlab(t, s, name).ends(t, false, "invalid_target")
		},
		"npm-publish.yml": func(t *testing.T, name string) {
			s := scene{
				files: registry.files("shop-gitlab"), claims: map[string]any{"ref": "v1", "ref_type": "tag"},
				variables: []string{"CI_COMMIT_TAG=v1"},
			}
			g.gitlab(t, s, name).ends(t, true, "tested without a token")
			registry.has(t, "shop-gitlab")
		},
		"docker-build.yml": func(t *testing.T, name string) {
			d := g.newDocker(t)
			g.gitlab(t, scene{files: d.files(t), path: d.path}, name).ends(t, true)
			d.built(t)
		},
		"terraform.yml": func(t *testing.T, name string) {
			b := g.newBackend(t)
			v := g.gitlab(t, b.scene(t, scene{}), name)
			v.ends(t, true)
			b.applied(t, v)
		},
	}
	for ci, shows := range map[string]map[string]func(*testing.T, string){"github": github, "gitlab": gitlab} {
		entries, err := os.ReadDir(filepath.Join("../examples", ci))
		if err != nil || len(entries) != len(shows) {
			t.Errorf("examples/%s has %d files, %v, and %d are run", ci, len(entries), err, len(shows))
		}
		for name, show := range shows {
			t.Run(ci+"/"+name, func(t *testing.T) {
				t.Parallel()
				show(t, name)
			})
		}
	}
}

// The component runs what has the checksum and nothing else, and says which of
// its inputs is wrong.
func TestT33ComponentVerifiesWhatItInstalls(t *testing.T) {
	t.Parallel()
	g := newGallery(t, map[string]string{"npm": word(), "state-read": word(), "state-write": word(), "deploy": word()})
	good := g.sha256
	flipped := map[byte]string{'0': "1"}[good[0]]
	if flipped == "" {
		flipped = "0"
	}
	tests := []struct{ name, old, new, want string }{
		{"one bit of the checksum", "sha256: \"" + good, "sha256: \"" + flipped + good[1:], "isn't the runenv of the component's sha256"},
		{"no checksum", "sha256: \"" + good + "\"", "", "isn't the runenv of the component's sha256"},
		{"half a checksum", "sha256: \"" + good, "sha256: \"" + good[:32], "`sha256` input"},
		{"nothing at the URL", "/v9.9.9/", "/v8.8.8/", "the download of runenv failed"},
		{"a command in the URL", "url: $MIRROR", "url: https://$(touch stolen)", "`url` input"},
		{"a slash behind the broker", g.broker.URL, g.broker.URL + "/", "`broker` input"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v := g.gitlab(t, scene{
				claims: map[string]any{"environment": "production"}, env: []string{"WANT=none"},
				edit: func(text string) string { return strings.Replace(text, tt.old, tt.new, 1) },
			}, "environment.yml")
			v.ends(t, false, tt.want)
			if strings.Contains(v.stdout.String(), "$ runenv run") {
				t.Error("the job's script ran")
			}
		})
	}
}
