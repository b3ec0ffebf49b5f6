package identitytest_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/runenv/action/broker/identity/identitytest"
)

// What the issuer says when it isn't told to lie satisfies a stranger to this
// project: go-oidc, by itself.
func TestAnIssuerThatDoesntLie(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{"RS256", "ES256"} {
		i := identitytest.New(t)
		i.Rotate(alg)
		i.Withdraw()
		p, err := oidc.NewProvider(context.Background(), i.URL)
		if err != nil {
			t.Fatal(err)
		}
		v := p.VerifierContext(context.Background(), &oidc.Config{ClientID: "aud", SupportedSigningAlgs: []string{alg}})
		for _, claims := range []map[string]any{i.GitHub("aud"), i.GitLab("aud")} {
			if _, err := v.Verify(context.Background(), i.Sign(claims)); err != nil {
				t.Errorf("%s: Verify = %v", alg, err)
			}
		}
		if hits := i.Hits(); hits != 2 || i.KeyHits() != 1 {
			t.Errorf("%d requests, %d for keys, want 2 and 1", hits, i.KeyHits())
		}
	}
}

func TestFaultsEnd(t *testing.T) {
	t.Parallel()
	i := identitytest.New(t)
	status := func() int {
		t.Helper()
		resp, err := http.Get(i.URL + "/.well-known/openid-configuration")
		if err != nil {
			t.Error(err)
			return 0
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	i.Deny(http.StatusTeapot)
	if got := status(); got != http.StatusTeapot {
		t.Errorf("status %d, want 418", got)
	}
	arrived, release := i.Stall()
	answered := make(chan int)
	go func() { answered <- status() }()
	<-arrived
	release()
	if got := <-answered; got != http.StatusOK {
		t.Errorf("status %d once released, want 200", got)
	}
	if got := status(); got != http.StatusOK {
		t.Errorf("status %d after all faults, want 200", got)
	}
}
