package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

type authKeys struct {
	Method    string       `yaml:"method"`
	Mount     string       `yaml:"mount"`
	Role      string       `yaml:"role"`
	Audience  string       `yaml:"audience"`
	RoleID    string       `yaml:"role_id"`
	SecretID  secret.Value `yaml:"secret_id"`
	Token     secret.Value `yaml:"token"`
	TokenFile string       `yaml:"token_file"`
}

// The ways to log in.
const (
	methodOIDC       = "oidc"
	methodAppRole    = "approle"
	methodKubernetes = "kubernetes"
	methodToken      = "token"
	methodCI         = "ci"
)

const (
	// serviceAccountFile is where Kubernetes puts a pod's own token.
	serviceAccountFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	// maxTokenFileBytes bounds `token_file`: a service account's token has
	// about 1 KiB.
	maxTokenFileBytes = 16 << 10
	// ciLoginTTL bounds the life of a login with the CI's own token: the Vault
	// role is one that a team already has, for whole jobs.
	ciLoginTTL = time.Hour
)

// accepts says which keys belong to a method.
var accepts = map[string]string{
	methodOIDC:       "mount role audience",
	methodCI:         "mount role audience",
	methodKubernetes: "mount role token_file",
	methodAppRole:    "mount role_id secret_id",
	methodToken:      "token token_file",
}

// roleID is AppRole's: usually a UUID.
var roleID = regexp.MustCompile(`^[A-Za-z0-9_.@:+=/-]{1,256}$`)

// check refuses what can't be meant and fills in the defaults. address is the
// entry's.
func (a *authKeys) check(address string) error {
	if a.Method == "" {
		a.Method = methodOIDC
	}
	own, ok := accepts[a.Method]
	if !ok {
		return errors.New("unknown `method`: oidc (the default), approle, kubernetes, token or ci")
	}
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"mount", a.Mount != ""}, {"role", a.Role != ""}, {"audience", a.Audience != ""}, {"role_id", a.RoleID != ""},
		{"secret_id", a.SecretID.Len() != 0}, {"token", a.Token.Len() != 0}, {"token_file", a.TokenFile != ""},
	} {
		if k.set && !strings.Contains(" "+own+" ", " "+k.name+" ") {
			return fmt.Errorf("`%s` doesn't belong to `method: %s`, which takes %s", k.name, a.Method, strings.ReplaceAll(own, " ", ", "))
		}
	}
	if err := a.checkOwn(); err != nil {
		return err
	}
	if a.Mount == "" {
		a.Mount = map[string]string{methodAppRole: "approle", methodKubernetes: "kubernetes"}[a.Method]
	}
	if a.Mount == "" {
		a.Mount = "jwt"
	}
	if !segments.MatchString(a.Mount) {
		return errors.New("`mount` isn't a path of plain names, such as jwt")
	}
	if a.Role != "" && !roleName.MatchString(a.Role) {
		return errors.New("`role` isn't a name of a Vault role")
	}
	if a.Audience == "" {
		a.Audience = address
	}
	if len(a.Audience) > 512 || strings.ContainsFunc(a.Audience, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("`audience` isn't plain text without blanks, such as https://vault.example.com")
	}
	return nil
}

// checkOwn checks what a method must have.
func (a *authKeys) checkOwn() error {
	switch a.Method {
	case methodToken:
		switch {
		case a.Token.Len() != 0 && a.TokenFile != "":
			return errors.New("`token` and `token_file`: only one of them")
		case a.TokenFile == "" && !isToken(a.Token.Reveal()):
			return errors.New("`method: token` needs `token_file`, such as /run/vault-agent/token, or `token`, such as ${env:VAULT_TOKEN}")
		}
	case methodAppRole:
		switch {
		case !roleID.MatchString(a.RoleID):
			return errors.New("`method: approle` needs `role_id`, as Vault gives it")
		case !isToken(a.SecretID.Reveal()):
			return errors.New("`method: approle` needs `secret_id`, such as ${file:/etc/runenv/vault-secret-id}")
		}
	case methodKubernetes:
		if a.TokenFile == "" {
			a.TokenFile = serviceAccountFile
		}
	case methodCI:
		if a.Role == "" {
			return errors.New("`method: ci` needs `role`: the Vault role that trusts the CI's tokens")
		}
	}
	return nil
}

