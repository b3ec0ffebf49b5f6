package shape

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/runenv/action/secret"
)

// maxHide bounds what is hidden of one credential beside its variables. Each
// is searched for in all that a command prints.
const maxHide = 1000

// A part is what a value was composed of.
type part struct {
	field string // which it came from; a JSON pointer for one within a field
	value []byte
}

// within is the JSON pointer to a key of the object that a field holds.
func within(field, key string) string {
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	if !strings.HasPrefix(field, "/") {
		field = "/" + escape.Replace(field)
	}
	return field + "/" + escape.Replace(key)
}

// hidden are the parts that are secret and that no variable delivers as they
// are. A field is none that the operator has delivered elsewhere with mask:
// false.
func hidden(vars []Var, out []Out, parts []part) ([]secret.Value, error) {
	seen := map[string]bool{"": true}
	for _, o := range out {
		if o.Mask {
			seen[string(o.Value.Reveal())] = true
		}
	}
	var hide []secret.Value
	for _, p := range parts {
		if public(vars, p.field) || seen[string(p.value)] {
			continue
		}
		if len(hide) == maxHide {
			return nil, hinted{fmt.Errorf("over %d values go into its variables, more than can be hidden by themselves", maxHide), "take fewer fields, or mask: false where none is a secret"}
		}
		seen[string(p.value)] = true
		hide = append(hide, secret.New(bytes.Clone(p.value)))
	}
	return hide, nil
}

// public reports whether a variable delivers the field without hiding it.
func public(vars []Var, field string) bool {
	for _, v := range vars {
		switch {
		case v.Mask || v.As != "" || v.Template != nil:
		case v.Name == All && (v.Fields == "" || matchStars(v.Fields, field)), v.Field == field && field != "":
			return true
		}
	}
	return false
}
