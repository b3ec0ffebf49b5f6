// Package client is the Go SDK of a RunEnv broker: it trades a CI job's OIDC
// token for a session, takes leases in it, keeps it alive and ends it.
//
//	c, err := client.New(client.Config{URL: "https://runenv.example.com", Source: source})
//	…
//	session, err := c.Exchange(ctx, "deploy")
//	…
//	defer session.End(ctx)
//	go session.KeepAlive(ctx, nil)
//	leases, err := session.Lease(ctx, "db-readonly")
//
// A session is bound to a key that lives in this process's memory (DPoP, RFC
// 9449): its token is worth nothing to whoever steals it alone. The broker
// renews leases by itself for as long as the session lives, where their back
// ends can; [Session.KeepAlive] tells of it, and of those that near their end,
// which [Session.Renew] leases anew.
//
// The package promises: no token is sent before the broker has said that its
// URL is the one that was configured; redirects are never followed; a refusal
// is never tried again, while what a network or a busy server does to a
// request is; every answer and every wait is bounded; and no error or log line
// holds a token or a leased value.
package client

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/internal/backoff"
	"github.com/runenv/action/internal/roots"
	"github.com/runenv/action/secret"
)

// A Source gives the OIDC token by which the caller proves who it is. It is
// asked again when a token has expired, and may then give the same one.
type Source interface {
	Token(ctx context.Context, audience string) (secret.Value, error)
}

// Config is what [New] needs. URL and Source must be set.
type Config struct {
	// URL is the broker's own, exactly as its configuration has it: see
	// [CheckURL]. It is the audience of the tokens taken from Source.
	URL string
	// Source gives the caller's token.
	Source Source
	// CAPEM holds the certificates, in PEM, of the only authorities that may
	// vouch for the broker; empty means those that the system trusts.
	CAPEM []byte
	// Transport carries the requests; nil means one with TLS 1.2 at least,
	// HTTP/1.1, the environment's proxy and CAPEM. It excludes CAPEM.
	Transport http.RoundTripper
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Wait waits between tries and heartbeats, and returns early with the
	// context's cause; nil means a timer.
	Wait func(context.Context, time.Duration) error
	// Log gets what is tried again, at level debug; nil means nowhere.
	Log *slog.Logger
	// Waiting, unless nil, is called when an exchange has been sent, or another
	// token has been asked for, at each try: somebody else has work then, and
	// this process has none. It runs beside the wait. A Transport of the caller's
	// may not tell of what it has sent; then it isn't called.
	Waiting func()
}

// A Client talks to one broker. It is safe for concurrent use.
type Client struct {
	url    string
	source Source
	http   *http.Client
	now    func() time.Time
	wait   func(context.Context, time.Duration) error
	log    *slog.Logger
	sent   func()

	mu         sync.Mutex
	discovered bool // the broker has named its URL
}

// New checks the configuration and makes no network call.
func New(cfg Config) (*Client, error) {
	if err := CheckURL(cfg.URL); err != nil {
		return nil, err
	}
	if cfg.Source == nil {
		return nil, errors.New("no token source given")
	}
	transport := cfg.Transport
	switch {
	case transport != nil && len(cfg.CAPEM) > 0:
		return nil, errors.New("both a transport and CA certificates given")
	case len(cfg.CAPEM) > 0:
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(cfg.CAPEM) {
			return nil, errors.New("no certificate in PEM among the CA certificates")
		}
		transport = roots.With(pool)
	case transport == nil:
		transport = roots.New()
	}
	c := &Client{
		url:    cfg.URL,
		source: cfg.Source,
		now:    cfg.Now,
		wait:   cfg.Wait,
		log:    cfg.Log,
		sent:   cfg.Waiting,
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.wait == nil {
		c.wait = backoff.Wait
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// URL is the broker's.
func (c *Client) URL() string { return c.url }

// CheckURL says whether s can be a broker's URL: an https origin in lower
// case, without path, user or default port. Plain http is for loopback
// addresses, written as numbers.
func CheckURL(s string) error {
	if strings.Contains(s, "@") {
		return &urlError{"", "it holds a user's name"} // and maybe a password
	}
	u, err := url.Parse(s)
	if err != nil {
		return &urlError{s, "it can't be parsed"}
	}
	host := u.Hostname()
	ip, ipErr := netip.ParseAddr(host)
	switch {
	case u.Scheme == "" || host == "" || u.Opaque != "":
		return &urlError{s, "it has no scheme or no host"}
	case s != strings.ToLower(s):
		return &urlError{s, "it isn't in lower case"}
	case u.Path != "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#"):
		return &urlError{s, "it has more than scheme, host and port; drop even a final slash"}
	case u.Scheme == "http" && (ipErr != nil || !ip.IsLoopback()):
		return &urlError{s, "plain http is for loopback addresses like http://127.0.0.1:8443 only"}
	case u.Scheme != "http" && u.Scheme != "https":
		return &urlError{s, "it isn't https"}
	case s != u.Scheme+"://"+u.Host || strings.HasSuffix(u.Host, ":") || u.Port() == "443" && u.Scheme == "https" || u.Port() == "80" && u.Scheme == "http":
		return &urlError{s, "it isn't written as an origin: leave out the default port"}
	}
	return nil
}

type urlError struct{ url, why string }

func (e *urlError) Error() string { return fmt.Sprintf("the broker's URL %q: %s", e.url, e.why) }

// Hint shows what a URL looks like.
func (e *urlError) Hint() string {
	return "give the `url` of the broker's configuration, like https://runenv.example.com"
}

// discover makes the broker say its URL, once (P10: a token for this URL goes
// to nobody who calls itself otherwise).
func (c *Client) discover(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.discovered {
		return nil
	}
	var d api.Discovery
	err := c.do(ctx, call{
		doing:  "asking the broker who it is",
		method: http.MethodGet,
		path:   api.PathDiscovery,
		limit:  api.MaxRequest,
	}, &d)
	if err != nil {
		return err
	}
	if d.Issuer != c.url {
		return &mismatchError{typed: c.url, says: clean(d.Issuer)}
	}
	c.discovered = true
	return nil
}

type mismatchError struct{ typed, says string }

func (e *mismatchError) Error() string {
	return fmt.Sprintf("the broker at %s calls itself %q: no token is sent there", e.typed, e.says)
}

// Hint names the cure if the broker is to be trusted at all.
func (e *mismatchError) Hint() string {
	if CheckURL(e.says) != nil {
		return ""
	}
	return "if that is your broker, use the URL that it calls itself by"
}
