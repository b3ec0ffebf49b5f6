package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
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

// A directSite is a real Vault that trusts a CI's issuer, as a team that has
// no broker yet has set it up, and the file for one command.
type directSite struct {
	ci       *harness.CI
	vault    *harness.VaultServer
	postgres *harness.PostgresServer
	watch    *harness.RoleWatch
	dir      string
}

const directBroker = "https://runenv.example.com"

// newDirectSite makes one whose logins at Vault live tokenTTL.
func newDirectSite(t *testing.T, tokenTTL time.Duration) *directSite {
	t.Helper()
	s := &directSite{ci: harness.NewCI(t, nil), vault: harness.Vault(t), postgres: harness.Postgres(t), dir: t.TempDir()}
	s.watch = s.postgres.Watch(t)
	s.vault.MountDatabase(t, s.postgres, "direct", 10*time.Minute, time.Hour)
	s.vault.TrustIssuer(t, s.ci.URL, harness.CA(t))
	if err := s.vault.Client.Sys().PutPolicyWithContext(t.Context(), "team", `path "database/creds/direct" { capabilities = ["read"] }`); err != nil {
		t.Fatal(err)
	}
	for role, repository := range map[string]string{"team": "1001", "others": "1002"} {
		s.vault.Write(t, "auth/jwt/role/"+role, map[string]any{
			"role_type": "jwt", "user_claim": "repository_id", "bound_audiences": []string{s.vault.Address},
			"bound_claims": map[string]any{"repository_id": repository}, "token_policies": []string{"team"}, "token_ttl": tokenTTL.String(),
		})
	}
	s.write(t, "ca.crt", string(harness.CA(t)))
	s.configure(t, "team")
	return s
}

func (s *directSite) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// configure writes the file, which logs in as a role of Vault's.
func (s *directSite) configure(t *testing.T, vaultRole string) {
	t.Helper()
	s.write(t, "runenv.yaml", fmt.Sprintf(`url: %s
issuers:
  github: {profile: github, url: "%s", ca_file: ca.crt, allow_networks: ["127.0.0.0/8"]}
providers:
  vault: {type: vault, address: "%s", auth: {method: ci, role: %s}}
projects:
  shop-api: {github: acme/shop-api@1001}
leases:
  db: {provider: vault, path: database/creds/direct, env: {DB_USER: username, DB_PASSWORD: password}, ttl: 10m}
roles:
  migrate: {projects: [shop-api], match: {github: {ref: refs/heads/main}}, leases: [db]}
`, directBroker, s.ci.URL, s.vault.Address, vaultRole))
}

// command is runenv-broker in a job of the CI.
func (s *directSite) command(t *testing.T, args ...string) (cmd *exec.Cmd, stdout, stderr *output) {
	t.Helper()
	cmd = exec.CommandContext(t.Context(), harness.Binaries(t).Broker, args...)
	cmd.Dir, cmd.WaitDelay = s.dir, 5*time.Second
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "TMPDIR=" + s.dir, "SSL_CERT_FILE=" + filepath.Join(s.dir, "ca.crt")}, s.ci.Environ...)
	stdout, stderr = new(output), new(output)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("runenv-broker %s printed:\n%.16384s\n%.16384s", args[0], stdout, stderr)
		}
	})
	return cmd, stdout, stderr
}

// hold starts a command that tells its credentials and then waits.
func (s *directSite) hold(t *testing.T) (cmd *exec.Cmd, user, password string, stderr *output) {
	t.Helper()
	fifo := filepath.Join(s.dir, "told")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	told, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = told.Close() })
	cmd, _, stderr = s.command(t, "run", "--config", "runenv.yaml", "--role", "migrate", "--", "sh", "-c", `echo "$DB_USER $DB_PASSWORD" >told; exec sleep 300`)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := told.SetReadDeadline(time.Now().Add(40 * time.Second)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(told).ReadString('\n')
	if err != nil {
		t.Fatalf("the command told nothing: %v", err)
	}
	user, password, _ = strings.Cut(strings.TrimSpace(line), " ")
	return cmd, user, password, stderr
}

func (s *directSite) users(t *testing.T) int { return len(s.watch.Users(t, "-direct-")) }

