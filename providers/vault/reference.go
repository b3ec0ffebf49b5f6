package vault

import (
	"errors"
	"strconv"
	"strings"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/ref"
)

const scheme = "vault"

// Schemes are those of the references that [Provider.Reference] takes.
func (p *Provider) Schemes() []string { return []string{scheme} }

// Reference reads what a path gives: a KV secret, at a version of KV version 2
// if it has one, or another engine's credential. A reference lists nothing and
// writes nothing.
func (p *Provider) Reference(r ref.Ref) (providers.Definition, error) {
	if r.Scheme != scheme {
		return nil, errors.New("not a reference to Vault")
	}
	if strings.Contains(r.Path, "{{") || strings.Contains(r.Path, "}}") {
		return nil, errors.New("a reference has no templates")
	}
	path, err := providers.ParseTemplate(r.Path)
	if err != nil {
		return nil, err
	}
	if err := checkPath(path); err != nil {
		return nil, err
	}
	d := &definition{path: path, templates: []providers.Template{path}}
	if r.Version != "" {
		d.version, err = strconv.Atoi(r.Version)
		if err != nil || d.version < 1 || strconv.Itoa(d.version) != r.Version {
			return nil, errors.New("the version of a reference to Vault is a whole number from 1")
		}
	}
	return d, nil
}
