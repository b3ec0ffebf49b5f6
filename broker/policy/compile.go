package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/runenv/action/broker/identity"
	"github.com/runenv/action/ref"
)

// Defaults and bounds of a role. A heartbeat timeout under 3 s would end
// sessions over ordinary network jitter; a session ends with its job, and no
// hosted CI lets one run for more than a day by default.
const (
	defaultSessionTTL       = time.Hour
	maxSessionTTL           = 24 * time.Hour
	defaultHeartbeatTimeout = 3 * time.Minute
	minHeartbeatTimeout     = 3 * time.Second
	maxHeartbeatTimeout     = time.Hour
	defaultSessions         = 4
	defaultLeases           = 20
	maxLimit                = 1000

	// maxRoleLeases is as many as one lease request may name on the wire.
	maxRoleLeases = 100
)

// Load rules that `unsafe` can set aside.
const (
	ruleAnyProject = "any-project"
	ruleAnyRef     = "any-ref"
)

// Compile checks a policy and prepares it for deciding. The policy is nil if
// there are problems.
func Compile(spec Spec) (*Policy, []Problem) {
	c := &compiler{
		policy: &Policy{issuers: map[string]*issuer{}, byRole: map[string]*Role{}},
		byName: map[string]*Project{},
		leases: map[string]*LeaseSpec{},
	}
	c.compileIssuers(spec.Issuers)
	c.compileProjects(spec.Projects)
	c.compileLeases(spec.Leases)
	for i := range spec.Deny {
		c.compileDeny(i, &spec.Deny[i])
	}
	seen := map[string]Pos{}
	for i := range spec.Roles {
		r := &spec.Roles[i]
		if !validRole(r.Name.Value) {
			c.add(r.Name.Pos, "roles", "not a role name", "it is 1 to 63 of a-z, 0-9 and -")
		} else if c.first(seen, "roles", r.Name) {
			c.compileRole(r)
		}
	}
	byName := func(a, b *Role) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(c.policy.roles, byName)
	for i := range spec.Tests {
		c.compileTest(i, &spec.Tests[i])
	}
	if len(c.problems) > 0 {
		slices.SortStableFunc(c.problems, func(a, b Problem) int { return a.Pos.Compare(b.Pos) })
		return nil, c.problems
	}
	c.policy.digest = digest(&spec)
	return c.policy, nil
}

type compiler struct {
	policy   *Policy
	byName   map[string]*Project
	leases   map[string]*LeaseSpec
	problems []Problem
}

func (c *compiler) add(pos Pos, path, message, hint string) {
	c.problems = append(c.problems, Problem{pos, path, message, hint})
}

// first records the name, or reports that it stands elsewhere already.
func (c *compiler) first(seen map[string]Pos, path string, name Text) bool {
	if at, doubled := seen[name.Value]; doubled {
		c.add(name.Pos, path+"."+name.Value, "this name stands already at "+at.String(), "give one of the two another name")
		return false
	}
	seen[name.Value] = name.Pos
	return true
}

// named is first for names that are checked by [ValidName].
func (c *compiler) named(seen map[string]Pos, path string, name Text) bool {
	if !ValidName(name.Value) {
		c.add(name.Pos, path, "not a name", "a name is 1 to 63 of a-z, 0-9 and, within, - _ .")
		return false
	}
	return c.first(seen, path, name)
}

// unknown reports a reference to something that isn't there.
func (c *compiler) unknown(pos Pos, path, message, word string, known []string) {
	c.add(pos, path, message, Nearest(word, known))
}

func (c *compiler) compileIssuers(specs []IssuerSpec) {
	seen := map[string]Pos{}
	for _, s := range specs {
		if !c.named(seen, "issuers", s.Name) {
			continue
		}
		profile, ok := identity.ProfileByName(s.Profile)
		if !ok {
			c.unknown(s.Name.Pos, "issuers."+s.Name.Value+".profile", "no profile of that name", s.Profile, identity.ProfileNames())
			continue
		}
		c.policy.issuers[s.Name.Value] = &issuer{
			name: s.Name.Value, enabled: s.Enabled, profile: profile,
			byID: map[string]*Project{}, byName: map[string]*Project{},
		}
	}
}

