package devissuer_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/internal/devissuer"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// start serves an issuer under /issuer of a server of its own.
func start(t *testing.T, claims map[string]any) (*devissuer.Issuer, string) {
	t.Helper()
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	issuerURL := srv.URL + "/issuer"
	iss, err := devissuer.New(devissuer.Config{URL: issuerURL, Claims: claims, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	mux.Handle("/issuer/", iss)
	return iss, issuerURL
}

func environ(t *testing.T, iss *devissuer.Issuer) (requestURL, requestToken string) {
	t.Helper()
	env := map[string]string{}
	for _, kv := range iss.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		env[name] = value
	}
	requestURL, requestToken = env["ACTIONS_ID_TOKEN_REQUEST_URL"], env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"]
	if len(env) != 2 || requestURL == "" || requestToken == "" {
		t.Fatalf("Environ has the names of %d variables, want the two of the token request", len(env))
	}
	return requestURL, requestToken
}

// get asks as a job does: the variable's URL with more query after it.
func get(t *testing.T, target string, authorization ...string) (int, http.Header, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header["Authorization"] = authorization
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, body
}

func request(t *testing.T, iss *devissuer.Issuer, audience string) string {
	t.Helper()
	requestURL, requestToken := environ(t, iss)
	status, _, body := get(t, requestURL+"&audience="+url.QueryEscape(audience), "bearer "+requestToken)
	var answer struct {
		Count int
		Value string
	}
	if err := json.Unmarshal(body, &answer); err != nil || status != http.StatusOK {
		t.Fatalf("token request = %d, %v, want 200 and JSON", status, err)
	}
	if answer.Count != len(answer.Value) {
		t.Errorf("count = %d, want the token's length, %d", answer.Count, len(answer.Value))
	}
	return answer.Value
}

// verify reads a token as a relying party does: discovery, key set, signature.
func verify(t *testing.T, issuerURL, audience, token string) map[string]any {
	t.Helper()
	provider, err := oidc.NewProvider(t.Context(), issuerURL)
	if err != nil {
		t.Fatal(err)
	}
	verified, err := provider.Verifier(&oidc.Config{ClientID: audience, Now: func() time.Time { return now }}).Verify(t.Context(), token)
	if err != nil {
		t.Fatalf("Verify = %v", err)
	}
	claims := map[string]any{}
	if err := verified.Claims(&claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func TestRequestedTokenLooksLikeGitHubs(t *testing.T) {
	t.Parallel()
	iss, issuerURL := start(t, nil)
	const audience = "https://runenv.example.com/?a=1&b=2"
	claims := verify(t, issuerURL, audience, request(t, iss, audience))

	if jti, _ := claims["jti"].(string); len(jti) != 36 {
		t.Errorf("jti = %q, want a UUID", jti)
	}
	delete(claims, "jti")
	const sha = "6dcb09b5b57875f334f61aebed695e2e4193db5e"
	at := float64(now.Unix())
	want := map[string]any{
		"iss": issuerURL, "aud": audience, "iat": at, "nbf": at - 600, "exp": at + 300,
		"sub":   "repo:acme@501/shop-api@1001:ref:refs/heads/main",
		"actor": "octocat", "actor_id": "583231",
		"base_ref": "", "head_ref": "", "check_run_id": "40000000001", "event_name": "push",
		"job_workflow_ref": "acme/shop-api/.github/workflows/ci.yml@refs/heads/main", "job_workflow_sha": sha,
		"ref": "refs/heads/main", "ref_protected": "true", "ref_type": "branch",
		"repository": "acme/shop-api", "repository_id": "1001",
		"repository_owner": "acme", "repository_owner_id": "501", "repository_visibility": "private",
		"run_attempt": "1", "run_id": "20000000001", "run_number": "42", "runner_environment": "self-hosted",
		"sha": sha, "workflow": "CI", "workflow_sha": sha,
		"workflow_ref": "acme/shop-api/.github/workflows/ci.yml@refs/heads/main",
	}
	if diff := cmp.Diff(want, claims); diff != "" {
		t.Errorf("claims differ (-want +got):\n%s", diff)
	}
}

func TestClaimsFollowWhatIsOverridden(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name           string
		claims         map[string]any
		want, wantGone map[string]any
	}{
		{
			"repository and ref",
			map[string]any{"repository": "pay/api", "repository_id": "77", "repository_owner_id": "5", "ref": "refs/heads/dev"},
			map[string]any{
				"sub": "repo:pay@5/api@77:ref:refs/heads/dev", "repository_owner": "pay",
				"workflow_ref":     "pay/api/.github/workflows/ci.yml@refs/heads/dev",
				"job_workflow_ref": "pay/api/.github/workflows/ci.yml@refs/heads/dev",
			}, nil,
		},
		{"environment", map[string]any{"environment": "prod:eu"}, map[string]any{"sub": "repo:acme@501/shop-api@1001:environment:prod%3Aeu"}, nil},
		{"pull request", map[string]any{"event_name": "pull_request"}, map[string]any{"sub": "repo:acme@501/shop-api@1001:pull_request"}, nil},
		{"old subject", map[string]any{"sub": "repo:acme/shop-api:ref:refs/heads/main"}, map[string]any{"sub": "repo:acme/shop-api:ref:refs/heads/main"}, nil},
		{"removed", map[string]any{"check_run_id": nil, "workflow_ref": nil}, nil, map[string]any{"check_run_id": nil, "workflow_ref": nil}},
		{"a number", map[string]any{"repository_id": 77}, map[string]any{"repository_id": 77.0}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			iss, issuerURL := start(t, tt.claims)
			claims := verify(t, issuerURL, "aud", request(t, iss, "aud"))
			for name, want := range tt.want {
				if got := claims[name]; got != want {
					t.Errorf("claim %s = %v, want %v", name, got, want)
				}
			}
			for name := range tt.wantGone {
				if got, ok := claims[name]; ok {
					t.Errorf("claim %s = %v, want none", name, got)
				}
			}
		})
	}
}

func TestTokenRequestRefusals(t *testing.T) {
	t.Parallel()
	iss, issuerURL := start(t, nil)
	other, _ := start(t, nil)
	requestURL, requestToken := environ(t, iss)
	_, otherToken := environ(t, other)
	ok := requestURL + "&audience=x"
	tests := []struct {
		name, url     string
		authorization []string
		want          int
	}{
		{"lower-case bearer", ok, []string{"bearer " + requestToken}, 200},
		{"upper-case Bearer", ok, []string{"Bearer " + requestToken}, 200},
		{"longest audience", requestURL + "&audience=" + strings.Repeat("a", 1024), []string{"bearer " + requestToken}, 200},
		{"no authorization", ok, nil, 401},
		{"empty authorization", ok, []string{""}, 401},
		{"no token", ok, []string{"bearer "}, 401},
		{"bare token", ok, []string{requestToken}, 401},
		{"basic", ok, []string{"basic " + requestToken}, 401},
		{"another issuer's", ok, []string{"bearer " + otherToken}, 401},
		{"cut short", ok, []string{"bearer " + requestToken[:len(requestToken)-1]}, 401},
		{"longer", ok, []string{"bearer " + requestToken + "A"}, 401},
		{"two headers", ok, []string{"bearer " + requestToken, "bearer " + requestToken}, 401},
		{"no audience", requestURL, []string{"bearer " + requestToken}, 400},
		{"empty audience", requestURL + "&audience=", []string{"bearer " + requestToken}, 400},
		{"two audiences", ok + "&audience=y", []string{"bearer " + requestToken}, 400},
		{"long audience", requestURL + "&audience=" + strings.Repeat("a", 1025), []string{"bearer " + requestToken}, 400},
		{"not UTF-8", requestURL + "&audience=%ff", []string{"bearer " + requestToken}, 400},
		{"broken query", ok + "&x=%zz", []string{"bearer " + requestToken}, 400},
		{"outside its path", strings.Replace(ok, "/issuer/", "/", 1), []string{"bearer " + requestToken}, 404},
		{"unknown page", issuerURL + "/token/x", []string{"bearer " + requestToken}, 404},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			status, header, body := get(t, tt.url, tt.authorization...)
			if status != tt.want {
				t.Fatalf("status = %d, want %d", status, tt.want)
			}
			if strings.Contains(string(body), requestToken) {
				t.Error("the answer holds the request token")
			}
			if status == 404 {
				return
			}
			if got := header.Get("Cache-Control"); got != "no-store" {
				t.Errorf("Cache-Control = %q, want no-store", got)
			}
			if status == 200 {
				return
			}
			var refusal struct {
				Source       string
				StatusCode   int
				ErrorMessage string
			}
			if err := json.Unmarshal(body, &refusal); err != nil || refusal.StatusCode != tt.want || refusal.ErrorMessage == "" {
				t.Errorf("body = %s, want GitHub's form of an error", body)
			}
		})
	}
}

