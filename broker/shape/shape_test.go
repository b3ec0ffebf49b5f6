package shape_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/shape"
	"github.com/runenv/action/secret"
)

func fieldsOf(kv ...string) map[string]secret.Value {
	m := map[string]secret.Value{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = secret.FromString(kv[i+1])
	}
	return m
}

func mustTemplate(t testing.TB, text string) *shape.Template {
	t.Helper()
	tmpl, err := shape.ParseTemplate(text)
	if err != nil {
		t.Fatalf("ParseTemplate(%q): %v", text, err)
	}
	return tmpl
}

// T21: a caller that asks for one large credential in many variables gets none,
// and costs no more memory than an answer holds, with some waste.
func TestT21ManyVariablesOfALargeCredential(t *testing.T) {
	fields := map[string]secret.Value{}
	for i := range 32 {
		fields[fmt.Sprint("f", i)] = secret.FromString(strings.Repeat("x", 120<<10))
	}
	var vars []shape.Var
	for i := range 100 {
		vars = append(vars, shape.Var{Name: shape.All, Prefix: fmt.Sprintf("V%d_", i)})
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	out, err := shape.Apply(vars, fields)
	runtime.ReadMemStats(&after)
	if err == nil || len(out.Env) != 0 || strings.Contains(err.Error(), "xxx") {
		t.Errorf("Apply() = %d variables, %v, want none and an error", len(out.Env), err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
		t.Errorf("it took %d MiB", n>>20)
	}
	if out, err := shape.Apply(vars[:4], fields); err != nil || len(out.Env) != 128 {
		t.Errorf("Apply() of what fits = %d variables, %v, want 128", len(out.Env), err)
	}
}

func TestApply(t *testing.T) {
	t.Parallel()
	preset := "preset"
	all := fieldsOf("username", "u@x", "password", "p /+&'\"", "config", `{"db":{"host":"h","port":12345678901234567890,"tls":true,"none":null},"list":["a",{"b":"c"}],"a/b":{"c~d":"e"}}`,
		"b64", "aGVsbG8=", "b64raw", "aGVsbG8", "b64lines", "aGVs\nbG8=\n", "url64", "_-8", "hex", "68656c6c6f\n", "bin", "\xff\xfe", "na.me", "dotted", "empty", "")
	tests := []struct {
		name string
		vars []shape.Var
		want []string
	}{
		{"rename", []shape.Var{{Name: "DB_USER", Field: "username"}}, []string{"DB_USER=u@x"}},
		{"an empty value is a value", []shape.Var{{Name: "A", Field: "empty", Default: &preset}}, []string{"A="}},
		{"default", []shape.Var{{Name: "A", Field: "absent", Default: &preset}}, []string{"A=preset"}},
		{"optional", []shape.Var{{Name: "A", Field: "absent", Optional: true}, {Name: "B", Field: "username"}}, []string{"B=u@x"}},
		{"pointer to text", []shape.Var{{Name: "A", Field: "/config/db/host"}}, []string{"A=h"}},
		{"pointer to a large number", []shape.Var{{Name: "A", Field: "/config/db/port"}}, []string{"A=12345678901234567890"}},
		{"pointer to true", []shape.Var{{Name: "A", Field: "/config/db/tls"}}, []string{"A=true"}},
		{"pointer to null", []shape.Var{{Name: "A", Field: "/config/db/none", Optional: true}}, nil},
		{"pointer into a list", []shape.Var{{Name: "A", Field: "/config/list/0"}, {Name: "B", Field: "/config/list/1"}}, []string{"A=a", `B={"b":"c"}`}},
		{"pointer outside a list", []shape.Var{{Name: "A", Field: "/config/list/2", Default: &preset}, {Name: "B", Field: "/config/list/-", Default: &preset}, {Name: "C", Field: "/config/list/00", Default: &preset}}, []string{"A=preset", "B=preset", "C=preset"}},
		{"pointer with escapes", []shape.Var{{Name: "A", Field: "/config/a~1b/c~0d"}}, []string{"A=e"}},
		{"pointer to a field", []shape.Var{{Name: "A", Field: "/username"}}, []string{"A=u@x"}},
		{"base64", []shape.Var{{Name: "A", Field: "b64", Decode: "base64"}, {Name: "B", Field: "b64raw", Decode: "base64"}, {Name: "C", Field: "b64lines", Decode: "base64"}}, []string{"A=hello", "B=hello", "C=hello"}},
		{"base64url", []shape.Var{{Name: "A", Field: "url64", Decode: "base64url"}}, []string{"A=\xff\xef"}},
		{"hex", []shape.Var{{Name: "A", Field: "hex", Decode: "hex"}}, []string{"A=hello"}},
		{"template", []shape.Var{{Name: "A", Template: mustTemplate(t, "postgres://{{.username | urlquery}}:{{.password | urlquery}}@h/{{index . \"na.me\"}}")}},
			[]string{"A=postgres://u%40x:p%20%2F%2B%26%27%22@h/dotted"}},
		{"template with functions", []shape.Var{{Name: "A", Template: mustTemplate(t, `{{- json .password}} {{.username|upper|hex}} {{base64 (.username | upper)}} {{"{{"}} {{index . "/config/db/host" | upper | lower}}`)}},
			[]string{`A="p /+&'\"" 554058 VUBY {{ h`}},
		{"template with a field that is absent", []shape.Var{{Name: "A", Template: mustTemplate(t, "{{.absent}}"), Default: &preset}, {Name: "B", Template: mustTemplate(t, "x{{.absent}}"), Optional: true}}, []string{"A=preset"}},
		{"as json of one field", []shape.Var{{Name: "A", Field: "/config/db", As: "json"}}, []string{`A={"host":"h","port":"12345678901234567890","tls":"true"}`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, v := range tt.vars {
				if err := v.Check(); err != nil {
					t.Errorf("Check: %v", err)
				}
			}
			got, err := shape.Apply(tt.vars, all)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, texts(got.Env)); diff != "" {
				t.Errorf("Apply (-want +got):\n%s", diff)
			}
		})
	}
}

func texts(out []shape.Out) []string {
	var s []string
	for _, o := range out {
		s = append(s, o.Name+"="+string(o.Value.Reveal()))
	}
	return s
}

func TestApplyAs(t *testing.T) {
	t.Parallel()
	fields := fieldsOf("api-key", `a"b$c`, "note", "it's\n\"x\" $HOME", "ü", " grün= \t🙂")
	for as, want := range map[string]string{
		"json":       `{"api-key":"a\"b$c","note":"it's\n\"x\" $HOME","ü":" grün= \t🙂"}`,
		"dotenv":     "API_KEY='a\"b$c'\nNOTE=\"it's\n\\\"x\\\" \\$HOME\"\n_=' grün= \t🙂'\n",
		"properties": "api-key=a\"b$c\nnote=it's\\n\"x\" $HOME\n\\u00fc=\\ gr\\u00fcn= \\t\\ud83d\\ude42\n",
	} {
		got, err := shape.Apply([]shape.Var{{Name: "A", As: as, Mask: true, File: "a_file"}}, fields)
		if err != nil {
			t.Fatalf("as %s: %v", as, err)
		}
		if diff := cmp.Diff([]string{"A=" + want}, texts(got.Env)); diff != "" || !got.Env[0].Mask || got.Env[0].File != "a_file" {
			t.Errorf("as %s (-want +got):\n%s", as, diff)
		}
	}
	if _, err := shape.Apply([]shape.Var{{Name: "A", As: "json"}}, fieldsOf("a", "\xff")); err == nil {
		t.Error("as json of what isn't text: no error")
	}
	if _, err := shape.Apply([]shape.Var{{Name: "A", As: "dotenv"}}, fieldsOf("a-b", "1", "a.b", "2")); err == nil {
		t.Error("as dotenv of two fields with one name: no error")
	}
}

// What a back end calls its fields sets no variable by way of a file that
// "*" couldn't set.
func TestT29DotenvSetsWhatALeaseMay(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"PATH", "path", "ld-preload", "bash.env", "GIT_SSH_COMMAND", ""} {
		for _, v := range []shape.Var{{Name: "A", As: "dotenv"}, {Name: "A_FILE", As: "dotenv"}, {Name: "A", Field: "in", As: "dotenv"}} {
			inner, _ := json.Marshal(map[string]string{name: "x"})
			fields := fieldsOf(name, "x")
			if v.Field != "" {
				fields = fieldsOf(v.Field, string(inner))
			}
			if made, err := shape.Apply([]shape.Var{v}, fields); err == nil {
				t.Errorf("a field %q: %s, want an error", name, made.Env[0].Value.Reveal())
			}
		}
	}
	made, err := shape.Apply([]shape.Var{{Name: "A_FILE", As: "properties"}}, fieldsOf("a\nPATH", "x\nPATH=y"))
	if want := "a\\nPATH=x\\nPATH=y\n"; err != nil || string(made.Env[0].Value.Reveal()) != want {
		t.Errorf("properties: %v, want %q", err, want)
	}
}

