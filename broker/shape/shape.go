// Package shape turns the fields of a credential into what is delivered:
// picked, renamed, decoded, put into a template, in the same way for every
// provider. It is pure, and no error of it holds a value.
package shape

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/ref"
	"github.com/runenv/action/secret"
)

const (
	// maxEnvironment bounds NAME=VALUE, in bytes: Linux takes 128 KiB with the
	// NUL byte behind it.
	maxEnvironment = 131071
	// maxValue bounds what a variable that is delivered as a file holds, and
	// what a template makes on its way, in bytes.
	maxValue = 4 << 20
	// maxTotal bounds what is made of one credential, in bytes: a caller may ask
	// for its fields in many variables.
	maxTotal = 16 << 20
)

// All is the [Var.Name] that stands for one variable per field.
const All = "*"

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
	As       string    // "", a text of all fields (json, dotenv, properties), or a ready shape, which is for files
	Mask     bool      // hide it in output
	Optional bool      // absent: the variable isn't set
	Default  *string   // absent: this instead
	// File is the base name of the file that the value goes into and whose
	// path the variable holds. A variable that ends in _FILE is one without,
	// too: see [Var.FileName].
	File string

	Profile    string // of As aws-profile: the section's name
	Registry   string // of As docker-config: whom the login is for; empty for the field registry
	Server, CA string // of As kubeconfig: URL, and certificates in PEM or base64 of it; empty for the fields of these names
}

// FileName is the base name of the file that v is delivered as; empty for a
// plain variable, and for "*".
func (v Var) FileName() string {
	if v.Name == All {
		return ""
	}
	return fileName(v.File, v.Name)
}

func fileName(given, variable string) string {
	if given == "" && strings.HasSuffix(variable, FileSuffix) {
		return DefaultFile(variable)
	}
	return given
}

// FileSuffix ends the variables that hold the path of a file, as programs that
// read a secret from one name them.
const FileSuffix = "_FILE"

// DefaultFile is what a variable's file is called where nothing says
// otherwise: TLS_KEY_FILE's is tls_key.
func DefaultFile(variable string) string {
	return strings.ToLower(cmp.Or(strings.TrimSuffix(variable, FileSuffix), variable))
}

// An Out is a variable, made.
type Out struct {
	Name  string
	Value secret.Value
	Mask  bool
	File  string // base name of its file, or empty
	// Kind says what a client makes of a file: empty for the value as it is,
	// aws-profile for a section beside others, docker-config for a part of one.
	Kind    string
	Profile string // of Kind aws-profile
}

// Made is what [Apply] makes of a credential.
type Made struct {
	Env []Out
	// Hide are masked values that stand in Env only as parts of others, each
	// once.
	Hide []secret.Value
}

// Check reports what is wrong with v whatever the credential is: keys that
// exclude each other, a decoding or form that isn't known, a name that no lease
// may set.
func (v Var) Check() error {
	sources := 0
	for _, given := range []bool{v.Field != "", v.Template != nil, v.Name == All} {
		if given {
			sources++
		}
	}
	switch {
	case v.Name != All && (v.Prefix != "" || v.Fields != ""):
		return errors.New(`prefix and fields are for "*" alone`)
	case v.Name == All && (v.Field != "" || v.Template != nil || v.As != "" || v.Default != nil || v.File != ""):
		return errors.New(`"*" is all fields, each a variable: it takes prefix, fields, decode, mask and optional`)
	case sources > 1:
		return errors.New("both field and template: keep one")
	case sources == 0 && v.As == "":
		return errors.New("names no field of the credential")
	case v.Decode != "" && (v.Template != nil || v.As != "" && v.Field == ""):
		return errors.New("decode is for one field")
	case v.As != "" && v.Template != nil:
		return errors.New("both template and as: keep one")
	case v.Optional && v.Default != nil:
		return hinted{errors.New("both optional and default"), "optional leaves the variable out, default gives it a value: keep one"}
	case !slices.Contains([]string{"", "base64", "base64url", "hex"}, v.Decode):
		return errors.New("decode is base64, base64url or hex")
	case !slices.Contains([]string{"", "json", "dotenv", "properties", asProfile, asDocker, asKubeconfig, asSSHKey}, v.As):
		return errors.New("as is json, dotenv, properties, aws-profile, docker-config, kubeconfig or ssh-key")
	case strings.ContainsAny(v.Fields, "?[]{}\\"):
		return errors.New("fields is a name in which * stands for any run of characters")
	}
	if v.Name == All {
		if v.Prefix == "" {
			return nil
		}
		return api.CheckVariable(v.Prefix + "X")
	}
	if err := api.CheckVariable(v.Name); err != nil {
		return err
	}
	if _, _, err := cutPointer(v.Field); err != nil {
		return err
	}
	return v.checkFile()
}

// Apply makes the variables, in order. Everything that is missing is reported
// at once, by [MissingError]; any other error says which variable can't be made.
func Apply(vars []Var, fields map[string]secret.Value) (Made, error) {
	a := applier{fields: fields, set: map[string]bool{}}
	for _, v := range vars {
		if a.total > maxTotal {
			break // whatever else is wrong with them
		}
		if v.Name == All {
			a.all(v)
		} else {
			a.one(v)
		}
	}
	if len(a.missing) > 0 {
		return Made{}, &MissingError{Fields: a.missing}
	}
	if a.err != nil {
		return Made{}, a.err
	}
	hide, err := hidden(vars, a.out, a.parts)
	return Made{a.out, hide}, err
}