// issuer returns the issuer that an entry names.
func (c *compiler) issuer(path string, name Text) (*issuer, bool) {
	iss, ok := c.policy.issuers[name.Value]
	if !ok {
		c.unknown(name.Pos, path, "no issuer of that name", name.Value, slices.Sorted(maps.Keys(c.policy.issuers)))
	}
	return iss, ok
}

func (c *compiler) compileProjects(specs []ProjectSpec) {
	seen := map[string]Pos{}
	pinned := map[string]Pos{}
	for _, s := range specs {
		if !c.named(seen, "projects", s.Name) {
			continue
		}
		path := "projects." + s.Name.Value
		project := &Project{Name: s.Name.Value, Vars: map[string]string{}, Pins: map[string]Pin{}}
		for _, v := range s.Vars {
			switch {
			case !validVar(v.Name.Value):
				c.add(v.Name.Pos, path+".vars", "not a variable name", "it is a letter or _, then letters, digits, _ and -, 63 at most")
			case v.Value.Value == "":
				c.add(v.Value.Pos, path+".vars."+v.Name.Value, "an empty value", "")
			default:
				project.Vars[v.Name.Value] = v.Value.Value
			}
		}
		if len(s.Pins) == 0 {
			c.add(s.Name.Pos, path, "no issuer pins this project", "write its id, like github: acme/shop-api@1001")
		}
		for _, pin := range s.Pins {
			iss, ok := c.issuer(path, pin.Issuer)
			if !ok {
				continue
			}
			pinPath := path + "." + iss.name
			name, id, ok := cutPin(pin.Value.Value)
			if !ok {
				c.add(pin.Value.Pos, pinPath, "not NAME@ID", "it is the full name, @ and the immutable id in decimal, like acme/shop-api@1001")
				continue
			}
			lower := strings.ToLower(name)
			at, doubled := pinned[iss.name+" id "+id]
			if !doubled {
				at, doubled = pinned[iss.name+" name "+lower]
			}
			if doubled {
				c.add(pin.Value.Pos, pinPath, "another project has this id or name, at "+at.String(), "")
				continue
			}
			pinned[iss.name+" id "+id], pinned[iss.name+" name "+lower] = pin.Value.Pos, pin.Value.Pos
			project.Pins[iss.name] = Pin{Name: name, ID: id}
			iss.byID[id], iss.byName[lower] = project, project
		}
		c.byName[project.Name] = project
		c.policy.projects = append(c.policy.projects, project)
	}
	slices.SortFunc(c.policy.projects, func(a, b *Project) int { return strings.Compare(a.Name, b.Name) })
}

// cutPin splits "acme/shop-api@1001".
func cutPin(s string) (name, id string, ok bool) {
	i := strings.LastIndexByte(s, '@')
	if i < 1 || strings.ContainsAny(s[:i], "@:* \t\r\n") || !strings.Contains(s[:i], "/") {
		return "", "", false
	}
	return s[:i], s[i+1:], isDecimal(s[i+1:])
}

// isDecimal reports whether s is a positive number in its one spelling, of 20
// digits at most.
func isDecimal(s string) bool {
	return s != "" && len(s) <= 20 && s[0] != '0' && strings.Trim(s, "0123456789") == ""
}

func (c *compiler) compileLeases(specs []LeaseSpec) {
	seen := map[string]Pos{}
	for i := range specs {
		if c.named(seen, "leases", specs[i].Name) {
			c.leases[specs[i].Name.Value] = &specs[i]
		}
	}
}

func (c *compiler) compileDeny(i int, s *DenySpec) {
	path := fmt.Sprintf("deny[%d]", i)
	if len(s.Match) == 0 {
		c.add(s.Pos, path, "an empty rule", "name an issuer and its claims")
	}
	for _, m := range s.Match {
		if iss, ok := c.issuer(path, m.Issuer); ok {
			claims := c.compileClaims(path+"."+iss.name, iss.profile, &m)
			iss.deny = append(iss.deny, denyRule{claims, "rule at " + s.Pos.String()})
		}
	}
}

