package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
)

// digestDomain sets this digest apart from any other, and from later forms.
const digestDomain = "runenv policy 1\n"

// digest hashes what a checked spec means. Maps are marshalled in the order of
// their keys and lists of alternatives are sorted, so that order, layout and
// places in files don't count. Tests don't either: they allow nothing.
func digest(spec *Spec) string {
	issuers, leases := map[string]any{}, map[string]any{}
	projects, roles := map[string]any{}, map[string]any{}
	for _, s := range spec.Issuers {
		issuers[s.Name.Value] = []any{s.Profile, s.Enabled, s.Text}
	}
	for _, s := range spec.Leases {
		leases[s.Name.Value] = s.Text
	}
	for _, s := range spec.Projects {
		pins, vars := map[string]string{}, map[string]string{}
		for _, pin := range s.Pins {
			pins[pin.Issuer.Value] = pin.Value.Value
		}
		for _, v := range s.Vars {
			vars[v.Name.Value] = v.Value.Value
		}
		projects[s.Name.Value] = []any{pins, vars}
	}
	for i := range spec.Roles {
		roles[spec.Roles[i].Name.Value] = canonicalRole(&spec.Roles[i])
	}
	deny := make([]string, 0, len(spec.Deny))
	for _, s := range spec.Deny {
		deny = append(deny, marshal(canonicalMatch(s.Match)))
	}
	slices.Sort(deny)
	sum := sha256.Sum256([]byte(digestDomain + marshal(map[string]any{
		"issuers": issuers, "leases": leases, "projects": projects, "roles": roles, "deny": deny,
	})))
	return hex.EncodeToString(sum[:])
}

func canonicalRole(s *RoleSpec) any {
	var selector any
	if s.Projects != nil {
		vars := map[string][]string{}
		for _, v := range s.Projects.Vars {
			vars[v.Name.Value] = sorted(v.Values)
		}
		selector = []any{sorted(s.Projects.Names), vars}
	}
	// The order of leases stands: it is the order of their delivery.
	leases := make([]string, 0, len(s.Leases))
	for _, lease := range s.Leases {
		leases = append(leases, lease.Value)
	}
	return map[string]any{
		"projects": selector, "match": canonicalMatch(s.Match), "leases": leases, "references": sorted(s.References),
		"session_ttl": s.SessionTTL, "heartbeat_timeout": s.HeartbeatTimeout, "limits": s.Limits,
		"allow_events": canonicalReasons(s.AllowEvents), "unsafe": canonicalReasons(s.Unsafe),
	}
}

func canonicalMatch(match []MatchSpec) map[string]map[string][]string {
	out := map[string]map[string][]string{}
	for _, m := range match {
		claims := map[string][]string{}
		for _, claim := range m.Claims {
			values := make([]string, 0, len(claim.Values))
			for _, v := range claim.Values {
				kind := "="
				if v.Glob {
					kind = "~"
				}
				values = append(values, kind+v.Value)
			}
			slices.Sort(values)
			claims[claim.Name.Value] = values
		}
		out[m.Issuer.Value] = claims
	}
	return out
}

func canonicalReasons(reasons []ReasonSpec) map[string]string {
	out := map[string]string{}
	for _, r := range reasons {
		out[r.Name.Value] = r.Reason.Value
	}
	return out
}

func sorted(texts []Text) []string {
	out := make([]string, 0, len(texts))
	for _, t := range texts {
		out = append(out, t.Value)
	}
	slices.Sort(out)
	return out
}

func marshal(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps, slices, strings and numbers alone
	}
	return string(b)
}
