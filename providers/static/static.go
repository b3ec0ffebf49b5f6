// Package static is the provider of values that stand in the broker's own
// file:
//
//	leases:
//	  npm: {provider: local, values: {token: "${env:NPM_TOKEN}"}, env: {NPM_TOKEN: token}}
//
// It needs no back end. A static value can neither be revoked nor does it
// expire: once handed out it is disclosed and stays valid, and the audit log
// says so. Literal values load under `runenv-broker dev` only; elsewhere the
// file names where a value comes from, as `${env:NAME}` or `${file:PATH}`,
// and the broker's strict decoder refuses anything else.
package static

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// fieldName is what a field may be called: a name that can stand in `env:`.
var fieldName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

// Type is `type: static`. The entry has no keys of its own.
func Type() providers.Type { return providers.Type{Name: "static", Open: open} }

func open(cfg providers.Config) (providers.Provider, error) {
	var keys struct{}
	if err := cfg.Decode(&keys); err != nil {
		return nil, err
	}
	return provider{}, nil
}

type provider struct{}

type definition struct{ values map[string]secret.Value }

func (definition) Templates() []providers.Template      { return nil }
func (definition) Revocability() providers.Revocability { return providers.Static }

// Define reads `values:`, a map from field name to value.
func (provider) Define(decode func(any) error) (providers.Definition, error) {
	var keys struct {
		Values map[string]secret.Value `yaml:"values"`
	}
	if err := decode(&keys); err != nil {
		return nil, err
	}
	if len(keys.Values) == 0 {
		return nil, fmt.Errorf("a static lease needs `values:`, such as {token: \"${env:TOKEN}\"}")
	}
	size := 0
	for _, name := range slices.Sorted(maps.Keys(keys.Values)) {
		if !fieldName.MatchString(name) {
			return nil, fmt.Errorf("field name %q: letters, digits, '_', '.' and '-', at most 128", name)
		}
		n := keys.Values[name].Len()
		if n == 0 {
			return nil, fmt.Errorf("the value of field %q is empty", name)
		}
		size += len(name) + n
	}
	if size > providers.MaxCredentialBytes {
		return nil, fmt.Errorf("the values hold %d bytes: at most %d", size, providers.MaxCredentialBytes)
	}
	return definition{keys.Values}, nil
}

// Issue gives copies, so that whoever wipes one leaves the others whole.
func (provider) Issue(ctx context.Context, req providers.Request) (*providers.Credential, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("static values: %w: %w: %w", providers.ErrUnavailable, providers.ErrNotIssued, err)
	}
	def, ok := req.Definition.(definition)
	if !ok {
		return nil, fmt.Errorf("static values: a definition of another provider (%T): %w", req.Definition, providers.ErrInvalid)
	}
	fields := make(map[string]secret.Value, len(def.values))
	for name, v := range def.values {
		fields[name] = secret.New(slices.Clone(v.Reveal()))
	}
	return &providers.Credential{Fields: fields, Revocability: providers.Static}, nil
}
