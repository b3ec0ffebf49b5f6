// Package shape turns the fields of a credential into what is delivered:
// picked, renamed, decoded, put into a template, in the same way for every
// provider. It is pure, and no error of it holds a value.
package shape

import (
	"strings"

	"github.com/runenv/action/secret"
)

// A Var says how one variable is made. With Name "*" it stands for as many as
// Fields matches.
type Var struct {
	// Name of the variable; "*" for one per field that Fields matches, named
	// Prefix and the field's name in upper case, whatever isn't [A-Z0-9_]
	// becoming _.
	Name           string
	Prefix, Fields string // of Name "*" alone; Fields is a glob, empty for all

	Field    string    // field of the credential, or a JSON pointer: /FIELD/key/…; empty with Template, or with As for all fields
	Decode   string    // "", base64, base64url or hex
	Template *Template // made of all fields
	As       string    // "", json, dotenv or properties
	Mask     bool      // hide it in output
	Optional bool      // absent: the variable isn't set
	Default  *string   // absent: this instead
	File     bool      // delivered as a file, whose path the variable holds
}

// An Out is a variable, made.
type Out struct {
	Name  string
	Value secret.Value
	Mask  bool
	File  bool
}

// A Template is text with the credential's fields in its holes.
type Template struct{ text string }

// Apply makes the variables. Everything that is missing is reported at once,
// by [MissingError]; any other error says which variable can't be made.
func Apply(vars []Var, fields map[string]secret.Value) ([]Out, error) {
	var out []Out
	missing := &MissingError{}
	for _, v := range vars {
		value, ok := fields[v.Field]
		switch {
		case ok:
		case v.Default != nil:
			value = secret.FromString(*v.Default)
		case v.Optional:
			continue
		default:
			missing.Fields = append(missing.Fields, v.Field)
			continue
		}
		out = append(out, Out{Name: v.Name, Value: value, Mask: v.Mask, File: v.File})
	}
	if len(missing.Fields) > 0 {
		return nil, missing
	}
	return out, nil
}

// A MissingError names the fields that a credential hasn't.
type MissingError struct{ Fields []string }

func (e *MissingError) Error() string { return "missing fields: " + strings.Join(e.Fields, ", ") }
