// Package devissuer is a local issuer that speaks GitHub's token-request
// protocol, so that `runenv-broker dev` and tests have a CI identity where
// there is no CI. It makes GitLab's tokens as well, by call.
//
// What it promises is to look real: the tokens' claims, times and algorithm
// are GitHub's and GitLab's, and what it serves under its URL can be read by
// any OIDC client. Its key dies with it.
//
// It vouches for nothing: whoever has its request token gets a token for any
// audience. So its URL must be a loopback literal. An Issuer is safe for
// concurrent use.
package devissuer

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
)

const (
	// keyBits is the size of GitHub's own keys. Making one took 38 ms at the
	// median and 141 ms at the most (40 keys, one core, 2026-11).
	keyBits = 2048

	// maxAudienceBytes bounds the audience that a token may be asked for.
	maxAudienceBytes = 1024
)

// ownClaims are those that only the issuer sets in a token that is asked for
// over HTTP.
var ownClaims = []string{"iss", "aud", "exp", "iat", "nbf", "jti"}

// Config is what [New] needs.
type Config struct {
	// URL is the issuer's own, as tokens will name it: http or https, a
	// loopback address literal, no final slash. Its path may be empty.
	URL string
	// Claims lie over those of GitHub's tokens, which else are a push to the
	// main branch of acme/shop-api (id 1001). nil removes a claim. The
	// issuer, the audience, the times and the id can't be set.
	Claims map[string]any
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// An Issuer signs CI tokens and serves what OIDC clients ask for.
type Issuer struct {
	url          string
	claims       map[string]any
	now          func() time.Time
	signer       jose.Signer
	requestToken string
	discovery    []byte
	jwks         []byte
	mux          *http.ServeMux
}

// New returns an Issuer with a fresh key and a fresh request token. It neither
// listens nor needs anything else to.
func New(cfg Config) (*Issuer, error) {
	u, err := parseURL(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("local issuer's URL: %w", err)
	}
	for _, name := range ownClaims {
		if _, ok := cfg.Claims[name]; ok {
			return nil, fmt.Errorf("local issuer: the claim %q is its own to set", name)
		}
	}
	i := &Issuer{url: cfg.URL, claims: githubClaims(cfg.Claims), now: cfg.Now, mux: http.NewServeMux()}
	if i.now == nil {
		i.now = time.Now
	}
	token := make([]byte, 32)
	_, _ = rand.Read(token) // never fails: the runtime ends the process instead
	i.requestToken = base64.RawURLEncoding.EncodeToString(token)
	if err := i.makeKey(); err != nil {
		return nil, fmt.Errorf("local issuer: %w", err)
	}
	if i.discovery, err = json.Marshal(map[string]any{
		"issuer":                                i.url,
		"jwks_uri":                              i.url + "/jwks",
		"claims_supported":                      slices.Sorted(maps.Keys(i.githubToken(""))),
		"id_token_signing_alg_values_supported": []string{string(jose.RS256)},
		"response_types_supported":              []string{"id_token"},
		"scopes_supported":                      []string{"openid"},
		"subject_types_supported":               []string{"public", "pairwise"},
	}); err != nil {
		return nil, fmt.Errorf("local issuer: rendering discovery: %w", err)
	}
	i.mux.HandleFunc("GET "+u.Path+"/.well-known/openid-configuration", document(i.discovery))
	i.mux.HandleFunc("GET "+u.Path+"/jwks", document(i.jwks))
	i.mux.HandleFunc("GET "+u.Path+"/token", i.serveToken)
	return i, nil
}

// parseURL accepts what a Config may hold as its URL.
func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("it can't be parsed")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q is neither http nor https", u.Redacted())
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err != nil || !ip.Unmap().IsLoopback() {
		return nil, fmt.Errorf("%q isn't on a loopback address: it would vouch for anybody who can reach it", u.Redacted())
	}
	if u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" ||
		strings.HasSuffix(s, "/") || u.Path != u.EscapedPath() || u.Path != "" && u.Path != path.Clean(u.Path) {
		return nil, fmt.Errorf("%q has more than scheme, host, port and a plain path", u.Redacted())
	}
	return u, nil
}