// compileClaims checks what match or deny ask of one issuer's claims.
func (c *compiler) compileClaims(path string, profile *identity.Profile, m *MatchSpec) []claimMatch {
	if len(m.Claims) == 0 {
		c.add(m.Issuer.Pos, path, "an empty match", "name at least one claim with its values")
	}
	var out []claimMatch
	for _, s := range m.Claims {
		if !profile.Knows(s.Name.Value) {
			c.unknown(s.Name.Pos, path, "tokens of the profile "+profile.Name+" have no such claim to match", s.Name.Value, profile.Known)
			continue
		}
		claimPath := path + "." + s.Name.Value
		isID := s.Name.Value == profile.OwnerIDClaim || slices.Contains(profile.IDClaims, s.Name.Value)
		if len(s.Values) == 0 {
			c.add(s.Name.Pos, claimPath, "an empty list", "it would match nothing: give a value or remove the claim")
		}
		match := claimMatch{name: s.Name.Value}
		for _, v := range s.Values {
			switch {
			case isID && (v.Glob || !isDecimal(v.Value)):
				c.add(v.Pos, claimPath, "not an id", "an id is one decimal number")
			case v.Glob:
				g, err := compileGlob(v.Value)
				if err != nil {
					c.add(v.Pos, claimPath, err.Error(), "* stops at / : @, and ** is one or more whole segments")
					continue
				}
				match.globs = append(match.globs, g)
			case v.Value == "":
				c.add(v.Pos, claimPath, "an empty value", "")
			case strings.Contains(v.Value, "*"):
				c.add(v.Pos, claimPath, "a * in a plain value would be taken literally", "write {glob: …} if a glob is meant")
			default:
				match.literals = append(match.literals, v.Value)
			}
		}
		out = append(out, match)
	}
	return out
}

func (c *compiler) compileRole(s *RoleSpec) {
	path := "roles." + s.Name.Value
	role := &Role{
		Name:             s.Name.Value,
		SessionTTL:       s.SessionTTL,
		HeartbeatTimeout: s.HeartbeatTimeout,
		Limits:           s.Limits,
		rules:            map[string]*rule{},
	}
	c.compileTimes(path, s, role)
	for _, limit := range []struct {
		name  string
		value *int
		def   int
	}{{"sessions", &role.Limits.Sessions, defaultSessions}, {"leases", &role.Limits.Leases, defaultLeases}} {
		if *limit.value == 0 {
			*limit.value = limit.def
		} else if *limit.value < 0 || *limit.value > maxLimit {
			c.add(s.Name.Pos, path+".limits."+limit.name, fmt.Sprintf("not within 1 and %d", maxLimit), "")
		}
	}
	if s.Projects != nil {
		role.projects = c.compileSelector(path+".projects", s.Projects)
	}
	c.compileRoleLeases(path, s, role)
	c.compileReferences(path+".references", s, role)
	unsafe := c.compileUnsafe(path, s)
	events := c.compileEvents(path, s)
	if len(s.Match) == 0 {
		c.add(s.Name.Pos, path, "no match", "say under match which claims each issuer's tokens must have")
	}
	for _, m := range s.Match {
		if iss, ok := c.issuer(path+".match", m.Issuer); ok {
			role.rules[iss.name] = c.compileRule(path+".match."+iss.name, s, iss, &m, unsafe, events)
		}
	}
	c.policy.byRole[role.Name] = role
	c.policy.roles = append(c.policy.roles, role)
}

func (c *compiler) compileTimes(path string, s *RoleSpec, role *Role) {
	if role.SessionTTL == 0 {
		role.SessionTTL = defaultSessionTTL
	} else if role.SessionTTL < minHeartbeatTimeout || role.SessionTTL > maxSessionTTL {
		c.add(s.Name.Pos, path+".session_ttl", fmt.Sprintf("not within %v and %v", minHeartbeatTimeout, maxSessionTTL), "")
	}
	switch {
	case role.HeartbeatTimeout == 0:
		role.HeartbeatTimeout = min(defaultHeartbeatTimeout, role.SessionTTL)
	case role.HeartbeatTimeout < minHeartbeatTimeout || role.HeartbeatTimeout > maxHeartbeatTimeout:
		c.add(s.Name.Pos, path+".heartbeat_timeout", fmt.Sprintf("not within %v and %v", minHeartbeatTimeout, maxHeartbeatTimeout), "")
	case role.HeartbeatTimeout > role.SessionTTL:
		c.add(s.Name.Pos, path+".heartbeat_timeout", "longer than the session", "")
	}
}

