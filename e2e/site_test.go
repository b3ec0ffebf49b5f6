package e2e_test

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/runenv/action/e2e/harness"
)

// components are the real back ends and the CI of several sites, which share
// them to save time.
type components struct {
	ci       *harness.CI
	vault    *harness.VaultServer
	postgres *harness.PostgresServer
	watch    *harness.RoleWatch
	sites    atomic.Int32
}

func newComponents(t *testing.T) *components {
	t.Helper()
	c := &components{ci: harness.NewCI(t, nil), vault: harness.Vault(t), postgres: harness.Postgres(t)}
	c.watch = c.postgres.Watch(t)
	c.vault.MountDatabase(t, c.postgres, "unused", time.Minute, time.Hour)
	return c
}

// A site is one broker with an auth mount and a database role of its own at
// the Vault: its role migrate gets a database user.
type site struct {
	*components
	broker *harness.BrokerServer
	front  *harness.Proxy // between runenv and broker, if planned
	back   *harness.Proxy // between broker and Vault, if planned
	plan   plan
	listen string
	mount  string
	dbRole string
}

// A plan says what is special about a site. Its texts are lines of YAML.
type plan struct {
	front, back bool
	heartbeat   time.Duration // default 3m
	tokenTTL    time.Duration // of its logins at Vault; default 5m
	dbTTL       time.Duration // of its users at Vault; default 1m
	crashAt     string        // a crash point of the broker's first run
	issuer      string        // the entry under issuers, with %s for its URL and CA
	projects    string
	leases      string // beside db
	roles       string // beside migrate
	vaultPolicy string // beside what db needs
	sessions    int    // live sessions of a job; default 100
	leasesOf    string // those of migrate; default db
}

const githubIssuer = `github: {profile: github, url: "%s", ca_file: "%s", allow_networks: ["127.0.0.0/8"]}`

func (c *components) newSite(t *testing.T, p plan) *site {
	t.Helper()
	n := c.sites.Add(1)
	s := &site{
		components: c, plan: p, broker: harness.NewBroker(t),
		mount: fmt.Sprintf("jwt-%d", n), dbRole: fmt.Sprintf("db%d", n),
	}
	s.listen = strings.TrimPrefix(s.broker.URL, "https://")
	if p.front {
		upstream := s.broker.URL
		s.front = harness.NewProxy(t, func() string { return upstream })
		s.broker.URL = s.front.URL
	}
	if p.back {
		s.back = harness.NewProxy(t, func() string { return c.vault.Address })
	}
	if p.crashAt != "" {
		s.broker.Program = harness.Binaries(t, "crashpoints").Broker
		s.broker.Env = []string{"RUNENV_CRASH_AT=" + p.crashAt}
	}
	c.vault.AddDatabaseRole(t, s.dbRole, cmp.Or(p.dbTTL, time.Minute), time.Hour)
	s.configure(t, s.config())
	s.broker.Restart(t)
	s.trust(t)
	return s
}

// address is Vault's, as the broker knows it.
func (s *site) address() string {
	if s.back != nil {
		return s.back.URL
	}
	return s.vault.Address
}

// trust lets the broker's role migrate log in at Vault.
func (s *site) trust(t *testing.T) {
	t.Helper()
	err := s.vault.Client.Sys().EnableAuthWithOptionsWithContext(t.Context(), s.mount, &api.EnableAuthOptions{Type: "jwt"})
	if err != nil {
		t.Fatal(err)
	}
	policy := fmt.Sprintf(`path "database/creds/%s" { capabilities = ["read"] }`, s.dbRole)
	if err := s.vault.Client.Sys().PutPolicyWithContext(t.Context(), s.mount, policy+"\n"+s.plan.vaultPolicy); err != nil {
		t.Fatal(err)
	}
	s.vault.Write(t, "auth/"+s.mount+"/config", map[string]any{
		"oidc_discovery_url": s.broker.URL, "oidc_discovery_ca_pem": string(harness.CA(t)), "jwt_supported_algs": []string{"ES256"},
	})
	s.vault.Write(t, "auth/"+s.mount+"/role/runenv-migrate", map[string]any{
		"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{s.address()}, "bound_subject": "runenv:role:migrate",
		"token_policies": []string{s.mount}, "token_ttl": cmp.Or(s.plan.tokenTTL, 5*time.Minute).String(),
	})
}

func (s *site) config() string {
	p := s.plan
	return fmt.Sprintf(`
issuers:
  `+cmp.Or(p.issuer, githubIssuer)+`
providers:
  vault: {type: vault, address: "%s", ca_file: "%[2]s", auth: {method: oidc, mount: %[4]s}}
projects:
  %[5]s
leases:
  db: {provider: vault, path: database/creds/%[6]s, env: {DB_USER: username, DB_PASSWORD: password}, ttl: %[7]s, max_ttl: 10m}
  %[8]s
roles:
  migrate:
    projects: [shop-api]
    match:
      %[9]s
    leases: [%[10]s]
    heartbeat_timeout: %[11]s
    limits: {sessions: %[12]d}
  %[13]s
`, s.ci.URL, s.broker.CAFile, s.address(), s.mount,
		cmp.Or(p.projects, `shop-api: {github: acme/shop-api@1001}`), s.dbRole, cmp.Or(p.dbTTL, time.Minute), p.leases,
		s.match(), cmp.Or(p.leasesOf, "db"), cmp.Or(p.heartbeat, 3*time.Minute), cmp.Or(p.sessions, 100), p.roles)
}

