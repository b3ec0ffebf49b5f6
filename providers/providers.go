// Package providers defines what RunEnv asks of a back end that issues
// credentials.
//
// A back end lives in its own subpackage (vault, static, …) and proves itself
// with the conformance suite in providers/providertest. This package imports
// no back end's SDK, so depending on the contract costs nothing.
//
// A provider keeps no record of what it issued: the broker writes an intent
// before each call, keeps the [Credential.Handle] sealed, and hands it back
// when the credential is to be renewed or revoked, if need be after a restart.
package providers

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/runenv/action/ref"
	"github.com/runenv/action/secret"
)

// MaxTTL bounds every TTL that a provider is asked for.
const MaxTTL = 24 * time.Hour

// MaxCredentialBytes bounds the sum of a credential's field names and values,
// in bytes: a provider refuses a larger one with [ErrMalformed].
const MaxCredentialBytes = 4 << 20

// Errors of a provider wrap one of these. Their text never holds a token, a
// value or a back end's response body; names of paths and status codes are
// fine.
var (
	// ErrDenied: the back end refused. Nothing was issued, here and with the
	// next two, unless ErrMaybeIssued stands beside it.
	ErrDenied = errors.New("denied by the back end")
	// ErrNotFound: the back end has no such path, secret or field.
	ErrNotFound = errors.New("not found in the back end")
	// ErrInvalid: the back end refused the request as malformed.
	ErrInvalid = errors.New("refused by the back end as invalid")
	// ErrUnavailable: the back end couldn't be reached, timed out, is sealed,
	// throttles or failed. It may or may not have issued something.
	ErrUnavailable = errors.New("back end unavailable")
	// ErrNotIssued stands beside another where nothing can have been
	// issued all the same: the back end was not reached, said that it is sealed
	// or throttles, or was only asked for what is stored there.
	ErrNotIssued = errors.New("nothing was issued")
	// ErrMaybeIssued stands beside another where that one speaks of the last
	// step alone: one before it, or an earlier attempt, has issued something or
	// may have, which nobody got and which ends by itself.
	ErrMaybeIssued = errors.New("an earlier step may have issued something")
	// ErrMalformed: the back end answered something that can't be used. It
	// may have issued something.
	ErrMalformed = errors.New("malformed answer from the back end")
	// ErrWithLogin, from Revoke: the back end won't end this credential by
	// itself; it ends with its login.
	ErrWithLogin = errors.New("ends with its login")
)

// Void reports whether err proves that nothing was issued.
func Void(err error) bool {
	if errors.Is(err, ErrMaybeIssued) {
		return false
	}
	return errors.Is(err, ErrDenied) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrInvalid) || errors.Is(err, ErrNotIssued)
}

// Revocability says how a credential can end.
type Revocability string

// The three ways in which a credential ends.
const (
	// Revocable: the back end ends it when told to.
	Revocable Revocability = "revocable"
	// Expires: only time ends it.
	Expires Revocability = "expires"
	// Static: a stored value that was disclosed and stays valid.
	Static Revocability = "static"
)

// A TokenSource gives an ID token of the broker's own, made for one session,
// for the given audience. It lives five minutes.
type TokenSource func(ctx context.Context, audience string) (string, error)

// A Type is a kind of provider, as `type:` names it in the broker's file.
type Type struct {
	// Name is the value of `type:`.
	Name string
	// Open checks the entry's own keys. It makes no network call.
	Open func(Config) (Provider, error)
}

// Config is what a provider is opened with.
type Config struct {
	// Name is the entry's name under `providers:`.
	Name string
	// Decode decodes the entry's own keys strictly into a pointer to a struct
	// with yaml tags; its error holds file, line and column. Credential
	// fields have the type secret.Value.
	Decode func(any) error
	// Dev is set by `runenv-broker dev` alone: literal values may stand in
	// the file.
	Dev bool
	// CI gives the CI's own ID tokens, for `auth: {method: ci}`. It is set by
	// `runenv-broker run` alone, which serves one job, beside it; where it is
	// nil that method is refused.
	CI TokenSource
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log gets what isn't an error; nil means none.
	Log *slog.Logger
}

// A Provider issues credentials of one back end. It is safe for concurrent
// use.
type Provider interface {
	// Define checks a lease definition's own keys. It makes no network call.
	// decode is as in [Config].
	Define(decode func(any) error) (Definition, error)

	// Issue makes one credential that lives at most req.TTL where the back
	// end can limit it. Errors are as above. ctx carries the deadline.
	Issue(ctx context.Context, req Request) (*Credential, error)
}

// A Definition is what a lease definition asks of its provider, checked.
type Definition interface {
	// Templates are the parts that depend on project and role, so that the
	// broker can refuse at load time what could never be resolved.
	Templates() []Template
	// Revocability is that of every credential made from this definition.
	// Where it depends on what the back end answers (a Vault path may be
	// static or dynamic), it is the one to assume before the answer.
	Revocability() Revocability
}

// A Bounder is a Definition whose credentials can't live for just any time:
// STS gives no session of under 900 seconds.
type Bounder interface {
	// Bounds are the shortest and longest TTL that can be asked for; a
	// longest of zero means [MaxTTL]. A fixed life has both the same.
	Bounds() (shortest, longest time.Duration)
}

// A Loginless is a Definition of a [Loginer] that may be issued without the
// session's login, with [Request.Tokens] or the broker's ambient identity.
type Loginless interface {
	Loginless() bool
}

