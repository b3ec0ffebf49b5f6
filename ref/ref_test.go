package ref_test

import (
	"errors"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/ref"
)

const (
	secretARN    = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/db-AbC123"
	parameterARN = "arn:aws:ssm:eu-west-1:111122223333:parameter/prod/db/url"
	versionID    = "EXAMPLE1-90ab-cdef-fedc-ba987EXAMPLE"
)

func TestParse(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, in, want string }{
		{"canonical", "vault://secret/ci/npm?version=3#token", "vault://secret/ci/npm?version=3#token"},
		{"fragment before query", "vault://secret/ci/npm#token?version=3", "vault://secret/ci/npm?version=3#token"},
		{"whole secret", "vault://database/creds/ro", "vault://database/creds/ro"},
		{"a pointer", "vault://secret/ci/app#/config/db/host", "vault://secret/ci/app#/config/db/host"},
		{"an escaped pointer", "vault://secret/ci/app#/a~1b/c~0d", "vault://secret/ci/app#/a~1b/c~0d"},
		{"a provider", "vault://secret/ci/npm?version=3&provider=vault-eu#t", "vault://secret/ci/npm?provider=vault-eu&version=3#t"},
		{"a canonical path keeps its data", "vault://secret/data/ci#t", "vault://secret/data/ci#t"},
		{"aws-sm by name", "aws-sm://prod/db#password", "aws-sm://prod/db#password"},
		{"aws-sm by stage", "aws-sm://prod/db?stage=AWSPREVIOUS", "aws-sm://prod/db?stage=AWSPREVIOUS"},
		{"aws-sm by id", "aws-sm://prod/db?version=" + versionID, "aws-sm://prod/db?version=" + versionID},
		{"the stage that is meant anyway", "aws-sm://prod/db?stage=AWSCURRENT", "aws-sm://prod/db"},
		{"aws-ssm", "aws-ssm://prod/db/url?version=7", "aws-ssm://prod/db/url?version=7"},
		{"gcp-sm", "gcp-sm://shop-1/token#7", "gcp-sm://shop-1/token#7"},
		{"gcp-sm, a field", "gcp-sm://shop-1/app?field=/db/host&provider=gcp-eu#prod", "gcp-sm://shop-1/app?field=/db/host&provider=gcp-eu#prod"},
		{"gcp-sm, the latest", "gcp-sm://shop-1/token#latest", "gcp-sm://shop-1/token"},
		{"gcp-sm, a domain's project", "gcp-sm://example.com:shop/token", "gcp-sm://example.com:shop/token"},

		{"vault-action", "secret/data/ci/npm token", "vault://secret/ci/npm#token"},
		{"vault-action, KV version 1", "secret/ci/npm token", "vault://secret/ci/npm#token"},
		{"vault-action, a path named data", "secret/data/data/ci token", "vault://secret/data/ci#token"},
		{"vault-action, nested", "secret/data/ci/app db.host", "vault://secret/ci/app#/db/host"},
		{"vault-action, quoted", `secret/data/ci/tls "tls.crt"`, "vault://secret/ci/tls#tls.crt"},
		{"vault-action, dynamic", "database/creds/ro username", "vault://database/creds/ro#username"},
		{"bank-vaults", "vault:secret/data/ci/npm#token", "vault://secret/ci/npm#token"},
		{"bank-vaults, a version", "vault:secret/data/ci/npm#token#3", "vault://secret/ci/npm?version=3#token"},
		{"a secret's ARN", secretARN, "aws-sm://" + secretARN},
		{"ECS, a field", secretARN + ":password", "aws-sm://" + secretARN + "#password"},
		{"ECS, empty places", secretARN + ":password::", "aws-sm://" + secretARN + "#password"},
		{"ECS, a stage", secretARN + ":password:AWSPREVIOUS:", "aws-sm://" + secretARN + "?stage=AWSPREVIOUS#password"},
		{"ECS, a version", secretARN + ":::" + versionID, "aws-sm://" + secretARN + "?version=" + versionID},
		{"a parameter's ARN", parameterARN, "aws-ssm://" + parameterARN},
		{"a parameter's version", parameterARN + ":3", "aws-ssm://" + parameterARN + "?version=3"},
		{"another partition", strings.Replace(secretARN, ":aws:", ":aws-us-gov:", 1), "aws-sm://" + strings.Replace(secretARN, ":aws:", ":aws-us-gov:", 1)},
		{"berglas", "sm://shop-1/token", "gcp-sm://shop-1/token"},
		{"berglas, a version", "sm://shop-1/token#7", "gcp-sm://shop-1/token#7"},
		{"sm, a version in the path", "sm://shop-1/token/7", "gcp-sm://shop-1/token#7"},
		{"sm, Google's name", "sm://projects/shop-1/secrets/token/versions/7", "gcp-sm://shop-1/token#7"},
		{"Google's name", "projects/shop-1/secrets/token/versions/latest", "gcp-sm://shop-1/token"},
		{"Google's name, no version", "projects/shop-1/secrets/token", "gcp-sm://shop-1/token"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, err := ref.Parse(tt.in)
			if err != nil {
				t.Fatalf("Parse(%q): %v", tt.in, err)
			}
			if got := r.String(); got != tt.want {
				t.Errorf("Parse(%q).String() = %q, want %q", tt.in, got, tt.want)
			}
			if again, err := ref.Parse(r.String()); err != nil || again != r {
				t.Errorf("Parse(%q) = %+v, %v, want %+v", r.String(), again, err, r)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		"", "db-readonly", "secret/data/ci/npm", "npm token", "https://example.com/a/b#c", "vault:", "vault://", "vault:///a/b",
		"vault://secret", "vault://secret/", "vault://secret//npm", "vault://secret/../sys/raw#x", "vault://secret/./npm", "vault://secret/npm/",
		"vault://secret/%2e%2e/npm", "vault://secret/a%2fb", "vault://secret/n pm#x", "vault://secret/npm#a b", "vault://secret/npm#\x00",
		"vault://secret/npm\n#x", "vault://secret/npm#x\n", "vault://secret/é/npm", "vault://secret/{{project.name}}/npm", "vault://secret/*/npm", "vault://secret/npm#*",
		"vault://secret/npm#", "vault://secret/npm?", "vault://secret/npm#a#b", "vault://secret/npm?version=1?version=2", "vault://secret/npm?version=1&version=2",
		"vault://secret/npm?version=latest", "vault://secret/npm?version=03", "vault://secret/npm?version=0", "vault://secret/npm?stage=x", "vault://secret/npm?x=1", "vault://secret/npm?version=",
		"vault://secret/npm?field=x", "vault://secret/npm?provider=Vault", "vault://secret/npm?provider=-a", "vault://secret/npm?provider=a..b",
		"vault://secret/npm#/", "vault://secret/npm#/a//b", "vault://secret/npm#/a/", "vault://secret/npm#/a~2b", "vault://secret/npm#a/b", "vault://secret/npm#a~0",
		"VAULT://secret/npm#a", "vault ://secret/npm", " vault://secret/npm",
		"aws-sm://prod/db?version=3", "aws-sm://prod/db?stage=" + versionID, "aws-sm://prod/db?stage=A&version=" + versionID,
		"aws-sm://" + secretARN + ":password", "aws-ssm://" + secretARN, "aws-sm://" + parameterARN, "aws-sm://arn:aws:s3:eu-west-1:111122223333:secret:x",
		"arn:aws:s3:::bucket", "arn:aws:secretsmanager:eu-west-1:111:secret:x", "arn:aws:secretsmanager::111122223333:secret:x", "arn:aws:secretsmanager:eu-west-1:111122223333:secret",
		secretARN + ":a:AWSPREVIOUS:" + versionID, secretARN + ":a:b:c:d", secretARN + ":/a", secretARN + ":a:" + versionID + ":", secretARN + ":a::7", parameterARN + ":", parameterARN + ":1:2", "arn:aws:ssm:eu-west-1:111122223333:parameter/",
		"gcp-sm://token", "gcp-sm://a/b/c", "gcp-sm://a/b?version=7", "sm://token", "sm://a/b/", "sm://a/b#", "sm://a/b/7#7", "sm://projects/a/secrets/b/versions/7#7",
		"projects/a/secrets/b/versions/", "projects/a/secrets", "projects/a/locations/eu/secrets/b", "projects/../secrets/b",
		"vault:secret/npm", "vault:secret/npm#a#", "vault:secret/npm#/a", ">>vault:secret/npm#a", "secret/npm \"a", "secret/npm /a", "secret/npm ", "secret/npm a | B", "secret/npm ${.a}",
		"vault://secret/" + strings.Repeat("a", ref.MaxBytes) + "#x", "vault://secret/npm#" + strings.Repeat("a", 257),
	} {
		r, err := ref.Parse(in)
		if err == nil {
			t.Errorf("Parse(%q) = %+v, want an error", in, r)
		} else if len(in) > 14 && strings.Contains(err.Error(), in) {
			t.Errorf("Parse(%q): the error holds the text: %v", in, err)
		}
	}
	if _, err := ref.Parse("db-readonly"); !errors.Is(err, ref.ErrNotReference) {
		t.Errorf("Parse of a lease's name = %v, want %v", err, ref.ErrNotReference)
	}
}

func TestCredentialIsOneForAllFields(t *testing.T) {
	t.Parallel()
	a, b := mustParse(t, "vault://database/creds/ro#username"), mustParse(t, "database/creds/ro password")
	if a.Credential() != b.Credential() || a == b {
		t.Errorf("the credentials of %v and %v are %v and %v, want one", a, b, a.Credential(), b.Credential())
	}
	if other := mustParse(t, "vault://database/creds/ro?provider=other#username"); other.Credential() == a.Credential() {
		t.Errorf("two providers have one credential: %v", other.Credential())
	}
}

func mustParse(t testing.TB, text string) ref.Ref {
	t.Helper()
	r, err := ref.Parse(text)
	if err != nil {
		t.Fatalf("Parse(%q): %v", text, err)
	}
	return r
}

func TestParseAssignments(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, in string
		want     []string // VARIABLE reference
	}{
		{"nothing", " ;\n ; ", nil},
		{"named", "NPM_TOKEN=vault://secret/ci/npm?version=3#token", []string{"NPM_TOKEN vault://secret/ci/npm?version=3#token"}},
		{"a paste of vault-action", "\n  secret/data/ci/npm token | NPM_TOKEN ;\n  secret/data/ci/db   user|DB_USER;secret/data/ci/db password\n", []string{
			"NPM_TOKEN vault://secret/ci/npm#token", "DB_USER vault://secret/ci/db#user", "PASSWORD vault://secret/ci/db#password"}},
		{"all keys", "secret/data/ci/app * | APP_ ; secret/data/ci/web *", []string{"APP_* vault://secret/ci/app", "* vault://secret/ci/web"}},
		{"prefix", "APP_*=aws-sm://prod/app\n*=aws-sm://prod/web", []string{"APP_* aws-sm://prod/app", "* aws-sm://prod/web"}},
		{"no name: the field", "vault://secret/ci/npm#npm-token", []string{"NPM_TOKEN vault://secret/ci/npm#npm-token"}},
		{"no name: the end of the pointer", "vault://secret/ci/app#/config/db/host", []string{"HOST vault://secret/ci/app#/config/db/host"}},
		{"no name: the end of the path", "gcp-sm://shop-1/npm-token#7", []string{"NPM_TOKEN gcp-sm://shop-1/npm-token#7"}},
		{"no name: a digit", "vault://secret/ci/npm#2fa", []string{"_2FA vault://secret/ci/npm#2fa"}},
		{"an equals sign in the path", "vault://secret/a=b#c", []string{"C vault://secret/a=b#c"}},
		{"blanks around =", "A = vault://secret/b#c", []string{"A vault://secret/b#c"}},
		{"a name behind a bar", "vault://secret/b#c | A", []string{"A vault://secret/b#c"}},
		{"CRLF", "vault://secret/b#c\r\nvault://secret/b#d\r\n", []string{"C vault://secret/b#c", "D vault://secret/b#d"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := ref.ParseAssignments(tt.in)
			if err != nil {
				t.Fatalf("ParseAssignments(%q): %v", tt.in, err)
			}
			var texts []string
			for _, a := range got {
				texts = append(texts, a.Variable+" "+a.Ref.String())
			}
			if diff := cmp.Diff(tt.want, texts); diff != "" {
				t.Errorf("ParseAssignments(%q) (-want +got):\n%s", tt.in, diff)
			}
		})
	}
	for _, in := range []string{
		"db-readonly", "A=db-readonly", "A=vault://secret/b#c | B", "secret/b c |", "secret/b c | 1A", "secret/b c | A-B", "A_*=vault://secret/b#c", "vault://secret/b#c | A_*",
		"=vault://secret/b#c", "1A=vault://secret/b#c", "A*B=vault://secret/b#c", "A=B=vault://secret/b#c", "vault://secret/b#c, vault://secret/b#d", "secret/b c | A | B",
		strings.Repeat("vault://secret/b#c;", 101), strings.Repeat("A", 129) + "=vault://secret/b#c",
	} {
		if got, err := ref.ParseAssignments(in); err == nil {
			t.Errorf("ParseAssignments(%q) = %v, want an error", in, got)
		}
	}
	if _, err := ref.ParseAssignments("vault://secret/b#c;;A=hunter2"); err == nil || !strings.HasPrefix(err.Error(), "reference 2: ") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("ParseAssignments: %v, want an error about reference 2 without its text", err)
	}
}

