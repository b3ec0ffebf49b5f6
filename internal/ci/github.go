package ci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/runenv/action/internal/backoff"
	"github.com/runenv/action/internal/roots"
	"github.com/runenv/action/secret"
)

const (
	mintTries = 5
	// The waits between tries add up to 4 s on average.
	mintFirstDelay = 400 * time.Millisecond
	mintMostDelay  = 5 * time.Second
	mintTryTimeout = 10 * time.Second
	// maxMintBytes bounds the endpoint's answer: a token and a few words.
	maxMintBytes = 64 << 10
)

// github mints tokens at the endpoint that GitHub Actions gives its jobs.
type github struct {
	url   *url.URL
	token secret.Value // the request token, not the job's identity
	http  *http.Client
	wait  func(context.Context, time.Duration) error
}

func newGitHub(requestURL string, token secret.Value, cfg Config) (*github, error) {
	u, err := url.Parse(requestURL)
	if err != nil || u.Host == "" {
		return nil, errors.New(VarRequestURL + " isn't a URL")
	}
	// The request token goes there: in clear text only to this machine.
	ip, err := netip.ParseAddr(u.Hostname())
	if u.Scheme != "https" && (u.Scheme != "http" || err != nil || !ip.IsLoopback()) {
		return nil, errors.New(VarRequestURL + " isn't an https URL")
	}
	g := &github{url: u, token: token, http: &http.Client{}, wait: cfg.Wait}
	if cfg.HTTP != nil {
		*g.http = *cfg.HTTP
	}
	g.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if g.wait == nil {
		g.wait = backoff.Wait
	}
	return g, nil
}

func (*github) Name() string { return "GitHub Actions" }

// Token mints a new token. It retries what GitHub is known to recover from.
func (g *github) Token(ctx context.Context, audience string) (secret.Value, error) {
	for try := 1; ; try++ {
		token, again, err := g.mint(ctx, audience)
		if err == nil {
			return token, nil
		}
		err = &mintError{err}
		if !again || try == mintTries {
			return secret.Value{}, err
		}
		if werr := g.wait(ctx, backoff.Delay(try, mintFirstDelay, mintMostDelay)); werr != nil {
			return secret.Value{}, fmt.Errorf("%w; stopped: %w", err, werr)
		}
	}
}

// mint asks once; again says whether asking again may help.
func (g *github) mint(ctx context.Context, audience string) (token secret.Value, again bool, err error) {
	tryCtx, cancel := context.WithTimeout(ctx, mintTryTimeout)
	defer cancel()
	u := *g.url
	query := u.Query()
	query.Set("audience", audience)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(tryCtx, http.MethodGet, u.String(), nil)
	if err != nil {
		return token, false, errors.New("the request can't be made")
	}
	req.Header.Set("Authorization", "bearer "+string(g.token.Reveal()))
	req.Header.Set("Accept", "application/json; api-version=2.0")
	resp, err := g.http.Do(req)
	if err != nil {
		return token, ctx.Err() == nil, roots.Quiet(tryCtx, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxMintBytes+1))
	switch {
	case resp.StatusCode == http.StatusForbidden:
		// GitHub gives this answer now and then to jobs that may.
		return token, bytes.Contains(body, []byte("Can't issue ID_TOKEN")), statusError(resp.StatusCode)
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= http.StatusInternalServerError:
		return token, true, statusError(resp.StatusCode)
	case resp.StatusCode != http.StatusOK:
		return token, false, statusError(resp.StatusCode)
	case err != nil:
		return token, ctx.Err() == nil, roots.Quiet(tryCtx, err)
	case len(body) > maxMintBytes:
		return token, false, fmt.Errorf("an answer of over %d bytes", maxMintBytes)
	}
	var answer struct {
		Value string `json:"value"`
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Value) > maxTokenBytes || !looksLikeJWT(answer.Value) {
		return token, false, errBody
	}
	return secret.FromString(answer.Value), false, nil
}

type statusError int

func (e statusError) Error() string {
	return fmt.Sprintf("HTTP status %d %s", int(e), http.StatusText(int(e)))
}

// A mintError says that the endpoint was there and gave no token.
type mintError struct{ err error }

func (e *mintError) Error() string { return "minting a token at GitHub: " + e.err.Error() }

func (e *mintError) Unwrap() error { return e.err }

// Hint names the cure where one is known.
func (e *mintError) Hint() string {
	status, ok := errors.AsType[statusError](e.err)
	switch {
	case ok && status == http.StatusForbidden:
		return `check that the job has "permissions: id-token: write"`
	case ok && status == http.StatusUnauthorized:
		return "GitHub's request token is good for its own job only, while that runs"
	case ok && status >= http.StatusInternalServerError:
		return "GitHub's token service is in trouble: see https://www.githubstatus.com, then run the job again"
	}
	return ""
}
