// Package static is the provider of values that stand in the broker's own
// file, as references or encrypted with age:
//
//	providers:
//	  local: {type: static, identity: "${file:/etc/runenv/age.key}"}
//	leases:
//	  npm: {provider: local, values: {token: "${env:NPM_TOKEN}"}, env: {NPM_TOKEN: token}}
//	  pypi:
//	    provider: local
//	    age:
//	      token: |
//	        -----BEGIN AGE ENCRYPTED FILE-----
//	        …
//	    env: {PYPI_TOKEN: token}
//
// It needs no back end. A static value can neither be revoked nor does it
// expire: once handed out it is disclosed and stays valid, and the audit log
// says so. Literal values load under `runenv-broker dev` only; elsewhere the
// file names where a value comes from, as `${env:NAME}` or `${file:PATH}`,
// and the broker's strict decoder refuses anything else. What is encrypted may
// stand in every file, those that teams keep in git too; it is decrypted when
// the file is loaded, in memory, and what the identity doesn't open doesn't
// load.
package static

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// fieldName is what a field may be called: a name that can stand in `env:`.
var fieldName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

// Type is `type: static`.
func Type() providers.Type { return providers.Type{Name: "static", Open: open} }

func open(cfg providers.Config) (providers.Provider, error) {
	var keys struct {
		Identity secret.Value `yaml:"identity"`
	}
	if err := cfg.Decode(&keys); err != nil {
		return nil, err
	}
	decrypt, err := newDecrypter(keys.Identity)
	if err != nil {
		return nil, err
	}
	return &provider{decrypt}, nil
}

type provider struct{ decrypt decrypter }

type definition struct{ values map[string]secret.Value }

func (definition) Templates() []providers.Template      { return nil }
func (definition) Revocability() providers.Revocability { return providers.Static }

// Define reads `values:` and `age:`, maps from field name to value, and
// decrypts the second.
func (p provider) Define(decode func(any) error) (providers.Definition, error) {
	var keys struct {
		Values map[string]secret.Value `yaml:"values"`
		Age    map[string]ciphertext   `yaml:"age"`
	}
	if err := decode(&keys); err != nil {
		return nil, err
	}
	values, err := p.merge(keys.Values, keys.Age)
	if err != nil {
		return nil, err
	}
	if len(values) == 0 {
		return nil, fmt.Errorf("a static lease needs `values:`, such as {token: \"${env:TOKEN}\"}, or `age:`")
	}
	size := 0
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !fieldName.MatchString(name) {
			return nil, fmt.Errorf("field name %q: letters, digits, '_', '.' and '-', at most 128", name)
		}
		n := values[name].Len()
		if n == 0 {
			return nil, fmt.Errorf("the value of field %q is empty", name)
		}
		size += len(name) + n
	}
	if size > providers.MaxCredentialBytes {
		return nil, fmt.Errorf("the values hold %d bytes: at most %d", size, providers.MaxCredentialBytes)
	}
	return definition{values}, nil
}

// merge adds the decrypted values to the others.
func (p provider) merge(values map[string]secret.Value, encrypted map[string]ciphertext) (map[string]secret.Value, error) {
	switch {
	case len(encrypted) == 0:
		return values, nil
	case p.decrypt == nil:
		return nil, errors.New("`age:` needs an `identity` at its provider, such as ${file:/etc/runenv/age.key}")
	case len(encrypted) > maxAgeValues:
		return nil, fmt.Errorf("`age:` has %d values: at most %d", len(encrypted), maxAgeValues)
	}
	all := make(map[string]secret.Value, len(values)+len(encrypted))
	maps.Copy(all, values)
	for _, name := range slices.Sorted(maps.Keys(encrypted)) {
		if _, ok := all[name]; ok {
			return nil, fmt.Errorf("field %q stands under `values:` and under `age:`", name)
		}
		v, err := p.decrypt(encrypted[name])
		if err != nil {
			return nil, fmt.Errorf("the age-encrypted value of field %q %w", name, err)
		}
		all[name] = v
	}
	return all, nil
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
