package issuer_test

import (
	"errors"
	"testing"

	"github.com/runenv/action/broker/issuer"
)

// A broker of one command names the cure where a provider asks it for a token.
func TestMute(t *testing.T) {
	t.Parallel()
	own := issuer.Mute()
	for _, alg := range []string{"", issuer.ES256, issuer.RS256} {
		token, err := own.Mint(t.Context(), issuer.Claims{Audience: "https://vault.example.com", Role: "prod", Session: "s-1"}, alg)
		hinted, ok := errors.AsType[interface {
			error
			Hint() string
		}](err)
		if token != "" || !ok || hinted.Hint() == "" {
			t.Errorf("Mint(%q) = %q, %v, want an error with a hint", alg, token, err)
		}
	}
	if string(own.JWKS()) != `{"keys":[]}` || string(own.Discovery()) != "{}" {
		t.Errorf("it publishes %s and %s", own.JWKS(), own.Discovery())
	}
}
