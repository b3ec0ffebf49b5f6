package vault_test

import (
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/providertest"
	"github.com/runenv/action/providers/vault"
	"github.com/runenv/action/providers/vault/vaulttest"
	"github.com/runenv/action/ref"
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

// A path may begin with a namespace, behind which Vault's own paths lie again:
// whatever leads there, no lease is the session's own token.
func TestT17NoLeaseIsTheSessionsOwnToken(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	s := newSession(t, srv)
	var login struct{ Token string }
	if err := json.Unmarshal(s.login.Reveal(), &login); err != nil || login.Token == "" {
		t.Fatalf("the login's handle holds no token: %v", err)
	}
	srv.Mount("team", "namespace", func(string, map[string]any) vaulttest.Answer {
		return vaulttest.Answer{Data: keys{"ttl": 300, "nested": keys{"id": login.Token}}}
	})
	cred, err := s.issue(t, keys{"path": "team/auth/token/lookup-self"})
	if cred != nil || !errors.Is(err, providers.ErrMalformed) || strings.Contains(err.Error(), login.Token) {
		t.Errorf("Issue = %+v, %v, want %v", cred, err, providers.ErrMalformed)
	}
}

// A version that can't be asked for isn't dropped: the newest would be handed
// out under its name.
func TestVersionsWantAKnownStore(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	srv.NoMounts = true
	s := newSession(t, srv)
	r := ref.Ref{Scheme: "vault", Path: "secret/data/ci/npm", Version: "1"}
	def, err := s.Reference(r)
	if err != nil {
		t.Fatal(err)
	}
	cred, err := s.Issue(t.Context(), providers.Request{Definition: def, TTL: time.Minute, Marker: "m", Login: s.login})
	if cred != nil || !errors.Is(err, providers.ErrInvalid) || len(srv.Requests("secret/")) != 0 {
		t.Errorf("Issue of version 1 = %+v, %v, want %v before anything is read", cred, err, providers.ErrInvalid)
	}
}

// What is signed lives from when Vault signed it, which a slow answer makes
// later than when it was asked for.
func TestT14ACertificatesEndIsAnUpperBound(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	began := time.Now()
	var slow atomic.Int64 // how much later it is by now
	clock := func() time.Time { return began.Add(time.Duration(slow.Load())) }
	p, err := vault.Type().Open(providers.Config{
		Name: "vault", Decode: providertest.Keys(keys{"address": srv.URL}), Now: clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	login, err := p.(providers.Loginer).Login(t.Context(), loginRequest())
	if err != nil {
		t.Fatal(err)
	}
	srv.Mount("ssh", "ssh", func(string, map[string]any) vaulttest.Answer {
		slow.Store(int64(20 * time.Second))
		return vaulttest.Answer{Data: keys{"signed_key": "c4n4ry-signed"}}
	})
	def, err := p.Define(providertest.Keys(keys{"path": "ssh/sign/ci", "params": keys{"public_key": "k"}}))
	if err != nil {
		t.Fatal(err)
	}
	cred, err := p.Issue(t.Context(), providers.Request{Definition: def, TTL: time.Minute, Marker: "m", Login: login.Handle})
	if want := clock().Add(time.Minute); err != nil || cred.Expires.Before(want) {
		t.Errorf("Issue = %+v, %v, want an end not before %v", cred, err, want)
	}
}
