package vault_test

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
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

// What may have made a credential is repeated only where Vault surely didn't
// process it.
func TestT14RepeatsOnlyWhatIsSafe(t *testing.T) {
	t.Parallel()
	const dynamic, posted, kv = "database/creds/ro", "pki/issue/ci", "kv/ci/npm"
	tests := []struct {
		name     string
		path     string
		fault    vaulttest.Fault
		attempts int
		ok       bool
	}{
		{"dynamic, throttled", dynamic, vaulttest.Status(http.StatusTooManyRequests), 4, false},
		{"dynamic, throttled once", dynamic, vaulttest.First(1, vaulttest.Status(http.StatusTooManyRequests)), 2, true},
		{"dynamic, behind", dynamic, vaulttest.First(2, vaulttest.Status(http.StatusPreconditionFailed)), 3, true},
		{"dynamic, sealed once", dynamic, vaulttest.First(1, vaulttest.Sealed()), 2, true},
		{"dynamic, failed", dynamic, vaulttest.Status(http.StatusInternalServerError), 1, false},
		{"dynamic, unavailable", dynamic, vaulttest.Status(http.StatusServiceUnavailable), 1, false},
		{"dynamic, cut", dynamic, vaulttest.Cut(), 1, false},
		{"dynamic, reply lost", dynamic, vaulttest.LoseReply(), 1, false},
		{"posted, failed", posted, vaulttest.Status(http.StatusInternalServerError), 1, false},
		{"posted, cut", posted, vaulttest.Cut(), 1, false},
		{"posted, throttled once", posted, vaulttest.First(1, vaulttest.Status(http.StatusTooManyRequests)), 2, true},
		{"kv, failed", kv, vaulttest.Status(http.StatusInternalServerError), 4, false},
		{"kv, failed once", kv, vaulttest.First(1, vaulttest.Status(http.StatusBadGateway)), 2, true},
		{"kv, denied", kv, vaulttest.Status(http.StatusForbidden, "permission denied"), 1, false},
		{"kv, redirected", kv, vaulttest.Redirect("https://elsewhere.example.com"), 1, false},
		{"login, failed once", "auth/jwt/login", vaulttest.First(1, vaulttest.Status(http.StatusInternalServerError)), 2, true},
		{"login, reply lost", "auth/jwt/login", vaulttest.LoseReply(), 1, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := newServer(t)
			s := newSession(t, srv)
			warm := keys{"path": tt.path}
			if tt.path == posted {
				warm["params"] = keys{"common_name": "x"}
			}
			call := func() error {
				_, err := s.issue(t, warm)
				return err
			}
			if tt.path == "auth/jwt/login" {
				call = func() error {
					_, err := s.Login(t.Context(), loginRequest())
					return err
				}
			}
			if err := call(); err != nil { // a kept connection is what net/http would repeat on
				t.Fatal(err)
			}
			before := len(srv.Requests(tt.path))
			srv.Inject(vaulttest.On(tt.path, tt.fault))
			err := call()
			if got := len(srv.Requests(tt.path)) - before; got != tt.attempts || (err == nil) != tt.ok {
				t.Errorf("%d attempts, %v; want %d, and success %v", got, err, tt.attempts, tt.ok)
			}
		})
	}
}

// The connection of one session serves the next.
func TestConnectionsAreShared(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	p := open(t, keys{"address": srv.URL}).(*vault.Provider)
	for range 5 {
		l, err := p.Login(t.Context(), loginRequest())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (&session{p, srv, l.Handle}).issue(t, keys{"path": "database/creds/ro"}); err != nil {
			t.Fatal(err)
		}
		if err := p.Logout(t.Context(), l.Handle); err != nil {
			t.Fatal(err)
		}
	}
	ports := map[string]bool{}
	for _, r := range srv.Requests("") {
		ports[r.RemoteAddr] = true
	}
	if len(ports) != 1 {
		t.Errorf("%d connections, want 1", len(ports))
	}
}

