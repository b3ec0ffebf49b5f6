package vault

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/runenv/action/providers"
)

// Check logs in as a session of the RunEnv role would, asks Vault who that
// is, and ends the login.
func (p *Provider) Check(ctx context.Context, req providers.LoginRequest) (providers.Checked, error) {
	auth, err := p.logIn(ctx, req)
	if err != nil {
		return providers.Checked{}, err
	}
	self, cerr := p.do(ctx, request{path: "auth/token/lookup-self", token: auth.ClientToken, marker: req.Marker, repeat: always})
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer cancel()
	endErr := p.revokeSelf(late, auth.ClientToken)

	found := providers.Checked{As: identity("", auth.EntityID, auth.policies())}
	switch {
	case cerr != nil && !cerr.is(providers.ErrDenied):
		return providers.Checked{}, cerr
	case cerr != nil:
		found.Notes = append(found.Notes, "its token may not look itself up: give it Vault's default policy, or the right to read auth/token/lookup-self")
	case self == nil:
		return providers.Checked{}, malformed("auth/token/lookup-self", "answered without a body", "")
	default:
		found.As = identity(text(self.Data["display_name"]), text(self.Data["entity_id"]), auth.policies())
		found.Notes = append(found.Notes, notes(self.Data)...)
	}
	if !slices.Contains(auth.policies(), "default") {
		found.Notes = append(found.Notes, "its token lacks Vault's default policy: it must be allowed to update auth/token/renew-self and revoke-self and to read lookup-self by another")
	}
	if ttl := seconds(auth.LeaseDuration); ttl > providers.LoginTTL {
		found.Notes = append(found.Notes, fmt.Sprintf("its token lives %v at a time: token_ttl=5m bounds what a crash leaves", ttl))
	}
	if endErr != nil {
		found.Notes = append(found.Notes, "its token couldn't be revoked and runs out by itself: "+endErr.Error())
	}
	return found, nil
}

// notes say what of a token makes sessions worse than they could be.
func notes(self map[string]any) []string {
	var out []string
	if renewable, ok := self["renewable"].(bool); ok && !renewable {
		out = append(out, "its token can't be renewed: sessions lose their leases when it runs out; set no token_num_uses and no token_type=batch")
	}
	if n, ok := self["explicit_max_ttl"].(json.Number); ok {
		if s, err := n.Int64(); err == nil && s > 0 && s < int64(time.Hour.Seconds()) {
			out = append(out, fmt.Sprintf("its token ends for good after %v (token_explicit_max_ttl): longer sessions lose their leases", time.Duration(s)*time.Second))
		}
	}
	if n, ok := self["num_uses"].(json.Number); ok && n != "0" {
		out = append(out, "its token is good for a number of uses only (token_num_uses): set 0")
	}
	return out
}

// policies are all that the token has, its entity's too.
func (a *answerAuth) policies() []string {
	if len(a.Policies) != 0 {
		return a.Policies
	}
	return slices.Concat(a.TokenPolicies, a.IdentityPolicies)
}

func identity(display, entity string, policies []string) string {
	var parts []string
	if display != "" {
		parts = append(parts, "display name "+display)
	}
	if entity != "" {
		parts = append(parts, "entity "+entity)
	}
	parts = append(parts, "policies "+strings.Join(policies, " "))
	return clean(strings.Join(parts, ", "))
}

// clean keeps what a terminal or a log may show, of a bounded length.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return -1
		}
		return r
	}, s)
	return strings.ToValidUTF8(s[:min(len(s), 1024)], "")
}

func text(v any) string {
	s, _ := v.(string)
	return s
}
