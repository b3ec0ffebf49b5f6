// Package inject makes the environment of a command that gets leases.
//
// The command inherits its caller's environment with its leased variables in
// it, and without what could get it more than those: the CI's token-request
// variables and RunEnv's own. A leased variable never has a name by which a
// shell, a language's runtime, a dynamic linker, git or the CI's runner would
// run code or change what runs: see [CheckName].
//
// Errors name variable and lease, never a value.
package inject

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/runenv/action/secret"
)

const (
	// MaxStringBytes bounds NAME=value: Linux takes 131,072 bytes with the
	// final NUL.
	MaxStringBytes = 128<<10 - 1
	// MaxTotalBytes bounds the environment. Linux shares a quarter of the
	// stack limit, 2 MiB as a rule, between environment and arguments, each
	// string with its pointer; macOS has 1 MiB for both.
	MaxTotalBytes = 1<<20 - 128<<10
	pointerBytes  = 8
)

// A Var is one leased variable.
type Var struct {
	Name  string
	Value secret.Value
	Lease string
}

// Options change what the command inherits.
type Options struct {
	// PassCIToken leaves in the variables by which the command could get the
	// job's token, and so more leases.
	PassCIToken bool
	// NotInherited are names of more variables that aren't inherited, whatever
	// PassCIToken and Keep say; leases may set them.
	NotInherited []string
	// Pristine inherits nothing but what a login gives (see [pristine]) and
	// what Only names.
	Pristine bool
	// Only and Deny are patterns of names, in which * stands for any
	// characters. Without Pristine, Only lets in nothing else; Deny leaves out
	// what it names, and counts more than Only.
	Only, Deny []string
	// Keep are names that an inherited value keeps, rather than a leased one.
	// A name in it that no lease sets is an error.
	Keep []string
	// Withhold are names that the command gets from nobody, and Set are
	// variables that go in last, in the place of inherited and leased ones:
	// nothing else of Options changes these.
	Withhold []string
	Set      []Var
}

// settled says whether Withhold or Set decides about a name.
func (o Options) settled(name string) bool {
	return slices.Contains(o.Withhold, name) || slices.ContainsFunc(o.Set, func(v Var) bool { return v.Name == name })
}

// pristine is what a login gives, by which programs find each other and speak
// the caller's language: no credential and nobody's settings.
var pristine = []string{
	"HOME", "LANG", "LANGUAGE", "LC_*", "LOGNAME", "PATH", "PWD", "SHELL", "TERM", "TMPDIR", "TZ", "USER", "XDG_RUNTIME_DIR",
	"COMSPEC", "PATHEXT", "SYSTEMDRIVE", "SYSTEMROOT", "TEMP", "TMP", "USERPROFILE", "WINDIR", // Windows starts no program without some
}

// check says which pattern or name means nothing.
func (o Options) check(vars []Var) error {
	for _, pattern := range slices.Concat(o.Only, o.Deny) {
		if !wellFormed(strings.ReplaceAll(pattern, "*", "x")) {
			return &Error{Name: pattern, reason: "isn't a pattern of names", hint: "write a name, or part of one and *, such as AWS_*"}
		}
	}
	for _, name := range o.Keep {
		if !slices.ContainsFunc(vars, func(v Var) bool { return v.Name == name }) {
			return &Error{Name: name, reason: "is to be kept, and no lease sets it", hint: "check the spelling of --keep-existing"}
		}
	}
	return nil
}

// inherits says whether the options let a name in.
func (o Options) inherits(name string) bool {
	switch {
	case matches(o.Deny, name):
		return false
	case o.Pristine:
		return matches(pristine, name) || matches(o.Only, name)
	}
	return len(o.Only) == 0 || matches(o.Only, name)
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := path.Match(p, name) // well formed, and no name has a slash that counts
		return ok
	})
}

// withheld are the variables that could get the command more than its leases.
var withheld = []string{"RUNENV_BROKER", "RUNENV_ID_TOKEN"}

// withheldPrefixes begin those by which a GitHub job asks for its token, and
// those that hold or name others: RUNENV_ID_TOKEN_FILE, and a token for each
// back end (`runenv-broker run`).
var withheldPrefixes = []string{"ACTIONS_ID_TOKEN_REQUEST_", "RUNENV_ID_TOKEN_"}

// An Error says which variable can't be set. It has the cure as a hint.
type Error struct {
	Name   string // the variable's
	Lease  string // the lease that sets it; "" from [CheckName]
	reason string
	hint   string
}

