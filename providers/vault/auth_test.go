package vault_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/providertest"
	"github.com/runenv/action/providers/vault"
	"github.com/runenv/action/providers/vault/vaulttest"
)

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What a method reads from a file is read for each login.
func TestTokenFilesAreReadAgain(t *testing.T) {
	t.Parallel()
	for method, use := range map[string]func(*vaulttest.Server, string){
		"token":      func(*vaulttest.Server, string) {},
		"kubernetes": func(s *vaulttest.Server, token string) { s.ServiceAccounts["runenv-prod"] = token },
	} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			srv := newServer(t)
			use(srv, vaulttest.RootToken)
			file := filepath.Join(t.TempDir(), "token")
			p := open(t, keys{"address": srv.URL, "auth": keys{"method": method, "token_file": file}}).(*vault.Provider)
			login := func() error {
				_, err := p.Login(t.Context(), loginRequest())
				return err
			}
			if err := login(); !errors.Is(err, providers.ErrUnavailable) || !providers.Void(err) || !strings.Contains(hint(err), "file") {
				t.Errorf("Login without the file = %v with hint %q, want %v, void", err, hint(err), providers.ErrUnavailable)
			}
			for _, bad := range []string{"", "c4n4ry with blanks", strings.Repeat("c4n4ry", 4<<10)} {
				writeFile(t, file, bad)
				if err := login(); !errors.Is(err, providers.ErrUnavailable) || strings.Contains(err.Error(), "c4n4ry") {
					t.Errorf("Login with a file of %d bytes = %v, want %v and no value", len(bad), err, providers.ErrUnavailable)
				}
			}
			writeFile(t, file, "hvs.another\n")
			if err := login(); !errors.Is(err, providers.ErrDenied) {
				t.Errorf("Login with another token = %v, want %v", err, providers.ErrDenied)
			}
			writeFile(t, file, vaulttest.RootToken+"\n")
			if err := login(); err != nil {
				t.Errorf("Login = %v", err)
			}
			if p.Audience() != "" {
				t.Errorf("Audience() = %q, want none", p.Audience())
			}
		})
	}
}