func TestT08GlobsMatchNoMoreThanTheySay(t *testing.T) {
	t.Parallel()
	tests := []struct {
		glob string
		yes  []string
		no   []string
	}{
		{"vault://secret/ci/shop/**",
			[]string{"vault://secret/ci/shop/npm", "vault://secret/ci/shop/a/b/c#d", "vault://secret/ci/shop/npm?version=3#/a/b"},
			[]string{"vault://secret/ci/shop", "vault://secret/ci/shop2/npm", "vault://secret/ci", "vault://kv/secret/ci/shop/npm", "aws-sm://secret/ci/shop/npm", "vault://secret/ci/shop/npm?provider=vault-2", "vault://secret/ci/shop/a:b"}},
		{"vault://secret/ci/*/npm",
			[]string{"vault://secret/ci/shop/npm"},
			[]string{"vault://secret/ci/shop/pay/npm", "vault://secret/ci/npm", "vault://secret/ci/shop:pay/npm"}},
		{"vault://secret/ci/shop-*",
			[]string{"vault://secret/ci/shop-a", "vault://secret/ci/shop-"},
			[]string{"vault://secret/ci/shop", "vault://secret/ci/shop-a/b", "vault://secret/ci/xshop-a"}},
		{"vault://secret/**/npm",
			[]string{"vault://secret/a/npm", "vault://secret/a/b/npm"},
			[]string{"vault://secret/npm", "vault://secret/a/npm2"}},
		{"vault://secret/ci/npm#token",
			[]string{"vault://secret/ci/npm#token", "vault://secret/ci/npm#/token/a", "vault://secret/ci/npm#/token", "vault://secret/ci/npm?version=2#token"},
			[]string{"vault://secret/ci/npm", "vault://secret/ci/npm#token2", "vault://secret/ci/npm#/token2/a", "vault://secret/ci/npm#/a/token"}},
		{"vault://secret/ci/app#/config/db",
			[]string{"vault://secret/ci/app#/config/db", "vault://secret/ci/app#/config/db/host"},
			[]string{"vault://secret/ci/app#config", "vault://secret/ci/app#/config", "vault://secret/ci/app#/config/db2", "vault://secret/ci/app"}},
		{"vault://secret/ci/npm?provider=vault-2",
			[]string{"vault://secret/ci/npm?provider=vault-2#t"},
			[]string{"vault://secret/ci/npm#t", "vault://secret/ci/npm?provider=vault-3#t"}},
		{"gcp-sm://shop-1/*?field=token",
			[]string{"gcp-sm://shop-1/a?field=token#7", "gcp-sm://shop-1/a?field=token"},
			[]string{"gcp-sm://shop-1/a#7", "gcp-sm://shop-2/a?field=token"}},
		{"aws-sm://prod*/**",
			[]string{"aws-sm://prod/db", "aws-sm://prod-eu/db/x"},
			[]string{"aws-sm://" + secretARN, "aws-sm://stage/db"}},
		{"aws-sm://arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/**",
			[]string{"aws-sm://" + secretARN, secretARN + ":password"},
			[]string{"aws-sm://" + strings.Replace(secretARN, "1111", "4444", 1), "aws-sm://" + strings.Replace(secretARN, "eu-west-1", "us-east-1", 1), "aws-sm://prod/db-AbC123"}},
	}
	for _, tt := range tests {
		g, err := ref.ParseGlob(tt.glob)
		if err != nil {
			t.Errorf("ParseGlob(%q): %v", tt.glob, err)
			continue
		}
		for _, in := range tt.yes {
			if !g.Match(mustParse(t, in)) {
				t.Errorf("%s doesn't match %s", tt.glob, in)
			}
		}
		for _, in := range tt.no {
			if g.Match(mustParse(t, in)) {
				t.Errorf("%s matches %s", tt.glob, in)
			}
		}
	}
	if (ref.Glob{}).Match(ref.Ref{}) {
		t.Error("the zero Glob matches")
	}
}

