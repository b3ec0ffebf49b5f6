// Package guardian ends a session, and removes its file secrets, when the
// process that opened it can't.
//
// A wrapper killed by SIGKILL or the kernel's out-of-memory killer runs no
// code of its own any more. So [Start] puts a guardian beside it, in a session
// of its own, with an empty environment, in the root directory. It waits for
// the end of a pipe whose only write end the wrapper holds. When that closes and
// the wrapper hasn't said that all is done, the guardian overwrites and unlinks
// the file secrets that it was told of, ends the session with its end token,
// trying for up to a minute, and exits.
//
// The guardian is the same program in another mode (see [IsGuardian]). On Linux
// it is that only once it is needed: until then a fork of the wrapper sleeps
// there, in which no program was started, since that takes five times as long.
// It has given back the heap, and of the stack all but the part that it uses,
// and keeps its configuration outside of both: nothing that the wrapper knew
// when it forked is left in it, nor the environment. It is closed to debuggers,
// dumps no core, has no file of the wrapper's open, and heeds no signal but KILL
// and STOP. What isn't Go's memory (a C library's, a mapping of one's own) it
// does keep: no value may lie there before [Start].
//
// The configuration crosses a pipe, on Linux memory that these two processes
// share; nothing of it is in an argument, the environment or a file on a disk.
// The end token is good for ending this one session only. The guardian follows
// no redirect, uses no proxy, and speaks plain http to loopback addresses only.
package guardian

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/runenv/action/internal/backoff"
	"github.com/runenv/action/internal/filesecret"
	"github.com/runenv/action/internal/proc"
	"github.com/runenv/action/secret"
)

const (
	// argument is the guardian's only one.
	argument = "__guardian"

	// maxConfigBytes has room for a whole bundle of CA certificates.
	maxConfigBytes = 1 << 20

	endLimit     = time.Minute
	attemptLimit = 10 * time.Second
	minPause     = 100 * time.Millisecond
	maxPause     = 5 * time.Second

	maxPathBytes = 4096
	maxFolders   = 16
)

// Config says which session to end and how.
type Config struct {
	// SessionURL is what to DELETE: https, or http to a loopback address. With
	// "" there is no session, and no EndToken: only [Handle.Files].
	SessionURL string
	// EndToken is sent as the bearer token.
	EndToken secret.Value
	// CAPEM holds the certificates to trust instead of the system's, if any.
	CAPEM []byte
}

// End ends the session itself, trying again until ctx ends while the broker
// can't be reached or is overloaded.
func End(ctx context.Context, cfg Config) error {
	w := wire{SessionURL: cfg.SessionURL, EndToken: cfg.EndToken.Reveal(), CAPEM: cfg.CAPEM}
	if err := w.check(); err != nil {
		return fmt.Errorf("ending the session: %w", err)
	}
	if err := w.end(ctx); err != nil {
		return fmt.Errorf("ending the session: %w", err)
	}
	return nil
}

// IsGuardian reports whether a program with these arguments (os.Args, whole)
// was started to be a guardian.
func IsGuardian(args []string) bool { return len(args) == 2 && args[1] == argument }

// Main is the guardian: it returns the exit code, 0 if the session has ended.
// It takes over standard input and output, and ignores the signals that ask a
// process to end.
func Main(ctx context.Context) int {
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	if err := proc.HardenSelf(); err != nil {
		return 1
	}
	c, err := takeOver()
	switch {
	case err != nil:
		return 1
	case c == nil:
		return 0
	}
	return c.end(ctx)
}

// A charge is what a dead wrapper left to its guardian.
type charge struct {
	wire
	folders []string
}

func (c *charge) end(ctx context.Context) int {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	code := 0
	// First what is here and takes no time.
	for _, dir := range c.folders {
		if filesecret.Erase(dir) != nil {
			code = 1
		}
	}
	if c.SessionURL != "" && c.wire.end(ctx) != nil {
		code = 1
	}
	return code
}

// readFrame reads a length in four bytes and as many bytes after it.
func readFrame(r io.Reader, limit uint32) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > limit {
		return nil, errors.New("a message is too large")
	}
	body := make([]byte, size)
	_, err := io.ReadFull(r, body)
	return body, err
}

