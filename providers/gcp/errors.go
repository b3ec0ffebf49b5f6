package gcp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/runenv/action/providers"
)

// A callError says what was asked of Google and what class of answer came. Its
// text is ours: Google's own may repeat what it was sent.
type callError struct {
	what    string // the call, with what it was about
	status  string // "status 403", "code NotFound"; empty: no answer
	note    string // what is known besides
	hint    string // the cure, if known
	classes []error
	known   knownMessage
	earlier bool // an attempt before this one may have issued something
	final   bool // the same would come of another attempt
}

func (e *callError) Error() string {
	var b strings.Builder
	b.WriteString("gcp: " + e.what + ": ")
	for _, part := range []string{e.status, e.note} {
		if part != "" {
			b.WriteString(part + ": ")
		}
	}
	b.WriteString(e.classes[0].Error())
	for _, c := range e.classes[1:] {
		if !errors.Is(c, providers.ErrNotIssued) {
			fmt.Fprintf(&b, ": %v", c)
		}
	}
	if e.earlier {
		fmt.Fprintf(&b, ": %v", providers.ErrMaybeIssued)
	}
	return b.String()
}

// Unwrap gives the class, whether something may have been issued, and the
// context's error.
func (e *callError) Unwrap() []error {
	if e.earlier {
		return append(slices.Clone(e.classes), providers.ErrMaybeIssued)
	}
	return e.classes
}

// Hint is the cure, or empty.
func (e *callError) Hint() string { return e.hint }

func (e *callError) is(class error) bool { return errors.Is(e, class) }

// answered says that Google spoke.
func (e *callError) answered() bool { return e.status != "" }

func invalid(format string, args ...any) error {
	return &callError{what: fmt.Sprintf(format, args...), classes: []error{providers.ErrInvalid}}
}

func malformed(what, note, hint string, classes ...error) *callError {
	return &callError{what: what, note: note, hint: hint, classes: append([]error{providers.ErrMalformed}, classes...)}
}

// A knownMessage is an answer of Google's that changes what we say.
type knownMessage int

const (
	unknownMessage knownMessage = iota
	apiDisabled
	noPool
	conditionFailed
	otherIssuer
	otherAudience
	noKeySet
	badSignature
	badTime
	longSubject
	noPermission
	ended
	badLifetime
	versionOff
)

// known are descriptions that STS, IAM Credentials and Secret Manager give.
// Only which of them it was is kept.
var known = []struct {
	message knownMessage
	text    *regexp.Regexp
}{
	{conditionFailed, regexp.MustCompile(`(?i)rejected by the attribute condition`)},
	{otherIssuer, regexp.MustCompile(`(?i)\bissuer in (the )?ID Token\b.*\b(match|expected)`)},
	{otherAudience, regexp.MustCompile(`(?i)\baudience in (the )?ID Token\b.*\b(match|expected)`)},
	{noKeySet, regexp.MustCompile(`(?i)error connecting to the given credential's issuer`)},
	{longSubject, regexp.MustCompile(`(?i)mapped attribute .*\bexceeds\b`)},
	{badTime, regexp.MustCompile(`(?i)\bID Token\b.*\b(stale|expired|before|future)\b`)},
	{badSignature, regexp.MustCompile(`(?i)\bsignature\b|\bJWKS?\b|\bkid\b`)},
	{badLifetime, regexp.MustCompile(`(?i)\blifetime\b`)},
	{versionOff, regexp.MustCompile(`(?i)\bis in (DISABLED|DESTROYED) state`)},
}

// reasons are those of google.rpc.ErrorInfo.
var reasons = map[string]knownMessage{
	"SERVICE_DISABLED":      apiDisabled,
	"IAM_PERMISSION_DENIED": noPermission,
	"ACCESS_TOKEN_EXPIRED":  ended,
}

func recognise(reason, text string) knownMessage {
	if m, ok := reasons[reason]; ok {
		return m
	}
	for _, k := range known {
		if k.text.MatchString(text) {
			return k.message
		}
	}
	return unknownMessage
}

