package brokercli

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/providers"
)

// served is a file as serve takes it; %s is for the parts that a test is about.
const served = `url: https://runenv.example.com
issuer_url: https://oidc.example.com
tls: {cert: tls.crt, key: tls.key}
store: sqlite:broker.db
seal: ${env:SEAL}
issuers:
  github: {profile: github, url: https://token.actions.githubusercontent.com}
projects:
  shop-api: {github: acme/shop-api@1001, vars: {team: shop}}
  pay-api: {github: acme/pay-api@1002}
%s
`

const role = `
roles:
  prod:
    projects: [shop-api, pay-api]
    match: {github: {ref: refs/heads/main, environment: production}}
    leases: [db]
`

func testEnv(environ ...string) Env {
	return Env{
		Stdout: new(bytes.Buffer), Stderr: new(bytes.Buffer), Environ: environ, Now: time.Now,
		LookupEnv: func(name string) (string, bool) {
			if name == "SEAL" {
				return base64.StdEncoding.EncodeToString(make([]byte, 32)), true
			}
			for _, kv := range environ {
				if k, v, ok := strings.Cut(kv, "="); ok && k == name {
					return v, true
				}
			}
			return "", false
		},
	}
}

func parse(t *testing.T, text string, dev bool) *config.File {
	t.Helper()
	file, err := config.Parse("broker.yaml", []byte(text), config.Options{Getenv: testEnv().LookupEnv, Dev: dev})
	if err != nil {
		t.Fatalf("Parse = %v", err)
	}
	return file
}

