package providertest

import (
	"context"
	"errors"
	"slices"
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
func (s *session) under(t *testing.T, fault Fault, want []error, call func(context.Context) error) {
	t.Helper()
	err := s.call(t, fault, call)
	if err == nil {
		t.Fatalf("no error while the back end %s", fault)
	}
	checkClass(t, err, want)
}

// checkClass: the error is one of want, and of one class alone.
func checkClass(t *testing.T, err error, want []error) {
	t.Helper()
	is := slices.DeleteFunc(slices.Clone(classes), func(c error) bool { return !errors.Is(err, c) })
	if len(is) != 1 || !slices.Contains(want, is[0]) {
		t.Errorf("error %q is %q, want one of %q", err, is, want)
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

func issueUnder(t *testing.T, b *Backend, fault Fault, want []error) {
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

func isOne(err error, of []error) bool {
	return slices.ContainsFunc(of, func(c error) bool { return errors.Is(err, c) })
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

func loginUnder(t *testing.T, b *Backend, fault Fault, want []error) {
	l, ok := b.Provider.(providers.Loginer)
	if !ok {
		return
	}
	s := start(t, b)
	s.logIn(t)
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

func renewUnder(t *testing.T, b *Backend, fault Fault, want []error) {
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
		_, err := r.Renew(ctx, cred.Handle, s.login.Handle, lifetime(s.def))
		return err
	}
	s.under(t, fault, want, renew)
	if err := renew(t.Context()); err != nil {
		t.Errorf("Renew at a healed back end: %v", err)
	}
}

// revokeUnder: what isn't there has ended; a refusal means that it ends with
// its login; everything else is an error that says "try again".
func revokeUnder(t *testing.T, b *Backend, fault Fault, want []error) {
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
		if !isOne(err, want) {
			t.Errorf("Revoke = %v, want one of %q", err, want)
		}
	}
	if err := revoke(t.Context()); err != nil || b.alive() != 0 {
		t.Errorf("Revoke at a healed back end = %v, and %d are alive", err, b.alive())
	}
}

// logoutUnder: whether a refused logout means that the login has ended is for
// the back end to know; that nothing was heard of it never does.
func logoutUnder(t *testing.T, b *Backend, fault Fault, want []error) {
	l, ok := b.Provider.(providers.Logouter)
	if !ok || fault == Deny || fault == NotFound {
		return
	}
	s := start(t, b)
	s.logIn(t)
	s.issue(t)
	err := s.call(t, fault, func(ctx context.Context) error { return l.Logout(ctx, s.login.Handle) })
	if fault == Invalid && err == nil || fault != Invalid && !isOne(err, want) {
		t.Errorf("Logout = %v, want one of %q", err, want)
	}
	if err := l.Logout(t.Context(), s.login.Handle); err != nil || b.logins() != 0 || b.alive() != 0 && !loginless(s.def) {
		t.Errorf("Logout at a healed back end = %v, with %d credentials and %d logins alive", err, b.alive(), b.logins())
	}
}

// unnoticed: a passing trouble costs a pause, not the call, and issues once.
func unnoticed(t *testing.T, b *Backend, fault Fault) {
	s := start(t, b)
	before := b.alive()
	issue := func(ctx context.Context) error {
		_, err := b.Provider.Issue(ctx, s.request())
		return err
	}
	if err := s.call(t, fault, issue); err != nil {
		t.Errorf("Issue = %v, want nil", err)
	}
	if b.Alive != nil && b.Revocability == providers.Revocable && b.alive()-before != 1 {
		t.Errorf("one call issued %d times", b.alive()-before)
	}
	l, ok := b.Provider.(providers.Loginer)
	if !ok {
		return
	}
	login := func(ctx context.Context) error {
		_, err := l.Login(ctx, s.loginRequest())
		return err
	}
	if err := s.call(t, fault, login); err != nil {
		t.Errorf("Login = %v, want nil", err)
	}
}

// rollsBack: what a failed call may have left at the back end, the broker can
// end: by its marker, or with the login.
func rollsBack(t *testing.T, b *Backend, fault Fault) {
	s := start(t, b)
	err := s.call(t, fault, func(ctx context.Context) error {
		_, err := b.Provider.Issue(ctx, s.request())
		return err
	})
	if err == nil {
		t.Fatalf("no error while the back end %s", fault)
	}
	if providers.Void(err) {
		if b.alive() != 0 {
			t.Errorf("Void(%v) = true, and %d are alive", err, b.alive())
		}
		return
	}
	f, finder := b.Provider.(providers.Finder)
	r, revoker := b.Provider.(providers.Revoker)
	l, logouter := b.Provider.(providers.Logouter)
	switch {
	case finder && revoker:
		handles, err := f.Find(t.Context(), s.request().Marker, s.login.Handle)
		if err != nil {
			t.Fatalf("Find = %v", err)
		}
		for _, h := range handles {
			if err := r.Revoke(t.Context(), h, s.login.Handle); err != nil {
				t.Errorf("Revoke of what was found = %v", err)
			}
		}
	case logouter && s.login.Handle.Len() != 0:
		if err := l.Logout(t.Context(), s.login.Handle); err != nil {
			t.Errorf("Logout = %v", err)
		}
	default:
		return // it only expires
	}
	if b.alive() != 0 {
		t.Errorf("%d are alive after everything was ended", b.alive())
	}
}

// checkUnder: a check says what is wrong, in the classes of a login.
func checkUnder(t *testing.T, b *Backend, fault Fault, want []error) {
	c, ok := b.Provider.(providers.Checker)
	if !ok {
		return
	}
	s := start(t, b)
	s.under(t, fault, want, func(ctx context.Context) error {
		_, err := c.Check(ctx, s.loginRequest())
		return err
	})
}

// cancelled: a call whose caller goes away ends with it, and issues nothing.
func cancelled(t *testing.T, h Harness) {
	run := func(name string, call func(*testing.T, *session) func(context.Context) error) {
		t.Run(name, func(t *testing.T) {
			b := h.New(t)
			s := start(t, b)
			do := call(t, s)
			if do == nil {
				return
			}
			credentials, logins := b.alive(), b.logins()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s.Inject(Stall)
			defer time.AfterFunc(stallDeadline, cancel).Stop()
			began := time.Now()
			err := do(ctx)
			if took := time.Since(began); took > stallDeadline+slack {
				t.Errorf("it took %v after it was cancelled", took-stallDeadline)
			}
			s.Inject(Healthy)
			if !errors.Is(err, providers.ErrUnavailable) || !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want %v and %v", err, providers.ErrUnavailable, context.Canceled)
			}
			if err != nil {
				s.quietError(t, err)
			}
			if b.alive() != credentials || b.logins() != logins {
				t.Errorf("%d credentials and %d logins live, want %d and %d", b.alive(), b.logins(), credentials, logins)
			}
		})
	}
	type calls = func(context.Context) error
	run("issue", func(t *testing.T, s *session) calls {
		return func(ctx context.Context) error {
			cred, err := s.Provider.Issue(ctx, s.request())
			if cred != nil {
				t.Error("a credential beside an error")
			}
			return err
		}
	})
	run("login", func(_ *testing.T, s *session) calls {
		l, ok := s.Provider.(providers.Loginer)
		if !ok {
			return nil
		}
		return func(ctx context.Context) error {
			_, err := l.Login(ctx, s.loginRequest())
			return err
		}
	})
	run("renew", func(t *testing.T, s *session) calls {
		r, ok := s.Provider.(providers.Renewer)
		if !ok {
			return nil
		}
		cred := s.issue(t)
		if !cred.Renewable {
			return nil
		}
		return func(ctx context.Context) error {
			_, err := r.Renew(ctx, cred.Handle, s.login.Handle, lifetime(s.def))
			return err
		}
	})
	run("revoke", func(t *testing.T, s *session) calls {
		r, ok := s.Provider.(providers.Revoker)
		if !ok || s.Revocability != providers.Revocable {
			return nil
		}
		cred := s.issue(t)
		return func(ctx context.Context) error { return r.Revoke(ctx, cred.Handle, s.login.Handle) }
	})
	run("logout", func(t *testing.T, s *session) calls {
		l, ok := s.Provider.(providers.Logouter)
		if !ok {
			return nil
		}
		s.logIn(t)
		return func(ctx context.Context) error { return l.Logout(ctx, s.login.Handle) }
	})
}
