// Package store is the contract between the broker and its database: records,
// and verbs that each make one durable transition.
//
// It is a leaf: it knows neither tokens nor providers. A store lives in a
// subpackage (sqlite) and proves itself with storetest. What makes the
// contract:
//
//   - A verb that returned nil is durable, together with the audit entries
//     that it was given. A verb that returned an error other than a row
//     result changed nothing, unless its context ended while it waited: then
//     the caller doesn't know, and must leave the arguments alone.
//   - Every verb takes now. The store keeps the highest now it was ever given
//     as its wall-clock high-water mark ([Store.HighWater]).
//   - A refusal concerns one caller: verbs of different callers may share a
//     transaction, and one's refusal harms no neighbour.
//   - No verb reaches [Active] without an audit entry.
//   - Terminal states are final: no verb leaves them.
//
// Sealed columns are opaque here; times are kept to the microsecond, rounded
// down. A CreatedAt that is zero becomes now.
package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Errors that callers branch on.
var (
	// ErrNotFound: no such row.
	ErrNotFound = errors.New("store: not found")
	// ErrReplayed: the token or the proof was used before.
	ErrReplayed = errors.New("store: already used")
	// ErrProofReplayed is the ErrReplayed of a proof.
	ErrProofReplayed = fmt.Errorf("%w: the proof", ErrReplayed)
	// ErrLimit: a limit is reached.
	ErrLimit = errors.New("store: limit reached")
	// ErrEnded: the session has ended, or its deadline has passed.
	ErrEnded = errors.New("store: session ended")
	// ErrConflict: the row isn't in a state that the change starts from, or
	// the claim was lost.
	ErrConflict = errors.New("store: conflict")
)

// A State of a lease; DESIGN section 8 draws their order.
type State string

// The states.
const (
	Intent      State = "intent"      // durable, provider not called
	Issuing     State = "issuing"     // the provider may have been called
	Active      State = "active"      // issued, recorded, deliverable
	Revoking    State = "revoking"    // to be revoked; retried until it is
	Expiring    State = "expiring"    // session over; can't be revoked; ends at DiesBy
	Irrevocable State = "irrevocable" // revocation failed for long; retried daily
	Revoked     State = "revoked"     // terminal: the back end ended it
	Expired     State = "expired"     // terminal: its time ended it
	Disclosed   State = "disclosed"   // terminal: a static value was handed out and stays valid
	Void        State = "void"        // terminal: surely never issued
)

// Terminal reports whether no verb leaves s.
func (s State) Terminal() bool {
	return s == Revoked || s == Expired || s == Disclosed || s == Void
}

// A Session is one exchange for one role.
type Session struct {
	ID      string
	Role    string
	Project string // "" where the role pins ids itself
	Issuer  string // name in the issuer table
	Job     string // unique within the issuer; scope of the session limit
	// Thumbprint is the RFC 7638 thumbprint of the key that the session is
	// bound to.
	Thumbprint string
	// AccessHash and EndHash are SHA-256 of the access and the end token.
	AccessHash, EndHash []byte
	// Claims is the JSON of the identity's claims, by which today's policy
	// judges leases and renewals.
	Claims       []byte
	PolicyDigest string

	CreatedAt time.Time
	// HardEnd is when it ends whatever its heartbeats say.
	HardEnd time.Time
	// HeartbeatTimeout is the life that one heartbeat gives.
	HeartbeatTimeout time.Duration
	// Deadline is when it ends without another heartbeat; at most HardEnd.
	Deadline time.Time

	// EndedAt is zero while it lives; EndReason says why it ended.
	EndedAt   time.Time
	EndReason string
}

// Live reports whether it has neither ended nor passed its deadline.
func (s Session) Live(now time.Time) bool { return s.EndedAt.IsZero() && now.Before(s.Deadline) }

// A Lease is one credential, or one login at a provider, from before it is
// issued until after it has ended.
type Lease struct {
	ID       string
	Session  string
	Login    string // id of the login under which it is issued; "" for none
	IsLogin  bool   // it is a login: never delivered, ended last
	Name     string // lease definition; for a login the provider's name
	Provider string
	// Definition is what the handle's revocation needs beside the handle;
	// Revocability is "revocable", "expires" or "static".
	Revocability string
	Renewable    bool
	State        State
	// Marker names it in the back end's own records.
	Marker string
	// Handle is sealed; empty before Active.
	Handle []byte
	// Batch groups what one request asked for: hash of session,
	// idempotency key and body; "" without a key.
	Batch        string
	PolicyDigest string
	// ReplacedBy is the id of the lease that stands in for this one, which
	// lives on to its own end; "" for none.
	ReplacedBy string

	CreatedAt time.Time
	// ExpiresAt is when the back end ends it by itself, and EndsAt when the
	// broker ends it at the latest; zero: no such time.
	ExpiresAt, EndsAt time.Time
	// DiesBy bounds the credential's life whatever happens to the broker:
	// written with the intent, lowered when known better. Zero: there is none
	// (a static value, and what lives until the back end is told to end it).
	DiesBy time.Time

	// NextAt is when work on the row is due; zero: none.
	NextAt       time.Time
	Attempts     int
	ClaimedBy    string
	ClaimedUntil time.Time
	// Epoch grows by one with each claim: a worker whose claim was taken over
	// is recognised by it.
	Epoch int64
}

