package awstest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/runenv/action/providers"
)

// An Issuer signs tokens as the broker's own issuer does, and serves its keys
// over HTTP.
type Issuer struct {
	URL    string
	signer jose.Signer
}

// NewIssuer starts one that ends with the test.
func NewIssuer(t testing.TB) *Issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &Issuer{}
	if i.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "k1")); err != nil {
		t.Fatal(err)
	}
	keys := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Algorithm: "ES256", Use: "sig"}}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/jwks"})
	})
	mux.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(keys) })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	i.URL = server.URL
	return i
}

// Sign signs claims over those of a token that lives five minutes; nil removes
// one.
func (i *Issuer) Sign(claims map[string]any) (string, error) {
	now := time.Now()
	all := map[string]any{"iss": i.URL, "iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": rand.Text()}
	for name, v := range claims {
		if v == nil {
			delete(all, name)
		} else {
			all[name] = v
		}
	}
	return jwt.Signed(i.signer).Claims(all).Serialize()
}

// Tokens are those of the broker for a RunEnv role and a session.
func (i *Issuer) Tokens(role, session string) providers.TokenSource {
	return func(_ context.Context, audience string) (string, error) {
		return i.Sign(map[string]any{
			"sub": "runenv:role:" + role, "aud": audience,
			"https://aws.amazon.com/source_identity": session,
			"https://aws.amazon.com/tags": map[string]any{"principal_tags": map[string][]string{
				"role": {role}, "session_id": {session}, "project": {"shop"}, "run_id": {"42"},
			}},
		})
	}
}