// The method ci logs in with the CI's token alone, never with the broker's.
func TestT34CILogsInWithTheCIsToken(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	srv.Roles["team"] = vaulttest.Role{Subject: "repo:acme/shop", Audience: "https://github.com/acme", TTL: time.Hour}
	srv.Roles["long"] = vaulttest.Role{Subject: "repo:acme/shop", Audience: "https://github.com/acme", TTL: time.Hour + time.Second}
	openCI := func(role string) *vault.Provider {
		var asked string
		p, err := vault.Type().Open(providers.Config{
			Name:   "vault",
			Decode: providertest.Keys(keys{"address": srv.URL, "auth": keys{"method": "ci", "role": role, "audience": "https://github.com/acme"}}),
			CI: func(_ context.Context, audience string) (string, error) {
				asked = audience
				return vaulttest.IDToken("repo:acme/shop", asked), nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		return p.(*vault.Provider)
	}
	p := openCI("team")
	req := loginRequest()
	req.Tokens = func(context.Context, string) (string, error) {
		t.Error("the broker's own token was asked for")
		return "", errors.New("no")
	}
	l, err := p.Login(t.Context(), req)
	if err != nil || p.Audience() != "" || p.LoginTTL() != time.Hour || time.Until(l.Expires) > time.Hour {
		t.Errorf("Login = %+v, %v with LoginTTL %v and audience %q, want one for an hour", l, err, p.LoginTTL(), p.Audience())
	}
	if end, err := p.RenewLogin(t.Context(), l.Handle); err != nil || time.Until(end) > providers.LoginTTL {
		t.Errorf("RenewLogin = %v, %v, want %v at a time from then on", end, err, providers.LoginTTL)
	}
	if _, err := openCI("long").Login(t.Context(), req); !errors.Is(err, providers.ErrMalformed) || !strings.Contains(hint(err), "token_ttl=1h") || srv.Tokens() != 1 {
		t.Errorf("Login for longer = %v with hint %q and %d tokens, want a refusal", err, hint(err), srv.Tokens())
	}
	if _, err := openCI("none").Login(t.Context(), req); !errors.Is(err, providers.ErrNotFound) || strings.Contains(hint(err), "runenv:role") {
		t.Errorf("Login for a role that isn't there = %v with hint %q", err, hint(err))
	}
}

func TestLoginHints(t *testing.T) {
	t.Parallel()
	appRole := keys{"method": "approle", "role_id": "r-1", "secret_id": "c4n4ry-wrong"}
	file := filepath.Join(t.TempDir(), "token")
	writeFile(t, file, "c4n4ry")
	kubernetes := keys{"method": "kubernetes", "token_file": file}
	tests := []struct {
		name  string
		auth  keys
		fault vaulttest.Fault
		want  error
		hint  string
	}{
		{"a wrong secret id", appRole, nil, providers.ErrDenied, "secret id"},
		{"approle isn't enabled", appRole, vaulttest.Status(http.StatusForbidden, "permission denied"), providers.ErrDenied, "enabled at auth/approle"},
		{"no such kubernetes role", kubernetes, nil, providers.ErrDenied, "auth/kubernetes/role/runenv-prod"},
		{"another service account", kubernetes, vaulttest.Status(http.StatusForbidden, "service account name not authorized"), providers.ErrDenied, "bound_service_account_names"},
		{"kubernetes isn't enabled", kubernetes, vaulttest.Status(http.StatusForbidden, "permission denied"), providers.ErrDenied, "enabled at auth/kubernetes"},
		{"clocks that differ", keys{}, vaulttest.Status(http.StatusBadRequest, "error validating token: invalid expiration time (exp) claim: token is expired"), providers.ErrDenied, "clocks"},
		{"another algorithm", keys{}, vaulttest.Status(http.StatusBadRequest, "error validating token: token signed with unexpected algorithm"), providers.ErrDenied, "jwt_supported_algs"},
		{"other claims", keys{}, vaulttest.Status(http.StatusBadRequest, `error validating claims: claim "c4n4ry" does not match any associated bound claim values`), providers.ErrDenied, "bound_claims"},
		{"a method without its configuration", keys{}, vaulttest.Status(http.StatusBadRequest, "could not load configuration"), providers.ErrInvalid, "oidc_discovery_url"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := newServer(t)
			if tt.fault != nil {
				srv.Inject(tt.fault)
			}
			_, err := open(t, keys{"address": srv.URL, "auth": tt.auth}).(providers.Loginer).Login(t.Context(), loginRequest())
			if !errors.Is(err, tt.want) || !strings.Contains(hint(err), tt.hint) || strings.Contains(err.Error()+hint(err), "c4n4ry") {
				t.Errorf("Login = %v with hint %q, want %v with %q", err, hint(err), tt.want, tt.hint)
			}
		})
	}
}

// A certificate of the broker's own is shown, anew after it was replaced, and
// tls_server_name is what the server's is checked against.
func TestClientCertificateAndServerName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile, caFile := filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"), filepath.Join(dir, "ca.pem")
	newPair := func(name string) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
		cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
		writeFile(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	}
	newPair("first")
	var shown atomic.Value
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown.Store(r.TLS.PeerCertificates[0].Subject.CommonName + " " + r.TLS.ServerName)
		w.Header().Set("Connection", "close")
		http.NotFound(w, r)
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.EnableHTTP2 = false
	srv.StartTLS()
	t.Cleanup(srv.Close)
	writeFile(t, caFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))

	k := keys{"address": srv.URL, "ca_file": caFile, "client_cert": certFile, "client_key": keyFile, "tls_server_name": "example.com"}
	p := open(t, k).(providers.Loginer)
	for _, name := range []string{"first", "second"} {
		newPair(name)
		if _, err := p.Login(t.Context(), loginRequest()); !errors.Is(err, providers.ErrNotFound) {
			t.Fatalf("Login = %v, want the 404 of a server that let it in", err)
		}
		if got, want := shown.Load(), name+" example.com"; got != want {
			t.Errorf("the server saw %q, want %q", got, want)
		}
	}
	k["tls_server_name"] = "vault.elsewhere.test"
	if _, err := open(t, k).(providers.Loginer).Login(t.Context(), loginRequest()); !errors.Is(err, providers.ErrNotIssued) || !strings.Contains(err.Error(), "another name") {
		t.Errorf("Login at another name = %v, want %v", err, providers.ErrNotIssued)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		self keys
		role vaulttest.Role
		as   string
		note string // empty: none
	}{
		{"all is well", nil, vaulttest.Role{}, "display name jwt-prod, entity e-1, policies default", ""},
		{"not renewable", keys{"renewable": false}, vaulttest.Role{}, "jwt-prod", "can't be renewed"},
		{"an end for good", keys{"explicit_max_ttl": 600}, vaulttest.Role{}, "jwt-prod", "token_explicit_max_ttl"},
		{"counted uses", keys{"num_uses": 3}, vaulttest.Role{}, "jwt-prod", "token_num_uses"},
		{"a name that steers terminals", keys{"display_name": "a\x1b[2Jb\n"}, vaulttest.Role{}, "display name a[2Jb, ", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := newServer(t)
			srv.Self = tt.self
			got, err := open(t, keys{"address": srv.URL}).(providers.Checker).Check(t.Context(), loginRequest())
			if err != nil || !strings.Contains(got.As, tt.as) || srv.Tokens() != 0 {
				t.Errorf("Check = %+v, %v with %d tokens left, want %q", got, err, srv.Tokens(), tt.as)
			}
			if notes := strings.Join(got.Notes, "\n"); (notes == "") != (tt.note == "") || !strings.Contains(notes, tt.note) {
				t.Errorf("notes = %q, want %q in them", notes, tt.note)
			}
		})
	}
	t.Run("without Vault's default policy", func(t *testing.T) {
		t.Parallel()
		srv := newServer(t)
		srv.Inject(vaulttest.On("auth/jwt/login", vaulttest.Rewrite(func(s string) string {
			return strings.Replace(s, `"policies":["default"]`, `"policies":["ci"]`, 1)
		})))
		got, err := open(t, keys{"address": srv.URL}).(providers.Checker).Check(t.Context(), loginRequest())
		if err != nil || !strings.Contains(strings.Join(got.Notes, "\n"), "lacks Vault's default policy") {
			t.Errorf("Check = %+v, %v, want a note on the default policy", got, err)
		}
	})
	t.Run("where the login is refused", func(t *testing.T) {
		t.Parallel()
		srv := newServer(t)
		srv.Roles["runenv-prod"] = vaulttest.Role{Subject: "runenv:role:prod", Audience: srv.URL, Batch: true}
		_, err := open(t, keys{"address": srv.URL}).(providers.Checker).Check(t.Context(), loginRequest())
		if !errors.Is(err, providers.ErrMalformed) || !strings.Contains(hint(err), "token_type=service") {
			t.Errorf("Check = %v with hint %q, want the cure", err, hint(err))
		}
	})
}