func TestMatchCredentialForgetsTheField(t *testing.T) {
	t.Parallel()
	g, err := ref.ParseGlob("vault://database/creds/ro#username")
	if err != nil {
		t.Fatal(err)
	}
	if !g.MatchCredential(mustParse(t, "vault://database/creds/ro")) || g.MatchCredential(mustParse(t, "vault://database/creds/rw")) {
		t.Error("MatchCredential doesn't judge by the path alone")
	}
}

func TestT08GlobsThatGrantTooMuchDoNotParse(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		"", "*", "**", "vault://", "vault://**", "vault://*", "vault://*/ci", "vault://**/npm", "*://secret/ci", "https://secret/ci", "vault://secret/a**", "vault://secret/**b/c",
		"vault://secret/../x", "vault://secret//x", "vault://secret/[a]", "vault://secret/a?", "vault://secret/ci?version=1", "vault://secret/ci#*", "gcp-sm://a/b#7", "vault://secret/%2a",
		"vault://secret/ci?provider=*", "vault://secret/{{project.name}}/x", "aws-sm://**", "vault://secret/" + strings.Repeat("a/", 63) + "b", "vault://" + strings.Repeat("a", ref.MaxBytes),
	} {
		if g, err := ref.ParseGlob(in); err == nil {
			t.Errorf("ParseGlob(%q) = %+v, want an error", in, g)
		}
	}
}