func (s *site) match() string {
	if strings.HasPrefix(s.plan.issuer, "gitlab:") {
		return `gitlab: {ref_path: refs/heads/main, pipeline_source: push}`
	}
	return `github: {ref: refs/heads/main, event_name: push}`
}

// configure writes the broker's file.
func (s *site) configure(t *testing.T, config string) {
	t.Helper()
	head := fmt.Sprintf(`url: %s
listen: %s
tls: {cert: %[3]s/tls.crt, key: %[3]s/tls.key}
store: sqlite:%[3]s/broker.db
seal: ${file:%[3]s/seal.key}
`, s.broker.URL, s.listen, s.broker.Dir)
	if err := os.WriteFile(s.broker.Config, []byte(head+config), 0o600); err != nil {
		t.Fatal(err)
	}
}

// users are the database users that were made for this site.
func (s *site) users(t *testing.T) []string {
	t.Helper()
	return s.watch.Users(t, "-"+s.dbRole+"-")
}

// noUsers waits until the site has no database user.
func (s *site) noUsers(t *testing.T, within time.Duration, since string) {
	t.Helper()
	begin := time.Now()
	harness.Eventually(t, within, "no database user is left after "+since, func() bool { return len(s.users(t)) == 0 })
	t.Logf("no user was left %v after %s", time.Since(begin).Round(time.Millisecond), since)
}

// anyUser waits until the site has a database user.
func (s *site) anyUser(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, "a database user is made", func() bool { return len(s.users(t)) > 0 })
}

// A record is an entry of the audit log.
type record struct{ Event, Session, Lease, Reason string }

// audit runs `runenv-broker audit` and returns what it prints.
func (s *site) audit(t *testing.T, args ...string) string {
	t.Helper()
	cmd := s.broker.Command(t, append([]string{"audit"}, append(args, "--config", s.broker.Config)...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("runenv-broker audit %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return string(out)
}

// records reads the audit log, which must verify.
func (s *site) records(t *testing.T) []record {
	t.Helper()
	s.audit(t, "verify")
	var all []record
	for line := range strings.Lines(s.audit(t, "export")) {
		var l struct{ Entry *record }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if l.Entry != nil { // the last line is a checkpoint
			all = append(all, *l.Entry)
		}
	}
	return all
}

// Scripts for [site.start]. The first argument of tell is a named pipe.
const (
	tell = `echo "$DB_USER $DB_PASSWORD" >"$1"; `
	hold = `read -r line`
)

// A run is a command under `runenv run` as a job of CI starts it, with folders
// of its own.
type run struct {
	dir            string // work, home and tmp are in it
	cmd            *exec.Cmd
	stdin          *os.File // the write end; its close ends a script that holds
	stdout, stderr *output
	done           chan struct{} // closed when it has ended
	user, password string
	besides        []string // what else it told

	passed counter // bytes of standard output, if they are counted

	told *os.File
}

// A counter counts what is written.
type counter struct{ atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.Add(int64(len(p)))
	return len(p), nil
}

// An order says how to start a run.
type order struct {
	script  string   // of sh; "$1" is the pipe by which it tells its credentials
	args    []string // the command, in the script's stead
	flags   []string // of runenv run, beside the role
	env     []string
	entry   []string // a program that starts runenv, which is its arguments
	program string   // another runenv than the tests' own
	as      *syscall.Credential
	direct  bool // no role and no flags: args are runenv's own
	count   bool // standard output is counted and not kept
}

// An output keeps what is written, for readers at the same time.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// launch starts a run and waits for nothing.
func (s *site) launch(t *testing.T, o order) *run {
	t.Helper()
	r := &run{dir: jobDir(t, o.as), done: make(chan struct{}), stdout: new(output), stderr: new(output)}
	fifo := filepath.Join(r.dir, "told")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	own(t, o.as, fifo)
	var err error
	// Opened for writing as well, so that a wrapper that never starts its
	// command ends the wait by its deadline.
	if r.told, err = os.OpenFile(fifo, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}

	args := append([]string{"run", "--role", "migrate"}, o.flags...)
	switch {
	case o.direct:
		args = o.args
	case o.args != nil:
		args = append(append(args, "--"), o.args...)
	default:
		args = append(args, "--", "sh", "-c", o.script, "sh", fifo)
	}
	r.cmd = s.broker.Runenv(t, s.ci, args...)
	if o.program != "" {
		r.cmd.Path = o.program
	}
	if o.as != nil {
		r.cmd.Path = copyOf(t, r.cmd.Path, filepath.Join(r.dir, "runenv"), 0o755)
		r.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: o.as}
	}
	r.cmd.Cancel = func() error { return nil } // the clean-up below ends it
	r.cmd.Dir = filepath.Join(r.dir, "work")
	ca := copyOf(t, s.broker.CAFile, filepath.Join(r.dir, "ca.crt"), 0o644)
	r.cmd.Env = append(append(r.cmd.Env,
		"HOME="+filepath.Join(r.dir, "home"), "TMPDIR="+filepath.Join(r.dir, "tmp"),
		"RUNENV_CA_FILE="+ca, "SSL_CERT_FILE="+ca), o.env...)
	if o.entry != nil {
		r.cmd.Args = append(append([]string{}, o.entry...), append([]string{r.cmd.Path}, args...)...)
		if r.cmd.Path, err = exec.LookPath(o.entry[0]); err != nil {
			t.Fatal(err)
		}
	}
	in, stdin, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.stdin, r.cmd.Stdin = stdin, in
	r.cmd.Stdout, r.cmd.Stderr = r.stdout, r.stderr
	if o.count {
		r.cmd.Stdout = &r.passed
	}
	r.cmd.WaitDelay = 5 * time.Second // a killed wrapper's command may hold the output open
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	go func() {
		_ = r.cmd.Wait()
		close(r.done)
	}()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		_ = r.stdin.Close()
		<-r.done
		_ = r.told.Close()
		if t.Failed() {
			t.Logf("runenv printed:\n%.16384s\n%.16384s", r.stdout, r.stderr)
		}
	})
	return r
}

