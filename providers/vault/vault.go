// Package vault issues credentials of a HashiCorp Vault or an OpenBao:
//
//	providers:
//	  vault: {type: vault, address: https://vault.example.com:8200}
//
//	leases:
//	  db:   {provider: vault, path: "database/creds/{{project.name}}-ro", env: {DB_USER: username, DB_PASSWORD: password}}
//	  npm:  {provider: vault, path: secret/ci/npm, env: {NPM_TOKEN: token}}
//	  cert: {provider: vault, path: pki/issue/ci, params: {common_name: "{{project.name}}.example.com"}, env: {TLS_KEY: private_key}}
//
// # Logging in
//
// Each session has a Vault token of its own. By default the broker trades an
// ID token that it mints itself for one, at the JWT auth method `jwt`, with
// the Vault role runenv-<RunEnv role>; so no Vault credential is stored, and
// no two RunEnv roles share an identity at Vault. The token's subject is
// runenv:role:<role>, its audience Vault's address as written:
//
//	vault write auth/jwt/config oidc_discovery_url=<the broker's issuer_url>
//	vault write auth/jwt/role/runenv-prod role_type=jwt user_claim=sub \
//	    bound_subject=runenv:role:prod bound_audiences=https://vault.example.com:8200 \
//	    token_policies=prod token_ttl=5m
//
// The other methods are approle, kubernetes, token and ci (the CI job's own
// token, where the broker runs beside that job). With approle and token every
// RunEnv role has the same rights at Vault. With token each session gets a
// child of the configured one, which needs the right to update
// auth/token/create. What a method reads from a file is read for each login,
// so that whoever renews the file needn't tell the broker.
//
// The session's token lives five minutes unless renewed ([providers.LoginTTL];
// an hour with ci, at trust that others have set up);
// one that a role makes longer is refused, and so is a batch token, which can't
// be revoked. It renews, reads and revokes
// itself by Vault's default policy; without that policy it needs those three
// rights on auth/token/{renew,lookup,revoke}-self by another.
//
// # Reading
//
// A path is read, or written with POST if the definition has `params`, or
// listed and all under it read (`list`, `recursive`). KV
// stores of both versions are found out by asking Vault, so the path of a KV
// secret has no data/ in it. A string field is given as it is, null is left
// out, and everything else is compact JSON. An answer with a lease is
// revocable; one without expires when it says (`ttl`, `expiration` or
// `expires_at_seconds` among its fields); else it is static. With `wrap` the
// only field is a wrapping token.
//
// No lease is left longer than asked for: one that Vault makes longer is
// renewed at once for the shorter time, and certificates are asked for with a
// ttl.
//
// A lease is the child of the token that it was made with and ends with it:
// where a policy doesn't allow to revoke a single lease, Logout does. That is
// also why this provider can't be asked for a lease by its marker: only an
// operator may list leases. The marker is sent as the header
// X-Runenv-Marker, which Vault's audit log shows if told to.
//
// # What it refuses
//
// Plain http to anything but a loopback address, redirects, proxies, answers
// that are no answers of Vault's API or larger than a credential may be; the
// environment's VAULT_* variables don't steer it. A request that may have
// made a credential isn't repeated unless Vault surely didn't process it.
package vault

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/endpoint"
)

// Type is `type: vault`.
func Type() providers.Type { return providers.Type{Name: "vault", Open: open} }

// keys are the entry's own.
type keys struct {
	Address       string   `yaml:"address"`
	Namespace     string   `yaml:"namespace"`
	CAFile        string   `yaml:"ca_file"`
	ClientCert    string   `yaml:"client_cert"`
	ClientKey     string   `yaml:"client_key"`
	TLSServerName string   `yaml:"tls_server_name"`
	Auth          authKeys `yaml:"auth"`
}

var (
	segments = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@=+-]*(/[A-Za-z0-9_][A-Za-z0-9_.@=+-]*)*$`)
	roleName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,127}$`)
)

// Provider is one Vault. It is safe for concurrent use.
type Provider struct {
	auth      authKeys
	namespace string
	client    *api.Client // never changed; each call works on a copy
	ci        providers.TokenSource
	firstWait time.Duration
	mounts    mounts
	now       func() time.Time
	log       *slog.Logger
}

var (
	_ providers.Loginer      = (*Provider)(nil)
	_ providers.LoginRenewer = (*Provider)(nil)
	_ providers.Logouter     = (*Provider)(nil)
	_ providers.Renewer      = (*Provider)(nil)
	_ providers.Revoker      = (*Provider)(nil)
	_ providers.Audienced    = (*Provider)(nil)
	_ providers.Referencer   = (*Provider)(nil)
	_ providers.Checker      = (*Provider)(nil)
)

func open(cfg providers.Config) (providers.Provider, error) {
	var k keys
	if err := cfg.Decode(&k); err != nil {
		return nil, err
	}
	if err := k.check(); err != nil {
		return nil, err
	}
	if k.Auth.Method == methodCI && cfg.CI == nil {
		return nil, hinted("`method: ci` logs in with the CI job's own token, which only `runenv-broker run` has",
			"serve with `method: oidc`, the default: each session then logs in with a token of the broker's own")
	}
	tlsConfig, err := k.tls()
	if err != nil {
		return nil, err
	}
	client, err := newClient(k.Address, tlsConfig)
	if err != nil {
		return nil, err
	}
	p := &Provider{
		auth: k.Auth, namespace: k.Namespace, client: client, ci: cfg.CI, firstWait: firstWait, now: cfg.Now, log: cfg.Log,
	}
	if p.now == nil {
		p.now = time.Now
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	return p, nil
}

// check refuses what can't be meant and fills in the defaults.
func (k *keys) check() error {
	k.Address = strings.TrimSuffix(k.Address, "/")
	const example = "https://vault.example.com:8200"
	if k.Address == "" {
		return errors.New("`address` is missing, such as " + example)
	}
	if err := endpoint.Check(k.Address, example); err != nil {
		return fmt.Errorf("`address` %w", err)
	}
	k.Namespace = strings.Trim(k.Namespace, "/")
	if k.Namespace != "" && !segments.MatchString(k.Namespace) {
		return errors.New("`namespace` isn't a path of plain names, such as team/ci")
	}
	return k.Auth.check(k.Address)
}

// newClient makes Vault's own client deaf to the environment: what
// [api.NewClient] reads there is either given here or taken back; each call
// sets its own token and namespace.
func newClient(address string, tlsConfig *tls.Config) (*api.Client, error) {
	client, err := api.NewClient(&api.Config{
		Address: address,
		HttpClient: &http.Client{
			Transport:     &tripper{next: endpoint.Transport(tlsConfig, 90*time.Second)},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		DisableRedirects: true,
		CheckRetry:       neverRetry,
	})
	if err != nil {
		// Its text may name files and values of the environment.
		return nil, hinted("Vault's client doesn't start", "the environment holds VAULT_* variables that Vault's client can't read: unset them, RunEnv doesn't use them")
	}
	client.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	client.SetWrappingLookupFunc(func(string, string) string { return "" })
	return client, nil
}
