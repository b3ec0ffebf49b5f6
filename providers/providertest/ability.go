package providertest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/ref"
)

// loginTTL is what the provider says.
func loginTTL(b *Backend) time.Duration { return b.Provider.(providers.Loginer).LoginTTL() }

// limitsTTL asks for lives short and long, within the definition's bounds.
func limitsTTL(t *testing.T, b *Backend) {
	if !b.LimitsTTL || b.Revocability == providers.Static {
		return
	}
	s := start(t, b)
	shortest, longest := time.Minute, time.Hour
	if bounded, ok := s.def.(providers.Bounder); ok {
		least, most := bounded.Bounds()
		shortest = max(shortest, least)
		if most != 0 {
			longest = max(least, min(longest, most))
		}
	}
	for _, ttl := range []time.Duration{shortest, longest} {
		req := s.request()
		req.TTL = ttl
		cred, err := b.Provider.Issue(t.Context(), req)
		if err != nil {
			t.Errorf("Issue for %v = %v", ttl, err)
			continue
		}
		if limit := time.Now().Add(ttl + slack); cred.Expires.IsZero() || cred.Expires.After(limit) {
			t.Errorf("Expires = %v, asked for %v: want at most %v", cred.Expires, ttl, limit)
		}
	}
}

func saneBounds(t *testing.T, b *Backend) {
	def, err := b.Provider.Define(b.Define)
	if err != nil {
		t.Fatal(err)
	}
	bounded, ok := def.(providers.Bounder)
	if !ok {
		return
	}
	shortest, longest := bounded.Bounds()
	if shortest < 0 || longest < 0 || longest != 0 && longest < shortest || max(shortest, longest) > providers.MaxTTL {
		t.Errorf("Bounds() = %v, %v, want 0 <= shortest <= longest <= %v", shortest, longest, providers.MaxTTL)
	}
}

var variable = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

// saneDefaults: the fields of the default variables exist.
func saneDefaults(t *testing.T, b *Backend) {
	s := start(t, b)
	d, ok := s.def.(providers.Defaulter)
	if !ok {
		return
	}
	cred := s.issue(t)
	seen := map[string]bool{}
	for _, v := range d.DefaultEnv() {
		if !variable.MatchString(v.Name) || seen[v.Name] {
			t.Errorf("default variable %q is doubled, or no name of one", v.Name)
		}
		seen[v.Name] = true
		if _, ok := cred.Fields[v.Field]; !ok && !v.Optional {
			t.Errorf("default variable %s is of field %q, which isn't there", v.Name, v.Field)
		}
	}
}

// loginsEnd: a login says when it ends, and that is within the bound that is
// written down before it is made.
func loginsEnd(t *testing.T, b *Backend) {
	if _, ok := b.Provider.(providers.Loginer); !ok {
		return
	}
	s := start(t, b)
	s.logIn(t)
	most := loginTTL(b)
	if most <= 0 || most > providers.MaxTTL {
		t.Errorf("LoginTTL() = %v, want one up to %v", most, providers.MaxTTL)
	}
	if end := s.login.Expires; end.IsZero() || end.After(time.Now().Add(most+slack)) || !end.After(time.Now()) {
		t.Errorf("the login expires at %v, want within %v of now", end, most)
	}
}

// showsMarkers: what is found at the back end can be led back to a lease.
func showsMarkers(t *testing.T, b *Backend) {
	if b.Log == nil {
		return
	}
	s := start(t, b)
	s.issue(t)
	want := []string{s.request().Marker}
	if s.login.Handle.Len() != 0 {
		want = append(want, s.loginRequest().Marker)
	}
	for _, marker := range want {
		if !strings.Contains(b.Log(), marker) {
			t.Errorf("the back end's log doesn't show the marker %s", marker)
		}
	}
}

func references(t *testing.T, b *Backend) {
	r, ok := b.Provider.(providers.Referencer)
	if !ok {
		return
	}
	schemes := r.Schemes()
	if len(schemes) == 0 || slices.ContainsFunc(schemes, func(s string) bool { return s == "" || s != strings.ToLower(s) }) {
		t.Errorf("Schemes() = %q, want at least one, in lower case", schemes)
	}
	if def, err := r.Reference(ref.Ref{Scheme: "nobodys", Path: "a/b"}); err == nil {
		t.Errorf("Reference of a scheme that isn't its own = %v, want an error", def)
	}
	if b.Reference == nil {
		return
	}
	s := start(t, b)
	def, err := r.Reference(*b.Reference)
	if err != nil {
		t.Fatalf("Reference(%+v) = %v", *b.Reference, err)
	}
	for _, tmpl := range def.Templates() {
		if len(tmpl.Names()) != 0 {
			t.Errorf("a reference's definition has the template %q", tmpl)
		}
	}
	req := s.request()
	req.Definition = def
	cred, err := b.Provider.Issue(t.Context(), req)
	if err != nil {
		t.Fatalf("Issue of the reference: %v", err)
	}
	for name, want := range b.Fields {
		if got, ok := cred.Fields[name]; !ok || want != "" && string(got.Reveal()) != want {
			t.Errorf("field %q of the reference isn't that of the definition", name)
		}
	}
}

// checks: it says as whom it was let in, shows nothing and leaves nothing.
func checks(t *testing.T, b *Backend) {
	c, ok := b.Provider.(providers.Checker)
	if !ok {
		return
	}
	before := b.logins()
	got, err := c.Check(t.Context(), b.loginRequest())
	if err != nil || got.As == "" {
		t.Fatalf("Check = %+v, %v, want an identity", got, err)
	}
	b.quiet(t, "what Check found", fmt.Sprintf("%+v", got))
	if _, ok := b.Provider.(providers.Logouter); ok && b.logins() != before {
		t.Errorf("%d logins live after Check, %d before", b.logins(), before)
	}
	if _, err := c.Check(cut(t), b.loginRequest()); err == nil {
		t.Error("Check under a context that is over = nil, want an error")
	}
}