func TestWholeMap(t *testing.T) {
	t.Parallel()
	fields := fieldsOf("api-key", "1", "api.url", "2", "2fa", "3", "Token", "4")
	tests := []struct {
		name string
		v    shape.Var
		want []string
	}{
		{"all", shape.Var{}, []string{"_2FA=3", "TOKEN=4", "API_KEY=1", "API_URL=2"}},
		{"prefix", shape.Var{Prefix: "APP_"}, []string{"APP_2FA=3", "APP_TOKEN=4", "APP_API_KEY=1", "APP_API_URL=2"}},
		{"some", shape.Var{Fields: "api*"}, []string{"API_KEY=1", "API_URL=2"}},
		{"the middle", shape.Var{Fields: "a*-*y"}, []string{"API_KEY=1"}},
		{"exact", shape.Var{Fields: "Token"}, []string{"TOKEN=4"}},
		{"none, optional", shape.Var{Fields: "x*", Optional: true}, nil},
	}
	for _, tt := range tests {
		tt.v.Name = "*"
		if err := tt.v.Check(); err != nil {
			t.Errorf("%s: Check: %v", tt.name, err)
		}
		got, err := shape.Apply([]shape.Var{tt.v}, fields)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, texts(got.Env)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	refused := []struct {
		name   string
		vars   []shape.Var
		fields map[string]secret.Value
	}{
		{"two fields with one name", []shape.Var{{Name: "*"}}, fieldsOf("a-b", "1", "a.b", "2")},
		{"a field and another variable", []shape.Var{{Name: "TOKEN", Field: "Token"}, {Name: "*"}}, fields},
		{"what runs code", []shape.Var{{Name: "*"}}, fieldsOf("path", "/tmp")},
		{"what runs code, by prefix", []shape.Var{{Name: "*", Prefix: "LD_"}}, fieldsOf("preload", "/tmp/x.so")},
	}
	for _, tt := range refused {
		if got, err := shape.Apply(tt.vars, tt.fields); err == nil {
			t.Errorf("%s: Apply = %v, want an error", tt.name, texts(got.Env))
		}
	}
}

func TestAllThatIsMissingIsReportedAtOnce(t *testing.T) {
	t.Parallel()
	_, err := shape.Apply([]shape.Var{
		{Name: "A", Field: "a"}, {Name: "B", Field: "here", Decode: "hex"}, {Name: "C", Field: "/json/x/y"}, {Name: "D", Template: mustTemplate(t, "{{.c}}{{.d}}{{.a}}")}, {Name: "*", Fields: "x*"},
	}, fieldsOf("here", "not hex", "json", `{"x":{}}`))
	missing, ok := errors.AsType[*shape.MissingError](err)
	if !ok {
		t.Fatalf("Apply = %v, want a MissingError", err)
	}
	if diff := cmp.Diff([]string{"a", "/json/x/y", "c", "d", "x*"}, missing.Fields); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
}

func TestWhatNoVariableHolds(t *testing.T) {
	t.Parallel()
	const name = "A_NAME"
	fits := strings.Repeat("x", 131071-len(name)-1)
	if _, err := shape.Apply([]shape.Var{{Name: name, Field: "f"}}, fieldsOf("f", fits)); err != nil {
		t.Errorf("a value of the greatest length: %v", err)
	}
	for what, value := range map[string]string{"too long": fits + "x", "a NUL byte": "a\x00b"} {
		_, err := shape.Apply([]shape.Var{{Name: name, Field: "f"}}, fieldsOf("f", value))
		hint, ok := errors.AsType[interface {
			error
			Hint() string
		}](err)
		if !ok || !strings.Contains(hint.Hint(), "file") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want an error about %s with a hint to a file", what, err, name)
		}
		if _, err := shape.Apply([]shape.Var{{Name: name, Field: "f", File: "a_file"}}, fieldsOf("f", value)); err != nil {
			t.Errorf("%s, as a file: %v", what, err)
		}
	}
}

