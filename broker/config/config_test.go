package config_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/broker/policy"
	"github.com/runenv/action/broker/shape"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

func TestExample(t *testing.T) {
	t.Parallel()
	file, err := config.Load("testdata/example.yaml", options())
	if err != nil {
		t.Fatal(err)
	}
	results := file.Compiled.RunTests()
	if len(results) != 6 {
		t.Errorf("%d tests ran, want 6", len(results))
	}
	for _, r := range results {
		if !r.Passed {
			t.Errorf("the file's test at %v: got %s (%s)", r.Pos, r.Got.Reason, r.Got.Detail)
		}
	}
	if got := string(file.Seal.Reveal()); got != "0123456789abcdef0123456789abcdef" {
		t.Errorf("Seal holds %d bytes, want the 32 of the key", len(got))
	}
	want := &config.File{
		URL: "https://runenv.example.com", IssuerURL: "https://oidc.example.com", Listen: ":8443",
		TLS:   &config.TLS{Cert: "/etc/runenv/tls.crt", Key: "/etc/runenv/tls.key"},
		Store: "sqlite:/var/lib/runenv/broker.db",
		Issuers: []config.Issuer{
			{Name: "github", Profile: "github", URL: "https://token.actions.githubusercontent.com", Enabled: true},
			{Name: "gitlab", Profile: "gitlab", URL: "https://gitlab.example.com", Enabled: true},
		},
		Providers: []config.Provider{{Name: "vault", Type: "vault"}},
		Leases: []config.Lease{
			{
				Name: "db-readonly", Provider: "vault", TTL: 15 * time.Minute, MaxTTL: time.Hour,
				Env: []config.EnvVar{{Var: shape.Var{Name: "DB_USER", Field: "username", Mask: true}}, {Var: shape.Var{Name: "DB_PASSWORD", Field: "password", Mask: true}}},
			},
			{
				Name: "npm", Provider: "vault", MaxTTL: 24 * time.Hour,
				Env: []config.EnvVar{{Var: shape.Var{Name: "NPM_TOKEN", Field: "token", Mask: true}}, {Var: shape.Var{Name: "NPM_REGISTRY", Field: "url"}}},
			},
		},
	}
	ignored := cmp.Options{
		cmpopts.IgnoreFields(config.File{}, "Seal", "Policy", "Compiled", "Digest"),
		cmpopts.IgnoreFields(config.Provider{}, "Decode"), cmpopts.IgnoreFields(config.Lease{}, "Decode"),
		cmpopts.IgnoreTypes(policy.Pos{}), cmpopts.EquateEmpty(),
	}
	if diff := cmp.Diff(want, file, ignored); diff != "" {
		t.Errorf("Load() differs (-want +got):\n%s", diff)
	}
	if got := file.Leases[1].Pos.String(); got != "testdata/example.yaml:21:3" {
		t.Errorf("the second lease stands at %s, want testdata/example.yaml:21:3", got)
	}
	var lease leaseKeys
	if err := file.Leases[0].Decode(&lease); err != nil || lease.Path.String() != "database/creds/{{project.name}}-ro" {
		t.Errorf("Decode() = %v, path %q", err, lease.Path)
	}
	for g := range file.Compiled.Grants("npm") {
		template, err := providers.ParseTemplate("secret/{{project.vars.team}}/{{environment}}")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := template.Expand(g.Vars); (err == nil) != (g.Role.Name == "prod") {
			t.Errorf("the template for role %s: %v", g.Role.Name, err)
		}
	}
}

// TestDeployExample holds the file that operators begin with.
func TestDeployExample(t *testing.T) {
	t.Parallel()
	file, err := config.Load("../../deploy/broker.yaml", options())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range file.Compiled.RunTests() {
		if !r.Passed {
			t.Errorf("the file's test at %v: got %s", r.Pos, r.Got.Reason)
		}
	}
}