// told is what an error prints.
func told(err error) string {
	var b bytes.Buffer
	report(&b, err)
	return b.String()
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	const vault = "providers:\n  vault: {type: vault, address: https://vault.example.com}\n"
	const gcp = "providers:\n  gcp: {type: gcp, audience: //iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ci/providers/runenv}\n"
	testOpenRefuses(t, []refusal{
		{
			"a type that isn't there",
			"providers:\n  k: {type: keychain}\nleases:\n  db: {provider: k, env: {A: a}}" + role,
			"runenv-broker: error: broker.yaml:12:3: providers.k.type: no such type of provider\n",
		},
		{
			"a provider's own keys, where they stand",
			"providers:\n  vault: {type: vault, address: https://vault.example.com, addresss: https://c4n4ry.example.com}\nleases:\n  db: {provider: vault, path: a/b, env: {A: a}}" + role,
			"runenv-broker: error: broker.yaml:12:60: providers.vault: unknown key\nrunenv-broker: hint: did you mean \"address\"?\n",
		},
		{
			"a definition's own keys, where they stand",
			vault + "leases:\n  db: {provider: vault, path: [c4n4ry], env: {A: a}}" + role,
			"runenv-broker: error: broker.yaml:14:31: leases.db.path: not a string\n",
		},
		{
			"a definition that its provider refuses",
			vault + "leases:\n  db: {provider: vault, env: {A: a}}" + role,
			"runenv-broker: error: broker.yaml:14:3: leases.db: ",
		},
		{
			"no variables, and no defaults",
			vault + "leases:\n  db: {provider: vault, path: a/b}" + role,
			"runenv-broker: error: broker.yaml:14:3: leases.db.env: missing, and this lease has no variables of its own\nrunenv-broker: hint: write env: {VARIABLE: field} or file: {VARIABLE: field}\n",
		},
		{
			"a ttl that the back end can't give",
			gcp + "leases:\n  db: {provider: gcp, ttl: 2h, access_token: {service_account: \"ci@shop-1.iam.gserviceaccount.com\"}}" + role,
			"runenv-broker: error: broker.yaml:14:3: leases.db.ttl: such a lease lives 1s at least and 1h0m0s at most\n",
		},
		{
			"two leases that set one variable by default",
			gcp + "leases:\n  db: {provider: gcp, access_token: {service_account: \"a-ci@shop-1.iam.gserviceaccount.com\"}}\n  two: {provider: gcp, access_token: {service_account: \"b-ci@shop-1.iam.gserviceaccount.com\"}, env: {GOOGLE_OAUTH_ACCESS_TOKEN: access_token}}" + strings.Replace(role, "[db]", "[db, two]", 1),
			"runenv-broker: error: broker.yaml:15:3: leases.two: sets the variable GOOGLE_OAUTH_ACCESS_TOKEN, as the lease \"db\" of the same role \"prod\" does\nrunenv-broker: hint: ",
		},
		{
			"two leases that want one file",
			vault + "leases:\n  db: {provider: vault, path: a/b, env: {A_KEY_FILE: a}}\n  two: {provider: vault, path: a/c, file: {B: {field: a, name: A_KEY}}}" + strings.Replace(role, "[db]", "[db, two]", 1),
			"runenv-broker: error: broker.yaml:15:3: leases.two: sets the file A_KEY, as the lease \"db\" of the same role \"prod\" does\nrunenv-broker: hint: ",
		},
		{
			"two leases with one AWS profile",
			vault + "leases:\n  db: {provider: vault, path: a/b, file: {AWS_SHARED_CREDENTIALS_FILE: {as: aws-profile, profile: p}}}\n  two: {provider: vault, path: a/c, file: {AWS_SHARED_CREDENTIALS_FILE: {as: aws-profile, profile: p}}}" + strings.Replace(role, "[db]", "[db, two]", 1),
			"runenv-broker: error: broker.yaml:15:3: leases.two: sets the profile p, as the lease \"db\" of the same role \"prod\" does\nrunenv-broker: hint: ",
		},
		{
			"a template of a reference that a project can't fill",
			vault + "leases:\n  db: {provider: vault, path: a/b, env: {A: a}}" + role + "    references: [\"vault://secret/ci/{{project.vars.team}}/**\"]\n",
			"runenv-broker: error: broker.yaml:20:18: roles.prod.references: for role \"prod\" and project \"pay-api\": ",
		},
		{
			"a template of a reference that reads what a caller chooses",
			vault + "leases:\n  db: {provider: vault, path: a/b, env: {A: a}}" + role + "    references: [\"vault://secret/ci/{{ref}}/**\"]\n",
			"runenv-broker: error: broker.yaml:20:18: roles.prod.references: a template reads an unknown name",
		},
		{
			"a reference without a provider",
			vault + "leases:\n  db: {provider: vault, path: a/b, env: {A: a}}" + role + "    references: [\"gcp-sm://shop-1/*\"]\n",
			"runenv-broker: error: broker.yaml:20:18: roles.prod.references: no provider has references gcp-sm://\n",
		},
		{
			"a reference with another's provider",
			vault + "leases:\n  db: {provider: vault, path: a/b, env: {A: a}}" + role + "    references: [\"vault://secret/*?provider=other\"]\n",
			"runenv-broker: error: broker.yaml:20:18: roles.prod.references: no provider named \"other\" has references vault://\n",
		},
		{
			"a template that a project can't fill",
			vault + "leases:\n  db: {provider: vault, path: \"database/creds/{{project.vars.team}}\", env: {A: a}}" + role,
			"runenv-broker: error: broker.yaml:14:3: leases.db: for role \"prod\" and project \"pay-api\": ",
		},
	})
}

func TestLeasesMayShareAFileOfAWSProfiles(t *testing.T) {
	t.Parallel()
	const leases = "leases:\n  db: {provider: vault, path: a/b, file: {AWS_SHARED_CREDENTIALS_FILE: {as: aws-profile, profile: one}}}\n  two: {provider: vault, path: a/c, env: {AWS_SHARED_CREDENTIALS_FILE: {as: aws-profile, profile: two}}}"
	parts := "providers:\n  vault: {type: vault, address: https://vault.example.com}\n" + leases + strings.Replace(role, "[db]", "[db, two]", 1)
	if _, err := open(parse(t, fmt.Sprintf(served, parts), false), mode{}, time.Now, slog.New(slog.DiscardHandler)); err != nil {
		t.Errorf("two profiles of one file: %v", err)
	}
}

// A token that one back end saw could else be used at another, or here.
func TestT34ProvidersShareNoAudience(t *testing.T) {
	t.Parallel()
	testOpenRefuses(t, []refusal{
		{
			"two providers with one",
			"providers:\n  a: {type: vault, address: https://vault.example.com}\n  b: {type: vault, address: https://other.example.com, auth: {audience: https://vault.example.com}}\nleases:\n  db: {provider: a, path: a/b, env: {A: a}}" + role,
			"runenv-broker: error: broker.yaml:13:3: providers.b.auth.audience: has the audience of provider \"a\", ",
		},
		{
			"the broker's own url",
			"providers:\n  a: {type: vault, address: https://vault.example.com, auth: {audience: https://runenv.example.com}}\nleases:\n  db: {provider: a, path: a/b, env: {A: a}}" + role,
			"runenv-broker: error: broker.yaml:12:3: providers.a.auth.audience: is the broker's own URL, ",
		},
		{
			"the broker's own issuer",
			"providers:\n  a: {type: vault, address: https://oidc.example.com}\nleases:\n  db: {provider: a, path: a/b, env: {A: a}}" + role,
			"runenv-broker: error: broker.yaml:12:3: providers.a.auth.audience: is the broker's own URL, ",
		},
	})
}

