package aws_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/aws"
	"github.com/runenv/action/providers/aws/awstest"
	"github.com/runenv/action/providers/providertest"
	"github.com/runenv/action/secret"
)

func hint(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func TestAssumeRoleSaysWho(t *testing.T) {
	t.Parallel()
	s := newSession(t)
	def := s.define(t, keys{
		"assume_role": deployRole, "session_name": "{{project.name}}", "region": "eu-central-1",
		"policy":      keys{"Version": "2012-10-17", "Statement": []any{keys{"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::{{project.name}}/<*>"}}},
		"policy_arns": []providers.Template{template(t, "arn:aws:iam::aws:policy/ReadOnlyAccess"), template(t, "arn:aws:iam::{{project.vars.account}}:policy/ci/p")},
	})
	cred, err := s.issueFor(t, def, 2*time.Hour+500*time.Millisecond)
	if got := field(t, cred, err, "region"); got != "eu-central-1" {
		t.Errorf("region = %q", got)
	}
	got := s.server.Sessions()[0]
	want := awstest.Session{
		RoleARN: deployRole, Name: "shop-runenv-lease-1", SourceIdentity: "s-1", AccessKeyID: field(t, cred, err, "access_key_id"),
		Tags:       map[string]string{"role": "prod", "session_id": "s-1", "project": "shop", "run_id": "42"},
		Policy:     `{"Statement":[{"Action":"s3:*","Effect":"Allow","Resource":"arn:aws:s3:::shop/<*>"}],"Version":"2012-10-17"}`,
		PolicyARNs: []string{"arn:aws:iam::aws:policy/ReadOnlyAccess", "arn:aws:iam::" + awstest.Account + ":policy/ci/p"},
		Duration:   2 * time.Hour, Expires: got.Expires,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the session (-want +got):\n%s", diff)
	}
	if want := got.Expires.Truncate(time.Second); !cred.Expires.Equal(want) {
		t.Errorf("Expires = %v, want %v", cred.Expires, want)
	}
}

func TestSessionNameIsCut(t *testing.T) {
	t.Parallel()
	s := newSession(t)
	if _, err := s.issue(t, keys{"assume_role": deployRole, "session_name": strings.Repeat("n", 60)}); err != nil {
		t.Fatal(err)
	}
	if got := s.server.Sessions()[0].Name; len(got) != 64 || !strings.HasSuffix(got, "n-runenv-lease-1") {
		t.Errorf("session name = %q, want 64 characters that end in the marker", got)
	}
}

func TestPolicyAsJSONText(t *testing.T) {
	t.Parallel()
	s := newSession(t)
	text := `{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "arn:aws:s3:::{{project.name}}/*", "Condition": {"NumericLessThan": {"s3:max-keys": 10}}}]}`
	if _, err := s.issue(t, keys{"assume_role": deployRole, "policy": text}); err != nil {
		t.Fatal(err)
	}
	want := `{"Statement":[{"Action":"*","Condition":{"NumericLessThan":{"s3:max-keys":10}},"Effect":"Allow","Resource":"arn:aws:s3:::shop/*"}],"Version":"2012-10-17"}`
	if got := s.server.Sessions()[0].Policy; got != want {
		t.Errorf("policy = %s, want %s", got, want)
	}
}

func TestViaChainsRoles(t *testing.T) {
	t.Parallel()
	s := newSession(t)
	if _, err := s.issue(t, keys{"assume_role": farRole, "via": deployRole, "external_id": "x-1"}); err != nil {
		t.Fatal(err)
	}
	got := s.server.Sessions()
	if len(got) != 2 || got[1].Via != deployRole || got[1].SourceIdentity != "s-1" || got[1].Tags["project"] != "shop" || got[1].Tags["session_id"] != "s-1" {
		t.Errorf("sessions = %+v, want one by another with source identity and tags", got)
	}
	if _, most := s.define(t, keys{"assume_role": farRole, "via": deployRole}).(providers.Bounder).Bounds(); most != time.Hour {
		t.Errorf("a chained role lives up to %v, want an hour", most)
	}
	_, err := s.issue(t, keys{"assume_role": farRole, "via": deployRole, "external_id": "x-2"})
	if !errors.Is(err, providers.ErrDenied) || !strings.Contains(hint(err), "external_id") {
		t.Errorf("with a wrong external id = %v (%s)", err, hint(err))
	}
}

// The role in between is assumed when the other is refused: a record that
// nothing was issued would be wrong for a quarter of an hour.
func TestT14ARefusedChainIsNotVoid(t *testing.T) {
	t.Parallel()
	s := newSession(t)
	_, err := s.issue(t, keys{"assume_role": farRole, "via": deployRole, "external_id": "x-2"})
	if got := len(s.server.Sessions()); got != 1 || !errors.Is(err, providers.ErrDenied) || providers.Void(err) {
		t.Errorf("Issue = %v, void: %v, with %d sessions alive; want %v, not void, and the first's", err, providers.Void(err), got, providers.ErrDenied)
	}
	_, err = s.issue(t, keys{"assume_role": farRole, "via": strings.Replace(deployRole, "deploy", "none", 1), "external_id": "x-1"})
	if got := len(s.server.Sessions()); got != 1 || !errors.Is(err, providers.ErrDenied) || !providers.Void(err) {
		t.Errorf("Issue by a role that isn't there = %v, void: %v, with %d sessions; want %v, void", err, providers.Void(err), got, providers.ErrDenied)
	}
}

func TestTTLIsWithinBounds(t *testing.T) {
	t.Parallel()
	s := newSession(t)
	s.logIn(t)
	before := len(s.server.Requests())
	for _, k := range []keys{{"assume_role": deployRole}, {"ecr": keys{}}, {"rds": keys{"host": "db", "port": 1, "user": "u"}}} {
		def := s.define(t, k)
		least, _ := def.(providers.Bounder).Bounds()
		if _, err := s.issueFor(t, def, least-time.Second); !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("%v for less than %v = %v, want %v", k, least, err, providers.ErrInvalid)
		}
	}
	if got := len(s.server.Requests()); got != before {
		t.Errorf("%d requests were sent", got-before)
	}
	_, err := s.issueFor(t, s.define(t, keys{"assume_role": deployRole}), 5*time.Hour)
	if !errors.Is(err, providers.ErrInvalid) || !strings.Contains(hint(err), "MaxSessionDuration") {
		t.Errorf("longer than the role allows = %v (%s)", err, hint(err))
	}
}

