package policy

import (
	"fmt"
	"maps"
	"slices"

	"github.com/runenv/action/broker/identity"
)

// A TestResult is the outcome of an entry of `tests`.
type TestResult struct {
	Pos                   Pos
	Role, Project, Issuer string // Project is empty for a role that pins ids itself
	Want                  bool   // allow
	Got                   Decision
	Passed                bool
}

// test is an entry of `tests`, ready to run.
type test struct {
	result TestResult
	id     *identity.Identity
}

// usualEvent stands in the base claims of a test whose role names no event:
// every token has one, and no CI that we know denies this one.
const usualEvent = "push"

// RunTests runs the file's own tests, in its order.
func (p *Policy) RunTests() []TestResult {
	out := make([]TestResult, 0, len(p.tests))
	for _, t := range p.tests {
		r := t.result
		r.Got = p.Decide(t.id, r.Role)
		r.Passed = r.Got.Allowed == r.Want
		out = append(out, r)
	}
	return out
}

// compileTest makes the identity that the test is about: the project's ids and
// each match value (the first of a list), then what the test changes. A test
// that couldn't show what it claims to doesn't load.
func (c *compiler) compileTest(i int, s *TestSpec) {
	path := fmt.Sprintf("tests[%d]", i)
	before := len(c.problems)
	if s.Want.Value != "allow" && s.Want.Value != "deny" {
		c.add(s.Want.Pos, path+".want", "neither allow nor deny", "")
	}
	role := c.policy.byRole[s.Role.Value]
	if role == nil {
		c.unknown(s.Role.Pos, path+".role", "no role of that name", s.Role.Value, slices.Sorted(maps.Keys(c.policy.byRole)))
	}
	var project *Project
	if s.Project.Value != "" {
		if project = c.byName[s.Project.Value]; project == nil {
			c.unknown(s.Project.Pos, path+".project", "no project of that name", s.Project.Value, slices.Sorted(maps.Keys(c.byName)))
		}
	} else if role != nil && role.projects != nil {
		c.add(s.Pos, path, "names no project", "a role that selects projects is tested with one")
	}
	if len(c.problems) > before {
		return
	}
	iss := c.testIssuer(path, s, role, project)
	if iss == nil {
		return
	}
	claims, ok := c.testClaims(path, s, role, project, iss)
	if !ok {
		return
	}
	id, err := identity.New(iss.profile, iss.name, claims)
	if err != nil {
		c.add(s.Pos, path+".change", "no token could hold these claims", "ids are decimal numbers")
		return
	}
	c.policy.tests = append(c.policy.tests, test{TestResult{
		Pos: s.Pos, Role: role.Name, Project: s.Project.Value, Issuer: iss.name, Want: s.Want.Value == "allow",
	}, id})
}

// testIssuer is the one that the test names, or the only one that it can be.
func (c *compiler) testIssuer(path string, s *TestSpec, role *Role, project *Project) *issuer {
	names := slices.Sorted(maps.Keys(role.rules))
	if project != nil {
		names = slices.Sorted(maps.Keys(project.Pins))
	}
	if s.Issuer.Value != "" {
		if slices.Contains(names, s.Issuer.Value) {
			return c.policy.issuers[s.Issuer.Value]
		}
		c.unknown(s.Issuer.Pos, path+".issuer", "not an issuer that this test can be about", s.Issuer.Value, names)
		return nil
	}
	if len(names) == 0 {
		return nil // the role or the project has a problem of its own
	}
	if len(names) > 1 {
		c.add(s.Pos, path, "could be about several issuers", "name one with issuer:")
		return nil
	}
	return c.policy.issuers[names[0]]
}

func (c *compiler) testClaims(path string, s *TestSpec, role *Role, project *Project, iss *issuer) (map[string]any, bool) {
	profile := iss.profile
	claims := map[string]any{profile.EventClaim: usualEvent}
	open := map[string]bool{} // claims of match for which only a glob stands
	if rule := role.rules[iss.name]; rule != nil {
		for i := range rule.claims {
			match := &rule.claims[i]
			if len(match.literals) > 0 {
				claims[match.name] = match.literals[0]
			} else if len(match.globs) > 0 {
				open[match.name] = true
			}
		}
	}
	set := func(claim, value string) {
		if claim != "" && value != "" {
			claims[claim] = value
			delete(open, claim)
		}
	}
	if project != nil {
		pin := project.Pins[iss.name]
		set(profile.ProjectIDClaim, pin.ID)
		set(profile.ProjectNameClaim, pin.Name)
		set(profile.JobProjectIDClaim, pin.ID)
		set(profile.JobProjectNameClaim, pin.Name)
	}
	before := len(c.problems)
	for _, change := range s.Change {
		if !profile.Knows(change.Name.Value) {
			c.unknown(change.Name.Pos, path+".change", "tokens of the profile "+profile.Name+" have no such claim to match", change.Name.Value, profile.Known)
			continue
		}
		values := make([]string, 0, len(change.Values))
		for _, v := range change.Values {
			if v.Glob {
				c.add(v.Pos, path+".change."+change.Name.Value, "a test needs a value, not a glob", "")
			}
			values = append(values, v.Value)
		}
		switch len(values) {
		case 0:
			c.add(change.Name.Pos, path+".change."+change.Name.Value, "an empty list", "")
		case 1:
			claims[change.Name.Value] = values[0]
		default:
			claims[change.Name.Value] = values
		}
		delete(open, change.Name.Value)
	}
	for _, claim := range slices.Sorted(maps.Keys(open)) {
		c.add(s.Pos, path, "the role has only a glob for the claim "+claim, "give a value: change: {"+claim+": …}")
	}
	return claims, len(c.problems) == before
}
