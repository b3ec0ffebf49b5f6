package vault_test

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/providertest"
	"github.com/runenv/action/providers/vault"
	"github.com/runenv/action/providers/vault/vaulttest"
	"github.com/runenv/action/ref"
	"github.com/runenv/action/secret"
)

type keys = map[string]any

// newServer is a fake Vault with a role for the RunEnv role prod, a database,
// a KV store of each version and a PKI that gives no leases.
func newServer(t *testing.T) *vaulttest.Server {
	t.Helper()
	s := vaulttest.New(t)
	s.Roles["runenv-prod"] = vaulttest.Role{Subject: "runenv:role:prod", Audience: s.URL}
	s.Mount("database", "database", vaulttest.Database(10*time.Minute))
	s.KV("secret", 2)
	s.Put("secret", "ci/npm", keys{"token": "c4n4ry-old"})
	s.Put("secret", "ci/npm", keys{"token": "c4n4ry-token", "port": 5432, "tls": true, "none": nil, "opts": keys{"b": []int{1, 2}, "a": "<&>"}})
	s.KV("kv", 1)
	s.Put("kv", "ci/npm", keys{"token": "c4n4ry-token"})
	s.Mount("pki", "pki", func(path string, body map[string]any) vaulttest.Answer {
		cn, _ := body["common_name"].(string)
		ttl, _ := body["ttl"].(float64)
		delete(body, "ttl")
		return vaulttest.Answer{Data: keys{"private_key": "c4n4ry-key", "cn": cn, "expiration": time.Now().Add(time.Duration(ttl) * time.Second).Unix(), "body": body}}
	})
	s.Mount("ssh", "ssh", func(_ string, body map[string]any) vaulttest.Answer {
		return vaulttest.Answer{Data: keys{"signed_key": "c4n4ry-signed", "serial_number": "1", "ttl_asked": body["ttl"]}}
	})
	s.AppRoles["r-1"] = "c4n4ry-secret-id"
	return s
}

func open(t *testing.T, k keys) providers.Provider {
	t.Helper()
	p, err := vault.Type().Open(providers.Config{Name: "vault", Decode: providertest.Keys(k)})
	if err != nil {
		t.Fatal(err)
	}
	vault.Hasten(p)
	return p
}

// A session is a provider on a fake Vault, logged in as prod.
type session struct {
	*vault.Provider
	server *vaulttest.Server
	login  secret.Value
}

func newSession(t *testing.T, s *vaulttest.Server) *session {
	t.Helper()
	p := open(t, keys{"address": s.URL}).(*vault.Provider)
	l, err := p.Login(t.Context(), loginRequest())
	if err != nil {
		t.Fatal(err)
	}
	return &session{p, s, l.Handle}
}

func loginRequest() providers.LoginRequest {
	return providers.LoginRequest{Role: "prod", Session: "s-1", Marker: "m-login", Tokens: vaulttest.Tokens("prod")}
}

func (s *session) issue(t *testing.T, k keys) (*providers.Credential, error) {
	t.Helper()
	def, err := s.Define(providertest.Keys(k))
	if err != nil {
		t.Fatal(err)
	}
	vars := providers.Vars{"project.name": "shop", "role.name": "prod"}
	return s.Issue(t.Context(), providers.Request{Definition: def, Vars: vars, TTL: 10 * time.Minute, Marker: "m-lease", Login: s.login})
}

