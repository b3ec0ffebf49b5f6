package e2e_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/providertest"
	"github.com/runenv/action/providers/vault"
	"github.com/runenv/action/secret"
)

// userGone is how long Vault may take to end the leases of a revoked token: it
// does so after it has answered.
const userGone = 5 * time.Second

// A vaultWorld is a real Vault that trusts an issuer of our own as it would
// trust the broker.
type vaultWorld struct {
	*harness.VaultServer
	ci *harness.CI
}

func newVaultWorld(t *testing.T) *vaultWorld {
	t.Helper()
	w := &vaultWorld{harness.Vault(t), harness.NewCI(t, nil)}
	w.TrustIssuer(t, w.ci.URL, harness.CA(t))
	return w
}

// token signs one like the broker's, for a RunEnv role.
func (w *vaultWorld) token(role, audience string) (string, error) {
	now := time.Now()
	return w.ci.Issuer.Sign(map[string]any{
		"iss": w.ci.URL, "sub": "runenv:role:" + role, "aud": audience, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		"role": role, "session_id": "s-1", "project": "shop-api", "repository": "acme/shop-api", "run_id": "4711",
	})
}

// ciToken is one of the CI's own.
func (w *vaultWorld) ciToken(_ context.Context, audience string) (string, error) {
	return w.ci.Issuer.GitHubToken(audience, yaml{"sub": "repo:acme/shop-api:ref:refs/heads/main", "iss": w.ci.URL})
}

func (w *vaultWorld) tokens(role string) providers.TokenSource {
	return func(_ context.Context, audience string) (string, error) { return w.token(role, audience) }
}

type yaml = map[string]any

func (w *vaultWorld) open(t *testing.T, auth yaml) *vault.Provider {
	t.Helper()
	keys := yaml{"address": w.Address}
	if auth != nil {
		keys["auth"] = auth
	}
	p, err := vault.Type().Open(providers.Config{Name: "vault", Decode: providertest.Keys(keys), CI: w.ciToken})
	if err != nil {
		t.Fatal(err)
	}
	return p.(*vault.Provider)
}

// A vaultSession is a login for a RunEnv role.
type vaultSession struct {
	*vault.Provider
	login secret.Value
}

func (w *vaultWorld) login(t *testing.T, role string) *vaultSession {
	t.Helper()
	p := w.open(t, nil)
	l, err := p.Login(t.Context(), providers.LoginRequest{Role: role, Session: "s-1", Marker: "m-login", Tokens: w.tokens(role)})
	if err != nil {
		t.Fatal(err)
	}
	return &vaultSession{p, l.Handle}
}

func (s *vaultSession) issue(ctx context.Context, t *testing.T, keys yaml) (*providers.Credential, error) {
	t.Helper()
	def, err := s.Define(providertest.Keys(keys))
	if err != nil {
		t.Fatal(err)
	}
	return s.Issue(ctx, providers.Request{
		Definition: def, Vars: providers.Vars{"project.name": "shop"}, TTL: 10 * time.Minute, Marker: "m-lease", Login: s.login,
	})
}

func (s *vaultSession) user(t *testing.T) (cred *providers.Credential, name, password string) {
	t.Helper()
	cred, err := s.issue(t.Context(), t, yaml{"path": "database/creds/{{project.name}}-ro"})
	if err != nil {
		t.Fatal(err)
	}
	return cred, string(cred.Fields["username"].Reveal()), string(cred.Fields["password"].Reveal())
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

const mayReadDatabase = `path "database/creds/*" { capabilities = ["read"] }`

// The suite that the fake passes, before the real one.
func TestVaultConformance(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t)
	w.MountDatabase(t, harness.Postgres(t), "shop-ro", 10*time.Minute, time.Hour)
	w.TrustRole(t, "prod", mayReadDatabase+`
path "sys/leases/revoke" { capabilities = ["update"] }`)
	t.Run("suite", func(t *testing.T) {
		providertest.Run(t, providertest.Harness{New: func(t *testing.T) *providertest.Backend {
			return &providertest.Backend{
				Provider:     w.open(t, nil),
				Define:       providertest.Keys(yaml{"path": "database/creds/{{project.name}}-ro"}),
				Vars:         providers.Vars{"project.name": "shop"},
				Fields:       map[string]string{"username": "", "password": ""},
				Revocability: providers.Revocable,
				LimitsTTL:    true,
				Tokens:       w.tokens("prod"),
				Canaries:     []string{w.Token},
			}
		}})
	})
}

