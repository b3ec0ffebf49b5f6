// Package issuer is the broker as an OIDC issuer of its own: it mints the
// five-minute tokens by which the broker logs in to Vault, AWS and GCP, so
// that no key of theirs is stored.
//
// A token says for which RunEnv role it speaks (its subject is
// "runenv:role:<role>", a form that users write trust policies on and that
// never changes), to whom (one audience), and for which session and project.
// The package promises that no token is good at the broker itself, and that
// the published key set holds only keys whose private half this broker could
// unseal: who can write to the store but lacks the seal key can't add one.
//
// It keeps two signing keys, one for ES256 and one for RS256, sealed in the
// store. Both are made before the first key set is published, which therefore
// is complete and doesn't change while the keys live.
package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/store"
)

// Paths under the issuer's URL of the two documents that relying parties read.
const (
	DiscoveryPath = "/.well-known/openid-configuration"
	JWKSPath      = "/jwks"
)

// Algorithms that [Issuer.Mint] knows.
const (
	ES256 = string(jose.ES256)
	RS256 = string(jose.RS256)
)

// cacheSeconds is how long others may keep the two documents. It will bound
// how long a new key must be published before it is used.
const cacheSeconds = 300

// A KeyStore keeps the issuer's keys; the store of the broker is one.
type KeyStore interface {
	// Keys returns all keys of the broker, those of other purposes too.
	Keys(ctx context.Context) ([]store.Key, error)
	// EnsureKeys stores those of keys whose purpose has none yet and returns
	// what is stored for these purposes: the first writer wins.
	EnsureKeys(ctx context.Context, now time.Time, keys []store.Key) ([]store.Key, error)
}

// Config is what [Open] needs. All of it but Now must be set.
type Config struct {
	// URL is the issuer's own (`issuer_url`), as tokens will name it: https,
	// or http with a loopback address literal; no final slash.
	URL string
	// BrokerURL is the broker's (`url`), the audience of CI tokens. No token
	// is minted for it.
	BrokerURL string
	Keys      KeyStore
	Sealer    seal.Sealer
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// An Issuer mints tokens. It is safe for concurrent use.
type Issuer struct {
	url       string
	brokerURL string
	now       func() time.Time
	signers   map[string]jose.Signer // by algorithm
	discovery []byte
	jwks      []byte
}

// Open loads the issuer's keys, or makes those that the store lacks. Making
// the RSA key took 38 ms at the median and 141 ms at the most (40 keys, one
// core, 2026-11), once in a store's life: so it isn't put off.
//
// With another seal key than the store's the error wraps [seal.ErrOpen].
func Open(ctx context.Context, cfg Config) (*Issuer, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("opening the issuer: %w", err)
	}
	i := &Issuer{url: cfg.URL, brokerURL: cfg.BrokerURL, now: cfg.Now, signers: map[string]jose.Signer{}}
	if i.now == nil {
		i.now = time.Now
	}
	keys, err := loadKeys(ctx, cfg.Keys, cfg.Sealer, i.now())
	if err != nil {
		return nil, fmt.Errorf("opening the issuer: %w", err)
	}
	var set jose.JSONWebKeySet
	for _, k := range keys {
		set.Keys = append(set.Keys, k.public)
		if i.signers[k.public.Algorithm], err = k.signer(); err != nil {
			return nil, fmt.Errorf("opening the issuer: %w", err)
		}
	}
	if i.jwks, err = json.Marshal(set); err != nil {
		return nil, fmt.Errorf("opening the issuer: rendering its key set: %w", err)
	}
	// What OpenID Connect Discovery 1.0 requires, as far as it exists here,
	// and what AWS wants to see before it registers an issuer.
	if i.discovery, err = json.Marshal(map[string]any{
		"issuer":                                i.url,
		"jwks_uri":                              i.url + JWKSPath,
		"claims_supported":                      append(ownClaims(), tagsClaim, sourceIdentityClaim),
		"id_token_signing_alg_values_supported": []string{ES256, RS256},
		"response_types_supported":              []string{"id_token"},
		"scopes_supported":                      []string{"openid"},
		"subject_types_supported":               []string{"public"},
	}); err != nil {
		return nil, fmt.Errorf("opening the issuer: rendering discovery: %w", err)
	}
	return i, nil
}

// Mute is an issuer without keys, of a broker that lives for one command: it
// publishes nothing and mints nothing, since nobody could ever verify it.
func Mute() *Issuer {
	return &Issuer{now: time.Now, discovery: []byte(`{}`), jwks: []byte(`{"keys":[]}`)}
}

// A muteError is the refusal of an issuer that has no keys.
type muteError struct{}

func (muteError) Error() string {
	return "this broker lives for one command, and has no tokens of its own"
}

// Hint names the cure.
func (muteError) Hint() string {
	return "let the provider log in with the job's own token: `auth: {method: ci}`"
}

func (cfg Config) check() error {
	if err := checkURL(cfg.URL); err != nil {
		return fmt.Errorf("issuer_url: %w", err)
	}
	switch {
	case cfg.BrokerURL == "":
		return errors.New("no broker URL: a token for the broker itself couldn't be refused")
	case cfg.Keys == nil:
		return errors.New("no key store")
	case cfg.Sealer == nil:
		return errors.New("no seal key")
	}
	return nil
}

// checkURL accepts an issuer's URL as OpenID Connect Discovery 1.0 has it.
func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return errors.New("it can't be parsed")
	}
	switch {
	case u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("%q isn't an https URL", u.Redacted())
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#") || strings.HasSuffix(s, "/"):
		return fmt.Errorf("%q has more than scheme, host, port and path, or a final slash", u.Redacted())
	}
	if u.Scheme == "http" {
		if ip, err := netip.ParseAddr(u.Hostname()); err != nil || !ip.IsLoopback() {
			return fmt.Errorf("%q is plain http, which only a loopback address may be", u.Redacted())
		}
	}
	return nil
}

// Discovery is the OpenID Connect discovery document. The caller doesn't
// change it.
func (i *Issuer) Discovery() []byte { return i.discovery }

// JWKS is the published key set. The caller doesn't change it.
func (i *Issuer) JWKS() []byte { return i.jwks }

// Handler serves the two documents at [DiscoveryPath] and [JWKSPath], to
// anybody. Where `issuer_url` has a path or another host than the broker,
// what stands before the broker leads those here.
func (i *Issuer) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+DiscoveryPath, document(i.discovery))
	mux.Handle("GET "+JWKSPath, document(i.jwks))
	return mux
}

func document(body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", fmt.Sprintf("public, max-age=%d", cacheSeconds))
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(body)
	}
}