func TestConformance(t *testing.T) {
	oidc := func(s *vaulttest.Server) keys { return keys{"address": s.URL} }
	token := func(s *vaulttest.Server) keys {
		return keys{"address": s.URL, "auth": keys{"method": "token", "token": vaulttest.RootToken}}
	}
	appRole := func(s *vaulttest.Server) keys {
		return keys{"address": s.URL, "auth": keys{"method": "approle", "role_id": "r-1", "secret_id": "c4n4ry-secret-id"}}
	}
	account := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(account, []byte("c4n4ry-account\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	kubernetes := func(s *vaulttest.Server) keys {
		s.ServiceAccounts["runenv-prod"] = "c4n4ry-account"
		return keys{"address": s.URL, "auth": keys{"method": "kubernetes", "token_file": account}}
	}
	user := map[string]string{"username": "", "password": ""}
	kv2 := map[string]string{"token": "c4n4ry-token", "port": "5432", "tls": "true", "opts": `{"a":"<&>","b":[1,2]}`}
	tests := []struct {
		name      string
		open      func(*vaulttest.Server) keys
		define    keys
		fields    map[string]string
		revocable providers.Revocability
		keyless   bool
		reference string
	}{
		{"dynamic", oidc, keys{"path": "database/creds/{{project.name}}-ro"}, user, providers.Revocable, true, "database/creds/shop-ro"},
		{"dynamic by token", token, keys{"path": "database/creds/{{project.name}}-ro"}, user, providers.Revocable, false, ""},
		{"dynamic by approle", appRole, keys{"path": "database/creds/{{project.name}}-ro"}, user, providers.Revocable, false, ""},
		{"dynamic by kubernetes", kubernetes, keys{"path": "database/creds/{{project.name}}-ro"}, user, providers.Revocable, false, ""},
		{"kv 2", oidc, keys{"path": "secret/ci/npm"}, kv2, providers.Static, true, "secret/ci/npm"},
		{"kv 1", oidc, keys{"path": "kv/ci/npm"}, map[string]string{"token": "c4n4ry-token"}, providers.Static, true, ""},
		{"listed", oidc, keys{"path": "secret/ci", "recursive": true}, map[string]string{
			"npm/token": "c4n4ry-token", "npm/port": "5432", "npm/tls": "true", "npm/opts": kv2["opts"]}, providers.Static, true, ""},
		{"kv 2 wrapped", oidc, keys{"path": "secret/ci/npm", "wrap": 5 * time.Minute}, map[string]string{"token": ""}, providers.Static, true, ""},
		{"posted", oidc, keys{"path": "pki/issue/ci", "params": keys{"common_name": "{{project.name}}.example.com", "n": 3, "l": []any{"a", true}}},
			map[string]string{"private_key": "c4n4ry-key", "cn": "shop.example.com", "expiration": "", "body": `{"common_name":"shop.example.com","l":["a",true],"n":3}`},
			providers.Expires, true, ""},
		{"ssh", oidc, keys{"path": "ssh/sign/ci", "params": keys{"public_key": "ssh-ed25519 A", "extensions": keys{"permit-pty": ""}}},
			map[string]string{"signed_key": "c4n4ry-signed", "serial_number": "1", "ttl_asked": ""}, providers.Expires, true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			providertest.Run(t, providertest.Harness{New: func(t *testing.T) *providertest.Backend {
				s := newServer(t)
				b := &providertest.Backend{
					Provider:     open(t, tt.open(s)),
					Define:       providertest.Keys(tt.define),
					Vars:         providers.Vars{"project.name": "shop"},
					Fields:       maps.Clone(tt.fields),
					Revocability: tt.revocable,
					LimitsTTL:    true,
					Canaries:     []string{"c4n4ry", vaulttest.RootToken},
					Inject:       s.InjectFault,
					More:         vaulttest.More(),
					Log: func() string {
						var log strings.Builder
						for _, r := range s.Requests("") {
							log.WriteString(r.Header.Get("X-Runenv-Marker") + "\n")
						}
						return log.String()
					},
					Requests: func() int { return len(s.Requests("")) },
					Alive:    func() (int, int) { return s.Leases(), s.Tokens() },
				}
				if tt.reference != "" {
					b.Reference = &ref.Ref{Scheme: "vault", Path: tt.reference}
				}
				if tt.keyless {
					b.Tokens = vaulttest.Tokens("prod")
				}
				return b
			}})
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	tests := []struct {
		name string
		keys keys
		want string
	}{
		{"no address", keys{}, "`address` is missing"},
		{"http", keys{"address": "http://vault.example.com:8200"}, "plain http"},
		{"http to a name that means loopback", keys{"address": "http://localhost:8200"}, "plain http"},
		{"http to a private address", keys{"address": "http://10.0.0.1:8200"}, "plain http"},
		{"a path", keys{"address": "https://vault.example.com/v1"}, "isn't an origin"},
		{"a user", keys{"address": "https://u:c4n4ry@vault.example.com"}, "isn't an origin"},
		{"a query", keys{"address": "https://vault.example.com?a=c4n4ry"}, "isn't an origin"},
		{"a socket", keys{"address": "unix:///run/vault.sock"}, "`address`"},
		{"another scheme", keys{"address": "ftp://vault.example.com"}, "neither https"},
		{"an unknown key", keys{"address": "https://v", "url": "x"}, "unknown key url"},
		{"a namespace with a header in it", keys{"address": "https://v", "namespace": "a\r\nX: y"}, "`namespace`"},
		{"a namespace that climbs", keys{"address": "https://v", "namespace": "a/../b"}, "`namespace`"},
		{"approle without a role id", keys{"address": "https://v", "auth": keys{"method": "approle", "secret_id": "c4n4ry"}}, "needs `role_id`"},
		{"approle without a secret id", keys{"address": "https://v", "auth": keys{"method": "approle", "role_id": "r"}}, "needs `secret_id`"},
		{"a token for approle", keys{"address": "https://v", "auth": keys{"method": "approle", "token": "c4n4ry"}}, "`token` doesn't belong"},
		{"an audience for kubernetes", keys{"address": "https://v", "auth": keys{"method": "kubernetes", "audience": "x"}}, "`audience` doesn't belong"},
		{"token and token_file", keys{"address": "https://v", "auth": keys{"method": "token", "token": "c4n4ry", "token_file": "x"}}, "only one"},
		{"ci without a CI", keys{"address": "https://v", "auth": keys{"method": "ci", "role": "team"}}, "runenv-broker run"},
		{"ci without a role", keys{"address": "https://v", "auth": keys{"method": "ci"}}, "needs `role`"},
		{"jwt, as the method isn't called", keys{"address": "https://v", "auth": keys{"method": "jwt"}}, "unknown `method`: oidc"},
		{"a client certificate without its key", keys{"address": "https://v", "client_cert": "x"}, "belong together"},
		{"a client certificate that isn't there", keys{"address": "https://v", "client_cert": "testdata/none", "client_key": "testdata/none"}, "`client_cert`"},
		{"a client certificate that isn't one", keys{"address": "https://v", "client_cert": "vault_test.go", "client_key": "vault_test.go"}, "in PEM"},
		{"a server name with a port", keys{"address": "https://v", "tls_server_name": "a:1"}, "`tls_server_name`"},
		{"an unknown method", keys{"address": "https://v", "auth": keys{"method": "c4n4ry"}}, "unknown `method`"},
		{"a token for oidc", keys{"address": "https://v", "auth": keys{"token": "c4n4ry"}}, "`token` doesn't belong"},
		{"no token", keys{"address": "https://v", "auth": keys{"method": "token"}}, "needs `token_file`"},
		{"a token with a newline in it", keys{"address": "https://v", "auth": keys{"method": "token", "token": "c4n4ry\nb"}}, "needs `token_file`"},
		{"an audience for token", keys{"address": "https://v", "auth": keys{"method": "token", "token": "x", "audience": "y"}}, "`audience` doesn't belong"},
		{"a mount that climbs", keys{"address": "https://v", "auth": keys{"mount": "../sys"}}, "`mount`"},
		{"a role with a slash", keys{"address": "https://v", "auth": keys{"role": "a/b"}}, "`role`"},
		{"an audience with a blank", keys{"address": "https://v", "auth": keys{"audience": "a b"}}, "`audience`"},
		{"a ca_file that isn't there", keys{"address": "https://v", "ca_file": "testdata/none.pem"}, "`ca_file`"},
		{"a ca_file without a certificate", keys{"address": "https://v", "ca_file": "vault_test.go"}, "no certificate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := vault.Type().Open(providers.Config{Name: "vault", Decode: providertest.Keys(tt.keys)})
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "c4n4ry") {
				t.Errorf("Open = %v, want one with %q and no value", err, tt.want)
			}
		})
	}
}

func TestOpenAccepts(t *testing.T) {
	for _, k := range []keys{
		{"address": "https://vault.example.com:8200/"},
		{"address": "http://127.0.0.1:8200"},
		{"address": "http://[::1]:8200", "namespace": "team/ci/"},
		{"address": "https://v", "auth": keys{"method": "oidc", "mount": "ci/jwt", "role": "ci", "audience": "vault"}},
	} {
		open(t, k)
	}
}

func TestDefineRefuses(t *testing.T) {
	p := open(t, keys{"address": "https://v"})
	tests := []struct {
		name string
		keys keys
		want string
	}{
		{"no path", keys{}, "`path` is missing"},
		{"a leading slash", keys{"path": "/secret/a"}, "slash"},
		{"a trailing slash", keys{"path": "secret/a/"}, "slash"},
		{"a doubled slash", keys{"path": "secret//a"}, "slash"},
		{"the API's prefix", keys{"path": "v1/secret/a"}, "v1/"},
		{"a mount alone", keys{"path": "secret"}, "mount alone"},
		{"a climb", keys{"path": "secret/../sys/seal"}, ".."},
		{"a dot", keys{"path": "secret/./a"}, ". or .."},
		{"a query", keys{"path": "secret/a?list=true"}, "holds one of"},
		{"an escape", keys{"path": "secret/a%2fb"}, "holds one of"},
		{"a newline", keys{"path": "secret/a\nb"}, "control character"},
		{"sys", keys{"path": "sys/seal"}, "under sys/"},
		{"auth", keys{"path": "auth/token/create"}, "under auth/"},
		{"an unknown variable", keys{"path": "secret/{{ref}}"}, "unknown name"},
		{"an unknown key", keys{"path": "secret/a", "field": "x"}, "unknown key field"},
		{"a negative version", keys{"path": "secret/a", "version": -1}, "`version`"},
		{"version and params", keys{"path": "secret/a", "version": 1, "params": keys{}}, "only one"},
		{"params that nest too deep", keys{"path": "pki/a", "params": keys{"a": []any{keys{"b": []any{keys{}}}}}}, "nested deeper"},
		{"too many params", keys{"path": "pki/a", "params": keys{"a": make([]any, 65)}}, "more than 64"},
		{"list and version", keys{"path": "kv/a", "list": true, "version": 1}, "neither `version`"},
		{"recursive and params", keys{"path": "kv/a", "recursive": true, "params": keys{}}, "neither `version`"},
		{"list and wrap", keys{"path": "kv/a", "list": true, "wrap": time.Minute}, "nor `wrap`"},
		{"a wrap that is too short", keys{"path": "kv/a", "wrap": time.Second}, "`wrap`"},
		{"a wrap that is too long", keys{"path": "kv/a", "wrap": 2 * time.Hour}, "`wrap`"},
		{"a negative wrap", keys{"path": "kv/a", "wrap": -time.Minute}, "`wrap`"},
		{"null in params", keys{"path": "pki/a", "params": keys{"a": []any{nil}}}, "neither"},
		{"a bad template in params", keys{"path": "pki/a", "params": keys{"a": "{{b"}}, "}}"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, err := p.Define(providertest.Keys(tt.keys)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Define = %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestTemplatesIncludeParams(t *testing.T) {
	def, err := open(t, keys{"address": "https://v"}).Define(providertest.Keys(keys{
		"path": "pki/issue/{{role.name}}", "params": keys{"b": []any{"{{environment}}"}, "a": "{{project.name}}"},
	}))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, tmpl := range def.Templates() {
		for _, n := range tmpl.Names() {
			names[n] = true
		}
	}
	if len(names) != 3 || !names["role.name"] || !names["environment"] || !names["project.name"] {
		t.Errorf("Templates() read %v, want role.name, environment and project.name", names)
	}
}

func TestReads(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		keys keys
		want error // nil: the token is wanted
		text string
	}{
		{"the newest version", keys{"path": "secret/ci/npm"}, nil, "c4n4ry-token"},
		{"an older version", keys{"path": "secret/ci/npm", "version": 1}, nil, "c4n4ry-old"},
		{"a version that isn't there", keys{"path": "secret/ci/npm", "version": 9}, providers.ErrNotFound, ""},
		{"a deleted secret", keys{"path": "secret/gone"}, providers.ErrNotFound, ""},
		{"a secret without fields", keys{"path": "secret/empty"}, providers.ErrNotFound, "no fields"},
		{"a secret that isn't there", keys{"path": "secret/none"}, providers.ErrNotFound, "status 404"},
		{"data/ by habit", keys{"path": "secret/data/ci/npm"}, providers.ErrNotFound, "status 404"},
		{"a version of KV 1", keys{"path": "kv/ci/npm", "version": 1}, providers.ErrInvalid, "no versions"},
		{"params to KV 1", keys{"path": "kv/ci/npm", "params": keys{"a": "b"}}, providers.ErrInvalid, "overwrite"},
		{"params to KV 2", keys{"path": "secret/ci/npm", "params": keys{}}, providers.ErrInvalid, "overwrite"},
		{"no mount", keys{"path": "nothing/there"}, providers.ErrNotFound, "nothing is mounted"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := newServer(t)
			srv.Put("secret", "gone", keys{"a": "b"})
			srv.Put("secret", "gone", nil)
			srv.Put("secret", "empty", keys{})
			cred, err := newSession(t, srv).issue(t, tt.keys)
			if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("Issue = %v, want %v with %q", err, tt.want, tt.text)
			}
			if err == nil && string(cred.Fields["token"].Reveal()) != tt.text {
				t.Errorf("token = %q, want %q", cred.Fields["token"].Reveal(), tt.text)
			}
		})
	}
}

func TestHintForHabitualData(t *testing.T) {
	_, err := newSession(t, newServer(t)).issue(t, keys{"path": "secret/data/ci/npm"})
	if h := hint(err); !strings.Contains(h, "leave data/ out") {
		t.Errorf("hint of %v = %q", err, h)
	}
}

func hint(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// One look-up per mount serves every session, and a mount that changed its
// kind is found out after one miss.
func TestMountsAreRemembered(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	s := newSession(t, srv)
	for range 3 {
		if _, err := s.issue(t, keys{"path": "kv/ci/npm"}); err != nil {
			t.Fatal(err)
		}
	}
	const lookup = "sys/internal/ui/mounts/"
	if n := len(srv.Requests(lookup)); n != 1 {
		t.Errorf("%d look-ups, want 1", n)
	}
	srv.KV("kv", 2)
	srv.Put("kv", "ci/npm", keys{"token": "c4n4ry-v2"})
	if _, err := s.issue(t, keys{"path": "kv/ci/npm"}); !errors.Is(err, providers.ErrNotFound) {
		t.Errorf("Issue after the change = %v, want %v", err, providers.ErrNotFound)
	}
	if cred, err := s.issue(t, keys{"path": "kv/ci/npm"}); err != nil || string(cred.Fields["token"].Reveal()) != "c4n4ry-v2" {
		t.Errorf("Issue after a miss = %v, want the new value", err)
	}
}

// Where Vault doesn't say what is mounted, a path is taken as it stands.
func TestMountsUnknown(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	srv.NoMounts = true
	s := newSession(t, srv)
	cred, err := s.issue(t, keys{"path": "kv/ci/npm"})
	if err != nil || cred.Revocability != providers.Static || !cred.Expires.IsZero() {
		t.Errorf("Issue(kv) = %+v, %v, want a static one", cred, err)
	}
	cred, err = s.issue(t, keys{"path": "database/creds/ro"})
	if err != nil || cred.Revocability != providers.Revocable {
		t.Errorf("Issue(database) = %+v, %v, want a revocable one", cred, err)
	}
	if _, err := s.issue(t, keys{"path": "secret/ci/npm"}); !errors.Is(err, providers.ErrNotFound) {
		t.Errorf("Issue(secret) = %v, want %v", err, providers.ErrNotFound)
	}
}

// Credentials without a lease say themselves when they end.
func TestEndsWithoutALease(t *testing.T) {
	t.Parallel()
	now := time.Now()
	tests := []struct {
		name   string
		answer vaulttest.Answer
		want   providers.Revocability
		in     time.Duration
	}{
		{"ttl", vaulttest.Answer{Data: keys{"a": "b", "ttl": 900}}, providers.Expires, 15 * time.Minute},
		{"expiration", vaulttest.Answer{Data: keys{"a": "b", "expiration": now.Add(time.Hour).Unix()}}, providers.Expires, time.Hour},
		{"expires_at_seconds", vaulttest.Answer{Data: keys{"a": "b", "expires_at_seconds": now.Add(time.Hour).Unix()}}, providers.Expires, time.Hour},
		{"lease_duration", vaulttest.Answer{Data: keys{"a": "b"}, TTL: time.Hour, NoLease: true}, providers.Expires, time.Hour},
		{"nothing", vaulttest.Answer{Data: keys{"a": "b", "ttl": "soon", "expiration": 0}}, providers.Static, 0},
		{"a ttl beyond all bounds", vaulttest.Answer{Data: keys{"a": "b", "ttl": int64(1) << 62}}, providers.Expires, 100 * 365 * 24 * time.Hour},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := newServer(t)
			srv.Mount("aws", "aws", func(string, map[string]any) vaulttest.Answer { return tt.answer })
			cred, err := newSession(t, srv).issue(t, keys{"path": "aws/sts/deploy"})
			if err != nil || cred.Revocability != tt.want || cred.Handle.Len() != 0 {
				t.Fatalf("Issue = %+v, %v, want %v", cred, err, tt.want)
			}
			if tt.in == 0 != cred.Expires.IsZero() || tt.in != 0 && cred.Expires.Sub(now.Add(tt.in)).Abs() > 30*time.Second {
				t.Errorf("Expires = %v, want %v from now", cred.Expires, tt.in)
			}
		})
	}
}

// An answer that can't be used gives nothing, and its lease is revoked.
func TestT14UnusableAnswers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		data    keys
		rewrite func(string) string
	}{
		{"no fields", keys{}, nil},
		{"only null", keys{"a": nil}, nil},
		{"more than a credential may hold", keys{"a": strings.Repeat("x", providers.MaxCredentialBytes)}, nil},
		{"a Vault token", keys{"a": "b"}, func(s string) string {
			return strings.Replace(s, `"auth":null`, `"auth":{"client_token":"c4n4ry"}`, 1)
		}},
		{"a wrapped secret", keys{"a": "b"}, func(s string) string {
			return strings.Replace(s, `"wrap_info":null`, `"wrap_info":{"token":"c4n4ry"}`, 1)
		}},
		{"an end in the past", keys{"a": "b"}, func(s string) string {
			return strings.Replace(s, `"lease_duration":60`, `"lease_duration":-60`, 1)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := newServer(t)
			srv.Mount("x", "x", func(string, map[string]any) vaulttest.Answer {
				return vaulttest.Answer{Data: tt.data, TTL: time.Minute, Renewable: true}
			})
			s := newSession(t, srv)
			if tt.rewrite != nil {
				srv.Inject(vaulttest.On("x/", vaulttest.Rewrite(tt.rewrite)))
			}
			cred, err := s.issue(t, keys{"path": "x/y"})
			if cred != nil || !errors.Is(err, providers.ErrMalformed) || providers.Void(err) {
				t.Errorf("Issue = %v, %v, want %v", cred, err, providers.ErrMalformed)
			}
			if srv.Issued() != 1 || srv.Leases() != 0 {
				t.Errorf("%d issued and %d alive, want 1 and 0", srv.Issued(), srv.Leases())
			}
		})
	}
}