func TestT18ErrorsHoldNoValue(t *testing.T) {
	t.Parallel()
	const canary = "canary-7f3a"
	fields := fieldsOf("f", canary, "j", `{"a":"`+canary+`"} `+canary, "list", `["`+canary+`"]`, "bin", canary+"\xff", "nul", canary+"\x00", "long", canary+strings.Repeat("x", 131072))
	for _, v := range []shape.Var{
		{Field: "/f/x"}, {Field: "/j/a"}, {Field: "f", Decode: "hex"}, {Field: "f", Decode: "base64"}, {Field: "f", Decode: "base64url"}, {Field: "f", As: "json"}, {Field: "list", As: "dotenv"},
		{As: "json"}, {Field: "nul"}, {Field: "long"}, {Field: "/list/" + "x"}, {Template: mustTemplate(t, `{{index . "/f/x"}}`)},
	} {
		v.Name = "A"
		_, err := shape.Apply([]shape.Var{v}, fields)
		if err == nil {
			t.Errorf("%+v: no error", v)
		} else if strings.Contains(err.Error(), canary) {
			t.Errorf("%+v: the error holds the value: %v", v, err)
		}
	}
	for _, text := range []string{"{{" + canary + "}}", "{{." + canary, `{{"` + canary + `" | nope}}`} {
		if _, err := shape.ParseTemplate(text); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("ParseTemplate(%q) = %v, want an error without the text", text, err)
		}
	}
}