// dev is a file of `runenv-broker dev`; more is added to it.
const dev = `
url: http://127.0.0.1:8200
issuers:
  local: {profile: github, url: "http://127.0.0.1:9000", allow_networks: [127.0.0.0/8, "::1/128"], ca_file: ca.pem, jwks_file: /keys.json, reuse: same-job}
  closed: {profile: gitlab, url: https://gitlab.example.com, enabled: false, audience: x, reason: it can't name ours}
providers:
  static: {type: static, values: {token: literal-value, other: "${env:TOKEN}"}}
projects:
  demo: {local: demo/app@1}
leases:
  demo: {provider: static, max_ttl: 5m, env: {DEMO_TOKEN: {field: token, default: none}, OTHER: {field: other, optional: true}}}
roles:
  demo:
    projects: [demo]
    match: {local: {ref: refs/heads/main}}
    leases: [demo]
`

func TestDev(t *testing.T) {
	t.Parallel()
	opt := options()
	opt.Dev = true
	file, err := config.Parse("/srv/dev.yaml", []byte(dev), opt)
	if err != nil {
		t.Fatal(err)
	}
	if file.Listen != "127.0.0.1:8200" || file.Store != "memory:" || file.TLS != nil || file.Seal.Len() != 0 {
		t.Errorf("Parse() = listen %q, store %q, tls %v", file.Listen, file.Store, file.TLS)
	}
	want := []config.Issuer{
		{
			Name: "local", Profile: "github", URL: "http://127.0.0.1:9000", CAFile: "/srv/ca.pem", JWKSFile: "/keys.json", Reuse: "same-job", Enabled: true,
			AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		},
		{Name: "closed", Profile: "gitlab", URL: "https://gitlab.example.com", Audience: "x", Reason: "it can't name ours"},
	}
	if diff := cmp.Diff(want, file.Issuers, cmpopts.IgnoreTypes(policy.Pos{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("Issuers differ (-want +got):\n%s", diff)
	}
	var keys struct {
		Values map[string]secret.Value `yaml:"values"`
	}
	if err := file.Providers[0].Decode(&keys); err != nil {
		t.Fatal(err)
	}
	if got := string(keys.Values["token"].Reveal()) + " " + string(keys.Values["other"].Reveal()); got != "literal-value t0ken" {
		t.Errorf("values = %q", got)
	}
	lease := file.Leases[0]
	if lease.TTL != 0 || *lease.Env[0].Default != "none" || !lease.Env[1].Optional {
		t.Errorf("lease = %+v", lease)
	}

	opt.Dev = false
	_, err = config.Parse("dev.yaml", []byte(dev), opt)
	for _, want := range []string{"url: http isn't taken", "issuers.local.url: http isn't taken", "tls: missing", "store: missing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse() outside dev = %v, want %q", err, want)
		}
	}
	opt.Dev = true
	for _, url := range []string{"http://runenv.example.com", "http://localhost:80", "http://10.0.0.1:8200", "ftp://127.0.0.1"} {
		if _, err := config.Parse("dev.yaml", []byte(strings.Replace(dev, "http://127.0.0.1:8200", url, 1)), opt); err == nil {
			t.Errorf("Parse() with url %s in dev = nil, want an error", url)
		}
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	opt := options()
	opt.Dev = true
	text := strings.Replace(dev, "env: {DEMO_TOKEN: {field: token, default: none}, OTHER: {field: other, optional: true}}}", `env: {DEMO_TOKEN: token, TLS_KEY_FILE: key, SSH_FILE: {field: key, as: ssh-key, name: id_rsa}},
    file: {KUBECONFIG: value, DOTENV: {as: dotenv, name: .env}, AWS_SHARED_CREDENTIALS_FILE: {as: aws-profile, profile: prod}, DOCKER_CONFIG: {as: docker-config, registry: ghcr.io}}}`, 1)
	if _, err := config.Parse("dev.yaml", []byte(text), opt); err == nil || !strings.Contains(err.Error(), "leases.demo.file.DOTENV: not a plain file name") {
		t.Errorf("Parse() = %v, want an error about .env", err)
	}
	file, err := config.Parse("dev.yaml", []byte(strings.Replace(text, "name: .env", "name: env", 1)), opt)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range file.Leases[0].Env {
		got = append(got, strings.Join([]string{v.Name, v.FileName(), v.As, v.Profile, v.Registry}, " "))
		if !v.Mask {
			t.Errorf("%s isn't masked", v.Name)
		}
	}
	want := []string{
		"DEMO_TOKEN    ", "TLS_KEY_FILE tls_key   ", "SSH_FILE id_rsa ssh-key  ", "KUBECONFIG kubeconfig   ", "DOTENV env dotenv  ",
		"AWS_SHARED_CREDENTIALS_FILE aws_shared_credentials aws-profile prod ", "DOCKER_CONFIG docker_config docker-config  ghcr.io",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("variables differ (-want +got):\n%s", diff)
	}
}

func TestDecode(t *testing.T) {
	t.Parallel()
	type inner struct {
		A string `yaml:"a"`
		B *int   `yaml:"b"`
	}
	type keys struct {
		Text    string            `yaml:"text"`
		Yes     bool              `yaml:"yes"`
		Number  int               `yaml:"number"`
		Wait    time.Duration     `yaml:"wait"`
		List    []string          `yaml:"list"`
		Map     map[string]string `yaml:"map"`
		Any     map[string]any    `yaml:"any,omitempty"`
		Inner   inner             `yaml:"inner"`
		Inners  []inner           `yaml:"inners"`
		Ignored string            `yaml:"-"`
		Plain   string
	}
	data := `
url: http://127.0.0.1:8200
providers:
  p:
    type: static
    text: |
      two
      lines
    "yes": true
    number: -42
    wait: 1h30m
    list: [a, "1", 'it''s']
    map: {x: "~", "on": z}
    any: {s: x, "n": 7, t: true, l: [1, a], m: {"k": "0123"}}
    inner: {a: x, b: 7}
    inners:
      - {a: x}
      - a: z
    plain: p
`
	opt := options()
	opt.Dev = true
	file, err := config.Parse("x.yaml", []byte(data), opt)
	if err != nil {
		t.Fatal(err)
	}
	var got keys
	if err := file.Providers[0].Decode(&got); err != nil {
		t.Fatal(err)
	}
	seven := 7
	want := keys{
		Text: "two\nlines\n", Yes: true, Number: -42, Wait: 90 * time.Minute, List: []string{"a", "1", "it's"},
		Map:    map[string]string{"x": "~", "on": "z"},
		Any:    map[string]any{"s": "x", "n": int64(7), "t": true, "l": []any{int64(1), "a"}, "m": map[string]any{"k": "0123"}},
		Inner:  inner{A: "x", B: &seven},
		Inners: []inner{{A: "x"}, {A: "z"}}, Plain: "p",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Decode() differs (-want +got):\n%s", diff)
	}
	if err := file.Providers[0].Decode(keys{}); err == nil {
		t.Error("Decode(not a pointer) = nil, want an error")
	}
}

// TestAmbiguousScalars holds what YAML 1.1 or 1.2 reads as something else.
func TestAmbiguousScalars(t *testing.T) {
	t.Parallel()
	opt := options()
	opt.Dev = true
	parse := func(value string) error {
		_, err := config.Parse("x.yaml", []byte("url: http://127.0.0.1:8200\nissuers:\n  i: {profile: github, url: https://x.example}\nprojects:\n  p:\n    i: a/b@1\n    vars:\n      v: "+value+"\n"), opt)
		return err
	}
	for _, v := range []string{
		"~", "null", "Null", "NULL", "y", "Y", "yes", "Yes", "n", "N", "NO", "true", "True", "FALSE", "on", "Off",
		"0", "1", "-1", "+1", "0123", "0o17", "0x1F", "0b11", "1_000", "1.10", "1.", ".5", "1e3", "1.5e-3", "12e03", "-.5",
		".inf", "-.Inf", "+.INF", ".nan", ".NaN", "22:22", "1:30:00", "-1:30", "1:30:00.5",
		"2026-11-23", "2026-1-2", "2026-11-23T10:00:00Z", "2026-11-23 10:00:00", "=",
	} {
		err := parse(v)
		if err == nil || !strings.Contains(err.Error(), "x.yaml:8:10: projects.p.vars.v: YAML may read this as") {
			t.Errorf("plain %q: %v, want it refused", v, err)
		}
		if err := parse(`"` + v + `"`); err != nil {
			t.Errorf("quoted %q: %v, want it taken", v, err)
		}
	}
	for _, v := range []string{"refs/heads/main", "v1.10", "1.2.3", "a1", "0xg", "10.0.0.1", "1a", "nope", "yesterday", ".github", "2026-11", "22:222", "-a", "a:b"} {
		if err := parse(v); err != nil {
			t.Errorf("plain %q: %v, want it taken", v, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{"one": "s3cret\n", "two": "s3cret\n\n", "none": "\n", "large": strings.Repeat("x", 64<<10+1)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for ref, want := range map[string]string{
		"${env:TOKEN}":               "t0ken",
		"${file:one}":                "s3cret",
		"${file:two}":                "s3cret\n",
		`"${file:` + dir + `/one}"`:  "s3cret",
		"${file:none}":               "error: the file of this credential is empty",
		"${file:large}":              "error: the file of this credential holds over 64 KiB",
		"${file:absent}":             "error: the file of this credential isn't there",
		"${file:/etc/runenv/locked}": "error: the file of this credential can't be read: permission denied",
		"${env:ABSENT}":              "error: the environment variable isn't set",
		"${env:EMPTY}":               "error: the environment variable is empty",
		"${env:}":                    "error: a reference stands for the whole value",
		"${env:TOKEN}x":              "error: a reference stands for the whole value",
		"${env:TOKEN}${env:TOKEN}":   "error: a reference stands for the whole value",
		"${ENV:TOKEN}":               "error: a credential doesn't stand in the file",
		"$TOKEN":                     "error: a credential doesn't stand in the file",
		"\"\"":                       "error: a credential doesn't stand in the file",
		"[x]":                        "error: not a string",
	} {
		data := "url: https://r.example\nproviders:\n  v:\n    type: vault\n    auth:\n      token: " + ref + "\ntls: {cert: a, key: b}\nstore: sqlite:x\nseal: ${env:SEAL}\n"
		file, err := config.Parse(filepath.Join(dir, "x.yaml"), []byte(data), options())
		if err != nil {
			t.Fatalf("%s: %v", ref, err)
		}
		if file.TLS.Cert != filepath.Join(dir, "a") || file.Store != "sqlite:"+filepath.Join(dir, "x") {
			t.Errorf("paths are %q and %q, want them in the file's folder", file.TLS.Cert, file.Store)
		}
		var keys providerKeys
		var got string
		if err := file.Providers[0].Decode(&keys); err != nil {
			problems, ok := errors.AsType[config.Problems](err)
			if !ok {
				t.Fatalf("%s: Decode() = %v, want Problems", ref, err)
			}
			got = "error: " + problems[0].Message
		} else {
			got = string(keys.Auth.Token.Reveal())
		}
		if got != want {
			t.Errorf("credential %s is %q, want %q", ref, got, want)
		}
	}
}

func TestIncludes(t *testing.T) {
	t.Parallel()
	opt := options()
	opt.Dev = true
	files := map[string]string{
		"/c/teams/a.yaml": "projects: {pa: {local: a/a@1}}",
		"/c/teams/b.yaml": "projects: {pb: {local: a/b@2}}",
	}
	var read []string
	opt.ReadFile = func(path string) ([]byte, error) {
		read = append(read, path)
		data, ok := files[path]
		if !ok {
			return nil, os.ErrNotExist
		}
		return []byte(data), nil
	}
	opt.Glob = func(pattern string) ([]string, error) {
		var out []string
		for path := range files {
			if ok, err := filepath.Match(pattern, path); err != nil {
				return nil, err
			} else if ok {
				out = append(out, path)
			}
		}
		return out, nil
	}
	head := "url: http://127.0.0.1:8200\nissuers: {local: {profile: github, url: \"http://127.0.0.1:1\"}}\n"
	file, err := config.Parse("/c/main.yaml", []byte(head+"include: [teams/*.yaml, teams/a.yaml]\n"), opt)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/c/teams/a.yaml", "/c/teams/b.yaml"}, read); diff != "" {
		t.Errorf("files read differ (-want +got):\n%s", diff)
	}
	if got := len(file.Compiled.Projects()); got != 2 {
		t.Errorf("%d projects, want 2", got)
	}
	first := file.Digest
	files["/c/teams/b.yaml"] += " "
	file, err = config.Parse("/c/main.yaml", []byte(head+"include: [teams/*.yaml, teams/a.yaml]\n"), opt)
	if err != nil || file.Digest == first {
		t.Errorf("the digest stayed although a file changed (%v)", err)
	}
	for pattern, want := range map[string]string{
		"teams/**":   "not a pattern",
		"teams/[":    "not a pattern",
		"team/*":     "matches no file",
		"teams/\"\"": "matches no file",
	} {
		_, err := config.Parse("/c/main.yaml", []byte(head+"include: ['"+pattern+"']\n"), opt)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("include %q: %v, want %q", pattern, err, want)
		}
	}
	for i := range 1001 {
		files[fmt.Sprintf("/c/many/%d.yaml", i)] = "tests: []"
	}
	_, err = config.Parse("/c/main.yaml", []byte(head+"include: [many/*.yaml]\n"), opt)
	if err == nil || !strings.Contains(err.Error(), "over 1000 files") {
		t.Errorf("1,001 files: %v, want them refused", err)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]string{
		"size":            "# " + strings.Repeat("x", 1<<20),
		"flow lists":      "a: " + strings.Repeat("[", 100_000),
		"flow mappings":   strings.Repeat("{a: ", 100_000),
		"lists in a line": strings.Repeat("- ", 100_000),
		"question marks":  strings.Repeat("? ", 100_000),
		"not UTF-8":       "url: \xff",
	} {
		if _, err := config.Parse("x.yaml", []byte(data), options()); err == nil {
			t.Errorf("%s: Parse() = nil, want an error", name)
		}
	}
	_, err := config.Parse("x.yaml", []byte(strings.Repeat("- x\n", 3)+"\n"), options())
	if err == nil {
		t.Error("a list: Parse() = nil, want an error")
	}
	var many strings.Builder
	for i := range 500 {
		fmt.Fprintf(&many, "unknown%d: x\n", i)
	}
	_, err = config.Parse("x.yaml", []byte(many.String()), options())
	problems, ok := errors.AsType[config.Problems](err)
	if !ok || len(problems) != 101 || !strings.Contains(err.Error(), "more problems") {
		t.Errorf("500 unknown keys give %d problems, want 100 and a count of the rest", len(problems))
	}
	if _, err := config.Load("testdata/absent.yaml", config.Options{}); err == nil || err.Error() != "testdata/absent.yaml: the file isn't there" {
		t.Errorf("Load(absent) = %v", err)
	}
}

// TestDigestOfTheSameMeaning: layout and order don't change the policy's
// digest, a changed lease does.
func TestDigestOfTheSameMeaning(t *testing.T) {
	t.Parallel()
	opt := options()
	opt.Dev = true
	digest := func(data string) string {
		t.Helper()
		file, err := config.Parse("x.yaml", []byte(data), opt)
		if err != nil {
			t.Fatal(err)
		}
		return file.Compiled.Digest()
	}
	base := digest(dev)
	same := strings.Replace(dev, "{provider: static, max_ttl: 5m,", "{max_ttl: '5m', provider: \"static\",", 1)
	if got := digest("# a comment\n" + same); got != base {
		t.Error("the digest changed with order and layout")
	}
	for _, change := range [][2]string{{"max_ttl: 5m", "max_ttl: 6m"}, {"field: token", "field: token2"}, {"demo/app@1", "demo/app@2"}, {"refs/heads/main", "refs/heads/x"}, {"enabled: false", "enabled: true"}} {
		if got := digest(strings.Replace(dev, change[0], change[1], 1)); got == base {
			t.Errorf("the digest stayed although %s became %s", change[0], change[1])
		}
	}
}

func FuzzParse(f *testing.F) {
	example, err := os.ReadFile("testdata/example.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example, false)
	f.Add([]byte(dev), true)
	traps, err := filepath.Glob("testdata/traps/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range traps {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, false)
	}
	f.Fuzz(func(t *testing.T, data []byte, devMode bool) {
		if len(data) > 16<<10 {
			return
		}
		opt := config.Options{
			Getenv:        func(string) (string, bool) { return "zq-env-canary", true },
			ReadFile:      func(string) ([]byte, error) { return []byte("zq-file-canary"), nil },
			Glob:          func(string) ([]string, error) { return nil, nil },
			ProviderTypes: []string{"static", "vault"}, Dev: devMode,
		}
		text := func() string {
			file, err := config.Parse("x.yaml", data, opt)
			if (file == nil) == (err == nil) {
				t.Fatalf("Parse() = %v, %v, want one of the two", file, err)
			}
			out := fmt.Sprint(err)
			if file != nil {
				out += file.Digest + file.Compiled.Digest()
				for _, p := range file.Providers {
					out += fmt.Sprint(p.Decode(&providerKeys{}))
				}
				for _, l := range file.Leases {
					out += fmt.Sprint(l.Decode(&leaseKeys{}))
				}
			}
			return out
		}
		got := text()
		if again := text(); again != got {
			t.Errorf("two readings differ: %q, %q", got, again)
		}
		if strings.Contains(got, "zq-env-canary") || strings.Contains(got, "zq-file-canary") {
			t.Errorf("a message holds a secret: %q", got)
		}
	})
}

func BenchmarkLoad(b *testing.B) {
	var data strings.Builder
	data.WriteString(dev)
	part := &strings.Builder{}
	part.WriteString("projects:\n")
	for i := range 1000 {
		fmt.Fprintf(part, "  p%d: {local: acme/p%d@%d, vars: {team: t%d, account: \"%d\"}}\n", i, i, 1000+i, i%10, i)
	}
	part.WriteString("roles:\n")
	for i := range 100 {
		fmt.Fprintf(part, "  r%d:\n    projects: {team: [t%d]}\n    match: {local: {ref: refs/heads/main, event_name: [push]}}\n    leases: [demo]\n", i, i%10)
	}
	data.WriteString("include: [all.yaml]\n")
	opt := options()
	opt.Dev = true
	opt.Glob = func(string) ([]string, error) { return []string{"all.yaml"}, nil }
	opt.ReadFile = func(string) ([]byte, error) { return []byte(part.String()), nil }
	b.SetBytes(int64(part.Len()))
	for b.Loop() {
		if _, err := config.Parse("x.yaml", []byte(data.String()), opt); err != nil {
			b.Fatal(err)
		}
	}
}

func TestShapes(t *testing.T) {
	t.Parallel()
	file, err := config.Parse("broker.yaml", []byte(strings.Replace(dev, "env: {DEMO_TOKEN:", `env: {
      URL: {template: "https://{{.user | urlquery}}@example.com"}, HOST: {field: /config/host, mask: false}, KEY: {field: key, decode: base64}, ALL: {as: json},
      "*": {prefix: APP_, fields: "app-*", optional: true}, DEMO_TOKEN:`, 1)), config.Options{Dev: true, Getenv: getenv})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range file.Leases[0].Env {
		template := ""
		if v.Template != nil {
			template = v.Template.String()
		}
		got = append(got, fmt.Sprint(v.Name, "|", v.Field, "|", v.Decode, "|", template, "|", v.As, "|", v.Prefix, "|", v.Fields, "|", v.Mask, v.Optional))
	}
	want := []string{
		"URL||||||", "HOST|/config/host|||||", "KEY|key|base64||||", "ALL||||json||", "*|||||APP_|app-*", "DEMO_TOKEN|token|||||", "OTHER|other|||||",
	}
	want[0] = "URL|||https://{{.user | urlquery}}@example.com|||"
	for i := range want {
		want[i] += "|" + map[bool]string{true: "false", false: "true"}[i == 1] + " " + map[bool]string{true: "true", false: "false"}[i == 4 || i == 6]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
}