// A redirect isn't followed, not even to ourselves: the token would go along.
func TestT01RedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	var hits atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	t.Cleanup(elsewhere.Close)
	srv := newServer(t)
	s := newSession(t, srv)
	srv.Inject(vaulttest.Redirect(elsewhere.URL))
	_, err := s.issue(t, keys{"path": "database/creds/ro"})
	if !errors.Is(err, providers.ErrUnavailable) || !strings.Contains(hint(err), "active node") {
		t.Errorf("Issue = %v with hint %q, want %v", err, hint(err), providers.ErrUnavailable)
	}
	_, err = s.Provider.Login(t.Context(), loginRequest())
	if !errors.Is(err, providers.ErrUnavailable) || hits.Load() != 0 {
		t.Errorf("Login = %v after %d requests elsewhere, want %v and none", err, hits.Load(), providers.ErrUnavailable)
	}
}

// The environment's VAULT_* variables and proxies steer nothing.
func TestT34EnvironmentDoesNotSteer(t *testing.T) {
	var hits atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer elsewhere.Close()
	for name, value := range map[string]string{
		"VAULT_ADDR": elsewhere.URL, "VAULT_AGENT_ADDR": elsewhere.URL, "VAULT_PROXY_ADDR": elsewhere.URL, "VAULT_HTTP_PROXY": elsewhere.URL,
		"HTTP_PROXY": elsewhere.URL, "HTTPS_PROXY": elsewhere.URL,
		"VAULT_TOKEN": "c4n4ry-env", "VAULT_NAMESPACE": "c4n4ry-env", "VAULT_HEADERS": `{"X-Extra": "c4n4ry-env"}`,
		"VAULT_WRAP_TTL": "5m", "VAULT_SKIP_VERIFY": "true", "VAULT_TLS_SERVER_NAME": "c4n4ry-env", "VAULT_SRV_LOOKUP": "true",
		"VAULT_RATE_LIMIT": "1:1", "VAULT_CLIENT_TIMEOUT": "1", "VAULT_MAX_RETRIES": "9", "VAULT_DISABLE_REDIRECTS": "false",
	} {
		t.Setenv(name, value)
	}
	srv := newServer(t)
	s := newSession(t, srv)
	if _, err := s.issue(t, keys{"path": "database/creds/ro"}); err != nil {
		t.Fatal(err)
	}
	if hits.Load() != 0 {
		t.Errorf("%d requests went elsewhere", hits.Load())
	}
	for _, r := range srv.Requests("") {
		for name, values := range r.Header {
			for _, v := range values {
				if strings.Contains(v, "c4n4ry-env") || name == "X-Vault-Wrap-Ttl" {
					t.Errorf("%s came with %s: %s", r.URL.Path, name, v)
				}
			}
		}
	}
	if got := srv.Requests("auth/jwt/login")[0].Header.Get("X-Vault-Token"); got != "" {
		t.Errorf("the login came with a token")
	}

	p := open(t, keys{"address": newTLSServer(t).URL}).(providers.Loginer)
	if _, err := p.Login(t.Context(), loginRequest()); !errors.Is(err, providers.ErrUnavailable) {
		t.Errorf("Login at a server with an unknown certificate under VAULT_SKIP_VERIFY = %v, want %v", err, providers.ErrUnavailable)
	}

	t.Setenv("VAULT_CACERT", "/nonexistent/c4n4ry")
	_, err := vault.Type().Open(providers.Config{Decode: providertest.Keys(keys{"address": srv.URL})})
	if err == nil || strings.Contains(err.Error(), "c4n4ry") || !strings.Contains(hint(err), "unset") {
		t.Errorf("Open with VAULT_* that can't be read = %v with hint %q, want a cure", err, hint(err))
	}
}

