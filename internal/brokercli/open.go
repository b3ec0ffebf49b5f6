package brokercli

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/policy"
	"github.com/runenv/action/broker/shape"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/aws"
)

// A reporter takes a problem with its place.
type reporter func(pos config.Pos, path string, err error)

// opened is what a file's providers and leases became.
type opened struct {
	providers   map[string]providers.Provider
	definitions map[string]lease.Definition
	references  *references
}

// open opens every provider and checks every lease definition, without a
// network call, and reports all problems together.
func open(file *config.File, m mode, now func() time.Time, log *slog.Logger) (*opened, error) {
	var problems config.Problems
	at := reporter(func(pos config.Pos, path string, err error) {
		if more, ok := errors.AsType[config.Problems](err); ok {
			problems = append(problems, more...)
			return
		}
		problems = append(problems, config.Problem{Pos: pos, Path: path, Message: err.Error(), Hint: hintOf(err)})
	})
	out := &opened{providers: map[string]providers.Provider{}, definitions: map[string]lease.Definition{}}
	audiences := map[string]config.Provider{}
	for _, entry := range file.Providers {
		i := slices.IndexFunc(types(), func(t providers.Type) bool { return t.Name == entry.Type })
		if i < 0 {
			at(entry.Pos, "providers."+entry.Name+".type", errors.New("no such type of provider"))
			continue
		}
		cfg := providers.Config{Name: entry.Name, Decode: entry.Decode, Dev: m.dev, Now: now, Log: log}
		if m.ci != nil {
			cfg.CI = m.ci(entry.Name)
		}
		p, err := types()[i].Open(cfg)
		if err != nil {
			at(entry.Pos, "providers."+entry.Name, err)
			continue
		}
		if a, ok := p.(providers.Audienced); ok && a.Audience() != "" {
			switch other := audiences[a.Audience()]; {
			case entry.Type == aws.Type().Name && other.Type == entry.Type:
				// AWS's accounts share one, and each role's own trust policy
				// says which RunEnv role it is for.
			case other.Name != "":
				at(entry.Pos, "providers."+entry.Name+".auth.audience", fmt.Errorf("has the audience of provider %q, so that a token made for one could be used at the other", other.Name))
			case a.Audience() == file.URL || a.Audience() == file.IssuerURL:
				at(entry.Pos, "providers."+entry.Name+".auth.audience", errors.New("is the broker's own URL, so that its tokens could be used at the broker itself"))
			}
			audiences[a.Audience()] = entry
		}
		out.providers[entry.Name] = p
	}
	for _, entry := range file.Leases {
		path := "leases." + entry.Name
		p, ok := out.providers[entry.Provider]
		if !ok {
			continue // said already
		}
		provides, err := p.Define(entry.Decode)
		if err != nil {
			at(entry.Pos, path, err)
			continue
		}
		def := lease.Definition{
			Name: entry.Name, ProviderName: entry.Provider, Provider: p, Provides: provides,
			TTL: entry.TTL, MaxTTL: entry.MaxTTL,
		}
		for _, v := range entry.Env {
			def.Env = append(def.Env, v.Var)
		}
		if len(entry.Env) == 0 {
			if def.Env = defaults(provides); len(def.Env) == 0 {
				at(entry.Pos, path+".env", hinted{errors.New("missing, and this lease has no variables of its own"), "write env: {VARIABLE: field} or file: {VARIABLE: field}"})
			}
		}
		if key, err := within(provides, entry); err != nil {
			at(entry.Pos, path+"."+key, err)
		}
		out.definitions[entry.Name] = def
		for grant := range file.Compiled.Grants(entry.Name) {
			for _, t := range provides.Templates() {
				if _, err := t.Expand(grant.Vars); err != nil {
					at(entry.Pos, path, fmt.Errorf("%s: %w", granted(grant), err))
				}
			}
		}
	}
	out.checkSlots(file, at)
	out.references = openReferences(file, out.providers, at)
	if len(problems) > 0 {
		return nil, ordered(problems)
	}
	return out, nil
}

// granted names a grant in a message.
func granted(g policy.Grant) string {
	project := "a project that the role pins itself"
	if g.Project != nil {
		project = fmt.Sprintf("project %q", g.Project.Name)
	}
	return fmt.Sprintf("for role %q and %s", g.Role.Name, project)
}

// defaults are the variables of a lease that has no `env:`.
func defaults(provides providers.Definition) []shape.Var {
	d, ok := provides.(providers.Defaulter)
	if !ok {
		return nil
	}
	var vars []shape.Var
	for _, v := range d.DefaultEnv() {
		vars = append(vars, shape.Var{Name: v.Name, Field: v.Field, Mask: v.Mask, Optional: v.Optional})
	}
	return vars
}

// within compares a lease's times with those that its back end can give. The
// error is about the key.
func within(provides providers.Definition, entry config.Lease) (key string, err error) {
	b, ok := provides.(providers.Bounder)
	if !ok {
		return "", nil
	}
	shortest, longest := b.Bounds()
	if longest == 0 {
		longest = providers.MaxTTL
	}
	switch {
	case entry.MaxTTL < shortest:
		return "max_ttl", fmt.Errorf("such a lease lives %v at least", shortest)
	case entry.TTL != 0 && (entry.TTL < shortest || entry.TTL > longest):
		return "ttl", fmt.Errorf("such a lease lives %v at least and %v at most", shortest, longest)
	}
	return "", nil
}

// checkSlots reports two leases of a role that set one variable, where one of
// them does so by default, or that want one file or AWS profile; the variables
// that the file names were compared when it was read.
func (o *opened) checkSlots(file *config.File, at reporter) {
	pos := map[string]config.Pos{}
	for _, entry := range file.Leases {
		pos[entry.Name] = entry.Pos
	}
	for _, role := range file.Compiled.Roles() {
		for i, name := range role.Leases {
			for _, other := range role.Leases[:i] {
				if err := clash(o.definitions[name].Env, o.definitions[other].Env); err != nil {
					at(pos[name], "leases."+name, hinted{
						fmt.Errorf("sets %s, as the lease %q of the same role %q does", err.What(), other, role.Name),
						"a command has one for each name: rename one of them, or use two roles",
					})
				}
			}
		}
	}
}

// clash says why the variables of two leases can't be set together.
func clash(vars, others []shape.Var) *shape.CollisionError {
	for _, v := range vars {
		for _, other := range others {
			var slots shape.Slots
			if slots.Add(other) == nil {
				if err, ok := errors.AsType[*shape.CollisionError](slots.Add(v)); ok {
					return err
				}
			}
		}
	}
	return nil
}
