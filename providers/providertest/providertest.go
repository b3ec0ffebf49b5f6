// Package providertest holds what every provider must keep: one suite, run by
// each provider's own tests against a back end that can deny, stall and lie.
//
//	func TestConformance(t *testing.T) {
//		providertest.Run(t, providertest.Harness{New: …})
//	}
//
// The suite finds optional abilities (renewing, revoking, logging in, being
// asked) by type assertion, as the broker does.
package providertest

import (
	"cmp"
	"context"
	"slices"
	"testing"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/ref"
)

// A Fault is what a back end does to every request until it is told otherwise.
type Fault string

// The faults. A back end shows each in its own protocol.
const (
	Healthy       Fault = ""
	Deny          Fault = "denies"
	NotFound      Fault = "finds nothing"
	Invalid       Fault = "calls it malformed"
	Stall         Fault = "takes the request and never answers"
	Fail500       Fault = "fails"
	Throttle429   Fault = "throttles"
	Garbage       Fault = "answers what isn't its protocol"
	Huge          Fault = "answers without end"
	CutConnection Fault = "cuts the connection and does nothing"
	LoseReply     Fault = "does what was asked and cuts the connection"
)

// Faults that a back end shows if it names them as [Backend.More].
const (
	// HalfReply: the connection ends in the middle of the answer's body.
	HalfReply Fault = "does what was asked and answers half"
	// ErrorIn200: the status says success, the body is an error's.
	ErrorIn200 Fault = "calls an error a success"
	// ThrottleOnce: the first request is throttled, the next ones aren't.
	ThrottleOnce Fault = "throttles once"
	// LoginExpired: what is asked under a login is refused as the back end
	// does once that has run out.
	LoginExpired Fault = "says that the login has run out"
)

// class is what [providers.Provider.Issue] and Login must say of each fault:
// one of these. None: it must succeed.
var class = map[Fault][]error{
	Deny:          {providers.ErrDenied},
	NotFound:      {providers.ErrNotFound},
	Invalid:       {providers.ErrInvalid},
	Stall:         {providers.ErrUnavailable},
	Fail500:       {providers.ErrUnavailable},
	Throttle429:   {providers.ErrUnavailable},
	Garbage:       {providers.ErrMalformed},
	Huge:          {providers.ErrMalformed},
	CutConnection: {providers.ErrUnavailable},
	LoseReply:     {providers.ErrUnavailable},

	HalfReply:    {providers.ErrUnavailable, providers.ErrMalformed},
	ErrorIn200:   {providers.ErrUnavailable, providers.ErrMalformed},
	ThrottleOnce: nil,
	LoginExpired: {providers.ErrDenied, providers.ErrNotFound},
}

// basic are the faults that every back end shows.
var basic = []Fault{Deny, NotFound, Invalid, Stall, Fail500, Throttle429, Garbage, Huge, CutConnection, LoseReply}

// A Harness makes back ends for the suite.
type Harness struct {
	// New makes a fresh back end, healthy and empty of credentials, with a
	// provider opened on it. It is called once per subtest, in parallel, and
	// cleans up after itself.
	New func(t *testing.T) *Backend
}

// A Backend is one back end and a provider opened on it.
type Backend struct {
	Provider providers.Provider
	// Define holds the keys of a definition that works; see [Keys].
	Define func(any) error
	// Vars resolve its templates.
	Vars providers.Vars
	// Fields are what the credential holds. Where each credential has values
	// of its own, an empty string stands for any that isn't empty.
	Fields map[string]string
	// Public are the fields that are no secrets, such as a region.
	Public []string
	// Revocability is the credential's.
	Revocability providers.Revocability
	// LimitsTTL says that no credential outlives the TTL asked for.
	LimitsTTL bool
	// Tokens is what the provider logs in with; nil if it needs none.
	Tokens providers.TokenSource
	// Canaries are texts that no error may hold: values, tokens, and what
	// the back end says in its own errors.
	Canaries []string
	// Inject makes the back end misbehave from now on. Nil: there is no back
	// end that could, or it is a real one.
	Inject func(Fault)
	// More are the faults that Inject can show besides the ten that every
	// back end shows.
	More []Fault
	// Requests counts the requests that reached the back end; nil if it can't.
	Requests func() int
	// Alive counts what lives at the back end, revocable credentials and
	// logins; nil only if Inject is.
	Alive func() (credentials, logins int)
	// Log is what the back end's own log holds, where markers appear in it;
	// nil if they don't.
	Log func() string
	// Reference names what Define does, for a [providers.Referencer].
	Reference *ref.Ref
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	t.Helper()
	cases := map[string]func(*testing.T, *Backend){
		"issues what was asked for":                   issues,
		"hands out copies of its own":                 handsOutCopies,
		"TestT18 shows no value":                      showsNothing,
		"opens and defines without the network":       definesOffline,
		"passes the decoder's refusal on":             passesRefusals,
		"refuses another provider's definition":       refusesForeign,
		"issues nothing under a context that is over": heedsContext,
		"is safe for concurrent use":                  concurrent,
		"renews":                                      renews,
		"revokes, and again":                          revokes,
		"logs out, and the credentials end with it":   logsOut,
		"renews a login":                              renewsLogin,
		"refuses handles that aren't its own":         refusesJunk,
		"logs in with a token for its audience":       tokenSource,
		"finds what it issued":                        finds,
		"gives no longer life than asked for":         limitsTTL,
		"says sane bounds":                            saneBounds,
		"says sane default variables":                 saneDefaults,
		"says how long a login lives":                 loginsEnd,
		"shows its markers to the back end":           showsMarkers,
		"issues what a reference names":               references,
		"checks itself":                               checks,
	}
	for name, run := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, h.New(t))
		})
	}
	probe := h.New(t)
	if probe.Inject == nil {
		return
	}
	t.Run("returns when it is cancelled in mid-call", func(t *testing.T) {
		t.Parallel()
		cancelled(t, h)
	})
	for _, fault := range slices.Concat(basic, probe.More) {
		want, known := class[fault]
		if !known {
			t.Fatalf("unknown fault %q", fault)
		}
		t.Run("TestT15 the back end "+string(fault), func(t *testing.T) {
			t.Parallel()
			if len(want) == 0 {
				t.Run("and nobody notices", func(t *testing.T) { unnoticed(t, h.New(t), fault) })
				return
			}
			t.Run("on issue", func(t *testing.T) { issueUnder(t, h.New(t), fault, want) })
			t.Run("on renew", func(t *testing.T) { renewUnder(t, h.New(t), fault, want) })
			t.Run("and leaves nothing behind", func(t *testing.T) { rollsBack(t, h.New(t), fault) })
			if fault == LoginExpired {
				return
			}
			t.Run("on login", func(t *testing.T) { loginUnder(t, h.New(t), fault, want) })
			t.Run("on check", func(t *testing.T) { checkUnder(t, h.New(t), fault, want) })
			if fault == HalfReply { // what ends has no answer to halve
				return
			}
			t.Run("on revoke", func(t *testing.T) { revokeUnder(t, h.New(t), fault, want) })
			t.Run("on logout", func(t *testing.T) { logoutUnder(t, h.New(t), fault, want) })
		})
	}
}

