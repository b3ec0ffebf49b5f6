package e2e_test

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
	"github.com/runenv/action/providers"
)

// Listings, wrapping, SSH certificates and transit, as the real one has them.
func TestVaultListsWrapsSignsAndDecrypts(t *testing.T) {
	t.Parallel()
	pg, w := harness.Postgres(t), newVaultWorld(t)
	w.MountDatabase(t, pg, "shop-ro", 10*time.Minute, time.Hour)
	w.MountKV(t, "one", 1)
	w.MountKV(t, "two", 2)
	for _, path := range []string{"app/a", "app/b", "app/deep/c"} {
		w.Write(t, "one/"+path, yaml{"x": path})
		w.Write(t, "two/data/"+path, yaml{"data": yaml{"x": path}})
	}
	if _, err := w.Client.Logical().DeleteWithContext(t.Context(), "two/data/app/b"); err != nil {
		t.Fatal(err)
	}
	w.Write(t, "sys/mounts/ssh", yaml{"type": "ssh"})
	w.Write(t, "ssh/config/ca", yaml{"generate_signing_key": true, "key_type": "ed25519"})
	w.Write(t, "ssh/roles/ci", yaml{"key_type": "ca", "allow_user_certificates": true, "allowed_users": "*", "allowed_extensions": "*", "max_ttl": "24h"})
	w.Write(t, "sys/mounts/transit", yaml{"type": "transit"})
	w.Write(t, "transit/keys/ci", yaml{})
	sealed, err := w.Client.Logical().WriteWithContext(t.Context(), "transit/encrypt/ci", yaml{"plaintext": "aGVsbG8="})
	if err != nil {
		t.Fatal(err)
	}
	w.TrustRole(t, "prod", mayReadDatabase+`
path "one/app/*" { capabilities = ["read", "list"] }
path "two/data/app/*" { capabilities = ["read"] }
path "two/metadata/app/*" { capabilities = ["list"] }
path "ssh/sign/ci" { capabilities = ["update"] }
path "transit/decrypt/ci" { capabilities = ["update"] }`)
	s := w.login(t, "prod")
	get := func(t *testing.T, keys yaml) *providers.Credential {
		t.Helper()
		cred, err := s.issue(t.Context(), t, keys)
		if err != nil {
			t.Fatal(err)
		}
		return cred
	}
	for _, tt := range []struct {
		keys yaml
		want []string
	}{
		{yaml{"path": "one/app", "list": true}, []string{"a/x", "b/x"}},
		{yaml{"path": "one/app", "recursive": true}, []string{"a/x", "b/x", "deep/c/x"}},
		{yaml{"path": "two/app", "list": true}, []string{"a/x"}},
		{yaml{"path": "two/app", "recursive": true}, []string{"a/x", "deep/c/x"}},
	} {
		if got := slices.Sorted(maps.Keys(get(t, tt.keys).Fields)); !slices.Equal(got, tt.want) {
			t.Errorf("%v: fields %q, want %q", tt.keys, got, tt.want)
		}
	}
	if _, err := s.issue(t.Context(), t, yaml{"path": "two/other", "list": true}); !errors.Is(err, providers.ErrDenied) {
		t.Errorf("a listing outside the policy = %v, want %v", err, providers.ErrDenied)
	}

	const publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJhGg1hkH6Y2WkYyIsVBaTHMUCZ3IYTmnxoWHrI2RCfZ"
	cert := get(t, yaml{"path": "ssh/sign/ci", "params": yaml{"public_key": publicKey, "valid_principals": "{{project.name}}", "extensions": yaml{"permit-pty": ""}}})
	if !strings.HasPrefix(string(cert.Fields["signed_key"].Reveal()), "ssh-ed25519-cert-v01@openssh.com ") || cert.Revocability != providers.Expires ||
		time.Until(cert.Expires).Round(time.Minute) != 10*time.Minute {
		t.Errorf("ssh/sign = %+v, want a certificate for 10m", cert)
	}
	plain := get(t, yaml{"path": "transit/decrypt/ci", "params": yaml{"ciphertext": sealed.Data["ciphertext"]}})
	if string(plain.Fields["plaintext"].Reveal()) != "aGVsbG8=" || plain.Revocability != providers.Static {
		t.Errorf("transit/decrypt = %+v, want the plaintext, static", plain)
	}

	unwrap := func(cred *providers.Credential) map[string]any {
		t.Helper()
		got, err := w.Client.Logical().UnwrapWithContext(t.Context(), string(cred.Fields["token"].Reveal()))
		if err != nil {
			t.Fatal(err)
		}
		return got.Data
	}
	kv := get(t, yaml{"path": "one/app/a", "wrap": time.Minute})
	if got := unwrap(kv); got["x"] != "app/a" || kv.Revocability != providers.Static {
		t.Errorf("the wrapped KV secret holds %v, %s", got, kv.Revocability)
	}
	user := get(t, yaml{"path": "database/creds/{{project.name}}-ro", "wrap": time.Minute})
	inside := unwrap(user)
	name, _ := inside["username"].(string)
	password, _ := inside["password"].(string)
	if orders, err := pg.Login(t.Context(), name, password); err != nil || orders != 1 {
		t.Errorf("PostgreSQL login of the unwrapped user = %d, %v", orders, err)
	}
	if err := s.Revoke(t.Context(), user.Handle, s.login); !errors.Is(err, providers.ErrWithLogin) {
		t.Errorf("Revoke of the wrapped user = %v, want %v", err, providers.ErrWithLogin)
	}
	if err := s.Logout(t.Context(), s.login); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, userGone, "the unwrapped user is gone", func() bool { return !slices.Contains(pg.Roles(t), name) })
}

