package gcp_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/gcp"
	"github.com/runenv/action/providers/gcp/gcptest"
	"github.com/runenv/action/providers/providertest"
	"github.com/runenv/action/ref"
	"github.com/runenv/action/secret"
)

type keys = map[string]any

const (
	deploy = "deploy@shop.iam.gserviceaccount.com"
	chain  = "chain@shop.iam.gserviceaccount.com"
	reader = "reader-prod@shop.iam.gserviceaccount.com"
	pay    = "pay@pay.iam.gserviceaccount.com"
	broker = "broker@infra.iam.gserviceaccount.com"

	npm  = "projects/shop/secrets/npm"
	conf = "projects/shop/secrets/conf"
	blob = "projects/shop/secrets/blob"
)

var confJSON = `{"user":"c4n4ry-user","port":5432,"tls":true,"none":null,"opts":{"b":[1,2],"a":"<&>"}}`

// A world is a fake Google that trusts an issuer.
type world struct {
	*gcptest.Server
	issuer *gcptest.Issuer
}

// newWorld has service accounts and secrets for the RunEnv roles prod and pay.
func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{gcptest.New(t), gcptest.NewIssuer(t)}
	w.furnish()
	return w
}

func (w *world) furnish() {
	w.Trust(w.issuer)
	prod := gcptest.Role("prod")
	w.Accounts[deploy] = gcptest.ServiceAccount{Members: []string{prod, gcptest.Account(chain), gcptest.Account(broker)}}
	w.Accounts[chain] = gcptest.ServiceAccount{Members: []string{prod}}
	w.Accounts[reader] = gcptest.ServiceAccount{Members: []string{prod}}
	w.Accounts[pay] = gcptest.ServiceAccount{Members: []string{gcptest.Role("pay")}, Extended: true}
	w.ProjectNumbers["shop"] = "42"
	readers := []string{prod, gcptest.Account(reader)}
	w.Secrets[npm] = gcptest.Secret{Readers: readers, Versions: [][]byte{[]byte("c4n4ry-old"), nil, []byte("c4n4ry-token")}, Aliases: map[string]int{"stable": 1}}
	w.Secrets[conf] = gcptest.Secret{Readers: readers, Versions: [][]byte{[]byte(confJSON)}}
	w.Secrets[blob] = gcptest.Secret{Readers: readers, Versions: [][]byte{{0, 0xff, '\n', 0x80}}}
	w.Secrets["projects/pay/secrets/key"] = gcptest.Secret{Readers: []string{gcptest.Role("pay")}, Versions: [][]byte{[]byte("c4n4ry-pay")}}
}

