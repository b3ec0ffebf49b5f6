package shape_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"

	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"github.com/runenv/action/broker/shape"
	"github.com/runenv/action/secret"
)

// ca is a block of the right kind; nothing reads what is in it.
var ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("not a real one")}))

func apply(t testing.TB, v shape.Var, fields map[string]secret.Value) shape.Made {
	t.Helper()
	v.Mask = true
	if err := v.Check(); err != nil {
		t.Fatalf("Check: %v", err)
	}
	made, err := shape.Apply([]shape.Var{v}, fields)
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	return made
}

func hides(made shape.Made) []string {
	var out []string
	for _, v := range made.Hide {
		out = append(out, string(v.Reveal()))
	}
	slices.Sort(out)
	return out
}

func TestVariablesThatAreFiles(t *testing.T) {
	t.Parallel()
	made, err := shape.Apply([]shape.Var{
		{Name: "KUBECONFIG", Field: "a", File: shape.DefaultFile("KUBECONFIG")}, {Name: "TLS_KEY_FILE", Field: "a"}, {Name: "_FILE", Field: "a"},
		{Name: "OTHER_FILE", Field: "a", File: "id_rsa"}, {Name: "PROFILE", Field: "a"}, {Name: "FILE", Field: "a"}, {Name: "x_file", Field: "a"},
		{Name: "*", Prefix: "P_"},
	}, fieldsOf("a", "1", "cert-file", "2"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, o := range made.Env {
		got[o.Name] = o.File
	}
	want := map[string]string{
		"KUBECONFIG": "kubeconfig", "TLS_KEY_FILE": "tls_key", "_FILE": "_file", "OTHER_FILE": "id_rsa", "PROFILE": "", "FILE": "", "x_file": "",
		"P_A": "", "P_CERT_FILE": "p_cert",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// The SDK reads sections of several leases from one file.
func TestAWSProfilesAreReadByTheSDK(t *testing.T) {
	t.Parallel()
	aws := fieldsOf("access_key_id", "ASIAEXAMPLE", "secret_access_key", "s/+=k", "session_token", "t0ken//+==", "region", "eu-west-1", "expiration", "2026-11-23T15:00:00Z")
	vault := fieldsOf("access_key", "AKIAEXAMPLE", "secret_key", "other")
	path := filepath.Join(t.TempDir(), "credentials")
	var text []byte
	for profile, fields := range map[string]map[string]secret.Value{"shop-prod": aws, "pay.prod": vault} {
		made := apply(t, shape.Var{Name: "AWS_SHARED_CREDENTIALS_FILE", As: "aws-profile", Profile: profile}, fields)
		if o := made.Env[0]; o.Kind != "aws-profile" || o.Profile != profile || o.File != "aws_shared_credentials" {
			t.Errorf("%s is %+v", profile, o)
		}
		text = append(text, made.Env[0].Value.Reveal()...)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for profile, want := range map[string][]string{
		"shop-prod": {"ASIAEXAMPLE", "s/+=k", "t0ken//+==", "eu-west-1"}, "pay.prod": {"AKIAEXAMPLE", "other", "", ""},
	} {
		cfg, err := awsconfig.LoadSharedConfigProfile(t.Context(), profile, func(o *awsconfig.LoadSharedConfigOptions) {
			o.CredentialsFiles, o.ConfigFiles = []string{path}, []string{}
		})
		if err != nil {
			t.Fatal(err)
		}
		c := cfg.Credentials
		if diff := cmp.Diff(want, []string{c.AccessKeyID, c.SecretAccessKey, c.SessionToken, cfg.Region}); diff != "" {
			t.Errorf("the SDK reads profile %s so (-want +got):\n%s", profile, diff)
		}
	}
}

func TestDockerConfig(t *testing.T) {
	t.Parallel()
	const auth = "QVdTOnBhc3Mvd29yZCs9" // AWS:pass/word+=
	for name, v := range map[string]shape.Var{
		"111122223333.dkr.ecr.eu-west-1.amazonaws.com": {},
		"ghcr.io":                     {Registry: "ghcr.io"},
		"localhost:5000":              {Registry: "localhost:5000"},
		"https://index.docker.io/v1/": {Registry: "https://index.docker.io/v1/"},
	} {
		v.Name, v.File, v.As = "DOCKER_CONFIG", "docker_config", "docker-config"
		made := apply(t, v, fieldsOf("username", "AWS", "password", "pass/word+=", "registry", "111122223333.dkr.ecr.eu-west-1.amazonaws.com"))
		var got map[string]map[string]map[string]string
		if err := json.Unmarshal(made.Env[0].Value.Reveal(), &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]map[string]map[string]string{"auths": {name: {"auth": auth}}}, got); diff != "" || made.Env[0].Kind != "docker-config" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff([]string{auth, "pass/word+="}, hides(made)); diff != "" {
			t.Errorf("%s: hidden besides (-want +got):\n%s", name, diff)
		}
	}
}

func TestKubeconfig(t *testing.T) {
	t.Parallel()
	encoded := base64.StdEncoding.EncodeToString([]byte(ca))
	for name, tt := range map[string]struct {
		v      shape.Var
		fields map[string]secret.Value
		ca     any
	}{
		"all fields":         {shape.Var{}, fieldsOf("token", "t0ken", "server", "https://k.example.com:6443", "ca", ca), encoded},
		"GCP's access token": {shape.Var{Server: "https://k.example.com:6443", CA: encoded}, fieldsOf("access_token", "t0ken"), encoded},
		"Vault's":            {shape.Var{Server: "https://k.example.com:6443"}, fieldsOf("service_account_token", "t0ken"), nil},
	} {
		tt.v.Name, tt.v.File, tt.v.As = "KUBECONFIG", "kubeconfig", "kubeconfig"
		made := apply(t, tt.v, tt.fields)
		var got map[string]any
		if err := yaml.Unmarshal(made.Env[0].Value.Reveal(), &got); err != nil {
			t.Fatal(err)
		}
		cluster := map[string]any{"server": "https://k.example.com:6443"}
		if tt.ca != nil {
			cluster["certificate-authority-data"] = tt.ca
		}
		want := map[string]any{
			"apiVersion": "v1", "kind": "Config", "current-context": "runenv",
			"clusters": []any{map[string]any{"name": "runenv", "cluster": cluster}},
			"users":    []any{map[string]any{"name": "runenv", "user": map[string]any{"token": "t0ken"}}},
			"contexts": []any{map[string]any{"name": "runenv", "context": map[string]any{"cluster": "runenv", "user": "runenv"}}},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff([]string{"t0ken"}, hides(made)); diff != "" {
			t.Errorf("%s: hidden besides (-want +got):\n%s", name, diff)
		}
	}
}

// OpenSSH refuses a key without a final newline, or with Windows' line ends,
// which is how keys come out of forms and back ends.
func TestSSHKeyIsReadByOpenSSH(t *testing.T) {
	t.Parallel()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	key := string(pem.EncodeToMemory(block))
	for name, stored := range map[string]string{
		"as it was made": key, "without its last newline": strings.TrimSpace(key), "with Windows' line ends": strings.ReplaceAll(key, "\n", "\r\n"), "among blank lines": "\n\n " + key + "\n\n",
	} {
		made := apply(t, shape.Var{Name: "SSH_KEY_FILE", Field: "key", As: "ssh-key"}, fieldsOf("key", stored))
		if got := string(made.Env[0].Value.Reveal()); got != key {
			t.Errorf("a key %s is delivered as %q", name, got)
		}
		if _, err := ssh.ParseRawPrivateKey(made.Env[0].Value.Reveal()); err != nil {
			t.Errorf("a key %s: %v", name, err)
		}
		keygen, err := exec.LookPath("ssh-keygen")
		if err != nil {
			continue // OpenSSH isn't there; the package above reads as it does
		}
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, made.Env[0].Value.Reveal(), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), keygen, "-y", "-f", path).CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "ssh-ed25519 ") {
			t.Errorf("a key %s: ssh-keygen says %v, %s", name, err, out)
		}
	}
	encoded := base64.StdEncoding.EncodeToString([]byte(key))
	if got := apply(t, shape.Var{Name: "SSH_KEY_FILE", Field: "key", As: "ssh-key", Decode: "base64"}, fieldsOf("key", encoded)); string(got.Env[0].Value.Reveal()) != key {
		t.Error("a key in base64 isn't delivered as it was")
	}
}

// hard are values that each format has to escape in its own way.
var hard = map[string]string{
	"PLAIN": "value", "EMPTY": "", "QUOTES": `it's "so" and 'so'`, "DOLLAR": "$HOME ${x} `id` \\$ \\", "SPACE": "  two  ", "HASH": "a # b ; c", "EQUALS": "=a=b:c!d",
	"LINES": "one\ntwo\n\nlast", "UNICODE": "grün 🙂 \u2028", "TAB": "\ta\tb", "APOSTROPHE_LINES": "it's\n$HOME `x` \\n \"y\"",
}

func hardFields() map[string]secret.Value {
	fields := map[string]secret.Value{}
	for name, value := range hard {
		fields[name] = secret.FromString(value)
	}
	return fields
}

// A shell is the strictest reader of dotenv: it also runs what isn't quoted.
func TestDotenvIsReadByAShell(t *testing.T) {
	t.Parallel()
	made := apply(t, shape.Var{Name: "DOTENV_FILE", As: "dotenv"}, hardFields())
	path := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(path, made.Env[0].Value.Reveal(), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range hard {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", `. "$1"; eval "printf %s. \"\${$2}\""`, "sh", path, name).CombinedOutput()
		if err != nil || string(out) != want+"." {
			t.Errorf("a shell reads %s as %q (%v), want %q", name, out, err, want)
		}
	}
}

// properties reads as java.util.Properties does, after its documentation.
func properties(text string) map[string]string {
	unescape := func(s string) string {
		var units []uint16
		for i := 0; i < len(s); i++ {
			if s[i] != '\\' {
				units = append(units, uint16(s[i]))
				continue
			}
			i++
			switch s[i] {
			case 'u':
				n, _ := strconv.ParseUint(s[i+1:i+5], 16, 16)
				units = append(units, uint16(n))
				i += 4
			case 'n':
				units = append(units, '\n')
			case 'r':
				units = append(units, '\r')
			case 't':
				units = append(units, '\t')
			case 'f':
				units = append(units, '\f')
			default:
				units = append(units, uint16(s[i]))
			}
		}
		return string(utf16.Decode(units))
	}
	out := map[string]string{}
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		end := 0
		for end < len(line) && !strings.ContainsRune("=: \t\f", rune(line[end])) {
			if line[end] == '\\' {
				end++
			}
			end++
		}
		value := strings.TrimLeft(line[end:], " \t\f")
		if value != "" && (value[0] == '=' || value[0] == ':') {
			value = strings.TrimLeft(value[1:], " \t\f")
		}
		out[unescape(line[:end])] = unescape(value)
	}
	return out
}

func TestPropertiesAreReadAsJavaDoes(t *testing.T) {
	t.Parallel()
	fields := hardFields()
	fields["a key: with = and #!"] = secret.FromString("x")
	made := apply(t, shape.Var{Name: "APP_FILE", As: "properties"}, fields)
	want := map[string]string{"a key: with = and #!": "x"}
	for name, value := range hard {
		want[name] = value
	}
	if diff := cmp.Diff(want, properties(string(made.Env[0].Value.Reveal()))); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
}

// What is a secret by itself is hidden by itself, though it is delivered only
// as a part of something.
func TestT18PartsAreHidden(t *testing.T) {
	t.Parallel()
	fields := fieldsOf("username", "the-user", "password", "p@ss/word", "host", "db.example.com", "inner", `{"a":"in the field","b/c":"another"}`)
	url := shape.Var{Name: "URL", Template: mustTemplate(t, "postgres://{{.username | urlquery}}:{{.password | urlquery}}@{{.host}}/x"), Mask: true}
	unmasked := url
	unmasked.Mask = false
	tests := []struct {
		name string
		vars []shape.Var
		want []string
	}{
		{"a template", []shape.Var{url}, []string{"db.example.com", "p@ss/word", "the-user"}},
		{"a template that is no secret", []shape.Var{unmasked}, nil},
		{"a field that isn't one", []shape.Var{url, {Name: "HOST", Field: "host"}}, []string{"p@ss/word", "the-user"}},
		{"fields that aren't", []shape.Var{url, {Name: "*", Fields: "*s*"}}, nil},
		{"a field that a variable hides already", []shape.Var{url, {Name: "PASSWORD", Field: "password", Mask: true}}, []string{"db.example.com", "the-user"}},
		{"a plain variable", []shape.Var{{Name: "PASSWORD", Field: "password", Mask: true}}, nil},
		{"a template that is one field", []shape.Var{{Name: "P", Template: mustTemplate(t, "{{.password}}"), Mask: true}}, nil},
		{"base64 of base64, and upper case", []shape.Var{{Name: "P", Template: mustTemplate(t, "{{.password | base64 | base64}} {{.host | upper}}!"), Mask: true}}, []string{"DB.EXAMPLE.COM", "Y0VCemN5OTNiM0prCg==", "db.example.com", "p@ss/word"}},
		{"the template's own text", []shape.Var{{Name: "P", Template: mustTemplate(t, `{{"text" | upper}}{{.password}}`), Mask: true}}, []string{"p@ss/word"}},
		{"json", []shape.Var{{Name: "J", As: "json", Mask: true}, {Name: "HOST", Field: "host"}, {Name: "I", Field: "inner"}}, []string{"p@ss/word", "the-user"}},
		{"dotenv", []shape.Var{{Name: "J", As: "dotenv", Mask: true}, {Name: "HOST", Field: "host"}, {Name: "I", Field: "inner"}}, []string{"p@ss/word", "the-user"}},
		{"properties", []shape.Var{{Name: "J", As: "properties", Mask: true}, {Name: "HOST", Field: "host"}, {Name: "I", Field: "inner"}}, []string{"p@ss/word", "the-user"}},
		{"json of a field", []shape.Var{{Name: "J", As: "json", Field: "inner", Mask: true}, {Name: "B", Field: "/inner/b~1c"}}, []string{"in the field"}},
	}
	tests[7].want[1] = base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString([]byte("p@ss/word"))))
	for _, tt := range tests {
		made, err := shape.Apply(tt.vars, fields)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		slices.Sort(tt.want)
		if diff := cmp.Diff(tt.want, hides(made)); diff != "" {
			t.Errorf("%s: hidden besides (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestWhatIsHiddenIsBounded(t *testing.T) {
	t.Parallel()
	fields := map[string]secret.Value{}
	for i := range 1000 {
		fields[fmt.Sprint("f", i)] = secret.FromString(fmt.Sprint("value", i))
	}
	v := shape.Var{Name: "A_FILE", As: "json", Mask: true}
	if made := apply(t, v, fields); len(made.Hide) != 1000 {
		t.Errorf("%d values are hidden, want 1000", len(made.Hide))
	}
	fields["more"] = secret.FromString("more")
	if _, err := shape.Apply([]shape.Var{v}, fields); err == nil {
		t.Error("1001 values to hide: no error")
	}
}

// What comes from a back end can't add a line, a section or a login.
func TestReadyShapesRefuse(t *testing.T) {
	t.Parallel()
	const canary = "canary-7f3a"
	key := string(pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: []byte(canary)}))
	profile := shape.Var{As: "aws-profile", Profile: "p"}
	docker, kube, sshKey := shape.Var{As: "docker-config"}, shape.Var{As: "kubeconfig"}, shape.Var{As: "ssh-key", Field: "f"}
	for name, tt := range map[string]struct {
		v      shape.Var
		fields map[string]secret.Value
	}{
		"another section":         {profile, fieldsOf("access_key_id", "a\n[q]\naws_access_key_id="+canary, "secret_access_key", canary)},
		"another key":             {profile, fieldsOf("access_key_id", "a", "secret_access_key", "a\ncredential_process="+canary)},
		"a region of two lines":   {profile, fieldsOf("access_key_id", "a", "secret_access_key", "a", "region", "r\ncredential_process="+canary)},
		"a comment":               {profile, fieldsOf("access_key_id", "a", "secret_access_key", canary+" # x")},
		"a quote":                 {profile, fieldsOf("access_key_id", "a", "secret_access_key", `"`+canary)},
		"no secret":               {profile, fieldsOf("access_key_id", canary)},
		"a user with a colon":     {docker, fieldsOf("username", "a:"+canary, "password", canary, "registry", "r")},
		"a registry that is none": {docker, fieldsOf("username", "a", "password", canary, "registry", canary+"\n")},
		"no registry":             {docker, fieldsOf("username", "a", "password", canary)},
		"a password of two lines": {docker, fieldsOf("username", "a", "password", canary+"\n", "registry", "r")},
		"a server in the clear":   {kube, fieldsOf("token", canary, "server", "http://"+canary)},
		"a CA that isn't one":     {kube, fieldsOf("token", canary, "server", "https://a", "ca", key)},
		"a CA and more":           {kube, fieldsOf("token", canary, "server", "https://a", "ca", ca+canary)},
		"a token of two lines":    {kube, fieldsOf("token", canary+"\n", "server", "https://a")},
		"no server":               {kube, fieldsOf("token", canary)},
		"no key":                  {sshKey, fieldsOf("f", canary)},
		"a public key":            {sshKey, fieldsOf("f", "ssh-ed25519 "+canary)},
		"a certificate":           {sshKey, fieldsOf("f", ca)},
		"two keys":                {sshKey, fieldsOf("f", key+key)},
		"a key behind a text":     {sshKey, fieldsOf("f", canary+"\n"+key)},
	} {
		tt.v.Name, tt.v.Mask = "A_FILE", true
		if err := tt.v.Check(); err != nil {
			t.Errorf("%s: Check: %v", name, err)
		}
		_, err := shape.Apply([]shape.Var{tt.v}, tt.fields)
		if err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v, want an error without the value", name, err)
		}
	}
}

func TestSlots(t *testing.T) {
	t.Parallel()
	file := func(variable, name string) shape.Var { return shape.Var{Name: variable, Field: "f", File: name} }
	profile := func(variable, name, profile string) shape.Var {
		return shape.Var{Name: variable, File: name, As: "aws-profile", Profile: profile}
	}
	for _, tt := range []struct {
		name string
		vars []shape.Var
		want string // "" means that they get on
	}{
		{"different ones", []shape.Var{file("A", "a"), file("B", "b"), {Name: "C", Field: "f"}, {Name: "D", Field: "f"}}, ""},
		{"whole maps", []shape.Var{{Name: "*"}, {Name: "*"}}, ""},
		{"one variable", []shape.Var{{Name: "A", Field: "f"}, {Name: "A", Field: "g"}}, "the variable A"},
		{"a variable and a file's", []shape.Var{{Name: "A", Field: "f"}, file("A", "a")}, "the variable A"},
		{"one file", []shape.Var{file("A", "a"), file("B", "a")}, "the file a"},
		{"one file where case doesn't count", []shape.Var{file("A", "a"), file("B", "A")}, "the file A"},
		{"one file by default", []shape.Var{file("A", "tls_key"), {Name: "TLS_KEY_FILE", Field: "f"}}, "the file tls_key"},
		{"two profiles", []shape.Var{profile("A", "a", "x"), profile("A", "a", "y")}, ""},
		{"one profile twice", []shape.Var{profile("A", "a", "x"), profile("A", "a", "x")}, "the profile x"},
		{"profiles in two files of one variable", []shape.Var{profile("A", "a", "x"), profile("A", "b", "y")}, "the variable A"},
		{"profiles in one file of two variables", []shape.Var{profile("A", "a", "x"), profile("B", "a", "y")}, "the file a"},
		{"a profile and a file", []shape.Var{profile("A", "a", "x"), file("A", "a")}, "the variable A"},
	} {
		var slots shape.Slots
		got := ""
		for _, v := range tt.vars {
			if err, ok := errors.AsType[*shape.CollisionError](slots.Add(v)); ok {
				got = err.What()
			}
		}
		if got != tt.want {
			t.Errorf("%s: %q collides, want %q", tt.name, got, tt.want)
		}
	}
}

func FuzzReady(f *testing.F) {
	for _, as := range []string{"aws-profile", "docker-config", "kubeconfig", "ssh-key", "dotenv", "properties", "json"} {
		f.Add(as, "user", "p4ss\nword", "https://r.example.com")
	}
	f.Add("properties", " =:", "\\\u2028\x00", "")
	f.Fuzz(func(t *testing.T, as, one, two, three string) {
		v := shape.Var{Name: "A_FILE", As: as, Mask: true}
		switch as {
		case "aws-profile":
			v.Profile = "p"
		case "ssh-key":
			v.Field = "username"
		}
		if v.Check() != nil {
			return
		}
		made, err := shape.Apply([]shape.Var{v}, fieldsOf("username", one, "password", two, "registry", three, "server", three, "token", one, "access_key_id", one, "secret_access_key", two, "region", three))
		if err != nil {
			for _, value := range []string{one, two, three} {
				if len(value) > 24 && strings.Contains(err.Error(), value) {
					t.Errorf("the error holds a value: %v", err)
				}
			}
			return
		}
		text := string(made.Env[0].Value.Reveal())
		switch as {
		case "aws-profile":
			path := filepath.Join(t.TempDir(), "c")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg, err := awsconfig.LoadSharedConfigProfile(context.Background(), "p", func(o *awsconfig.LoadSharedConfigOptions) {
				o.CredentialsFiles, o.ConfigFiles = []string{path}, []string{}
			})
			if err != nil || cfg.Credentials.AccessKeyID != one || cfg.Credentials.SecretAccessKey != two || cfg.Region != three {
				t.Errorf("%q is read as %+v, %v", text, cfg, err)
			}
		case "docker-config", "kubeconfig":
			if !json.Valid([]byte(text)) {
				t.Errorf("not JSON: %q", text)
			}
		case "properties":
			if got := properties(text); got["username"] != one || got["password"] != two || got["region"] != three {
				t.Errorf("%q is read as %q", text, got)
			}
		case "json":
			var got map[string]string
			if err := json.Unmarshal([]byte(text), &got); err != nil || got["password"] != two {
				t.Errorf("%q is read as %q, %v", text, got, err)
			}
		}
		for _, h := range made.Hide {
			if h.Len() == 0 || string(h.Reveal()) == text {
				t.Errorf("hidden besides: %q", h.Reveal())
			}
		}
	})
}
