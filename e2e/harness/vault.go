package harness

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// A VaultServer is a real Vault in development mode: unsealed, in memory.
type VaultServer struct {
	Address string // http://127.0.0.1:…
	Token   string // the root token
	Client  *api.Client
	process *process
}

// Vault starts one. It needs RUNENV_E2E_VAULT: the path of the program.
func Vault(tb testing.TB) *VaultServer {
	tb.Helper()
	listen := fmt.Sprintf("127.0.0.1:%d", freePort(tb))
	v := &VaultServer{Address: "http://" + listen, Token: randomWord()}
	cmd := exec.Command(tool(tb, "RUNENV_E2E_VAULT"), "server", "-dev", "-dev-no-store-token",
		"-dev-root-token-id="+v.Token, "-dev-listen-address="+listen)
	cmd.Env = []string{"HOME=" + tb.TempDir()}
	v.process = start(tb, cmd, new(log))

	cfg := api.DefaultConfig()
	if cfg.Error != nil {
		tb.Fatal(cfg.Error)
	}
	cfg.Address = v.Address
	client, err := api.NewClient(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	client.ClearNamespace()
	client.SetToken(v.Token)
	v.Client = client
	v.process.await(tb, "vault", func(ctx context.Context) error {
		health, err := client.Sys().HealthWithContext(ctx)
		if err == nil && (health.Sealed || !health.Initialized) {
			err = errors.New("not yet unsealed")
		}
		return err
	})
	return v
}

// Kill ends Vault by SIGKILL: whoever talks to it loses the connection.
func (v *VaultServer) Kill() { v.process.stop(syscall.SIGKILL) }

// Freeze stops Vault in mid-request, and Thaw lets it go on.
func (v *VaultServer) Freeze(tb testing.TB) { v.process.signal(tb, syscall.SIGSTOP) }

// Thaw undoes [VaultServer.Freeze].
func (v *VaultServer) Thaw(tb testing.TB) { v.process.signal(tb, syscall.SIGCONT) }

// Seal seals Vault; a development server can't be unsealed again.
func (v *VaultServer) Seal(tb testing.TB) {
	tb.Helper()
	if err := v.Client.Sys().SealWithContext(tb.Context()); err != nil {
		tb.Fatal(err)
	}
}

// Log is what Vault printed so far.
func (v *VaultServer) Log() string { return v.process.log.String() }

// Write writes data to a path of Vault's API, as root.
func (v *VaultServer) Write(tb testing.TB, path string, data map[string]any) {
	tb.Helper()
	if _, err := v.Client.Logical().WriteWithContext(tb.Context(), path, data); err != nil {
		tb.Fatal(err)
	}
}

// TrustIssuer enables JWT auth at the mount jwt for the tokens of an OIDC
// issuer, whose discovery document must be up: Vault reads it now. caPEM is
// the authority of its certificate, empty for plain http.
func (v *VaultServer) TrustIssuer(tb testing.TB, issuerURL string, caPEM []byte) {
	tb.Helper()
	if err := v.Client.Sys().EnableAuthWithOptionsWithContext(tb.Context(), "jwt", &api.EnableAuthOptions{Type: "jwt"}); err != nil {
		tb.Fatal(err)
	}
	v.Write(tb, "auth/jwt/config", map[string]any{
		"oidc_discovery_url":    issuerURL,
		"oidc_discovery_ca_pem": string(caPEM),
		"jwt_supported_algs":    []string{"ES256", "RS256"},
	})
}

// A JWTRole is a role of JWT auth.
type JWTRole struct {
	Name          string
	Audience      string            // bound_audiences
	Subject       string            // bound_subject
	Policy        string            // of the tokens it gives, in HCL
	ClaimMappings map[string]string // claim to metadata key
	TTL           time.Duration     // of its tokens; default 5 minutes
}

// AddJWTRole makes the role and its policy, which has the role's name.
func (v *VaultServer) AddJWTRole(tb testing.TB, r JWTRole) {
	tb.Helper()
	if r.TTL == 0 {
		r.TTL = 5 * time.Minute
	}
	if err := v.Client.Sys().PutPolicyWithContext(tb.Context(), r.Name, r.Policy); err != nil {
		tb.Fatal(err)
	}
	v.Write(tb, "auth/jwt/role/"+r.Name, map[string]any{
		"role_type":               "jwt",
		"user_claim":              "sub",
		"bound_audiences":         []string{r.Audience},
		"bound_subject":           r.Subject,
		"claim_mappings":          r.ClaimMappings,
		"token_policies":          []string{r.Name},
		"token_no_default_policy": false,
		"token_ttl":               r.TTL.String(),
	})
}

// TrustRole lets the broker's RunEnv role log in as runenv-<role>, with a
// policy in HCL.
func (v *VaultServer) TrustRole(tb testing.TB, role, policy string) {
	tb.Helper()
	v.AddJWTRole(tb, JWTRole{Name: "runenv-" + role, Audience: v.Address, Subject: "runenv:role:" + role, Policy: policy})
}

// MountDatabase mounts the database engine at database/ with a role: reading
// database/creds/<role> makes a user of pg that may read the table orders.
func (v *VaultServer) MountDatabase(tb testing.TB, pg *PostgresServer, role string, ttl, maxTTL time.Duration) {
	tb.Helper()
	if err := v.Client.Sys().MountWithContext(tb.Context(), "database", &api.MountInput{Type: "database"}); err != nil {
		tb.Fatal(err)
	}
	v.Write(tb, "database/config/shop", map[string]any{
		"plugin_name":    "postgresql-database-plugin",
		"allowed_roles":  "*",
		"connection_url": fmt.Sprintf("postgresql://{{username}}:{{password}}@%s/shop?sslmode=disable", pg.Address()),
		"username":       "postgres",
		"password":       pg.password,
	})
	v.AddDatabaseRole(tb, role, ttl, maxTTL)
}

// AddDatabaseRole adds one more role to the engine that
// [VaultServer.MountDatabase] mounted.
func (v *VaultServer) AddDatabaseRole(tb testing.TB, role string, ttl, maxTTL time.Duration) {
	tb.Helper()
	v.Write(tb, "database/roles/"+role, map[string]any{
		"db_name": "shop",
		"creation_statements": []string{
			`CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`,
			`GRANT SELECT ON orders TO "{{name}}"`,
		},
		"default_ttl": ttl.String(),
		"max_ttl":     maxTTL.String(),
	})
}

// MountKV mounts a key-value engine of version 1 or 2.
func (v *VaultServer) MountKV(tb testing.TB, mount string, version int) {
	tb.Helper()
	err := v.Client.Sys().MountWithContext(tb.Context(), mount, &api.MountInput{
		Type: "kv", Options: map[string]string{"version": fmt.Sprint(version)},
	})
	if err != nil {
		tb.Fatal(err)
	}
}