// A user outlives its first TTL by renewal and ends at Vault's maximum, which
// Renew tells; one that Vault would give for longer is shortened.
func TestT16VaultRenewalPastTheFirstTTL(t *testing.T) {
	t.Parallel()
	pg, w := harness.Postgres(t), newVaultWorld(t)
	const first, most = 3 * time.Second, 8 * time.Second
	w.MountDatabase(t, pg, "shop-ro", first, most)
	w.AddDatabaseRole(t, "shop-long", time.Hour, 2*time.Hour)
	w.TrustRole(t, "prod", mayReadDatabase)
	s := w.login(t, "prod")
	cred, name, password := s.user(t)
	began := time.Now()
	if cred.Expires.After(began.Add(first + time.Second)) {
		t.Fatalf("Expires = %v, want within %v", cred.Expires, first)
	}
	end := cred.Expires
	harness.Eventually(t, most, "renewed past the first TTL", func() bool {
		if time.Until(end) > time.Second {
			return time.Now().After(began.Add(first + 2*time.Second))
		}
		var err error
		if end, err = s.Renew(t.Context(), cred.Handle, s.login, first); err != nil {
			t.Fatal(err)
		}
		return false
	})
	if orders, err := pg.Login(t.Context(), name, password); err != nil || orders != 1 {
		t.Errorf("PostgreSQL login past the first TTL = %d orders, %v, want 1", orders, err)
	}
	if end, err := s.Renew(t.Context(), cred.Handle, s.login, time.Hour); err != nil || end.After(began.Add(most+time.Second)) {
		t.Errorf("Renew for an hour = %v, %v, want Vault's maximum of %v from %v", end, err, most, began)
	}
	harness.Eventually(t, most+userGone, "the user is gone at Vault's maximum", func() bool { return !slices.Contains(pg.Roles(t), name) })

	long, err := s.issue(t.Context(), t, yaml{"path": "database/creds/shop-long"})
	if err != nil || time.Until(long.Expires) > 10*time.Minute {
		t.Fatalf("Issue of a user for an hour = %+v, %v, want one for 10m", long, err)
	}
	var handle struct {
		LeaseID string `json:"lease_id"`
	}
	if err := json.Unmarshal(long.Handle.Reveal(), &handle); err != nil {
		t.Fatal(err)
	}
	lease, err := w.Client.Sys().LookupWithContext(t.Context(), handle.LeaseID)
	if err != nil {
		t.Fatal(err)
	}
	if ttl, err := lease.Data["ttl"].(json.Number).Int64(); err != nil || ttl > 600 {
		t.Errorf("at Vault the lease lives %d s (%v), want 600 at most", ttl, err)
	}
}