// What isn't Vault's API isn't a credential, however well-formed.
func TestNotVault(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`{"token":"c4n4ry"}`, `{"data":{"a":"b"}}`, `[]`, `"x"`, `{"request_id":"x","data":{"a":"b"}} {}`, `{"request_id":"x","data":[]}`, "\x00"} {
		srv := newServer(t)
		s := newSession(t, srv)
		srv.Inject(vaulttest.On("kv/", vaulttest.Raw(http.StatusOK, body)))
		cred, err := s.issue(t, keys{"path": "kv/ci/npm"})
		if cred != nil || !errors.Is(err, providers.ErrMalformed) || strings.Contains(err.Error(), "c4n4ry") {
			t.Errorf("Issue with the answer %q = %v, %v, want %v", body, cred, err, providers.ErrMalformed)
		}
	}
}

// A mount look-up that answers for somewhere else steers no read.
func TestMountLies(t *testing.T) {
	t.Parallel()
	for _, data := range []string{`{"path":"other/","type":"kv"}`, `{"path":"","type":"kv"}`, `{"path":"k","type":"kv"}`, `{"path":"kv/","type":""}`, `null`} {
		srv := newServer(t)
		s := newSession(t, srv)
		srv.Inject(vaulttest.On("sys/internal", vaulttest.Raw(http.StatusOK, `{"request_id":"x","data":`+data+`}`)))
		if _, err := s.issue(t, keys{"path": "kv/ci/npm"}); !errors.Is(err, providers.ErrMalformed) || !providers.Void(err) {
			t.Errorf("Issue with the look-up %s = %v, want %v", data, err, providers.ErrMalformed)
		}
	}
}

