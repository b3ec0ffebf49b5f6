package gcp_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/gcp"
	"github.com/runenv/action/providers/gcp/gcptest"
	"github.com/runenv/action/providers/providertest"
	"github.com/runenv/action/ref"
)

// offline opens a provider that is never used.
func offline(t *testing.T, k keys) (providers.Provider, error) {
	t.Helper()
	return gcp.Type().Open(providers.Config{Name: "gcp", Decode: providertest.Keys(k)})
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	with := func(k keys) keys {
		if k["audience"] == nil {
			k["audience"] = gcptest.Pool
		}
		return k
	}
	tests := []struct {
		name string
		keys keys
		want string
	}{
		{"no audience", keys{}, "`audience` is missing"},
		{"an audience with https", keys{"audience": "https:" + gcptest.Pool}, "`audience`"},
		{"the audience as Google shows it", keys{"audience": "https://iam.googleapis.com/projects/1"}, "leave that out"},
		{"a project's id in the audience", keys{"audience": strings.Replace(gcptest.Pool, "/projects/1/", "/projects/shop/", 1)}, "project's number"},
		{"a pool without a provider", keys{"audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ci"}, "`audience` isn't"},
		{"a workforce pool", keys{"audience": "//iam.googleapis.com/locations/global/workforcePools/p/providers/x"}, "`audience` isn't"},
		{"an unknown key", with(keys{"region": "x"}), "unknown key region"},
		{"an unknown method", with(keys{"auth": keys{"method": "c4n4ry"}}), "unknown `method`"},
		{"ci without a CI", with(keys{"auth": keys{"method": "ci"}}), "runenv-broker run"},
		{"an audience for default", with(keys{"auth": keys{"method": "default"}}), "`audience` belongs"},
		{"no service account", with(keys{"auth": keys{"service_account": "c4n4ry"}}), "`service_account` isn't"},
		{"a service account of a project", with(keys{"auth": keys{"service_account": "a@{{project.name}}.iam.gserviceaccount.com"}}), "role.name alone"},
		{"a service account of a role, for default", keys{"auth": keys{"method": "default", "service_account": "{{role.name}}@p.iam.gserviceaccount.com"}}, "role.name alone"},
		{"a user", with(keys{"auth": keys{"service_account": "somebody@gmail.com"}}), "`service_account` isn't"},
		{"no project", with(keys{"project": "projects/shop"}), "`project`"},
		{"no domain", with(keys{"universe_domain": "https://example.com"}), "`universe_domain`"},
		{"http", with(keys{"endpoints": keys{"sts": "http://sts.example.com"}}), "`sts` is plain http"},
		{"http to a name that means loopback", with(keys{"endpoints": keys{"secretmanager": "http://localhost:1"}}), "`secretmanager` is plain http"},
		{"a path", with(keys{"endpoints": keys{"iamcredentials": "https://iam.example.com/v1"}}), "`iamcredentials` isn't an origin"},
		{"a user in an endpoint", with(keys{"endpoints": keys{"sts": "https://c4n4ry@sts.example.com"}}), "isn't an origin"},
		{"another scheme", with(keys{"endpoints": keys{"sts": "unix:///run/sts"}}), "`sts`"},
		{"a ca_file that isn't there", with(keys{"ca_file": "testdata/none.pem"}), "`ca_file`"},
		{"a ca_file without a certificate", with(keys{"ca_file": "gcp_test.go"}), "no certificate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := offline(t, tt.keys)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "c4n4ry") {
				t.Errorf("Open = %v, want one with %q and no value", err, tt.want)
			}
		})
	}
}

func TestOpenAccepts(t *testing.T) {
	t.Parallel()
	for _, k := range []keys{
		{"audience": gcptest.Pool},
		{"audience": gcptest.Pool, "auth": keys{"method": "oidc", "service_account": "runenv-{{role.name}}@infra.iam.gserviceaccount.com"}, "project": "example.com:shop"},
		{"audience": strings.Replace(gcptest.Pool, defaultDomain, "apis-s3ns.fr", 1), "universe_domain": "apis-s3ns.fr"},
		{"audience": gcptest.Pool, "endpoints": keys{"sts": "https://sts.example.com:8443/", "secretmanager": "http://[::1]:80"}},
		{"auth": keys{"method": "default", "service_account": reader}},
	} {
		if _, err := offline(t, k); err != nil {
			t.Errorf("Open(%v) = %v, want nil", k, err)
		}
	}
}

const defaultDomain = "googleapis.com"

func TestAudience(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for method, want := range map[string]string{"oidc": gcptest.Pool, "ci": ""} {
		if got := w.open(t, keys{"auth": keys{"method": method}}).(providers.Audienced).Audience(); got != want {
			t.Errorf("Audience() by %s = %q, want %q", method, got, want)
		}
	}
	if _, ok := w.open(t, keys{"audience": nil, "auth": keys{"method": "default"}}).(providers.Loginer); ok {
		t.Error("with application default credentials there are no logins")
	}
}

