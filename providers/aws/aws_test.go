package aws_test

import (
	"maps"
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

type keys = map[string]any

const (
	loginRole  = "arn:aws:iam::" + awstest.Account + ":role/runenv-prod"
	otherLogin = "arn:aws:iam::" + awstest.Account + ":role/runenv-other"
	deployRole = "arn:aws:iam::" + awstest.Account + ":role/deploy"
	farRole    = "arn:aws:iam::" + awstest.Account + ":role/ci/far"
	minioRole  = "arn:minio:iam:::role/dummy-internal"
)

// newServer is a fake AWS that trusts an issuer, with roles for the RunEnv
// roles prod and other.
func newServer(t *testing.T) (*awstest.Server, *awstest.Issuer) {
	t.Helper()
	s, i := awstest.New(t), awstest.NewIssuer(t)
	s.Trust(i.URL, "sts.amazonaws.com")
	s.SetRole(loginRole, awstest.Role{Issuer: i.URL, Subject: "runenv:role:prod", Audience: "sts.amazonaws.com"})
	s.SetRole(otherLogin, awstest.Role{Issuer: i.URL, Subject: "runenv:role:other"})
	s.SetRole(deployRole, awstest.Role{Issuer: i.URL, Subject: "runenv:role:prod", MaxSession: 4 * time.Hour})
	s.SetRole(farRole, awstest.Role{Principals: []string{deployRole}, ExternalID: "x-1"})
	s.SetRole(minioRole, awstest.Role{Issuer: i.URL, Subject: "runenv:role:prod"})
	s.PutSecret("ci/npm", `{"token":"c4n4ry-old"}`)
	s.PutSecret("ci/npm", `{"token":"c4n4ry-token","port":5432,"none":null,"opts": {"a": "<&>"}}`)
	s.PutSecret("ci/plain", "c4n4ry-plain")
	s.PutBinary("ci/binary", []byte("c4n4ry\x00\xff"))
	s.PutParameter("/ci/shop/dsn", "SecureString", "c4n4ry-dsn-old")
	s.PutParameter("/ci/shop/dsn", "SecureString", "c4n4ry-dsn")
	s.PutParameter("/ci/shop/deep/url", "String", "c4n4ry-url")
	s.PutParameter("/ci/shop/list", "StringList", "c4n4ry-a,c4n4ry-b")
	s.PutParameter("/ci/shopping", "String", "c4n4ry-shopping")
	s.PageSize = 2
	return s, i
}

// at are the keys of a provider on the fake.
func at(s *awstest.Server, more ...keys) keys {
	k := keys{
		"region": "eu-west-1", "auth": keys{"role": "arn:aws:iam::" + awstest.Account + ":role/runenv-{{role.name}}"},
		"endpoints": keys{"sts": s.URL, "secretsmanager": s.URL, "ssm": s.URL, "ecr": s.URL, "iam": s.URL},
	}
	for _, m := range more {
		maps.Copy(k, m)
	}
	return k
}

func open(t *testing.T, k keys) providers.Provider {
	t.Helper()
	p, err := aws.Type().Open(providers.Config{Name: "aws", Decode: providertest.Keys(k)})
	if err != nil {
		t.Fatal(err)
	}
	aws.Hasten(p)
	return p
}

// A session is a provider on a fake, with the tokens of the RunEnv role prod.
type session struct {
	providers.Provider
	server *awstest.Server
	issuer *awstest.Issuer
	login  secret.Value
}

func newSession(t *testing.T, more ...keys) *session {
	t.Helper()
	s, i := newServer(t)
	return &session{Provider: open(t, at(s, more...)), server: s, issuer: i}
}

func (s *session) logIn(t *testing.T) *session {
	t.Helper()
	l, err := s.Provider.(providers.Loginer).Login(t.Context(), s.loginRequest("prod"))
	if err != nil {
		t.Fatal(err)
	}
	s.login = l.Handle
	return s
}

func (s *session) loginRequest(role string) providers.LoginRequest {
	return providers.LoginRequest{Role: role, Session: "s-1", Marker: "runenv-login-1", Tokens: s.issuer.Tokens(role, "s-1")}
}

func (s *session) define(t *testing.T, k keys) providers.Definition {
	t.Helper()
	def, err := s.Define(providertest.Keys(k))
	if err != nil {
		t.Fatal(err)
	}
	return def
}

func (s *session) issueFor(t *testing.T, def providers.Definition, ttl time.Duration) (*providers.Credential, error) {
	t.Helper()
	return s.Issue(t.Context(), providers.Request{
		Definition: def, Vars: providers.Vars{"project.name": "shop", "role.name": "prod", "project.vars.account": awstest.Account},
		TTL: ttl, Marker: "runenv-lease-1", Login: s.login, Role: "prod", Session: "s-1", Tokens: s.issuer.Tokens("prod", "s-1"),
	})
}

func (s *session) issue(t *testing.T, k keys) (*providers.Credential, error) {
	t.Helper()
	def, ttl := s.define(t, k), 15*time.Minute
	if b, ok := def.(providers.Bounder); ok {
		ttl, _ = b.Bounds()
	}
	return s.issueFor(t, def, ttl)
}

func field(t *testing.T, c *providers.Credential, err error, name string) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return string(c.Fields[name].Reveal())
}

