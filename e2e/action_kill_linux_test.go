package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// After the wrapped step: what the next step has in its environment, the
// workspace, and the command files go to a folder that is searched.
const dumpStep = `
- if: always()
  run: |
    mkdir -p "$JOB_DIR/tmp/next"
    env >"$JOB_DIR/tmp/next/environ"
    cp -R "$RUNNER_TEMP" "$JOB_DIR/tmp/next/temp"
    cp -R "$(dirname "$GITHUB_ENV")" "$JOB_DIR/tmp/next/commands"
    cp -R . "$JOB_DIR/tmp/next/workspace"
`

func TestT30UserIsGoneHoweverTheStepEnds(t *testing.T) {
	t.Parallel()
	s := newComponents(t).newSite(t, plan{})
	for _, u := range jobUsers(t) {
		t.Run(u.name, func(t *testing.T) { t.Parallel(); s.endsOfSteps(t, u.as) })
	}
}

func (s *site) endsOfSteps(t *testing.T, as *syscall.Credential) {
	for _, c := range []struct {
		name   string
		node   int
		script string // after the credentials are told
		end    func(t *testing.T, r *run)
	}{
		{"success", 24, `read -r line <"$GATE"; echo "$DB_PASSWORD" | base64`, func(t *testing.T, r *run) {
			r.pass(t)
			s.gone(t, r, 2*time.Second, "the script's end")
			r.ended(t, true)
			r.says(t, "[REDACTED:db]")
		}},
		{"failure", 24, `read -r line <"$GATE"; echo "$DB_PASSWORD" >&2; exit 7`, func(t *testing.T, r *run) {
			r.pass(t)
			s.gone(t, r, 2*time.Second, "the script's end")
			r.ended(t, false)
			r.says(t, "[REDACTED:db]", "exit status 7")
		}},
		{"failure on an old Node", 20, `read -r line <"$GATE"; exit 7`, func(t *testing.T, r *run) {
			r.pass(t)
			s.gone(t, r, 2*time.Second, "the script's end")
			r.ended(t, false)
			r.says(t, "exit status 7")
		}},
		{"wrapper killed", 24, `read -r line <"$GATE"`, func(t *testing.T, r *run) {
			kill(t, r.wrapper(t))
			s.gone(t, r, 5*time.Second, "the kill")
			r.ended(t, false)
		}},
		{"wrapper and guardian killed", 24, `read -r line <"$GATE"`, func(t *testing.T, r *run) {
			for _, pid := range append(descendants(t, r.wrapper(t)), r.wrapper(t)) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			// The post step ends what is left.
			s.gone(t, r, 5*time.Second, "the kill")
			r.ended(t, false)
		}},
		{"cancelled", 24, `trap '' INT; while :; do read -r line <"$GATE"; done`, s.cancelsStep},
		{"cancelled on an old Node", 20, `trap '' INT; while :; do read -r line <"$GATE"; done`, s.cancelsStep},
		{"the runner killed with all below it", 24, `read -r line <"$GATE"`, func(t *testing.T, r *run) {
			r.streams(t)
			act := r.cmd.Process.Pid
			for _, pid := range append([]int{act}, descendants(t, act)...) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			s.gone(t, r, 35*time.Second, "the kill")
			<-r.done
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := s.migrates(t, workflow{as: as, node: c.node, env: []string{"RUNNER_DEBUG=1"}, steps: "- uses: actions/checkout@v4\n" + strings.ReplaceAll(migrateStep, `read -r line <"$GATE"`, c.script) + dumpStep})
			s.alive(t, r)
			scanner := harness.NewScanner(t, harness.Canary{Name: "leased user", Value: r.user}, harness.Canary{Name: "leased password", Value: r.password})
			look := func(when string) {
				t.Helper()
				for _, found := range scanner.Tree(t, r.dir) {
					t.Errorf("%s, a file holds the value: %s", when, found)
				}
				scanner.Check(t, "output "+when, []byte(r.stdout.String()))
			}
			look("while the script runs")
			c.end(t, r)
			look("after the script")
			if c.name == "the runner killed with all below it" {
				return
			}
			for _, dumped := range []string{"environ", "temp", "commands/envs.txt", "commands/statecmd.txt", "commands/outputcmd.txt", "commands/SUMMARY.md", "workspace/.github"} {
				if _, err := os.Stat(filepath.Join(r.dir, "tmp", "next", dumped)); err != nil {
					t.Errorf("the next step saw nothing: %v", err)
				}
			}
		})
	}
}

// cancelsStep cancels a step as the runner does: SIGINT, SIGTERM and SIGKILL,
// to the entry process alone.
func (s *site) cancelsStep(t *testing.T, r *run) {
	t.Helper()
	entry := r.entry(t)
	signal := func(sig syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(entry, sig); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	signal(syscall.SIGINT)
	select {
	case <-r.done:
		t.Fatalf("act ended %v after a SIGINT that the script ignores", time.Since(begin))
	case <-time.After(untilTerm):
	}
	s.alive(t, r)
	signal(syscall.SIGTERM)
	s.gone(t, r, untilKill-time.Since(begin), "SIGTERM")
	r.ended(t, false)
}