// A MissingError names the fields that a credential hasn't, each once.
type MissingError struct{ Fields []string }

func (e *MissingError) Error() string {
	if len(e.Fields) == 1 {
		return "the credential has no field " + e.Fields[0]
	}
	return "the credential has no fields " + strings.Join(e.Fields, ", ")
}

type applier struct {
	fields  map[string]secret.Value
	set     map[string]bool
	out     []Out
	parts   []part // of what is masked
	missing []string
	err     error // the first
	total   int   // bytes made
}

func (a *applier) fail(name string, err error) {
	if a.err == nil {
		a.err = fmt.Errorf("variable %s: %w", name, err)
	}
}

func (a *applier) miss(names ...string) {
	for _, name := range names {
		if !slices.Contains(a.missing, name) {
			a.missing = append(a.missing, name)
		}
	}
}

func (a *applier) one(v Var) {
	value, parts, err := v.value(a.fields)
	if missing, ok := errors.AsType[*MissingError](err); ok {
		switch {
		case v.Default != nil:
			value, err = []byte(*v.Default), nil
		case v.Optional:
			return
		default:
			a.miss(missing.Fields...)
			return
		}
	}
	if err != nil {
		a.fail(v.Name, err)
		return
	}
	if v.Mask {
		a.parts = append(a.parts, parts...)
	}
	a.add(v, v.Name, value)
}

// all makes a variable of each field that v.Fields matches.
func (a *applier) all(v Var) {
	found := false
	for _, field := range slices.Sorted(maps.Keys(a.fields)) {
		if v.Fields != "" && !matchStars(v.Fields, field) || a.total > maxTotal {
			continue
		}
		found = true
		name := ref.CleanVariable(v.Prefix, field)
		if err := api.CheckVariable(name); err != nil {
			a.fail(name, err)
			continue
		}
		value, err := decode(v.Decode, a.fields[field].Reveal())
		if err != nil {
			a.fail(name, err)
			continue
		}
		a.add(v, name, value)
	}
	if !found && !v.Optional {
		a.miss(cmp.Or(v.Fields, All))
	}
}

func (a *applier) add(v Var, name string, value []byte) {
	file := fileName(v.File, name)
	switch {
	case a.set[name]:
		a.fail(name, hinted{errors.New("made twice: two fields come to this one name"), "give each field a variable of its own, or narrow `fields`"})
		return
	case file != "" && len(value) > maxValue:
		a.fail(name, fmt.Errorf("a value of over %d bytes", maxValue))
		return
	case file != "":
	case len(name)+1+len(value) > maxEnvironment:
		a.fail(name, hinted{fmt.Errorf("its value is too long for an environment variable, which holds %d bytes with its name", maxEnvironment), "deliver it as a file"})
		return
	case slices.Contains(value, 0):
		a.fail(name, hinted{errors.New("its value holds a NUL byte, which no environment variable can"), "deliver it as a file, or decode it later"})
		return
	}
	if a.total += len(value); a.total > maxTotal {
		a.fail(name, fmt.Errorf("over %d bytes with the variables before it", maxTotal))
		return
	}
	a.set[name] = true
	out := Out{Name: name, Value: secret.New(value), Mask: v.Mask, File: file}
	if v.As == asProfile || v.As == asDocker {
		out.Kind, out.Profile = v.As, v.Profile
	}
	a.out = append(a.out, out)
}

// value makes what v asks for, and says what it is made of; copies, whose bytes
// nobody else has.
func (v Var) value(fields map[string]secret.Value) ([]byte, []part, error) {
	if v.Template != nil {
		return v.Template.execute(fields)
	}
	if v.Field == "" {
		return v.render(fields)
	}
	value, err := pick(v.Field, fields)
	if err != nil {
		return nil, nil, err
	}
	if value, err = decode(v.Decode, value); err != nil || v.As == "" {
		return value, nil, err
	}
	if v.As == asSSHKey {
		value, err = sshKey(value)
		return value, nil, err
	}
	inner, err := object(value)
	if err != nil {
		return nil, nil, err
	}
	made, parts, err := v.render(inner)
	for i := range parts {
		parts[i].field = within(v.Field, parts[i].field)
	}
	return made, parts, err
}

// matchStars matches a whole text: * is any run of characters.
func matchStars(pattern, text string) bool {
	first, rest, starred := strings.Cut(pattern, "*")
	if !starred {
		return pattern == text
	}
	if !strings.HasPrefix(text, first) {
		return false
	}
	text = text[len(first):]
	parts := strings.Split(rest, "*")
	for _, part := range parts[:len(parts)-1] {
		i := strings.Index(text, part)
		if i < 0 {
			return false
		}
		text = text[i+len(part):]
	}
	return strings.HasSuffix(text, parts[len(parts)-1])
}

// hinted is an error with its cure.
type hinted struct {
	error
	hint string
}

// Hint is the cure.
func (h hinted) Hint() string { return h.hint }

func (h hinted) Unwrap() error { return h.error }