// TestT08GlobsAgreeWithRegularExpressions compares with another way to say the
// same, over texts from a small alphabet.
func TestT08GlobsAgreeWithRegularExpressions(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(parts ...string) string { return parts[rng.IntN(len(parts))] }
	matched := 0
	for range 20000 {
		glob, path := pick("a", "a*", "b"), pick("a", "ab", "b")
		for range rng.IntN(4) {
			glob += pick("/", "/", ":") + pick("a", "b", "*", "**", "a*", "*b", "a*b*")
		}
		for range rng.IntN(5) {
			path += pick("/", "/", "/", ":") + pick("a", "b", "ab", "aab")
		}
		g, err := ref.ParseGlob("aws-sm://" + glob)
		if err != nil {
			t.Fatalf("ParseGlob(%q): %v", glob, err)
		}
		var expr strings.Builder
		for _, token := range regexp.MustCompile(`[^/:]+|[/:]`).FindAllString(glob, -1) {
			switch token {
			case "**":
				expr.WriteString(`[^/:]+(/[^/:]+)*`)
			case "*":
				expr.WriteString(`[^/:]+`)
			default:
				expr.WriteString(strings.ReplaceAll(token, "*", `[^/:]*`))
			}
		}
		want := regexp.MustCompile("^" + expr.String() + "$").MatchString(path)
		if want {
			matched++
		}
		if got := g.Match(ref.Ref{Scheme: "aws-sm", Path: path}); got != want {
			t.Fatalf("%q.Match(%q) = %v, want %v", glob, path, got, want)
		}
	}
	if matched < 500 {
		t.Errorf("%d of the pairs matched: this test shows too little", matched)
	}
}

