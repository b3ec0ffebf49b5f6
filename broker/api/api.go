// Package api holds the types and error codes of the broker's wire, shared by
// the broker and its clients.
//
// It is the only place that encodes leased values: [Value] marshals them as
// base64. Requests are decoded strictly ([Decode]); unknown fields of answers
// are ignored, so that an older client can talk to a newer broker.
package api

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/runenv/action/secret"
)

// Paths of the API, below the broker's URL.
const (
	PathToken     = "/oauth2/token"
	PathLeases    = "/v1/leases" // and /v1/leases/{id}, /v1/leases/{id}/renew
	PathSession   = "/v1/session"
	PathHeartbeat = "/v1/session/heartbeat"
	PathWatch     = "/v1/session/watch"
	PathReport    = "/v1/session/report"
	PathDiscovery = "/.well-known/runenv"
	PathOIDC      = "/.well-known/openid-configuration"
	PathJWKS      = "/jwks"
	PathLive      = "/healthz/live"
	PathReady     = "/healthz/ready"
	PathMetrics   = "/metrics"
)

// Values of RFC 8693 and RFC 9449 that stand on the wire.
const (
	GrantTokenExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	TokenTypeID        = "urn:ietf:params:oauth:token-type:id_token"
	TokenTypeAccess    = "urn:ietf:params:oauth:token-type:access_token"
	SchemeDPoP         = "DPoP"
	HeaderDPoP         = "DPoP"
	HeaderIdempotency  = "Idempotency-Key"
	HeaderRequestID    = "Request-Id"
)

// Limits of the wire, in bytes. The token endpoint holds a CI token of 16 KiB
// at most and a [LeaseRequest] beside short fields; an answer holds the leases'
// values in base64.
const (
	MaxTokenRequest = 128 << 10
	MaxRequest      = 64 << 10
	MaxAnswer       = 32 << 20
	MaxError        = 256 << 10
)

// MaxFile bounds the value of one [File], in bytes.
const MaxFile = 4 << 20

// MaxLeaseNames bounds the names and references in one lease request together,
// and the leases that it replaces.
const MaxLeaseNames = 100

// ParamLeases is the parameter of an exchange that asks for leases with the
// session, all or none: a [LeaseRequest] in JSON that replaces nothing. Where
// they can't be had there is no session either.
const ParamLeases = "leases"

// Token answers an exchange. EndToken ends the session and is good for
// nothing else. Leases answers [ParamLeases], if that was given.
type Token struct {
	AccessToken      Text      `json:"access_token"`
	IssuedTokenType  string    `json:"issued_token_type"`
	TokenType        string    `json:"token_type"`
	ExpiresIn        int64     `json:"expires_in"` // seconds
	SessionID        string    `json:"session_id"`
	EndToken         Text      `json:"end_token"`
	HardEnd          time.Time `json:"hard_end"`
	HeartbeatSeconds int       `json:"heartbeat_seconds"`
	*Leases
}

// LeaseRequest asks for leases by name and by reference. Neither means all that
// the role names.
type LeaseRequest struct {
	Leases     []string    `json:"leases"`
	References []Reference `json:"references,omitempty"`
	// Replaces are ids of the session's leases that can't be renewed in place
	// and that these stand in for: active, past half of their life, and not
	// replaced yet. They live on to their own end, and no longer count for the
	// role's limit; with them a session holds twice as many at most.
	Replaces []string `json:"replaces,omitempty"`
}

// Leases answers a LeaseRequest. Checkpoint is the latest signed one of the
// audit log; it may precede the entry of these leases, and is empty before
// the first was signed.
type Leases struct {
	Leases     []Lease `json:"leases"`
	Checkpoint string  `json:"checkpoint"`
}

// A Lease is one credential, delivered.
type Lease struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	Provider     string    `json:"provider"`
	State        string    `json:"state"`
	Revocability string    `json:"revocability"`        // revocable, expires or static
	Renewable    bool      `json:"renewable"`           // POST …/renew can lengthen it
	ExpiresAt    time.Time `json:"expires_at,omitzero"` // absent: a static value, which stays valid
	Env          []Var     `json:"env,omitempty"`       // absent in every answer but the first
	Files        []File    `json:"files,omitempty"`     // likewise
	// Hide are values that are in Env and Files only as parts of others (a
	// password in a URL, a field in JSON) and are to be hidden in output by
	// themselves; likewise.
	Hide []Value `json:"hide,omitempty"`
}