// AWS knows one audience for all of its accounts.
func TestAWSEntriesShareAnAudience(t *testing.T) {
	t.Parallel()
	const entries = "providers:\n  a: {type: aws, region: eu-west-1}\n  b: {type: aws, region: us-east-1}\n"
	const lease = "leases:\n  db: {provider: a, assume_role: \"arn:aws:iam::111122223333:role/deploy\"}"
	if _, err := open(parse(t, fmt.Sprintf(served, entries+lease+role), false), mode{}, time.Now, slog.New(slog.DiscardHandler)); err != nil {
		t.Errorf("open = %v", err)
	}
	testOpenRefuses(t, []refusal{{
		"another back end with AWS's",
		entries + "  v: {type: vault, address: https://vault.example.com, auth: {audience: sts.amazonaws.com}}\n" + lease + role,
		"runenv-broker: error: broker.yaml:14:3: providers.v.auth.audience: has the audience of provider \"b\", ",
	}})
}

type refusal struct {
	name, parts string
	want        string // of what is printed, its beginning
}

func testOpenRefuses(t *testing.T, tests []refusal) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := open(parse(t, fmt.Sprintf(served, tt.parts), false), mode{}, time.Now, slog.New(slog.DiscardHandler))
			if _, ok := errors.AsType[config.Problems](err); !ok {
				t.Fatalf("open = %v, want problems", err)
			}
			if got := told(err); !strings.HasPrefix(got, tt.want) || strings.Count(got, "error:") != 1 || strings.Contains(got, "c4n4ry") {
				t.Errorf("open tells:\n%s\nwant one error, and no value:\n%s", got, tt.want)
			}
		})
	}
}

func TestOpenTellsAllAtOnceInOrder(t *testing.T) {
	t.Parallel()
	file := parse(t, fmt.Sprintf(served, `providers:
  v: {type: vault, address: https://vault.example.com}
  k: {type: keychain}
leases:
  db: {provider: v, env: {A: a}}
  npm: {provider: v, path: "x/{{project.vars.team}}", env: {B: b}}
  z: {provider: k, env: {C: c}}
roles:
  prod:
    projects: [shop-api, pay-api]
    match: {github: {ref: refs/heads/main}}
    leases: [db, npm, z]`), false)
	_, err := open(file, mode{}, time.Now, slog.New(slog.DiscardHandler))
	problems, _ := errors.AsType[config.Problems](err)
	var lines []int
	for _, p := range problems {
		lines = append(lines, p.Pos.Line)
	}
	if diff := cmp.Diff([]int{13, 15, 16}, lines); diff != "" {
		t.Errorf("problems at lines (-want +got):\n%s%v", diff, err)
	}
}

