package gcp

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials/externalaccount"
	"cloud.google.com/go/auth/credentials/impersonate"

	"github.com/runenv/action/internal/backoff"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/endpoint"
)

const (
	// callTimeout bounds one call with all its attempts, where the context
	// doesn't bound it sooner.
	callTimeout = 30 * time.Second

	// maxAttempts, with waits of about 50, 150 and 450 ms between them, gets
	// over a lost connection and a short overload.
	maxAttempts = 4
	firstWait   = 50 * time.Millisecond

	// maxTokenAnswer bounds an answer that holds a token: Google's have up to
	// 4 KiB, an ID token's claims included.
	maxTokenAnswer = 64 << 10

	// iamHost is where Google's library asks for a service account's tokens:
	// it can't be told another place.
	iamHost = "iamcredentials." + defaultDomain

	reasonHeader = "X-Goog-Request-Reason"
	subjectType  = "urn:ietf:params:oauth:token-type:jwt"
)

var (
	errTooLarge  = errors.New("the answer is larger than it may be")
	errNotJSON   = errors.New("it isn't one JSON object without doubled keys")
	errNotSecret = errors.New("it isn't an answer of Secret Manager's")
	errRefused   = errors.New("refused")
)

// A repeat says when a request may be sent again. Each includes the ones
// before it.
type repeat int

const (
	// onRefusal: Google surely didn't process it. For what issues.
	onRefusal repeat = iota
	// onFailure: or answered that it failed. For logging in.
	onFailure
	// always: whatever happened. For what only reads.
	always
)

// again makes attempts until one succeeds, or another is not allowed or
// promises nothing.
func (p *core) again(ctx context.Context, r repeat, attempt func(context.Context) *callError) *callError {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	wait, earlier := p.firstWait, false
	for n := 1; ; n++ {
		err := attempt(ctx)
		if err != nil && r == onFailure {
			err.earlier = earlier
			earlier = earlier || !providers.Void(err)
		}
		if err == nil || n == maxAttempts || !mayRepeat(r, err) {
			return err
		}
		if !backoff.Pause(ctx, wait/2+rand.N(wait)) { //nolint:gosec // spreads load, guards nothing
			return err
		}
		wait *= 3
	}
}

func mayRepeat(r repeat, err *callError) bool {
	switch {
	case err.final || !err.is(providers.ErrUnavailable):
		return false
	case r == always || err.is(providers.ErrNotIssued):
		return true
	}
	return r == onFailure && err.answered()
}

// httpSide speaks to STS and IAM Credentials through Google's own library. The
// library can neither be told where IAM Credentials is nor what an answer may
// hold, and puts bodies into its errors: so what goes out and comes back is
// judged in the transport, and of the library's errors nothing is kept.
type httpSide struct {
	next  *http.Transport
	sts   string // the whole URL
	iam   *url.URL
	hosts map[string]bool // whom it speaks to
	plain *http.Client    // for application default credentials
}

func newHTTPSide(e endpointKeys, tlsConfig *tls.Config) *httpSide {
	t := endpoint.Transport(tlsConfig.Clone(), 90*time.Second)
	h := &httpSide{next: t, sts: e.STS + "/v1/token", hosts: map[string]bool{}}
	sts, errSTS := url.Parse(e.STS)
	iam, errIAM := url.Parse(e.IAMCredentials)
	if errSTS != nil || errIAM != nil {
		panic("gcp: an endpoint that was checked isn't a URL") // a fault of the program
	}
	h.iam = iam
	h.hosts[sts.Scheme+"://"+sts.Host], h.hosts[iam.Scheme+"://"+iam.Host] = true, true
	h.plain = &http.Client{
		Transport:     limited{t},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       callTimeout,
	}
	return h
}

// limited notes and bounds what application default credentials do.
type limited struct{ next http.RoundTripper }

func (l limited) RoundTrip(req *http.Request) (*http.Response, error) {
	note, ok := req.Context().Value(passageKey{}).(*passage)
	if !ok {
		note = &passage{} // renewed in the background: nobody waits for it
	}
	return note.through(l.next, req)
}

