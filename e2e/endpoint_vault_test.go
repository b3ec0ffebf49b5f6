package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	brokerapi "github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/e2e/harness"
	"github.com/runenv/action/internal/endpoint"
)

// An endpointSite serves the leases of a session at a real broker.
type endpointSite struct {
	*site
	server *endpoint.Server
	told   chan brokerapi.Lease
	home   string
}

const npmToken = "npm-token-of-the-kv-engine"

func newEndpointSite(t *testing.T) *endpointSite {
	t.Helper()
	c := newComponents(t)
	c.vault.Write(t, "secret/data/ci/npm", map[string]any{"data": map[string]any{"token": npmToken}})
	// The lease of a database user that can't live longer than 8 seconds.
	s := &endpointSite{told: make(chan brokerapi.Lease, 100), home: t.TempDir(), site: c.newSite(t, plan{
		leases: `short: {provider: vault, path: database/creds/db1, env: {SHORT_USER: username, SHORT_PASSWORD: password}, ttl: 8s, max_ttl: 8s}
  npm: {provider: vault, path: secret/ci/npm, env: {NPM_TOKEN: token}}`,
		leasesOf:    "short, npm",
		vaultPolicy: `path "secret/data/ci/npm" { capabilities = ["read"] }`,
	})}
	cl, err := client.New(client.Config{URL: s.broker.URL, Source: tokens{s.ci}, CAPEM: harness.CA(t)})
	if err != nil {
		t.Fatal(err)
	}
	session, err := cl.Exchange(t.Context(), "migrate")
	if err != nil {
		t.Fatal(err)
	}
	leases, err := session.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keeper, err := endpoint.Keep(endpoint.KeepConfig{
		Session: session, Leases: leases,
		OnValues:  func(l brokerapi.Lease) { s.told <- l },
		OnFailure: func(l brokerapi.Lease, err error) { t.Logf("lease %s: %v", l.Name, err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.server, err = endpoint.Serve(endpoint.Config{Keeper: keeper, Vault: []endpoint.Vault{
		{Lease: "short", Path: "database/creds/db1", Fields: map[string]string{"username": "SHORT_USER", "password": "SHORT_PASSWORD"}},
		{Lease: "npm", Path: "secret/ci/npm", Mount: "secret", Fields: map[string]string{"token": "NPM_TOKEN"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	alive, release := context.WithCancel(context.Background())
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		_ = session.KeepAlive(alive, keeper.Observe) // its end is the test's
	}()
	t.Cleanup(func() {
		if err := s.server.Close(); err != nil {
			t.Error(err)
		}
		keeper.Close()
		if _, err := session.End(context.Background()); err != nil {
			t.Error(err)
		}
		release()
		<-kept
	})
	return s
}

// run runs a tool with the command's environment, which is in memory alone.
func (s *endpointSite) run(t *testing.T, program string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = []string{"HOME=" + s.home, "PATH=" + os.Getenv("PATH")}
	for _, v := range s.server.Variables(os.Getenv) {
		cmd.Env = append(cmd.Env, v.Name+"="+string(v.Value.Reveal()))
	}
	cmd.Dir = s.home
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *endpointSite) vaultCLI(t *testing.T, args ...string) (string, error) {
	t.Helper()
	program := os.Getenv("RUNENV_E2E_VAULT")
	if program == "" {
		t.Fatal("RUNENV_E2E_VAULT isn't set: run this by `make e2e`")
	}
	return s.run(t, program, args...)
}

// user reads the database user as `vault read` gives it, and logs in as it.
func (s *endpointSite) user(t *testing.T) string {
	t.Helper()
	out, err := s.vaultCLI(t, "read", "-format=json", "database/creds/db1")
	var secret struct {
		LeaseID  string `json:"lease_id"`
		Duration int    `json:"lease_duration"`
		Data     struct{ Username, Password string }
	}
	if err != nil || json.Unmarshal([]byte(out), &secret) != nil {
		t.Fatalf("vault read: %v\n%s", err, out)
	}
	if secret.Duration < 1 || secret.Duration > 8 || !strings.HasPrefix(secret.LeaseID, "database/creds/db1/") {
		t.Errorf("lease %q of %d seconds", secret.LeaseID, secret.Duration)
	}
	if _, err := s.vault.Client.Sys().LookupWithContext(t.Context(), secret.LeaseID); err == nil {
		t.Error("the lease id that the command gets is Vault's own")
	}
	if orders, err := s.postgres.Login(t.Context(), secret.Data.Username, secret.Data.Password); err != nil || orders != 1 {
		t.Errorf("Login = %d, %v", orders, err)
	}
	return secret.Data.Username
}

func TestVaultCLIReadsLeasesPastAnExpiry(t *testing.T) {
	t.Parallel()
	s := newEndpointSite(t)
	first := s.user(t)
	for _, args := range [][]string{
		{"kv", "get", "-field=token", "secret/ci/npm"},
		{"kv", "get", "-mount=secret", "-field=token", "ci/npm"},
		{"read", "-field=token", "secret/ci/npm"},
	} {
		if out, err := s.vaultCLI(t, args...); err != nil || strings.TrimSpace(out) != npmToken {
			t.Errorf("vault %q = %q, %v", args, out, err)
		}
	}
	if out, err := s.vaultCLI(t, "token", "lookup"); err != nil || !strings.Contains(out, "runenv") {
		t.Errorf("vault token lookup = %q, %v", out, err)
	}
	// The second comes before the first has ended; the third after that.
	for n := range 2 {
		select {
		case l := <-s.told:
			if l.Name != "short" {
				t.Errorf("lease %q has new values", l.Name)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("no lease has new values, after %d that had", n)
		}
	}
	harness.Eventually(t, 20*time.Second, "the first user is gone", func() bool {
		return !strings.Contains(strings.Join(s.users(t), " "), first)
	})
	if again := s.user(t); again == first {
		t.Error("the same user past its expiry")
	}
	canaries := []harness.Canary{{Name: "KV secret", Value: npmToken}, {Name: "database user", Value: first}}
	for _, v := range s.server.Secrets() {
		canaries = append(canaries, harness.Canary{Name: "bearer", Value: string(v.Reveal())})
	}
	for _, hit := range harness.NewScanner(t, canaries...).Tree(t, s.home) {
		t.Errorf("vault left %s", hit)
	}
}

func TestT12VaultCLIGetsNothingElse(t *testing.T) {
	t.Parallel()
	s := newEndpointSite(t)
	for _, args := range [][]string{
		{"read", "database/creds/other"}, {"kv", "get", "secret/ci/other"}, {"kv", "list", "secret/ci"}, {"kv", "put", "secret/ci/npm", "token=x"},
		{"kv", "delete", "secret/ci/npm"}, {"kv", "metadata", "get", "secret/ci/npm"}, {"token", "create"}, {"list", "auth/token/accessors"},
		{"secrets", "list"}, {"policy", "list"}, {"read", "database/creds/db1", "ttl=24h"}, {"read", "secret/data/../data/ci/other"},
	} {
		if out, err := s.vaultCLI(t, args...); err == nil || strings.Contains(out, npmToken) {
			t.Errorf("vault %q = %q, %v; want it refused", args, out, err)
		}
	}
	// The bearer is nothing to Vault, and Vault's tokens nothing to the endpoint.
	for _, v := range s.server.Secrets() {
		direct, err := s.vault.Client.Clone()
		if err != nil {
			t.Fatal(err)
		}
		direct.SetToken(string(v.Reveal()))
		if _, err := direct.Auth().Token().LookupSelfWithContext(t.Context()); err == nil {
			t.Error("Vault knows the endpoint's bearer")
		}
	}
}

func TestCurlReadsALease(t *testing.T) {
	t.Parallel()
	s := newEndpointSite(t)
	const script = `curl -fsS --header "X-Vault-Token: $VAULT_TOKEN" "$VAULT_ADDR/v1/secret/data/ci/npm"`
	out, err := s.run(t, "sh", "-c", script)
	if err != nil || !strings.Contains(out, fmt.Sprintf(`{"token":%q}`, npmToken)) {
		t.Errorf("curl = %q, %v", out, err)
	}
	for name, bad := range map[string]string{
		"no bearer": strings.Replace(script, "$VAULT_TOKEN", "none", 1),
		"a name":    strings.Replace(script, "$VAULT_ADDR", "http://localhost:${VAULT_ADDR##*:}", 1),
		"a page":    script + ` --header "Origin: https://evil.example.com"`,
	} {
		out, err := s.run(t, "sh", "-c", bad)
		if err == nil || bytes.Contains([]byte(out), []byte(npmToken)) || !strings.Contains(out, "403") {
			t.Errorf("curl with %s = %q, %v; want it refused", name, out, err)
		}
	}
}