func TestT14VaultUserEndsByRevokeAndByLogout(t *testing.T) {
	t.Parallel()
	pg, w := harness.Postgres(t), newVaultWorld(t)
	w.MountDatabase(t, pg, "shop-ro", 10*time.Minute, time.Hour)
	w.TrustRole(t, "may", mayReadDatabase+`
path "sys/leases/revoke" { capabilities = ["update"] }`)
	w.TrustRole(t, "maynot", mayReadDatabase)

	works := func(t *testing.T, name, password string) {
		t.Helper()
		if orders, err := pg.Login(t.Context(), name, password); err != nil || orders != 1 {
			t.Errorf("PostgreSQL login = %d orders, %v, want 1", orders, err)
		}
	}
	gone := func(t *testing.T, name string) {
		t.Helper()
		harness.Eventually(t, userGone, "the user is gone", func() bool { return !slices.Contains(pg.Roles(t), name) })
	}
	t.Run("by revoke, at once", func(t *testing.T) {
		s := w.login(t, "may")
		cred, name, password := s.user(t)
		works(t, name, password)
		if left := time.Until(cred.Expires); cred.Revocability != providers.Revocable || !cred.Renewable || left > 10*time.Minute || left < 9*time.Minute {
			t.Errorf("credential = %+v, want a renewable one for 10m", cred)
		}
		for range 2 {
			if err := s.Revoke(t.Context(), cred.Handle, s.login); err != nil {
				t.Errorf("Revoke = %v, want nil", err)
			}
			if slices.Contains(pg.Roles(t), name) {
				t.Error("the user is there after Revoke returned")
			}
		}
		if _, err := s.Renew(t.Context(), cred.Handle, s.login, time.Minute); !errors.Is(err, providers.ErrNotFound) {
			t.Errorf("Renew of the revoked lease = %v, want %v", err, providers.ErrNotFound)
		}
	})
	t.Run("by logout, where a single lease may not be revoked", func(t *testing.T) {
		s := w.login(t, "maynot")
		cred, name, password := s.user(t)
		_, other, _ := s.user(t)
		works(t, name, password)
		end, err := s.Renew(t.Context(), cred.Handle, s.login, 20*time.Minute)
		if left := time.Until(end); err != nil || left > 20*time.Minute || left < 19*time.Minute {
			t.Errorf("Renew = %v, %v, want 20m from now", end, err)
		}
		if err := s.Revoke(t.Context(), cred.Handle, s.login); !errors.Is(err, providers.ErrWithLogin) {
			t.Errorf("Revoke = %v, want %v", err, providers.ErrWithLogin)
		}
		works(t, name, password)
		for range 2 {
			if err := s.Logout(t.Context(), s.login); err != nil {
				t.Errorf("Logout = %v, want nil", err)
			}
		}
		gone(t, name)
		gone(t, other)
	})
	t.Run("by token", func(t *testing.T) {
		p := w.open(t, yaml{"method": "token", "token": w.Token})
		l, err := p.Login(t.Context(), providers.LoginRequest{Role: "prod", Session: "s-1", Marker: "m-login"})
		if err != nil || time.Until(l.Expires) > providers.LoginTTL {
			t.Fatalf("Login = %v, %v, want one for %v", l, err, providers.LoginTTL)
		}
		s := &vaultSession{p, l.Handle}
		_, name, password := s.user(t)
		works(t, name, password)
		if err := p.Logout(t.Context(), l.Handle); err != nil {
			t.Error(err)
		}
		gone(t, name)
		if _, err := w.Client.Auth().Token().LookupSelfWithContext(t.Context()); err != nil {
			t.Errorf("the configured token itself ended: %v", err)
		}
	})
}

// What Vault can't end at its own back end stays to be ended.
func TestT15VaultRevocationThatFails(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t)
	w.MountDatabase(t, harness.Postgres(t), "shop-ro", 10*time.Minute, time.Hour)
	w.Write(t, "database/roles/shop-ro", yaml{
		"db_name":               "shop",
		"creation_statements":   []string{`CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}'`},
		"revocation_statements": []string{`SELECT 1/0`},
		"default_ttl":           "10m",
	})
	w.TrustRole(t, "prod", mayReadDatabase+`
path "sys/leases/revoke" { capabilities = ["update"] }`)
	s := w.login(t, "prod")
	cred, name, _ := s.user(t)
	err := s.Revoke(t.Context(), cred.Handle, s.login)
	if !errors.Is(err, providers.ErrUnavailable) || strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "division") {
		t.Errorf("Revoke = %v, want %v and no word of the database's", err, providers.ErrUnavailable)
	}
}

