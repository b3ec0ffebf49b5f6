// Package gcp issues credentials of Google Cloud:
//
//	providers:
//	  gcp: {type: gcp, audience: //iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ci/providers/runenv}
//
//	leases:
//	  deploy:     {provider: gcp, access_token: {service_account: deploy@shop.iam.gserviceaccount.com}}
//	  run:        {provider: gcp, id_token: {service_account: deploy@shop.iam.gserviceaccount.com, audience: https://api.shop.example}, env: {ID_TOKEN: id_token}}
//	  kubeconfig: {provider: gcp, secret: projects/shop/secrets/kubeconfig, file: {KUBECONFIG: value}}
//
// # Logging in
//
// Each session trades an ID token that the broker mints itself for a federated
// access token, by workload identity federation: no key of Google's is stored.
// The token's subject is runenv:role:<role>, its audience the pool's provider,
// so that every RunEnv role is a principal of its own at Google:
//
//	principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ci/subject/runenv:role:prod
//
// One login serves all leases of a session, but for an access token without a
// service account: that is the federated token itself, one of its own for each
// lease. With `auth: {method: default}` the broker's application default
// credentials stand in for the login; every role then has their rights.
//
// # What ends
//
// Nothing here can be revoked. A login and a federated token live an hour, an
// ID token too, an access token of a service account as long as was asked for,
// at most an hour, or twelve where the organisation allows it. A secret of
// Secret Manager is static. Each call carries its marker as the request's
// reason, which Google's audit log shows.
//
// # What it refuses
//
// Plain http to anything but a loopback address, redirects, proxies, answers
// that are larger than a token or a secret may be, tokens that live longer
// than was asked for, a secret whose checksum is missing or wrong or that
// isn't the one that was asked for. The environment's GOOGLE_* and CLOUDSDK_*
// variables and the metadata server don't steer it, but for `method: default`.
// A request that may have made a token isn't repeated unless Google surely
// made none.
package gcp

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/endpoint"
)

// Type is `type: gcp`.
func Type() providers.Type { return providers.Type{Name: "gcp", Open: open} }

// keys are the entry's own.
type keys struct {
	Audience       string       `yaml:"audience"`
	Auth           authKeys     `yaml:"auth"`
	Project        string       `yaml:"project"`
	UniverseDomain string       `yaml:"universe_domain"`
	Endpoints      endpointKeys `yaml:"endpoints"`
	CAFile         string       `yaml:"ca_file"`
}

type authKeys struct {
	Method         string             `yaml:"method"`
	ServiceAccount providers.Template `yaml:"service_account"`
}

type endpointKeys struct {
	STS            string `yaml:"sts"`
	IAMCredentials string `yaml:"iamcredentials"`
	SecretManager  string `yaml:"secretmanager"`
}

const (
	methodOIDC    = "oidc"
	methodDefault = "default"
	methodCI      = "ci"
)

const (
	// tokenLife is how long Google lets a federated token and an ID token
	// live; neither can be asked for less.
	tokenLife = time.Hour
	// extendedLife bounds an access token where the organisation policy
	// iam.allowServiceAccountCredentialLifetimeExtension names its account.
	extendedLife = 12 * time.Hour
	// maxSubjectBytes is Google's limit for google.subject.
	maxSubjectBytes = 127

	cloudPlatform  = "https://www.googleapis.com/auth/cloud-platform"
	defaultDomain  = "googleapis.com"
	exampleAccount = "deploy@shop.iam.gserviceaccount.com"
)

var (
	poolProvider = regexp.MustCompile(`^//iam\.[a-z0-9.-]+/projects/[0-9]+/locations/global/workloadIdentityPools/[a-z0-9-]{1,32}/providers/[a-z0-9-]{1,32}$`)
	projectName  = regexp.MustCompile(`^[a-z0-9][a-z0-9.:-]{0,62}$`)
	domainName   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*(\.[a-z0-9][a-z0-9-]*)+$`)
	accountName  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}@[a-z0-9][a-z0-9.-]{0,127}\.gserviceaccount\.com$`)
)

// core is what both kinds of provider do.
type core struct {
	audience  string // of the broker's token: the pool's provider
	project   string // for a secret's name alone
	account   providers.Template
	endpoints endpointKeys
	ci        providers.TokenSource // nil: the broker's own
	ambient   *ambient              // nil: each session has a login
	http      *httpSide
	secrets   *grpcSide
	firstWait time.Duration
	now       func() time.Time
	log       *slog.Logger
}

// Provider is one Google Cloud that sessions log in to by workload identity
// federation. It is safe for concurrent use.
type Provider struct{ core }

// Ambient is one Google Cloud that is used with the broker's application
// default credentials: it has no logins. It is safe for concurrent use.
type Ambient struct{ core }

