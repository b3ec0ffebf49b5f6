package e2e_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// saveCache is an action that does what actions/cache does, by the library
// that is in it, with act's own cache server.
const saveCache = `import * as cache from %q
const id = await cache.saveCache([process.env.GITHUB_WORKSPACE, process.env.RUNNER_TEMP, process.env.HOME + '/.npm'], 'all')
if (!(id > 0)) throw new Error('nothing was saved')
`

func TestNoSavedCacheHoldsTheValue(t *testing.T) {
	t.Parallel()
	s := newComponents(t).newSite(t, plan{})
	save := t.TempDir()
	for name, text := range map[string]string{
		"action.yml": "name: save\ndescription: saves\nruns: {using: node24, main: main.mjs}\n",
		"main.mjs":   fmt.Sprintf(saveCache, filepath.Join(harness.NPM(t), "@actions", "cache", "lib", "cache.js")),
	} {
		if err := os.WriteFile(filepath.Join(save, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		end  func(t *testing.T, r *run)
	}{
		{"success", func(t *testing.T, r *run) { r.pass(t) }},
		{"wrapper killed", func(t *testing.T, r *run) { kill(t, r.wrapper(t)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := s.migrates(t, workflow{actions: map[string]string{"example/save@v1": save}, steps: saveSteps})
			c.end(t, r)
			s.gone(t, r, 5*time.Second, "the script's end")
			r.ended(t, c.name == "success")
			checkSaved(t, r)
		})
	}
}

// saveSteps leave files wherever a job saves, and a wrapped script that holds.
const saveSteps = `
- uses: actions/checkout@v4
- uses: {{runenv}}
    run: |
      mkdir -p "$HOME/.npm"
      for dir in . "$RUNNER_TEMP" "$HOME/.npm"; do echo of-the-script >"$dir/made"; done
      echo "$DB_USER $DB_PASSWORD" >"$TOLD"
      read -r line <"$GATE"
- if: always()
  uses: example/save@v1
`

// checkSaved unpacks what the job saved and looks for the values.
func checkSaved(t *testing.T, r *run) {
	t.Helper()
	scanner := harness.NewScanner(t, harness.Canary{Name: "leased user", Value: r.user}, harness.Canary{Name: "leased password", Value: r.password})
	made, archives := 0, 0
	err := filepath.WalkDir(filepath.Join(r.dir, "home", ".cache", "actcache"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || strings.HasSuffix(path, ".db") {
			return err
		}
		archives++
		out := t.TempDir()
		// Names are kept as they are, so that none is left out.
		if out, err := exec.Command("tar", "-xPf", path, "--transform", "s,^[./]*,"+out+"/,S").CombinedOutput(); err != nil {
			return fmt.Errorf("unpacking %s: %w\n%s", path, err, out)
		}
		for _, found := range scanner.Tree(t, out) {
			t.Errorf("the saved cache holds the value: %s", found)
		}
		return filepath.WalkDir(out, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.Name() == "made" {
				made++
			}
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if archives != 1 || made != 3 {
		t.Errorf("%d archives were saved, with %d of the script's three files", archives, made)
	}
}