// A passage is what one request met on its way.
type passage struct {
	sent   atomic.Bool // Google may have got it
	status int         // 0: no answer
	body   []byte
	err    error
}

type passageKey struct{}

// through sends a request and reads the answer. A success alone is returned.
func (g *passage) through(next http.RoundTripper, req *http.Request) (*http.Response, error) {
	resp, err := next.RoundTrip(req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { g.sent.Store(true) },
	})))
	if g.err = err; err != nil {
		return nil, err
	}
	resp.Body = &bounded{resp.Body, maxTokenAnswer}
	g.body, g.err = io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if g.err != nil {
		return nil, g.err
	}
	g.status = resp.StatusCode
	if g.status != http.StatusOK {
		return nil, errRefused
	}
	resp.Body = io.NopCloser(bytes.NewReader(g.body))
	return resp, nil
}

// failure is the error of a call that gave no token.
func (g *passage) failure(ctx context.Context, what string) *callError {
	switch {
	case g.status != 0 && g.status != http.StatusOK:
		return refused(what, g.status, g.body)
	case g.err != nil || g.status == 0:
		return unanswered(ctx, what, g.sent.Load(), g.err)
	}
	return malformed(what, "it holds no token with an end", "")
}

// bounded fails with errTooLarge beyond a number of bytes.
type bounded struct {
	io.ReadCloser
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left+1)])
	if n > b.left {
		return b.left, errTooLarge
	}
	b.left -= n
	return n, err
}

// A trip is one request's passage with what it takes along.
type trip struct {
	passage
	*httpSide
	bearer, reason string
}

// RoundTrip sends a request of the library's, and to nobody but STS and IAM
// Credentials.
func (t *trip) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	if req.URL.Host == iamHost {
		req.URL.Scheme, req.URL.Host, req.Host = t.iam.Scheme, t.iam.Host, t.iam.Host
	}
	if !t.hosts[req.URL.Scheme+"://"+req.URL.Host] {
		t.err = errors.New("a request to somebody else")
		return nil, t.err
	}
	if t.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+t.bearer)
	}
	if t.reason != "" {
		req.Header.Set(reasonHeader, t.reason)
	}
	resp, err := t.through(t.next, req)
	if err != nil {
		return nil, err
	}
	if _, ok := objectOf(t.body); !ok {
		t.err = errNotJSON
		return nil, t.err
	}
	return resp, nil
}

// silent keeps Google's libraries from logging requests with their tokens,
// which GOOGLE_SDK_GO_LOGGING_LEVEL would make them do.
func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }

// fetch gets a token by the library, with the errors of this package.
func (p *core) fetch(ctx context.Context, r repeat, what, bearer, marker string, by func(*http.Client) (*auth.Credentials, error)) (*auth.Token, error) {
	var tok *auth.Token
	err := p.again(ctx, r, func(ctx context.Context) *callError {
		t := &trip{httpSide: p.http, bearer: bearer, reason: reason(marker)}
		creds, err := by(&http.Client{Transport: t})
		if err != nil {
			return &callError{what: what, note: "Google's library doesn't take that", classes: []error{providers.ErrInvalid}}
		}
		if tok, err = creds.Token(ctx); err == nil && isToken(tok.Value) {
			return nil
		}
		return t.failure(ctx, what)
	})
	if err != nil {
		return nil, err // not a nil *callError
	}
	return tok, nil
}

// reason is what Google's audit log says of why a call was made.
func reason(marker string) string {
	if marker == "" {
		return ""
	}
	return "runenv " + marker
}

// exchange trades an ID token for a federated access token (RFC 8693).
func (p *core) exchange(ctx context.Context, r repeat, subjectToken string, scopes []string, marker string) (*auth.Token, error) {
	what := "trading a token at " + p.http.sts
	tok, err := p.fetch(ctx, r, what, "", marker, func(c *http.Client) (*auth.Credentials, error) {
		return externalaccount.NewCredentials(&externalaccount.Options{
			Audience: p.audience, SubjectTokenType: subjectType, TokenURL: p.http.sts,
			SubjectTokenProvider: given(subjectToken), Scopes: scopes, Client: c, Logger: silent(),
		})
	})
	if err != nil {
		return nil, p.explainExchange(err, subjectToken)
	}
	if !strings.EqualFold(tok.Type, "Bearer") {
		return nil, malformed(what, "it gave a token that isn't a bearer's", "")
	}
	// The library took the end from how long the token lives.
	if tok.Expiry, err = p.end(what, p.now().Add(time.Until(tok.Expiry)), tokenLife); err != nil {
		return nil, err
	}
	return tok, nil
}