// A Defaulter is a Definition that knows under which variables the tools of
// its back end expect it. They count where a lease has no `env:`.
type Defaulter interface {
	DefaultEnv() []DefaultVar
}

// A DefaultVar puts a field into a variable.
type DefaultVar struct {
	Name, Field string
	Mask        bool // hide it in output
	Optional    bool // absent: the variable isn't set
}

// A Referencer is a Provider whose credentials can also be named by a
// reference, without a definition in the broker's file.
type Referencer interface {
	// Schemes are those of its references, such as "vault".
	Schemes() []string
	// Reference is the definition of what r names, but for its field. It makes
	// no network call. Nothing in r is a template.
	Reference(r ref.Ref) (Definition, error)
}

// A Checker is a Provider that can say whether it is set up right.
type Checker interface {
	// Check logs in as it would for a session, gives the login up again where
	// that is possible, and says as whom it was let in. Its error has a method
	// Hint() string where the cure is known.
	Check(ctx context.Context, req LoginRequest) (Checked, error)
}

// Checked is what a [Checker] found.
type Checked struct {
	// As names the identity at the back end: an ARN, a Vault entity, a
	// principal. It is never a secret.
	As string
	// Notes say what works less well than it could, and the cure.
	Notes []string
}

// A Container is a Provider that can cut off what it can't revoke.
type Container interface {
	// Contain says how to cut off every credential of a session, and does so
	// if apply is set. handles are those of the session's live credentials.
	Contain(ctx context.Context, session string, handles []secret.Value, apply bool) ([]Containment, error)
}

// A Containment is one step that cuts credentials off.
type Containment struct {
	Target string // what it is put on, such as an IAM role's ARN
	Policy string // what is put there, as the back end takes it
	Undo   string // how to take it back: a command or a sentence
	Done   bool   // it was applied
}

// A Request asks for one credential.
type Request struct {
	Definition Definition
	// Vars resolve the definition's templates.
	Vars Vars
	// TTL is how long it is to live.
	TTL time.Duration
	// Marker is an identifier ([a-z0-9-]) by which the back end's own log and
	// [Finder] can name this credential.
	Marker string
	// Login is the handle of the session's login, for a [Loginer] and a
	// definition that isn't [Loginless].
	Login secret.Value
	// Role and Session are the RunEnv role's name and the session's id.
	Role, Session string
	// Tokens gives the broker's own tokens for the session.
	Tokens TokenSource
}

// A Credential is what a back end issued.
type Credential struct {
	// Fields are its values by field name.
	Fields map[string]secret.Value
	// Handle is what renewing and revoking need; empty if neither is possible.
	Handle secret.Value
	// Expires is when the back end ends it by itself; zero if never.
	Expires time.Time
	// Revocability says how it can end.
	Revocability Revocability
	// Renewable says whether [Renewer] can lengthen it.
	Renewable bool
}

// A Renewer is a Provider that can lengthen a credential's life.
type Renewer interface {
	// Renew asks for ttl from now and returns the new expiry, which may be
	// sooner.
	Renew(ctx context.Context, handle, login secret.Value, ttl time.Duration) (time.Time, error)
}

// A Revoker is a Provider that can end a credential early. Back ends whose
// credentials only expire leave it out, and users then read "expires at",
// never "revoked".
type Revoker interface {
	// Revoke ends a credential. Ending one that has already ended is no error.
	Revoke(ctx context.Context, handle, login secret.Value) error
}

// A Finder is a Provider that can be asked, after a crash, what was issued
// under a marker.
type Finder interface {
	// Find returns the handles of credentials that carry marker; none and no
	// error means that there surely are none.
	Find(ctx context.Context, marker string, login secret.Value) ([]secret.Value, error)
}

// A Loginer is a Provider that works under a login of its own for each
// session. The broker treats the login as a lease that isn't delivered:
// intended before, ended after the credentials made under it. Without
// [Logouter] a login can only expire, and what was made under it doesn't end
// with it.
type Loginer interface {
	// Login logs in. The marker and the meta data appear in the back end's
	// own log where it has a place for them.
	Login(ctx context.Context, req LoginRequest) (*Login, error)
	// LoginTTL is how long a login lives at most unless it is renewed: the
	// bound on what a crash can leave behind.
	LoginTTL() time.Duration
}

// A LoginRenewer is a [Loginer] that can lengthen a login's life.
type LoginRenewer interface {
	// RenewLogin lengthens a login by at most LoginTTL and returns its new
	// expiry. ErrDenied or ErrNotFound: it has ended.
	RenewLogin(ctx context.Context, login secret.Value) (time.Time, error)
}

// A Logouter is a [Loginer] that can end a login.
type Logouter interface {
	// Logout ends a login and with it every credential made under it. Ending
	// one that has already ended is no error.
	Logout(ctx context.Context, login secret.Value) error
}

// An Audienced provider logs in with the broker's own token. Its audience may
// be shared with no other entry and isn't the broker's url: a token that one
// back end saw could otherwise be replayed at another.
type Audienced interface {
	Audience() string
}

// LoginTTL is what [Loginer.LoginTTL] should be where the back end can be told.
const LoginTTL = 5 * time.Minute

// A LoginRequest asks for a login.
type LoginRequest struct {
	Role    string // RunEnv role
	Session string // session id
	Marker  string // as in [Request]
	Tokens  TokenSource
}

// A Login is a back end's answer to one.
type Login struct {
	// Handle is the login itself: a token that can issue.
	Handle secret.Value
	// Expires is when it ends unless renewed; zero if never.
	Expires time.Time
}