func TestOnlyGetIsServed(t *testing.T) {
	t.Parallel()
	iss, _ := start(t, nil)
	requestURL, requestToken := environ(t, iss)
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, requestURL+"&audience=x", strings.NewReader("audience=x"))
	req.Header.Set("Authorization", "bearer "+requestToken)
	w := httptest.NewRecorder()
	iss.ServeHTTP(w, req)
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST = %d, want 405", w.Code)
	}
}

func TestTokensAreUniqueUnderConcurrency(t *testing.T) {
	t.Parallel()
	iss, issuerURL := start(t, nil)
	const n = 32
	tokens := make([]string, n)
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			var err error
			if tokens[i], err = iss.GitHubToken("aud", nil); i%2 == 1 {
				tokens[i], err = iss.GitLabToken("aud", nil)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	seen := map[any]bool{}
	for _, token := range tokens {
		seen[verify(t, issuerURL, "aud", token)["jti"]] = true
	}
	if len(seen) != n {
		t.Errorf("%d tokens have %d ids", n, len(seen))
	}
}

func TestGitHubTokenTakesAnyClaim(t *testing.T) {
	t.Parallel()
	iss, issuerURL := start(t, map[string]any{"ref": "refs/heads/dev"})
	claims := verify(t, issuerURL, "aud", must(t)(iss.GitHubToken("aud", map[string]any{"jti": "again", "nbf": nil})))
	if claims["jti"] != "again" || claims["ref"] != "refs/heads/dev" {
		t.Errorf("jti = %v, ref = %v, want again and refs/heads/dev", claims["jti"], claims["ref"])
	}
	if nbf, ok := claims["nbf"]; ok {
		t.Errorf("nbf = %v, want none", nbf)
	}
}

func TestGitLabTokenLooksLikeGitLabs(t *testing.T) {
	t.Parallel()
	iss, issuerURL := start(t, nil)
	claims := verify(t, issuerURL, "aud", must(t)(iss.GitLabToken("aud", nil)))
	delete(claims, "jti")
	const sha = "6dcb09b5b57875f334f61aebed695e2e4193db5e"
	at := float64(now.Unix())
	want := map[string]any{
		"iss": issuerURL, "aud": "aud", "iat": at, "nbf": at - 5, "exp": at + 3600,
		"sub":          "project_path:pay/api:ref_type:branch:ref:main",
		"namespace_id": "72", "namespace_path": "pay", "project_id": "88", "project_path": "pay/api",
		"job_namespace_id": "72", "job_namespace_path": "pay", "job_project_id": "88", "job_project_path": "pay/api",
		"project_visibility": "private", "pipeline_id": "10000000001", "pipeline_source": "push",
		"job_id": "30000000001", "job_source": "push",
		"user_id": "7", "user_login": "sam", "user_email": "sam@example.com", "user_access_level": "developer",
		"user_identities": []any{map[string]any{"provider": "saml", "extern_uid": "sam"}},
		"groups_direct":   []any{"pay"},
		"ref":             "main", "ref_type": "branch", "ref_path": "refs/heads/main", "ref_protected": "true",
		"environment_protected": "false", "runner_id": 1.0, "runner_environment": "self-hosted", "sha": sha,
		"ci_config_ref_uri": "gitlab.example.com/pay/api//.gitlab-ci.yml@refs/heads/main", "ci_config_sha": sha,
	}
	if diff := cmp.Diff(want, claims); diff != "" {
		t.Errorf("claims differ (-want +got):\n%s", diff)
	}
}

func TestGitLabClaimsFollowWhatIsOverridden(t *testing.T) {
	t.Parallel()
	iss, issuerURL := start(t, nil)
	tests := []struct {
		name         string
		claims, want map[string]any
	}{
		{
			"another project",
			map[string]any{"project_path": "a/b/c", "project_id": "9", "namespace_id": "3", "ref": "dev"},
			map[string]any{
				"sub": "project_path:a/b/c:ref_type:branch:ref:dev", "namespace_path": "a/b", "job_project_id": "9",
				"job_project_path": "a/b/c", "job_namespace_id": "3", "ref_path": "refs/heads/dev",
			},
		},
		{"tag", map[string]any{"ref": "v1", "ref_type": "tag"}, map[string]any{"ref_path": "refs/tags/v1", "sub": "project_path:pay/api:ref_type:tag:ref:v1"}},
		{
			"merge request from a fork",
			map[string]any{"pipeline_source": "merge_request_event", "ref": "refs/merge-requests/1/head", "project_id": "99", "job_project_id": "88"},
			map[string]any{"project_id": "99", "job_project_id": "88", "ref_path": "refs/merge-requests/1/head"},
		},
		{"another issuer's id and no id", map[string]any{"jti": nil, "runner_id": "1"}, map[string]any{"jti": nil, "runner_id": "1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			claims := verify(t, issuerURL, "aud", must(t)(iss.GitLabToken("aud", tt.claims)))
			for name, want := range tt.want {
				if got := claims[name]; got != want {
					t.Errorf("claim %s = %v, want %v", name, got, want)
				}
			}
		})
	}
}

func TestSignAddsNothing(t *testing.T) {
	t.Parallel()
	iss, issuerURL := start(t, nil)
	claims := map[string]any{"iss": issuerURL, "aud": "a", "exp": float64(now.Unix() + 1)}
	got := verify(t, issuerURL, "a", must(t)(iss.Sign(claims)))
	if diff := cmp.Diff(claims, got); diff != "" {
		t.Errorf("claims differ (-want +got):\n%s", diff)
	}
	if _, err := iss.Sign(map[string]any{"f": func() {}}); err == nil {
		t.Error("Sign of what JSON can't hold succeeded")
	}
}

func TestServesOneKeySet(t *testing.T) {
	t.Parallel()
	iss, issuerURL := start(t, nil)
	_, header, served := get(t, issuerURL+"/jwks")
	if string(served) != string(iss.JWKS()) || header.Get("Content-Type") != "application/json" {
		t.Errorf("GET /jwks (%s) isn't JWKS()", header.Get("Content-Type"))
	}
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal(served, &set); err != nil || len(set.Keys) != 1 {
		t.Fatalf("key set has %d keys, %v, want 1", len(set.Keys), err)
	}
	key := set.Keys[0]
	if key["kid"] == "" || key["n"] == "" {
		t.Errorf("key = %v, want an id and a modulus", key)
	}
	delete(key, "kid")
	delete(key, "n")
	if diff := cmp.Diff(map[string]string{"kty": "RSA", "alg": "RS256", "use": "sig", "e": "AQAB"}, key); diff != "" {
		t.Errorf("key differs, or holds more than its public half (-want +got):\n%s", diff)
	}
	other, _ := start(t, nil)
	if string(other.JWKS()) == string(served) {
		t.Error("two issuers share a key")
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, u := range []string{
		"", "127.0.0.1:80", "ftp://127.0.0.1", "http://localhost/issuer", "http://example.com", "http://10.0.0.1",
		"http://0.0.0.0", "http://127.0.0.1/issuer/", "http://127.0.0.1/", "http://127.0.0.1/i?x=1", "http://127.0.0.1/i?",
		"http://127.0.0.1/i#f", "http://me@127.0.0.1/i", "http://127.0.0.1/a/../b", "http://127.0.0.1/{x}", "http://127.0.0.1/%20",
		"http://127.0.0.1.example.com", "http://[::ffff:10.0.0.1]/",
	} {
		if _, err := devissuer.New(devissuer.Config{URL: u}); err == nil {
			t.Errorf("New accepted the URL %q", u)
		}
	}
	for _, claim := range []string{"iss", "aud", "exp", "iat", "nbf", "jti"} {
		if _, err := devissuer.New(devissuer.Config{URL: "http://127.0.0.1:1", Claims: map[string]any{claim: nil}}); err == nil {
			t.Errorf("New let the claim %q be set", claim)
		}
	}
	for _, u := range []string{"http://127.0.0.1:8080", "https://[::1]:8443/issuer", "http://127.8.9.1:1/a/b"} {
		if _, err := devissuer.New(devissuer.Config{URL: u}); err != nil {
			t.Errorf("New(%q) = %v", u, err)
		}
	}
}

func TestT18PasswordInURLIsntShown(t *testing.T) {
	t.Parallel()
	for _, u := range []string{"http://user:CANARY\x7f@127.0.0.1", "http://user:CANARY@127.0.0.1", "ftp://user:CANARY@127.0.0.1", "http://user:CANARY@example.com"} {
		if _, err := devissuer.New(devissuer.Config{URL: u}); err == nil || strings.Contains(fmt.Sprint(err), "CANARY") {
			t.Error("New accepted a URL with a password, or shows it")
		}
	}
}

// must unwraps the two results of a maker of tokens.
func must(t *testing.T) func(string, error) string {
	t.Helper()
	return func(token string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
}
