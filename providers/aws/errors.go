package aws

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"syscall"

	"github.com/aws/smithy-go"

	"github.com/runenv/action/providers"
)

// A callError says what was asked of AWS and what class of answer came. Its
// text is ours: AWS's own messages hold ARNs, and what they were sent.
type callError struct {
	op, what string // such as sts:AssumeRole, and of what
	status   int    // 0: no answer
	code     string // AWS's, where it is one of those below
	known    knownMessage
	note     string // what is known besides
	hint     string // the cure, if known
	lasting  bool   // it will be the same in a moment
	classes  []error
}

func (e *callError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "aws: %s", e.op)
	if e.what != "" {
		fmt.Fprintf(&b, " of %s", e.what)
	}
	b.WriteString(": ")
	if e.status != 0 {
		fmt.Fprintf(&b, "status %d: ", e.status)
	}
	if e.code != "" {
		fmt.Fprintf(&b, "%s: ", e.code)
	}
	if e.note != "" {
		fmt.Fprintf(&b, "%s: ", e.note)
	}
	b.WriteString(e.classes[0].Error())
	for _, c := range e.classes[1:] {
		if !errors.Is(c, providers.ErrNotIssued) {
			fmt.Fprintf(&b, ": %v", c)
		}
	}
	return b.String()
}

// Unwrap gives the class, whether something may have been issued, and the
// context's error.
func (e *callError) Unwrap() []error { return e.classes }

// Hint is the cure, or empty.
func (e *callError) Hint() string { return e.hint }

func (e *callError) is(class error) bool { return errors.Is(e, class) }

// stored marks the error of a call that only asks for what is stored.
func (e *callError) stored() *callError {
	e.classes = append(e.classes, providers.ErrNotIssued)
	return e
}

// localError is a refusal of our own, before or after a call.
type localError struct {
	text, hint string
	classes    []error
}

func (e *localError) Error() string   { return "aws: " + e.text }
func (e *localError) Unwrap() []error { return e.classes }
func (e *localError) Hint() string    { return e.hint }

func hinted(text, hint string, classes ...error) error {
	return &localError{text: text, hint: hint, classes: classes}
}

func invalid(format string, args ...any) error {
	return hinted(fmt.Sprintf(format, args...)+": "+providers.ErrInvalid.Error(), "", providers.ErrInvalid)
}

func malformed(op, what string, also ...error) error {
	return hinted(fmt.Sprintf("%s %s: %v", op, what, providers.ErrMalformed), "", append([]error{providers.ErrMalformed}, also...)...)
}

// codes are the errors of AWS that its status doesn't class, or that may be
// named in ours.
var codes = map[string]error{
	"AccessDenied":                providers.ErrDenied,
	"AccessDeniedException":       providers.ErrDenied,
	"UnauthorizedOperation":       providers.ErrDenied,
	"NotAuthorized":               providers.ErrDenied,
	"InvalidIdentityToken":        providers.ErrDenied,
	"IDPRejectedClaim":            providers.ErrDenied,
	"ExpiredToken":                providers.ErrDenied,
	"ExpiredTokenException":       providers.ErrDenied,
	"InvalidClientTokenId":        providers.ErrDenied,
	"UnrecognizedClientException": providers.ErrDenied,
	"SignatureDoesNotMatch":       providers.ErrDenied,
	"InvalidSignatureException":   providers.ErrDenied,
	"MissingAuthenticationToken":  providers.ErrDenied,
	"OptInRequired":               providers.ErrDenied,
	"RegionDisabledException":     providers.ErrDenied,
	"DecryptionFailure":           providers.ErrDenied,
	"KMSAccessDeniedException":    providers.ErrDenied,

	"ResourceNotFoundException": providers.ErrNotFound,
	"ParameterNotFound":         providers.ErrNotFound,
	"ParameterVersionNotFound":  providers.ErrNotFound,
	"NoSuchEntity":              providers.ErrNotFound,

	"ValidationError":           providers.ErrInvalid,
	"ValidationException":       providers.ErrInvalid,
	"InvalidParameterValue":     providers.ErrInvalid,
	"InvalidParameterException": providers.ErrInvalid,
	"InvalidRequestException":   providers.ErrInvalid,
	"InvalidAction":             providers.ErrInvalid,
	"MalformedPolicyDocument":   providers.ErrInvalid,
	"PackedPolicyTooLarge":      providers.ErrInvalid,

	"Throttling":               errThrottled,
	"ThrottlingException":      errThrottled,
	"ThrottledException":       errThrottled,
	"RequestThrottled":         errThrottled,
	"TooManyRequestsException": errThrottled,
	"RequestLimitExceeded":     errThrottled,
	"SlowDown":                 errThrottled,
	"IDPCommunicationError":    errIDP,
	"RequestTimeTooSkewed":     errSkewed,
	"RequestExpired":           errSkewed,

	"InternalFailure":             providers.ErrUnavailable,
	"InternalError":               providers.ErrUnavailable,
	"InternalServerError":         providers.ErrUnavailable,
	"InternalServiceError":        providers.ErrUnavailable,
	"ServerException":             providers.ErrUnavailable,
	"ServiceUnavailable":          providers.ErrUnavailable,
	"ServiceUnavailableException": providers.ErrUnavailable,
}

// What the table says of errors that prove that nothing was issued, though
// they are no refusals.
var (
	errThrottled = errors.New("throttled")
	errIDP       = errors.New("the issuer wasn't reached")
	errSkewed    = errors.New("the clocks differ")
)

// A knownMessage is a message of AWS's that changes what we say.
type knownMessage int

