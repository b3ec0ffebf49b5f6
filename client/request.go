package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/internal/backoff"
	"github.com/runenv/action/internal/roots"
)

const (
	// A request is tried this often; the waits add up to 2.3 s on average, so
	// that a broker which is down is reported soon.
	maxTries   = 5
	firstDelay = 200 * time.Millisecond
	mostDelay  = 5 * time.Second
	// maxRetryAfter is the longest wait that a broker may ask for; a longer
	// one is a refusal.
	maxRetryAfter = time.Minute
	// tryTimeout bounds one try where a call doesn't say otherwise.
	tryTimeout = 15 * time.Second
)

// A call is a request that may be made several times.
type call struct {
	doing          string // what it is, for errors
	method, path   string
	body           func(context.Context) ([]byte, error) // asked once a try; nil means none
	contentType    string
	idempotencyKey string
	authorize      func(*http.Request) error // nil means nobody in particular
	limit          int64                     // of the answer, in bytes
	tries          int                       // 0 means maxTries
	tryTimeout     time.Duration             // 0 means tryTimeout
}

// do makes the call until it is answered, and decodes the answer into out.
func (c *Client) do(ctx context.Context, cl call, out any) error {
	tries := cl.tries
	if tries == 0 {
		tries = maxTries
	}
	for try := 1; ; try++ {
		delay := backoff.Delay(try, firstDelay, mostDelay)
		again, err := c.try(ctx, cl, out)
		if err == nil {
			return nil
		}
		if again.after > maxRetryAfter || !again.ok || try == tries || ctx.Err() != nil {
			return fmt.Errorf("%s: %w", cl.doing, c.withCause(ctx, err))
		}
		delay = max(delay, again.after)
		c.log.DebugContext(ctx, "trying again", "doing", cl.doing, "error", err, "try", try, "wait", delay)
		if werr := c.wait(ctx, delay); werr != nil {
			return fmt.Errorf("%s: %w", cl.doing, c.withCause(ctx, err))
		}
	}
}

// withCause adds why the context ended, if it did.
func (*Client) withCause(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if cause == nil || errors.Is(err, cause) {
		return err
	}
	return fmt.Errorf("%w (%w)", err, cause)
}

// retry says whether a try may be repeated, and how long the broker asks to
// wait before that.
type retry struct {
	ok    bool
	after time.Duration
}

func (c *Client) try(ctx context.Context, cl call, out any) (retry, error) {
	limit := cl.tryTimeout
	if limit == 0 {
		limit = tryTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := c.request(ctx, cl)
	if err != nil {
		return retry{}, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return retry{ok: retryable(err)}, &UnreachableError{URL: c.url, Err: roots.Quiet(ctx, err)}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c.refused(resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, cl.limit+1))
	switch {
	case err != nil:
		return retry{ok: true}, &UnreachableError{URL: c.url, Err: roots.Quiet(ctx, err)}
	case int64(len(body)) > cl.limit:
		return retry{}, fmt.Errorf("an answer of over %d bytes", cl.limit)
	case json.Unmarshal(body, out) != nil: // its error may quote the body
		return retry{}, errors.New("the answer isn't RunEnv's")
	}
	return retry{}, nil
}

func (c *Client) request(ctx context.Context, cl call) (*http.Request, error) {
	var body []byte
	if cl.body != nil {
		var err error
		if body, err = cl.body(ctx); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, cl.method, c.url+cl.path, bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("the request can't be made")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "runenv")
	if cl.contentType != "" {
		req.Header.Set("Content-Type", cl.contentType)
	}
	if cl.idempotencyKey != "" {
		req.Header.Set(api.HeaderIdempotency, cl.idempotencyKey)
		// net/http would repeat such a request by itself on a fresh
		// connection, with a proof that has counted already.
		req.GetBody = nil
	}
	if cl.authorize != nil {
		if err := cl.authorize(req); err != nil {
			return nil, err
		}
	}
	return req, nil
}

// refused turns an answer other than 200 into an error. 429 and 5xx may pass;
// 501 and a back end's own refusal won't.
func (c *Client) refused(resp *http.Response) (retry, error) {
	again := retry{
		ok: resp.StatusCode == http.StatusTooManyRequests ||
			resp.StatusCode >= http.StatusInternalServerError && resp.StatusCode != http.StatusNotImplemented,
		after: c.retryAfter(resp.Header.Get("Retry-After")),
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, api.MaxError))
	refusal := &api.Error{}
	if err != nil || json.Unmarshal(body, refusal) != nil || refusal.Code == "" {
		return again, &answerError{status: resp.StatusCode, location: resp.Header.Get("Location")}
	}
	refusal.Status = resp.StatusCode
	switch refusal.Code {
	case api.CodeProviderDenied, api.CodeProviderNotFound:
		again.ok = false // the back end has answered, and would answer so again
	}
	for _, s := range []*string{&refusal.Code, &refusal.Description, &refusal.RequestID, &refusal.Lease} {
		*s = clean(*s)
	}
	return again, &Error{Refusal: refusal}
}

// retryAfter reads seconds or a date; 0 if there is neither.
func (c *Client) retryAfter(header string) time.Duration {
	if seconds, err := strconv.ParseUint(header, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(header); err == nil {
		return max(at.Sub(c.now()), 0)
	}
	return 0
}

// retryable tells what a network does now and then from what stays wrong.
func retryable(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return false
	}
	_, ok := errors.AsType[tls.AlertError](err)
	return !ok
}