func TestVaultReadsKVAndPKI(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t)
	w.MountKV(t, "one", 1)
	w.MountKV(t, "two", 2)
	w.Write(t, "one/ci/npm", yaml{"token": "one-1", "port": json.Number("1.50"), "tls": true, "none": nil, "opts": yaml{"b": []int{1}, "a": "<&>"}})
	w.Write(t, "two/data/ci/npm", yaml{"data": yaml{"token": "two-1"}})
	w.Write(t, "two/data/ci/npm", yaml{"data": yaml{"token": "two-2"}})
	w.Write(t, "two/data/ci/gone", yaml{"data": yaml{"token": "x"}})
	if _, err := w.Client.Logical().DeleteWithContext(t.Context(), "two/data/ci/gone"); err != nil {
		t.Fatal(err)
	}
	w.Write(t, "sys/mounts/pki", yaml{"type": "pki"})
	w.Write(t, "pki/root/generate/internal", yaml{"common_name": "ci", "key_type": "ec", "key_bits": 256})
	w.Write(t, "pki/roles/ci", yaml{"allow_any_name": true, "key_type": "ec", "key_bits": 256, "max_ttl": "1h"})
	w.TrustRole(t, "prod", `
path "one/ci/*" { capabilities = ["read"] }
path "two/data/ci/*" { capabilities = ["read"] }
path "pki/issue/ci" { capabilities = ["update"] }`)
	s := w.login(t, "prod")

	tests := []struct {
		name  string
		keys  yaml
		want  error
		field string
		value string
	}{
		{"kv 1", yaml{"path": "one/ci/npm"}, nil, "token", "one-1"},
		{"kv 1, a number", yaml{"path": "one/ci/npm"}, nil, "port", "1.50"},
		{"kv 1, a boolean", yaml{"path": "one/ci/npm"}, nil, "tls", "true"},
		{"kv 1, an object", yaml{"path": "one/ci/npm"}, nil, "opts", `{"a":"<&>","b":[1]}`},
		{"kv 2", yaml{"path": "two/ci/npm"}, nil, "token", "two-2"},
		{"kv 2, an older version", yaml{"path": "two/ci/npm", "version": 1}, nil, "token", "two-1"},
		{"kv 2, no such version", yaml{"path": "two/ci/npm", "version": 7}, providers.ErrNotFound, "", ""},
		{"kv 2, deleted", yaml{"path": "two/ci/gone"}, providers.ErrNotFound, "", ""},
		{"kv 2, not there", yaml{"path": "two/ci/none"}, providers.ErrNotFound, "", ""},
		{"kv 2, outside the policy", yaml{"path": "two/prod/npm"}, providers.ErrDenied, "", ""},
		{"kv 2, data/ by habit", yaml{"path": "two/data/ci/npm"}, providers.ErrDenied, "", ""},
		{"a mount outside the policy", yaml{"path": "secret/ci/npm"}, providers.ErrDenied, "", ""},
		{"params to kv 1", yaml{"path": "one/ci/npm", "params": yaml{"token": "x"}}, providers.ErrInvalid, "", ""},
		{"a certificate", yaml{"path": "pki/issue/ci", "params": yaml{"common_name": "{{project.name}}.example.com", "ttl": "10m"}}, nil, "private_key_type", "ec"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cred, err := s.issue(t.Context(), t, tt.keys)
			if !errors.Is(err, tt.want) {
				t.Fatalf("Issue = %v, want %v", err, tt.want)
			}
			if err != nil {
				return
			}
			if got := string(cred.Fields[tt.field].Reveal()); got != tt.value {
				t.Errorf("field %s = %q, want %q", tt.field, got, tt.value)
			}
			if _, ok := cred.Fields["none"]; ok {
				t.Error("null became a field")
			}
			if pki := strings.HasPrefix(tt.name, "a cert"); pki != (cred.Revocability == providers.Expires) || pki && time.Until(cred.Expires).Round(time.Minute) != 10*time.Minute {
				t.Errorf("%s until %v", cred.Revocability, cred.Expires)
			}
		})
	}
}

