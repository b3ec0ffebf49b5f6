// Package aws issues credentials of Amazon Web Services:
//
//	providers:
//	  aws: {type: aws, region: eu-west-1, auth: {role: "arn:aws:iam::111122223333:role/runenv-{{role.name}}"}}
//
//	leases:
//	  deploy: {provider: aws, assume_role: "arn:aws:iam::{{project.vars.account}}:role/deploy"}
//	  npm:    {provider: aws, secret: ci/npm, env: {NPM_TOKEN: token}}
//	  dsn:    {provider: aws, parameter: /ci/dsn, env: {DSN: value}}
//	  db:     {provider: aws, rds: {host: db.example.com, port: 5432, user: ci}, env: {PGPASSWORD: token}}
//	  images: {provider: aws, ecr: {}, env: {ECR_PASSWORD: password}}
//
// # Logging in
//
// The broker trades an ID token that it mints itself for a session of STS
// (AssumeRoleWithWebIdentity), so that no AWS key is stored. The token's subject
// is runenv:role:<role>, which the IAM role's trust policy must name; the
// session's source identity is the RunEnv session's id, its tags the token's.
// `assume_role` does that for each lease, with the role that the lease names.
// Every other kind reads under a login of the session's own, with the role
// `auth.role`, which lives 15 minutes (STS's least) and can't be ended.
//
// With `auth: {method: default}` the SDK's default chain (environment, shared
// configuration, the machine's role) is used instead, and every RunEnv role has
// what it has. With `auth: {method: ci}` the CI's own token is traded.
//
// # What ends
//
// Nothing that AWS issues can be revoked: sessions, RDS tokens and ECR logins
// expire, secrets and parameters are disclosed. [Provider.Contain] cuts off a
// session's roles by a policy that denies everything to its source identity.
//
// # What it refuses
//
// Accounts outside of `allowed_account_ids`, before anything is sent and once
// more by what AWS answers; plain http to anything but a loopback address,
// redirects, proxies, answers that are larger than AWS's are, and sessions that
// live longer than asked for. But for `method: default`, and for an operator's
// own identity in [Provider.Contain], neither AWS_* variables nor shared
// configuration steer it. What may have issued something isn't repeated unless
// AWS surely didn't process it.
package aws

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/endpoint"
)

// Type is `type: aws`.
func Type() providers.Type { return providers.Type{Name: "aws", Open: open} }

// keys are the entry's own.
type keys struct {
	Region            string       `yaml:"region"`
	Auth              authKeys     `yaml:"auth"`
	AllowedAccountIDs []string     `yaml:"allowed_account_ids"`
	Endpoints         endpointKeys `yaml:"endpoints"`
	CAFile            string       `yaml:"ca_file"`
}

type authKeys struct {
	Method   string             `yaml:"method"`
	Role     providers.Template `yaml:"role"`
	Audience string             `yaml:"audience"`
}

type endpointKeys struct {
	STS            string `yaml:"sts"`
	SecretsManager string `yaml:"secretsmanager"`
	SSM            string `yaml:"ssm"`
	ECR            string `yaml:"ecr"`
	IAM            string `yaml:"iam"`
}

const (
	methodOIDC    = "oidc"
	methodDefault = "default"
	methodCI      = "ci"

	defaultAudience = "sts.amazonaws.com"
)

var (
	regionName = regexp.MustCompile(`^[a-z]{2,8}(-[a-z]{2,12}){1,3}-[0-9]{1,2}$`)
	accountID  = regexp.MustCompile(`^[0-9]{12}$`)
)

// Provider is AWS in one region, under one way of logging in. It is safe for
// concurrent use. One that is opened with `oidc` or `ci` is a
// [providers.Loginer] too; with `default` there is nothing to log in to.
type Provider struct {
	region    string
	auth      authKeys
	accounts  []string
	endpoints endpointKeys
	ci        providers.TokenSource
	ambient   aws.CredentialsProvider // for `default` alone
	http      *http.Client
	firstWait time.Duration
	now       func() time.Time

	mu      sync.Mutex
	callers map[string]string // account by the ambient access key id, once asked
}

// loginProvider is a Provider whose sessions log in.
type loginProvider struct{ *Provider }

var (
	_ providers.Loginer    = (*loginProvider)(nil)
	_ providers.Audienced  = (*loginProvider)(nil)
	_ providers.Provider   = (*Provider)(nil)
	_ providers.Checker    = (*Provider)(nil)
	_ providers.Container  = (*Provider)(nil)
	_ providers.Referencer = (*Provider)(nil)
)