// newTLSServer has a certificate that no one knows, and answers 404.
func newTLSServer(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// Why a request failed is said, with the cure.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	tlsServer := newTLSServer(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tlsServer.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := closed.Addr().String()
	_ = closed.Close()
	tests := []struct {
		name       string
		keys       keys
		want       error
		text, hint string
	}{
		{"nobody there", keys{"address": "https://" + free}, providers.ErrNotIssued, "connection refused", ""},
		{"an unknown authority", keys{"address": tlsServer.URL}, providers.ErrNotIssued, "authority", "ca_file"},
		{"a known authority", keys{"address": tlsServer.URL, "ca_file": ca}, providers.ErrNotFound, "status 404", "auth/jwt"},
		{"another name", keys{"address": strings.Replace(tlsServer.URL, "127.0.0.1", "localhost", 1), "ca_file": ca}, providers.ErrNotIssued, "another name", "certificate"},
		{"https to http", keys{"address": "https" + strings.TrimPrefix(plain.URL, "http")}, providers.ErrNotIssued, "TLS", "port"},
		{"http to https", keys{"address": "http" + strings.TrimPrefix(tlsServer.URL, "https")}, providers.ErrInvalid, "https", "https://"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := open(t, tt.keys).(providers.Loginer).Login(t.Context(), loginRequest())
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || !strings.Contains(hint(err), tt.hint) {
				t.Errorf("Login = %v with hint %q, want %v with %q and %q", err, hint(err), tt.want, tt.text, tt.hint)
			}
		})
	}
}

func TestSealed(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	s := newSession(t, srv)
	srv.Inject(vaulttest.Sealed())
	_, err := s.issue(t, keys{"path": "database/creds/ro"})
	if !errors.Is(err, providers.ErrUnavailable) || !providers.Void(err) || hint(err) != "unseal it" {
		t.Errorf("Issue = %v with hint %q, want %v, void", err, hint(err), providers.ErrUnavailable)
	}
}

// A wish of Vault's for a pause doesn't hold a call beyond its deadline.
func TestRetryAfterBeyondTheDeadline(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	s := newSession(t, srv)
	srv.Inject(func(*vaulttest.Server, http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3000")
			w.WriteHeader(http.StatusTooManyRequests)
		})
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	before := len(srv.Requests(""))
	if _, err := s.RenewLogin(ctx, s.login); !errors.Is(err, providers.ErrUnavailable) || ctx.Err() != nil {
		t.Errorf("RenewLogin = %v with the context at %v, want %v before its end", err, ctx.Err(), providers.ErrUnavailable)
	}
	if n := len(srv.Requests("")) - before; n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

// A failure to end a credential at its own back end, which Vault reports as a
// bad request, isn't the end of trying.
func TestT15RevocationThatFails(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	s := newSession(t, srv)
	cred, err := s.issue(t, keys{"path": "database/creds/ro"})
	if err != nil {
		t.Fatal(err)
	}
	srv.Inject(vaulttest.Status(http.StatusBadRequest, "failed to revoke entry: "+vaulttest.Echo))
	if err := s.Revoke(t.Context(), cred.Handle, s.login); !errors.Is(err, providers.ErrUnavailable) {
		t.Errorf("Revoke = %v, want %v", err, providers.ErrUnavailable)
	}
}

// A login that Vault said it failed at may have made a token, whatever it says
// of the next attempt.
func TestT14ALoginThatFailedFirstIsNotVoid(t *testing.T) {
	t.Parallel()
	for name, then := range map[string]vaulttest.Fault{
		"denied":    vaulttest.Status(http.StatusForbidden, "permission denied"),
		"throttled": vaulttest.Status(http.StatusTooManyRequests),
		"sealed":    vaulttest.Sealed(),
	} {
		srv := newServer(t)
		p := open(t, keys{"address": srv.URL}).(providers.Loginer)
		srv.Inject(then)
		if _, err := p.Login(t.Context(), loginRequest()); !providers.Void(err) {
			t.Errorf("%s: Login = %v, want it void", name, err)
		}
		first := vaulttest.First(1, vaulttest.Status(http.StatusInternalServerError))
		srv.Inject(func(s *vaulttest.Server, next http.Handler) http.Handler { return first(s, then(s, next)) })
		if login, err := p.Login(t.Context(), loginRequest()); login != nil || err == nil || providers.Void(err) {
			t.Errorf("%s after a failure: Login = %v, %v, want an error that isn't void", name, login, err)
		}
	}
}
