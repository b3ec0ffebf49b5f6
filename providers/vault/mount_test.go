package vault_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/providertest"
)

// A template can't lead to what may not be written out: Vault would answer
// auth/token/lookup-self with the session's own token.
func TestT36NoTemplateLeadsToVaultsOwnPaths(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	s := newSession(t, srv)
	before := len(srv.Requests(""))
	def, err := s.Define(providertest.Keys(keys{"path": "{{project.vars.a}}/{{project.vars.b}}/lookup-self"}))
	if err != nil {
		t.Fatal(err)
	}
	for _, mount := range []string{"auth", "sys", "cubbyhole"} {
		_, err := s.Issue(t.Context(), providers.Request{
			Definition: def, Vars: providers.Vars{"project.vars.a": mount, "project.vars.b": "token"},
			TTL: time.Minute, Marker: "m", Login: s.login,
		})
		if !errors.Is(err, providers.ErrInvalid) || !strings.Contains(err.Error(), mount+"/") {
			t.Errorf("Issue under %s/ = %v, want ErrInvalid", mount, err)
		}
	}
	if got := len(srv.Requests("")); got != before {
		t.Errorf("Vault got %d requests", got-before)
	}
}