// A Token is the use of a CI token by an exchange.
type Token struct {
	Issuer, JTI string
	// Expires is when the row may be forgotten: exp plus leeway.
	Expires time.Time
	// SameJob allows the token again until Expires, for sessions of the same
	// Job (reuse: same-job); every use of it must say so. Without it only the
	// Thumbprint and Body of its last use may come again until Expires. With or
	// without it, they end that use's session: a retry after a lost reply.
	SameJob bool
	// Body is the hash of the request's body.
	Body []byte
}

// A Proof is the use of a DPoP proof. It counts once, and only if the verb
// that it came with isn't refused.
type Proof struct {
	Thumbprint, JTI string
	Expires         time.Time
}

// A NewSession is what CreateSession makes durable.
type NewSession struct {
	Session Session
	Token   Token
	Proof   Proof
	// Limit is the number of live sessions per issuer, job and role.
	Limit int
	// Leases begin with the session, as they do in [Intended.Leases]; their
	// number is the caller's to limit.
	Leases []Lease
	// Entries are written if the session is made.
	Entries []Entry
	// EndedEntry is written for the session that a retry after a lost reply
	// ends. The store fills in its Session field, and in its Body puts the id
	// in the place of [EndedSession].
	EndedEntry Entry
}

// EndedSession stands for the id of the session that a retry ends, which only
// the store knows: as the string value of "session" in EndedEntry's Body.
const EndedSession = "{ended-session}"

// Created is what CreateSession did.
type Created struct {
	// Ended is the id of the session that this verb ended, being a retry after
	// a lost reply; its leases that need work are due at once.
	Ended string
}

// An Intended is what Intend makes durable.
type Intended struct {
	Session string
	Proof   Proof // zero: the request's proof was counted before
	// Leases begin as Intent or Issuing, with NextAt set, so that a crash is
	// noticed; or as Disclosed, a stored value that is handed out at once, of
	// which an entry says so.
	Leases []Lease
	Batch  string // see Lease.Batch: leases of an earlier request with the same one become due for revocation
	// Replaces are ids of leases that these are to stand in for, which
	// Change.Replaces makes come true.
	Replaces []string
	// Limit is the number of leases of the session that are neither logins,
	// nor terminal, nor replaced, these included. Leases that this verb sends
	// to revocation and those in Replaces don't count; but with those that are
	// replaced and may live they are twice as many at most.
	Limit   int
	Entries []Entry
}

// A Change moves one lease.
type Change struct {
	Lease string
	// From are the states that it may start from; a row in another gives
	// ErrConflict.
	From []State
	// Epoch, if not zero, must be the row's: the claim is still held.
	Epoch int64
	To    State

	// Handle, Revocability, and the times replace the row's where not zero.
	Handle                    []byte
	Revocability              string
	Renewable                 *bool
	ExpiresAt, EndsAt, DiesBy time.Time
	// Endless: no time ends it. The row's ExpiresAt and DiesBy become zero.
	Endless bool
	// Replaces are ids of leases that the row stands in for from now on. Each
	// must be of its session, Active, no login, and replaced by none but an
	// earlier request of the row's own Batch; otherwise ErrConflict.
	Replaces []string
	// NextAt always replaces the row's; zero: no more work. The claim is
	// given up.
	NextAt   time.Time
	Attempts int

	// NeedsLive gives ErrEnded, and moves the row to Else instead of To, if
	// the row's session isn't live at now. A change to Active has it. The
	// row is then due at now (not at NextAt), unless Else is terminal.
	// Without an Else it stays as it is.
	NeedsLive bool
	Else      State
	// Entries are written if the change to To is made; ElseEntries with Else.
	Entries, ElseEntries []Entry
}

// An End ends a session.
type End struct {
	Session string
	Reason  string
	Entries []Entry // written if this verb ended it
	// Worker claims, until Until, the rows that need work, so that the caller
	// can do it at once.
	Worker string
	Until  time.Time
}

// A Key is a private key of the broker's own.
type Key struct {
	Purpose   string // "oidc-es256", "oidc-rs256", "audit"
	ID        string
	Algorithm string
	Public    []byte // JWK, or the algorithm's own form
	Sealed    []byte // private part, sealed
	CreatedAt time.Time
}

