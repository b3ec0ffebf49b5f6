package vault_test

import (
	"errors"
	"testing"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/vault"
)

// An entry that was turned to another Vault shows that one no token of the
// first, and doesn't take its refusal for the token's end.
func TestT34ATurnedEntryKeepsItsLogins(t *testing.T) {
	t.Parallel()
	first := newServer(t)
	s := newSession(t, first)
	cred, err := s.issue(t, keys{"path": "database/creds/ro"})
	if err != nil {
		t.Fatal(err)
	}
	second := newServer(t)
	for name, k := range map[string]keys{
		"address":   {"address": second.URL},
		"namespace": {"address": first.URL, "namespace": "team"},
	} {
		p := open(t, k).(*vault.Provider)
		_, issueErr := (&session{p, second, s.login}).issue(t, keys{"path": "database/creds/ro"})
		_, renewErr := p.Renew(t.Context(), cred.Handle, s.login, time.Minute)
		_, loginErr := p.RenewLogin(t.Context(), s.login)
		for call, err := range map[string]error{
			"Issue": issueErr, "Renew": renewErr, "RenewLogin": loginErr,
			"Revoke": p.Revoke(t.Context(), cred.Handle, s.login), "Logout": p.Logout(t.Context(), s.login),
		} {
			if !errors.Is(err, providers.ErrUnavailable) {
				t.Errorf("%s: %s = %v, want ErrUnavailable", name, call, err)
			}
		}
	}
	if got := len(second.Requests("")); got != 0 {
		t.Errorf("the second Vault got %d requests", got)
	}
	if err := s.Logout(t.Context(), s.login); err != nil {
		t.Errorf("Logout at the first = %v", err)
	}
}
