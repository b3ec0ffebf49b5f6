package aws_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/aws"
	"github.com/runenv/action/providers/aws/awstest"
	"github.com/runenv/action/providers/providertest"
	"github.com/runenv/action/ref"
	"github.com/runenv/action/secret"
)

func TestSecrets(t *testing.T) {
	t.Parallel()
	s := newSession(t).logIn(t)
	old := s.server.PutSecret("ci/many", `{"a":"1"}`)
	s.server.PutSecret("ci/many", `{"a":"2","value":"own"}`)
	tests := []struct {
		name  string
		keys  keys
		field string
		want  string
	}{
		{"the latest", keys{"secret": "ci/many"}, "a", "2"},
		{"a field that is called as the whole", keys{"secret": "ci/many"}, "value", "own"},
		{"by version", keys{"secret": "ci/many", "version": old}, "a", "1"},
		{"by stage", keys{"secret": "ci/many", "stage": "AWSPREVIOUS"}, "a", "1"},
		{"by stage, the latest", keys{"secret": "ci/many", "stage": "AWSCURRENT"}, "a", "2"},
		{"by ARN, in its region", keys{"secret": awstest.SecretARN("us-east-2", "ci/many")}, "a", "2"},
		{"by template", keys{"secret": "ci/{{project.name}}"}, "value", "of shop"},
		{"whole", keys{"secret": "ci/npm"}, "value", `{"token":"c4n4ry-token","port":5432,"none":null,"opts": {"a": "<&>"}}`},
		{"no JSON", keys{"secret": "ci/plain"}, "value", "c4n4ry-plain"},
		{"binary", keys{"secret": "ci/binary"}, "value", "c4n4ry\x00\xff"},
		{"a parameter", keys{"parameter": "/ci/shop/dsn"}, "value", "c4n4ry-dsn"},
		{"a parameter's version", keys{"parameter": "/ci/shop/dsn", "version": "1"}, "value", "c4n4ry-dsn-old"},
		{"a parameter by ARN", keys{"parameter": "arn:aws:ssm:eu-west-1:" + awstest.Account + ":parameter/ci/shop/dsn"}, "value", "c4n4ry-dsn"},
	}
	s.server.PutSecret("ci/shop", "of shop")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cred, err := s.issue(t, tt.keys)
			if got := field(t, cred, err, tt.field); got != tt.want {
				t.Errorf("%s = %q, want %q", tt.field, got, tt.want)
			}
		})
	}
	cred, err := s.issue(t, keys{"secret": "ci/npm"})
	if _, ok := cred.Fields["none"]; ok || err != nil {
		t.Errorf("a null became a field (%v)", err)
	}
}

func TestNotFound(t *testing.T) {
	t.Parallel()
	s := newSession(t).logIn(t)
	for _, k := range []keys{
		{"secret": "ci/none"},
		{"secret": "ci/npm", "version": strings.Repeat("a", 36)},
		{"secret": "ci/npm", "stage": "NEXT"},
		{"parameter": "/ci/none"},
		{"parameter": "/ci/shop/dsn", "version": "9"},
		{"parameters_path": "/ci/none"},
	} {
		if cred, err := s.issue(t, k); cred != nil || !errors.Is(err, providers.ErrNotFound) || hint(err) == "" {
			t.Errorf("%v = %v, %v (%s), want %v with a hint", k, cred, err, hint(err), providers.ErrNotFound)
		}
	}
}

func TestRegionPerLease(t *testing.T) {
	t.Parallel()
	s := newSession(t).logIn(t)
	for _, k := range []keys{
		{"secret": "ci/npm", "region": "us-east-2"}, {"parameter": "/ci/shop/dsn", "region": "us-east-2"},
		{"parameters_path": "/ci/shop", "region": "us-east-2"}, {"ecr": keys{"region": "us-east-2"}},
		{"rds": keys{"host": "db", "port": 1, "user": "u", "region": "us-east-2"}},
	} {
		before := len(s.server.Requests())
		cred, err := s.issue(t, k)
		if err != nil {
			t.Errorf("%v: %v", k, err)
			continue
		}
		for _, r := range s.server.Requests()[before:] {
			if r.Region != "us-east-2" {
				t.Errorf("%v: signed for %s", k, r.Region)
			}
		}
		if k["rds"] != nil {
			if got, err := s.server.VerifyRDS(string(cred.Fields["token"].Reveal())); err != nil || got.Region != "us-east-2" {
				t.Errorf("the RDS token is for %+v, %v", got, err)
			}
		}
	}
}