// open opens a provider on the fake, with keys laid over the usual ones.
func (w *world) open(t testing.TB, k keys) providers.Provider {
	t.Helper()
	all := w.Keys()
	maps.Copy(all, k)
	for name, v := range all {
		if v == nil {
			delete(all, name)
		}
	}
	p, err := gcp.Type().Open(providers.Config{
		Name: "gcp", Decode: providertest.Keys(all),
		CI: func(_ context.Context, audience string) (string, error) {
			return w.issuer.Token("ci", audience, keys{"sub": "repo:acme/shop:ref:refs/heads/main"})
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	gcp.Hasten(p)
	return p
}

// A session is a provider, logged in for a role.
type session struct {
	providers.Provider
	world *world
	role  string
	login secret.Value
}

func (w *world) session(t testing.TB, role string, k keys) *session {
	t.Helper()
	s := &session{Provider: w.open(t, k), world: w, role: role}
	if l, ok := s.Provider.(providers.Loginer); ok {
		login, err := l.Login(t.Context(), w.loginRequest(role))
		if err != nil {
			t.Fatal(err)
		}
		s.login = login.Handle
	}
	return s
}

func (w *world) loginRequest(role string) providers.LoginRequest {
	return providers.LoginRequest{Role: role, Session: "s-1", Marker: "runenv-l-1", Tokens: w.issuer.Tokens(role)}
}

func (s *session) issue(t testing.TB, k keys, ttl time.Duration) (*providers.Credential, error) {
	t.Helper()
	def, err := s.Define(providertest.Keys(k))
	if err != nil {
		t.Fatal(err)
	}
	return s.Issue(t.Context(), providers.Request{
		Definition: def, Vars: providers.Vars{"project.name": "shop", "role.name": s.role, "project.vars.account": "deploy"},
		TTL: ttl, Marker: "runenv-c-1", Login: s.login, Role: s.role, Session: "s-1", Tokens: s.world.issuer.Tokens(s.role),
	})
}

func hint(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// adc writes application default credentials of the kind external_account,
// which get their tokens from the fake.
func (w *world) adc(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	token, err := w.issuer.Token("broker", gcptest.Pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	source, path := filepath.Join(dir, "token"), filepath.Join(dir, "adc.json")
	file := fmt.Sprintf(`{"type":"external_account","audience":%q,"subject_token_type":"urn:ietf:params:oauth:token-type:jwt","token_url":%q,"credential_source":{"file":%q}}`,
		gcptest.Pool, w.URL+"/v1/token", source)
	if err := errors.Join(os.WriteFile(source, []byte(token), 0o600), os.WriteFile(path, []byte(file), 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConformance(t *testing.T) {
	t.Parallel()
	tokenFields := map[string]string{"access_token": "", "expires_at": ""}
	confFields := map[string]string{"value": confJSON, "user": "c4n4ry-user", "port": "5432", "tls": "true", "opts": `{"b":[1,2],"a":"<&>"}`}
	const tokenPath, accessPath, idPath = "/v1/token", ":generateAccessToken", ":generateIdToken"
	tests := []struct {
		name   string
		open   keys
		define keys
		ref    *ref.Ref
		fields map[string]string
		makes  string // what makes a credential; empty: nothing does
		kind   providers.Revocability
	}{
		{"secret", nil, keys{"secret": "projects/{{project.name}}/secrets/conf"}, &ref.Ref{Scheme: "gcp-sm", Path: "shop/conf"}, confFields, "", providers.Static},
		{"secret by a service account", keys{"auth": keys{"service_account": "reader-{{role.name}}@shop.iam.gserviceaccount.com"}},
			keys{"secret": conf, "version": "1"}, &ref.Ref{Scheme: "gcp-sm", Path: "shop/conf", Version: "1"}, confFields, "", providers.Static},
		{"secret in CI", keys{"auth": keys{"method": "ci"}}, keys{"secret": "projects/shop/secrets/ci"}, nil, map[string]string{"value": "c4n4ry-ci"}, "", providers.Static},
		{"access token", nil, keys{"access_token": keys{"service_account": "{{project.vars.account}}@{{project.name}}.iam.gserviceaccount.com"}}, nil, tokenFields, accessPath, providers.Expires},
		{"access token by delegates", nil, keys{"access_token": keys{"service_account": deploy, "delegates": []providers.Template{template(chain)}}}, nil, tokenFields, accessPath, providers.Expires},
		{"federated token", nil, keys{"access_token": keys{}}, nil, tokenFields, tokenPath, providers.Expires},
		{"ID token", nil, keys{"id_token": keys{"service_account": deploy, "audience": "https://{{project.name}}.example"}}, nil, map[string]string{"id_token": "", "expires_at": ""}, idPath, providers.Expires},
		{"default secret", keys{"audience": nil, "auth": keys{"method": "default"}}, keys{"secret": "projects/shop/secrets/broker"}, nil, map[string]string{"value": "c4n4ry-broker"}, "", providers.Static},
		{"default access token", keys{"audience": nil, "auth": keys{"method": "default"}}, keys{"access_token": keys{"service_account": broker}}, nil, tokenFields, accessPath, providers.Expires},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			providertest.Run(t, providertest.Harness{New: func(t *testing.T) *providertest.Backend {
				w := newWorld(t)
				ambient := gcptest.Role("broker")
				w.Accounts[broker] = gcptest.ServiceAccount{Members: []string{ambient}}
				w.Secrets["projects/shop/secrets/broker"] = gcptest.Secret{Readers: []string{ambient}, Versions: [][]byte{[]byte("c4n4ry-broker")}}
				w.Secrets["projects/shop/secrets/ci"] = gcptest.Secret{Readers: []string{gcptest.Principal("repo:acme/shop:ref:refs/heads/main")}, Versions: [][]byte{[]byte("c4n4ry-ci")}}
				p := w.open(t, tt.open)
				more := []providertest.Fault{providertest.HalfReply, providertest.ErrorIn200, providertest.ThrottleOnce}
				if tt.name != "federated token" { // it is asked for under no login
					more = append(more, providertest.LoginExpired)
				}
				b := &providertest.Backend{
					Provider: p, Define: providertest.Keys(tt.define),
					Vars:   providers.Vars{"project.name": "shop", "project.vars.account": "deploy"},
					Fields: maps.Clone(tt.fields), Revocability: tt.kind, LimitsTTL: true, Reference: tt.ref,
					Canaries: []string{"c4n4ry"}, Inject: w.InjectFault, More: more,
					Requests: func() int { return len(w.Requests("")) },
					Alive: func() (int, int) {
						if tt.makes == "" {
							return 0, w.Issued(tokenPath)
						}
						return w.Issued(tt.makes), w.Issued(tokenPath)
					},
					Log: func() string {
						var log strings.Builder
						for _, r := range w.Requests("") {
							log.WriteString(r.Header.Get("X-Goog-Request-Reason") + "\n")
						}
						return log.String()
					},
				}
				if _, ok := p.(*gcp.Ambient); ok {
					gcp.FromFile(p, w.adc(t))
				} else if p.(providers.Audienced).Audience() != "" {
					b.Tokens = w.issuer.Tokens("prod")
				}
				return b
			}})
		})
	}
}

func template(text string) providers.Template {
	t, err := providers.ParseTemplate(text)
	if err != nil {
		panic(err)
	}
	return t
}