// One command gets a database user with nothing but the CI's own token and the
// trust that Vault has in it; all is gone when it ends, and recorded before.
func TestDirectAtARealVault(t *testing.T) {
	t.Parallel()
	s := newDirectSite(t, 5*time.Minute)
	cmd, stdout, stderr := s.command(t, "run", "--config", "runenv.yaml", "--role", "migrate", "--verbose", "--", "sh", "-c", `echo "$DB_USER:$DB_PASSWORD"; env | cut -d= -f1`)
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	if !strings.HasPrefix(stdout.String(), "[REDACTED:db]:[REDACTED:db]\n") || strings.Contains(stdout.String(), "ACTIONS_ID_TOKEN") {
		t.Errorf("the command printed\n%s", stdout)
	}
	harness.Eventually(t, 2*time.Second, "no database user is left", func() bool { return s.users(t) == 0 })
	var events []string
	for line := range strings.Lines(stderr.String()) {
		if body, ok := strings.CutPrefix(line, "runenv-broker: audit: "); ok {
			var rec record
			if err := json.Unmarshal([]byte(body), &rec); err != nil {
				t.Fatal(err)
			}
			events = append(events, rec.Event)
		}
	}
	want := "broker.started session.created login.issued lease.issued session.ended" // and the two ends, in either order
	got := strings.Join(events, " ")
	if !strings.HasPrefix(got, want) || len(events) != 7 || !slices.Contains(events, "lease.revoked") || !slices.Contains(events, "login.revoked") {
		t.Errorf("the trail is %s, want %s and both revoked", got, want)
	}
	if !strings.Contains(stderr.String(), `runenv: lease "db" is revoked`) || strings.Contains(stderr.String(), "warning") {
		t.Errorf("it said\n%s", stderr)
	}
	t.Logf("one command with one database user: %v", took.Round(time.Millisecond))

	// The trust is checked the same way.
	cmd, stdout, _ = s.command(t, "providers", "check", "--direct", "--config", "runenv.yaml")
	if err := cmd.Run(); err != nil || !strings.Contains(stdout.String(), "vault     migrate  ok") {
		t.Errorf("providers check --direct = %v\n%s", err, stdout)
	}
}

// Whom Vault doesn't trust gets nothing, whatever the job's file says.
func TestT11DirectTrustIsTheBackEnds(t *testing.T) {
	t.Parallel()
	s := newDirectSite(t, 5*time.Minute)
	s.configure(t, "others")
	cmd, _, stderr := s.command(t, "run", "--config", "runenv.yaml", "--role", "migrate", "--", "echo", "it ran")
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 125 {
		t.Errorf("run as another repository's Vault role = %v\n%s", err, stderr)
	}
	if strings.Count(stderr.String(), "runenv-broker: error: refused: leasing \"db\": vault: ") != 1 {
		t.Errorf("the cause isn't told once:\n%s", stderr)
	}
	if n := s.users(t); n != 0 {
		t.Errorf("%d users were made", n)
	}
	// The cause is on standard error: whoever runs this has the file.
	cmd, stdout, _ := s.command(t, "providers", "check", "--direct", "--config", "runenv.yaml", "--json")
	if err := cmd.Run(); err == nil || !strings.Contains(stdout.String(), `"result":"failed"`) || !strings.Contains(stdout.String(), `"hint":`) {
		t.Errorf("providers check --direct = %v\n%s", err, stdout)
	}
}