// TestT34RolesAreApart: what one RunEnv role's token can reach, another's can't.
func TestT34RolesAreApart(t *testing.T) {
	t.Parallel()
	s := newSession(t)
	other := newSession(t)
	l := s.Provider.(providers.Loginer)
	tests := []struct {
		name   string
		role   string
		tokens providers.TokenSource
		want   error
	}{
		{"its own", "prod", s.issuer.Tokens("prod", "s-1"), nil},
		{"the other's role", "other", s.issuer.Tokens("prod", "s-1"), providers.ErrDenied},
		{"the other's token", "prod", s.issuer.Tokens("other", "s-1"), providers.ErrDenied},
		{"a prefix of its own", "prod", s.issuer.Tokens("pro", "s-1"), providers.ErrDenied},
		{"another issuer's", "prod", other.issuer.Tokens("prod", "s-1"), providers.ErrDenied},
		{"for another audience", "prod", func(ctx context.Context, _ string) (string, error) {
			return s.issuer.Tokens("prod", "s-1")(ctx, "https://vault.example.com")
		}, providers.ErrDenied},
		{"tampered with", "prod", func(ctx context.Context, a string) (string, error) {
			token, err := s.issuer.Tokens("prod", "s-1")(ctx, a)
			return token[:len(token)-6] + "AAAAAA", err
		}, providers.ErrDenied},
		{"expired", "prod", func(_ context.Context, a string) (string, error) {
			return s.issuer.Sign(keys{"sub": "runenv:role:prod", "aud": a, "exp": time.Now().Add(-time.Minute).Unix()})
		}, providers.ErrDenied},
		{"no token at all", "prod", func(context.Context, string) (string, error) { return "junk", nil }, providers.ErrDenied},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := s.loginRequest(tt.role)
			req.Tokens = tt.tokens
			login, err := l.Login(t.Context(), req)
			if !errors.Is(err, tt.want) || (login != nil) != (tt.want == nil) {
				t.Errorf("Login = %v, %v, want %v", login, err, tt.want)
			}
			if err != nil && hint(err) == "" {
				t.Errorf("no hint beside %v", err)
			}
		})
	}
}