func FuzzParse(f *testing.F) {
	for _, in := range []string{
		"vault://secret/ci/npm?version=3&provider=v#token", "aws-sm://prod/db?stage=X#/a/b", "gcp-sm://p/n?field=f#7", secretARN + ":f:S:", parameterARN + ":3",
		"secret/data/ci/npm token", "vault:secret/data/x#k#3", "sm://projects/P/secrets/S/versions/V",
	} {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in string) {
		r, err := ref.Parse(in)
		if err != nil {
			return
		}
		text := r.String()
		again, err := ref.Parse(text)
		if err != nil || again != r {
			t.Errorf("Parse(%q) = %+v, whose text %q gives %+v, %v", in, r, text, again, err)
		}
		if strings.ContainsAny(text, "%\x00\n\r\t *{}|;") || strings.Contains(r.Path, "//") || strings.Contains("/"+r.Path+"/", "/../") || strings.Contains("/"+r.Path+"/", "/./") {
			t.Errorf("Parse(%q) lets through %q", in, text)
		}
		if c, err := ref.Parse(r.Credential().String()); err != nil || c != r.Credential() {
			t.Errorf("the credential of %q reads as %+v, %v", text, c, err)
		}
	})
}

func FuzzParseAssignments(f *testing.F) {
	f.Add("A=vault://secret/b#c;secret/data/x * | P_\n")
	f.Fuzz(func(t *testing.T, in string) {
		got, err := ref.ParseAssignments(in)
		if err != nil {
			return
		}
		for _, a := range got {
			again, err := ref.ParseAssignments(a.Variable + "=" + a.Ref.String())
			if err != nil || len(again) != 1 || again[0] != a {
				t.Errorf("%+v written out gives %+v, %v", a, again, err)
			}
		}
	})
}

func FuzzGlob(f *testing.F) {
	f.Add("vault://secret/**#x", "vault://secret/ci/npm#x")
	f.Fuzz(func(t *testing.T, glob, in string) {
		g, err := ref.ParseGlob(glob)
		if err != nil {
			return
		}
		r, err := ref.Parse(in)
		if err != nil || !g.Match(r) {
			return
		}
		scheme, rest, _ := strings.Cut(glob, "://")
		fixed, _, _ := strings.Cut(rest, "*")
		fixed, _, _ = strings.Cut(fixed, "?")
		fixed, _, _ = strings.Cut(fixed, "#")
		if r.Scheme != scheme || !strings.HasPrefix(r.Path, fixed) {
			t.Errorf("%q matches %q", glob, in)
		}
	})
}
