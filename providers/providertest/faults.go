package providertest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/runenv/action/providers"
)

// classes are what an error may wrap, exactly one of them.
var classes = []error{
	providers.ErrDenied, providers.ErrNotFound, providers.ErrInvalid, providers.ErrUnavailable, providers.ErrMalformed,
}

const (
	// stallDeadline is how long a call to a back end that never answers is
	// given, answered the longest that any other may take.
	stallDeadline = 150 * time.Millisecond
	answered      = 20 * time.Second
)

// under makes one call while the back end misbehaves, heals it, and checks
// what the call said: the class, that nothing secret is in it, and that it
// came in time.
func (s *session) under(t *testing.T, fault Fault, want error, call func(context.Context) error) {
	t.Helper()
	err := s.call(t, fault, call)
	if err == nil {
		t.Fatalf("no error while the back end %s", fault)
	}
	for _, c := range classes {
		if errors.Is(err, c) != errors.Is(want, c) {
			t.Errorf("error %q: is %q = %v", err, c, errors.Is(err, c))
		}
	}
}

func (s *session) call(t *testing.T, fault Fault, call func(context.Context) error) error {
	t.Helper()
	deadline := answered
	if fault == Stall {
		deadline = stallDeadline
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	s.Inject(fault)
	began := time.Now()
	err := call(ctx)
	took := time.Since(began)
	s.Inject(Healthy)
	if took > deadline+slack {
		t.Errorf("it took %v, with %v to go", took, deadline)
	}
	if err != nil {
		s.quietError(t, err)
	}
	if fault == Stall && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v doesn't wrap %v", err, context.DeadlineExceeded)
	}
	return err
}

func issueUnder(t *testing.T, b *Backend, fault Fault, want error) {
	s := start(t, b)
	s.issue(t) // so that what a provider keeps (connections, what it found out) is in place
	before := b.alive()
	s.under(t, fault, want, func(ctx context.Context) error {
		cred, err := b.Provider.Issue(ctx, s.request())
		if cred != nil {
			t.Error("a credential beside an error")
		}
		checkVoid(t, err, b.alive()-before)
		return err
	})
	s.issue(t)
}

// checkVoid: what says that nothing was issued is right, and nothing is
// issued twice.
func checkVoid(t *testing.T, err error, issued int) {
	t.Helper()
	if issued > 1 {
		t.Errorf("one call issued %d times", issued)
	}
	if issued != 0 && providers.Void(err) {
		t.Errorf("Void(%v) = true, and one was issued", err)
	}
}

func loginUnder(t *testing.T, b *Backend, fault Fault, want error) {
	l, ok := b.Provider.(providers.Loginer)
	if !ok {
		return
	}
	s := start(t, b)
	before := b.logins()
	s.under(t, fault, want, func(ctx context.Context) error {
		login, err := l.Login(ctx, s.loginRequest())
		if login != nil {
			t.Error("a login beside an error")
		}
		checkVoid(t, err, b.logins()-before)
		return err
	})
	if r, ok := b.Provider.(providers.LoginRenewer); ok {
		s.under(t, fault, want, func(ctx context.Context) error {
			_, err := r.RenewLogin(ctx, s.login.Handle)
			return err
		})
	}
	if _, err := l.Login(t.Context(), s.loginRequest()); err != nil {
		t.Errorf("Login at a healed back end: %v", err)
	}
}

func renewUnder(t *testing.T, b *Backend, fault Fault, want error) {
	r, ok := b.Provider.(providers.Renewer)
	if !ok {
		return
	}
	s := start(t, b)
	cred := s.issue(t)
	if !cred.Renewable {
		return
	}
	renew := func(ctx context.Context) error {
		_, err := r.Renew(ctx, cred.Handle, s.login.Handle, testTTL)
		return err
	}
	s.under(t, fault, want, renew)
	if err := renew(t.Context()); err != nil {
		t.Errorf("Renew at a healed back end: %v", err)
	}
}

// revokeUnder: what isn't there has ended; a refusal means that it ends with
// its login; everything else is an error that says "try again".
func revokeUnder(t *testing.T, b *Backend, fault Fault, want error) {
	r, ok := b.Provider.(providers.Revoker)
	if !ok || b.Revocability != providers.Revocable {
		return
	}
	s := start(t, b)
	cred := s.issue(t)
	revoke := func(ctx context.Context) error { return r.Revoke(ctx, cred.Handle, s.login.Handle) }
	_, loginer := b.Provider.(providers.Loginer)
	err := s.call(t, fault, revoke)
	switch {
	case fault == NotFound:
		if err != nil {
			t.Errorf("Revoke = %v, want nil: it has ended", err)
		}
	case fault == Deny && loginer:
		if !errors.Is(err, providers.ErrWithLogin) {
			t.Errorf("Revoke = %v, want %v", err, providers.ErrWithLogin)
		}
	case fault == Invalid:
		if err == nil || errors.Is(err, providers.ErrWithLogin) {
			t.Errorf("Revoke = %v, want an error", err)
		}
	default:
		if !errors.Is(err, want) {
			t.Errorf("Revoke = %v, want %v", err, want)
		}
	}
	if err := revoke(t.Context()); err != nil || b.alive() != 0 {
		t.Errorf("Revoke at a healed back end = %v, and %d are alive", err, b.alive())
	}
}

// logoutUnder: whether a refused logout means that the login has ended is for
// the back end to know; that nothing was heard of it never does.
func logoutUnder(t *testing.T, b *Backend, fault Fault, want error) {
	l, ok := b.Provider.(providers.Logouter)
	if !ok || fault == Deny || fault == NotFound {
		return
	}
	s := start(t, b)
	s.issue(t)
	err := s.call(t, fault, func(ctx context.Context) error { return l.Logout(ctx, s.login.Handle) })
	if fault == Invalid && err == nil || fault != Invalid && !errors.Is(err, want) {
		t.Errorf("Logout = %v, want %v", err, want)
	}
	if err := l.Logout(t.Context(), s.login.Handle); err != nil || b.alive()+b.logins() != 0 {
		t.Errorf("Logout at a healed back end = %v, with %d credentials and %d logins alive", err, b.alive(), b.logins())
	}
}