func (c *compiler) compileSelector(path string, s *SelectorSpec) map[*Project]struct{} {
	selected := map[*Project]struct{}{}
	if len(s.Names) == 0 && len(s.Vars) == 0 {
		c.add(s.Pos, path, "selects no project", "name projects, or the values of their variables")
		return selected
	}
	for _, name := range s.Names {
		if project := c.byName[name.Value]; project != nil {
			selected[project] = struct{}{}
		} else {
			c.unknown(name.Pos, path, "no project of that name", name.Value, slices.Sorted(maps.Keys(c.byName)))
		}
	}
	if len(s.Vars) == 0 {
		return selected
	}
	for _, project := range c.policy.projects {
		if s.selects(project) {
			selected[project] = struct{}{}
		}
	}
	known := map[string]bool{}
	for _, project := range c.policy.projects {
		for name := range project.Vars {
			known[name] = true
		}
	}
	for _, v := range s.Vars {
		switch {
		case len(v.Values) == 0:
			c.add(v.Name.Pos, path, "an empty list", "it would select nothing")
		case !known[v.Name.Value]:
			c.unknown(v.Name.Pos, path, "no project has a variable of that name", v.Name.Value, slices.Sorted(maps.Keys(known)))
		}
		for _, value := range v.Values {
			if !slices.ContainsFunc(c.policy.projects, func(p *Project) bool {
				got, ok := p.Vars[v.Name.Value]
				return ok && got == value.Value
			}) && known[v.Name.Value] {
				c.add(value.Pos, path+"."+v.Name.Value, "no project has this value", "")
			}
		}
	}
	if len(selected) == 0 {
		c.add(s.Pos, path, "selects no project", "")
	}
	return selected
}

// selects reports whether the project has one of the values of each variable.
func (s *SelectorSpec) selects(project *Project) bool {
	for _, v := range s.Vars {
		got, ok := project.Vars[v.Name.Value]
		if !ok || !slices.ContainsFunc(v.Values, func(t Text) bool { return t.Value == got }) {
			return false
		}
	}
	return true
}

func (c *compiler) compileRoleLeases(path string, s *RoleSpec, role *Role) {
	path += ".leases"
	if len(s.Leases) == 0 && len(s.References) == 0 {
		c.add(s.Name.Pos, path, "no leases", "name at least one lease definition, or grant references")
	}
	if len(s.Leases) > maxRoleLeases {
		c.add(s.Name.Pos, path, fmt.Sprintf("over %d leases", maxRoleLeases), "")
		return
	}
	setBy := map[string]string{}
	for _, name := range s.Leases {
		lease := c.leases[name.Value]
		if lease == nil {
			c.unknown(name.Pos, path, "no lease definition of that name", name.Value, slices.Sorted(maps.Keys(c.leases)))
			continue
		}
		if slices.Contains(role.Leases, name.Value) {
			c.add(name.Pos, path, "the lease "+name.Value+" stands here twice", "")
			continue
		}
		role.Leases = append(role.Leases, name.Value)
		for _, variable := range lease.Env {
			if other, doubled := setBy[variable.Value]; doubled && other != name.Value {
				c.add(name.Pos, path, "the leases "+other+" and "+name.Value+" both set the variable "+variable.Value, "a command has one value for each: rename one, or use two roles")
				continue
			}
			setBy[variable.Value] = name.Value
		}
	}
}

// compileReferences checks globs with a word in the place of each template,
// which stands for one segment's text or a part of it and never for a *.
func (c *compiler) compileReferences(path string, s *RoleSpec, role *Role) {
	if len(s.References) > maxRoleLeases {
		c.add(s.Name.Pos, path, fmt.Sprintf("over %d globs", maxRoleLeases), "")
		return
	}
	for _, t := range s.References {
		if slices.ContainsFunc(role.References, func(other Text) bool { return other.Value == t.Value }) {
			c.add(t.Pos, path, "this glob stands here twice", "")
			continue
		}
		if _, err := ref.ParseGlob(withoutHoles(t.Value)); err != nil {
			c.add(t.Pos, path, err.Error(), "write it like vault://secret/ci/{{project.name}}/**: * stops at / and :, and ** is one or more whole segments")
			continue
		}
		role.References = append(role.References, t)
	}
}