// One template fails for each of many projects: the report stays readable.
func TestProblemsAreBounded(t *testing.T) {
	t.Parallel()
	var problems config.Problems
	for i := range 5000 {
		problems = append(problems, config.Problem{Pos: config.Pos{File: "a", Line: i + 1}, Message: "m"})
	}
	got := ordered(problems)
	if len(got) != maxProblems+1 || got[maxProblems].Message != "4900 more problems" {
		t.Errorf("ordered gives %d problems that end in %q", len(got), got[len(got)-1].Message)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	file := parse(t, fmt.Sprintf(served, `providers:
  v: {type: vault, address: https://vault.example.com}
leases:
  db:
    provider: v
    path: "database/creds/{{project.name}}"
    env: {USER_NAME: username, PASS: {field: password, mask: false}, HOST: {field: host, default: localhost}, PORT: {field: port, optional: true}}
    ttl: 15m
    max_ttl: 1h`+role), false)
	got, err := open(file, mode{}, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	def := got.definitions["db"]
	if def.ProviderName != "v" || def.Provider != got.providers["v"] || def.TTL != 15*time.Minute || def.MaxTTL != time.Hour || def.Provides == nil {
		t.Errorf("definition %+v", def)
	}
	var env []string
	for _, v := range def.Env {
		def := "-"
		if v.Default != nil {
			def = *v.Default
		}
		env = append(env, fmt.Sprint(v.Name, " ", v.Field, " ", v.Mask, " ", v.Optional, " ", def))
	}
	want := []string{"USER_NAME username true false -", "PASS password false false -", "HOST host true false localhost", "PORT port true true -"}
	if diff := cmp.Diff(want, env); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
}

func TestVerifierRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name, key, path, want string
	}{
		{"no CA file", "ca_file", filepath.Join(dir, "none"), "issuers.github.ca_file: open "},
		{"no certificate in it", "ca_file", write("ca", "c4n4ry"), "issuers.github.ca_file: "},
		{"no key set", "jwks_file", filepath.Join(dir, "none"), "issuers.github.jwks_file: open "},
		{"one that isn't JSON", "jwks_file", write("jwks", "c4n4ry"), "issuers: issuer \"github\": "},
		{"one that is too large", "jwks_file", write("large", strings.Repeat("c4n4ry ", 1<<20)), "issuers.github.jwks_file: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			file := parse(t, strings.Replace(fmt.Sprintf(served, ""), "githubusercontent.com}", "githubusercontent.com, "+tt.key+": "+tt.path+"}", 1), false)
			_, err := verifierOf(file, mode{}, time.Now, slog.New(slog.DiscardHandler))
			got := told(err)
			if !strings.HasPrefix(got, "runenv-broker: error: broker.yaml:7:3: "+tt.want) || strings.Contains(got, "c4n4ry") {
				t.Errorf("verifierOf tells:\n%swant %s, and no value", got, tt.want)
			}
		})
	}
	t.Run("none enabled", func(t *testing.T) {
		t.Parallel()
		file := parse(t, strings.Replace(fmt.Sprintf(served, ""), "githubusercontent.com}", "githubusercontent.com, enabled: false}", 1), false)
		_, err := verifierOf(file, mode{}, time.Now, slog.New(slog.DiscardHandler))
		if got := told(err); !strings.Contains(got, "error: no issuers: nobody could be identified\n") || !strings.Contains(got, "hint: ") {
			t.Errorf("verifierOf tells:\n%s", got)
		}
	})
}

const local = `url: http://127.0.0.1:8098
store: "memory:"
issuers:
  github: {profile: github, url: "http://127.0.0.1:8099"}
providers:
  local: {type: static}
projects:
  shop-api: {github: acme/shop-api@1001}
leases:
  demo: {provider: local, values: {token: c4n4ry-value}, env: {TOKEN: token}}
roles:
  demo:
    projects: [shop-api]
    match: {github: {ref: refs/heads/main}}
    leases: [demo]
`

func newWorld(t *testing.T) *world {
	t.Helper()
	w, err := assemble(t.Context(), testEnv(), parse(t, local, true), mode{dev: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

// inForce is what a reload could change.
type inForce struct {
	file     *config.File
	verifier any
	provider providers.Provider
}

func (w *world) inForce() inForce {
	p, _ := w.registry.find("local")
	return inForce{w.file, w.verifier, p}
}

func TestReloadRefuses(t *testing.T) {
	t.Parallel()
	key := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32))
	tests := []struct {
		name, old, new, want string
	}{
		{"url", "url: http://127.0.0.1:8098", "url: http://127.0.0.1:8097", "url can't be changed while the broker runs"},
		{"issuer_url", "store:", "issuer_url: http://127.0.0.1:8096\nstore:", "issuer_url can't be changed while the broker runs"},
		{"listen", "store:", "listen: 127.0.0.1:8095\nstore:", "listen can't be changed while the broker runs"},
		{"store", `store: "memory:"`, "store: sqlite:broker.db\nseal: " + key, "store can't be changed while the broker runs"},
		{"seal", "store:", "seal: " + key + "\nstore:", "seal can't be changed while the broker runs"},
		{"a provider's type", "type: static", "type: keychain", "broker.yaml:6:3: providers.local.type: no such type of provider"},
		{"an issuer's file", "127.0.0.1:8099\"", "127.0.0.1:8099\", jwks_file: none.json", "broker.yaml:4:3: issuers.github.jwks_file: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			before := w.inForce()
			text := strings.Replace(local, tt.old, tt.new, 1)
			err := w.reload(t.Context(), parse(t, text, true))
			if err == nil || !strings.HasPrefix(told(err), "runenv-broker: error: "+tt.want) {
				t.Fatalf("reload = %v, want %q", err, tt.want)
			}
			if strings.Contains(tt.want, "can't be changed") && hintOf(err) == "" {
				t.Errorf("%v has no hint", err)
			}
			if strings.Contains(told(err), key) {
				t.Errorf("the error shows the key: %v", err)
			}
			if w.inForce() != before {
				t.Error("a refused reload changed what is in force")
			}
		})
	}
}

