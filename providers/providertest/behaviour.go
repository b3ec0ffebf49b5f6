package providertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

const (
	testTTL = 10 * time.Minute
	// slack is what clocks, rounding to seconds and a busy machine may add.
	slack = 5 * time.Second
)

func issues(t *testing.T, b *Backend) {
	s := start(t, b)
	before := time.Now()
	cred := s.issue(t)
	if len(cred.Fields) != len(b.Fields) {
		t.Errorf("Issue gave %d fields, want %d", len(cred.Fields), len(b.Fields))
	}
	for name, want := range b.Fields {
		got, ok := cred.Fields[name]
		switch {
		case !ok:
			t.Errorf("field %q is missing", name)
		case want == "" && got.Len() == 0:
			t.Errorf("field %q is empty", name)
		case want != "" && string(got.Reveal()) != want:
			t.Errorf("field %q = %q, want %q", name, got.Reveal(), want)
		}
	}
	if cred.Revocability != b.Revocability {
		t.Errorf("Revocability = %q, want %q", cred.Revocability, b.Revocability)
	}
	switch cred.Revocability {
	case providers.Static:
		if !cred.Expires.IsZero() || cred.Renewable || cred.Handle.Len() != 0 {
			t.Errorf("a static credential with Expires %v, Renewable %v and a handle of %d bytes, want none of them",
				cred.Expires, cred.Renewable, cred.Handle.Len())
		}
	case providers.Expires, providers.Revocable:
		if !cred.Expires.After(before) {
			t.Errorf("Expires = %v, want a time after %v", cred.Expires, before)
		}
		if limit := time.Now().Add(lifetime(s.def) + slack); b.LimitsTTL && cred.Expires.After(limit) {
			t.Errorf("Expires = %v, want at most %v", cred.Expires, limit)
		}
	}
	if cred.Revocability == providers.Revocable {
		if _, ok := b.Provider.(providers.Revoker); !ok || cred.Handle.Len() == 0 {
			t.Error("a revocable credential without a handle or without a Revoker")
		}
	}
	if cred.Renewable {
		if _, ok := b.Provider.(providers.Renewer); !ok {
			t.Error("a renewable credential of a provider that can't renew")
		}
	}
	if b.Alive != nil && b.Revocability == providers.Revocable && b.alive() != 1 {
		t.Errorf("%d credentials live at the back end, want 1", b.alive())
	}
}

func handsOutCopies(t *testing.T, b *Backend) {
	s := start(t, b)
	for _, v := range s.issue(t).Fields {
		v.Wipe()
	}
	for name, v := range s.issue(t).Fields {
		if strings.Trim(string(v.Reveal()), "\x00") == "" {
			t.Errorf("field %q is wiped in a second credential", name)
		}
	}
}

func showsNothing(t *testing.T, b *Backend) {
	s := start(t, b)
	cred := s.issue(t)
	req, lreq := s.request(), s.loginRequest()
	for _, x := range []any{cred, *cred, s.login, *s.login, req, &req, lreq, &lreq, s.def, b.Provider} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			s.quiet(t, fmt.Sprintf("%T by %s", x, verb), fmt.Sprintf(verb, x))
		}
		if text, err := json.Marshal(x); err == nil {
			s.quiet(t, fmt.Sprintf("%T as JSON", x), string(text))
		}
	}
}

// quiet fails if text holds a canary, plain or in hex.
func (b *Backend) quiet(t *testing.T, what, text string) {
	t.Helper()
	for _, canary := range b.Canaries {
		for _, form := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprint([]byte(canary)), strings.Trim(fmt.Sprintf("%q", canary), `"`)} {
			if strings.Contains(strings.ToLower(text), strings.ToLower(form)) {
				t.Errorf("%s shows a secret: %s", what, text)
			}
		}
	}
}

// quietError is quiet for an error's text, its Go syntax and its hint.
func (b *Backend) quietError(t *testing.T, err error) {
	t.Helper()
	b.quiet(t, "the error", fmt.Sprintf("%v %+v", err, err))
	for e := err; e != nil; e = errors.Unwrap(e) {
		b.quiet(t, "the error's parts", fmt.Sprintf("%#v", e))
	}
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		b.quiet(t, "the hint", hinted.Hint())
	}
}

func definesOffline(t *testing.T, b *Backend) {
	def, err := b.Provider.Define(b.Define)
	if err != nil {
		t.Fatal(err)
	}
	for _, tmpl := range def.Templates() {
		if _, err := tmpl.Expand(b.Vars); err != nil {
			t.Errorf("template %q: %v", tmpl, err)
		}
	}
	switch r := def.Revocability(); r {
	case providers.Revocable, providers.Expires, providers.Static:
	default:
		t.Errorf("Revocability() = %q, which isn't one", r)
	}
	if n := b.requests(); n != 0 {
		t.Errorf("opening and defining made %d requests, want none", n)
	}
}

func passesRefusals(t *testing.T, b *Backend) {
	refusal := errors.New("broker.yaml:3:7: unknown key")
	if _, err := b.Provider.Define(func(any) error { return refusal }); !errors.Is(err, refusal) {
		t.Errorf("Define = %v, want the decoder's error in it", err)
	}
}

