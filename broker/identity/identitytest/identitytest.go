// Package identitytest is a CI's token issuer for tests: a real server on
// loopback that makes keys, serves discovery and the key set, and signs any
// claims, true or not. It can also stall, deny, redirect and lie.
//
// It knows nothing of package identity, so that tests of that package itself
// may use it. Give a verifier its URL with Loopback set, or from [NewTLS] its
// URL, Networks and RootCAs.
package identitytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	discoveryPath = "/.well-known/openid-configuration"
	keysPath      = "/.well-known/jwks"
)

// An Issuer is a running issuer. Its methods may be called at once.
type Issuer struct {
	URL      string         // also the iss claim that tokens need
	RootCAs  *x509.CertPool // who signed its certificate; nil with [New]
	Networks []netip.Prefix // where it listens

	tb     testing.TB
	closed chan struct{}

	mu        sync.Mutex
	now       func() time.Time
	keys      []signingKey // served in this order; the last one signs
	nextKey   int
	nextToken int
	discovery []byte // nil means the true one
	jwks      []byte // nil means the true one
	fault     http.HandlerFunc
	hits      map[string]int // by path
}

type signingKey struct {
	kid, alg string
	private  crypto.Signer
}

// oneRSAKey is shared by all issuers of a test binary: making one takes as
// long as most tests.
var oneRSAKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// New starts an issuer that speaks http on 127.0.0.1 until the test ends. It
// signs RS256, as GitHub and GitLab do.
func New(tb testing.TB) *Issuer { return start(tb, (*httptest.Server).Start) }

// NewTLS is like [New] but speaks https, with a certificate that RootCAs vouch
// for.
func NewTLS(tb testing.TB) *Issuer {
	return start(tb, func(s *httptest.Server) { s.StartTLS() })
}

func start(tb testing.TB, listen func(*httptest.Server)) *Issuer {
	tb.Helper()
	i := &Issuer{
		tb:       tb,
		closed:   make(chan struct{}),
		now:      time.Now,
		hits:     map[string]int{},
		Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
	}
	key, err := oneRSAKey()
	if err != nil {
		tb.Fatalf("making an RSA key: %v", err)
	}
	i.addKey("RS256", key)
	server := httptest.NewUnstartedServer(http.HandlerFunc(i.serve))
	// It is there to be hung up on.
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	listen(server)
	i.URL = server.URL
	if cert := server.Certificate(); cert != nil {
		i.RootCAs = x509.NewCertPool()
		i.RootCAs.AddCert(cert)
	}
	tb.Cleanup(func() {
		close(i.closed) // lets go of stalled requests
		server.Close()
	})
	return i
}

// SetNow sets the clock by which claims are made. The default is time.Now.
func (i *Issuer) SetNow(now func() time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.now = now
}

// Rotate signs with a new key from now on, and serves it beside the old ones.
// The algorithm is RS256 or ES256; RS256 keys have one modulus and differ in
// their id only.
func (i *Issuer) Rotate(alg string) {
	var key crypto.Signer
	var err error
	switch alg {
	case "RS256":
		key, err = oneRSAKey()
	case "ES256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		err = fmt.Errorf("identitytest makes no keys for %q", alg)
	}
	if err != nil {
		i.tb.Fatalf("making a key: %v", err)
	}
	i.addKey(alg, key)
}

// Withdraw stops serving all keys but the one that signs.
func (i *Issuer) Withdraw() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = i.keys[len(i.keys)-1:]
}

func (i *Issuer) addKey(alg string, key crypto.Signer) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.nextKey++
	i.keys = append(i.keys, signingKey{fmt.Sprintf("key-%d", i.nextKey), alg, key})
}

// KeyID is the id of the key that signs.
func (i *Issuer) KeyID() string { return i.signer().kid }

// PublicKey is the public half of the key that signs.
func (i *Issuer) PublicKey() crypto.PublicKey { return i.signer().private.Public() }

func (i *Issuer) signer() signingKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[len(i.keys)-1]
}

// Sign returns a token with these claims and the header that a CI sends.
func (i *Issuer) Sign(claims map[string]any) string {
	return i.SignWith(nil, claims)
}

