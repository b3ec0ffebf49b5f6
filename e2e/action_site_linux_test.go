package e2e_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// A workflow is one that act runs against a site. Its texts are lines of YAML
// that stand at the left edge.
type workflow struct {
	job   string // keys of the job, beside runs-on and steps
	steps string // may use "{{runenv}}" for the action, with its first inputs
	as    *syscall.Credential
	node  int
	env   []string // NAME= takes a variable away
	args  []string // of act
	// actions beside RunEnv's own, by the name that stands for them
	actions map[string]string
}

// The step most tests have. Its script tells its credentials and waits.
const migrateStep = `
- uses: {{runenv}}
    run: |
      echo "$DB_USER $DB_PASSWORD" >"$TOLD"
      read -r line <"$GATE"
`

// runenvStep begins a step with the action, and its inputs.
const runenvStep = harness.Action + `
  with:
    binary: ${{ env.JOB_RUNENV }}
    broker: ${{ env.JOB_BROKER }}
    role: migrate`

// indent moves lines of YAML to the right.
func indent(text string, by int) string {
	return strings.ReplaceAll("\n"+strings.Trim(text, "\n"), "\n", "\n"+strings.Repeat(" ", by))
}

// act starts a workflow of one job under the real act, and waits for nothing.
// pass lets one script that waits at $GATE go on.
func (s *site) act(t *testing.T, w workflow) *run {
	t.Helper()
	r := &run{dir: jobDir(t, w.as), done: make(chan struct{}), stdout: new(output)}
	r.stderr = r.stdout // act prints all on one
	r.told, r.stdin = pipe(t, w.as, filepath.Join(r.dir, "told")), pipe(t, w.as, filepath.Join(r.dir, "gate"))
	if err := os.Mkdir(filepath.Join(r.dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	ca := copyOf(t, s.broker.CAFile, filepath.Join(r.dir, "ca.crt"), 0o644)
	env := map[string]string{
		"JOB_RUNENV": copyOf(t, harness.Binaries(t).Runenv, filepath.Join(r.dir, "bin", "runenv"), 0o755),
		"JOB_BROKER": s.broker.URL,
		"JOB_DIR":    r.dir,
		"TOLD":       r.told.Name(), "GATE": r.stdin.Name(),
		"RUNENV_CA_FILE": ca, "SSL_CERT_FILE": ca,
	}
	for _, assignment := range append(append([]string{}, s.ci.Environ...), w.env...) {
		name, value, _ := strings.Cut(assignment, "=")
		env[name] = value
	}
	job := harness.Job{
		Dir: r.dir, As: w.as, Node: w.node, Args: w.args, Actions: w.actions,
		Files: map[string]string{".github/workflows/ci.yml": "on: push\npermissions: {id-token: write, contents: read}\njobs:\n  migrate:\n    runs-on: ubuntu-latest" +
			indent(w.job, 4) + "\n    steps:" + indent(strings.ReplaceAll(w.steps, "{{runenv}}", runenvStep), 6) + "\n"},
	}
	for name, value := range env {
		if value != "" {
			job.Env = append(job.Env, name+"="+value)
		}
	}
	r.cmd = harness.Act(t, job)
	s.begin(t, r)
	return r
}

// begin starts a runner, and ends it and all below it with the test.
func (*site) begin(t *testing.T, r *run) {
	t.Helper()
	r.cmd.Cancel = func() error { return nil } // the clean-up below ends it
	r.cmd.Stdout, r.cmd.Stderr = r.stdout, r.stdout
	r.cmd.WaitDelay = 5 * time.Second
	if r.cmd.SysProcAttr == nil {
		r.cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	r.cmd.SysProcAttr.Setpgid = true // a signal to its group isn't one to the tests
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = r.cmd.Wait()
		close(r.done)
	}()
	t.Cleanup(func() {
		for _, pid := range append(descendants(t, r.cmd.Process.Pid), r.cmd.Process.Pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		<-r.done
		_, _ = r.stdin.Close(), r.told.Close()
		if t.Failed() {
			t.Logf("the runner printed:\n%.32768s", r.stdout)
		}
	})
}

// pipe makes a named pipe that the test holds open in both directions, so that
// nobody waits for its other end.
func pipe(t *testing.T, as *syscall.Credential, path string) *os.File {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	own(t, as, path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// pass lets one script that waits at $GATE go on.
func (r *run) pass(t *testing.T) {
	t.Helper()
	if _, err := r.stdin.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
}

// migrates starts a workflow whose script tells its credentials, and waits for
// them.
func (s *site) migrates(t *testing.T, w workflow) *run {
	t.Helper()
	r := s.act(t, w)
	r.listen(t)
	return r
}

// ended waits for the runner's end: zero if the job succeeded.
func (r *run) ended(t *testing.T, wantSuccess bool) {
	t.Helper()
	if got := r.status(t, time.Minute); (got == 0) != wantSuccess {
		t.Errorf("the runner ends with %d, want success %t", got, wantSuccess)
	}
}

// lacks fails the test if the output has one of the texts.
func (r *run) lacks(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if strings.Contains(r.stdout.String(), text) {
			t.Errorf("the output has %q", text)
		}
	}
}

// descendants are the processes below one, deepest last.
func descendants(t *testing.T, pid int) []int {
	t.Helper()
	var all []int
	for _, child := range childrenOf(t, pid) {
		all = append(append(all, child), descendants(t, child)...)
	}
	return all
}

// commandOf is a process's arguments, with spaces between; "" if it is gone.
func commandOf(pid int) string {
	args, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return ""
	}
	return string(bytes.ReplaceAll(bytes.TrimRight(args, "\x00"), []byte{0}, []byte{' '}))
}

// entry is the process that act started for the step: the runner signals that
// one alone.
func (r *run) entry(t *testing.T) int {
	t.Helper()
	children := childrenOf(t, r.cmd.Process.Pid)
	if len(children) != 1 {
		t.Fatalf("act has the children %v, want one: the step's", children)
	}
	return children[0]
}

// wrapper is the process `runenv action main` of the step.
func (r *run) wrapper(t *testing.T) int {
	t.Helper()
	return r.below(t, "runenv action main")
}

// below is the process under the runner whose arguments begin so; as node
// spawns it, a path may come before.
func (r *run) below(t *testing.T, command string) int {
	t.Helper()
	for _, pid := range descendants(t, r.cmd.Process.Pid) {
		got := commandOf(pid)
		if strings.HasPrefix(got[strings.LastIndexByte(strings.SplitN(got, " ", 2)[0], '/')+1:], command) {
			return pid
		}
	}
	t.Fatalf("no process under the runner is `%s`", command)
	return 0
}