// No role's token serves another's, whatever is mixed up.
func TestT34VaultRoles(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t)
	w.MountKV(t, "one", 1)
	roles := []string{"alpha", "beta"}
	for _, role := range roles {
		w.Write(t, "one/"+role, yaml{"of": role})
		w.TrustRole(t, role, `path "one/`+role+`" { capabilities = ["read"] }`)
	}
	p := w.open(t, nil)
	const here, elsewhere = "", "https://elsewhere.example.com"
	for _, asked := range roles {
		for _, bearer := range roles {
			for _, audience := range []string{here, elsewhere} {
				name := asked + " with a token of " + bearer + " for " + audience
				l, err := p.Login(t.Context(), providers.LoginRequest{Role: asked, Session: "s", Marker: "m", Tokens: func(_ context.Context, own string) (string, error) {
					if audience != here {
						own = audience
					}
					return w.token(bearer, own)
				}})
				if asked != bearer || audience != here {
					if l != nil || !errors.Is(err, providers.ErrDenied) || hintOf(err) == "" {
						t.Errorf("%s: Login = %v, %v with hint %q, want %v and a cure", name, l, err, hintOf(err), providers.ErrDenied)
					}
					continue
				}
				if err != nil {
					t.Errorf("%s: Login = %v", name, err)
					continue
				}
				s := &vaultSession{p, l.Handle}
				for _, path := range roles {
					_, err := s.issue(t.Context(), t, yaml{"path": "one/" + path})
					if (err == nil) != (path == asked) || err != nil && !errors.Is(err, providers.ErrDenied) {
						t.Errorf("%s: reading one/%s = %v", name, path, err)
					}
				}
			}
		}
	}
	_, err := p.Login(t.Context(), providers.LoginRequest{Role: "gamma", Session: "s", Marker: "m", Tokens: w.tokens("gamma")})
	if !errors.Is(err, providers.ErrNotFound) || !strings.Contains(hintOf(err), "vault write auth/jwt/role/runenv-gamma ") {
		t.Errorf("Login for a role that isn't there = %v with hint %q, want %v and the command", err, hintOf(err), providers.ErrNotFound)
	}
	stranger := harness.NewCI(t, nil)
	_, err = p.Login(t.Context(), providers.LoginRequest{Role: "alpha", Session: "s", Marker: "m", Tokens: func(_ context.Context, audience string) (string, error) {
		return stranger.Issuer.GitHubToken(audience, yaml{"sub": "runenv:role:alpha", "iss": w.ci.URL})
	}})
	if !errors.Is(err, providers.ErrDenied) || !strings.Contains(hintOf(err), "oidc_discovery_url") {
		t.Errorf("Login with a stranger's token = %v with hint %q, want %v", err, hintOf(err), providers.ErrDenied)
	}
}

// Whatever a Vault role gives, a session's token lives five minutes at a time
// or isn't accepted.
func TestT14VaultLoginTTL(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t)
	for role, extra := range map[string]yaml{
		"right":    {"token_ttl": "5m"},
		"long":     {"token_ttl": "24h"},
		"default":  {},
		"periodic": {"token_period": "24h"},
		"batch":    {"token_type": "batch"},
	} {
		data := yaml{ // whole: Vault forgets what a write leaves out
			"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{w.Address}, "bound_subject": "runenv:role:" + role,
		}
		maps.Copy(data, extra)
		w.Write(t, "auth/jwt/role/runenv-"+role, data)
	}
	p := w.open(t, nil)
	login := func(role string) (*providers.Login, error) {
		return p.Login(t.Context(), providers.LoginRequest{Role: role, Session: "s", Marker: "m", Tokens: w.tokens(role)})
	}
	l, err := login("right")
	if err != nil {
		t.Fatal(err)
	}
	var handle struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(l.Handle.Reveal(), &handle); err != nil {
		t.Fatal(err)
	}
	self, err := w.Client.Auth().Token().LookupWithContext(t.Context(), handle.Token)
	if err != nil {
		t.Fatal(err)
	}
	if ttl, err := self.TokenTTL(); err != nil || ttl > providers.LoginTTL || time.Until(l.Expires) > providers.LoginTTL {
		t.Errorf("the token lives %v more (%v), and the login says %v; want at most %v", ttl, err, l.Expires, providers.LoginTTL)
	}
	if end, err := p.RenewLogin(t.Context(), l.Handle); err != nil || time.Until(end) > providers.LoginTTL || time.Until(end) < 4*time.Minute {
		t.Errorf("RenewLogin = %v, %v, want %v from now", end, err, providers.LoginTTL)
	}
	if err := p.Logout(t.Context(), l.Handle); err != nil {
		t.Fatal(err)
	}
	if _, err := p.RenewLogin(t.Context(), l.Handle); !errors.Is(err, providers.ErrDenied) {
		t.Errorf("RenewLogin after Logout = %v, want %v", err, providers.ErrDenied)
	}
	before := accessors(t, w)
	for role, want := range map[string]string{"long": "token_ttl=5m", "default": "token_ttl=5m", "periodic": "token_period", "batch": "token_type=service"} {
		if l, err := login(role); l != nil || !errors.Is(err, providers.ErrMalformed) || !strings.Contains(hintOf(err), want) {
			t.Errorf("Login(%s) = %v, %v with hint %q, want a refusal with %q", role, l, err, hintOf(err), want)
		}
	}
	if after := accessors(t, w); after > before {
		t.Errorf("%d tokens after the refused logins, %d before", after, before)
	}
}