// given is a token that is at hand.
type given string

func (g given) SubjectToken(context.Context, *externalaccount.RequestOptions) (string, error) {
	return string(g), nil
}

// An impersonation asks for a token of a service account.
type impersonation struct {
	account   string
	delegates []string
	bearer    string // whose it is asked for with
	caller    string // as whom; for hints
	marker    string
	repeat    repeat
}

// accessToken asks for an access token that lives at most life.
func (p *core) accessToken(ctx context.Context, i impersonation, scopes []string, life time.Duration) (*auth.Token, error) {
	what := "asking for an access token of " + i.account
	life = life.Truncate(time.Second)
	tok, err := p.fetch(ctx, i.repeat, what, i.bearer, i.marker, func(c *http.Client) (*auth.Credentials, error) {
		return impersonate.NewCredentials(&impersonate.CredentialsOptions{
			TargetPrincipal: i.account, Scopes: scopes, Delegates: i.delegates, Lifetime: life, Client: c, Logger: silent(),
		})
	})
	if err != nil {
		return nil, p.explainAccount(err, i)
	}
	tok.Expiry, err = p.end(what, tok.Expiry, life)
	return tok, err
}

// idToken asks for an ID token, whose end and audience it says itself.
func (p *core) idToken(ctx context.Context, i impersonation, audience string, includeEmail bool) (*auth.Token, error) {
	what := "asking for an ID token of " + i.account
	tok, err := p.fetch(ctx, i.repeat, what, i.bearer, i.marker, func(c *http.Client) (*auth.Credentials, error) {
		return impersonate.NewIDTokenCredentials(&impersonate.IDTokenOptions{
			TargetPrincipal: i.account, Audience: audience, IncludeEmail: includeEmail, Delegates: i.delegates, Client: c, Logger: silent(),
		})
	})
	if err != nil {
		return nil, p.explainAccount(err, i)
	}
	claims, ok := claimsOf(tok.Value)
	if !ok || claims.Audience != audience {
		return nil, malformed(what, "it gave what isn't an ID token for the audience", "")
	}
	tok.Expiry, err = p.end(what, time.Unix(claims.Expires, 0), tokenLife)
	return tok, err
}

// clockSlack is how far Google's clock may be ahead of ours.
const clockSlack = time.Minute

// end is when a token ends that was asked for a moment ago to live that long.
// One that lives longer isn't taken: it would outlive what the broker has
// written down for it.
func (p *core) end(what string, says time.Time, life time.Duration) (time.Time, error) {
	now := p.now()
	longest := now.Add(life)
	switch {
	case !says.After(now):
		return time.Time{}, malformed(what, "it gave a token that has ended", "compare this machine's clock with Google's")
	case says.After(longest.Add(clockSlack)):
		return time.Time{}, malformed(what, fmt.Sprintf("it gave a token that lives longer than %v", life), "compare this machine's clock with Google's")
	case says.After(longest):
		return longest, nil
	}
	return says, nil
}

// objectOf reads one JSON object whose keys differ, in their order.
func objectOf(b []byte) ([]member, bool) {
	dec := json.NewDecoder(bytes.NewReader(b))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, false
	}
	var members []member
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		name, ok := tok.(string)
		if err != nil || !ok || seen[name] || len(members) == maxMembers {
			return nil, false
		}
		seen[name] = true
		m := member{name: name}
		if dec.Decode(&m.value) != nil {
			return nil, false
		}
		members = append(members, m)
	}
	if _, err := dec.Token(); err != nil {
		return nil, false
	}
	_, err := dec.Token()
	return members, err == io.EOF
}

// maxMembers bounds the keys of an object.
const maxMembers = 1000

type member struct {
	name  string
	value json.RawMessage
}
