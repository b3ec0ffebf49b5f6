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
//   - any-project: for some issuer, the role neither selects projects nor pins
//     an immutable id
//   - any-ref: for some issuer, the role names neither an event nor a ref
package policy

import (
	"iter"
	"maps"
	"slices"
	"strings"
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
	References       []Text   // globs of references, whose templates each grant fills
	SessionTTL       time.Duration
	HeartbeatTimeout time.Duration
	Limits           Limits

	rules    map[string]*rule      // by issuer name
	projects map[*Project]struct{} // nil: the role doesn't select projects
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

	// Notes are codes of what was allowed and should be seen: the Note
	// constants.
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

// Names of template variables.
const (
	varProjectName = "project.name"
	varProjectVars = "project.vars."
	varRoleName    = "role.name"
	varEnvironment = "environment"
)

// A Policy is what the file allows, compiled. It is immutable and safe for
// concurrent use.
type Policy struct {
	issuers  map[string]*issuer
	projects []*Project // sorted by name
	roles    []*Role    // sorted by name
	byRole   map[string]*Role
	tests    []test
	digest   string
}

// An issuer holds what is asked of all its tokens, whatever the role.
type issuer struct {
	name    string
	enabled bool
	profile *identity.Profile
	byID    map[string]*Project
	byName  map[string]*Project // lower case: CIs compare names so
	deny    []denyRule
}

type denyRule struct {
	claims []claimMatch
	where  string // place in the file
}

// A rule is what a role asks of one issuer's tokens.
type rule struct {
	claims []claimMatch

	// ids are the literal ids that the rule pins, by claim.
	ids map[string][]string

	// deniedEvents are the issuer's, less those that the role allows.
	deniedEvents []string

	// pinsEnvironment: `match` holds nothing but literals for environment.
	pinsEnvironment bool
}

type claimMatch struct {
	name     string
	literals []string
	globs    []*glob
}

// matches reports whether one of the claim's values is one of those asked for.
func (c *claimMatch) matches(values []string) bool {
	for _, v := range values {
		if slices.Contains(c.literals, v) {
			return true
		}
		for _, g := range c.globs {
			if g.match(v) {
				return true
			}
		}
	}
	return false
}

// Decide says whether id may have the role.
func (p *Policy) Decide(id *identity.Identity, role string) Decision {
	var d Decision
	iss := p.issuers[id.Issuer]
	if iss == nil || !iss.enabled || iss.profile.Name != id.Profile {
		return d.refuse(ReasonIssuerUnknown, "")
	}
	d.Project = iss.byID[id.ProjectID]
	if d.Role = p.byRole[role]; d.Role == nil {
		return d.refuse(ReasonRoleUnknown, "")
	}
	for i := range iss.deny {
		if iss.deny[i].fires(id) {
			return d.refuse(ReasonDenyRule, iss.deny[i].where)
		}
	}
	rule := d.Role.rules[id.Issuer]
	if rule == nil {
		return d.refuse(ReasonIssuerNotInRole, "issuer "+id.Issuer)
	}
	if reason, detail := d.project(id, iss, rule); reason != "" {
		return d.refuse(reason, detail)
	}
	if reason, detail := rule.decide(id, iss.profile); reason != "" {
		return d.refuse(reason, detail)
	}
	d.Allowed, d.Reason = true, ReasonAllowed
	environment := ""
	if rule.pinsEnvironment {
		if values, _ := id.Claim(varEnvironment); len(values) == 1 {
			environment = values[0]
		}
	}
	d.Vars = vars(d.Role, d.Project, environment)
	return d
}

func (d Decision) refuse(reason, detail string) Decision {
	d.Reason, d.Detail = reason, detail
	return d
}

// project decides which project the job belongs to and whether the role is
// for it. Ids decide; names only tell a project that was renamed, which is
// harmless, from one that took over a known name, which is an attack (T09).
func (d *Decision) project(id *identity.Identity, iss *issuer, rule *rule) (reason, detail string) {
	if id.ProjectID == "" {
		return ReasonProjectAbsent, "claim " + iss.profile.ProjectIDClaim
	}
	if d.Project == nil {
		if taken := iss.byName[strings.ToLower(id.ProjectName)]; taken != nil {
			return ReasonProjectReregistered, "project " + taken.Name
		}
		if d.Role.projects != nil {
			return ReasonProjectUnknown, "claim " + iss.profile.ProjectIDClaim
		}
	} else if d.Role.projects != nil {
		if _, ok := d.Role.projects[d.Project]; !ok {
			return ReasonProjectNotInRole, "project " + d.Project.Name
		}
	}
	// A merge request from a fork runs the fork's code in the project (T10).
	// Only a role that pins both ids meant that.
	if id.SourceProjectID != id.ProjectID &&
		(rule.ids[iss.profile.ProjectIDClaim] == nil || rule.ids[iss.profile.JobProjectIDClaim] == nil) {
		return ReasonSourceProject, "claim " + iss.profile.ProjectIDClaim
	}
	if d.Project != nil && id.ProjectName != "" && !strings.EqualFold(d.Project.Pins[iss.name].Name, id.ProjectName) {
		d.Notes = []string{NoteProjectRenamed}
	}
	return "", ""
}

func (r *rule) decide(id *identity.Identity, profile *identity.Profile) (reason, detail string) {
	events, ok := id.Claim(profile.EventClaim)
	if !ok || len(events) == 0 {
		return ReasonEventAbsent, "claim " + profile.EventClaim
	}
	for _, event := range events {
		if slices.Contains(r.deniedEvents, event) {
			return ReasonEventDenied, "event " + event
		}
	}
	for i := range r.claims {
		c := &r.claims[i]
		values, ok := id.Claim(c.name)
		if !ok {
			return ReasonClaimAbsent, "claim " + c.name
		}
		if !c.matches(values) {
			return ReasonClaimMismatch, "claim " + c.name
		}
	}
	return "", ""
}

func (r *denyRule) fires(id *identity.Identity) bool {
	for i := range r.claims {
		values, ok := id.Claim(r.claims[i].name)
		if !ok || !r.claims[i].matches(values) {
			return false
		}
	}
	return true
}

// vars are what templates may read: never a name or a ref that a caller or a
// rename chooses (T36).
func vars(role *Role, project *Project, environment string) map[string]string {
	size := 2
	if project != nil {
		size += 1 + len(project.Vars)
	}
	out := make(map[string]string, size)
	out[varRoleName] = role.Name
	if environment != "" {
		out[varEnvironment] = environment
	}
	if project != nil {
		out[varProjectName] = project.Name
		for name, value := range project.Vars {
			out[varProjectVars+name] = value
		}
	}
	return out
}

// Role returns the role of that name.
func (p *Policy) Role(name string) (*Role, bool) {
	r, ok := p.byRole[name]
	return r, ok
}

// Roles returns all roles, sorted by name.
func (p *Policy) Roles() []*Role { return slices.Clone(p.roles) }

// Projects returns all projects, sorted by name.
func (p *Policy) Projects() []*Project { return slices.Clone(p.projects) }

// Digest is the SHA-256, in hex, of what the policy means: the same for texts
// that differ only in order, comments and layout.
func (p *Policy) Digest() string { return p.digest }

// A Grant is one way in which a lease can be asked for, and what its
// templates read there.
type Grant struct {
	Role    *Role
	Issuer  string
	Project *Project // nil: the role pins an id that no project has, or none
	Vars    map[string]string
}

// Grants yields each way in which the lease can be asked for, so that a
// template that could never be resolved is found when the file is loaded. The
// order is always the same.
func (p *Policy) Grants(lease string) iter.Seq[Grant] {
	return func(yield func(Grant) bool) {
		for _, role := range p.roles {
			if !slices.Contains(role.Leases, lease) {
				continue
			}
			for grant := range p.RoleGrants(role) {
				if !yield(grant) {
					return
				}
			}
		}
	}
}

// RoleGrants yields each way in which the role can be had. The order is always
// the same.
func (p *Policy) RoleGrants(role *Role) iter.Seq[Grant] {
	return func(yield func(Grant) bool) {
		for _, name := range slices.Sorted(maps.Keys(role.rules)) {
			rule := role.rules[name]
			environments := []string{""}
			if rule.pinsEnvironment {
				environments = rule.literals(varEnvironment)
			}
			for _, project := range p.candidates(role, rule, p.issuers[name]) {
				for _, environment := range environments {
					if !yield(Grant{role, name, project, vars(role, project, environment)}) {
						return
					}
				}
			}
		}
	}
}

// candidates are the projects that the role can be had for at the issuer; nil
// among them stands for those that aren't in the file.
func (p *Policy) candidates(role *Role, rule *rule, iss *issuer) []*Project {
	var out []*Project
	if role.projects != nil {
		for _, project := range p.projects {
			_, selected := role.projects[project]
			if _, pinned := project.Pins[iss.name]; selected && pinned {
				out = append(out, project)
			}
		}
		return out
	}
	ids := rule.ids[iss.profile.JobProjectIDClaim]
	if ids == nil {
		ids = rule.ids[iss.profile.ProjectIDClaim]
	}
	if ids == nil {
		return []*Project{nil}
	}
	for _, id := range ids {
		if project := iss.byID[id]; !slices.Contains(out, project) {
			out = append(out, project)
		}
	}
	return out
}

func (r *rule) literals(claim string) []string {
	for i := range r.claims {
		if r.claims[i].name == claim {
			return r.claims[i].literals
		}
	}
	return nil
}
