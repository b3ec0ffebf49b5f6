package gcptest_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	secretmanager "cloud.google.com/go/secretmanager/apiv1"
	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/runenv/action/providers/gcp/gcptest"
)

func exchange(t *testing.T, s *gcptest.Server, token string) (access, description string) {
	t.Helper()
	form := url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}, "subject_token": {token}, "audience": {gcptest.Pool},
		"scope": {"https://www.googleapis.com/auth/cloud-platform"},
	}
	resp, err := http.PostForm(s.URL+"/v1/token", form)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body struct {
		AccessToken string `json:"access_token"`
		Description string `json:"error_description"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	return body.AccessToken, body.Description
}

// The fake lets nobody in whom Google wouldn't.
func TestTheFakeVerifies(t *testing.T) {
	t.Parallel()
	s, issuer := gcptest.New(t), gcptest.NewIssuer(t)
	s.Trust(issuer)
	s.Condition = map[string][]string{"role": {"prod", "dev"}}
	forger := gcptest.NewIssuer(t)
	forger.URL = issuer.URL // it says so, and has other keys
	for name, tt := range map[string]struct {
		by    *gcptest.Issuer
		aud   string
		other map[string]any
		want  string // empty: let in
	}{
		"good":                 {issuer, gcptest.Pool, nil, ""},
		"with https":           {issuer, "https:" + gcptest.Pool, nil, ""},
		"forged":               {forger, gcptest.Pool, nil, "Signature"},
		"another issuer":       {gcptest.NewIssuer(t), gcptest.Pool, nil, "issuer in ID Token"},
		"another audience":     {issuer, "https://runenv.example.com", nil, "audience in ID Token"},
		"two audiences":        {issuer, "", map[string]any{"aud": []string{gcptest.Pool, "x"}}, "audience in ID Token"},
		"expired":              {issuer, gcptest.Pool, map[string]any{"exp": time.Now().Add(-time.Second).Unix()}, "expired"},
		"from the future":      {issuer, gcptest.Pool, map[string]any{"iat": time.Now().Add(time.Hour).Unix()}, "future"},
		"a role of no concern": {issuer, gcptest.Pool, map[string]any{"role": "test"}, "attribute condition"},
		"a long subject":       {issuer, gcptest.Pool, map[string]any{"sub": strings.Repeat("x", 128)}, "127 bytes"},
	} {
		token, err := tt.by.Token("prod", tt.aud, tt.other)
		if err != nil {
			t.Fatal(err)
		}
		access, description := exchange(t, s, token)
		if (access != "") != (tt.want == "") || !strings.Contains(description, tt.want) {
			t.Errorf("%s: let in: %v, %q, want %q", name, access != "", description, tt.want)
		}
	}
	if access, _ := exchange(t, s, "eyJhbGciOiJub25lIn0.e30."); access != "" {
		t.Error("a token without a signature is let in")
	}
}

// Google's own client of Secret Manager, all of it, reads from the fake: it
// speaks the real protocol.
func TestGooglesClientReads(t *testing.T) {
	t.Parallel()
	s, issuer := gcptest.New(t), gcptest.NewIssuer(t)
	s.Trust(issuer)
	s.Secrets["projects/shop/secrets/npm"] = gcptest.Secret{Readers: []string{gcptest.Role("prod")}, Versions: [][]byte{[]byte("abc")}}
	token, err := issuer.Token("prod", gcptest.Pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	read := func(access string) (*secretmanagerpb.AccessSecretVersionResponse, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		c, err := secretmanager.NewClient(ctx, option.WithEndpoint(strings.TrimPrefix(s.URL, "http://")), option.WithoutAuthentication(),
			option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
			option.WithGRPCDialOption(grpc.WithPerRPCCredentials(loopback{access})))
		if err != nil {
			return nil, err
		}
		defer func() { _ = c.Close() }()
		return c.AccessSecretVersion(ctx, &secretmanagerpb.AccessSecretVersionRequest{Name: "projects/shop/secrets/npm/versions/latest"})
	}
	access, _ := exchange(t, s, token)
	if got, err := read(access); err != nil || string(got.GetPayload().GetData()) != "abc" {
		t.Errorf("AccessSecretVersion = %v, want the value", err)
	}
	if _, err := read("ya29.forged"); err == nil {
		t.Error("a forged access token reads a secret")
	}
}

type loopback struct{ token string }

func (l loopback) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + l.token}, nil
}

func (loopback) RequireTransportSecurity() bool { return false }