func TestT34Login(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	srv.Roles["runenv-other"] = vaulttest.Role{Subject: "runenv:role:other", Audience: srv.URL}
	srv.Roles["runenv-elsewhere"] = vaulttest.Role{Subject: "runenv:role:elsewhere", Audience: "https://elsewhere"}
	srv.Roles["named"] = vaulttest.Role{Subject: "runenv:role:prod", Audience: "vault"}
	tests := []struct {
		name        string
		keys        keys
		role, token string // the role asked for, and that of the token
		want        error
		hint        string
	}{
		{"its own role", nil, "prod", "prod", nil, ""},
		{"a named role and audience", keys{"role": "named", "audience": "vault"}, "prod", "prod", nil, ""},
		{"another role's token", nil, "other", "prod", providers.ErrDenied, "bound_subject=runenv:role:other"},
		{"a role of another audience", nil, "elsewhere", "elsewhere", providers.ErrDenied, "bound_audiences=" + srv.URL},
		{"a role that isn't there", nil, "none", "none", providers.ErrNotFound, "vault write auth/jwt/role/runenv-none "},
		{"a mount that isn't there", keys{"mount": "ci"}, "prod", "prod", providers.ErrDenied, "enabled at auth/ci"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			k := keys{"address": srv.URL}
			if tt.keys != nil {
				k["auth"] = tt.keys
			}
			req := loginRequest()
			req.Role, req.Tokens = tt.role, vaulttest.Tokens(tt.token)
			l, err := open(t, k).(providers.Loginer).Login(t.Context(), req)
			if !errors.Is(err, tt.want) || (l == nil) != (tt.want != nil) {
				t.Fatalf("Login = %v, %v, want %v", l, err, tt.want)
			}
			if h := hint(err); !strings.Contains(h, tt.hint) {
				t.Errorf("hint = %q, want %q in it", h, tt.hint)
			}
		})
	}
}

