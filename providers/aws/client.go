package aws

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/middleware"

	"github.com/runenv/action/internal/backoff"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/endpoint"
)

const (
	// callTimeout bounds one call with all its attempts, where the context
	// doesn't bound it sooner.
	callTimeout = 30 * time.Second

	// maxAttempts, with waits of about 100, 300 and 900 ms between them, gets
	// over a lost connection and a short throttling.
	maxAttempts = 4
	firstWait   = 100 * time.Millisecond

	// maxBodyBytes bounds an answer. The largest are a secret of 64 KiB and ten
	// parameters of 8 KiB, each byte of which may be six in JSON.
	maxBodyBytes = 1 << 20
)

// A repeat says when a request may be sent again. Each includes the ones
// before it.
type repeat int

const (
	// onRefusal: AWS surely didn't process it. For what issues.
	onRefusal repeat = iota
	// always: whatever happened. For what changes nothing when done twice.
	always
)

// call sends a request by the SDK, again if that is allowed and promises
// something. op is what IAM calls it, what names its object.
func call[T any](ctx context.Context, p *Provider, op, what string, r repeat, send func(context.Context) (*T, error)) (*T, *callError) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for attempt := 1; ; attempt++ {
		t := &trip{}
		var out *T
		err := ctx.Err()
		if err == nil {
			out, err = send(context.WithValue(ctx, tripKey{}, t))
		}
		if err == nil && out != nil {
			return out, nil
		}
		cerr := classify(ctx, op, what, t, err)
		if attempt == maxAttempts || !r.mayRepeat(cerr) {
			return nil, cerr
		}
		wait := p.firstWait
		for range attempt - 1 {
			wait *= 3
		}
		if !backoff.Pause(ctx, wait/2+rand.N(wait)) { //nolint:gosec // spreads load, guards nothing
			return nil, cerr
		}
	}
}

// mayRepeat: a redirect, a bad certificate or a clock won't be another in a
// moment.
func (r repeat) mayRepeat(err *callError) bool {
	if !err.is(providers.ErrUnavailable) || err.lasting || err.is(context.Canceled) || err.is(context.DeadlineExceeded) {
		return false
	}
	return r == always || err.is(providers.ErrNotIssued)
}

// A trip is one attempt's passage through the transport: what it tells is
// independent of how the SDK wraps errors.
type trip struct {
	sent     atomic.Bool  // AWS may have got it
	status   atomic.Int32 // of the answer; 0 if none came
	tooLarge atomic.Bool
	broken   atomic.Bool // the answer's body ended in an error
}

type tripKey struct{}

// tripper bounds answers and notes how far a request came.
type tripper struct{ next http.RoundTripper }

func (t *tripper) RoundTrip(req *http.Request) (*http.Response, error) {
	tr, ok := req.Context().Value(tripKey{}).(*trip)
	if !ok {
		tr = &trip{}
	}
	req = req.Clone(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { tr.sent.Store(true) },
	}))
	if err := ownBody(req); err != nil {
		return nil, err
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	tr.status.Store(int32(resp.StatusCode))
	resp.Body = &bounded{resp.Body, maxBodyBytes, tr}
	return resp, nil
}

// ownBody gives a request a body of its own. The SDK closes the one it made as
// soon as an answer begins, and where net/http is still looking for that body's
// end it then cuts the connection amid the answer.
func ownBody(req *http.Request) error {
	if req.Body == nil {
		return nil
	}
	b, err := io.ReadAll(req.Body)
	_ = req.Body.Close()
	if err != nil {
		return err
	}
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	req.Body, err = req.GetBody()
	return err
}

var errTooLarge = fmt.Errorf("the answer is larger than %d bytes", maxBodyBytes)

// bounded fails with errTooLarge beyond a number of bytes.
type bounded struct {
	io.ReadCloser
	left int
	trip *trip
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left+1)])
	if n > b.left {
		b.trip.tooLarge.Store(true)
		return b.left, errTooLarge
	}
	b.left -= n
	if err != nil && err != io.EOF {
		b.trip.broken.Store(true)
	}
	return n, err
}

// newHTTP is how one provider speaks to AWS.
func newHTTP(tlsConfig *tls.Config) *http.Client {
	return &http.Client{
		Transport:     &tripper{endpoint.Transport(tlsConfig, 20*time.Second)}, // AWS closes them after about as long
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// The clients are made from options alone: unlike those that are made from a
// loaded configuration, they read no environment. NopRetryer switches off the
// SDK's own retries, which don't know what may be repeated.

func (p *Provider) sts(region string, creds aws.CredentialsProvider, marker string) *sts.Client {
	return sts.New(sts.Options{
		Region: region, Credentials: creds, HTTPClient: p.http, Retryer: aws.NopRetryer{},
		BaseEndpoint: base(p.endpoints.STS), APIOptions: userAgent(marker),
	})
}

func (p *Provider) secretsManager(region string, creds aws.CredentialsProvider, marker string) *secretsmanager.Client {
	return secretsmanager.New(secretsmanager.Options{
		Region: region, Credentials: creds, HTTPClient: p.http, Retryer: aws.NopRetryer{},
		BaseEndpoint: base(p.endpoints.SecretsManager), APIOptions: userAgent(marker),
	})
}

func (p *Provider) ssm(region string, creds aws.CredentialsProvider, marker string) *ssm.Client {
	return ssm.New(ssm.Options{
		Region: region, Credentials: creds, HTTPClient: p.http, Retryer: aws.NopRetryer{},
		BaseEndpoint: base(p.endpoints.SSM), APIOptions: userAgent(marker),
	})
}

func (p *Provider) ecr(region string, creds aws.CredentialsProvider, marker string) *ecr.Client {
	return ecr.New(ecr.Options{
		Region: region, Credentials: creds, HTTPClient: p.http, Retryer: aws.NopRetryer{},
		BaseEndpoint: base(p.endpoints.ECR), APIOptions: userAgent(marker),
	})
}

func (p *Provider) iam(creds aws.CredentialsProvider) *iam.Client {
	return iam.New(iam.Options{
		Region: p.region, Credentials: creds, HTTPClient: p.http, Retryer: aws.NopRetryer{},
		BaseEndpoint: base(p.endpoints.IAM),
	})
}

func base(endpoint string) *string {
	if endpoint == "" {
		return nil
	}
	return &endpoint
}

// userAgent carries a request's marker into CloudTrail, which logs it.
func userAgent(marker string) []func(*middleware.Stack) error {
	if marker == "" {
		return nil
	}
	return []func(*middleware.Stack) error{awsmiddleware.AddUserAgentKeyValue("runenv", marker)}
}