func (e *Error) Error() string {
	if e.Lease == "" {
		return fmt.Sprintf("variable %q: %s", e.Name, e.reason)
	}
	return fmt.Sprintf("variable %q of lease %q: %s", e.Name, e.Lease, e.reason)
}

// Hint names the cure.
func (e *Error) Hint() string { return e.hint }

// Environ returns the environment of the command: base, in its order, without
// what is withheld and without doubles (the last counts), then vars, then what
// opt sets. A leased variable takes the place of an inherited one, unless opt
// keeps that.
func Environ(base []string, vars []Var, opt Options) (out []string, err error) {
	erased(func() { out, err = environ(base, vars, opt) })
	return out, err
}

func environ(base []string, vars []Var, opt Options) ([]string, error) {
	if err := opt.check(vars); err != nil {
		return nil, err
	}
	leased := make(map[string]string, len(vars))
	for _, v := range vars {
		if err := check(v); err != nil {
			return nil, err
		}
		if other, ok := leased[v.Name]; ok {
			return nil, &Error{v.Name, v.Lease, fmt.Sprintf("lease %q sets it too", other),
				"take one of the two leases, or map one to another variable in the broker's file"}
		}
		leased[v.Name] = v.Lease
	}
	vars = slices.DeleteFunc(slices.Clone(vars), func(v Var) bool {
		if opt.settled(v.Name) {
			return true
		}
		kept := slices.Contains(opt.Keep, v.Name) && !slices.Contains(opt.NotInherited, v.Name) && slices.ContainsFunc(base, func(kv string) bool { return nameOf(kv) == v.Name })
		if kept {
			delete(leased, v.Name)
		}
		return kept
	})
	for _, v := range opt.Set {
		if err := check(v); err != nil {
			return nil, err
		}
	}
	vars = append(vars, opt.Set...)
	out := inherited(base, leased, opt)
	total := 0
	for _, kv := range out {
		total += len(kv) + 1 + pointerBytes
	}
	before := total
	for _, v := range vars {
		total += len(v.Name) + 1 + v.Value.Len() + 1 + pointerBytes
		// A base that is too large by itself is for the system to refuse.
		if total > MaxTotalBytes && before <= MaxTotalBytes {
			return nil, &Error{v.Name, v.Lease, fmt.Sprintf("the environment would hold more than %d bytes", MaxTotalBytes),
				"take fewer leases for this command, or have large values in files: NAME_FILE instead of NAME"}
		}
		out = append(out, v.Name+"="+string(v.Value.Reveal()))
	}
	return out, nil
}

// inherited filters base, from its end: so the last of doubles is seen first.
func inherited(base []string, leased map[string]string, opt Options) []string {
	out := make([]string, 0, len(base)+len(leased))
	seen := make(map[string]bool, len(base))
	for _, kv := range slices.Backward(base) {
		name := nameOf(kv)
		if name == "" || seen[name] {
			continue
		}
		seen[name] = true
		if _, ok := leased[name]; ok || opt.settled(name) || !opt.PassCIToken && isWithheld(name) || slices.Contains(opt.NotInherited, name) {
			continue
		}
		if !slices.Contains(opt.Keep, name) && !opt.inherits(name) {
			continue
		}
		out = append(out, kv)
	}
	slices.Reverse(out)
	return out
}

func isWithheld(name string) bool {
	return slices.Contains(withheld, name) ||
		slices.ContainsFunc(withheldPrefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// nameOf gives "" for what is no setting. Windows keeps each drive's directory
// in a variable such as "=C:".
func nameOf(kv string) string {
	i := strings.IndexByte(kv, '=')
	if i == 0 {
		if j := strings.IndexByte(kv[1:], '='); j > 0 {
			return kv[:1+j]
		}
	}
	return kv[:max(i, 0)]
}

func check(v Var) error {
	if err := checkName(v.Name, v.Lease); err != nil {
		return err
	}
	if bytes.IndexByte(v.Value.Reveal(), 0) >= 0 {
		return &Error{v.Name, v.Lease, "its value holds a NUL byte, which no environment can", "have the lease encode it, in base64 say"}
	}
	if n := len(v.Name) + 1 + v.Value.Len(); n > MaxStringBytes {
		return &Error{v.Name, v.Lease, fmt.Sprintf("its %d bytes are more than the %d that one variable can hold", n, MaxStringBytes),
			fmt.Sprintf("have it in a file, whose path the variable holds: name it %s_FILE, or put it under file: in the broker's file", v.Name)}
	}
	return nil
}