// TestT34AccountsAreChecked: a role in a strange account is refused before
// anything is sent, and a session of one after.
func TestT34AccountsAreChecked(t *testing.T) {
	t.Parallel()
	s := newSession(t, keys{"allowed_account_ids": []string{awstest.Account}})
	def := s.define(t, keys{"assume_role": "arn:aws:iam::{{project.vars.account}}:role/deploy"})
	req := providers.Request{
		Definition: def, Vars: providers.Vars{"project.vars.account": "999988887777"}, TTL: time.Hour, Marker: "runenv-lease-1",
		Role: "prod", Session: "s-1", Tokens: s.issuer.Tokens("prod", "s-1"),
	}
	if cred, err := s.Issue(t.Context(), req); cred != nil || !errors.Is(err, providers.ErrDenied) {
		t.Errorf("Issue in a strange account = %v, %v", cred, err)
	}
	if n := len(s.server.Requests()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
	s.logIn(t)
	if cred, err := s.issue(t, keys{"assume_role": deployRole}); err != nil {
		t.Errorf("Issue in the allowed account = %v, %v", cred, err)
	}
	s.server.Lie(awstest.Lie{Account: "999988887777"})
	for _, k := range []keys{{"assume_role": deployRole}, {"secret": "ci/npm"}, {"parameter": "/ci/shop/dsn"}, {"parameters_path": "/ci/shop"}, {"ecr": keys{}}} {
		if cred, err := s.issue(t, k); cred != nil || err == nil || strings.Contains(err.Error(), "999988887777") {
			t.Errorf("%v from a strange account = %v, %v", k, cred, err)
		}
	}
	if _, err := s.Provider.(providers.Loginer).Login(t.Context(), s.loginRequest("prod")); !errors.Is(err, providers.ErrMalformed) {
		t.Errorf("Login to a strange account = %v, want %v", err, providers.ErrMalformed)
	}
}

func TestLies(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		lie  awstest.Lie
		keys keys
		want error
	}{
		{"a longer session", awstest.Lie{Longer: time.Hour}, keys{"assume_role": deployRole}, providers.ErrMalformed},
		{"a session that has ended", awstest.Lie{Longer: -time.Hour}, keys{"assume_role": deployRole}, providers.ErrMalformed},
		{"no ARN", awstest.Lie{NoARN: true}, keys{"assume_role": deployRole}, providers.ErrMalformed},
		{"a longer login to ECR", awstest.Lie{Longer: time.Hour}, keys{"ecr": keys{}}, providers.ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSession(t).logIn(t)
			s.server.Lie(tt.lie)
			if cred, err := s.issue(t, tt.keys); cred != nil || !errors.Is(err, tt.want) || providers.Void(err) {
				t.Errorf("Issue = %v, %v, want %v, and not void", cred, err, tt.want)
			}
		})
	}
	t.Run("a clock that is ahead", func(t *testing.T) {
		t.Parallel()
		s := newSession(t)
		s.server.Lie(awstest.Lie{Longer: 2 * time.Minute})
		cred, err := s.issue(t, keys{"assume_role": deployRole})
		if err != nil || cred.Expires.After(time.Now().Add(15*time.Minute)) {
			t.Errorf("Issue = %+v, %v, want an end within what was asked for", cred, err)
		}
	})
}

