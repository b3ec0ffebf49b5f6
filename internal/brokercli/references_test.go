package brokercli

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/broker"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/ref"
)

// opening opens the parts as a file of serve, with what the role grants.
func opening(t *testing.T, providers string, globs ...string) *opened {
	t.Helper()
	parts := "providers:\n" + providers + "\nleases:\n  db: {provider: vault, path: a/b, env: {A: a}}" +
		strings.Replace(role, "[shop-api, pay-api]", "[shop-api]", 1) + "    references: [\"" + strings.Join(globs, "\", \"") + "\"]\n"
	got, err := open(parse(t, fmt.Sprintf(served, parts), false), mode{}, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

const (
	oneVault  = "  vault: {type: vault, address: https://vault.example.com}"
	twoVaults = oneVault + "\n  vault-eu: {type: vault, address: https://vault-eu.example.com}"
)

func TestT36ReferencesAreGrantedByGlobs(t *testing.T) {
	t.Parallel()
	got := opening(t, oneVault, "vault://secret/ci/{{project.vars.team}}/**", "vault://database/creds/{{project.name}}-ro#username", "vault://kv/{{environment}}/*")
	r, ok := parse(t, fmt.Sprintf(served, "providers:\n"+oneVault+"\nleases:\n  db: {provider: vault, path: a/b, env: {A: a}}"+role), false).Compiled.Role("prod")
	if !ok {
		t.Fatal("no role")
	}
	vars := providers.Vars{"project.name": "shop-api", "project.vars.team": "shop", "environment": "production", "role.name": "prod"}
	tests := []struct {
		name, ref string
		fields    []string // nil: a lease that goes on
		vars      providers.Vars
		want      error
	}{
		{"below the team", "vault://secret/ci/shop/npm", []string{"token", "/config/db"}, vars, nil},
		{"the whole", "vault://secret/ci/shop/a/b", []string{""}, vars, nil},
		{"the environment", "vault://kv/production/x", []string{""}, vars, nil},
		{"another version", "vault://secret/ci/shop/npm?version=3", []string{"token"}, vars, nil},
		{"going on", "vault://secret/ci/shop/npm", nil, vars, nil},
		{"another team", "vault://secret/ci/pay/npm", []string{"token"}, vars, broker.ErrNotGranted},
		{"another team going on", "vault://secret/ci/pay/npm", nil, vars, broker.ErrNotGranted},
		{"the team itself", "vault://secret/ci/shop", []string{"token"}, vars, broker.ErrNotGranted},
		{"another scheme", "aws-sm://secret/ci/shop/npm", []string{"token"}, vars, broker.ErrNotGranted},
		{"a provider that is there, by name", "vault://secret/ci/shop/npm?provider=vault", []string{"token"}, vars, broker.ErrNotGranted},
		{"a provider that isn't there", "vault://secret/ci/shop/npm?provider=nope", []string{"token"}, vars, broker.ErrNotGranted},
		{"a granted field", "vault://database/creds/shop-api-ro", []string{"username"}, vars, nil},
		{"a granted field going on", "vault://database/creds/shop-api-ro", nil, vars, nil},
		{"another field", "vault://database/creds/shop-api-ro", []string{"username", "password"}, vars, broker.ErrNotGranted},
		{"all of what has one field granted", "vault://database/creds/shop-api-ro", []string{""}, vars, broker.ErrNotGranted},
		{"no variables", "vault://secret/ci/shop/npm", []string{"token"}, providers.Vars{"role.name": "prod"}, broker.ErrNotGranted},
		{"a variable that would widen", "vault://secret/ci/x/npm", []string{"token"}, with(vars, "project.vars.team", "**"), broker.ErrNotGranted},
		{"a variable that would climb", "vault://secret/ci/shop/npm", []string{"token"}, with(vars, "project.vars.team", "shop/npm"), broker.ErrNotGranted},
	}
	for _, tt := range tests {
		asked, err := ref.Parse(tt.ref)
		if err != nil {
			t.Fatal(err)
		}
		def, err := got.references.definition(r, tt.vars, asked, tt.fields)
		if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if err == nil && (def.ProviderName != "vault" || def.Provider != got.providers["vault"] || def.Provides == nil) {
			t.Errorf("%s: definition %+v", tt.name, def)
		}
	}
}

func with(vars providers.Vars, name, value string) providers.Vars {
	out := maps.Clone(vars)
	out[name] = value
	return out
}

func TestT17ARoleWithoutReferencesGrantsNone(t *testing.T) {
	t.Parallel()
	file := parse(t, fmt.Sprintf(served, "providers:\n"+oneVault+"\nleases:\n  db: {provider: vault, path: a/b, env: {A: a}}"+role), false)
	got, err := open(file, mode{}, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r, _ := file.Compiled.Role("prod")
	for _, fields := range [][]string{nil, {""}, {"a"}} {
		if _, err := got.references.definition(r, providers.Vars{"role.name": "prod"}, ref.Ref{Scheme: "vault", Path: "a/b"}, fields); !errors.Is(err, broker.ErrNotGranted) {
			t.Errorf("definition(%q) = %v, want %v", fields, err, broker.ErrNotGranted)
		}
	}
}

func TestWhichProviderAReferenceIsFor(t *testing.T) {
	t.Parallel()
	const renamed = "  vault: {type: vault, address: https://vault.example.com}\n  b: {type: vault, address: https://b.example.com}"
	tests := []struct{ name, providers, glob, ref, want string }{
		{"the only one", oneVault, "vault://a/*", "vault://a/b", "vault"},
		{"the one that is named as its type", twoVaults, "vault://a/*", "vault://a/b", "vault"},
		{"the one that is named", twoVaults, "vault://a/*?provider=vault-eu", "vault://a/b?provider=vault-eu", "vault-eu"},
		{"whatever stands first", renamed, "vault://a/*", "vault://a/b", "vault"},
	}
	for _, tt := range tests {
		got := opening(t, tt.providers, tt.glob)
		file := parse(t, fmt.Sprintf(served, "providers:\n"+oneVault+"\nleases:\n  db: {provider: vault, path: a/b, env: {A: a}}"+role), false)
		r, _ := file.Compiled.Role("prod")
		asked, err := ref.Parse(tt.ref)
		if err != nil {
			t.Fatal(err)
		}
		def, err := got.references.definition(r, nil, asked, []string{""})
		if err != nil || def.ProviderName != tt.want {
			t.Errorf("%s: %q, %v, want %q", tt.name, def.ProviderName, err, tt.want)
		}
	}
	testOpenRefuses(t, []refusal{{
		"several, none named as its type",
		"providers:\n  a: {type: vault, address: https://a.example.com}\n  b: {type: vault, address: https://b.example.com}\nleases:\n  db: {provider: a, path: a/b, env: {A: a}}" + role + "    references: [\"vault://a/*\"]\n",
		"runenv-broker: error: broker.yaml:21:18: roles.prod.references: several providers have references vault://\nrunenv-broker: hint: say which with ?provider=NAME",
	}})
}
