package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/runenv/action/internal/backoff"
	"github.com/runenv/action/providers"
)

const (
	// callTimeout bounds one call with all its attempts, where the context
	// doesn't bound it sooner.
	callTimeout = 30 * time.Second

	// maxAttempts, with waits of about 50, 150 and 450 ms between them, gets
	// over a lost connection and a change of the active node.
	maxAttempts = 4
	firstWait   = 50 * time.Millisecond
	// maxRetryAfter bounds how long Vault's own wish for a pause is heeded.
	maxRetryAfter = 5 * time.Second

	// maxBodyBytes bounds an answer: a credential at its largest, with a
	// quarter of its bytes escaped in JSON, and what Vault adds.
	maxBodyBytes = 2*providers.MaxCredentialBytes + 64<<10

	// markerHeader carries a request's marker into Vault's audit log.
	markerHeader = "X-Runenv-Marker"
	// wrapHeader asks Vault to wrap its answer, for so many seconds.
	wrapHeader = "X-Vault-Wrap-TTL"
)

var errTooLarge = fmt.Errorf("the answer is larger than %d bytes", maxBodyBytes)

// A repeat says when a request may be sent again. Each includes the ones
// before it.
type repeat int

const (
	// onRefusal: Vault surely didn't process it. For what issues.
	onRefusal repeat = iota
	// onFailure: or answered that it failed. For logging in: the token of an
	// answer that got lost would live on until its own end.
	onFailure
	// always: whatever happened. For what changes nothing when done twice.
	always
)

// A request to Vault. With a body it is a POST.
type request struct {
	path   string
	query  url.Values
	body   map[string]any
	token  string
	marker string
	repeat repeat
	wrap   time.Duration // how long the token of a wrapped answer lives; 0: plain
}

func (r *request) method() string {
	if r.body != nil {
		return http.MethodPut // Vault treats POST and PUT alike, and its client sends this one
	}
	return http.MethodGet
}

// do sends a request, again if that is allowed and promises something. A
// success without a body gives a nil answer.
func (p *Provider) do(ctx context.Context, r request) (*answer, *callError) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	earlier := false
	for attempt := 1; ; attempt++ {
		s, pause, err := p.try(ctx, &r)
		if err != nil && r.repeat == onFailure {
			err.earlier = earlier
			earlier = earlier || !providers.Void(err)
		}
		if err == nil || attempt == maxAttempts || !r.mayRepeat(err) {
			return s, err
		}
		wait := p.firstWait
		for range attempt - 1 {
			wait *= 3
		}
		wait = wait/2 + rand.N(wait) //nolint:gosec // spreads load, guards nothing
		if !backoff.Pause(ctx, max(wait, min(pause, maxRetryAfter))) {
			return nil, err
		}
	}
}

// mayRepeat: a redirect or a bad certificate won't be another one in a moment.
func (r *request) mayRepeat(err *callError) bool {
	switch {
	case !err.is(providers.ErrUnavailable) || err.hint != "" && err.known != sealed || err.is(context.Canceled) || err.is(context.DeadlineExceeded):
		return false
	case err.is(providers.ErrNotIssued):
		return true
	case err.status != 0:
		return r.repeat >= onFailure
	}
	return r.repeat >= always
}

// try sends a request once. pause is what Vault asks to wait before another.
func (p *Provider) try(ctx context.Context, r *request) (s *answer, pause time.Duration, _ *callError) {
	client := p.client.WithNamespace(p.namespace) // a copy, with headers of its own
	client.SetToken(r.token)
	if r.marker != "" {
		client.AddHeader(markerHeader, r.marker)
	}
	if r.wrap != 0 {
		client.AddHeader(wrapHeader, strconv.Itoa(int(r.wrap.Seconds())))
	}
	t := &trip{once: r.repeat != always}
	tctx := context.WithValue(ctx, tripKey{}, t)
	var resp *api.Response
	var err error
	if r.body == nil {
		resp, err = client.Logical().ReadRawWithDataWithContext(tctx, r.path, r.query)
	} else {
		var body []byte
		if body, err = json.Marshal(r.body); err != nil {
			return nil, 0, &callError{method: r.method(), path: r.path, note: "it can't be written as JSON", classes: []error{providers.ErrInvalid}}
		}
		resp, err = client.Logical().WriteRawWithContext(tctx, r.path, body)
	}
	if resp == nil || resp.Response == nil {
		return nil, 0, unanswered(ctx, r.method(), r.path, t.sent.Load(), err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent {
		return nil, retryAfter(resp.Header), answered(r.method(), r.path, resp.StatusCode, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, 0, unanswered(ctx, r.method(), r.path, true, err)
	}
	s, err = parse(body)
	if err != nil {
		return nil, 0, &callError{method: r.method(), path: r.path, status: resp.StatusCode, note: err.Error(), classes: []error{providers.ErrMalformed}}
	}
	return s, 0, nil
}

// An answer is Vault's, with what its client's types leave out.
type answer struct {
	api.Secret
	Auth *answerAuth `json:"auth"`
}

type answerAuth struct {
	api.SecretAuth
	TokenType string `json:"token_type"`
}

// parse reads an answer. Every answer of Vault's API that has a body has a
// request id, unless it is wrapped: without one it came from something else.
func parse(body []byte) (*answer, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var s answer
	if dec.Decode(&s) != nil {
		return nil, errors.New("it isn't JSON of Vault's API")
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("something follows the JSON")
	}
	if s.RequestID == "" && (s.WrapInfo == nil || s.WrapInfo.Token == "") {
		return nil, errors.New("it has no request id")
	}
	return &s, nil
}

func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || seconds < 0 || seconds > 3600 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// neverRetry switches off the retries of Vault's client, which don't know
// what may be repeated.
func neverRetry(context.Context, *http.Response, error) (bool, error) { return false, nil }

// A trip is one attempt's passage through the transport.
type trip struct {
	once bool        // it may reach Vault once
	sent atomic.Bool // it may have
}

type tripKey struct{}

// tripper bounds answers, notes whether a request got a connection, and keeps
// the transport from repeating one on its own.
type tripper struct{ next http.RoundTripper }

func (t *tripper) RoundTrip(req *http.Request) (*http.Response, error) {
	if tr, ok := req.Context().Value(tripKey{}).(*trip); ok {
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
			GotConn: func(httptrace.GotConnInfo) { tr.sent.Store(true) },
		}))
		if tr.once && (req.Body == nil || req.Body == http.NoBody) {
			// net/http repeats a GET when a kept connection breaks, though
			// Vault may have made a lease for it; a body that can't be
			// rewound keeps it from that. Nothing is sent of this one.
			req.Body, req.GetBody = io.NopCloser(bytes.NewReader(nil)), nil
		}
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = &bounded{resp.Body, maxBodyBytes}
	return resp, nil
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

// readBounded reads all of r, which may hold at most limit bytes.
func readBounded(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		return nil, fmt.Errorf("larger than %d bytes", limit)
	}
	return b, err
}
