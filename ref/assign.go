package ref

import (
	"errors"
	"fmt"
	"strings"
)

const (
	// maxAssignments bounds how many one text holds.
	maxAssignments = 100
	// maxVariableBytes bounds the name of a variable.
	maxVariableBytes = 128
)

// An Assignment says which variable gets what a reference names.
type Assignment struct {
	// Variable is a name. One that ends in * is a prefix for the names of all
	// fields: the whole secret, a variable each.
	Variable string
	Ref      Ref
}

// ParseAssignments reads references with the variables that they are for,
// separated by lines or semicolons:
//
//	NPM_TOKEN=vault://secret/ci/npm#token
//	secret/data/ci/npm token | NPM_TOKEN ;
//	APP_*=aws-sm://prod/app
//	vault://secret/ci/npm#token
//
// Without a name the variable is the field, else the last segment of the path,
// in upper case and with _ for what no variable's name holds; in vault-action's
// spelling * is all fields, and what stands behind the | a prefix. Empty parts
// are nothing. An error says which part it is about, counted from 1, and holds
// no text of it.
func ParseAssignments(text string) ([]Assignment, error) {
	if len(text) > maxAssignments*2*MaxBytes {
		return nil, errors.New("too long for a list of references")
	}
	var out []Assignment
	n := 0
	for part := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ';' || r == '\n' || r == '\r' }) {
		part = strings.Trim(part, " \t")
		if part == "" {
			continue
		}
		n++
		if n > maxAssignments {
			return nil, fmt.Errorf("over %d references", maxAssignments)
		}
		a, err := parseAssignment(part)
		if err != nil {
			return nil, fmt.Errorf("reference %d: %w", n, err)
		}
		out = append(out, a)
	}
	return out, nil
}

func parseAssignment(text string) (Assignment, error) {
	variable, body, assigned := cutVariable(text)
	text, behind, piped := strings.Cut(body, "|")
	text = strings.Join(strings.Fields(text), " ")
	if piped {
		if assigned {
			return Assignment{}, errors.New("a variable's name both in front and behind |")
		}
		if variable = strings.Trim(behind, " \t"); variable == "" {
			return Assignment{}, errors.New("no variable's name behind |")
		}
	}
	// vault-action's "PATH * | PREFIX_".
	path, all := strings.CutSuffix(text, " *")
	var r Ref
	var err error
	if all {
		r, err = Parse("vault://" + withoutData(path))
		if !strings.HasSuffix(variable, "*") {
			variable += "*"
		}
	} else {
		r, err = Parse(text)
	}
	if err != nil {
		return Assignment{}, err
	}
	if variable == "" {
		variable = variableOf(r)
	}
	a := Assignment{Variable: variable, Ref: r}
	name, prefix := strings.CutSuffix(variable, "*")
	switch {
	case prefix && r.Field != "":
		return Assignment{}, errors.New("a prefix is for all fields, and this reference names one")
	case !(prefix && name == "") && !validVariable(name):
		return Assignment{}, fmt.Errorf("not a variable's name: it is a letter or _, then letters, digits and _, %d at most; write NAME=REFERENCE", maxVariableBytes)
	}
	return a, nil
}

// cutVariable splits NAME=REFERENCE.
func cutVariable(text string) (variable, rest string, ok bool) {
	before, after, ok := strings.Cut(text, "=")
	before = strings.Trim(before, " \t")
	if name := strings.TrimSuffix(before, "*"); !ok || name != before && name == "" {
		ok = ok && before == "*"
	} else {
		ok = validVariable(name)
	}
	if !ok {
		return "", text, false
	}
	return before, strings.Trim(after, " \t"), true
}

// variableOf is the name that a reference suggests.
func variableOf(r Ref) string {
	name := r.last()
	if name == "" {
		name = r.Path[strings.LastIndexAny(r.Path, "/:")+1:]
	}
	return CleanVariable("", name)
}

// CleanVariable makes the name of a variable out of prefix and the name of a
// field, which comes in upper case, with _ for what isn't [A-Z0-9_]. A name
// doesn't begin with a digit: it gets a _ in front.
func CleanVariable(prefix, field string) string {
	name := prefix + strings.Map(func(c rune) rune {
		switch {
		case 'a' <= c && c <= 'z':
			return c - 'a' + 'A'
		case 'A' <= c && c <= 'Z' || '0' <= c && c <= '9':
			return c
		}
		return '_'
	}, field)
	if name != "" && '0' <= name[0] && name[0] <= '9' {
		return "_" + name
	}
	return name
}

func validVariable(name string) bool {
	return name != "" && len(name) <= maxVariableBytes && only(name, letters+digits+"_") && !strings.ContainsAny(name[:1], digits)
}