// start launches a run whose script tells its credentials, and waits for them.
func (s *site) start(t *testing.T, o order) *run {
	t.Helper()
	r := s.launch(t, o)
	r.listen(t)
	return r
}

// listen waits for a user and a password.
func (r *run) listen(t *testing.T) {
	t.Helper()
	if err := r.told.SetReadDeadline(time.Now().Add(40 * time.Second)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(r.told).ReadString('\n')
	if err != nil {
		t.Fatalf("the command told nothing: %v", err)
	}
	told := strings.Fields(line)
	if len(told) < 2 {
		t.Fatalf("the command told %d bytes, want a user and a password", len(line))
	}
	r.user, r.password, r.besides = told[0], told[1], told[2:]
}

// status waits for the end of the run and returns its exit status; a death by
// signal is -1.
func (r *run) status(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(within):
		t.Fatalf("runenv still runs after %v", within)
	}
	return r.cmd.ProcessState.ExitCode()
}

// release lets a script that holds go on.
func (r *run) release() { _ = r.stdin.Close() }

// signal signals the process that the CI started.
func (r *run) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
}

// says fails the test unless runenv's own output has each text.
func (r *run) says(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(r.stderr.String(), text) {
			t.Errorf("runenv's own output lacks %q; it is:\n%s", text, r.stderr)
		}
	}
}

// alive fails the test unless the run's user exists and works.
func (s *site) alive(t *testing.T, r *run) {
	t.Helper()
	if orders, err := s.postgres.Login(t.Context(), r.user, r.password); err != nil || orders != 1 {
		t.Errorf("Login as the command's user = %d orders, %v, want 1", orders, err)
	}
}

// streams waits until the broker would see at once that the run is no more. The
// run logs what it does.
func (r *run) streams(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, "the broker's stream is open", func() bool {
		return strings.Contains(r.stderr.String()+r.stdout.String(), "the broker's stream is open")
	})
}

// gone waits until the run's user is no more.
func (s *site) gone(t *testing.T, r *run, within time.Duration, since string) {
	t.Helper()
	begin := time.Now()
	harness.Eventually(t, within, "the user of the command is gone after "+since, func() bool {
		return len(s.watch.Users(t, r.user)) == 0
	})
	t.Logf("the user was gone %v after %s", time.Since(begin).Round(time.Millisecond), since)
	if _, err := s.postgres.Login(t.Context(), r.user, r.password); err == nil {
		t.Error("Login after the command succeeds")
	}
}

// jobDir makes the folders of a job, which its user can reach and nobody else
// can write to.
func jobDir(t *testing.T, as *syscall.Credential) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "runenv-job-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"work", "home", "tmp"} {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		own(t, as, path)
	}
	return dir
}

// own gives a file to a user, if there is one to give it to.
func own(t *testing.T, as *syscall.Credential, path string) {
	t.Helper()
	if as == nil {
		return
	}
	if err := os.Chown(path, int(as.Uid), int(as.Gid)); err != nil {
		t.Fatal(err)
	}
}

// copyOf copies a file and returns the path of the copy.
func copyOf(t *testing.T, from, to string, mode os.FileMode) string {
	t.Helper()
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, content, mode)
	}
	if err == nil {
		err = os.Chmod(to, mode)
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}