// The token of a session lives five minutes, whatever the Vault role says, or
// isn't accepted.
func TestT14LoginTTL(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		role vaulttest.Role
		want time.Duration // 0: refused
		hint string
	}{
		{"five minutes", vaulttest.Role{}, 5 * time.Minute, ""},
		{"less", vaulttest.Role{TTL: time.Minute}, time.Minute, ""},
		{"a second more", vaulttest.Role{TTL: 5*time.Minute + time.Second}, 0, "token_ttl=5m"},
		{"Vault's default", vaulttest.Role{TTL: 32 * 24 * time.Hour}, 0, "on the Vault role runenv-prod"},
		{"periodic", vaulttest.Role{TTL: 5 * time.Minute, Period: 5 * time.Minute}, 5 * time.Minute, ""},
		{"periodic, too long", vaulttest.Role{TTL: time.Hour, Period: time.Hour}, 0, "no longer token_period"},
		{"a batch token", vaulttest.Role{Batch: true}, 0, "token_type=service on the Vault role runenv-prod"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := newServer(t)
			tt.role.Subject, tt.role.Audience = "runenv:role:prod", srv.URL
			srv.Roles["runenv-prod"] = tt.role
			l, err := open(t, keys{"address": srv.URL}).(providers.Loginer).Login(t.Context(), loginRequest())
			if tt.want == 0 {
				if l != nil || !errors.Is(err, providers.ErrMalformed) || !strings.Contains(hint(err), tt.hint) {
					t.Errorf("Login = %v, %v with hint %q, want a refusal with %q", l, err, hint(err), tt.hint)
				}
				if !tt.role.Batch && srv.Tokens() != 0 {
					t.Error("the refused token lives")
				}
				return
			}
			if err != nil || time.Until(l.Expires).Round(time.Minute) != tt.want {
				t.Errorf("Login = %+v, %v, want one for %v", l, err, tt.want)
			}
		})
	}
}

