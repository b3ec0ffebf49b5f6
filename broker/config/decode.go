package config

import (
	"encoding"
	"errors"
	"io/fs"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runenv/action/broker/policy"
	"github.com/runenv/action/secret"
)

// maxSecretBytes bounds what ${env:} and ${file:} stand for.
const maxSecretBytes = 64 << 10

// A fromNoder decodes itself.
type fromNoder interface {
	fromNode(d *decoder, n *node, path string)
}

// A decoder fills Go values from nodes and gathers problems as it goes: a
// problem leaves the value as it was.
type decoder struct {
	opt      *Options
	problems []Problem
	also     []string // keys that unknown ones are compared with, besides the struct's own
}

func (d *decoder) add(n *node, path, message, hint string) {
	d.problems = append(d.problems, problem(n.pos, path, message, hint))
}

// decode fills v, which is settable.
func (d *decoder) decode(n *node, v reflect.Value, path string) {
	if f, ok := v.Addr().Interface().(fromNoder); ok {
		f.fromNode(d, n, path)
		return
	}
	switch v.Type() {
	case reflect.TypeFor[policy.Text]():
		if s, ok := d.str(n, path); ok {
			v.Set(reflect.ValueOf(policy.Text{Value: s, Pos: n.pos}))
		}
		return
	case reflect.TypeFor[secret.Value]():
		if s, ok := d.credential(n, path); ok {
			v.Set(reflect.ValueOf(s))
		}
		return
	case reflect.TypeFor[time.Duration]():
		if t, ok := duration(n.text); ok {
			v.SetInt(int64(t))
		} else {
			d.add(n, path, "not a length of time", "write a number with its unit, like 90s, 15m or 1h30m")
		}
		return
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.unmarshal(n, u, path)
		return
	}
	d.decodeKind(n, v, path)
}

func (d *decoder) decodeKind(n *node, v reflect.Value, path string) {
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		before := len(d.problems)
		d.decode(n, p.Elem(), path)
		if len(d.problems) == before {
			v.Set(p)
		}
	case reflect.String:
		if s, ok := d.str(n, path); ok {
			v.SetString(s)
		}
	case reflect.Bool:
		if n.kind == scalar && !n.quoted && (n.text == "true" || n.text == "false") {
			v.SetBool(n.text == "true")
		} else {
			d.add(n, path, "neither true nor false", "")
		}
	case reflect.Int, reflect.Int64:
		i, ok := whole(n)
		if !ok || v.OverflowInt(i) {
			d.add(n, path, "not a whole number", "write it in decimal, without quotes")
			return
		}
		v.SetInt(i)
	case reflect.Slice:
		d.slice(n, v, path)
	case reflect.Map:
		d.stringMap(n, v, path)
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Interface:
		if v.NumMethod() > 0 {
			panic("config: can't decode into " + v.Type().String()) // a fault of the program
		}
		if value, ok := d.anything(n, path); ok {
			v.Set(reflect.ValueOf(value))
		}
	default:
		panic("config: can't decode into " + v.Type().String()) // a fault of the program
	}
}

// whole reads a plain decimal number of up to 18 digits in its one spelling.
func whole(n *node) (int64, bool) {
	if n.kind != scalar || n.quoted || len(n.text) > 18 {
		return 0, false
	}
	i, err := strconv.ParseInt(n.text, 10, 64)
	return i, err == nil && strconv.FormatInt(i, 10) == n.text
}

// str reads a string that is certain and holds no reference.
func (d *decoder) str(n *node, path string) (string, bool) {
	s, ok := d.certain(n, path)
	if !ok {
		return "", false
	}
	if _, _, _, found := wholeRef(s); found {
		d.add(n, path, "${env:…} and ${file:…} stand only for credentials", "write the value itself")
		return "", false
	}
	return s, true
}

func (d *decoder) certain(n *node, path string) (string, bool) {
	switch {
	case n.kind == null:
		d.add(n, path, "no value", "give one or remove the key")
	case n.kind != scalar:
		d.add(n, path, "not a string", "")
	case !n.quoted && ambiguous(n.text):
		d.add(n, path, "YAML may read this as a number, a date, true, false or nothing, where a string is meant", "put it in quotes")
	default:
		return n.text, true
	}
	return "", false
}

func (d *decoder) unmarshal(n *node, u encoding.TextUnmarshaler, path string) {
	s, ok := d.str(n, path)
	if !ok {
		return
	}
	if err := u.UnmarshalText([]byte(s)); err != nil {
		message := err.Error()
		if s != "" && strings.Contains(message, s) {
			message = "not valid here"
		}
		d.add(n, path, message, "")
	}
}

// credential reads a reference, or in dev a literal.
func (d *decoder) credential(n *node, path string) (secret.Value, bool) {
	s, ok := d.certain(n, path)
	if !ok {
		return secret.Value{}, false
	}
	scheme, name, isRef, found := wholeRef(s)
	switch {
	case found && n.pos.File != d.opt.main:
		// Whoever writes it reads with the broker's eyes: its own keys, and
		// other teams' credentials.
		d.add(n, path, "${env:…} and ${file:…} stand in the main file only", "move this lease there; an included file's credentials come from a provider such as vault")
	case found && !isRef:
		d.add(n, path, "a reference stands for the whole value", "write ${env:NAME} or ${file:PATH} and nothing around it")
	case !found && !d.opt.Dev:
		d.add(n, path, "a credential doesn't stand in the file", "write ${env:NAME} or ${file:PATH}")
	case !found:
		return secret.FromString(s), true
	case scheme == "env":
		return d.fromEnv(n, path, name)
	default:
		return d.fromFile(n, path, name)
	}
	return secret.Value{}, false
}