// Audience is that of the ID token by which the provider logs in; empty if it
// takes none of the broker's.
func (p *Provider) Audience() string {
	if p.auth.Method != methodOIDC {
		return ""
	}
	return p.auth.Audience
}

// LoginTTL is [providers.LoginTTL], and an hour with the CI's own token: a
// longer login is refused.
func (p *Provider) LoginTTL() time.Duration {
	if p.auth.Method == methodCI {
		return ciLoginTTL
	}
	return providers.LoginTTL
}

// role is the Vault role for a RunEnv role.
func (p *Provider) role(role string) string {
	if p.auth.Role != "" {
		return p.auth.Role
	}
	return "runenv-" + role
}

// loginCall is the request that logs in.
func (p *Provider) loginCall(ctx context.Context, req providers.LoginRequest) (request, error) {
	r := request{marker: req.Marker, repeat: onFailure, path: "auth/" + p.auth.Mount + "/login"}
	switch p.auth.Method {
	case methodToken:
		token, err := p.ownToken()
		if err != nil {
			return r, err
		}
		r.path, r.token = "auth/token/create", token
		r.body = map[string]any{
			"display_name": "runenv-" + req.Role,
			"ttl":          providers.LoginTTL.String(),
			"type":         "service",
			"renewable":    true,
			"meta":         map[string]string{"runenv_role": req.Role, "runenv_session": req.Session, "runenv_marker": req.Marker},
		}
	case methodAppRole:
		r.body = map[string]any{"role_id": p.auth.RoleID, "secret_id": string(p.auth.SecretID.Reveal())}
	case methodKubernetes:
		jwt, err := p.tokenFile()
		if err != nil {
			return r, err
		}
		r.body = map[string]any{"role": p.role(req.Role), "jwt": jwt}
	default:
		jwt, err := p.idToken(ctx, req.Tokens)
		if err != nil {
			return r, err
		}
		r.body = map[string]any{"role": p.role(req.Role), "jwt": jwt}
	}
	return r, nil
}

// idToken gets the token that is traded: the broker's own or the CI's.
func (p *Provider) idToken(ctx context.Context, own providers.TokenSource) (string, error) {
	whose, source := "the broker's", own
	if p.auth.Method == methodCI {
		whose, source = "the CI's", p.ci
	}
	if source == nil {
		return "", invalid("logging in without a source of tokens")
	}
	jwt, err := source(ctx, p.auth.Audience)
	if err != nil {
		return "", fmt.Errorf("vault: getting %s own token for %s: %w: %w: %w", whose, p.auth.Audience, providers.ErrUnavailable, providers.ErrNotIssued, err)
	}
	return jwt, nil
}

func (p *Provider) ownToken() (string, error) {
	if p.auth.TokenFile == "" {
		return string(p.auth.Token.Reveal()), nil
	}
	return p.tokenFile()
}

// tokenFile reads the file anew: a service account's token is replaced within
// the hour, an agent's when it likes.
func (p *Provider) tokenFile() (string, error) {
	b, err := readFile("token_file", p.auth.TokenFile, maxTokenFileBytes)
	if err == nil {
		if b = bytes.TrimSpace(b); isToken(b) {
			return string(b), nil
		}
		err = fmt.Errorf("`token_file` %s holds no token", p.auth.TokenFile)
	}
	return "", &localError{
		text: err.Error(), hint: "whoever renews that file, an agent or Kubernetes, must leave a token there that the broker may read",
		classes: []error{providers.ErrUnavailable, providers.ErrNotIssued},
	}
}
