package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/internal/ci"
	"github.com/runenv/action/ref"
	"github.com/runenv/action/secret"
)

const (
	// exchangeTimeout bounds an exchange with all its tries.
	exchangeTimeout = time.Minute
	// The broker asks its back ends for leases while the client waits.
	leaseTimeout    = 3 * time.Minute
	leaseTryTimeout = time.Minute
	// expiryMargin is what a CI token must have left for a try.
	expiryMargin = 5 * time.Second
	// defaultHeartbeat serves where the broker's interval is out of reason.
	defaultHeartbeat = 30 * time.Second
	maxHeartbeat     = time.Hour
)

// A Session is one exchange for one role. Its leases end with it. It is safe
// for concurrent use.
type Session struct {
	c         *Client
	prover    *prover
	id, role  string
	access    secret.Value
	endToken  secret.Value
	hardEnd   time.Time
	heartbeat time.Duration
}

// Exchange trades the caller's token for a session in the role. It takes a
// new token from the source where the last one has expired before it was used.
// A refusal is an [*Error].
func (c *Client) Exchange(ctx context.Context, role string) (*Session, error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	s, _, err := c.exchange(ctx, call{doing: fmt.Sprintf("exchanging the CI token for role %q", role), limit: api.MaxRequest}, role, url.Values{})
	return s, err
}

// ExchangeAndLease is [Client.Exchange] and [Session.LeaseAll] in one request:
// either there are a session and all its leases, or there is neither.
func (c *Client) ExchangeAndLease(ctx context.Context, role string, request api.LeaseRequest) (*Session, []api.Lease, error) {
	body, err := encodeRequest(request)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	return c.exchange(ctx, call{
		doing:      fmt.Sprintf("exchanging the CI token for role %q and its leases", role),
		limit:      api.MaxAnswer,
		tryTimeout: leaseTryTimeout,
	}, role, url.Values{api.ParamLeases: {string(body)}})
}

// exchange makes the call with the parameters of an exchange beside those
// given.
func (c *Client) exchange(ctx context.Context, cl call, role string, form url.Values) (*Session, []api.Lease, error) {
	if !validRole(role) {
		return nil, nil, fmt.Errorf("%q can't be a role: its name has 1 to 63 of a-z, 0-9 and -", role)
	}

	// The token is minted while the broker says who it is, and sent after.
	token := &tokenCache{c: c}
	minting := make(chan error, 1)
	mintCtx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_, err := token.get(mintCtx)
		if err != nil {
			stop()
		}
		minting <- err
	}()
	// One key and one body for all tries: a broker takes the same CI token
	// again after a lost reply from nobody else.
	var p *prover
	var keyErr error
	keying := sync.OnceFunc(func() {
		if p, keyErr = newProver(c.now); keyErr == nil {
			keyErr = p.prepare(http.MethodPost, c.url+api.PathToken, secret.Value{})
		}
	})
	// It is made while the broker does its part of the handshake: sooner it
	// would keep the connection waiting.
	discoveryErr := c.discover(httptrace.WithClientTrace(mintCtx, &httptrace.ClientTrace{
		ConnectDone: func(string, string, error) { go keying() },
	}))
	keying()
	if discoveryErr != nil && mintCtx.Err() == nil {
		return nil, nil, discoveryErr
	}
	if err := <-minting; err != nil {
		return nil, nil, err
	}
	if discoveryErr != nil {
		return nil, nil, discoveryErr
	}

	if keyErr != nil {
		return nil, nil, keyErr
	}
	form.Set("grant_type", api.GrantTokenExchange)
	form.Set("subject_token_type", api.TokenTypeID)
	form.Set("audience", role)
	cl.method, cl.path, cl.contentType = http.MethodPost, api.PathToken, "application/x-www-form-urlencoded"
	cl.body = func(ctx context.Context) ([]byte, error) {
		t, err := token.get(ctx)
		if err != nil {
			return nil, err
		}
		form.Set("subject_token", string(t.Reveal()))
		body := []byte(form.Encode())
		if len(body) > api.MaxTokenRequest {
			return nil, fmt.Errorf("a request of %d bytes: the most are %d", len(body), api.MaxTokenRequest)
		}
		return body, nil
	}
	cl.authorize = func(r *http.Request) error { return p.prove(r, secret.Value{}) }
	sending := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { go c.waiting() }})
	var answer api.Token
	err := c.do(sending, cl, &answer)
	if refused, ok := errors.AsType[*Error](err); ok && refused.Refusal.Code == api.CodeInvalidRequest {
		refused.hint = token.audienceHint()
	}
	if err != nil {
		return nil, nil, err
	}
	if answer.TokenType != api.SchemeDPoP || answer.AccessToken.Len() == 0 || answer.EndToken.Len() == 0 || answer.HardEnd.IsZero() {
		return nil, nil, errors.New("exchanging the CI token: the answer lacks what a session needs")
	}
	s := &Session{
		c:         c,
		prover:    p,
		id:        clean(answer.SessionID),
		role:      role,
		access:    answer.AccessToken.Value,
		endToken:  answer.EndToken.Value,
		hardEnd:   answer.HardEnd,
		heartbeat: interval(answer.HeartbeatSeconds),
	}
	if !form.Has(api.ParamLeases) {
		return s, nil, nil
	}
	leases, err := usable(answer.Leases)
	if err != nil {
		_, _ = s.End(ctx) // best effort: else missed heartbeats end it
		return nil, nil, err
	}
	return s, leases, nil
}