// SignWith is like [Issuer.Sign] with members of the header put beside or over
// the usual alg, kid and typ; nil takes one away. The signature is a true one
// whatever the header says.
func (i *Issuer) SignWith(header, claims map[string]any) string {
	k := i.signer()
	merged := merge(map[string]any{"alg": k.alg, "kid": k.kid, "typ": "JWT"}, header)
	return i.SignRaw(i.marshal(merged), i.marshal(claims))
}

// SignRaw returns a token of these very bytes, JSON or not.
func (i *Issuer) SignRaw(header, payload []byte) string {
	k := i.signer()
	input := encode(header) + "." + encode(payload)
	sum := sha256.Sum256([]byte(input))
	var signature []byte
	var err error
	switch key := k.private.(type) {
	case *rsa.PrivateKey:
		signature, err = rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	case *ecdsa.PrivateKey:
		// JWS wants r and s as they are, not in ASN.1.
		r, s, signErr := ecdsa.Sign(rand.Reader, key, sum[:])
		if err = signErr; err == nil {
			signature = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		}
	}
	if err != nil {
		i.tb.Fatalf("signing a token: %v", err)
	}
	return input + "." + encode(signature)
}

// GitHub gives the claims of a job on the default branch of acme/shop-api (1001),
// as GitHub makes them. The token lives five minutes. Each map of changes is
// put over them in turn; a nil value takes a claim away.
func (i *Issuer) GitHub(audience string, changes ...map[string]any) map[string]any {
	now, jti := i.next()
	return merge(map[string]any{
		"iss":                   i.URL,
		"aud":                   audience,
		"sub":                   "repo:acme@501/shop-api@1001:environment:production",
		"jti":                   jti,
		"iat":                   now.Unix(),
		"nbf":                   now.Add(-10 * time.Minute).Unix(),
		"exp":                   now.Add(5 * time.Minute).Unix(),
		"actor":                 "octocat",
		"actor_id":              "583231",
		"base_ref":              "",
		"check_run_id":          "44001122334",
		"environment":           "production",
		"event_name":            "push",
		"head_ref":              "",
		"job_workflow_ref":      "acme/shop-api/.github/workflows/deploy.yml@refs/heads/main",
		"job_workflow_sha":      "8f1c0d1f5a2f9a53c2a1a0f0d3b1b0a6f3c1d2e4",
		"ref":                   "refs/heads/main",
		"ref_protected":         "true",
		"ref_type":              "branch",
		"repository":            "acme/shop-api",
		"repository_id":         "1001",
		"repository_owner":      "acme",
		"repository_owner_id":   "501",
		"repository_visibility": "private",
		"run_attempt":           "1",
		"run_id":                "19000000001",
		"run_number":            "42",
		"runner_environment":    "github-hosted",
		"sha":                   "8f1c0d1f5a2f9a53c2a1a0f0d3b1b0a6f3c1d2e4",
		"workflow":              "Deploy",
		"workflow_ref":          "acme/shop-api/.github/workflows/deploy.yml@refs/heads/main",
		"workflow_sha":          "8f1c0d1f5a2f9a53c2a1a0f0d3b1b0a6f3c1d2e4",
	}, changes...)
}

// GitLab gives the claims of a GitLab job on the default branch of pay/api
// (88), as GitLab makes them. The token lives an hour. Changes are as for
// [Issuer.GitHub].
func (i *Issuer) GitLab(audience string, changes ...map[string]any) map[string]any {
	now, jti := i.next()
	return merge(map[string]any{
		"iss":                   i.URL,
		"aud":                   audience,
		"sub":                   "project_path:pay/api:ref_type:branch:ref:main",
		"jti":                   jti,
		"iat":                   now.Unix(),
		"nbf":                   now.Add(-5 * time.Second).Unix(),
		"exp":                   now.Add(time.Hour).Unix(),
		"ci_config_ref_uri":     "gitlab.example.com/pay/api//.gitlab-ci.yml@refs/heads/main",
		"ci_config_sha":         "714a629c0b401fdce83e847fc9589983fc6f46bc",
		"deployment_tier":       "production",
		"environment":           "production",
		"environment_action":    "start",
		"environment_protected": "true",
		"groups_direct":         []string{"pay", "pay/admins"},
		"job_config":            map[string]any{"sha": "714a629c0b401fdce83e847fc9589983fc6f46bc"},
		"job_id":                "30002",
		"job_namespace_id":      "72",
		"job_namespace_path":    "pay",
		"job_project_id":        "88",
		"job_project_path":      "pay/api",
		"job_source":            "push",
		"namespace_id":          "72",
		"namespace_path":        "pay",
		"pipeline_id":           "20001",
		"pipeline_source":       "push",
		"project_id":            "88",
		"project_path":          "pay/api",
		"project_visibility":    "private",
		"ref":                   "main",
		"ref_path":              "refs/heads/main",
		"ref_protected":         "true",
		"ref_type":              "branch",
		"runner_environment":    "self-hosted",
		"runner_id":             7,
		"sha":                   "714a629c0b401fdce83e847fc9589983fc6f46bc",
		"user_access_level":     "maintainer",
		"user_email":            "sample-user@example.com",
		"user_id":               "302",
		"user_identities":       []any{map[string]any{"provider": "google", "extern_uid": "2435223452345"}},
		"user_login":            "sample-user",
	}, changes...)
}

