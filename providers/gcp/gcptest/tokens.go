package gcptest

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/runenv/action/providers"
)

// An Issuer mints ID tokens as the broker does, and serves its keys.
type Issuer struct {
	URL    string
	signer jose.Signer
}

// NewIssuer starts one on a loopback address; it ends with the test.
func NewIssuer(t testing.TB) *Issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const id = "key-1"
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: id, Algorithm: string(jose.ES256), Use: "sig"}}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, set) }))
	t.Cleanup(server.Close)
	return &Issuer{URL: server.URL, signer: signer}
}

// Token mints a token for a RunEnv role that lives five minutes, with other
// claims laid over its own.
func (i *Issuer) Token(role, audience string, other map[string]any) (string, error) {
	now := time.Now()
	c := map[string]any{
		"iss": i.URL, "sub": "runenv:role:" + role, "aud": audience, "role": role, "project": "shop",
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": rand.Text(),
	}
	maps.Copy(c, other)
	return jwt.Signed(i.signer).Claims(c).Serialize()
}

// Tokens is a source of such tokens for a RunEnv role.
func (i *Issuer) Tokens(role string) providers.TokenSource {
	return func(_ context.Context, audience string) (string, error) { return i.Token(role, audience, nil) }
}

// Trust lets the fake take the issuer's tokens.
func (s *Server) Trust(i *Issuer) { s.Issuer, s.JWKSURL = i.URL, i.URL+"/jwks" }

// exchange is STS (RFC 8693).
func (s *Server) exchange(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		refuseOAuth(w, "invalid_request", "The request isn't a form.")
		return
	}
	f := r.PostForm
	switch {
	case f.Get("grant_type") != "urn:ietf:params:oauth:grant-type:token-exchange",
		f.Get("requested_token_type") != "urn:ietf:params:oauth:token-type:access_token",
		f.Get("subject_token_type") != "urn:ietf:params:oauth:token-type:jwt",
		f.Get("scope") == "", f.Get("subject_token") == "":
		refuseOAuth(w, "invalid_request", "A parameter is missing or has another value.")
		return
	case f.Get("audience") != Pool:
		refuseOAuth(w, "invalid_target", `The target service indicated by the "audience" parameters is invalid. This might either be because the pool or provider is disabled or deleted or because it doesn't exist.`)
		return
	}
	subject, code, description := s.verify(r.Context(), f.Get("subject_token"))
	if code != "" {
		refuseOAuth(w, code, description)
		return
	}
	const life = time.Hour
	token := s.grant(r.URL.Path, Principal(subject), life, strings.Fields(f.Get("scope")))
	reply(w, http.StatusOK, map[string]any{
		"access_token": token, "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
		"token_type": "Bearer", "expires_in": int(life.Seconds()),
	})
}

// verify checks an ID token as a pool's provider does.
func (s *Server) verify(ctx context.Context, token string) (subject, code, description string) {
	const bad = "invalid_grant"
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
	if err != nil {
		return "", bad, "The ID Token isn't a JWT."
	}
	var claims map[string]any
	if parsed.UnsafeClaimsWithoutVerification(&claims) != nil {
		return "", bad, "The ID Token has no claims."
	}
	if claims["iss"] != s.Issuer {
		return "", bad, fmt.Sprintf("The issuer in ID Token %v does not match the expected ones: %s", claims["iss"], s.Issuer)
	}
	if aud := claims["aud"]; aud != Pool && aud != "https:"+Pool {
		return "", bad, fmt.Sprintf("The audience in ID Token [%v] does not match the expected audience.", aud)
	}
	keys, err := fetchKeys(ctx, cmp.Or(s.HTTP, http.DefaultClient), s.JWKSURL)
	if err != nil {
		return "", bad, "Error connecting to the given credential's issuer."
	}
	var signed map[string]any
	if parsed.Claims(keys, &signed) != nil {
		return "", bad, "Invalid JWT Signature."
	}
	now := float64(time.Now().Unix())
	if exp, ok := signed["exp"].(float64); !ok || now > exp {
		return "", bad, "The ID Token is expired."
	}
	if iat, ok := signed["iat"].(float64); !ok || now < iat-60 {
		return "", bad, "The ID Token was issued in the future."
	}
	subject, _ = signed["sub"].(string)
	if len(subject) > 127 {
		return "", "invalid_request", "The size of mapped attribute google.subject exceeds the 127 bytes limit."
	}
	for name, values := range s.Condition {
		if v, _ := signed[name].(string); !slices.Contains(values, v) {
			return "", "unauthorized_client", "The given credential is rejected by the attribute condition."
		}
	}
	return subject, "", ""
}