var stsFields = map[string]string{
	"access_key_id": "", "secret_access_key": "", "session_token": "", "region": "eu-west-1", "expiration": "", "account_id": awstest.Account,
}

func TestConformance(t *testing.T) {
	tests := []struct {
		name      string
		define    keys
		fields    map[string]string
		revocable providers.Revocability
		reference *ref.Ref
		offline   bool // it asks nothing of AWS
	}{
		{name: "assume role", define: keys{"assume_role": "arn:aws:iam::{{project.vars.account}}:role/deploy"}, fields: stsFields, revocable: providers.Expires},
		{name: "via", define: keys{"assume_role": farRole, "via": deployRole, "external_id": "x-1"}, fields: stsFields, revocable: providers.Expires},
		{
			name: "secret", define: keys{"secret": "ci/npm"}, revocable: providers.Static, reference: &ref.Ref{Scheme: "aws-sm", Path: "ci/npm"},
			fields: map[string]string{"token": "c4n4ry-token", "port": "5432", "opts": `{"a":"<&>"}`, "value": ""},
		},
		{
			name: "parameter", define: keys{"parameter": "/ci/{{project.name}}/dsn"}, revocable: providers.Static,
			reference: &ref.Ref{Scheme: "aws-ssm", Path: "ci/shop/dsn"}, fields: map[string]string{"value": "c4n4ry-dsn"},
		},
		{
			name: "parameters by path", define: keys{"parameters_path": "/ci/shop"}, revocable: providers.Static,
			fields: map[string]string{"dsn": "c4n4ry-dsn", "deep/url": "c4n4ry-url", "list": "c4n4ry-a,c4n4ry-b"},
		},
		{
			name: "rds", define: keys{"rds": keys{"host": "db.example.com", "port": 5432, "user": "ci"}}, revocable: providers.Expires, offline: true,
			fields: map[string]string{"token": "", "host": "db.example.com", "port": "5432", "user": "ci", "region": "eu-west-1"},
		},
		{
			name: "ecr", define: keys{"ecr": keys{}}, revocable: providers.Expires,
			fields: map[string]string{"username": "AWS", "password": "", "registry": awstest.Account + ".dkr.ecr.eu-west-1.amazonaws.com"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			providertest.Run(t, providertest.Harness{New: func(t *testing.T) *providertest.Backend {
				s, i := newServer(t)
				b := &providertest.Backend{
					Provider:     open(t, at(s)),
					Define:       providertest.Keys(tt.define),
					Vars:         providers.Vars{"project.name": "shop", "project.vars.account": awstest.Account},
					Fields:       maps.Clone(tt.fields),
					Public:       []string{"region", "account_id", "expiration", "host", "user", "registry", "username"},
					Revocability: tt.revocable,
					LimitsTTL:    true,
					Tokens:       i.Tokens("prod", "s-1"),
					Canaries:     []string{"c4n4ry", "eyJ"},
					Requests:     func() int { return len(s.Requests()) },
					Log:          s.Log,
					Reference:    tt.reference,
				}
				if tt.offline {
					b.Log = nil
					return b
				}
				b.Inject, b.Alive = s.InjectFault, func() (leases, logins int) {
					for _, x := range s.Sessions() {
						switch {
						case strings.HasPrefix(x.Name, "runenv-login"):
							logins++
						case x.RoleARN == tt.define["assume_role"] || x.RoleARN == deployRole && tt.define["via"] == nil:
							leases++
						}
					}
					return leases, logins
				}
				b.More = []providertest.Fault{providertest.HalfReply, providertest.ErrorIn200, providertest.ThrottleOnce}
				if tt.define["assume_role"] == nil {
					b.More = append(b.More, providertest.LoginExpired)
				}
				return b
			}})
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	with := func(more keys) keys {
		k := keys{"region": "eu-west-1"}
		maps.Copy(k, more)
		return k
	}
	tests := []struct {
		name string
		keys keys
		want string
	}{
		{"no region", keys{}, "`region` is missing"},
		{"a zone", keys{"region": "eu-west-1a"}, "`region` isn't"},
		{"a host", keys{"region": "eu-west-1.evil.example"}, "`region` isn't"},
		{"an unknown key", with(keys{"profile": "x"}), "unknown key profile"},
		{"an unknown method", with(keys{"auth": keys{"method": "c4n4ry"}}), "unknown `method`"},
		{"ci outside of a run", with(keys{"auth": keys{"method": "ci"}}), "`method: ci`"},
		{"a role for default", with(keys{"auth": keys{"method": "default", "role": loginRole}}), "belong to"},
		{"an audience for default", with(keys{"auth": keys{"method": "default", "audience": "x"}}), "belong to"},
		{"an audience with a blank", with(keys{"auth": keys{"audience": "a b"}}), "`audience`"},
		{"a role that is a user", with(keys{"auth": keys{"role": "arn:aws:iam::111122223333:user/x"}}), "isn't the ARN"},
		{"a role without an account", with(keys{"auth": keys{"role": "arn:aws:iam:::role/x"}}), "no account id"},
		{"a role of another partition", with(keys{"auth": keys{"role": "arn:aws-cn:iam::111122223333:role/x"}}), "partition aws-cn"},
		{"a role by project", with(keys{"auth": keys{"role": "arn:aws:iam::111122223333:role/{{project.name}}"}}), "more than role.name"},
		{"a role in a strange account", with(keys{"allowed_account_ids": []string{"999988887777"}, "auth": keys{"role": loginRole}}), "isn't among `allowed_account_ids`"},
		{"no accounts", with(keys{"allowed_account_ids": []string{}}), "empty"},
		{"an account that isn't one", with(keys{"allowed_account_ids": []string{"1111"}}), "`allowed_account_ids`"},
		{"an account twice", with(keys{"allowed_account_ids": []string{awstest.Account, awstest.Account}}), "each once"},
		{"http", with(keys{"endpoints": keys{"sts": "http://sts.example.com"}}), "plain http"},
		{"http to a name that means loopback", with(keys{"endpoints": keys{"ssm": "http://localhost:1"}}), "plain http"},
		{"a path", with(keys{"endpoints": keys{"ecr": "https://x.example/a"}}), "isn't an origin"},
		{"a user", with(keys{"endpoints": keys{"iam": "https://u:c4n4ry@x.example"}}), "isn't an origin"},
		{"another scheme", with(keys{"endpoints": keys{"secretsmanager": "ftp://x.example"}}), "neither https"},
		{"a ca_file that isn't there", with(keys{"ca_file": "testdata/none.pem"}), "`ca_file`"},
		{"a ca_file without a certificate", with(keys{"ca_file": "aws_test.go"}), "no certificate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := aws.Type().Open(providers.Config{Name: "aws", Decode: providertest.Keys(tt.keys)})
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "c4n4ry") {
				t.Errorf("Open = %v, want one with %q and no value", err, tt.want)
			}
		})
	}
}

func TestOpenAccepts(t *testing.T) {
	for _, k := range []keys{
		{"region": "eu-west-1"},
		{"region": "us-gov-west-1", "auth": keys{"role": "arn:aws-us-gov:iam::111122223333:role/a/b/runenv-{{role.name}}"}},
		{"region": "cn-north-1", "auth": keys{"method": "oidc", "role": "arn:aws-cn:iam::111122223333:role/x", "audience": "sts.amazonaws.com.cn"}},
		{"region": "us-east-1", "auth": keys{"role": minioRole}, "endpoints": keys{"sts": "http://[::1]:9000"}},
		{"region": "us-east-1", "endpoints": keys{"sts": "https://vpce-1.sts.us-east-1.vpce.amazonaws.com/"}},
	} {
		open(t, k)
	}
}

func TestDefineRefuses(t *testing.T) {
	p := open(t, keys{"region": "eu-west-1", "auth": keys{"role": loginRole}, "allowed_account_ids": []string{awstest.Account}})
	bare := open(t, keys{"region": "eu-west-1"})
	policy := func(v any) keys { return keys{"assume_role": deployRole, "policy": v} }
	tests := []struct {
		name string
		p    providers.Provider
		keys keys
		want string
	}{
		{"nothing", p, keys{}, "needs one of"},
		{"two kinds", p, keys{"secret": "a", "ecr": keys{}}, "are two leases"},
		{"a stage for a parameter", p, keys{"parameter": "/a", "stage": "x"}, "`stage` doesn't belong"},
		{"a policy for a secret", p, keys{"secret": "a", "policy": "{}"}, "`policy` doesn't belong"},
		{"a version for a path", p, keys{"parameters_path": "/a", "version": "1"}, "`version` doesn't belong"},
		{"a region beside ecr", p, keys{"ecr": keys{}, "region": "eu-west-1"}, "write `region` into `ecr`"},
		{"a region that isn't one", p, keys{"secret": "a", "region": "moon"}, "`region` isn't"},
		{"a role's name", p, keys{"assume_role": "deploy"}, "isn't the ARN"},
		{"a strange account", p, keys{"assume_role": "arn:aws:iam::999988887777:role/deploy"}, "isn't among `allowed_account_ids`"},
		{"a strange account on the way", p, keys{"assume_role": deployRole, "via": "arn:aws:iam::999988887777:role/x"}, "`via` is in an account"},
		{"a role of another partition", p, keys{"assume_role": deployRole, "region": "us-gov-west-1"}, "partition"},
		{"an external id without a chain", p, keys{"assume_role": deployRole, "external_id": "x-1"}, "`external_id` is for"},
		{"a session name with a slash", p, keys{"assume_role": deployRole, "session_name": "a/b"}, "`session_name`"},
		{"a policy that is no mapping", p, policy("[]"), "is no policy"},
		{"a policy that is no JSON", p, policy("{c4n4ry"), "neither a mapping nor JSON"},
		{"a policy and more", p, policy(`{"Version":"2012-10-17","Statement":[]} {}`), "behind its JSON"},
		{"a policy without a version", p, policy(keys{"Statement": []any{}}), "Version"},
		{"a policy that is too long", p, policy(keys{"Version": "2012-10-17", "Statement": strings.Repeat("x", 2048)}), "at most 2048"},
		{"a policy with an unknown name", p, policy(keys{"Version": "2012-10-17", "Statement": []any{"{{branch}}"}}), "unknown name"},
		{"a policy's ARN that is a role's", p, keys{"assume_role": deployRole, "policy_arns": []providers.Template{template(t, deployRole)}}, "ARNs of policies"},
		{"a secret's name with a blank", p, keys{"secret": "a b"}, "neither a plain name"},
		{"a secret that climbs", p, keys{"secret": "a//b"}, "neither a plain name"},
		{"a parameter's ARN for a secret", p, keys{"secret": "arn:aws:ssm:eu-west-1:111122223333:parameter/a"}, "isn't the ARN"},
		{"a secret in a strange account", p, keys{"secret": "arn:aws:secretsmanager:eu-west-1:999988887777:secret:a"}, "isn't among `allowed_account_ids`"},
		{"a secret in two regions", p, keys{"secret": awstest.SecretARN("eu-west-1", "a"), "region": "us-east-1"}, "two regions"},
		{"a stage as a version", p, keys{"secret": "a", "version": "AWSPREVIOUS"}, "is a `stage`"},
		{"a version and a stage", p, keys{"secret": "a", "version": strings.Repeat("a", 32), "stage": "b"}, "only one of them"},
		{"a relative path", p, keys{"parameters_path": "ci"}, "`parameters_path`"},
		{"a parameter's version zero", p, keys{"parameter": "/a", "version": "0"}, "`version`"},
		{"a host with a port", p, keys{"rds": keys{"host": "db:1", "port": 1, "user": "u"}}, "`rds.host`"},
		{"no port", p, keys{"rds": keys{"host": "db", "user": "u"}}, "`rds.port`"},
		{"no user", p, keys{"rds": keys{"host": "db", "port": 1}}, "`rds.user`"},
		{"a registry that isn't one", p, keys{"ecr": keys{"registry_id": "x"}}, "`ecr.registry_id`"},
		{"a strange registry", p, keys{"ecr": keys{"registry_id": "999988887777"}}, "isn't among"},
		{"a secret without a login", bare, keys{"secret": "a"}, "set `auth.role`"},
		{"rds without a login", bare, keys{"rds": keys{"host": "db", "port": 1, "user": "u"}}, "set `auth.role`"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			def, err := tt.p.Define(providertest.Keys(tt.keys))
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "c4n4ry") {
				t.Errorf("Define = %v, %v, want an error with %q and no value", def, err, tt.want)
			}
		})
	}
}

func template(t *testing.T, text string) providers.Template {
	t.Helper()
	tmpl, err := providers.ParseTemplate(text)
	if err != nil {
		t.Fatal(err)
	}
	return tmpl
}