// A CI whose tokens are fixed, as GitLab's are, gives each back end its own.
func TestT34DirectWithFixedTokens(t *testing.T) {
	t.Parallel()
	s := newDirectSite(t, 5*time.Minute)
	token := func(audience string) string {
		t.Helper()
		token, err := s.ci.Issuer.GitHubToken(audience, nil)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	run := func(vars ...string) (int, string) {
		t.Helper()
		cmd, _, stderr := s.command(t, "run", "--config", "runenv.yaml", "--role", "migrate", "--", "true")
		cmd.Env = append(cmd.Env, vars...)
		_ = cmd.Run()
		return cmd.ProcessState.ExitCode(), stderr.String()
	}
	broker, vault := "RUNENV_ID_TOKEN="+token(directBroker), "RUNENV_ID_TOKEN_FOR_VAULT="+token(s.vault.Address)
	if code, said := run(broker, vault); code != 0 {
		t.Errorf("with a token for each = %d\n%s", code, said)
	}
	code, said := run(broker)
	if code != 125 || !strings.Contains(said, "isn't made out to") || !strings.Contains(said, "RUNENV_ID_TOKEN_FOR_VAULT") {
		t.Errorf("with the broker's token alone = %d\n%s", code, said)
	}
	if strings.Contains(said, "eyJ") {
		t.Error("a token was printed")
	}
}

// A signal ends the command and its credentials.
func TestT30DirectEndsOnASignal(t *testing.T) {
	t.Parallel()
	s := newDirectSite(t, 5*time.Minute)
	cmd, user, password, stderr := s.hold(t)
	if orders, err := s.postgres.Login(t.Context(), user, password); err != nil || orders != 1 {
		t.Errorf("Login in mid-command = %d, %v", orders, err)
	}
	begin := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 143 {
		t.Errorf("after SIGTERM it ended with %v", err)
	}
	harness.Eventually(t, 2*time.Second, "no database user is left", func() bool { return s.users(t) == 0 })
	t.Logf("no user was left %v after SIGTERM", time.Since(begin).Round(time.Millisecond))
	if !strings.Contains(stderr.String(), `"event":"login.revoked"`) {
		t.Error("the trail doesn't tell of the login's end")
	}
}

// Killed, it revokes nothing; the login's own life bounds what it leaves, and
// nobody renews that.
func TestT30DirectKilledIsBoundedByItsLogin(t *testing.T) {
	t.Parallel()
	const tokenTTL = 10 * time.Second
	s := newDirectSite(t, tokenTTL)
	cmd, user, password, _ := s.hold(t)
	begin := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if _, err := s.postgres.Login(t.Context(), user, password); err != nil {
		t.Errorf("Login just after the kill = %v: then it ends by something else than its login", err)
	}
	harness.Eventually(t, tokenTTL+userGone, "no database user is left", func() bool { return s.users(t) == 0 })
	t.Logf("no user was left %v after SIGKILL, with token_ttl=%v", time.Since(begin).Round(time.Millisecond), tokenTTL)
}

// A broker that Vault can't reach is verified by what `keys export` wrote to a
// static site.
func TestExportedKeysServeARealVault(t *testing.T) {
	t.Parallel()
	vault, ci := harness.Vault(t), harness.NewCI(t, nil)
	b, published := harness.NewBroker(t), t.TempDir()
	pair, err := tls.LoadX509KeyPair(filepath.Join(b.Dir, "tls.crt"), filepath.Join(b.Dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	site := httptest.NewUnstartedServer(http.FileServer(http.Dir(published)))
	site.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	site.StartTLS()
	t.Cleanup(site.Close)
	b.Start(t, fmt.Sprintf(`
issuer_url: %s
issuers:
  github: {profile: github, url: "%s", ca_file: "%s", allow_networks: ["127.0.0.0/8"]}
providers:
  vault: {type: vault, address: "%s"}
projects:
  shop-api: {github: acme/shop-api@1001}
leases:
  greeting: {provider: vault, path: secret/greeting, env: {GREETING: text}}
roles:
  greet: {projects: [shop-api], match: {github: {ref: refs/heads/main}}, leases: [greeting]}
`, site.URL, ci.URL, b.CAFile, vault.Address))
	run := func(args ...string) string {
		t.Helper()
		cmd := b.Command(t, args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("runenv-broker %s: %v\n%s%s", strings.Join(args, " "), err, out, &stderr)
		}
		return string(out)
	}
	run("keys", "export", "--config", b.Config, "--out", published)
	for file, path := range map[string]string{"jwks": "/jwks", ".well-known/openid-configuration": "/.well-known/openid-configuration"} {
		resp, err := b.HTTP.Get(b.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		var served bytes.Buffer
		if _, err := served.ReadFrom(resp.Body); err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if exported, err := os.ReadFile(filepath.Join(published, file)); err != nil || !bytes.Equal(exported, served.Bytes()) {
			t.Errorf("%s isn't what the broker serves: %v", file, err)
		}
	}
	vault.TrustIssuer(t, site.URL, harness.CA(t)) // Vault reads the files, and never the broker
	vault.TrustRole(t, "greet", `path "secret/data/greeting" { capabilities = ["read"] }`)
	vault.Write(t, "secret/data/greeting", map[string]any{"data": map[string]any{"text": "hello from the bucket"}})
	if text := run("providers", "check", "--config", b.Config); !strings.Contains(text, "vault     greet  ok") {
		t.Errorf("providers check prints\n%s", text)
	}
	job := b.Runenv(t, ci, "run", "--role", "greet", "--no-redact", "--", "printenv", "GREETING")
	var stderr bytes.Buffer
	job.Stderr = &stderr
	if out, err := job.Output(); err != nil || string(out) != "hello from the bucket\n" {
		t.Errorf("the job gets %q, %v\n%s", out, err, &stderr)
	}
}