const (
	unknownMessage knownMessage = iota
	noOIDCProvider
	noKeys
	badThumbprint
	badAudience
	badToken
	noTagSession
	noSourceIdentity
	noTrust
	tooLong
	chainTooLong
	clock
)

// known are AWS's messages, as its documentation and users' reports have them.
// Only which of them it was is kept.
var known = []struct {
	message knownMessage
	text    *regexp.Regexp
}{
	{noOIDCProvider, regexp.MustCompile(`^No OpenIDConnect provider found in your account`)},
	{noKeys, regexp.MustCompile(`^Couldn't retrieve verification key from your identity provider`)},
	{badThumbprint, regexp.MustCompile(`(?i)thumbprint`)},
	{badAudience, regexp.MustCompile(`^Incorrect token audience`)},
	{badToken, regexp.MustCompile(`(?i)signature|not a valid JWT|token is not valid`)},
	{noTagSession, regexp.MustCompile(`sts:TagSession`)},
	{noSourceIdentity, regexp.MustCompile(`sts:SetSourceIdentity`)},
	{noTrust, regexp.MustCompile(`sts:AssumeRole(WithWebIdentity)?\b`)},
	{chainTooLong, regexp.MustCompile(`1 hour session limit for roles assumed by role chaining`)},
	{tooLong, regexp.MustCompile(`DurationSeconds exceeds the MaxSessionDuration`)},
}

var clockText = regexp.MustCompile(`(?i)signature (expired|not yet current)`)

// classify is the error of a call that gave nothing.
func classify(ctx context.Context, op, what string, t *trip, err error) *callError {
	e := &callError{op: op, what: what, status: int(t.status.Load())}
	api, isAPI := errors.AsType[smithy.APIError](err)
	switch {
	case t.tooLarge.Load():
		e.note, e.classes = errTooLarge.Error(), []error{providers.ErrMalformed}
	case ctx.Err() != nil && (e.status < 300 || t.broken.Load()), e.status == 0, e.status < 300 && t.broken.Load():
		e.unanswered(ctx, t.sent.Load(), err)
	case e.status < 300:
		e.note, e.classes = "it isn't an answer of AWS's", []error{providers.ErrMalformed}
	case isAPI:
		e.answered(api.ErrorCode(), api.ErrorMessage())
	default:
		e.answered("", "")
	}
	return e
}

// answered classes an answer that isn't a success.
func (e *callError) answered(code, message string) {
	class, ok := codes[code]
	if ok {
		e.code = code
	} else {
		class = byStatus(e.status)
	}
	for _, k := range known {
		if k.text.MatchString(message) {
			e.known = k.message
			break
		}
	}
	if (code == "SignatureDoesNotMatch" || code == "InvalidSignatureException") && clockText.MatchString(message) {
		class, e.known = errSkewed, clock
	}
	switch {
	case errors.Is(class, errThrottled) || e.status == http.StatusTooManyRequests:
		e.note, e.classes = "it throttles", []error{providers.ErrUnavailable, providers.ErrNotIssued}
	case errors.Is(class, errIDP):
		e.note, e.classes = "it can't reach the broker's keys", []error{providers.ErrUnavailable, providers.ErrNotIssued}
		e.hint = "AWS must reach <issuer_url>/.well-known/openid-configuration and what that names as jwks_uri"
	case errors.Is(class, errSkewed):
		e.note, e.lasting, e.classes = "its clock and the broker's differ", true, []error{providers.ErrUnavailable, providers.ErrNotIssued}
		e.hint = "set the broker's clock, by NTP"
	case e.status < 400 && !ok:
		e.note, e.lasting, e.classes = "redirects, and that isn't followed", true, []error{class, providers.ErrNotIssued}
		e.hint = "let `endpoints` name what answers"
	default:
		e.classes = []error{class}
	}
}

func byStatus(status int) error {
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return providers.ErrDenied
	case status == http.StatusNotFound:
		return providers.ErrNotFound
	case status == http.StatusTooManyRequests:
		return errThrottled
	case status == http.StatusRequestTimeout || status < 400 || status >= 500:
		return providers.ErrUnavailable
	}
	return providers.ErrInvalid
}

// unanswered classes a request without a whole answer. sent says whether AWS
// may have got it.
func (e *callError) unanswered(ctx context.Context, sent bool, err error) {
	e.status, e.classes = 0, []error{providers.ErrUnavailable}
	if !sent {
		e.classes = append(e.classes, providers.ErrNotIssued)
	}
	if cause := ctx.Err(); cause != nil {
		e.note = "no answer in time"
		e.classes = append(e.classes, cause)
		return
	}
	var (
		unknown x509.UnknownAuthorityError
		other   x509.HostnameError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
		dns     *net.DNSError
	)
	switch {
	case errors.As(err, &unknown):
		e.note, e.hint, e.lasting = "its certificate is signed by an authority that isn't known here", "name that authority's certificate as `ca_file`", true
	case errors.As(err, &other):
		e.note, e.hint, e.lasting = "its certificate is for another name", "let `endpoints` use the name in the certificate", true
	case errors.As(err, &invalid):
		e.note, e.lasting = "its certificate isn't valid now or not for a server", true
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		e.note, e.hint, e.lasting = "it doesn't speak TLS", "check the port in `endpoints`", true
	case errors.As(err, &dns):
		e.note, e.hint = "its name can't be resolved", "is `region` right, and has it this service?"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.note = "connection refused"
	case !sent:
		e.note = "can't connect, or there are no credentials to sign with"
	default:
		e.note = "the connection broke"
	}
}
