// Package policy decides whether an identity may have a role.
//
// It is pure functions over a [Policy] that [Compile] built once: no network,
// no file, no clock, no regular expression. What could let in more than its
// author meant doesn't compile: an empty match, a claim that the issuer's CI
// doesn't have, a role that names no project or no ref. [Policy.Decide] says
// why it refused with a constant code for the audit log, which the caller
// never sees.
//
// Rules of loading that a role can set aside, each with a reason, under
// `unsafe`:
//
//   - any-project: the role neither selects projects nor pins an immutable id
//   - any-ref: the role names neither an event nor a ref
package policy

import (
	"iter"
	"time"

	"github.com/runenv/action/broker/identity"
)

// Limits of a role's sessions.
type Limits struct {
	Sessions int // live sessions per job and role
	Leases   int // leases per session
}

// A Role is what may be asked for, checked. It is immutable.
type Role struct {
	Name             string
	Leases           []string // in the file's order
	SessionTTL       time.Duration
	HeartbeatTimeout time.Duration
	Limits           Limits
}

// A Project is a repository or GitLab project that the broker knows. It is
// immutable.
type Project struct {
	Name string
	Vars map[string]string
	Pins map[string]Pin // by issuer name
}

// A Pin is a project's place at one issuer: the immutable id, and the name it
// had when the file was written.
type Pin struct{ Name, ID string }

// A Decision is the answer of [Policy.Decide].
type Decision struct {
	Allowed bool

	// Reason is one of the Reason constants.
	Reason string

	// Detail names the claim or the rule that decided. It is for the audit
	// log and the operator, never for the caller.
	Detail string

	// Role is nil if it is unknown. Project is nil if it is unknown; where the
	// role pins ids itself that is no refusal.
	Role    *Role
	Project *Project

	// Notes are codes of what was allowed and should be seen: the Note constants.
	Notes []string

	// Vars are what templates may read; nil unless allowed.
	Vars map[string]string
}

// Reasons of a [Decision].
const (
	ReasonAllowed             = "allowed"
	ReasonRoleUnknown         = "role_unknown"
	ReasonIssuerUnknown       = "issuer_unknown"       // not in the table, disabled, or of another profile
	ReasonIssuerNotInRole     = "issuer_not_in_role"   // the role has no match for it
	ReasonDenyRule            = "deny_rule"            // an entry of `deny`
	ReasonProjectAbsent       = "project_absent"       // the token names none
	ReasonProjectUnknown      = "project_unknown"      // no project has this id
	ReasonProjectReregistered = "project_reregistered" // a known name under another id
	ReasonProjectNotInRole    = "project_not_in_role"  // known, not selected
	ReasonSourceProject       = "source_project"       // the code comes from another project
	ReasonEventAbsent         = "event_absent"         // the token doesn't say what started the job
	ReasonEventDenied         = "event_denied"         // strangers can start such jobs
	ReasonClaimAbsent         = "claim_absent"         // `match` names a claim that the token lacks
	ReasonClaimMismatch       = "claim_mismatch"       // a claim has none of the values of `match`
)

// NoteProjectRenamed is the note that a known id came with another name.
const NoteProjectRenamed = "project_renamed"

// A Grant is one way in which a lease can be asked for: what its templates
// could read there.
type Grant struct {
	Role    *Role
	Issuer  string
	Project *Project // nil: the role pins an id that no project has
	Vars    map[string]string
}

// A TestResult is the outcome of an entry of `tests`.
type TestResult struct {
	Pos                   Pos
	Role, Project, Issuer string
	Want                  bool // allow
	Got                   Decision
	Passed                bool
}

// A Policy is what the file allows, compiled. It is immutable and safe for
// concurrent use.
type Policy struct {
	digest string
}

// Compile checks a policy and prepares it for deciding. The policy is nil if
// there are problems.
func Compile(Spec) (*Policy, []Problem) { return nil, nil }

// Decide says whether id may have the role.
func (p *Policy) Decide(id *identity.Identity, role string) Decision { return Decision{} }

// Role returns the role of that name.
func (p *Policy) Role(name string) (*Role, bool) { return nil, false }

// Roles returns all roles, sorted by name.
func (p *Policy) Roles() []*Role { return nil }

// Projects returns all projects, sorted by name.
func (p *Policy) Projects() []*Project { return nil }

// Digest is the SHA-256, in hex, of what the policy means: the same for texts
// that differ only in order, comments and layout.
func (p *Policy) Digest() string { return p.digest }

// RunTests runs the file's own tests, in its order.
func (p *Policy) RunTests() []TestResult { return nil }

// Grants yields each way in which the lease can be asked for, so that a
// template that could never be resolved is found when the file is loaded.
func (p *Policy) Grants(lease string) iter.Seq[Grant] { return nil }