// waiting does what can be done while the broker works on an exchange.
func (c *Client) waiting() {
	if c.sent != nil {
		c.sent()
	}
	// The first answer of a type is decoded three times as slowly as the next.
	_ = json.Unmarshal([]byte(`{"leases":[{"env":[{"value":""}],"files":[{"value":""}],"hide":[""]}]}`), new(api.Token))
}

func validRole(role string) bool {
	return len(role) >= 1 && len(role) <= 63 && strings.Trim(role, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func interval(seconds int) time.Duration {
	d := time.Duration(seconds) * time.Second
	if seconds < 1 || seconds > int(maxHeartbeat/time.Second) {
		return defaultHeartbeat
	}
	return d
}

// tokenCache holds the CI token of one exchange.
type tokenCache struct {
	c  *Client
	mu sync.Mutex

	token   secret.Value
	expires time.Time // zero if it doesn't say
}

// get returns the token, or another if it has expired.
func (t *tokenCache) get(ctx context.Context) (secret.Value, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.token.Len() > 0 && !t.expired() {
		return t.token, nil
	}
	token, err := t.c.source.Token(ctx, t.c.url)
	if err != nil {
		return secret.Value{}, err
	}
	t.token, t.expires = token, ci.Expires(token)
	if t.expired() {
		return secret.Value{}, &expiredError{t.expires}
	}
	return token, nil
}

func (t *tokenCache) expired() bool {
	return !t.expires.IsZero() && t.c.now().Add(expiryMargin).After(t.expires)
}

// audienceHint says what is wrong with the token's audience, if something is.
// The broker decides: an issuer may be configured with an audience of its own.
func (t *tokenCache) audienceHint() string {
	claims, err := ci.Peek(t.token)
	if err != nil || claims["aud"] == t.c.url {
		return ""
	}
	return clean(fmt.Sprintf("the job's token is made for the audience %q; the broker's is %q", claims["aud"], t.c.url))
}

type expiredError struct{ at time.Time }

func (e *expiredError) Error() string {
	return "the job's token expired at " + e.at.UTC().Format(time.RFC3339)
}

// Hint names the cure where the CI can't mint another.
func (e *expiredError) Hint() string {
	return "a token that the CI fixed at the job's start can't be renewed: lengthen the job's timeout or start earlier; else check this machine's clock"
}

// ID names the session in the broker's audit log.
func (s *Session) ID() string { return s.id }

// HardEnd is when the session ends, whatever is done to keep it.
func (s *Session) HardEnd() time.Time { return s.hardEnd }

// EndURL is where a DELETE request with the end token as its bearer ends the
// session.
func (s *Session) EndURL() string { return s.c.url + api.PathSession }

// EndToken ends the session, and is good for nothing else.
func (s *Session) EndToken() secret.Value { return s.endToken }

func (s *Session) authorize(r *http.Request) error { return s.prover.prove(r, s.access) }

// Lease takes leases by their names in the role; no name means all of the
// role's. Either all are given or none. A refusal is an [*Error].
//
// A lease's Env are variables. Its Files are variables too, which hold the path
// of a file that the caller makes, in memory and for nobody else to read; they
// are checked ([api.File.Check]). Whatever stands in either with Mask, and in
// Hide, is to be hidden in what the command prints.
func (s *Session) Lease(ctx context.Context, names ...string) ([]api.Lease, error) {
	return s.LeaseAll(ctx, api.LeaseRequest{Leases: names})
}

// LeaseAll is Lease for names, references and leases to replace together.
// References to one secret are one lease, whose name is the reference without
// its field.
func (s *Session) LeaseAll(ctx context.Context, request api.LeaseRequest) ([]api.Lease, error) {
	body, err := encodeRequest(request)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	var answer api.Leases
	err = s.c.do(ctx, call{
		doing:          "leasing",
		method:         http.MethodPost,
		path:           api.PathLeases,
		contentType:    "application/json",
		idempotencyKey: rand.Text(),
		body:           func(context.Context) ([]byte, error) { return body, nil },
		authorize:      s.authorize,
		limit:          api.MaxAnswer,
		tryTimeout:     leaseTryTimeout,
	}, &answer)
	if err != nil {
		return nil, err
	}
	return usable(&answer)
}

func encodeRequest(request api.LeaseRequest) ([]byte, error) {
	if n := len(request.Leases) + len(request.References); n > api.MaxLeaseNames {
		return nil, fmt.Errorf("%d leases at once: the most are %d", n, api.MaxLeaseNames)
	}
	request.Leases = append([]string{}, request.Leases...) // [], not null
	body, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("encoding the request: %w", err)
	}
	if len(body) > api.MaxRequest {
		return nil, fmt.Errorf("a request of %d bytes: the most are %d", len(body), api.MaxRequest)
	}
	return body, nil
}

// usable are the leases of an answer, once they are known to be.
func usable(answer *api.Leases) ([]api.Lease, error) {
	if answer == nil || len(answer.Leases) == 0 { // all or none, and all are never none
		return nil, errors.New("leasing: the answer has no leases")
	}
	cleanLeases(answer.Leases)
	for _, l := range answer.Leases {
		for _, f := range l.Files {
			if err := f.Check(); err != nil {
				return nil, fmt.Errorf("leasing %q: the answer can't be used: %w", l.Name, err)
			}
		}
	}
	return answer.Leases, nil
}

// Renew gives a lease a longer life. Where the back end can do so in place, the
// lease comes back with its new expiry and without values; the broker does that
// by itself while the session lives. Where it can't, another is leased in its
// stead and comes back with values of its own; the old one lives on to its own
// end. That can be done once half of the old one's life is over.
//
// A lease that was asked for by references can only be leased again with them:
// references are those of the request, of which Renew takes what is the
// lease's. A refusal is an [*Error].
func (s *Session) Renew(ctx context.Context, lease api.Lease, references ...api.Reference) (api.Lease, error) {
	if lease.Renewable {
		renewed, err := s.renew(ctx, lease.ID)
		refusal, ok := errors.AsType[*api.Error](err)
		if !ok || refusal.Status != http.StatusConflict {
			return renewed, err
		}
	}
	request := api.LeaseRequest{Replaces: []string{lease.ID}}
	if strings.Contains(lease.Name, "://") {
		for _, given := range references {
			if r, err := ref.Parse(given.Ref); err == nil && r.Credential().String() == lease.Name {
				request.References = append(request.References, given)
			}
		}
		if len(request.References) == 0 {
			return api.Lease{}, fmt.Errorf("leasing %q again: its references aren't given", lease.Name)
		}
	} else {
		request.Leases = []string{lease.Name}
	}
	leases, err := s.LeaseAll(ctx, request)
	switch {
	case err != nil:
		return api.Lease{}, err
	case len(leases) != 1:
		return api.Lease{}, fmt.Errorf("leasing %q again: the answer has %d leases", lease.Name, len(leases))
	}
	return leases[0], nil
}

// renew lengthens a lease in place.
func (s *Session) renew(ctx context.Context, id string) (api.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	var answer api.Lease
	err := s.c.do(ctx, call{
		doing:      "renewing a lease",
		method:     http.MethodPost,
		path:       api.PathLeases + "/" + url.PathEscape(id) + "/renew",
		authorize:  s.authorize,
		limit:      api.MaxRequest,
		tryTimeout: leaseTryTimeout,
	}, &answer)
	cleanLease(&answer)
	return answer, err
}

// Report has the broker record in its audit log what this client did for the
// session: see [api.Report]. It can be called several times (the broker takes
// eight and then one a minute), and for an hour after the session has ended,
// since the leak scan comes after the end. What is to be on record before it
// happens, file secrets on a disk, is reported first; if that fails it isn't
// to happen.
func (s *Session) Report(ctx context.Context, r api.Report) error {
	if err := r.Check(); err != nil {
		return fmt.Errorf("reporting to the audit log: %w", err)
	}
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding the report: %w", err)
	}
	return s.c.do(ctx, call{
		doing:       "reporting to the audit log",
		method:      http.MethodPost,
		path:        api.PathReport,
		contentType: "application/json",
		body:        func(context.Context) ([]byte, error) { return body, nil },
		authorize:   s.authorize,
		limit:       api.MaxRequest,
	}, &struct{}{})
}

// End ends the session and says what became of its leases. Leases that can't
// be revoked yet are the broker's to go on with. Ending twice does no harm.
// Bound it with ctx.
func (s *Session) End(ctx context.Context) (api.Ended, error) {
	ended, err := s.end(ctx, s.authorize)
	refusal, refused := errors.AsType[*api.Error](err)
	switch {
	case refused && refusal.Code == api.CodeSessionEnded:
		return api.Ended{}, nil
	case refused && refusal.Status < http.StatusInternalServerError && ctx.Err() == nil:
		// The proof was no good (a clock that jumped, an access token that
		// has expired): the end token needs none.
		return s.end(ctx, func(r *http.Request) error {
			r.Header.Set("Authorization", "Bearer "+string(s.endToken.Reveal()))
			return nil
		})
	}
	return ended, err
}

func (s *Session) end(ctx context.Context, authorize func(*http.Request) error) (api.Ended, error) {
	var ended api.Ended
	err := s.c.do(ctx, call{
		doing:     "ending the session",
		method:    http.MethodDelete,
		path:      api.PathSession,
		authorize: authorize,
		limit:     api.MaxAnswer,
	}, &ended)
	cleanLeases(ended.Leases)
	return ended, err
}
