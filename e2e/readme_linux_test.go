package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/runenv/action/e2e/harness"
)

// The workflow and the GitLab job with which README.md begins work when they
// are pasted, with the broker's address put in. What the workflow builds from
// this repository's host is here what this run built.
func TestReadmeBeginsWithWhatWorks(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), 2)
	setUp := regexp.MustCompile(`actions/setup-go@[0-9a-f]{40}`).FindString(string(text))
	if len(blocks) != 2 || setUp == "" {
		t.Fatal("README.md doesn't begin with a workflow and a GitLab job")
	}
	g := newGallery(t, map[string]string{"npm": word(), "state-read": word(), "state-write": word(), "deploy": word()})
	runenv := harness.Binaries(t).Runenv
	standIns := t.TempDir()
	for name, content := range map[string]string{
		"action.yml": "name: set up Go\nruns: {using: composite, steps: [{run: \"true\", shell: sh}]}\n",
		"go":         fmt.Sprintf("#!/bin/sh\ntest \"$1 $2\" = 'install github.com/runenv/action/cmd/runenv@%s' && mkdir -p \"$GOBIN\" && cp '%s' \"$GOBIN/runenv\"\n", placeholder, runenv),
	} {
		if err := os.WriteFile(filepath.Join(standIns, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const script = "#!/bin/sh\nexec make migrate\n"
	t.Run("github", func(t *testing.T) {
		t.Parallel()
		g.github(t, scene{
			kind: "push", path: []string{standIns}, actions: map[string]string{setUp: standIns},
			files: map[string]string{"migrate.sh": script, ".github/workflows/ci.yml": g.local(blocks[0][1])},
		}).database(t, 1, "with [REDACTED:db]")
	})
	t.Run("gitlab", func(t *testing.T) {
		t.Parallel()
		g.gitlab(t, scene{
			path: []string{filepath.Dir(runenv)}, files: map[string]string{"migrate.sh": script, ".gitlab-ci.yml": g.local(blocks[1][1])},
		}).database(t, 1, "with [REDACTED:db]")
	})
}