func TestTheInputIsLeftAlone(t *testing.T) {
	t.Parallel()
	fields := fieldsOf("f", "value")
	out, err := shape.Apply([]shape.Var{{Name: "A", Field: "f"}, {Name: "*", Prefix: "B_"}}, fields)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range out.Env {
		o.Value.Wipe()
	}
	if got := string(fields["f"].Reveal()); got != "value" {
		t.Errorf("the field is %q after what was made of it was wiped", got)
	}
}

func TestTemplatesRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "no field", "{{", "{{}}", "{{.}}", "{{.a", "{{.a.b}}", "{{$}}", "{{$x := .a}}", "{{range .a}}x{{end}}", "{{if .a}}x{{end}}", "{{with .a}}x{{end}}", `{{define "x"}}{{end}}{{.a}}`, `{{template "x"}}{{.a}}`, `{{block "x" .}}{{.a}}{{end}}`,
		`{{printf "%s" .a}}`, "{{call .a}}", "{{len .a}}", "{{html .a}}", "{{js .a}}", "{{print .a}}", "{{not .a}}", "{{eq .a .b}}", `{{slice .a 1}}`, "{{.a | printf}}", "{{urlquery}}", "{{urlquery .a .b}}", "{{.a | urlquery .b}}", "{{.a .b}}", "{{.a | .b}}",
		`{{index . "a" "b"}}`, "{{index .a}}", `{{index .a "b"}}`, `{{"a" | index .}}`, "{{index . 1}}", `{{index . ""}}`, `{{index . "/"}}`, `{{index . "/a~2"}}`, "{{1}}{{.a}}", "{{true}}{{.a}}", "{{nil}}{{.a}}", "{{(.a).b}}", "{{break}}{{.a}}", "{{/* x */}}",
		"{{.a" + strings.Repeat("|hex", 65) + "}}", "{{.a}}" + strings.Repeat("x", 4096),
	} {
		if tmpl, err := shape.ParseTemplate(text); err == nil {
			t.Errorf("ParseTemplate(%q) = %v, want an error", text, tmpl)
		}
	}
}

func TestTemplatesAreBounded(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"{{.a" + strings.Repeat("|hex", 64) + "}}", strings.Repeat("{{.big}}", 500)} {
		_, err := shape.Apply([]shape.Var{{Name: "A", Template: mustTemplate(t, text), File: "a_file"}}, fieldsOf("a", "x", "big", strings.Repeat("x", 1<<20)))
		if err == nil {
			t.Errorf("%.20s…: no error", text)
		}
	}
}