// A Store keeps sessions, leases, keys and the audit log. It is safe for
// concurrent use.
type Store interface {
	AuditStore

	// CreateSession makes a session. ErrReplayed: the token or proof was used
	// and this isn't a retry. ErrLimit: Limit live sessions exist already.
	CreateSession(ctx context.Context, now time.Time, n NewSession) (Created, error)
	// Session returns a session, ended ones included. ErrNotFound.
	Session(ctx context.Context, id string) (Session, error)
	// SessionByEndHash is Session by the hash of the end token.
	SessionByEndHash(ctx context.Context, hash []byte) (Session, error)
	// Heartbeat moves a live session's deadline to now plus its
	// HeartbeatTimeout, at most HardEnd, and returns it. ErrEnded, ErrNotFound.
	// A now that runs backwards counts too: the earlier end is the safe one.
	Heartbeat(ctx context.Context, now time.Time, id string) (time.Time, error)
	// Hasten lowers a live session's deadline to deadline if that is sooner.
	// ErrEnded, ErrNotFound.
	Hasten(ctx context.Context, now time.Time, id string, deadline time.Time) error
	// EndSession ends a session once and returns its leases, oldest first.
	// Those that aren't terminal are claimed by e.Worker: Active and Irrevocable
	// become Revoking, due now (or Expiring, due at DiesBy, where Revocability
	// is "expires"), Intent becomes Void, Issuing stays for the request that
	// is under way and is not claimed. A row whose state changes is taken from
	// the worker that held it for another purpose; one that a worker is
	// revoking already is left to it. Ending an ended one claims only what is
	// due, and writes no entry. Rows that weren't claimed are returned with
	// Epoch 0. ErrNotFound.
	EndSession(ctx context.Context, now time.Time, e End) ([]Lease, error)
	// DueSessions returns at most n sessions that haven't ended and whose
	// deadline has passed, oldest first, by an index.
	DueSessions(ctx context.Context, now time.Time, n int) ([]Session, error)
	// NextDue is the earliest time at which a session or lease is due, for a
	// claimed lease not before its claim lapses; zero if nothing ever is.
	NextDue(ctx context.Context) (time.Time, error)

	// Intend records the intents of one request, all or none. ErrEnded,
	// ErrLimit, ErrProofReplayed, ErrNotFound; ErrConflict for a lease in
	// Replaces that can't be replaced, see Change.Replaces. Leases of an earlier request with
	// the same Batch go the way of an ended session's; an Issuing one stays.
	Intend(ctx context.Context, now time.Time, in Intended) error
	// Advance moves leases, one after the other. The slice has one result a
	// change: nil, ErrEnded (Else taken), ErrConflict or ErrNotFound; the
	// error is for all. A change to Active or Disclosed without an entry is an
	// error, but for one that starts from Active alone.
	Advance(ctx context.Context, now time.Time, changes []Change) ([]error, error)
	// UseProof counts a proof. ErrProofReplayed.
	UseProof(ctx context.Context, now time.Time, p Proof) error
	// Lease returns one; Leases those of a session, logins included, oldest
	// first.
	Lease(ctx context.Context, id string) (Lease, error)
	Leases(ctx context.Context, session string) ([]Lease, error)
	// Claim takes at most n rows whose NextAt has come and which nobody
	// holds, oldest first, for worker until until. Fair: at most perProvider
	// rows of one provider, however many of it are older than another's. A
	// claim that wasn't given up in time can be taken by anybody.
	Claim(ctx context.Context, now time.Time, worker string, n, perProvider int, until time.Time) ([]Lease, error)

	// Restart is called once before a lone broker serves: the deadline of
	// every session that hasn't ended becomes now plus its HeartbeatTimeout,
	// at most HardEnd, but stays as it is if an earlier Restart moved it and
	// no heartbeat came since; every claim is dropped; rows in Intent or
	// Issuing are due now.
	Restart(ctx context.Context, now time.Time) error
	// Forget drops tokens and proofs that have expired, and sessions that
	// ended before before and whose leases are all terminal, at most n rows.
	Forget(ctx context.Context, now, before time.Time, n int) error
	// Counts returns the number of rows by lease state, and of sessions that
	// haven't ended under "session".
	Counts(ctx context.Context) (map[string]int, error)

	// EnsureKeys stores those of keys whose Purpose has none yet and returns
	// what is stored for these purposes, in the order given; the newest if a
	// purpose has several.
	EnsureKeys(ctx context.Context, now time.Time, keys []Key) ([]Key, error)
	// Keys returns all keys.
	Keys(ctx context.Context) ([]Key, error)

	// HighWater is the highest now that any verb was given. It survives a
	// restart as far as verbs changed something.
	HighWater(ctx context.Context) (time.Time, error)
	// Ready reports whether a durable write would succeed now.
	Ready(ctx context.Context) error
	Close() error
}