func TestPagesArePutTogether(t *testing.T) {
	t.Parallel()
	s := newSession(t).logIn(t)
	for i := range 25 {
		s.server.PutParameter(fmt.Sprintf("/many/p%02d", i), "SecureString", fmt.Sprint(i))
	}
	before := len(s.server.Requests())
	cred, err := s.issue(t, keys{"parameters_path": "/many"})
	if err != nil || len(cred.Fields) != 25 || field(t, cred, err, "p24") != "24" {
		t.Errorf("Issue gave %d parameters, %v, want 25", len(cred.Fields), err)
	}
	if n := len(s.server.Requests()) - before; n != 13 {
		t.Errorf("%d pages, want 13", n)
	}
	for name, page := range map[string]string{
		"the same page for ever": `{"Parameters":[],"NextToken":"x"}`,
		"another's parameter":    `{"Parameters":[{"Name":"/manyother/x","Value":"c4n4ry"}]}`,
		"a parameter twice":      `{"Parameters":[{"Name":"/many/x","Value":"c4n4ry"},{"Name":"/many/x","Value":"c4n4ry"}]}`,
		"no value":               `{"Parameters":[{"Name":"/many/x"}]}`,
	} {
		s.server.Inject(awstest.Raw(http.StatusOK, page))
		if cred, err := s.issue(t, keys{"parameters_path": "/many"}); cred != nil || !errors.Is(err, providers.ErrMalformed) || !providers.Void(err) {
			t.Errorf("%s: %v, %v, want %v", name, cred, err, providers.ErrMalformed)
		}
	}
	n := 0
	s.server.Inject(func(*awstest.Server, http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			n++
			_, _ = fmt.Fprintf(w, `{"Parameters":[{"Name":"/many/%d","Value":"x"}],"NextToken":"%d"}`, n, n)
		})
	})
	if cred, err := s.issue(t, keys{"parameters_path": "/many"}); cred != nil || !errors.Is(err, providers.ErrMalformed) || n != 100 {
		t.Errorf("pages without end: %v, %v after %d", cred, err, n)
	}
}

func TestMalformedAnswers(t *testing.T) {
	t.Parallel()
	s := newSession(t).logIn(t)
	ecr := func(token, end, registry string) string {
		b, _ := json.Marshal(keys{"authorizationData": []keys{{"authorizationToken": token, "expiresAt": json.Number(end), "proxyEndpoint": registry}}})
		return string(b)
	}
	soon := fmt.Sprint(time.Now().Add(time.Hour).Unix())
	tests := []struct {
		name, body string
		keys       keys
	}{
		{"a secret without a value", `{"ARN":"x"}`, keys{"secret": "a"}},
		{"another version", `{"SecretString":"c4n4ry","VersionId":"b"}`, keys{"secret": "a", "version": strings.Repeat("a", 32)}},
		{"a parameter without a value", `{"Parameter":{"Name":"x"}}`, keys{"parameter": "/a"}},
		{"no parameter", `{}`, keys{"parameter": "/a"}},
		{"no login to ECR", `{"authorizationData":[]}`, keys{"ecr": keys{}}},
		{"ECR's token that isn't base64", ecr("!", soon, "https://1.example"), keys{"ecr": keys{}}},
		{"ECR's token without a colon", ecr("QVdT", soon, "https://1.example"), keys{"ecr": keys{}}},
		{"ECR's token with an end in the past", ecr("QVdTOng=", "1", "https://1.example"), keys{"ecr": keys{}}},
		{"no registry", ecr("QVdTOng=", soon, ""), keys{"ecr": keys{}}},
		{"another registry", ecr("QVdTOng=", soon, "https://999988887777.example"), keys{"ecr": keys{"registry_id": awstest.Account}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.server.Inject(awstest.Raw(http.StatusOK, tt.body))
			if cred, err := s.issue(t, tt.keys); cred != nil || !errors.Is(err, providers.ErrMalformed) || strings.Contains(err.Error(), "c4n4ry") {
				t.Errorf("Issue = %v, %v, want %v", cred, err, providers.ErrMalformed)
			}
		})
	}
}

