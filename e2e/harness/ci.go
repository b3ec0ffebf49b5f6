package harness

import (
	"net/http/httptest"
	"testing"

	"github.com/runenv/action/internal/devissuer"
)

// A CI is an issuer like GitHub's or GitLab's, and the only fake here. Its
// discovery document and keys are served over TLS, by [CA].
type CI struct {
	URL    string
	Issuer *devissuer.Issuer
	// Environ holds the two variables by which a job of GitHub's finds its
	// token endpoint.
	Environ []string
}

// NewCI starts one, whose GitHub tokens carry these claims besides those of a
// push to the main branch of acme/shop-api (id 1001). nil removes a claim.
func NewCI(tb testing.TB, claims map[string]any) *CI {
	tb.Helper()
	server := httptest.NewUnstartedServer(nil)
	ci := &CI{URL: "https://" + server.Listener.Addr().String()}
	issuer, err := devissuer.New(devissuer.Config{URL: ci.URL, Claims: claims})
	if err != nil {
		tb.Fatal(err)
	}
	ci.Issuer, ci.Environ = issuer, issuer.Environ()
	server.Config.Handler = issuer
	server.TLS = authority(tb).serverConfig()
	server.StartTLS()
	tb.Cleanup(server.Close)
	return ci
}
