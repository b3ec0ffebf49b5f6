package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/hashicorp/vault/api"

	"github.com/runenv/action/providers"
)

// A callError says what was asked of Vault and what class of answer came. Its
// text is ours: Vault's own may repeat what it was sent.
type callError struct {
	method, path string
	status       int    // 0: no answer
	note         string // what is known besides
	hint         string // the cure, if known
	classes      []error
	known        knownMessage
	fromVault    bool // the refusal has the form of Vault's
	earlier      bool // an attempt before this one may have issued something
}

func (e *callError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "vault: %s %s: ", e.method, e.path)
	if e.status != 0 {
		fmt.Fprintf(&b, "status %d: ", e.status)
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

// localError is a refusal of our own, before or after a call.
type localError struct {
	text, hint string
	classes    []error
}

func (e *localError) Error() string   { return "vault: " + e.text }
func (e *localError) Unwrap() []error { return e.classes }
func (e *localError) Hint() string    { return e.hint }

func hinted(text, hint string, classes ...error) error {
	return &localError{text: text, hint: hint, classes: classes}
}

func invalid(format string, args ...any) error {
	return &localError{text: fmt.Sprintf(format, args...) + ": " + providers.ErrInvalid.Error(), classes: []error{providers.ErrInvalid}}
}

func malformed(path, what, hint string) error {
	return &localError{
		text: fmt.Sprintf("%s %s: %v", path, what, providers.ErrMalformed), hint: hint, classes: []error{providers.ErrMalformed},
	}
}

// A knownMessage is a message of Vault's that changes what we say.
type knownMessage int

const (
	unknownMessage knownMessage = iota
	sealed
	noRole
	noLease
	badAudience
	badSubject
	badSignature
	badTime
	badClaims
	badAlgorithm
	noAppRole
	noKubernetesRole
	noAuthConfig
	noRoute
	notRenewable
	plainHTTP
)

// known are Vault's and OpenBao's messages, seen at 1.13.1 and in the sources
// of later ones. Only which of them it was is kept.
var known = []struct {
	message knownMessage
	text    *regexp.Regexp
}{
	{sealed, regexp.MustCompile(`^(Vault|OpenBao) is sealed$`)},
	{noRole, regexp.MustCompile(`^(?i:role "[^"]*" (could not be found|not found)|unknown role: .*|unknown role)$`)},
	{noLease, regexp.MustCompile(`^(lease not found|invalid lease|lease expired|lease not found or lease is not renewable)$`)},
	{badAudience, regexp.MustCompile(`^error validating token: invalid audience \(aud\) claim`)},
	{badSubject, regexp.MustCompile(`^error validating token: invalid subject \(sub\) claim`)},
	{badSignature, regexp.MustCompile(`^error validating token: (error verifying token signature|failed to verify signature|invalid issuer)`)},
	{badTime, regexp.MustCompile(`^error validating token: invalid (expiration time \(exp\)|not before \(nbf\)|issued at \(iat\)) claim`)},
	{badClaims, regexp.MustCompile(`^error validating claims: `)},
	{badAlgorithm, regexp.MustCompile(`^error validating token: (token signed with unexpected algorithm|invalid algorithm \(alg\))`)},
	{noAppRole, regexp.MustCompile(`^invalid (role ID|secret id|role or secret ID)$`)},
	{noKubernetesRole, regexp.MustCompile(`^(invalid role name "[^"]*"|(service account name|namespace) not authorized)$`)},
	{noAuthConfig, regexp.MustCompile(`^could not load configuration$`)},
	{noRoute, regexp.MustCompile(`^no handler for route `)},
	{notRenewable, regexp.MustCompile(`^lease is not renewable$`)},
	{plainHTTP, regexp.MustCompile(`^Client sent an HTTP request to an HTTPS server`)},
}

// recognise finds the first known message in an answer, and whether the answer
// has the form of Vault's refusals.
func recognise(err error) (message knownMessage, fromVault bool) {
	answer, ok := errors.AsType[*api.ResponseError](err)
	if !ok {
		return unknownMessage, false
	}
	fromVault = !answer.RawError && answer.Errors != nil
	for _, text := range answer.Errors {
		// Vault's multierror wraps one message in several lines.
		if _, inner, ok := strings.Cut(text, "1 error occurred:\n\t* "); ok {
			text = inner
		}
		text = strings.TrimSpace(text)
		for _, k := range known {
			if k.text.MatchString(text) {
				return k.message, fromVault
			}
		}
	}
	return unknownMessage, fromVault
}

// answered is the error of an answer that isn't a success.
func answered(method, path string, status int, err error) *callError {
	e := &callError{method: method, path: path, status: status}
	e.known, e.fromVault = recognise(err)
	class := providers.ErrUnavailable
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		class = providers.ErrDenied
	case status == http.StatusNotFound:
		class = providers.ErrNotFound
	case status >= 300 && status < 400:
		e.note = "redirects, and that isn't followed"
		e.hint = "let `address` name the active node or a load balancer that finds it"
		e.classes = []error{class, providers.ErrNotIssued}
		return e
	case status == http.StatusPreconditionFailed || status == http.StatusTooManyRequests:
		e.classes = []error{class, providers.ErrNotIssued}
		return e
	case status == http.StatusRequestTimeout || status == 472 || status == 473: // standbys of a replica
	case status >= 400 && status < 500:
		class = providers.ErrInvalid
	case status < 300:
		class = providers.ErrMalformed
	}
	e.classes = []error{class}
	switch e.known {
	case sealed:
		e.note, e.hint = "it is sealed", "unseal it"
		e.classes = []error{providers.ErrUnavailable, providers.ErrNotIssued}
	case noRole:
		e.note = "it has no such role"
		e.classes = []error{providers.ErrNotFound}
	case noRoute:
		e.note = "nothing is mounted there"
	case notRenewable:
		e.note = "it can't be renewed"
	case plainHTTP:
		e.note, e.hint = "it speaks https", "let `address` begin with https://"
	}
	return e
}

// unanswered is the error of a request without an answer. sent says whether
// Vault may have got it.
func unanswered(ctx context.Context, method, path string, sent bool, err error) *callError {
	e := &callError{method: method, path: path, classes: []error{providers.ErrUnavailable}}
	if !sent {
		e.classes = append(e.classes, providers.ErrNotIssued)
	}
	if cause := ctx.Err(); cause != nil {
		e.note = "no answer in time"
		e.classes = append(e.classes, cause)
		return e
	}
	if errors.Is(err, errTooLarge) {
		return &callError{method: method, path: path, note: errTooLarge.Error(), classes: []error{providers.ErrMalformed}}
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
		e.note, e.hint = "its certificate is signed by an authority that isn't known here", "name that authority's certificate as `ca_file`"
	case errors.As(err, &other):
		e.note, e.hint = "its certificate is for another name", "let `address` use the name in the certificate"
	case errors.As(err, &invalid):
		e.note = "its certificate isn't valid now or not for a server"
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		e.note, e.hint = "it doesn't speak TLS", "check the port in `address`"
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
