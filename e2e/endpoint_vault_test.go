package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// An endpointSite is a real broker whose leases `runenv run --serve` serves.
type endpointSite struct {
	*site
	told string // a folder that isn't the command's workspace
}

const npmToken = "npm-token-of-the-kv-engine"

func newEndpointSite(t *testing.T) *endpointSite {
	t.Helper()
	c := newComponents(t)
	c.vault.Write(t, "secret/data/ci/npm", map[string]any{"data": map[string]any{"token": npmToken}})
	// The lease of a database user that can't live longer than 8 seconds.
	return &endpointSite{told: t.TempDir(), site: c.newSite(t, plan{
		leases: `short: {provider: vault, path: database/creds/db1, env: {SHORT_USER: username, SHORT_PASSWORD: password}, ttl: 8s, max_ttl: 8s}
  npm: {provider: vault, path: secret/ci/npm, env: {NPM_TOKEN: token}}`,
		leasesOf:    "short, npm",
		vaultPolicy: `path "secret/data/ci/npm" { capabilities = ["read"] }`,
	})}
}

// A served command is one that runs under `runenv run --serve vault=…`.
type served struct {
	*exec.Cmd
	output bytes.Buffer
}

// run starts a shell's script, whose $VAULT is Vault's own program. What it
// writes to $TOLD is for the test alone.
func (s *endpointSite) run(t *testing.T, script string) *served {
	t.Helper()
	program := os.Getenv("RUNENV_E2E_VAULT")
	if program == "" {
		t.Fatal("RUNENV_E2E_VAULT isn't set: run this by `make e2e`")
	}
	c := &served{Cmd: s.broker.Runenv(t, s.ci, "run", "--role", "migrate",
		"--serve", "vault=short:database/creds/db1#username=SHORT_USER,password=SHORT_PASSWORD",
		"--serve", "vault=npm:secret/ci/npm#token=NPM_TOKEN",
		"--", "sh", "-c", script)}
	c.Env = append(c.Env, "VAULT="+program, "TOLD="+s.told)
	c.Stdout, c.Stderr = &c.output, &c.output
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

// ends waits for the command and returns what it printed.
func (c *served) ends(t *testing.T) string {
	t.Helper()
	if err := c.Wait(); err != nil {
		t.Errorf("runenv run --serve: %v\n%s", err, &c.output)
	}
	return c.output.String()
}

// A databaseUser is what `vault read` gives.
type databaseUser struct {
	LeaseID  string `json:"lease_id"`
	Duration int    `json:"lease_duration"`
	Data     struct{ Username, Password string }
}

// user waits until the command has told of a database user, and logs in as it.
func (s *endpointSite) user(t *testing.T, name string) databaseUser {
	t.Helper()
	var u databaseUser
	harness.Eventually(t, 30*time.Second, "the command tells of the user "+name, func() bool {
		text, err := os.ReadFile(filepath.Join(s.told, name))
		return err == nil && json.Unmarshal(text, &u) == nil
	})
	if u.Duration < 1 || u.Duration > 8 || !strings.HasPrefix(u.LeaseID, "database/creds/db1/") {
		t.Errorf("lease %q of %d seconds", u.LeaseID, u.Duration)
	}
	if _, err := s.vault.Client.Sys().LookupWithContext(t.Context(), u.LeaseID); err == nil {
		t.Error("the lease id that the command gets is Vault's own")
	}
	if orders, err := s.postgres.Login(t.Context(), u.Data.Username, u.Data.Password); err != nil || orders != 1 {
		t.Errorf("Login = %d, %v", orders, err)
	}
	return u
}

func (s *endpointSite) tell(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.told, name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// readTwice is the end of a script that has a function read_to: it reads before
// and after an expiry.
const readTwice = `
read_to first
while ! test -e "$TOLD/again"; do sleep 0.1; done
read_to second
while ! test -e "$TOLD/end"; do sleep 0.1; done
`

// pastAnExpiry follows a script that ends with [readTwice].
func (s *endpointSite) pastAnExpiry(t *testing.T) (first, second databaseUser) {
	t.Helper()
	first = s.user(t, "first")
	harness.Eventually(t, 30*time.Second, "the first user is gone", func() bool {
		return !strings.Contains(strings.Join(s.users(t), " "), first.Data.Username)
	})
	s.tell(t, "again")
	second = s.user(t, "second")
	if second.Data == first.Data {
		t.Error("the same user past its expiry")
	}
	s.tell(t, "end")
	return first, second
}

// Vault's own program reads through `runenv run`, past the end of what it got
// first. Nothing of it is shown, or left, when the command is over.
func TestVaultCLIReadsLeasesPastAnExpiry(t *testing.T) {
	t.Parallel()
	s := newEndpointSite(t)
	c := s.run(t, `
test -z "$SHORT_USER$SHORT_PASSWORD$NPM_TOKEN" || { echo "the leases stand in variables"; exit 1; }
"$VAULT" kv get -field=token secret/ci/npm; echo
"$VAULT" kv get -mount=secret -field=token ci/npm; echo
"$VAULT" read -field=token secret/ci/npm; echo
"$VAULT" token lookup | grep display_name
printf %s "$VAULT_TOKEN" >"$TOLD/bearer"
read_to() { "$VAULT" read -format=json database/creds/db1 >"$TOLD/$1.new" && mv "$TOLD/$1.new" "$TOLD/$1" && cat "$TOLD/$1"; }
`+readTwice)
	first, second := s.pastAnExpiry(t)
	out := c.ends(t)
	if n := strings.Count(out, "[REDACTED:npm]"); n != 3 || strings.Count(out, "[REDACTED:short]") != 4 || !strings.Contains(out, "runenv") {
		t.Errorf("the command prints:\n%s", out)
	}
	bearer, err := os.ReadFile(filepath.Join(s.told, "bearer"))
	if err != nil || len(bearer) < 40 {
		t.Fatalf("the bearer: %d bytes, %v", len(bearer), err)
	}
	canaries := []harness.Canary{{Name: "KV secret", Value: npmToken}, {Name: "bearer", Value: string(bearer)}}
	for _, u := range []databaseUser{first, second} {
		canaries = append(canaries, harness.Canary{Name: "database user", Value: u.Data.Username}, harness.Canary{Name: "database password", Value: u.Data.Password})
	}
	for _, canary := range canaries {
		if strings.Contains(out, canary.Value) {
			t.Errorf("the %s is shown", canary.Name)
		}
	}
	scanner := harness.NewScanner(t, canaries...)
	for _, kv := range c.Env {
		if home, ok := strings.CutPrefix(kv, "HOME="); ok {
			for _, hit := range append(scanner.Tree(t, home), scanner.Tree(t, c.Dir)...) {
				t.Errorf("left: %s", hit)
			}
		}
	}
	s.noUsers(t, 5*time.Second, "the command's end")
}

func TestT12VaultCLIGetsNothingElse(t *testing.T) {
	t.Parallel()
	s := newEndpointSite(t)
	script := "printf %s \"$VAULT_TOKEN\" >\"$TOLD/bearer\"\n"
	for _, args := range []string{
		"read database/creds/other", "kv get secret/ci/other", "kv list secret/ci", "kv put secret/ci/npm token=x",
		"kv delete secret/ci/npm", "kv metadata get secret/ci/npm", "token create", "list auth/token/accessors",
		"secrets list", "policy list", "read database/creds/db1 ttl=24h", "read secret/data/../data/ci/other",
	} {
		script += fmt.Sprintf("if \"$VAULT\" %s; then echo 'not refused: %[1]s'; exit 1; fi\n", args)
	}
	script += "\"$VAULT\" kv get secret/ci/npm\n"
	if out := s.run(t, script).ends(t); strings.Contains(out, npmToken) || !strings.Contains(out, "[REDACTED:npm]") {
		t.Errorf("it prints:\n%s", out)
	}
	// The bearer is nothing to Vault.
	bearer, err := os.ReadFile(filepath.Join(s.told, "bearer"))
	if err != nil || len(bearer) == 0 {
		t.Fatalf("no bearer: %v", err)
	}
	direct, err := s.vault.Client.Clone()
	if err != nil {
		t.Fatal(err)
	}
	direct.SetToken(string(bearer))
	if _, err := direct.Auth().Token().LookupSelfWithContext(t.Context()); err == nil {
		t.Error("Vault knows the endpoint's bearer")
	}
}

func TestCurlReadsALease(t *testing.T) {
	t.Parallel()
	s := newEndpointSite(t)
	const read = `curl -fsS --header "X-Vault-Token: $VAULT_TOKEN" "$VAULT_ADDR/v1/secret/data/ci/npm"`
	if out := s.run(t, read).ends(t); !strings.Contains(out, `{"token":"[REDACTED:npm]"}`) {
		t.Errorf("curl prints %q", out)
	}
	for name, bad := range map[string]string{
		"no bearer": strings.Replace(read, "$VAULT_TOKEN", "none", 1),
		"a name":    strings.Replace(read, "$VAULT_ADDR", "http://localhost:${VAULT_ADDR##*:}", 1),
		"a page":    read + ` --header "Origin: https://evil.example.com"`,
	} {
		c := s.run(t, bad)
		err := c.Wait()
		exit, ok := errors.AsType[*exec.ExitError](err)
		if out := c.output.String(); !ok || exit.ExitCode() == 125 || strings.Contains(out, "REDACTED") || !strings.Contains(out, "403") {
			t.Errorf("curl with %s = %q, %v; want it refused", name, out, err)
		}
	}
}

func TestCurlReadsALeasePastAnExpiry(t *testing.T) {
	t.Parallel()
	s := newEndpointSite(t)
	c := s.run(t, `
read_to() { curl -fsS --header "X-Vault-Token: $VAULT_TOKEN" "$VAULT_ADDR/v1/database/creds/db1" >"$TOLD/$1.new" && mv "$TOLD/$1.new" "$TOLD/$1" && cat "$TOLD/$1"; }
`+readTwice)
	first, second := s.pastAnExpiry(t)
	out := c.ends(t)
	if strings.Count(out, "[REDACTED:short]") != 4 {
		t.Errorf("the command prints:\n%s", out)
	}
	for _, u := range []databaseUser{first, second} {
		if strings.Contains(out, u.Data.Username) || strings.Contains(out, u.Data.Password) {
			t.Error("a database user is shown")
		}
	}
	s.noUsers(t, 5*time.Second, "the command's end")
}