func (i *Issuer) makeKey() error {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	public := jose.JSONWebKey{Key: key.Public(), Algorithm: string(jose.RS256), Use: "sig"}
	thumbprint, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return fmt.Errorf("naming the key: %w", err)
	}
	public.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	if i.jwks, err = json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public}}); err != nil {
		return fmt.Errorf("rendering the key set: %w", err)
	}
	i.signer, err = jose.NewSigner(
		jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: public.KeyID}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return fmt.Errorf("preparing the key: %w", err)
	}
	return nil
}

// JWKS is the key set that the issuer serves. The caller doesn't change it.
func (i *Issuer) JWKS() []byte { return i.jwks }

// Environ returns the two variables by which a job finds GitHub's token
// endpoint, and nothing that says a runner reads its output: that isn't so.
func (i *Issuer) Environ() []string {
	return []string{
		"ACTIONS_ID_TOKEN_REQUEST_URL=" + i.url + "/token?api-version=2.0",
		"ACTIONS_ID_TOKEN_REQUEST_TOKEN=" + i.requestToken,
	}
}

// Sign signs exactly these claims, true or not. It is for tests.
func (i *Issuer) Sign(claims map[string]any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encoding claims: %w", err)
	}
	jws, err := i.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	return jws.CompactSerialize()
}

// GitHubToken signs what a request over HTTP would get for the audience, with
// the given claims laid over it: any of them, and nil removes one. Claims that
// are made out of others don't follow here.
func (i *Issuer) GitHubToken(audience string, claims map[string]any) (string, error) {
	return i.Sign(merged(i.githubToken(audience), claims))
}

// GitLabToken signs the token of a GitLab job: a push to the main branch of
// pay/api (id 88), an hour long, with the given claims laid over it: any of
// them, and nil removes one. The subject and other claims that GitLab makes
// out of others follow those. Its issuer is this one's URL.
func (i *Issuer) GitLabToken(audience string, claims map[string]any) (string, error) {
	return i.Sign(merged(
		gitlabClaims(claims),
		times(i.now(), gitlabEarly, gitlabLife),
		map[string]any{"iss": i.url, "aud": audience},
		claims))
}

func (i *Issuer) githubToken(audience string) map[string]any {
	return merged(
		i.claims,
		times(i.now(), githubEarly, githubLife),
		map[string]any{"iss": i.url, "aud": audience})
}

// ServeHTTP answers under the path of the issuer's URL: the discovery document
// at /.well-known/openid-configuration, the key set at /jwks, and GitHub's
// token request at /token.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) { i.mux.ServeHTTP(w, r) }

func document(body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-cache") // a new process has a new key
		_, _ = w.Write(body)
	}
}

// serveToken is GitHub's token request: the audience in the query, the request
// token as a bearer, the JWT in an object beside its length.
func (i *Issuer) serveToken(w http.ResponseWriter, r *http.Request) {
	if !i.authorized(r.Header.Values("Authorization")) {
		refuse(w, http.StatusUnauthorized, "the request token isn't this job's")
		return
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	audience := query["audience"]
	if err != nil || len(audience) != 1 || audience[0] == "" || len(audience[0]) > maxAudienceBytes || !utf8.ValidString(audience[0]) {
		refuse(w, http.StatusBadRequest, "Can't issue ID_TOKEN: give one audience of at most "+strconv.Itoa(maxAudienceBytes)+" bytes")
		return
	}
	token, err := i.Sign(i.githubToken(audience[0]))
	if err != nil {
		refuse(w, http.StatusInternalServerError, "Can't issue ID_TOKEN")
		return
	}
	answer(w, http.StatusOK, struct {
		Count int    `json:"count"`
		Value string `json:"value"`
	}{len(token), token})
}

func (i *Issuer) authorized(headers []string) bool {
	if len(headers) != 1 {
		return false
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	return strings.EqualFold(scheme, "bearer") &&
		subtle.ConstantTimeCompare([]byte(token), []byte(i.requestToken)) == 1
}

// refuse answers in the words of GitHub's token service.
func refuse(w http.ResponseWriter, status int, message string) {
	answer(w, status, struct {
		Source  string `json:"source"`
		Status  int    `json:"statusCode"`
		Message string `json:"errorMessage"`
	}{"actions-run-service", status, message})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a caller that has gone needs no answer
}
