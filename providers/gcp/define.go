package gcp

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/ref"
)

// The kinds of lease.
type kind int

const (
	federatedToken kind = iota // access_token without a service account
	accessToken
	idToken
	storedSecret
)

const (
	maxScopes    = 32
	maxDelegates = 8
	latest       = "latest"
)

var (
	scopeName     = regexp.MustCompile(`^(https://[a-z0-9][A-Za-z0-9./_-]{1,250}|openid|email|profile)$`)
	secretName    = regexp.MustCompile(`^projects/[a-z0-9][a-z0-9.:-]{0,62}/secrets/[A-Za-z0-9_-]{1,255}$`)
	versionNumber = regexp.MustCompile(`^[1-9][0-9]{0,17}$`)
	versionAlias  = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,62}$`)
	audienceText  = regexp.MustCompile(`^[!-~]{1,512}$`)
)

// A definition is what a lease asks for, checked.
type definition struct {
	kind      kind
	loginless bool
	longest   time.Duration // of an accessToken

	account      providers.Template
	delegates    []providers.Template
	scopes       []string
	audience     providers.Template
	includeEmail bool

	secret  providers.Template // its full name
	version string
}

// leaseKeys are a lease's own keys: one of the first three.
type leaseKeys struct {
	AccessToken *accessTokenKeys   `yaml:"access_token"`
	IDToken     *idTokenKeys       `yaml:"id_token"`
	Secret      providers.Template `yaml:"secret"`
	Version     any                `yaml:"version"`
}

type accessTokenKeys struct {
	ServiceAccount   providers.Template   `yaml:"service_account"`
	Scopes           []string             `yaml:"scopes"`
	Delegates        []providers.Template `yaml:"delegates"`
	ExtendedLifetime bool                 `yaml:"extended_lifetime"`
}

type idTokenKeys struct {
	ServiceAccount providers.Template   `yaml:"service_account"`
	Audience       providers.Template   `yaml:"audience"`
	IncludeEmail   bool                 `yaml:"include_email"`
	Delegates      []providers.Template `yaml:"delegates"`
}

// Templates are all that the definition reads.
func (d *definition) Templates() []providers.Template {
	var out []providers.Template
	for _, t := range append([]providers.Template{d.account, d.audience, d.secret}, d.delegates...) {
		if t.String() != "" {
			out = append(out, t)
		}
	}
	return out
}

// Revocability is never [providers.Revocable]: Google takes no token back.
func (d *definition) Revocability() providers.Revocability {
	if d.kind == storedSecret {
		return providers.Static
	}
	return providers.Expires
}

// Bounds are what Google can be asked for: whole seconds for a service
// account's access token, an hour for the other tokens.
func (d *definition) Bounds() (shortest, longest time.Duration) {
	switch d.kind {
	case accessToken:
		return time.Second, d.longest
	case storedSecret:
		return 0, 0
	}
	return tokenLife, tokenLife
}

// Loginless is true of the federated token itself: it is traded for with a
// token of its own, so that a lease never hands out the session's login.
func (d *definition) Loginless() bool { return d.loginless }

// DefaultEnv are the variables that gcloud and Terraform read.
func (d *definition) DefaultEnv() []providers.DefaultVar {
	if d.kind != accessToken && d.kind != federatedToken {
		return nil
	}
	return []providers.DefaultVar{
		{Name: "CLOUDSDK_AUTH_ACCESS_TOKEN", Field: fieldAccessToken, Mask: true},
		{Name: "GOOGLE_OAUTH_ACCESS_TOKEN", Field: fieldAccessToken, Mask: true},
	}
}

// Define reads `access_token`, `id_token` or `secret`.
func (p *core) Define(decode func(any) error) (providers.Definition, error) {
	var k leaseKeys
	if err := decode(&k); err != nil {
		return nil, err
	}
	kinds := 0
	for _, present := range []bool{k.AccessToken != nil, k.IDToken != nil, k.Secret.String() != ""} {
		if present {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return nil, fmt.Errorf("a gcp lease has one of `access_token`, `id_token` and `secret`, this one has %d of them: write secret: projects/shop/secrets/kubeconfig, or access_token: {service_account: %s}", kinds, exampleAccount)
	case k.Version != nil && k.Secret.String() == "":
		return nil, errors.New("`version` belongs to `secret`")
	case k.AccessToken != nil:
		return p.defineAccessToken(k.AccessToken)
	case k.IDToken != nil:
		return p.defineIDToken(k.IDToken)
	}
	version, err := readVersion(k.Version)
	if err != nil {
		return nil, err
	}
	return p.defineSecret(k.Secret, version)
}

func (p *core) defineAccessToken(k *accessTokenKeys) (*definition, error) {
	d := &definition{kind: accessToken, loginless: p.ambient != nil, longest: tokenLife, account: k.ServiceAccount, delegates: k.Delegates, scopes: k.Scopes}
	if len(d.scopes) == 0 {
		d.scopes = []string{cloudPlatform}
	}
	if len(d.scopes) > maxScopes {
		return nil, fmt.Errorf("`scopes` has %d entries: at most %d", len(d.scopes), maxScopes)
	}
	for _, s := range d.scopes {
		if !scopeName.MatchString(s) {
			return nil, fmt.Errorf("`scopes` holds what isn't a scope in full, such as %s", cloudPlatform)
		}
	}
	if k.ExtendedLifetime {
		d.longest = extendedLife
	}
	if d.account.String() == "" {
		switch {
		case p.ambient != nil:
			return nil, fmt.Errorf("`access_token` needs `service_account`, such as %s: with `method: default` it would be the broker's own", exampleAccount)
		case len(d.delegates) > 0 || k.ExtendedLifetime:
			return nil, errors.New("`delegates` and `extended_lifetime` belong to `service_account`: without it the lease is the federated token itself")
		}
		d.kind, d.loginless = federatedToken, true
		return d, nil
	}
	return d, d.checkAccounts()
}

func (p *core) defineIDToken(k *idTokenKeys) (*definition, error) {
	d := &definition{kind: idToken, loginless: p.ambient != nil, account: k.ServiceAccount, delegates: k.Delegates, audience: k.Audience, includeEmail: k.IncludeEmail}
	if d.account.String() == "" {
		return nil, fmt.Errorf("`id_token` needs `service_account`, such as %s: a federated identity has no ID tokens", exampleAccount)
	}
	if d.audience.String() == "" {
		return nil, errors.New("`id_token` needs `audience`: for whom it is, such as https://api.shop.example")
	}
	if err := checkShape(d.audience, audienceText); err != nil {
		return nil, fmt.Errorf("`audience` isn't plain text without blanks, such as https://api.shop.example: %w", err)
	}
	return d, d.checkAccounts()
}

func (d *definition) checkAccounts() error {
	if err := checkShape(d.account, accountName); err != nil {
		return fmt.Errorf("`service_account` isn't the e-mail address of a service account, such as %s: %w", exampleAccount, err)
	}
	if len(d.delegates) > maxDelegates {
		return fmt.Errorf("`delegates` has %d entries: at most %d", len(d.delegates), maxDelegates)
	}
	for _, t := range d.delegates {
		if err := checkShape(t, accountName); err != nil {
			return fmt.Errorf("`delegates` holds what isn't the e-mail address of a service account, such as %s: %w", exampleAccount, err)
		}
	}
	return nil
}

// readVersion reads a version's number, with quotes or without, or its alias.
func readVersion(v any) (string, error) {
	text := ""
	switch v := v.(type) {
	case nil:
		return latest, nil
	case string:
		text = v
	case int:
		text = strconv.Itoa(v)
	case int64:
		text = strconv.FormatInt(v, 10)
	}
	return text, checkVersion(text)
}

func checkVersion(text string) error {
	if !versionNumber.MatchString(text) && !versionAlias.MatchString(text) {
		return errors.New("`version` is neither a number from 1 nor an alias, such as 3, prod or latest")
	}
	return nil
}

func (p *core) defineSecret(name providers.Template, version string) (*definition, error) {
	text := name.String()
	switch {
	case !strings.Contains(text, "/") && p.project == "":
		return nil, errors.New("`secret` is a name alone, and the provider has no `project`: write projects/shop/secrets/kubeconfig")
	case !strings.Contains(text, "/"):
		full, err := providers.ParseTemplate("projects/" + p.project + "/secrets/" + text)
		if err != nil {
			return nil, err
		}
		name = full
	case strings.Contains(text, "/versions/"):
		return nil, errors.New("`secret` names a version: write that as `version`")
	case strings.Contains(text, "/locations/"):
		return nil, errors.New("`secret` names a location: secrets of a region aren't supported, only projects/…/secrets/…")
	}
	if err := checkShape(name, secretName); err != nil {
		return nil, fmt.Errorf("`secret` isn't a secret's name, such as projects/shop/secrets/kubeconfig: %w", err)
	}
	return &definition{kind: storedSecret, loginless: p.ambient != nil, secret: name, version: version}, nil
}

// Schemes are those of the references that [core.Reference] knows.
func (p *core) Schemes() []string { return []string{ref.SchemeGCPSM} }

// Reference is the definition of gcp-sm://PROJECT/NAME#VERSION.
func (p *core) Reference(r ref.Ref) (providers.Definition, error) {
	project, name, _ := strings.Cut(r.Path, "/")
	path := "projects/" + project + "/secrets/" + name
	if r.Scheme != ref.SchemeGCPSM || !secretName.MatchString(path) {
		return nil, errors.New("a reference to Secret Manager names a project and a secret, such as gcp-sm://shop/kubeconfig")
	}
	version := r.Version
	if version == "" {
		version = latest
	}
	if err := checkVersion(version); err != nil {
		return nil, err
	}
	t, err := providers.ParseTemplate(path)
	if err != nil {
		return nil, err
	}
	return p.defineSecret(t, version)
}
