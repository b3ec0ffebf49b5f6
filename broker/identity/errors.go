package identity

// Classes of refusal. They are OAuth 2.0 error codes, and all that a caller
// whose token wasn't verified is told.
const (
	ClassInvalidRequest = "invalid_request"         // not a token that we read
	ClassInvalidToken   = "invalid_token"           // a token that we don't trust
	ClassUnavailable    = "temporarily_unavailable" // can't be judged now; worth a retry
)

// Reasons of refusal, for the log, the audit and metrics. Each belongs to one
// class. Those marked * are given only after the signature was verified.
const (
	// ClassInvalidRequest
	ReasonTooLarge        = "too_large"
	ReasonMalformed       = "malformed"        // not three parts of strict base64url
	ReasonJSON            = "json"             // a part isn't one JSON object in UTF-8
	ReasonDoubledKey      = "doubled_key"      // also keys that differ only in case
	ReasonDepth           = "depth"            // nested too deeply
	ReasonTooManyClaims   = "too_many_claims"  //
	ReasonHeaderParameter = "header_parameter" // one that brings keys, or changes what is signed
	ReasonType            = "typ"              // present, and not JWT
	ReasonKeyID           = "kid"              // absent, or not a short string
	ReasonClaim           = "claim"            // a registered claim is absent or ill-typed

	// ClassInvalidToken
	ReasonIssuerUnknown  = "issuer_unknown"
	ReasonAlgorithm      = "algorithm"        // not one of the issuer's, or not the key's
	ReasonKeyUnknown     = "key_unknown"      // the issuer's key set doesn't hold it
	ReasonSignature      = "signature"        //
	ReasonAudience       = "audience"         // * several, or not ours
	ReasonExpired        = "expired"          // *
	ReasonNotYetValid    = "not_yet_valid"    // *
	ReasonIssuedInFuture = "issued_in_future" // *
	ReasonLifetime       = "lifetime"         // * exp − iat isn't positive, or over the profile's cap
	ReasonTooOld         = "too_old"          // * now − iat is over the profile's cap
	ReasonIdentity       = "identity"         // * no project, no job, or an id that isn't a number
	ReasonDisagreement   = "disagreement"     // * go-oidc reads the token otherwise

	// ClassUnavailable
	ReasonKeysUnavailable = "keys_unavailable" // never fetched, or too long ago
	ReasonKeyUnconfirmed  = "key_unconfirmed"  // unknown, and the next fetch isn't due yet
	ReasonBusy            = "busy"             // too many verifications at once
	ReasonCanceled        = "canceled"         // the caller's context ended
)

// An Error is a refusal. Its text holds no token and no claim value.
type Error struct {
	Class  string // what a caller may know
	Reason string // what the log and the audit say

	// Issuer is the name of the issuer in the broker's table; "" until it was
	// looked up.
	Issuer string

	// SignatureVerified says that the issuer did sign the token. Only such a
	// refusal is worth a record: of others a stranger can make as many as he
	// likes.
	SignatureVerified bool

	identity *Identity
	err      error
}

func (e *Error) Error() string {
	s := "token refused: " + e.Reason
	if e.Issuer != "" {
		s += " (issuer " + e.Issuer + ")"
	}
	if e.err != nil {
		s += ": " + e.err.Error()
	}
	return s
}

// Unwrap returns the cause: of keys that can't be had, or a context's error.
func (e *Error) Unwrap() error { return e.err }

// Identity returns who was refused, or nil unless the signature was verified
// and the claims could be read.
func (e *Error) Identity() *Identity { return e.identity }

func invalidRequest(reason string) *Error {
	return &Error{Class: ClassInvalidRequest, Reason: reason}
}

func invalidToken(reason string) *Error {
	return &Error{Class: ClassInvalidToken, Reason: reason}
}

func unavailable(reason string, err error) *Error {
	return &Error{Class: ClassUnavailable, Reason: reason, err: err}
}