// Kinds of a [File].
const (
	// KindAWSProfile is a section of an AWS credentials file. Several files of
	// one variable and one name are put together into one.
	KindAWSProfile = "aws-profile"
	// KindDockerConfig is a config.json, which is merged with the job's own; the
	// variable holds the path of the folder that it lies in.
	KindDockerConfig = "docker-config"
)

// A File is a variable of a lease that holds the path of a file, which the
// client makes in memory. Check it with [File.Check].
type File struct {
	Variable string `json:"variable"`
	// Name is the file's base name, or for KindDockerConfig its folder's. No two
	// files of an answer have one, but for those that are put together.
	Name  string `json:"name"`
	Value Value  `json:"value"`
	Mask  bool   `json:"mask"`
	// Kind says what the client makes of it: empty for the value as it is.
	Kind string `json:"kind,omitempty"`
}

// Check reports what a client can't do with the file: a variable that no lease
// may set, a name that isn't plain, over 4 MiB, a kind that isn't known. Its
// error holds nothing of a value.
func (f File) Check() error {
	if err := CheckVariable(f.Variable); err != nil {
		return err
	}
	switch {
	case f.Value.Len() > MaxFile:
		return fmt.Errorf("the file of the variable %s has over %d bytes", f.Variable, MaxFile)
	case f.Kind != "" && f.Kind != KindAWSProfile && f.Kind != KindDockerConfig:
		return fmt.Errorf("the file of the variable %s is of a kind that this version doesn't know", f.Variable)
	}
	return CheckFileName(f.Name)
}

// CheckFileName reports why a file can't have that base name: it is a letter,
// digit or _, then up to 127 of these and . and -. Its error doesn't hold the
// name.
func CheckFileName(name string) error {
	for i := range len(name) {
		c := name[i]
		plain := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
		if !plain && (i == 0 || c != '.' && c != '-') {
			return errFileName
		}
	}
	if name == "" || len(name) > maxFileName {
		return errFileName
	}
	return nil
}

const maxFileName = 128

var errFileName = errors.New("not a plain file name: a letter, digit or _, then these, . and -, " + strconv.Itoa(maxFileName) + " at most")

// A Var is an environment variable of a lease. Mask says whether the value is
// to be hidden in output.
type Var struct {
	Name  string `json:"name"`
	Value Value  `json:"value"`
	Mask  bool   `json:"mask"`
}

// Ended answers the end of a session or of a lease. Leases that are still
// "revoking" are being ended by the broker, which goes on until they are.
type Ended struct {
	Leases []Lease `json:"leases"`
}

// Heartbeat answers one.
type Heartbeat struct {
	// Deadline is when the session ends without another heartbeat.
	Deadline         time.Time `json:"deadline"`
	HeartbeatSeconds int       `json:"heartbeat_seconds"`
}

// Events on the watch stream, one JSON object a line.
const (
	EventHello   = "hello"         // first line
	EventRenewed = "lease_renewed" // Lease, with its new expiry and no values
	// EventExpiring: Lease nears its end and can't be renewed in place. The
	// client may lease it anew ([LeaseRequest.Replaces]).
	EventExpiring = "lease_expiring"
	EventEnded    = "session_ended" // last line; Reason
)

// An Event is one line of the watch stream.
type Event struct {
	Event  string `json:"event"`
	Reason string `json:"reason,omitempty"`
	Lease  *Lease `json:"lease,omitempty"`
}

// Discovery is the broker's description of itself.
type Discovery struct {
	Issuer        string   `json:"issuer"` // the broker's url; equals the URL asked
	TokenEndpoint string   `json:"token_endpoint"`
	Version       string   `json:"version"`
	Features      []string `json:"features"`
	AuditKey      string   `json:"audit_key"` // verifier key of the audit log's checkpoints (C2SP signed note)
}