// What can't be recorded isn't put in force, and neither are the providers
// and the verifier that would have come with it.
func TestReloadThatCantBeRecordedChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := w.inForce()
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("127.0.0.1:8099", "127.0.0.1:8094", "  local: {type: static}", "  other: {type: static}", "provider: local", "provider: other").Replace(local)
	if err := w.reload(t.Context(), parse(t, text, true)); err == nil {
		t.Fatal("reload with a store that takes nothing is accepted")
	}
	if w.inForce() != before {
		t.Error("the failed reload changed what is in force")
	}
	if _, ok := w.registry.find("other"); ok {
		t.Error("the failed reload left its provider behind")
	}
}

func TestReload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := w.inForce()

	// The same issuers elsewhere in the file: their keys stay at hand. A
	// provider that goes can still end what it issued.
	text := "# a line\n" + strings.NewReplacer("  local: {type: static}", "  other: {type: static}", "provider: local", "provider: other").Replace(local)
	file := parse(t, text, true)
	if err := w.reload(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	after := w.inForce()
	if after.file != file {
		t.Error("the new file isn't in force")
	}
	if after.verifier != before.verifier {
		t.Error("the verifier changed though the issuers are the same")
	}
	if after.provider != before.provider {
		t.Error("a provider that left the file is forgotten")
	}
	if _, ok := w.registry.find("other"); !ok {
		t.Error("the new provider isn't found")
	}

	// Another issuer: another verifier.
	if err := w.reload(t.Context(), parse(t, strings.Replace(text, "127.0.0.1:8099", "127.0.0.1:8094", 1), true)); err != nil {
		t.Fatal(err)
	}
	if w.inForce().verifier == before.verifier {
		t.Error("the verifier stays though an issuer changed")
	}
}

func TestSameIssuers(t *testing.T) {
	t.Parallel()
	one := config.Issuer{Name: "github", Profile: "github", URL: "https://a.example.com", Enabled: true, Pos: config.Pos{Line: 1}}
	change := func(f func(*config.Issuer)) []config.Issuer {
		i := one
		f(&i)
		return []config.Issuer{i}
	}
	tests := []struct {
		name string
		b    []config.Issuer
		want bool
	}{
		{"the same", change(func(*config.Issuer) {}), true},
		{"at another place", change(func(i *config.Issuer) { i.Pos.Line = 7 }), true},
		{"none", nil, false},
		{"disabled", change(func(i *config.Issuer) { i.Enabled = false }), false},
		{"another audience", change(func(i *config.Issuer) { i.Audience = "x" }), false},
		{"another reuse", change(func(i *config.Issuer) { i.Reuse = "never" }), false},
		{"two", []config.Issuer{one, one}, false},
	}
	for _, tt := range tests {
		if got := sameIssuers([]config.Issuer{one}, tt.b); got != tt.want {
			t.Errorf("%s: sameIssuers = %t, want %t", tt.name, got, tt.want)
		}
	}
	// What a file holds may have changed under its name.
	withFile := change(func(i *config.Issuer) { i.JWKSFile = "jwks.json" })
	if sameIssuers(withFile, withFile) {
		t.Error("issuers with a file are taken for the same")
	}
}

func TestAssembleSaysWhyTheStoreDoesntOpen(t *testing.T) {
	t.Parallel()
	file := parse(t, fmt.Sprintf(served, ""), false)
	file.Store = "sqlite:" + filepath.Join(t.TempDir(), "nowhere", "broker.db")
	w, err := assemble(t.Context(), testEnv(), file, mode{}, slog.New(slog.DiscardHandler))
	if w != nil || err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("assemble = %v, %v, want an error that names the store's folder", w, err)
	}
}