var (
	_ providers.Loginer    = (*Provider)(nil)
	_ providers.Audienced  = (*Provider)(nil)
	_ providers.Referencer = (*Provider)(nil)
	_ providers.Checker    = (*Provider)(nil)
	_ providers.Referencer = (*Ambient)(nil)
	_ providers.Checker    = (*Ambient)(nil)
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
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	secrets, err := newGRPCSide(k.Endpoints.SecretManager, tlsConfig)
	if err != nil {
		return nil, err
	}
	c := core{
		audience: k.Audience, project: k.Project, account: k.Auth.ServiceAccount, endpoints: k.Endpoints,
		http: newHTTPSide(k.Endpoints, tlsConfig), secrets: secrets,
		firstWait: firstWait, now: cfg.Now, log: cfg.Log,
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	switch k.Auth.Method {
	case methodDefault:
		c.ambient = newAmbient(c.http.plain)
		return &Ambient{c}, nil
	case methodCI:
		c.ci = cfg.CI
	}
	return &Provider{c}, nil
}

// check refuses what can't be meant and fills in the defaults.
func (k *keys) check(inCI bool) error {
	if k.Auth.Method == "" {
		k.Auth.Method = methodOIDC
	}
	switch k.Auth.Method {
	case methodOIDC:
	case methodCI:
		if !inCI {
			return errors.New("`method: ci` logs in with the CI's own token, which only `runenv-broker run` has")
		}
	case methodDefault:
		if k.Audience != "" {
			return errors.New("`audience` belongs to `method: oidc`: application default credentials name their own")
		}
	default:
		return errors.New("unknown `method`: oidc (the default), default or ci")
	}
	if err := k.checkIdentity(); err != nil {
		return err
	}
	if k.Project != "" && !projectName.MatchString(k.Project) {
		return errors.New("`project` isn't the id or number of a project, such as shop")
	}
	if k.UniverseDomain == "" {
		k.UniverseDomain = defaultDomain
	}
	if len(k.UniverseDomain) > 253 || !domainName.MatchString(k.UniverseDomain) {
		return errors.New("`universe_domain` isn't a domain name, such as googleapis.com")
	}
	for _, e := range []struct {
		name string
		url  *string
	}{{"sts", &k.Endpoints.STS}, {"iamcredentials", &k.Endpoints.IAMCredentials}, {"secretmanager", &k.Endpoints.SecretManager}} {
		if *e.url == "" {
			*e.url = "https://" + e.name + "." + k.UniverseDomain
		}
		*e.url = strings.TrimSuffix(*e.url, "/")
		if err := endpoint.Check(*e.url, "https://sts.googleapis.com"); err != nil {
			return fmt.Errorf("`endpoints`: `%s` %w", e.name, err)
		}
	}
	return nil
}

// checkIdentity checks by whom the provider is let in.
func (k *keys) checkIdentity() error {
	if k.Auth.Method != methodDefault {
		switch {
		case k.Audience == "":
			return errors.New("`audience` is missing: the workload identity pool's provider, such as //iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ci/providers/runenv")
		case strings.HasPrefix(k.Audience, "https://iam."):
			return errors.New("`audience` begins with https: leave that out, it begins with //iam.googleapis.com/")
		case !poolProvider.MatchString(k.Audience):
			return errors.New("`audience` isn't a workload identity pool's provider with its project's number, such as //iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ci/providers/runenv")
		}
	}
	account := k.Auth.ServiceAccount
	for _, name := range account.Names() {
		if name != "role.name" || k.Auth.Method == methodDefault {
			return errors.New("`auth`: `service_account` may read role.name alone, and nothing with `method: default`: a login belongs to a role, not to a project")
		}
	}
	if account.String() != "" {
		if err := checkShape(account, accountName); err != nil {
			return fmt.Errorf("`auth`: `service_account` isn't the e-mail address of a service account, such as %s: %w", exampleAccount, err)
		}
	}
	return nil
}

// Audience is that of the ID token by which the provider logs in; empty if it
// takes none of the broker's.
func (p *Provider) Audience() string {
	if p.ci != nil {
		return ""
	}
	return p.audience
}

// LoginTTL is an hour: Google can't be asked for less.
func (p *Provider) LoginTTL() time.Duration { return tokenLife }

// checkShape checks what a template becomes when each of its holes holds a
// plain letter, so that what could never be good doesn't load.
func checkShape(t providers.Template, want *regexp.Regexp) error {
	vars := providers.Vars{}
	for _, name := range t.Names() {
		vars[name] = "x"
	}
	text, err := t.Expand(vars)
	if err == nil && !want.MatchString(text) {
		err = errors.New("it has another form")
	}
	return err
}