func TestRDS(t *testing.T) {
	t.Parallel()
	s := newSession(t).logIn(t)
	cred, err := s.issue(t, keys{"rds": keys{"host": "{{project.name}}.cluster.example.com", "port": 5432, "user": "ci_{{project.name}}"}})
	token := field(t, cred, err, "token")
	got, err := s.server.VerifyRDS(token)
	want := awstest.DatabaseLogin{Host: "shop.cluster.example.com:5432", User: "ci_shop", Region: "eu-west-1", RoleARN: loginRole}
	if err != nil || got != want {
		t.Errorf("the token says %+v, %v, want %+v", got, err, want)
	}
	for name, broken := range map[string]string{
		"another host": strings.Replace(token, "shop.cluster", "evil.cluster", 1),
		"another user": strings.Replace(token, "DBUser=ci_shop", "DBUser=admin", 1),
	} {
		if _, err := s.server.VerifyRDS(broken); err == nil || broken == token {
			t.Errorf("%s: the fake takes it", name)
		}
	}
	if left := time.Until(cred.Expires); left > 15*time.Minute || left < 14*time.Minute {
		t.Errorf("the token lives %v", left)
	}
}

// TestRDSEndsWithItsLogin: what is signed with a session's credentials isn't
// good for longer than they are.
func TestRDSEndsWithItsLogin(t *testing.T) {
	t.Parallel()
	server, issuer := newServer(t)
	now := time.Now()
	p, err := aws.Type().Open(providers.Config{Decode: providertest.Keys(at(server)), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	s := (&session{Provider: p, server: server, issuer: issuer}).logIn(t)
	now = now.Add(10 * time.Minute)
	cred, err := s.issue(t, keys{"rds": keys{"host": "db", "port": 1, "user": "u"}})
	if err != nil || cred.Expires.After(now.Add(5*time.Minute)) {
		t.Errorf("Issue = %+v, %v, want an end within five minutes", cred, err)
	}
}

func TestECROfAnotherAccount(t *testing.T) {
	t.Parallel()
	s := newSession(t).logIn(t)
	cred, err := s.issue(t, keys{"ecr": keys{"registry_id": "999988887777"}})
	if got := field(t, cred, err, "registry"); got != "999988887777.dkr.ecr.eu-west-1.amazonaws.com" {
		t.Errorf("registry = %s", got)
	}
}

// TestT18NothingOfAWSInErrors: AWS's messages hold ARNs and what was sent.
func TestT18NothingOfAWSInErrors(t *testing.T) {
	t.Parallel()
	s := newSession(t).logIn(t)
	s.server.PutSecret("ci/json", `{"a":"c4n4ry`)
	for _, code := range []string{"AccessDeniedException", "DecryptionFailure", "InvalidRequestException", "UnrecognizedClientException", "ResourceNotFoundException", "Nobody c4n4ry", ""} {
		for _, status := range []int{http.StatusBadRequest, http.StatusForbidden, http.StatusInternalServerError} {
			s.server.Inject(awstest.Refuse(status, code, "c4n4ry arn:aws:iam::"+awstest.Account+":role/c4n4ry"))
			_, err := s.issue(t, keys{"secret": awstest.SecretARN("eu-west-1", "ci/npm")})
			if err == nil || !providers.Void(err) {
				t.Errorf("%q with %d = %v, want one that is void", code, status, err)
				continue
			}
			if text := fmt.Sprintf("%v %+v %#v %s", err, err, err, hint(err)); strings.Contains(text, "c4n4ry") || strings.Contains(text, awstest.Account) || strings.Contains(text, "arn:") {
				t.Errorf("%q with %d shows AWS's words: %s", code, status, text)
			}
		}
	}
}

func TestReferences(t *testing.T) {
	t.Parallel()
	s := newSession(t).logIn(t)
	old := s.server.PutSecret("ci/v", "one")
	s.server.PutSecret("ci/v", "two")
	s.server.PutParameter("single", "String", "of one name")
	tests := []struct {
		ref  ref.Ref
		want string
	}{
		{ref.Ref{Scheme: "aws-sm", Path: "ci/v"}, "two"},
		{ref.Ref{Scheme: "aws-sm", Path: "ci/v", Version: old}, "one"},
		{ref.Ref{Scheme: "aws-sm", Path: "ci/v", Version: "AWSPREVIOUS"}, "one"},
		{ref.Ref{Scheme: "aws-sm", Path: awstest.SecretARN("us-east-2", "ci/v")}, "two"},
		{ref.Ref{Scheme: "aws-ssm", Path: "ci/shop/dsn"}, "c4n4ry-dsn"},
		{ref.Ref{Scheme: "aws-ssm", Path: "/ci/shop/dsn", Version: "1"}, "c4n4ry-dsn-old"},
		{ref.Ref{Scheme: "aws-ssm", Path: "single"}, "of one name"},
	}
	for _, tt := range tests {
		def, err := s.Provider.(providers.Referencer).Reference(tt.ref)
		if err != nil {
			t.Errorf("Reference(%+v) = %v", tt.ref, err)
			continue
		}
		cred, err := s.issueFor(t, def, time.Hour)
		if got := field(t, cred, err, "value"); got != tt.want {
			t.Errorf("%+v is %q, want %q", tt.ref, got, tt.want)
		}
	}
	for _, r := range []ref.Ref{
		{Scheme: "gcp-sm", Path: "a"}, {Scheme: "aws-sm"}, {Scheme: "aws-sm", Path: "a/{{project.name}}"}, {Scheme: "aws-sm", Path: "a", Version: "b c"},
		{Scheme: "aws-sm", Path: "../a b"}, {Scheme: "aws-ssm", Path: "a?b"}, {Scheme: "aws-ssm", Path: "a", Version: "0"},
	} {
		if def, err := s.Provider.(providers.Referencer).Reference(r); err == nil {
			t.Errorf("Reference(%+v) = %v, want an error", r, def)
		}
	}
}

func FuzzHandle(f *testing.F) {
	for _, s := range []string{"", "{}", "null", `{"role_arn":"` + farRole + `"}`, `{"access_key_id":"a","secret_access_key":"b","session_token":"c","expires":1,"role_arn":"` + farRole + `"}`} {
		f.Add(s)
	}
	p, err := aws.Type().Open(providers.Config{Decode: providertest.Keys(keys{"region": "eu-west-1", "auth": keys{"role": loginRole}})})
	if err != nil {
		f.Fatal(err)
	}
	def, err := p.Define(providertest.Keys(keys{"rds": keys{"host": "db", "port": 1, "user": "u"}}))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h := secret.FromString(text)
		steps, err := p.(providers.Container).Contain(t.Context(), "s-1", []secret.Value{h}, false)
		if err == nil && (len(steps) != 1 || !strings.HasPrefix(steps[0].Target, "arn:") || strings.ContainsAny(steps[0].Undo, "\n;|&$`")) {
			t.Errorf("Contain(%q) = %+v", text, steps)
		}
		if _, err := p.Issue(t.Context(), providers.Request{Definition: def, TTL: 15 * time.Minute, Login: h}); err != nil && !errors.Is(err, providers.ErrInvalid) && !errors.Is(err, providers.ErrDenied) {
			t.Errorf("Issue under %q = %v", text, err)
		}
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add(`{"Version":"2012-10-17","Statement":[{"a":1.5e3,"b":"{{project.name}}"}]}`)
	f.Add(`{"Version":"1","Statement":"}}"}`)
	p, err := aws.Type().Open(providers.Config{Decode: providertest.Keys(keys{"region": "eu-west-1"})})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		def, err := p.Define(providertest.Keys(keys{"assume_role": deployRole, "policy": text}))
		if err != nil {
			return
		}
		var doc map[string]any
		if json.Unmarshal([]byte(text), &doc) != nil || doc["Statement"] == nil {
			t.Errorf("Define takes the policy %q", text)
		}
		for _, tmpl := range def.Templates() {
			if _, err := tmpl.Expand(providers.Vars{"project.name": "shop", "role.name": "prod", "environment": "e"}); err != nil && !strings.Contains(tmpl.String(), "project.vars.") {
				t.Errorf("template %q: %v", tmpl, err)
			}
		}
	})
}