func TestDefineRefuses(t *testing.T) {
	t.Parallel()
	p, err := offline(t, keys{"audience": gcptest.Pool})
	if err != nil {
		t.Fatal(err)
	}
	scopes := slices.Repeat([]string{"https://www.googleapis.com/auth/cloud-platform"}, 33)
	tests := []struct {
		name string
		keys keys
		want string
	}{
		{"nothing", keys{}, "has one of `access_token`, `id_token` and `secret`, this one has 0"},
		{"two kinds", keys{"secret": npm, "access_token": keys{}}, "has 2"},
		{"three kinds", keys{"secret": npm, "access_token": keys{}, "id_token": keys{}}, "has 3"},
		{"an unknown key", keys{"secret": npm, "field": "x"}, "unknown key field"},
		{"an unknown key below", keys{"access_token": keys{"lifetime": "1h"}}, "unknown key access_token.lifetime"},
		{"a version of a token", keys{"access_token": keys{}, "version": 3}, "`version` belongs to `secret`"},
		{"a name alone", keys{"secret": "npm"}, "no `project`"},
		{"a version in the name", keys{"secret": npm + "/versions/3"}, "write that as `version`"},
		{"a regional secret", keys{"secret": "projects/shop/locations/europe-west1/secrets/npm"}, "region"},
		{"a climb", keys{"secret": "projects/shop/secrets/../x"}, "isn't a secret's name"},
		{"an escape", keys{"secret": "projects/shop/secrets/a%2fb"}, "isn't a secret's name"},
		{"an unknown variable", keys{"secret": "projects/shop/secrets/{{ref}}"}, "unknown name"},
		{"version 0", keys{"secret": npm, "version": 0}, "`version`"},
		{"a negative version", keys{"secret": npm, "version": -1}, "`version`"},
		{"a version that is a path", keys{"secret": npm, "version": "1/../2"}, "`version`"},
		{"a version of another kind", keys{"secret": npm, "version": true}, "`version`"},
		{"no service account", keys{"access_token": keys{"service_account": "deploy"}}, "`service_account` isn't"},
		{"a service account with a slash", keys{"access_token": keys{"service_account": "a/b@p.iam.gserviceaccount.com"}}, "`service_account` isn't"},
		{"a scope by its short name", keys{"access_token": keys{"service_account": deploy, "scopes": []string{"cloud-platform"}}}, "a scope in full"},
		{"too many scopes", keys{"access_token": keys{"scopes": scopes}}, "at most 32"},
		{"a delegate that isn't one", keys{"access_token": keys{"service_account": deploy, "delegates": []providers.Template{template("x")}}}, "`delegates` holds"},
		{"too many delegates", keys{"access_token": keys{"service_account": deploy, "delegates": slices.Repeat([]providers.Template{template(chain)}, 9)}}, "at most 8"},
		{"delegates to nobody", keys{"access_token": keys{"delegates": []providers.Template{template(chain)}}}, "belong to `service_account`"},
		{"a long life of nobody", keys{"access_token": keys{"extended_lifetime": true}}, "belong to `service_account`"},
		{"an ID token of nobody", keys{"id_token": keys{"audience": "x"}}, "`id_token` needs `service_account`"},
		{"an ID token for nobody", keys{"id_token": keys{"service_account": deploy}}, "`id_token` needs `audience`"},
		{"an audience with a blank", keys{"id_token": keys{"service_account": deploy, "audience": "a b"}}, "`audience` isn't"},
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

func TestDefault(t *testing.T) {
	t.Parallel()
	p, err := offline(t, keys{"auth": keys{"method": "default"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Define(providertest.Keys(keys{"access_token": keys{}})); err == nil || !strings.Contains(err.Error(), "the broker's own") {
		t.Errorf("Define of the broker's own token = %v, want it refused", err)
	}
}

// What holds of a kind of lease before it is issued.
func TestDefinitions(t *testing.T) {
	t.Parallel()
	p, err := offline(t, keys{"audience": gcptest.Pool})
	if err != nil {
		t.Fatal(err)
	}
	type says struct {
		Revocability      providers.Revocability
		Shortest, Longest time.Duration
		Loginless         bool
		Env               []string
	}
	env := []string{"CLOUDSDK_AUTH_ACCESS_TOKEN=access_token", "GOOGLE_OAUTH_ACCESS_TOKEN=access_token"}
	for name, tt := range map[string]struct {
		keys keys
		want says
	}{
		"secret":               {keys{"secret": npm}, says{Revocability: providers.Static}},
		"access token":         {keys{"access_token": keys{"service_account": deploy}}, says{providers.Expires, time.Second, time.Hour, false, env}},
		"long access token":    {keys{"access_token": keys{"service_account": deploy, "extended_lifetime": true}}, says{providers.Expires, time.Second, 12 * time.Hour, false, env}},
		"federated token":      {keys{"access_token": keys{}}, says{providers.Expires, time.Hour, time.Hour, true, env}},
		"ID token, whole hour": {keys{"id_token": keys{"service_account": deploy, "audience": "x"}}, says{providers.Expires, time.Hour, time.Hour, false, nil}},
	} {
		def, err := p.Define(providertest.Keys(tt.keys))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := says{Revocability: def.Revocability(), Loginless: def.(providers.Loginless).Loginless()}
		got.Shortest, got.Longest = def.(providers.Bounder).Bounds()
		for _, v := range def.(providers.Defaulter).DefaultEnv() {
			if !v.Mask {
				t.Errorf("%s: %s isn't hidden", name, v.Name)
			}
			got.Env = append(got.Env, v.Name+"="+v.Field)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestTemplatesAreAll(t *testing.T) {
	t.Parallel()
	p, err := offline(t, keys{"audience": gcptest.Pool})
	if err != nil {
		t.Fatal(err)
	}
	def, err := p.Define(providertest.Keys(keys{"id_token": keys{
		"service_account": "{{role.name}}@p.iam.gserviceaccount.com", "audience": "https://{{environment}}.example",
		"delegates": []providers.Template{template("{{project.name}}@p.iam.gserviceaccount.com")},
	}}))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tmpl := range def.Templates() {
		names = append(names, tmpl.Names()...)
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{"environment", "project.name", "role.name"}, names); diff != "" {
		t.Errorf("Templates() read (-want +got):\n%s", diff)
	}
}

// What a variable holds can't lead to another account or secret.
func TestT36TemplatesStayInPlace(t *testing.T) {
	t.Parallel()
	s := newWorld(t).session(t, "prod", nil)
	for _, k := range []keys{
		{"access_token": keys{"service_account": "{{project.name}}@shop.iam.gserviceaccount.com"}},
		{"secret": "projects/{{project.name}}/secrets/npm"},
		{"secret": "projects/shop/secrets/{{project.name}}"},
	} {
		def, err := s.Define(providertest.Keys(k))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"deploy@evil", "a.b@c", "a=b", "A+b", "..", "a/b", "evil@x.iam.gserviceaccount.com"} {
			before := len(s.world.Requests(""))
			_, err := s.Issue(t.Context(), providers.Request{Definition: def, Vars: providers.Vars{"project.name": name}, TTL: time.Minute, Login: s.login})
			if !errors.Is(err, providers.ErrInvalid) || len(s.world.Requests("")) != before {
				t.Errorf("Issue(%v) with %q = %v, want it refused without a request", k, name, err)
			}
		}
	}
}

func TestReferences(t *testing.T) {
	t.Parallel()
	p, err := offline(t, keys{"audience": gcptest.Pool, "project": "shop"})
	if err != nil {
		t.Fatal(err)
	}
	r := p.(providers.Referencer)
	for _, good := range []ref.Ref{
		{Scheme: "gcp-sm", Path: "shop/npm"}, {Scheme: "gcp-sm", Path: "shop/npm", Version: "3"},
		{Scheme: "gcp-sm", Path: "example.com:shop/npm", Version: "stable"}, {Scheme: "gcp-sm", Path: "42/npm", Field: "/a/b"},
	} {
		if _, err := r.Reference(good); err != nil {
			t.Errorf("Reference(%+v) = %v, want nil", good, err)
		}
	}
	for _, bad := range []ref.Ref{
		{Scheme: "aws-sm", Path: "shop/npm"}, {Scheme: "gcp-sm", Path: "npm"}, {Scheme: "gcp-sm", Path: "a/b/c"}, {Scheme: "gcp-sm"},
		{Scheme: "gcp-sm", Path: "shop/npm", Version: "0"}, {Scheme: "gcp-sm", Path: "shop/npm", Version: "1/2"}, {Scheme: "gcp-sm", Path: "shop/{{project.name}}"},
	} {
		if _, err := r.Reference(bad); err == nil {
			t.Errorf("Reference(%+v) = nil, want an error", bad)
		}
	}
}

func TestCAFile(t *testing.T) {
	t.Parallel()
	w := &world{gcptest.NewTLS(t), gcptest.NewIssuer(t)}
	w.furnish()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, w.CA(), 0o600); err != nil {
		t.Fatal(err)
	}
	if cred, err := w.session(t, "prod", keys{"ca_file": path}).issue(t, keys{"secret": npm}, time.Hour); err != nil || string(cred.Fields["value"].Reveal()) != "c4n4ry-token" {
		t.Errorf("Issue over TLS = %v, want the secret", err)
	}
	_, err := w.open(t, nil).(providers.Loginer).Login(t.Context(), w.loginRequest("prod"))
	if !providers.Void(err) || !errors.Is(err, providers.ErrUnavailable) || !strings.Contains(hint(err), "`ca_file`") {
		t.Errorf("Login without ca_file = %v (%s), want it to name ca_file", err, hint(err))
	}
}
