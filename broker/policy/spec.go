package policy

import (
	"cmp"
	"strconv"
	"time"
)

// A Pos is a place in the broker's file. Line and Column count from 1; the
// zero Pos is unknown.
type Pos struct {
	File         string
	Line, Column int
}

// String is file:line:column.
func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return p.File + ":" + strconv.Itoa(p.Line) + ":" + strconv.Itoa(p.Column)
}

// Compare orders by file, line and column.
func (p Pos) Compare(q Pos) int {
	return cmp.Or(cmp.Compare(p.File, q.File), cmp.Compare(p.Line, q.Line), cmp.Compare(p.Column, q.Column))
}

// A Problem is why a file doesn't load. Its texts hold names that the file
// defines and never a value.
type Problem struct {
	Pos     Pos
	Path    string // of keys: roles.prod.match.github.ref
	Message string
	Hint    string // the cure, where it is known; may be empty
}

// String is "file:line:column: path: message; hint".
func (p Problem) String() string {
	s := p.Message
	if p.Path != "" {
		s = p.Path + ": " + s
	}
	if where := p.Pos.String(); where != "" {
		s = where + ": " + s
	}
	if p.Hint != "" {
		s += "; " + p.Hint
	}
	return s
}

// Text is a string of the file with its place.
type Text struct {
	Value string
	Pos   Pos
}

// A Spec is the policy as the file holds it, unchecked. [Compile] checks it.
type Spec struct {
	Issuers  []IssuerSpec
	Projects []ProjectSpec
	Leases   []LeaseSpec
	Roles    []RoleSpec
	Deny     []DenySpec
	Tests    []TestSpec
}

// An IssuerSpec is what policy needs to know of an issuer. Text is a
// canonical text of its whole entry, for the digest.
type IssuerSpec struct {
	Name    Text
	Profile string
	Enabled bool
	Text    string
}

// A ProjectSpec is an entry of `projects`.
type ProjectSpec struct {
	Name Text
	Pins []PinSpec
	Vars []VarSpec
}

// A PinSpec is `issuer: name@id` of a project.
type PinSpec struct{ Issuer, Value Text }

// A VarSpec is one variable of a project.
type VarSpec struct{ Name, Value Text }

// A LeaseSpec is what policy needs to know of a lease definition. Text is a
// canonical text of its whole entry, for the digest.
type LeaseSpec struct {
	Name Text
	Env  []Text // the variables that it sets, as far as the file names them
	Text string
}

// A RoleSpec is an entry of `roles`. A zero duration or limit stands for the
// default.
type RoleSpec struct {
	Name             Text
	Projects         *SelectorSpec // nil: the key is absent
	Match            []MatchSpec
	Leases           []Text
	References       []Text // globs of package ref, with the templates of definitions
	SessionTTL       time.Duration
	HeartbeatTimeout time.Duration
	Limits           Limits
	AllowEvents      []ReasonSpec
	Unsafe           []ReasonSpec
}

// A SelectorSpec selects projects by name, or by the values of variables: a
// project must have one of the values of each variable.
type SelectorSpec struct {
	Names []Text
	Vars  []VarSelectorSpec
	Pos   Pos
}

// A VarSelectorSpec is one variable of a SelectorSpec.
type VarSelectorSpec struct {
	Name   Text
	Values []Text
}

// A MatchSpec is what a role or a deny rule asks of one issuer's claims.
type MatchSpec struct {
	Issuer Text
	Claims []ClaimSpec
}

// A ClaimSpec is a claim with the values of which it must have one.
type ClaimSpec struct {
	Name   Text
	Values []ValueSpec
}

// A ValueSpec is a literal, or a glob if Glob is set.
type ValueSpec struct {
	Text
	Glob bool
}

// A ReasonSpec is an entry of `allow_events` or `unsafe`.
type ReasonSpec struct{ Name, Reason Text }

// A DenySpec is an entry of `deny`. It fires if every claim that it names for
// the caller's issuer is present and matches.
type DenySpec struct {
	Match []MatchSpec
	Pos   Pos
}

// A TestSpec is an entry of `tests`.
type TestSpec struct {
	Role    Text
	Project Text // empty value: none, for a role that pins ids itself
	Issuer  Text // empty value: the only one that it can be
	Change  []ClaimSpec
	Want    Text // allow or deny
	Pos     Pos
}