func (d *decoder) fromEnv(n *node, path, name string) (secret.Value, bool) {
	value, ok := d.opt.Getenv(name)
	switch {
	case !ok:
		d.add(n, path, "the environment variable isn't set", "")
	case value == "":
		d.add(n, path, "the environment variable is empty", "")
	case len(value) > maxSecretBytes:
		d.add(n, path, "the environment variable holds over 64 KiB", "")
	default:
		return secret.FromString(value), true
	}
	return secret.Value{}, false
}

func (d *decoder) fromFile(n *node, path, name string) (secret.Value, bool) {
	b, err := d.opt.ReadFile(resolve(n.pos.File, name))
	if err != nil {
		d.add(n, path, "the file of this credential "+reason(err), "")
		return secret.Value{}, false
	}
	if l := len(b); l > 0 && b[l-1] == '\n' {
		b = b[:l-1]
	}
	switch {
	case len(b) == 0:
		d.add(n, path, "the file of this credential is empty", "")
	case len(b) > maxSecretBytes:
		d.add(n, path, "the file of this credential holds over 64 KiB", "")
	default:
		return secret.New(b), true
	}
	return secret.Value{}, false
}

// reason says why a file can't be read, without its name.
func reason(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "isn't there"
	case errors.Is(err, fs.ErrPermission):
		return "can't be read: permission denied"
	}
	return "can't be read"
}

// resolve makes a relative path count from the folder of the file that holds
// it.
func resolve(file, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(file), path)
}

func (d *decoder) slice(n *node, v reflect.Value, path string) {
	if n.kind != sequence {
		d.add(n, path, "not a list", "write [a, b], or one - line each")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.items), len(n.items))
	for i, item := range n.items {
		d.decode(item, out.Index(i), path+"["+strconv.Itoa(i)+"]")
	}
	v.Set(out)
}

func (d *decoder) stringMap(n *node, v reflect.Value, path string) {
	if n.kind != mapping {
		d.add(n, path, "not a mapping", "write key: value")
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(n.keys))
	for i, key := range n.keys {
		elem := reflect.New(v.Type().Elem()).Elem()
		d.decode(n.items[i], elem, pathTo(path, key, n.items[i]))
		out.SetMapIndex(reflect.ValueOf(key.text).Convert(v.Type().Key()), elem)
	}
	v.Set(out)
}

// anything reads what a provider takes as it is: strings, booleans, whole
// numbers (int64), lists and mappings of these.
func (d *decoder) anything(n *node, path string) (any, bool) {
	switch n.kind {
	case sequence:
		var out []any
		d.slice(n, reflect.ValueOf(&out).Elem(), path)
		return out, true
	case mapping:
		var out map[string]any
		d.stringMap(n, reflect.ValueOf(&out).Elem(), path)
		return out, true
	}
	if i, ok := whole(n); ok {
		return i, true
	}
	if n.kind == scalar && !n.quoted && (n.text == "true" || n.text == "false") {
		return n.text == "true", true
	}
	s, ok := d.str(n, path)
	return s, ok
}

// A field is one of a struct, as its yaml tag names it.
type field struct {
	name  string
	index int
}

// Options in a yaml tag of this package's own structs.
const (
	optionRest = "rest" // a *node that gets the keys that the struct doesn't know
	optionPos  = "pos"  // a Pos that gets the place of the mapping
)

func fields(t reflect.Type) (known []field, rest, pos int) {
	rest, pos = -1, -1
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case !f.IsExported() || name == "-":
		case name == "" && options == optionRest:
			rest = i
		case name == "" && options == optionPos:
			pos = i
		default:
			if name == "" {
				name = strings.ToLower(f.Name)
			}
			known = append(known, field{name, i})
		}
	}
	return known, rest, pos
}

func (d *decoder) structure(n *node, v reflect.Value, path string) {
	known, rest, pos := fields(v.Type())
	if pos >= 0 {
		v.Field(pos).Set(reflect.ValueOf(n.pos))
	}
	if n.kind != mapping {
		d.add(n, path, "not a mapping", "write key: value")
		return
	}
	other := &node{kind: mapping, pos: n.pos}
	for i, key := range n.keys {
		value := n.items[i]
		if at := slices.IndexFunc(known, func(f field) bool { return f.name == key.text }); at >= 0 {
			d.decode(value, v.Field(known[at].index), join(path, key.text))
			continue
		}
		if rest >= 0 {
			other.keys, other.items = append(other.keys, key), append(other.items, value)
			continue
		}
		d.add(key, path, "unknown key", policy.Nearest(key.text, d.names(v.Type(), known)))
	}
	if rest >= 0 {
		v.Field(rest).Set(reflect.ValueOf(other))
	}
}

// names are the keys that an unknown one may have been meant as.
func (d *decoder) names(t reflect.Type, known []field) []string {
	names := slices.Clone(d.also)
	for _, f := range known {
		if t.Field(f.index).Type != reflect.TypeFor[unsupported]() {
			names = append(names, f.name)
		}
	}
	slices.Sort(names)
	return names
}

// decoder returns a function that decodes n for its provider, with the keys
// that stand beside n for comparison.
func (o *Options) decoder(n *node, path string, beside []string) func(any) error {
	return func(into any) error {
		v := reflect.ValueOf(into)
		if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
			return errors.New("config: Decode wants a pointer to a struct")
		}
		d := &decoder{opt: o, also: beside}
		d.decode(n, v.Elem(), path)
		return finish(d.problems)
	}
}
