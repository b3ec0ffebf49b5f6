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

// A job of GitLab's with the component of this repository.
const gitlabHead = `include:
  - local: templates/runenv.yml
    inputs: {broker: "$JOB_BROKER", role: migrate}
migrate:
  extends: .runenv
  script:
`

// holdGitLab is a script's line that tells its credentials and waits.
const holdGitLab = `    - runenv run -- sh -c 'echo "$DB_USER $DB_PASSWORD" >"$TOLD"; read -r line <"$GATE"; echo "the password is $DB_PASSWORD"'
`

// gitlab starts a job under the real gitlab-ci-local, whose GitLab gives it one
// token, and waits for nothing.
func (s *site) gitlab(t *testing.T, script string, variables ...string) *run {
	t.Helper()
	r := &run{dir: jobDir(t, nil), done: make(chan struct{}), stdout: new(output)}
	r.stderr = r.stdout
	r.told, r.stdin = pipe(t, nil, filepath.Join(r.dir, "told")), pipe(t, nil, filepath.Join(r.dir, "gate"))
	template, err := os.ReadFile("../templates/runenv.yml")
	if err != nil {
		t.Fatal(err)
	}
	if variables == nil {
		token, err := s.ci.Issuer.GitLabToken(s.broker.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		variables = []string{"RUNENV_ID_TOKEN=" + token}
	}
	r.cmd = harness.GitLab(t, harness.Job{
		Dir: r.dir, Name: "migrate", Variables: variables,
		Path: []string{filepath.Dir(harness.Binaries(t).Runenv)},
		Env:  []string{"RUNENV_CA_FILE=" + s.broker.CAFile, "TOLD=" + r.told.Name(), "GATE=" + r.stdin.Name()},
		Files: map[string]string{
			"templates/runenv.yml": string(template),
			".gitlab-ci.yml":       strings.ReplaceAll(gitlabHead, "$JOB_BROKER", s.broker.URL) + script,
		},
	})
	s.begin(t, r)
	return r
}

func newGitLabSite(t *testing.T) *site {
	t.Helper()
	return newComponents(t).newSite(t, plan{
		issuer:   `gitlab: {profile: gitlab, url: "%s", ca_file: "%s", allow_networks: ["127.0.0.0/8"]}`,
		projects: `shop-api: {gitlab: pay/api@88}`,
	})
}

func TestGitLabJob(t *testing.T) {
	t.Parallel()
	s := newGitLabSite(t)
	scan := func(t *testing.T, r *run) {
		t.Helper()
		scanner := harness.NewScanner(t, harness.Canary{Name: "leased user", Value: r.user}, harness.Canary{Name: "leased password", Value: r.password})
		for _, found := range scanner.Tree(t, r.dir) { // the job's log lies there too
			t.Errorf("a file holds the value: %s", found)
		}
		scanner.Check(t, "output", []byte(r.stdout.String()))
	}
	t.Run("runs twice with one token", func(t *testing.T) {
		t.Parallel()
		r := s.gitlab(t, holdGitLab+`    - 'echo "between them: [$DB_USER]"'`+"\n"+holdGitLab)
		r.listen(t)
		first := r.user
		s.alive(t, r)
		scan(t, r)
		r.pass(t)
		s.gone(t, r, 2*time.Second, "the first command's end")
		r.listen(t)
		if r.user == first {
			t.Error("both commands have the same user")
		}
		s.alive(t, r)
		r.pass(t)
		s.gone(t, r, 2*time.Second, "the second command's end")
		r.ended(t, true)
		r.says(t, "the password is [REDACTED:db]", "between them: []")
		scan(t, r)
	})
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		r := s.gitlab(t, holdGitLab)
		r.listen(t)
		s.alive(t, r)
		// GitLab's shell executor: SIGTERM to the group of the job's script.
		if err := syscall.Kill(-groupOf(t, r.runenvRun(t)), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		s.gone(t, r, 5*time.Second, "SIGTERM")
		scan(t, r)
	})
	t.Run("T30 wrapper killed", func(t *testing.T) {
		t.Parallel()
		r := s.gitlab(t, holdGitLab)
		r.listen(t)
		s.alive(t, r)
		kill(t, r.runenvRun(t))
		s.gone(t, r, 5*time.Second, "the kill")
		r.ended(t, false)
		scan(t, r)
	})
	t.Run("T30 runner killed with all below it", func(t *testing.T) {
		t.Parallel()
		r := s.gitlab(t, strings.Replace(holdGitLab, "runenv run", "runenv run --debug", 1))
		r.listen(t)
		r.streams(t)
		s.alive(t, r)
		for _, pid := range append([]int{r.cmd.Process.Pid}, descendants(t, r.cmd.Process.Pid)...) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		s.gone(t, r, 35*time.Second, "the kill")
		scan(t, r)
	})
	t.Run("no token", func(t *testing.T) {
		t.Parallel()
		r := s.gitlab(t, "    - runenv run -- echo ran on\n", "GITLAB_CI=true")
		r.ended(t, false)
		r.says(t, "runenv: error: no OIDC token source", `runenv: hint: add "id_tokens: RUNENV_ID_TOKEN: aud: <the broker's URL>" to the job`)
		r.lacks(t, "> ran on")
	})
	t.Run("role refused", func(t *testing.T) {
		t.Parallel()
		r := s.gitlab(t, "    - runenv run --role nobody-has-this -- echo ran on\n")
		r.ended(t, false)
		r.says(t, "invalid_target", "[request r-", "project_path: pay/api")
		r.lacks(t, "> ran on")
	})
}

// runenvRun is the process `runenv run` of a job.
func (r *run) runenvRun(t *testing.T) int {
	t.Helper()
	return r.below(t, "runenv run ")
}

func groupOf(t *testing.T, pid int) int {
	t.Helper()
	group, err := syscall.Getpgid(pid)
	if err != nil {
		t.Fatal(err)
	}
	return group
}