// accessors counts the tokens that live.
func accessors(t *testing.T, w *vaultWorld) int {
	t.Helper()
	s, err := w.Client.Logical().ListWithContext(t.Context(), "auth/token/accessors")
	if err != nil {
		t.Fatal(err)
	}
	keys, _ := s.Data["keys"].([]any)
	return len(keys)
}

// Vault's own log names the lease by its marker, and the session, the role, the
// project and the run by what Vault was told to keep of the broker's token.
func TestVaultAuditShowsMarkersAndClaims(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t)
	w.MountKV(t, "one", 1)
	w.Write(t, "one/x", yaml{"a": "b"})
	w.AddJWTRole(t, harness.JWTRole{
		Name: "runenv-prod", Audience: w.Address, Subject: "runenv:role:prod", Policy: `path "one/x" { capabilities = ["read"] }`,
		ClaimMappings: map[string]string{"role": "runenv_role", "session_id": "runenv_session", "repository": "runenv_repository", "run_id": "runenv_run", "absent": "runenv_absent"},
	})
	file := filepath.Join(t.TempDir(), "audit.log")
	w.Write(t, "sys/audit/file", yaml{"type": "file", "options": map[string]string{"file_path": file}})
	w.Write(t, "sys/config/auditing/request-headers/x-runenv-marker", yaml{"hmac": false})
	if _, err := w.login(t, "prod").issue(t.Context(), t, yaml{"path": "one/x"}); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var read string // the entry of the read itself
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, `"path":"one/x"`) {
			read = line
		}
	}
	for _, want := range []string{"m-lease", `"runenv_role":"prod"`, `"runenv_session":"s-1"`, `"runenv_repository":"acme/shop-api"`, `"runenv_run":"4711"`} {
		if !strings.Contains(read, want) {
			t.Errorf("Vault's audit entry of the read doesn't show %s", want)
		}
	}
	if !strings.Contains(string(log), "m-login") {
		t.Error("Vault's audit log doesn't show the login's marker")
	}
}

func TestT15VaultFrozenKilledSealed(t *testing.T) {
	t.Parallel()
	read := yaml{"path": "one/x"}
	start := func(t *testing.T) (*vaultWorld, *vaultSession) {
		w := newVaultWorld(t)
		w.MountKV(t, "one", 1)
		w.Write(t, "one/x", yaml{"a": "b"})
		w.TrustRole(t, "prod", `path "one/x" { capabilities = ["read"] }`)
		s := w.login(t, "prod")
		if _, err := s.issue(t.Context(), t, read); err != nil {
			t.Fatal(err)
		}
		return w, s
	}
	t.Run("frozen", func(t *testing.T) {
		t.Parallel()
		w, s := start(t)
		w.Freeze(t)
		var err error
		harness.Eventually(t, 5*time.Second, "every thread of Vault's stands still", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			_, err = s.issue(ctx, t, read)
			return err != nil
		})
		if !errors.Is(err, providers.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Issue = %v, want %v and %v", err, providers.ErrUnavailable, context.DeadlineExceeded)
		}
		w.Thaw(t)
		if _, err := s.issue(t.Context(), t, read); err != nil {
			t.Errorf("Issue after the thaw = %v", err)
		}
	})
	t.Run("killed", func(t *testing.T) {
		t.Parallel()
		w, s := start(t)
		w.Kill()
		_, err := s.issue(t.Context(), t, read)
		if !errors.Is(err, providers.ErrUnavailable) || !providers.Void(err) || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("Issue = %v, want %v, void, for the connection was refused", err, providers.ErrUnavailable)
		}
	})
	t.Run("sealed", func(t *testing.T) {
		t.Parallel()
		w, s := start(t)
		w.Seal(t)
		_, err := s.issue(t.Context(), t, read)
		if !errors.Is(err, providers.ErrUnavailable) || !providers.Void(err) || hintOf(err) != "unseal it" {
			t.Errorf("Issue = %v with hint %q, want %v, void", err, hintOf(err), providers.ErrUnavailable)
		}
		if err := s.Logout(t.Context(), s.login); !errors.Is(err, providers.ErrUnavailable) {
			t.Errorf("Logout = %v, want %v", err, providers.ErrUnavailable)
		}
	})
}