func (i *Issuer) next() (time.Time, string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.nextToken++
	return i.now(), fmt.Sprintf("00000000-0000-4000-8000-%012d", i.nextToken)
}

// JWKS is the true key set.
func (i *Issuer) JWKS() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	var set jose.JSONWebKeySet
	for _, k := range i.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.private.Public(), KeyID: k.kid, Algorithm: k.alg, Use: "sig"})
	}
	return i.marshal(set)
}

// SetDiscovery serves this in place of the discovery document; nil ends that.
func (i *Issuer) SetDiscovery(doc []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.discovery = doc
}

// SetJWKS serves this in place of the key set; nil ends that.
func (i *Issuer) SetJWKS(doc []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.jwks = doc
}

// Fail answers all requests by h; nil ends that.
func (i *Issuer) Fail(h http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fault = h
}

// Deny answers all requests with the status and nothing else.
func (i *Issuer) Deny(status int) {
	i.Fail(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
}

// Redirect sends all requests to the same path at another origin.
func (i *Issuer) Redirect(origin string) {
	i.Fail(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, origin+r.URL.Path, http.StatusFound)
	})
}

// Stall holds all requests until release is called, or the client or the test
// gives up; then it serves those still held. Each one held sends on arrived.
func (i *Issuer) Stall() (arrived <-chan struct{}, release func()) {
	in, out := make(chan struct{}, 1024), make(chan struct{})
	i.Fail(func(w http.ResponseWriter, r *http.Request) {
		in <- struct{}{}
		select {
		case <-out:
			i.answer(w, r)
		case <-r.Context().Done():
		case <-i.closed:
		}
	})
	return in, func() {
		i.Fail(nil)
		close(out)
	}
}

// Hits counts the requests so far, those answered by faults included.
func (i *Issuer) Hits() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := 0
	for _, hits := range i.hits {
		n += hits
	}
	return n
}

// KeyHits counts the requests for the key set alone.
func (i *Issuer) KeyHits() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.hits[keysPath]
}

func (i *Issuer) serve(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.hits[r.URL.Path]++
	fault := i.fault
	i.mu.Unlock()
	if fault != nil {
		fault(w, r)
		return
	}
	i.answer(w, r)
}

func (i *Issuer) answer(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	discovery, jwks := i.discovery, i.jwks
	i.mu.Unlock()
	var doc []byte
	switch r.URL.Path {
	case discoveryPath:
		if doc = discovery; doc == nil {
			doc = i.Discovery(nil)
		}
	case keysPath:
		if doc = jwks; doc == nil {
			doc = i.JWKS()
		}
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(doc)
}

// Discovery is the true discovery document with members put over it; nil takes
// one away. See [Issuer.SetDiscovery].
func (i *Issuer) Discovery(changes map[string]any) []byte {
	return i.marshal(merge(map[string]any{
		"issuer":                                i.URL,
		"jwks_uri":                              i.URL + keysPath,
		"subject_types_supported":               []string{"public", "pairwise"},
		"response_types_supported":              []string{"id_token"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
		"scopes_supported":                      []string{"openid"},
	}, changes))
}

func (i *Issuer) marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		i.tb.Errorf("marshalling: %v", err)
	}
	return b
}

func merge(base map[string]any, changes ...map[string]any) map[string]any {
	out := maps.Clone(base)
	for _, c := range changes {
		maps.Copy(out, c)
	}
	maps.DeleteFunc(out, func(_ string, v any) bool { return v == nil })
	return out
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