// Where policy allows neither, the lease ends with its login; a login that
// can't end itself is no silent success.
func TestEndsThatAreRefused(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	srv.NoSingleRevoke, srv.NoSelfRevoke = true, true
	s := newSession(t, srv)
	cred, err := s.issue(t, keys{"path": "database/creds/ro"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Revoke(t.Context(), cred.Handle, s.login); !errors.Is(err, providers.ErrWithLogin) {
		t.Errorf("Revoke = %v, want %v", err, providers.ErrWithLogin)
	}
	err = s.Logout(t.Context(), s.login)
	if !errors.Is(err, providers.ErrDenied) || !strings.Contains(hint(err), "auth/token/revoke-self") {
		t.Errorf("Logout = %v with hint %q, want %v", err, hint(err), providers.ErrDenied)
	}
}

// Only Vault's own word ends something: a 403 or 404 of whatever else answers
// at its address, a proxy's say, doesn't.
func TestT14ForeignRefusalsEndNothing(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusForbidden, http.StatusNotFound, http.StatusBadRequest} {
		srv := newServer(t)
		s := newSession(t, srv)
		cred, err := s.issue(t, keys{"path": "database/creds/ro"})
		if err != nil {
			t.Fatal(err)
		}
		srv.Inject(vaulttest.Raw(status, "<html>no</html>"))
		if err := s.Revoke(t.Context(), cred.Handle, s.login); !errors.Is(err, providers.ErrUnavailable) {
			t.Errorf("Revoke with a foreign %d = %v, want %v", status, err, providers.ErrUnavailable)
		}
		if err := s.Logout(t.Context(), s.login); !errors.Is(err, providers.ErrUnavailable) {
			t.Errorf("Logout with a foreign %d = %v, want %v", status, err, providers.ErrUnavailable)
		}
	}
}

func TestMarkerReachesVault(t *testing.T) {
	srv := newServer(t)
	s := newSession(t, srv)
	if _, err := s.issue(t, keys{"path": "database/creds/ro"}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"auth/jwt/login": "m-login", "database/creds/ro": "m-lease"} {
		if got := srv.Requests(path)[0].Header.Get("X-Runenv-Marker"); got != want {
			t.Errorf("%s has the marker %q, want %q", path, got, want)
		}
	}
}

func TestNamespace(t *testing.T) {
	srv := newServer(t)
	p := open(t, keys{"address": srv.URL, "namespace": "/team/ci/"}).(providers.Loginer)
	if _, err := p.Login(context.Background(), loginRequest()); err != nil {
		t.Fatal(err)
	}
	for _, r := range srv.Requests("") {
		if got := r.Header.Get("X-Vault-Namespace"); got != "team/ci" {
			t.Errorf("%s has the namespace %q, want team/ci", r.URL.Path, got)
		}
	}
}