func fetchKeys(ctx context.Context, client *http.Client, url string) (*jose.JSONWebKeySet, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var set jose.JSONWebKeySet
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&set); err != nil {
		return nil, err
	}
	return &set, nil
}

// impersonated reads a request of IAM Credentials and checks the chain from
// the caller over the delegates to the account.
func (s *Server) impersonated(w http.ResponseWriter, r *http.Request, account, permission string, body any, delegates *[]string) bool {
	caller, ok := s.caller(r.Header.Get("Authorization"))
	if !ok {
		refuseAPI(w, http.StatusUnauthorized, "UNAUTHENTICATED", "ACCESS_TOKEN_EXPIRED", "Request had invalid authentication credentials.")
		return false
	}
	if json.NewDecoder(r.Body).Decode(body) != nil {
		refuseAPI(w, http.StatusBadRequest, "INVALID_ARGUMENT", "", "Invalid JSON payload received.")
		return false
	}
	chain := make([]string, 0, len(*delegates)+1)
	for _, d := range *delegates {
		email, ok := strings.CutPrefix(d, "projects/-/serviceAccounts/")
		if !ok {
			refuseAPI(w, http.StatusBadRequest, "INVALID_ARGUMENT", "", "Invalid delegate.")
			return false
		}
		chain = append(chain, email)
	}
	for _, link := range append(chain, account) {
		a, ok := s.Accounts[link]
		if !ok {
			refuseAPI(w, http.StatusNotFound, "NOT_FOUND", "", "Not found; Gaia id not found for email "+link)
			return false
		}
		if !slices.Contains(a.Members, caller) {
			refuseAPI(w, http.StatusForbidden, "PERMISSION_DENIED", "IAM_PERMISSION_DENIED", "Permission '"+permission+"' denied on resource (or it may not exist).")
			return false
		}
		caller = Account(link)
	}
	return true
}

func (s *Server) accessToken(w http.ResponseWriter, r *http.Request, account string) {
	var body struct {
		Delegates []string `json:"delegates"`
		Lifetime  string   `json:"lifetime"`
		Scope     []string `json:"scope"`
	}
	if !s.impersonated(w, r, account, "iam.serviceAccounts.getAccessToken", &body, &body.Delegates) {
		return
	}
	longest := time.Hour
	if s.Accounts[account].Extended {
		longest = 12 * time.Hour
	}
	seconds, err := strconv.Atoi(strings.TrimSuffix(body.Lifetime, "s"))
	life := time.Duration(seconds) * time.Second
	if err != nil || life <= 0 || life > longest || len(body.Scope) == 0 {
		refuseAPI(w, http.StatusBadRequest, "INVALID_ARGUMENT", "", "The lifetime isn't allowed, or a scope is missing.")
		return
	}
	token := s.grant(r.URL.Path, Account(account), life, body.Scope)
	reply(w, http.StatusOK, map[string]any{"accessToken": token, "expireTime": time.Now().Add(life).UTC().Format(time.RFC3339)})
}

// googleIssuer signs ID tokens of service accounts; nobody verifies them here.
var googleIssuer = []byte("c4n4ry-google-signs-with-this-key")

func (s *Server) idToken(w http.ResponseWriter, r *http.Request, account string) {
	var body struct {
		Delegates    []string `json:"delegates"`
		Audience     string   `json:"audience"`
		IncludeEmail bool     `json:"includeEmail"`
	}
	if !s.impersonated(w, r, account, "iam.serviceAccounts.getOpenIdToken", &body, &body.Delegates) {
		return
	}
	now := time.Now()
	c := map[string]any{
		"iss": "https://accounts.google.com", "sub": "1" + strings.Repeat("0", 20), "aud": body.Audience,
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "jti": rand.Text(),
	}
	if body.IncludeEmail {
		c["email"], c["email_verified"] = account, true
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: googleIssuer}, nil)
	if err != nil {
		panic(err)
	}
	token, err := jwt.Signed(signer).Claims(c).Serialize()
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	s.issued[r.URL.Path]++
	s.mu.Unlock()
	reply(w, http.StatusOK, map[string]any{"token": token})
}