// Error codes. The first group is RFC 6749's and RFC 8693's, the second RFC
// 9449's and RFC 6750's, the third RunEnv's own.
const (
	CodeInvalidRequest       = "invalid_request"
	CodeInvalidTarget        = "invalid_target"
	CodeUnsupportedGrantType = "unsupported_grant_type"
	CodeTemporarily          = "temporarily_unavailable"
	CodeServerError          = "server_error"

	CodeInvalidDPoP  = "invalid_dpop_proof"
	CodeInvalidToken = "invalid_token"

	CodeAccessDenied        = "access_denied"        // a lease that isn't in the role, or a role that today's policy no longer grants
	CodeLimitExceeded       = "limit_exceeded"       // live sessions per job and role, or leases per session
	CodeNotFound            = "not_found"            // a lease that isn't there or isn't the caller's
	CodeRateLimited         = "rate_limited"         // 429: try again later
	CodeSessionEnded        = "session_ended"        // the session was live and has ended
	CodeProviderDenied      = "provider_denied"      // the back end refused the broker
	CodeProviderNotFound    = "provider_not_found"   // the back end has no such path
	CodeProviderFailed      = "provider_failed"      // the back end answered something unusable
	CodeProviderUnavailable = "provider_unavailable" // 503: the back end can't be reached
)

// An Error is a refusal: the class, an id to find it in the audit log by, and
// the caller's own claims where its token was genuine.
type Error struct {
	Status      int            `json:"-"`
	Code        string         `json:"error"`
	Description string         `json:"error_description,omitempty"`
	RequestID   string         `json:"request_id,omitempty"`
	Lease       string         `json:"lease,omitempty"`  // name of the lease that failed
	Claims      map[string]any `json:"claims,omitempty"` // the caller's own
}

func (e *Error) Error() string {
	s := e.Code
	if e.Lease != "" {
		s += " (lease " + e.Lease + ")"
	}
	if e.Description != "" {
		s += ": " + e.Description
	}
	if e.RequestID != "" {
		s += " [request " + e.RequestID + "]"
	}
	return s
}

// Text is a secret that stands on the wire as it is: a token.
type Text struct{ secret.Value }

// NewText returns a Text that holds s.
func NewText(s string) Text { return Text{secret.FromString(s)} }

// MarshalJSON reveals the token.
func (t Text) MarshalJSON() ([]byte, error) { return json.Marshal(string(t.Reveal())) }

// UnmarshalJSON reads a JSON string.
func (t *Text) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return errors.New("a token isn't a JSON string")
	}
	*t = NewText(s)
	return nil
}

// Value is a leased value, which stands on the wire as base64.
type Value struct{ secret.Value }

// NewValue returns v for the wire.
func NewValue(v secret.Value) Value { return Value{v} }

// MarshalJSON reveals the value, in base64.
func (v Value) MarshalJSON() ([]byte, error) {
	raw := v.Reveal()
	out := make([]byte, base64.StdEncoding.EncodedLen(len(raw))+2)
	out[0], out[len(out)-1] = '"', '"'
	base64.StdEncoding.Encode(out[1:], raw)
	return out, nil
}

// UnmarshalJSON reads base64.
func (v *Value) UnmarshalJSON(b []byte) error {
	if len(b) < 2 || b[0] != '"' || b[len(b)-1] != '"' {
		return errors.New("a value isn't a JSON string")
	}
	b = b[1 : len(b)-1]
	out := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
	n, err := base64.StdEncoding.Strict().Decode(out, b)
	if err != nil {
		return errors.New("a value isn't base64")
	}
	*v = Value{secret.New(out[:n])}
	return nil
}

// Decode reads one JSON value of at most limit bytes from r into v, refusing
// unknown fields and anything behind the value. An empty body is an error.
func Decode(r io.Reader, limit int64, v any) error {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return fmt.Errorf("reading the body: %w", err)
	}
	if int64(len(body)) > limit {
		return fmt.Errorf("a body of over %d bytes", limit)
	}
	return decodeStrict(body, v)
}