// refused is the error of an HTTP answer that isn't a success.
func refused(what string, code int, body []byte) *callError {
	e := &callError{what: what, status: fmt.Sprintf("status %d", code)}
	class := providers.ErrUnavailable
	switch {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		class = providers.ErrDenied
	case code == http.StatusNotFound:
		class = providers.ErrNotFound
	case code >= 300 && code < 400:
		e.note, e.hint, e.final = "redirects, and that isn't followed", "let `endpoints` name where it leads", true
		e.classes = []error{class, providers.ErrNotIssued}
		return e
	case code == http.StatusTooManyRequests:
		e.classes = []error{class, providers.ErrNotIssued}
		return e
	case code == http.StatusRequestTimeout:
	case code >= 400 && code < 500:
		class = providers.ErrInvalid
	case code < 300:
		class = providers.ErrMalformed
	}
	// OAuth has its error as a string, Google's APIs as an object.
	var oauth struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	var api struct {
		Error struct {
			Message string `json:"message"`
			Details []struct {
				Reason string `json:"reason"`
			} `json:"details"`
		} `json:"error"`
	}
	switch {
	case json.Unmarshal(body, &oauth) == nil && oauth.Error != "":
		e.known = recognise("", oauth.Description)
		switch oauth.Error {
		case "invalid_target":
			class, e.known = providers.ErrNotFound, noPool
		case "invalid_grant", "invalid_client", "unauthorized_client", "access_denied":
			class = providers.ErrDenied
		}
	case json.Unmarshal(body, &api) == nil:
		reason := ""
		for _, d := range api.Error.Details {
			if d.Reason != "" {
				reason = d.Reason
			}
		}
		e.known = recognise(reason, api.Error.Message)
	}
	e.classes = []error{class}
	return e
}

// unanswered is the error of a request without an answer. sent says whether
// Google may have got it.
func unanswered(ctx context.Context, what string, sent bool, err error) *callError {
	e := &callError{what: what, classes: []error{providers.ErrUnavailable}}
	if !sent {
		e.classes = append(e.classes, providers.ErrNotIssued)
	}
	if cause := ctx.Err(); cause != nil {
		e.note, e.final = "no answer in time", true
		e.classes = append(e.classes, cause)
		return e
	}
	var (
		unknown x509.UnknownAuthorityError
		other   x509.HostnameError
		bad     x509.CertificateInvalidError
		record  tls.RecordHeaderError
		dns     *net.DNSError
	)
	switch {
	case errors.Is(err, errTooLarge), errors.Is(err, errNotJSON):
		return malformed(what, err.Error(), "")
	case errors.As(err, &unknown):
		e.note, e.hint, e.final = "its certificate is signed by an authority that isn't known here", "name that authority's certificate as `ca_file`", true
	case errors.As(err, &other):
		e.note, e.hint, e.final = "its certificate is for another name", "let `endpoints` use the name in the certificate", true
	case errors.As(err, &bad):
		e.note, e.final = "its certificate isn't valid now or not for a server", true
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		e.note, e.hint, e.final = "it doesn't speak TLS", "check the port in `endpoints`", true
	case errors.As(err, &dns):
		e.note = "its name can't be resolved"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.note = "connection refused"
	case !sent:
		e.note = "can't connect"
	default:
		e.note = "the connection broke"
	}
	return e
}

// grpcClasses are what a server's code says. What isn't here is
// [providers.ErrUnavailable].
var grpcClasses = map[codes.Code]error{
	codes.InvalidArgument:    providers.ErrInvalid,
	codes.OutOfRange:         providers.ErrInvalid,
	codes.FailedPrecondition: providers.ErrInvalid,
	codes.AlreadyExists:      providers.ErrInvalid,
	codes.NotFound:           providers.ErrNotFound,
	codes.PermissionDenied:   providers.ErrDenied,
	codes.Unauthenticated:    providers.ErrDenied,
	codes.Unimplemented:      providers.ErrMalformed,
	codes.DataLoss:           providers.ErrMalformed,
}

// failed is the error of a gRPC call, of which none issues anything. spoke says
// that the status is the server's own word, not what gRPC made of its answer.
func failed(ctx context.Context, what string, spoke bool, err error) *callError {
	st, _ := status.FromError(err)
	if cause := ctx.Err(); cause != nil {
		return &callError{what: what, note: "no answer in time", classes: []error{providers.ErrUnavailable, providers.ErrNotIssued, cause}, final: true}
	}
	if !spoke {
		switch st.Code() {
		case codes.ResourceExhausted:
			return malformed(what, errTooLarge.Error(), "", providers.ErrNotIssued)
		case codes.Internal, codes.Unknown, codes.Unimplemented:
			return malformed(what, errNotSecret.Error(), "check `secretmanager` among `endpoints`", providers.ErrNotIssued)
		case codes.Unavailable:
			return &callError{what: what, note: "can't connect, or the connection broke", classes: []error{providers.ErrUnavailable, providers.ErrNotIssued}}
		}
	}
	class, ok := grpcClasses[st.Code()]
	if !ok {
		class = providers.ErrUnavailable
	}
	reason := ""
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			reason = info.GetReason()
		}
	}
	e := &callError{what: what, status: "code " + st.Code().String(), known: recognise(reason, st.Message())}
	if e.known == versionOff {
		e.note, e.hint = "the version is disabled or destroyed", "enable it, or name another as `version`"
		class = providers.ErrNotFound
	}
	e.classes = []error{class, providers.ErrNotIssued}
	return e
}