func TestURLQueryIsRightForUserinfo(t *testing.T) {
	t.Parallel()
	const user, password = "us er+@:/", "p%+ /?#[]@!$&'()*+,;=é"
	out, err := shape.Apply([]shape.Var{{Name: "URL", Template: mustTemplate(t, "postgres://{{.u|urlquery}}:{{.p|urlquery}}@db/x?p={{.p|urlquery}}")}}, fieldsOf("u", user, "p", password))
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(string(out.Env[0].Value.Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := u.User.Password(); u.User.Username() != user || got != password || u.Query().Get("p") != password || u.Host != "db" {
		t.Errorf("the URL reads as %q, %q, %q at %q", u.User.Username(), got, u.Query().Get("p"), u.Host)
	}
}

func TestCheckRefuses(t *testing.T) {
	t.Parallel()
	preset, tmpl := "x", mustTemplate(t, "{{.a}}")
	for name, v := range map[string]shape.Var{
		"no field":                        {Name: "A"},
		"field and template":              {Name: "A", Field: "f", Template: tmpl},
		"template and as":                 {Name: "A", As: "json", Template: tmpl},
		"template and decode":             {Name: "A", Decode: "hex", Template: tmpl},
		"decode of all":                   {Name: "A", As: "json", Decode: "hex"},
		"an unknown decoding":             {Name: "A", Field: "f", Decode: "rot13"},
		"an unknown form":                 {Name: "A", Field: "f", As: "yaml"},
		"optional and default":            {Name: "A", Field: "f", Optional: true, Default: &preset},
		"prefix of one":                   {Name: "A", Field: "f", Prefix: "X_"},
		"fields of one":                   {Name: "A", Field: "f", Fields: "x"},
		"all with a field":                {Name: "*", Field: "f"},
		"all with a default":              {Name: "*", Default: &preset},
		"all as json":                     {Name: "*", As: "json"},
		"all as files":                    {Name: "*", File: "a_file"},
		"a file's name that is a path":    {Name: "A", Field: "f", File: "../a"},
		"a hidden file":                   {Name: "A", Field: "f", File: ".a"},
		"a ready shape of no file":        {Name: "A", Field: "f", As: "ssh-key"},
		"a key of all fields":             {Name: "A_FILE", As: "ssh-key"},
		"a profile without name":          {Name: "A_FILE", As: "aws-profile"},
		"a profile of another":            {Name: "A_FILE", Field: "f", Profile: "x"},
		"a profile that ends its section": {Name: "A_FILE", As: "aws-profile", Profile: "x]"},
		"a registry of another":           {Name: "A_FILE", Field: "f", Registry: "x"},
		"a registry with a space":         {Name: "A_FILE", As: "docker-config", Registry: "a b"},
		"a server of another":             {Name: "A_FILE", Field: "f", Server: "https://x"},
		"a server in the clear":           {Name: "A_FILE", As: "kubeconfig", Server: "http://x"},
		"a server with a password":        {Name: "A_FILE", As: "kubeconfig", Server: "https://u:p@x"},
		"a CA that is none":               {Name: "A_FILE", As: "kubeconfig", CA: "x"},
		"a default of a ready shape":      {Name: "A_FILE", As: "docker-config", Default: &preset},
		"a prefix that isn't one":         {Name: "*", Prefix: "a-"},
		"a prefix that runs code":         {Name: "*", Prefix: "LD_"},
		"a glob with more than *":         {Name: "*", Fields: "[ab]"},
		"what no lease may set":           {Name: "PATH", Field: "f"},
		"not a name":                      {Name: "A-B", Field: "f"},
		"a pointer to no field":           {Name: "A", Field: "/"},
		"a pointer badly escaped":         {Name: "A", Field: "/a~b"},
	} {
		if err := v.Check(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzTemplate(f *testing.F) {
	f.Add("postgres://{{.username | urlquery}}:{{json .password}}@{{index . \"a.b\"}}", "va lue")
	f.Add(`{{- (.a | base64) | trim -}} {{"x"}}`, "\xff")
	f.Fuzz(func(t *testing.T, text, value string) {
		tmpl, err := shape.ParseTemplate(text)
		if err != nil {
			return
		}
		out, err := shape.Apply([]shape.Var{{Name: "A", Template: tmpl, File: "a_file"}}, fieldsOf("a", value, "username", value, "password", value, "a.b", value))
		if err == nil && (len(out.Env) != 1 || out.Env[0].Value.Len() > 4<<20) {
			t.Errorf("%q makes %d variables", text, len(out.Env))
		}
	})
}

func FuzzPick(f *testing.F) {
	f.Add("/f/a~1b/0", `{"a/b":[1,"x"]}`, "hex", "json")
	f.Fuzz(func(t *testing.T, field, value, decode, as string) {
		v := shape.Var{Name: "A", Field: field, Decode: decode, As: as}
		if v.Check() != nil {
			return
		}
		out, err := shape.Apply([]shape.Var{v}, fieldsOf("f", value))
		if err != nil {
			if len(value) > 24 && strings.Contains(err.Error(), value) {
				t.Errorf("the error holds the value: %v", err)
			}
			return
		}
		if as == "json" && !json.Valid(out.Env[0].Value.Reveal()) {
			t.Errorf("as json: %q", out.Env[0].Value.Reveal())
		}
	})
}
