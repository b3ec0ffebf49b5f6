package broker

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/shape"
	"github.com/runenv/action/ref"
)

// ErrNotGranted is what [Rules.Reference] wraps where the role grants no such
// reference.
var ErrNotGranted = errors.New("the RunEnv role doesn't grant this reference")

// wants is what a request asks of a role: leases by name and credentials by
// reference. Neither means all leases of the role.
type wants struct {
	names       []string
	credentials []credential
}

// A credential is what references name together: one secret, or one answer of a
// dynamic path, and the variables that are made of it.
type credential struct {
	ref  ref.Ref // without a field
	vars []shape.Var
}

// wanted checks a request's names and references and puts the references to one
// credential together, in the order of their first. Nothing in a refusal but
// the number of a reference, counted from 1, and a variable's name comes from
// the caller.
func wanted(in api.LeaseRequest) (wants, error) {
	w := wants{names: in.Leases}
	switch {
	case len(in.Leases)+len(in.References) > api.MaxLeaseNames:
		return w, badRequest("too many leases", nil)
	case len(in.Replaces) > api.MaxLeaseNames:
		return w, badRequest("too many leases to replace", nil)
	}
	for i, name := range in.Leases {
		if slices.Contains(in.Leases[:i], name) {
			return w, badRequest("a lease stands twice", nil)
		}
	}
	for i, id := range in.Replaces {
		if slices.Contains(in.Replaces[:i], id) {
			return w, badRequest("a lease to replace stands twice", nil)
		}
	}
	for i, given := range in.References {
		r, err := ref.Parse(given.Ref)
		if err == nil {
			var v shape.Var
			if v, err = variable(given.Variable, r.Field); err == nil {
				w.add(r.Credential(), v)
			}
		}
		if err != nil {
			return w, badRequest(fmt.Sprintf("reference %d: %v", i+1, err), nil)
		}
	}
	return w, nil
}

// variable is what a reference's variable gets. Without a field that is the
// whole secret: the field that is the only one, or else all as JSON.
func variable(name, field string) (shape.Var, error) {
	v := shape.Var{Name: name, Field: field, Mask: true}
	if prefix, all := strings.CutSuffix(name, "*"); all {
		if field != "" {
			return v, errors.New("a variable that ends in * is for all fields, and the reference names one")
		}
		v.Name, v.Prefix = shape.All, prefix
	} else if field == "" {
		v.As = "json"
	}
	return v, v.Check()
}

func (w *wants) add(r ref.Ref, v shape.Var) {
	i := slices.IndexFunc(w.credentials, func(c credential) bool { return c.ref == r })
	if i < 0 {
		i = len(w.credentials)
		w.credentials = append(w.credentials, credential{ref: r})
	}
	w.credentials[i].vars = append(w.credentials[i].vars, v)
}

// wantedAgain is what a lease of that name was asked for by: a definition's
// name, or a reference.
func wantedAgain(name string) wants {
	if strings.Contains(name, "://") {
		if r, err := ref.Parse(name); err == nil {
			return wants{credentials: []credential{{ref: r.Credential()}}}
		}
	}
	return wants{names: []string{name}}
}

// reference is the definition of a credential, if the role grants it.
func (r *Rules) reference(g grant, c credential) (lease.Definition, error) {
	name := c.ref.String()
	err := ErrNotGranted
	var def lease.Definition
	if r.Reference != nil {
		var fields []string
		for _, v := range c.vars {
			fields = append(fields, v.Field)
		}
		def, err = r.Reference(g.Role, g.Vars, c.ref, fields)
	}
	switch {
	case errors.Is(err, ErrNotGranted):
		return def, &refusal{&api.Error{
			Status: http.StatusForbidden, Code: api.CodeAccessDenied, Lease: printable(name, ref.MaxBytes),
			Description: "the RunEnv role doesn't grant this reference",
		}, err}
	case err != nil:
		return def, &refusal{&api.Error{
			Status: http.StatusBadRequest, Code: api.CodeInvalidRequest, Lease: printable(name, ref.MaxBytes),
			Description: "this reference can't be used; the broker's log says why",
		}, err}
	}
	def.Name, def.Env, def.Sole = name, c.vars, true
	return def, nil
}

// collision says that two variables or files of the definitions have one name,
// as far as is known before anything is issued.
func collision(definitions []lease.Definition) error {
	var slots shape.Slots
	for _, def := range definitions {
		for _, v := range def.Env {
			if err := slots.Add(v); err != nil {
				return err
			}
		}
	}
	return nil
}