// wire is the configuration as the guardian gets it: three frames, each its
// length in four bytes and what it holds.
type wire struct {
	SessionURL string
	EndToken   []byte
	CAPEM      []byte
}

func (w wire) end(ctx context.Context) error {
	client, err := newClient(w.CAPEM)
	if err != nil {
		return err
	}
	return end(ctx, client, w)
}

func (w wire) check() error {
	if w.SessionURL == "" && len(w.EndToken) == 0 {
		return nil
	}
	if len(w.EndToken) == 0 {
		return errors.New("no end token")
	}
	for _, c := range w.EndToken {
		if c <= ' ' || c > '~' {
			return errors.New("the end token can't stand in a header")
		}
	}
	u, err := url.Parse(w.SessionURL)
	if err != nil {
		return errors.New("the session's URL can't be parsed")
	}
	if u.User != nil || u.Fragment != "" || u.Hostname() == "" {
		return errors.New("the session's URL has a user or a fragment, or no host")
	}
	switch u.Scheme {
	case "https":
		return nil
	case "http":
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && a.IsLoopback() {
			return nil
		}
	}
	return errors.New("the session's URL is neither https nor http to a loopback address")
}

func encode(w wire) ([]byte, error) {
	if err := w.check(); err != nil {
		return nil, err
	}
	if len(w.CAPEM) > 0 && !hasCertificate(w.CAPEM) {
		return nil, errNoCertificate
	}
	size := len(w.SessionURL) + len(w.EndToken) + len(w.CAPEM)
	if size > maxConfigBytes {
		return nil, fmt.Errorf("%d bytes of configuration, more than %d", size, maxConfigBytes)
	}
	out := make([]byte, 0, size+3*4)
	for _, part := range [][]byte{[]byte(w.SessionURL), w.EndToken, w.CAPEM} {
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(part))), part...)
	}
	return out, nil
}

func decode(r io.Reader) (wire, error) {
	var parts [3][]byte
	left := uint32(maxConfigBytes)
	for i := range parts {
		var err error
		if parts[i], err = readFrame(r, left); err != nil {
			return wire{}, err
		}
		left -= uint32(len(parts[i]))
	}
	w := wire{string(parts[0]), parts[1], parts[2]}
	return w, w.check()
}

var errNoCertificate = errors.New("no certificate in the CA's PEM")

// hasCertificate reports whether [newClient] will take the PEM, and parses no
// more than it must: a bundle has a hundred and more.
func hasCertificate(caPEM []byte) bool {
	for len(caPEM) > 0 {
		var block *pem.Block
		if block, caPEM = pem.Decode(caPEM); block == nil {
			return false
		}
		if block.Type != "CERTIFICATE" || len(block.Headers) != 0 {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err == nil {
			return true
		}
	}
	return false
}

func newClient(caPEM []byte) (*http.Client, error) {
	var roots *x509.CertPool
	if len(caPEM) > 0 {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(caPEM) {
			return nil, errNoCertificate
		}
	}
	return &http.Client{
		Timeout: attemptLimit,
		Transport: &http.Transport{
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2:      true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// end deletes the session. It tries again, with growing pauses, until ctx
// ends, while the broker can't be reached or is overloaded.
func end(ctx context.Context, client *http.Client, w wire) error {
	for n := 1; ; n++ {
		again, err := try(ctx, client, w)
		if err == nil || !again || backoff.Wait(ctx, backoff.Delay(n, minPause, maxPause)) != nil {
			return err
		}
	}
}

func try(ctx context.Context, client *http.Client, w wire) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, w.SessionURL, nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("Authorization", "Bearer "+string(w.EndToken))
	resp, err := client.Do(req)
	if err != nil {
		return true, err
	}
	_ = resp.Body.Close()
	switch code := resp.StatusCode; {
	case code >= 200 && code < 300:
		return false, nil
	default:
		return code == http.StatusTooManyRequests || code >= 500, fmt.Errorf("the broker answered %d", code)
	}
}