// TestMinIO: its roles have no account, and it doesn't say whose session it
// gave.
func TestMinIO(t *testing.T) {
	t.Parallel()
	s := newSession(t, keys{"auth": keys{"role": minioRole}})
	s.server.Lie(awstest.Lie{NoARN: true})
	cred, err := s.logIn(t).issue(t, keys{"assume_role": minioRole})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := cred.Fields["account_id"]; ok {
		t.Error("an account_id where there is none")
	}
	got, err := s.Provider.(providers.Checker).Check(t.Context(), s.loginRequest("prod"))
	if err != nil || got.As != minioRole {
		t.Errorf("Check = %+v, %v, want %s", got, err, minioRole)
	}
}

// TestTenLeasesCostOneLogin, and all of them may run at once.
func TestTenLeasesCostOneLogin(t *testing.T) {
	t.Parallel()
	s := newSession(t).logIn(t)
	def := s.define(t, keys{"secret": "ci/npm"})
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := s.issueFor(t, def, time.Hour); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(s.server.Sessions()); n != 1 {
		t.Errorf("%d sessions of STS, want 1", n)
	}
}

func TestAnExpiredLoginIsntUsed(t *testing.T) {
	t.Parallel()
	server, issuer := newServer(t)
	now := time.Now()
	p, err := aws.Type().Open(providers.Config{Decode: providertest.Keys(at(server)), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	s := (&session{Provider: p, server: server, issuer: issuer}).logIn(t)
	now = now.Add(16 * time.Minute)
	before := len(server.Requests())
	if _, err := s.issue(t, keys{"secret": "ci/npm"}); !errors.Is(err, providers.ErrDenied) || len(server.Requests()) != before {
		t.Errorf("Issue = %v after %d requests, want %v and none", err, len(server.Requests())-before, providers.ErrDenied)
	}
}

// TestDefaultChain uses the environment, and only there.
func TestDefaultChain(t *testing.T) {
	server, issuer := newServer(t)
	id, key := server.User("broker")
	server.SetRole(farRole, awstest.Role{Principals: []string{"arn:aws:iam::" + awstest.Account + ":user/broker"}, ExternalID: "x-1"})
	t.Setenv("AWS_ACCESS_KEY_ID", id)
	t.Setenv("AWS_SECRET_ACCESS_KEY", key)
	t.Setenv("AWS_SESSION_TOKEN", "")
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_REGION", "ap-south-1")
	t.Setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
	t.Setenv("AWS_PROFILE", "")
	auth := keys{"auth": keys{"method": "default"}}
	s := &session{Provider: open(t, at(server, auth, keys{"allowed_account_ids": []string{awstest.Account}})), server: server, issuer: issuer}
	for _, ability := range []bool{func() bool { _, ok := s.Provider.(providers.Loginer); return ok }(), func() bool { _, ok := s.Provider.(providers.Audienced); return ok }()} {
		if ability {
			t.Error("a provider of the default chain is a Loginer or Audienced")
		}
	}
	if def := s.define(t, keys{"secret": "ci/npm"}); !def.(providers.Loginless).Loginless() {
		t.Error("a definition with the default chain wants a login")
	}
	cred, err := s.issue(t, keys{"assume_role": farRole, "external_id": "x-1"})
	if got := field(t, cred, err, "region"); got != "eu-west-1" {
		t.Errorf("region = %s: the environment's was used", got)
	}
	if x := server.Sessions()[0]; x.SourceIdentity != "s-1" || x.Tags["role"] != "prod" || x.Tags["project"] != "shop" {
		t.Errorf("session %+v, want source identity and tags", x)
	}
	for _, k := range []keys{{"secret": "ci/npm"}, {"parameter": "/ci/shop/dsn"}, {"parameters_path": "/ci/shop"}, {"ecr": keys{}}} {
		if _, err := s.issue(t, k); err != nil {
			t.Errorf("%v: %v", k, err)
		}
	}
	asked := 0
	for _, r := range server.Requests() {
		if r.Action == "sts:GetCallerIdentity" {
			asked++
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times who that is, want once", asked)
	}
	got, err := s.Provider.(providers.Checker).Check(t.Context(), s.loginRequest("prod"))
	if err != nil || got.As != "arn:aws:iam::"+awstest.Account+":user/broker" || len(got.Notes) == 0 {
		t.Errorf("Check = %+v, %v", got, err)
	}

	strange := &session{Provider: open(t, at(server, auth, keys{"allowed_account_ids": []string{"999988887777"}})), server: server, issuer: issuer}
	before := len(server.Requests())
	if _, err := strange.issue(t, keys{"secret": "ci/npm"}); !errors.Is(err, providers.ErrDenied) || !providers.Void(err) {
		t.Errorf("in a strange account = %v, want %v", err, providers.ErrDenied)
	}
	if reqs := server.Requests()[before:]; len(reqs) != 1 || reqs[0].Action != "sts:GetCallerIdentity" {
		t.Errorf("requests %+v, want but the question who that is", reqs)
	}

	// By web identity the same environment steers nothing.
	web := (&session{Provider: open(t, at(server)), server: server, issuer: issuer}).logIn(t)
	cred, err = web.issue(t, keys{"secret": "ci/npm"})
	if field(t, cred, err, "token") != "c4n4ry-token" {
		t.Error("another secret")
	}
	for _, r := range server.Requests()[before+1:] {
		if r.AccessKeyID == id || r.Region != "" && r.Region != "eu-west-1" {
			t.Errorf("request %+v is steered by the environment", r)
		}
	}

	// An operator contains a session as who they are.
	contain := web.Provider.(providers.Container)
	steps, err := contain.Contain(t.Context(), "s-1", []secret.Value{web.login}, true)
	if err != nil || len(steps) != 1 || !steps[0].Done || steps[0].Target != loginRole {
		t.Fatalf("Contain = %+v, %v", steps, err)
	}
	if _, err := web.issue(t, keys{"secret": "ci/npm"}); !errors.Is(err, providers.ErrDenied) {
		t.Errorf("Issue of a contained session = %v, want %v", err, providers.ErrDenied)
	}
	req := web.loginRequest("prod")
	req.Session, req.Tokens = "s-2", issuer.Tokens("prod", "s-2")
	free, err := web.Provider.(providers.Loginer).Login(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	web.login = free.Handle
	if _, err := web.issue(t, keys{"secret": "ci/npm"}); err != nil {
		t.Errorf("another session is cut off too: %v", err)
	}
	// What can't be contained from here keeps nobody from containing the rest.
	abroad, broken := secret.FromString(`{"role_arn":"arn:aws:iam::999988887777:role/deploy"}`), secret.FromString("{}")
	steps, err = contain.Contain(t.Context(), "s-2", []secret.Value{broken, abroad, free.Handle}, true)
	if !errors.Is(err, providers.ErrDenied) || !errors.Is(err, providers.ErrInvalid) || len(steps) != 2 || steps[0].Done || !steps[1].Done || steps[1].Target != loginRole {
		t.Errorf("Contain with another account = %+v, %v, want the role of ours done, %v and %v", steps, err, providers.ErrDenied, providers.ErrInvalid)
	}
	if _, err := web.issue(t, keys{"secret": "ci/npm"}); !errors.Is(err, providers.ErrDenied) {
		t.Errorf("Issue of the session contained beside = %v, want %v", err, providers.ErrDenied)
	}
	narrow := open(t, at(server, keys{"allowed_account_ids": []string{"999988887777"}, "auth": keys{"role": "arn:aws:iam::999988887777:role/x"}})).(providers.Container)
	before = len(server.Requests())
	if steps, err := narrow.Contain(t.Context(), "s-2", []secret.Value{free.Handle}, true); !errors.Is(err, providers.ErrDenied) || len(steps) != 1 || steps[0].Done || len(server.Requests()) != before+1 {
		t.Errorf("Contain in an account that isn't allowed = %+v, %v, want the step printed and not done", steps, err)
	}
}

func TestDefaultChainWithoutCredentials(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	s := newSession(t, keys{"auth": keys{"method": "default"}})
	_, err := s.issue(t, keys{"secret": "ci/npm"})
	if !errors.Is(err, providers.ErrUnavailable) || !providers.Void(err) || hint(err) == "" {
		t.Errorf("Issue = %v (%s), want %v, void, with a hint", err, hint(err), providers.ErrUnavailable)
	}
}

func TestCI(t *testing.T) {
	t.Parallel()
	server, issuer := newServer(t)
	server.SetRole(deployRole, awstest.Role{Issuer: issuer.URL, Subject: "repo:acme/shop:ref:refs/heads/main"})
	ci := func(_ context.Context, audience string) (string, error) {
		return issuer.Sign(keys{"sub": "repo:acme/shop:ref:refs/heads/main", "aud": audience})
	}
	k := at(server, keys{"auth": keys{"method": "ci", "role": deployRole}})
	p, err := aws.Type().Open(providers.Config{Decode: providertest.Keys(k), CI: ci})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.(providers.Audienced).Audience(); got != "" {
		t.Errorf("Audience() = %q: the broker's token isn't used", got)
	}
	s := (&session{Provider: p, server: server, issuer: issuer}).logIn(t)
	if _, err := s.issue(t, keys{"secret": "ci/npm"}); err != nil {
		t.Error(err)
	}
	if _, err := s.issue(t, keys{"assume_role": deployRole}); err != nil {
		t.Error(err)
	}
	if _, err := p.(providers.Container).Contain(t.Context(), "s-1", nil, false); !errors.Is(err, providers.ErrInvalid) {
		t.Errorf("Contain = %v, want %v", err, providers.ErrInvalid)
	}
}

func TestContainPrints(t *testing.T) {
	t.Parallel()
	s := newSession(t).logIn(t)
	cred, err := s.issue(t, keys{"assume_role": farRole, "via": deployRole, "external_id": "x-1"})
	if err != nil {
		t.Fatal(err)
	}
	ecr, err := s.issue(t, keys{"ecr": keys{}})
	if err != nil {
		t.Fatal(err)
	}
	c := s.Provider.(providers.Container)
	before := len(s.server.Requests())
	got, err := c.Contain(t.Context(), "s-1", []secret.Value{cred.Handle, ecr.Handle, s.login, cred.Handle}, false)
	policy := `{"Statement":[{"Action":"*","Condition":{"StringEquals":{"aws:SourceIdentity":"s-1"}},"Effect":"Deny","Resource":"*","Sid":"RunEnvContain"}],"Version":"2012-10-17"}`
	want := []providers.Containment{
		{Target: farRole, Policy: policy, Undo: "aws iam delete-role-policy --role-name far --policy-name runenv-contain-s-1"},
		{Target: loginRole, Policy: policy, Undo: "aws iam delete-role-policy --role-name runenv-prod --policy-name runenv-contain-s-1"},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil || len(s.server.Requests()) != before {
		t.Errorf("Contain: %v, %d requests, (-want +got):\n%s", err, len(s.server.Requests())-before, diff)
	}
	for _, h := range []string{"", "{}", "null", `{"role_arn":"x"}`, `{"role_arn":"` + farRole + `","x":1}`} {
		if _, err := c.Contain(t.Context(), "s-1", []secret.Value{secret.FromString(h)}, false); !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("Contain(%q) = %v, want %v", h, err, providers.ErrInvalid)
		}
	}
	if _, err := c.Contain(t.Context(), `s-1","x`, nil, false); !errors.Is(err, providers.ErrInvalid) {
		t.Errorf("Contain of an odd session = %v, want %v", err, providers.ErrInvalid)
	}
}

func TestCheckNamesTheCure(t *testing.T) {
	t.Parallel()
	token := func(message string) awstest.Fault {
		return awstest.Refuse(http.StatusBadRequest, "InvalidIdentityToken", message)
	}
	tests := []struct {
		name  string
		fault awstest.Fault
		class error
		cure  string
	}{
		{"an unknown issuer", token("No OpenIDConnect provider found in your account for https://c4n4ry"), providers.ErrDenied, "create-open-id-connect-provider"},
		{"keys out of reach", token("Couldn't retrieve verification key from your identity provider, please reference AssumeRoleWithWebIdentity documentation for requirements"), providers.ErrDenied, "openid-configuration"},
		{"a thumbprint", token("OpenIDConnect provider's HTTPS certificate doesn't match configured thumbprint"), providers.ErrDenied, "thumbprint"},
		{"an audience", token("Incorrect token audience"), providers.ErrDenied, "client id sts.amazonaws.com"},
		{"a token", token("something c4n4ry"), providers.ErrDenied, "new keys"},
		{"an issuer that is down", awstest.Refuse(http.StatusBadRequest, "IDPCommunicationError", "c4n4ry"), providers.ErrUnavailable, "openid-configuration"},
		{"a rejected claim", awstest.Refuse(http.StatusForbidden, "IDPRejectedClaim", "c4n4ry"), providers.ErrDenied, "new keys"},
		{"an expired token", awstest.Refuse(http.StatusBadRequest, "ExpiredTokenException", "c4n4ry"), providers.ErrDenied, "clock"},
		{"a trust policy", awstest.Refuse(http.StatusForbidden, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity"), providers.ErrDenied, "runenv:role:prod"},
		{"tags", awstest.Refuse(http.StatusForbidden, "AccessDenied", "User: c4n4ry is not authorized to perform: sts:TagSession on resource: x"), providers.ErrDenied, "add sts:TagSession"},
		{"a source identity", awstest.Refuse(http.StatusForbidden, "AccessDenied", "User: c4n4ry is not authorized to perform: sts:SetSourceIdentity on resource: x"), providers.ErrDenied, "add sts:SetSourceIdentity"},
		{"a region", awstest.Refuse(http.StatusForbidden, "RegionDisabledException", "c4n4ry"), providers.ErrDenied, "activate it"},
		{"a clock", awstest.Signed(awstest.Refuse(http.StatusForbidden, "SignatureDoesNotMatch", "Signature expired: c4n4ry")), providers.ErrUnavailable, "NTP"},
		{"an unknown key", awstest.Signed(awstest.Refuse(http.StatusForbidden, "InvalidClientTokenId", "c4n4ry")), providers.ErrDenied, "region enabled"},
		{"a redirect", awstest.Redirect("https://c4n4ry.example"), providers.ErrUnavailable, "endpoints"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSession(t)
			s.server.Inject(tt.fault)
			_, err := s.Provider.(providers.Checker).Check(t.Context(), s.loginRequest("prod"))
			if !errors.Is(err, tt.class) || !strings.Contains(hint(err), tt.cure) || strings.Contains(err.Error()+hint(err), "c4n4ry") {
				t.Errorf("Check = %v, hint %q, want %v with a hint of %q and nothing of AWS's", err, hint(err), tt.class, tt.cure)
			}
		})
	}
	t.Run("by the fake's own word", func(t *testing.T) {
		t.Parallel()
		s := newSession(t)
		for _, r := range []awstest.Role{{NoTagSession: true}, {NoSourceIdentity: true}} {
			r.Issuer, r.Subject = s.issuer.URL, "runenv:role:prod"
			s.server.SetRole(loginRole, r)
			if _, err := s.Provider.(providers.Checker).Check(t.Context(), s.loginRequest("prod")); !strings.Contains(hint(err), "to its actions") {
				t.Errorf("Check with %+v = %v (%s)", r, err, hint(err))
			}
		}
	})
	t.Run("without a role to log in with", func(t *testing.T) {
		t.Parallel()
		s := newSession(t, keys{"auth": keys{}})
		got, err := s.Provider.(providers.Checker).Check(t.Context(), s.loginRequest("prod"))
		if err != nil || got.As == "" || len(got.Notes) != 2 {
			t.Errorf("Check = %+v, %v", got, err)
		}
		if _, err := s.Provider.(providers.Loginer).Login(t.Context(), s.loginRequest("prod")); !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("Login = %v, want %v", err, providers.ErrInvalid)
		}
	})
}
