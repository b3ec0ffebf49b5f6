package e2e_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// world is one broker between a CI's job and a real Vault with a real
// PostgreSQL: the role migrate of project shop-api gets a database user.
type world struct {
	ci       *harness.CI
	broker   *harness.BrokerServer
	vault    *harness.VaultServer
	postgres *harness.PostgresServer
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{ci: harness.NewCI(t, nil), broker: harness.NewBroker(t), vault: harness.Vault(t), postgres: harness.Postgres(t)}
	w.vault.MountDatabase(t, w.postgres, "shop-ro", time.Minute, time.Hour)
	w.broker.Start(t, fmt.Sprintf(`
issuers:
  github: {profile: github, url: "%s", ca_file: "%s", allow_networks: ["127.0.0.0/8"]}
providers:
  vault: {type: vault, address: "%s"}
projects:
  shop-api: {github: acme/shop-api@1001}
leases:
  db: {provider: vault, path: database/creds/shop-ro, env: {DB_USER: username, DB_PASSWORD: password}, ttl: 1m, max_ttl: 10m}
roles:
  migrate:
    projects: [shop-api]
    match:
      github: {ref: refs/heads/main, event_name: push}
    leases: [db]
`, w.ci.URL, w.broker.CAFile, w.vault.Address))
	w.vault.TrustIssuer(t, w.broker.URL, harness.CA(t))
	w.vault.TrustRole(t, "migrate", `path "database/creds/shop-ro" { capabilities = ["read"] }`)
	return w
}

func TestCommandHasDatabaseUserWhileItRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	job := w.start(t, `echo "I am $DB_USER, password $DB_PASSWORD"; read -r line; exit 7`)

	if roles := w.postgres.Roles(t); !slices.Contains(roles, job.user) {
		t.Fatalf("Roles() while the command runs = %q, want %q among them", roles, job.user)
	}
	if orders, err := w.postgres.Login(t.Context(), job.user, job.password); err != nil || orders != 1 {
		t.Errorf("Login while the command runs = %d orders, %v, want 1", orders, err)
	}

	_ = job.stdin.Close()
	var exit *exec.ExitError
	if err := job.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("runenv run ends with %v, want the command's own status 7", err)
	}
	w.gone(t, job, 2*time.Second)
	out := job.output.String()
	if !strings.Contains(out, "password [REDACTED:db]") {
		t.Errorf("the command's output is %q, without the marker", out)
	}
	for what, text := range map[string]string{"output": out, "broker's log": w.broker.Log()} {
		if strings.Contains(text, job.password) {
			t.Errorf("the %s holds the password", what)
		}
	}
}

func TestT30KilledWrapperLeavesNoDatabaseUser(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	job := w.start(t, `read -r line`)
	if err := job.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = job.cmd.Wait()
	w.gone(t, job, 5*time.Second)
}

// A job is a command under `runenv run` that has told its credentials.
type job struct {
	cmd            *exec.Cmd
	stdin          io.WriteCloser
	output         *bytes.Buffer // to be read when cmd has ended
	user, password string
}

// start runs a shell script with the role migrate. It tells its credentials
// through a named pipe, which no redactor sees and no disk keeps.
func (w *world) start(t *testing.T, script string, flags ...string) *job {
	t.Helper()
	fifo := filepath.Join(t.TempDir(), "told")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	j := &job{output: new(bytes.Buffer)}
	j.cmd = w.broker.Runenv(t, w.ci, slices.Concat([]string{"run", "--role", "migrate"}, flags,
		[]string{"--", "sh", "-c", `echo "$DB_USER $DB_PASSWORD" >"$0"; ` + script, fifo})...)
	j.cmd.Stdout, j.cmd.Stderr = j.output, j.output
	j.cmd.WaitDelay = 5 * time.Second // a killed wrapper's command may hold the output open
	stdin, err := j.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	j.stdin = stdin
	if err := j.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = j.cmd.Process.Kill()
		_ = j.cmd.Wait()
		if t.Failed() {
			t.Logf("runenv run printed:\n%s", j.output)
		}
	})
	// Opened for writing as well, so that a wrapper that never starts its
	// command ends the wait by its deadline.
	told, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = told.Close() }()
	if err := told.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(told).ReadString('\n')
	if err != nil {
		t.Fatalf("the command told nothing: %v", err)
	}
	var ok bool
	if j.user, j.password, ok = strings.Cut(strings.TrimSpace(line), " "); !ok || j.user == "" || j.password == "" {
		t.Fatalf("the command told %d bytes, want a user and a password", len(line))
	}
	return j
}

// gone waits until the job's user is no more.
func (w *world) gone(t *testing.T, j *job, within time.Duration) {
	t.Helper()
	begin := time.Now()
	harness.Eventually(t, within, "the database user of the ended command is gone", func() bool {
		return !slices.Contains(w.postgres.Roles(t), j.user)
	})
	t.Logf("the user was gone %v after the command", time.Since(begin).Round(time.Millisecond))
	if _, err := w.postgres.Login(t.Context(), j.user, j.password); err == nil {
		t.Error("Login after the command succeeds")
	}
}