func open(cfg providers.Config) (providers.Provider, error) {
	var k keys
	if err := cfg.Decode(&k); err != nil {
		return nil, err
	}
	if err := k.check(cfg.CI != nil); err != nil {
		return nil, err
	}
	roots, err := endpoint.Roots(k.CAFile)
	if err != nil {
		return nil, err
	}
	p := &Provider{
		region: k.Region, auth: k.Auth, accounts: k.AllowedAccountIDs, endpoints: k.Endpoints, ci: cfg.CI,
		http:      newHTTP(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}),
		firstWait: firstWait, now: cfg.Now, callers: map[string]string{},
	}
	if p.now == nil {
		p.now = time.Now
	}
	if k.Auth.Role.String() != "" {
		if err := p.checkRole("auth.role", k.Auth.Role, k.Region); err != nil {
			return nil, err
		}
	}
	if k.Auth.Method != methodDefault {
		return &loginProvider{p}, nil
	}
	if p.ambient, err = defaultChain(context.Background(), k.Region); err != nil {
		return nil, err
	}
	return p, nil
}

// defaultChain reads the environment and shared configuration. What it makes
// asks for credentials only when they are needed.
func defaultChain(ctx context.Context, region string) (aws.CredentialsProvider, error) {
	cfg, err := config.LoadDefaultConfig(ctx, config.WithRegion(region))
	if err != nil {
		// Its text may hold what stands in a profile.
		return nil, hinted("the SDK's default chain doesn't load: "+providers.ErrInvalid.Error(),
			"look at the AWS_* variables and ~/.aws/config of the broker's process", providers.ErrInvalid)
	}
	return cfg.Credentials, nil
}

// check refuses what can't be meant and fills in the defaults.
func (k *keys) check(ci bool) error {
	switch {
	case k.Region == "":
		return errors.New("`region` is missing, such as eu-west-1")
	case !regionName.MatchString(k.Region):
		return errors.New("`region` isn't one of AWS's, such as eu-west-1")
	}
	for i, id := range k.AllowedAccountIDs {
		if !accountID.MatchString(id) || slices.Contains(k.AllowedAccountIDs[:i], id) {
			return errors.New("`allowed_account_ids` holds something else than account ids of 12 digits, each once, in quotes")
		}
	}
	if k.AllowedAccountIDs != nil && len(k.AllowedAccountIDs) == 0 {
		return errors.New("`allowed_account_ids` is empty: name an account or leave it out")
	}
	for _, e := range []struct{ name, url string }{
		{"sts", k.Endpoints.STS}, {"secretsmanager", k.Endpoints.SecretsManager}, {"ssm", k.Endpoints.SSM},
		{"ecr", k.Endpoints.ECR}, {"iam", k.Endpoints.IAM},
	} {
		if e.url == "" {
			continue
		}
		if err := endpoint.Check(strings.TrimRight(e.url, "/"), "https://sts.example.com"); err != nil {
			return fmt.Errorf("`endpoints.%s` %w", e.name, err)
		}
	}
	return k.Auth.check(ci)
}

func (a *authKeys) check(ci bool) error {
	switch a.Method {
	case "":
		a.Method = methodOIDC
	case methodOIDC:
	case methodCI:
		if !ci {
			return errors.New("`method: ci` logs in with the CI's own token, which only `runenv-broker run` has: oidc (the default) or default")
		}
	case methodDefault:
		if a.Role.String() != "" || a.Audience != "" {
			return errors.New("`role` and `audience` belong to `method: oidc` and `method: ci`")
		}
		return nil
	default:
		return errors.New("unknown `method`: oidc (the default), default or ci")
	}
	if a.Audience == "" {
		a.Audience = defaultAudience
	}
	if len(a.Audience) > 255 || !printable(a.Audience) {
		return errors.New("`audience` isn't plain text of at most 255 characters without blanks, such as sts.amazonaws.com")
	}
	for _, name := range a.Role.Names() {
		if name != "role.name" {
			return errors.New("`auth.role` reads more than role.name: a login serves all leases of a session")
		}
	}
	return nil
}

// Audience is that of the broker's token; empty where the CI's is used.
func (p *loginProvider) Audience() string {
	if p.auth.Method == methodCI {
		return ""
	}
	return p.auth.Audience
}

// allowed: with no list, every account is.
func (p *Provider) allowed(account string) bool {
	return len(p.accounts) == 0 || slices.Contains(p.accounts, account)
}

// printable: ASCII without blanks.
func printable(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