// session is one login and what the suite does under it.
type session struct {
	*Backend
	def   providers.Definition
	login *providers.Login
}

// start defines and logs in, where the definition wants a login.
func start(t *testing.T, b *Backend) *session {
	t.Helper()
	def, err := b.Provider.Define(b.Define)
	if err != nil {
		t.Fatalf("Define: %v", err)
	}
	s := &session{Backend: b, def: def, login: &providers.Login{}}
	if _, ok := b.Provider.(providers.Loginer); ok && !loginless(def) {
		s.logIn(t)
	}
	return s
}

// loginless: it is issued without a login, as the broker may.
func loginless(def providers.Definition) bool {
	l, ok := def.(providers.Loginless)
	return ok && l.Loginless()
}

// logIn logs in, unless that was done or the provider has no logins.
func (s *session) logIn(t *testing.T) {
	t.Helper()
	l, ok := s.Provider.(providers.Loginer)
	if !ok || s.login.Handle.Len() != 0 {
		return
	}
	var err error
	if s.login, err = l.Login(t.Context(), s.loginRequest()); err != nil {
		t.Fatalf("Login: %v", err)
	}
	if s.login.Handle.Len() == 0 {
		t.Fatal("Login gave an empty handle")
	}
	s.Canaries = append(s.Canaries, string(s.login.Handle.Reveal()))
}

func (b *Backend) loginRequest() providers.LoginRequest {
	return providers.LoginRequest{Role: "prod", Session: "s-1", Marker: "runenv-login-1", Tokens: b.Tokens}
}

func (s *session) request() providers.Request {
	return providers.Request{
		Definition: s.def, Vars: s.Vars, TTL: lifetime(s.def), Marker: "runenv-lease-1", Login: s.login.Handle,
		Role: "prod", Session: "s-1", Tokens: s.Tokens,
	}
}

// lifetime is testTTL within the definition's bounds.
func lifetime(def providers.Definition) time.Duration {
	if b, ok := def.(providers.Bounder); ok {
		shortest, longest := b.Bounds()
		return max(shortest, min(testTTL, cmp.Or(longest, providers.MaxTTL)))
	}
	return testTTL
}

// issue issues one credential and adds its values to what may not be shown.
func (s *session) issue(t *testing.T) *providers.Credential {
	t.Helper()
	cred, err := s.Provider.Issue(t.Context(), s.request())
	if err != nil {
		t.Fatalf("Issue: %v", err)
	}
	for name, v := range cred.Fields {
		if v.Len() >= 6 && !slices.Contains(s.Public, name) {
			s.Canaries = append(s.Canaries, string(v.Reveal()))
		}
	}
	return cred
}

// alive are the credentials that live at the back end; 0 if it can't tell.
func (b *Backend) alive() int {
	if b.Alive == nil {
		return 0
	}
	n, _ := b.Alive()
	return n
}

func (b *Backend) logins() int {
	if b.Alive == nil {
		return 0
	}
	_, n := b.Alive()
	return n
}

func (b *Backend) requests() int {
	if b.Requests == nil {
		return 0
	}
	return b.Requests()
}

// cut returns a context that is already over.
func cut(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
