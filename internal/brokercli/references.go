package brokercli

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/runenv/action/broker"
	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/policy"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/ref"
)

// references says what a reference stands for, by one file.
type references struct {
	byRole map[string][]providers.Template // globs
	// byScheme are the names of the entries that have references of a scheme,
	// sorted, and types those of every entry.
	byScheme map[string][]string
	types    map[string]string
	open     map[string]providers.Provider
}

// openReferences checks the globs of every role as each project that can have
// it would fill them.
func openReferences(file *config.File, open map[string]providers.Provider, at reporter) *references {
	refs := &references{byRole: map[string][]providers.Template{}, byScheme: map[string][]string{}, types: map[string]string{}, open: open}
	for _, entry := range file.Providers {
		refs.types[entry.Name] = entry.Type
	}
	for _, name := range slices.Sorted(maps.Keys(open)) {
		if r, ok := open[name].(providers.Referencer); ok {
			for _, scheme := range r.Schemes() {
				refs.byScheme[scheme] = append(refs.byScheme[scheme], name)
			}
		}
	}
	for _, role := range file.Compiled.Roles() {
		path := "roles." + role.Name + ".references"
		for _, text := range role.References {
			t, err := providers.ParseTemplate(text.Value)
			if err != nil {
				at(text.Pos, path, err)
				continue
			}
			refs.byRole[role.Name] = append(refs.byRole[role.Name], t)
			for grant := range file.Compiled.RoleGrants(role) {
				g, err := expand(t, grant.Vars)
				if err != nil {
					at(text.Pos, path, fmt.Errorf("%s: %w", granted(grant), err))
					continue
				}
				if _, err := refs.entry(g.Scheme(), g.Provider()); err != nil && len(open) == len(file.Providers) {
					at(text.Pos, path, err)
					break
				}
			}
		}
	}
	return refs
}

// expand fills a glob. What fills it holds neither a * nor a separator.
func expand(t providers.Template, vars providers.Vars) (ref.Glob, error) {
	text, err := t.Expand(vars)
	if err != nil {
		return ref.Glob{}, err
	}
	return ref.ParseGlob(text)
}

// entry names the provider that a reference is for: the one that it says, the
// only one that has its scheme, or the one that is named as its type.
func (r *references) entry(scheme, name string) (string, error) {
	named := r.byScheme[scheme]
	switch {
	case name != "" && slices.Contains(named, name):
		return name, nil
	case name != "":
		return "", fmt.Errorf("no provider named %q has references %s://", name, scheme)
	case len(named) == 1:
		return named[0], nil
	}
	for _, entry := range named {
		if r.types[entry] == entry {
			return entry, nil
		}
	}
	if len(named) == 0 {
		return "", hinted{fmt.Errorf("no provider has references %s://", scheme), "add one under providers:, or remove this glob"}
	}
	return "", hinted{fmt.Errorf("several providers have references %s://", scheme), "say which with ?provider=NAME, or name one of them as its type"}
}

// definition is [broker.Rules.Reference]. What the role doesn't grant is refused
// in one way, whatever else is wrong with it.
func (r *references) definition(role *policy.Role, vars providers.Vars, asked ref.Ref, fields []string) (lease.Definition, error) {
	if !r.grants(role, vars, asked, fields) {
		return lease.Definition{}, fmt.Errorf("reference %s: %w", asked, broker.ErrNotGranted)
	}
	name, err := r.entry(asked.Scheme, asked.Provider)
	if err != nil {
		return lease.Definition{}, fmt.Errorf("reference %s: %w", asked, err)
	}
	p, ok := r.open[name].(providers.Referencer)
	if !ok {
		return lease.Definition{}, errors.New("a provider without references")
	}
	provides, err := p.Reference(asked)
	if err != nil {
		return lease.Definition{}, fmt.Errorf("reference %s: %w", asked, err)
	}
	return lease.Definition{ProviderName: name, Provider: r.open[name], Provides: provides}, nil
}

// grants reports whether each field is granted, by whichever glob, or for a
// lease that goes on some field.
func (r *references) grants(role *policy.Role, vars providers.Vars, asked ref.Ref, fields []string) bool {
	var globs []ref.Glob
	for _, t := range r.byRole[role.Name] {
		if g, err := expand(t, vars); err == nil {
			globs = append(globs, g)
		}
	}
	if len(fields) == 0 {
		return slices.ContainsFunc(globs, func(g ref.Glob) bool { return g.MatchCredential(asked) })
	}
	for _, field := range fields {
		wanted := asked
		wanted.Field = field
		if !slices.ContainsFunc(globs, func(g ref.Glob) bool { return g.Match(wanted) }) {
			return false
		}
	}
	return true
}