// withoutHoles puts a letter in the place of each {{…}}. What may stand in one
// is for whoever fills it.
func withoutHoles(text string) string {
	var b strings.Builder
	for {
		before, after, opened := strings.Cut(text, "{{")
		_, rest, closed := strings.Cut(after, "}}")
		if !opened || !closed {
			b.WriteString(text)
			return b.String()
		}
		b.WriteString(before + "x")
		text = rest
	}
}

func (c *compiler) compileUnsafe(path string, s *RoleSpec) map[string]bool {
	known := []string{ruleAnyProject, ruleAnyRef}
	set := map[string]bool{}
	for _, u := range s.Unsafe {
		if !slices.Contains(known, u.Name.Value) {
			c.add(u.Name.Pos, path+".unsafe", "no rule of that name", "the rules are "+strings.Join(known, " and "))
			continue
		}
		c.reason(path+".unsafe."+u.Name.Value, u.Reason)
		set[u.Name.Value] = true
	}
	return set
}

// compileEvents returns the events that the role allows although strangers
// can start them.
func (c *compiler) compileEvents(path string, s *RoleSpec) []string {
	var denied []string
	for _, m := range s.Match {
		if iss := c.policy.issuers[m.Issuer.Value]; iss != nil {
			denied = append(denied, iss.profile.DeniedEvents...)
		}
	}
	var allowed []string
	for _, e := range s.AllowEvents {
		if !slices.Contains(denied, e.Name.Value) {
			c.unknown(e.Name.Pos, path+".allow_events", "not an event that would be denied", e.Name.Value, denied)
			continue
		}
		c.reason(path+".allow_events."+e.Name.Value, e.Reason)
		allowed = append(allowed, e.Name.Value)
	}
	return allowed
}

func (c *compiler) reason(path string, reason Text) {
	if strings.TrimSpace(reason.Value) == "" {
		c.add(reason.Pos, path, "an empty reason", "say in a few words why this is safe here")
	}
}

func (c *compiler) compileRule(path string, s *RoleSpec, iss *issuer, m *MatchSpec, unsafe map[string]bool, events []string) *rule {
	before := len(c.problems)
	r := &rule{claims: c.compileClaims(path, iss.profile, m), ids: map[string][]string{}}
	for _, event := range iss.profile.DeniedEvents {
		if !slices.Contains(events, event) {
			r.deniedEvents = append(r.deniedEvents, event)
		}
	}
	namesRef := false
	for _, claim := range r.claims {
		if slices.Contains(iss.profile.IDClaims, claim.name) {
			r.ids[claim.name] = claim.literals
		}
		if claim.name == varEnvironment && len(claim.globs) == 0 {
			r.pinsEnvironment = true
		}
		if slices.Contains(iss.profile.RefClaims, claim.name) &&
			!slices.ContainsFunc(claim.globs, func(g *glob) bool { return !g.says() }) {
			namesRef = true
		}
		if claim.name != iss.profile.EventClaim {
			continue
		}
		for _, event := range claim.literals {
			if slices.Contains(r.deniedEvents, event) {
				c.add(m.Issuer.Pos, path+"."+claim.name, event+" is denied, since strangers can start such jobs", "if it is meant, give the reason: allow_events: {"+event+": …}")
			}
		}
	}
	if len(c.problems) > before {
		return r // what is missing may be what was refused
	}
	if s.Projects == nil && len(r.ids) == 0 && !unsafe[ruleAnyProject] {
		c.add(m.Issuer.Pos, path, "any project of this issuer could have the role",
			"select projects, or match "+strings.Join(iss.profile.IDClaims, " or ")+"; if it is meant, give the reason: unsafe: {"+ruleAnyProject+": …}")
	}
	if !namesRef && !unsafe[ruleAnyRef] {
		c.add(m.Issuer.Pos, path, "names neither an event nor a ref, so any branch could have the role",
			"match "+strings.Join(iss.profile.RefClaims, " or ")+"; if it is meant, give the reason: unsafe: {"+ruleAnyRef+": …}")
	}
	return r
}