// The other ways to log in; the cluster's side of Kubernetes is a fake that
// reviews tokens.
func TestVaultLoginMethods(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t)
	w.MountKV(t, "one", 1)
	w.Write(t, "one/x", yaml{"a": "b"})
	const policy = `path "one/x" { capabilities = ["read"] }`
	w.TrustRole(t, "prod", policy)
	w.AddJWTRole(t, harness.JWTRole{Name: "team", Audience: "https://github.com/acme", Subject: "repo:acme/shop-api:ref:refs/heads/main", Policy: policy, TTL: time.Hour})

	w.Write(t, "sys/auth/approle", yaml{"type": "approle"})
	w.Write(t, "auth/approle/role/runenv", yaml{"token_policies": "runenv-prod", "token_ttl": "5m"})
	read := func(path, field string) string {
		secret, err := w.Client.Logical().ReadWithContext(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		return secret.Data[field].(string)
	}
	roleID := read("auth/approle/role/runenv/role-id", "role_id")
	made, err := w.Client.Logical().WriteWithContext(t.Context(), "auth/approle/role/runenv/secret-id", nil)
	if err != nil {
		t.Fatal(err)
	}

	cluster := httptest.NewServer(http.HandlerFunc(reviewTokens))
	t.Cleanup(cluster.Close)
	account := filepath.Join(t.TempDir(), "token")
	jwt, err := w.ci.Issuer.Sign(map[string]any{
		"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:ci:runenv", "exp": time.Now().Add(time.Hour).Unix(),
		"iat": time.Now().Unix(), "nbf": time.Now().Unix(),
		"kubernetes.io/serviceaccount/namespace": "ci", "kubernetes.io/serviceaccount/service-account.name": "runenv",
		"kubernetes.io/serviceaccount/service-account.uid": "u-1",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(account, []byte(jwt), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Write(t, "sys/auth/kubernetes", yaml{"type": "kubernetes"})
	w.Write(t, "auth/kubernetes/config", yaml{"kubernetes_host": cluster.URL, "kubernetes_ca_cert": string(harness.CA(t)), "disable_local_ca_jwt": true})
	w.Write(t, "auth/kubernetes/role/runenv-prod", yaml{
		"bound_service_account_names": "runenv", "bound_service_account_namespaces": "ci", "token_policies": "runenv-prod", "token_ttl": "5m",
	})

	for name, tt := range map[string]struct {
		auth  yaml
		wrong yaml // the same, refused
		hint  string
	}{
		"oidc":       {yaml{"method": "oidc"}, yaml{"audience": "https://elsewhere.example.com"}, "bound_audiences"},
		"approle":    {yaml{"method": "approle", "role_id": roleID, "secret_id": made.Data["secret_id"]}, yaml{"method": "approle", "role_id": roleID, "secret_id": "wrong"}, "secret id"},
		"kubernetes": {yaml{"method": "kubernetes", "token_file": account}, yaml{"method": "kubernetes", "token_file": account, "role": "none"}, "auth/kubernetes/role/none"},
		"token":      {yaml{"method": "token", "token": w.Token}, yaml{"method": "token", "token": "wrong"}, "auth/token/create"},
		"ci":         {yaml{"method": "ci", "role": "team", "audience": "https://github.com/acme"}, yaml{"method": "ci", "role": "team"}, "bound_audiences"},
	} {
		t.Run(name, func(t *testing.T) {
			req := providers.LoginRequest{Role: "prod", Session: "s-1", Marker: "m-login", Tokens: w.tokens("prod")}
			p := w.open(t, tt.auth)
			found, err := p.Check(t.Context(), req)
			if err != nil || !strings.Contains(found.As, "policies default") && name != "token" || strings.Contains(found.As, "hvs.") {
				t.Errorf("Check = %+v, %v, want the token's policies", found, err)
			}
			if notes := strings.Join(found.Notes, "\n"); strings.Contains(notes, "token_ttl=5m") != (name == "ci") {
				t.Errorf("notes = %q", notes)
			}
			l, err := p.Login(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			s := &vaultSession{p, l.Handle}
			if cred, err := s.issue(t.Context(), t, yaml{"path": "one/x"}); err != nil || string(cred.Fields["a"].Reveal()) != "b" {
				t.Errorf("Issue = %v", err)
			}
			if end, err := p.RenewLogin(t.Context(), l.Handle); err != nil || time.Until(end) > providers.LoginTTL {
				t.Errorf("RenewLogin = %v, %v, want %v at most", end, err, providers.LoginTTL)
			}
			if err := p.Logout(t.Context(), l.Handle); err != nil {
				t.Error(err)
			}
			if _, err := w.open(t, tt.wrong).Login(t.Context(), req); !errors.Is(err, providers.ErrDenied) || !strings.Contains(hintOf(err), tt.hint) {
				t.Errorf("Login with what is wrong = %v with hint %q, want %v with %q", err, hintOf(err), providers.ErrDenied, tt.hint)
			}
		})
	}
}

// reviewTokens is a cluster's answer that a token is that of ci/runenv.
func reviewTokens(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/apis/authentication.k8s.io/v1/tokenreviews" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(yaml{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
		"status": yaml{"authenticated": true, "user": yaml{"username": "system:serviceaccount:ci:runenv", "uid": "u-1"}},
	})
}
