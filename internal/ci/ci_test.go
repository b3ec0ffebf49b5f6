package ci_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/internal/ci"
	"github.com/runenv/action/internal/devissuer"
	"github.com/runenv/action/secret"
)

const audience = "https://runenv.example.com"

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func jwt(claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
}

func hint(err error) string {
	h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err)
	if !ok {
		return ""
	}
	return h.Hint()
}

func TestDetectOrder(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(" "+jwt(`{"from":"file"}`)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	github := []string{ci.VarRequestURL, "https://token.example.com/x?api-version=2.0", ci.VarRequestToken, "request"}
	variable := append([]string{ci.VarToken, jwt(`{"from":"variable"}`)}, github...)
	for name, env := range map[string]func(string) string{
		"GitHub Actions": env(github...),
		ci.VarToken:      env(variable...),
		ci.VarTokenFile:  env(append([]string{ci.VarTokenFile, file}, variable...)...),
	} {
		src, err := ci.Detect(ci.Config{Getenv: env})
		if err != nil || src.Name() != name {
			t.Errorf("Detect = %v, %v, want %s", src, err, name)
			continue
		}
		if name == "GitHub Actions" {
			continue
		}
		token, err := src.Token(t.Context(), audience)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := ci.Peek(token); err != nil {
			t.Errorf("%s gave %q: %v", name, token.Reveal(), err)
		}
	}
}

func TestNoTokenNamesTheCure(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		env  func(string) string
		want string
	}{
		{"GitHub", env("GITHUB_ACTIONS", "true"), `add "permissions: id-token: write" to the job`},
		{"GitHub, half", env(ci.VarRequestURL, "https://x.example.com"), `add "permissions: id-token: write" to the job`},
		{"a fork", env("GITHUB_ACTIONS", "true"), "forks"},
		{"GitLab", env("GITLAB_CI", "true"), "id_tokens: RUNENV_ID_TOKEN: aud:"},
		{"another CI", env("CI", "woodpecker"), ci.VarToken},
		{"no CI", env("CI", "false"), "runenv-broker dev"},
	} {
		_, err := ci.Detect(ci.Config{Getenv: tt.env})
		var none *ci.NoTokenError
		if !errors.As(err, &none) || !strings.Contains(none.Hint(), tt.want) {
			t.Errorf("%s: Detect = %v, hint %q, want %q", tt.name, err, hint(err), tt.want)
		}
	}
}

func TestKind(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, value, want string
	}{
		{"GITHUB_ACTIONS", "true", "github"},
		{"GITHUB_ACTIONS", "false", ""},
		{"GITLAB_CI", "true", "gitlab"},
		{"CI", "true", "other"},
		{"CI", "0", ""},
		{"JENKINS_URL", "https://jenkins.example.com", "other"},
		{ci.VarToken, "x", "other"},
		{ci.VarTokenFile, "/x", "other"},
		{ci.VarRequestURL, "https://x.example.com", "github"},
		{"HOME", "/root", ""},
	} {
		if got := ci.Kind(env(tt.name, tt.value)); got != tt.want {
			t.Errorf("Kind(%s=%s) = %q, want %q", tt.name, tt.value, got, tt.want)
		}
	}
}

func TestGivenTokensAreBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"empty":           "",
		"unexpanded":      "$RUNENV_ID_TOKEN",
		"two lines":       jwt(`{}`) + "\r\nX-Header: 1",
		"two parts":       "e30.e30",
		"five parts":      "a.b.c.d.e",
		"one MiB":         strings.Repeat("a", 1<<20) + "." + "b.c",
		"one MiB of dots": strings.Repeat(".", 1<<20),
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		vars := [][]string{{ci.VarTokenFile, file}, {ci.VarToken, content}}
		if content == "" {
			vars = vars[:1] // an empty variable is no variable
		}
		for _, v := range vars {
			src, err := ci.Detect(ci.Config{Getenv: env(v...)})
			if err != nil {
				t.Fatal(err)
			}
			_, err = src.Token(t.Context(), audience)
			if err == nil || content != "" && strings.Contains(err.Error(), content) {
				t.Errorf("%s in %s: error %v", name, v[0], err)
			}
		}
	}
	src, err := ci.Detect(ci.Config{Getenv: env(ci.VarTokenFile, filepath.Join(dir, "none"))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := src.Token(t.Context(), audience); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// endpoint is a fake of GitHub's: answers are given in turn, the last again.
func endpoint(t *testing.T, answers ...http.HandlerFunc) (ci.Source, *atomic.Int32, *[]time.Duration) {
	t.Helper()
	var calls atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int(calls.Add(1))
		if got := r.Header.Get("Authorization"); got != "bearer request-token" {
			t.Errorf("Authorization = %q", got)
		}
		if q := r.URL.Query(); q.Get("audience") != audience || q.Get("api-version") != "2.0" || len(q["audience"]) != 1 {
			t.Errorf("query = %v", q)
		}
		answers[min(n, len(answers))-1](w, r)
	}))
	t.Cleanup(srv.Close)
	// On a connection used before, net/http would itself try a cut GET again.
	srv.Config.SetKeepAlivesEnabled(false)
	var waits []time.Duration
	src, err := ci.Detect(ci.Config{
		Getenv: env(ci.VarRequestURL, srv.URL+"/token?api-version=2.0&audience=other", ci.VarRequestToken, "request-token"),
		Wait: func(ctx context.Context, d time.Duration) error {
			waits = append(waits, d)
			return ctx.Err()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return src, &calls, &waits
}

func status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}
}

func cut(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

var good = status(200, `{"count":9,"value":"`+jwt(`{"sub":"me"}`)+`"}`)

func TestGitHubRetries(t *testing.T) {
	t.Parallel()
	const secretBody = "body-that-stays-inside"
	for _, tt := range []struct {
		name    string
		answers []http.HandlerFunc
		calls   int32
		wantErr string // "" means a token
	}{
		{"at once", []http.HandlerFunc{good}, 1, ""},
		{"after 503, 429, 403 and a cut", []http.HandlerFunc{status(503, ""), status(429, ""), status(403, `{"message":"Can't issue ID_TOKEN"}`), cut, good}, 5, ""},
		{"never", []http.HandlerFunc{status(503, secretBody)}, 5, "503"},
		{"no permission", []http.HandlerFunc{status(403, secretBody)}, 1, "403"},
		{"no such job", []http.HandlerFunc{status(401, secretBody)}, 1, "401"},
		{"redirected", []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere?"+r.URL.RawQuery, http.StatusTemporaryRedirect)
		}}, 1, "307"},
		{"not JSON", []http.HandlerFunc{status(200, secretBody)}, 1, "holds no token"},
		{"no token", []http.HandlerFunc{status(200, `{"value":""}`)}, 1, "holds no token"},
		{"a token with a line break", []http.HandlerFunc{status(200, `{"value":"a.b.c\r\nX: y"}`)}, 1, "holds no token"},
		{"an endless answer", []http.HandlerFunc{status(200, `{"value":"`+strings.Repeat("a", 1<<20))}, 1, "over 65536 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			src, calls, waits := endpoint(t, tt.answers...)
			token, err := src.Token(t.Context(), audience)
			if calls.Load() != tt.calls || len(*waits) != int(tt.calls)-1 {
				t.Errorf("%d calls with %d waits, want %d", calls.Load(), len(*waits), tt.calls)
			}
			if tt.wantErr == "" {
				if err != nil || !token.Equal(secret.FromString(jwt(`{"sub":"me"}`))) {
					t.Errorf("Token: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
				t.Fatalf("Token: %v, want %q", err, tt.wantErr)
			}
			for _, leak := range []string{secretBody, "request-token", "127.0.0.1"} {
				if strings.Contains(err.Error()+hint(err), leak) {
					t.Errorf("%q stands in: %v", leak, err)
				}
			}
		})
	}
}

func TestGitHubStopsWithTheContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	src, calls, _ := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	if _, err := src.Token(ctx, audience); !errors.Is(err, context.Canceled) {
		t.Errorf("Token: %v, want cancelled", err)
	}
	if calls.Load() != 1 {
		t.Errorf("%d calls, want 1", calls.Load())
	}
}

// The request token may cross this machine in clear text, and no network.
func TestGitHubWantsHTTPS(t *testing.T) {
	t.Parallel()
	for url, ok := range map[string]bool{
		"https://token.example.com/x":     true,
		"http://127.0.0.1:8080/x":         true,
		"http://[::1]:8080/x":             true,
		"http://token.example.com/x":      false,
		"http://localhost/x":              false,
		"http://127.0.0.1.example.com/":   false,
		"http://127.0.0.1@example.com/":   false,
		"ftp://127.0.0.1/":                false,
		"/x":                              false,
		"https://":                        false,
		"http://169.254.169.254/metadata": false,
	} {
		_, err := ci.Detect(ci.Config{Getenv: env(ci.VarRequestURL, url, ci.VarRequestToken, "t")})
		if (err == nil) != ok {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// The local issuer speaks the same protocol.
func TestDevIssuer(t *testing.T) {
	t.Parallel()
	var issuer *devissuer.Issuer
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { issuer.ServeHTTP(w, r) }))
	t.Cleanup(srv.Close)
	issuer, err := devissuer.New(devissuer.Config{URL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	var pairs []string
	for _, kv := range issuer.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		pairs = append(pairs, name, value)
	}
	src, err := ci.Detect(ci.Config{Getenv: env(pairs...)})
	if err != nil {
		t.Fatal(err)
	}
	token, err := src.Token(t.Context(), audience)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := ci.Peek(token)
	if err != nil {
		t.Fatal(err)
	}
	got := []any{claims["aud"], claims["repository"], claims["repository_id"]}
	if diff := cmp.Diff([]any{audience, "acme/shop-api", "1001"}, got); diff != "" {
		t.Error(diff)
	}
	if left := time.Until(ci.Expires(token)); left < 4*time.Minute || left > 5*time.Minute {
		t.Errorf("it expires in %v", left)
	}
}

func TestPeekBounds(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "..", "a.b", "a.!.c", "a.e30.c.d", jwt(`[]`), jwt(`null`), jwt(`{} {}`), jwt(`{`), "e30.e30=.c", "e30." + strings.Repeat("A", 1<<20) + ".c"} {
		if claims, err := ci.Peek(secret.FromString(bad)); err == nil {
			t.Errorf("Peek(%.40q) = %v", bad, claims)
		}
	}
	for payload, want := range map[string]int64{
		`{"exp":1700000000}`:   1700000000,
		`{"exp":1700000000.7}`: 1700000000,
		`{"exp":1.7e9}`:        1700000000,
	} {
		if got := ci.Expires(secret.FromString(jwt(payload))); got.Unix() != want {
			t.Errorf("Expires(%s) = %v", payload, got)
		}
	}
	for _, payload := range []string{`{}`, `{"exp":"x"}`, `{"exp":-1}`, `{"exp":1e300}`, `{"exp":1e999}`, `[]`} {
		if got := ci.Expires(secret.FromString(jwt(payload))); !got.IsZero() {
			t.Errorf("Expires(%s) = %v", payload, got)
		}
	}
}

func FuzzPeek(f *testing.F) {
	f.Add("a.b.c")
	f.Add(jwt(`{"exp":1700000000,"a":{"b":[1]}}`))
	f.Add(jwt(`{"exp":-9e99}`))
	f.Fuzz(func(t *testing.T, token string) {
		v := secret.FromString(token)
		if claims, err := ci.Peek(v); err == nil && claims == nil {
			t.Error("no claims and no error")
		} else if err != nil && token != "" && len(token) > 20 && strings.Contains(err.Error(), token) {
			t.Error("the token stands in the error")
		}
		if e := ci.Expires(v); !e.IsZero() && e.Unix() < 0 {
			t.Errorf("Expires = %v", e)
		}
		_ = fmt.Sprint(v)
	})
}