type foreign struct{}

func (foreign) Templates() []providers.Template      { return nil }
func (foreign) Revocability() providers.Revocability { return providers.Static }

func refusesForeign(t *testing.T, b *Backend) {
	s := start(t, b)
	for _, def := range []providers.Definition{foreign{}, nil} {
		req := s.request()
		req.Definition = def
		cred, err := b.Provider.Issue(t.Context(), req)
		if cred != nil || !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("Issue(%T) = %v, %v, want %v", def, cred, err, providers.ErrInvalid)
		}
	}
}

func heedsContext(t *testing.T, b *Backend) {
	s := start(t, b)
	before := b.alive()
	cred, err := b.Provider.Issue(cut(t), s.request())
	if cred != nil || !errors.Is(err, providers.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("Issue = %v, %v, want %v and %v", cred, err, providers.ErrUnavailable, context.Canceled)
	}
	if b.alive() != before {
		t.Error("a credential was issued")
	}
}

func concurrent(t *testing.T, b *Backend) {
	def, err := b.Provider.Define(b.Define)
	if err != nil {
		t.Fatal(err)
	}
	one := func() error {
		var login secret.Value
		if loginer, ok := b.Provider.(providers.Loginer); ok && !loginless(def) {
			l, err := loginer.Login(t.Context(), b.loginRequest())
			if err != nil {
				return fmt.Errorf("login: %w", err)
			}
			login = l.Handle
		}
		cred, err := b.Provider.Issue(t.Context(), providers.Request{
			Definition: def, Vars: b.Vars, TTL: lifetime(def), Marker: "runenv-m", Login: login, Role: "prod", Session: "s-1", Tokens: b.Tokens,
		})
		if err != nil {
			return fmt.Errorf("issue: %w", err)
		}
		if r, ok := b.Provider.(providers.Renewer); ok && cred.Renewable {
			if _, err := r.Renew(t.Context(), cred.Handle, login, lifetime(def)); err != nil {
				return fmt.Errorf("renew: %w", err)
			}
		}
		if r, ok := b.Provider.(providers.Revoker); ok && cred.Revocability == providers.Revocable {
			if err := r.Revoke(t.Context(), cred.Handle, login); err != nil {
				return fmt.Errorf("revoke: %w", err)
			}
		}
		if l, ok := b.Provider.(providers.Logouter); ok && login.Len() != 0 {
			if err := l.Logout(t.Context(), login); err != nil {
				return fmt.Errorf("logout: %w", err)
			}
		}
		return nil
	}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 4 {
				if err := one(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if _, revoker := b.Provider.(providers.Revoker); revoker && b.alive() != 0 {
		t.Errorf("%d credentials are left", b.alive())
	}
	if _, logouter := b.Provider.(providers.Logouter); logouter && b.logins() != 0 {
		t.Errorf("%d logins are left", b.logins())
	}
}

func renews(t *testing.T, b *Backend) {
	r, ok := b.Provider.(providers.Renewer)
	if !ok {
		return
	}
	s := start(t, b)
	cred := s.issue(t)
	if !cred.Renewable {
		return
	}
	for range 2 {
		before := time.Now()
		got, err := r.Renew(t.Context(), cred.Handle, s.login.Handle, lifetime(s.def))
		if err != nil || !got.After(before) || got.After(time.Now().Add(lifetime(s.def)+slack)) {
			t.Errorf("Renew = %v, %v, want within %v of now", got, err, lifetime(s.def))
		}
	}
}

func revokes(t *testing.T, b *Backend) {
	r, ok := b.Provider.(providers.Revoker)
	if !ok || b.Revocability != providers.Revocable {
		return
	}
	s := start(t, b)
	cred := s.issue(t)
	for range 2 {
		if err := r.Revoke(t.Context(), cred.Handle, s.login.Handle); err != nil {
			t.Errorf("Revoke = %v, want nil", err)
		}
		if b.alive() != 0 {
			t.Error("the credential lives after Revoke")
		}
	}
	if rn, ok := b.Provider.(providers.Renewer); ok && cred.Renewable {
		if _, err := rn.Renew(t.Context(), cred.Handle, s.login.Handle, testTTL); !errors.Is(err, providers.ErrNotFound) && !errors.Is(err, providers.ErrDenied) {
			t.Errorf("Renew of a revoked credential = %v, want %v or %v", err, providers.ErrNotFound, providers.ErrDenied)
		}
	}
}

func logsOut(t *testing.T, b *Backend) {
	l, ok := b.Provider.(providers.Logouter)
	if !ok {
		return
	}
	s := start(t, b)
	s.logIn(t)
	cred := s.issue(t)
	s.issue(t)
	for range 2 {
		if err := l.Logout(t.Context(), s.login.Handle); err != nil {
			t.Errorf("Logout = %v, want nil", err)
		}
		if b.logins() != 0 || b.alive() != 0 && !loginless(s.def) {
			t.Errorf("%d credentials and %d logins live after Logout", b.alive(), b.logins())
		}
	}
	if lr, ok := b.Provider.(providers.LoginRenewer); ok {
		if _, err := lr.RenewLogin(t.Context(), s.login.Handle); !errors.Is(err, providers.ErrDenied) && !errors.Is(err, providers.ErrNotFound) {
			t.Errorf("RenewLogin after Logout = %v, want %v or %v", err, providers.ErrDenied, providers.ErrNotFound)
		}
	}
	if loginless(s.def) {
		return
	}
	if _, err := b.Provider.Issue(t.Context(), s.request()); !providers.Void(err) {
		t.Errorf("Issue after Logout = %v, want a refusal", err)
	}
	if r, ok := b.Provider.(providers.Revoker); ok && cred.Revocability == providers.Revocable {
		if err := r.Revoke(t.Context(), cred.Handle, s.login.Handle); err != nil && !errors.Is(err, providers.ErrWithLogin) {
			t.Errorf("Revoke after Logout = %v, want nil or %v", err, providers.ErrWithLogin)
		}
	}
}

func renewsLogin(t *testing.T, b *Backend) {
	l, ok := b.Provider.(providers.LoginRenewer)
	if !ok {
		return
	}
	s := start(t, b)
	s.logIn(t)
	for range 2 {
		before := time.Now()
		got, err := l.RenewLogin(t.Context(), s.login.Handle)
		if err != nil || !got.After(before) || got.After(time.Now().Add(loginTTL(b)+slack)) {
			t.Errorf("RenewLogin = %v, %v, want within %v of now", got, err, loginTTL(b))
		}
	}
}

func refusesJunk(t *testing.T, b *Backend) {
	s := start(t, b)
	for _, junk := range []string{"", "junk", "{}", "null", `{"token":1}`, `{"token":""}`, `{"a":"b"}`, strings.Repeat("x", 1<<20)} {
		h := secret.FromString(junk)
		check := func(what string, err error) {
			t.Helper()
			if !errors.Is(err, providers.ErrInvalid) {
				t.Errorf("%s(%.12q) = %v, want %v", what, junk, err, providers.ErrInvalid)
			}
		}
		if r, ok := b.Provider.(providers.Renewer); ok {
			_, err := r.Renew(t.Context(), h, s.login.Handle, testTTL)
			check("Renew", err)
		}
		if r, ok := b.Provider.(providers.Revoker); ok {
			check("Revoke", r.Revoke(t.Context(), h, s.login.Handle))
		}
		if l, ok := b.Provider.(providers.LoginRenewer); ok {
			_, err := l.RenewLogin(t.Context(), h)
			check("RenewLogin", err)
		}
		if l, ok := b.Provider.(providers.Logouter); ok {
			check("Logout", l.Logout(t.Context(), h))
		}
		if _, ok := b.Provider.(providers.Loginer); ok && !loginless(s.def) {
			req := s.request()
			req.Login = h
			_, err := b.Provider.Issue(t.Context(), req)
			check("Issue with login", err)
		}
	}
}

func tokenSource(t *testing.T, b *Backend) {
	l, ok := b.Provider.(providers.Loginer)
	if !ok || b.Tokens == nil {
		return
	}
	a, ok := b.Provider.(providers.Audienced)
	if !ok {
		t.Fatal("the provider takes the broker's token and doesn't say its audience")
	}
	var asked []string
	req := b.loginRequest()
	req.Tokens = func(ctx context.Context, audience string) (string, error) {
		asked = append(asked, audience)
		return b.Tokens(ctx, audience)
	}
	if _, err := l.Login(t.Context(), req); err != nil || len(asked) != 1 || asked[0] != a.Audience() {
		t.Errorf("Login = %v after asking for tokens %q, want one for %q", err, asked, a.Audience())
	}
	before, requests := b.logins(), b.requests()
	broken := errors.New("no signing key")
	req.Tokens = func(context.Context, string) (string, error) { return "", broken }
	_, err := l.Login(t.Context(), req)
	if !errors.Is(err, broken) || !providers.Void(err) || b.logins() != before || b.requests() != requests {
		t.Errorf("Login without a token = %v, want the source's error, void, and no request", err)
	}
	req.Tokens = nil
	if _, err := l.Login(t.Context(), req); !providers.Void(err) {
		t.Errorf("Login without a token source = %v, want a refusal", err)
	}
}

func finds(t *testing.T, b *Backend) {
	f, ok := b.Provider.(providers.Finder)
	if !ok {
		return
	}
	s := start(t, b)
	cred := s.issue(t)
	got, err := f.Find(t.Context(), s.request().Marker, s.login.Handle)
	if err != nil || len(got) != 1 || !got[0].Equal(cred.Handle) {
		t.Errorf("Find gave %d handles, %v, want the one issued", len(got), err)
	}
	if got, err := f.Find(t.Context(), "runenv-none", s.login.Handle); err != nil || len(got) != 0 {
		t.Errorf("Find of another marker gave %d handles, %v, want none", len(got), err)
	}
}
