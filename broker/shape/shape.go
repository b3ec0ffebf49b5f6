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
	case v.Name == All && (v.Field != "" || v.Template != nil || v.As != "" || v.Default != nil || v.File):
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
	case !slices.Contains([]string{"", "json", "dotenv", "properties"}, v.As):
		return errors.New("as is json, dotenv or properties")
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
	_, _, err := cutPointer(v.Field)
	return err
}

// Apply makes the variables, in order. Everything that is missing is reported
// at once, by [MissingError]; any other error says which variable can't be made.
func Apply(vars []Var, fields map[string]secret.Value) ([]Out, error) {
	a := applier{fields: fields, set: map[string]bool{}}
	for _, v := range vars {
		if v.Name == All {
			a.all(v)
		} else {
			a.one(v)
		}
	}
	if len(a.missing) > 0 {
		return nil, &MissingError{Fields: a.missing}
	}
	if a.err != nil {
		return nil, a.err
	}
	return a.out, nil
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
	missing []string
	err     error // the first
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
	value, err := v.value(a.fields)
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
	a.add(v, v.Name, value)
}

// all makes a variable of each field that v.Fields matches.
func (a *applier) all(v Var) {
	found := false
	for _, field := range slices.Sorted(maps.Keys(a.fields)) {
		if v.Fields != "" && !matchStars(v.Fields, field) {
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
	switch {
	case a.set[name]:
		a.fail(name, hinted{errors.New("made twice: two fields come to this one name"), "give each field a variable of its own, or narrow `fields`"})
		return
	case v.File && len(value) > maxValue:
		a.fail(name, fmt.Errorf("a value of over %d bytes", maxValue))
		return
	case v.File:
	case len(name)+1+len(value) > maxEnvironment:
		a.fail(name, hinted{fmt.Errorf("its value is too long for an environment variable, which holds %d bytes with its name", maxEnvironment), "deliver it as a file"})
		return
	case slices.Contains(value, 0):
		a.fail(name, hinted{errors.New("its value holds a NUL byte, which no environment variable can"), "deliver it as a file, or decode it later"})
		return
	}
	a.set[name] = true
	a.out = append(a.out, Out{Name: name, Value: secret.New(value), Mask: v.Mask, File: v.File})
}

// value makes what v asks for; a copy, whose bytes nobody else has.
func (v Var) value(fields map[string]secret.Value) ([]byte, error) {
	if v.Template != nil {
		return v.Template.execute(fields)
	}
	if v.Field == "" {
		return render(v.As, fields)
	}
	value, err := pick(v.Field, fields)
	if err != nil {
		return nil, err
	}
	if value, err = decode(v.Decode, value); err != nil || v.As == "" {
		return value, err
	}
	inner, err := object(value)
	if err != nil {
		return nil, err
	}
	return render(v.As, inner)
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
