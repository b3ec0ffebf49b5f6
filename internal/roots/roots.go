// Package roots makes HTTP transports that check a server's certificate
// without reading every root certificate of the system first.
//
// On Linux, crypto/x509 reads the bundle file and then each file of the
// certificate directories, which mostly hold the same again: 10 to 40 ms of a
// short command's life. A transport from here starts with the bundle, which is
// a part of what the system trusts, and asks the whole system when the bundle
// doesn't know the authority. So it never trusts more than the system does.
package roots

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// bundles are the files that crypto/x509 looks for on Linux, in its order.
var bundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Arch, Alpine
	"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora, RHEL 6
	"/etc/ssl/ca-bundle.pem",                            // openSUSE
	"/etc/pki/tls/cacert.pem",                           // OpenELEC
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // CentOS, RHEL 7
	"/etc/ssl/cert.pem",                                 // Alpine
}

// maxBundleBytes bounds the bundle, in bytes. Debian's is 220 KiB.
const maxBundleBytes = 8 << 20

// New returns a transport that trusts what the system trusts, speaks HTTP/1.1
// under TLS 1.2 at least, and goes through the environment's proxy. It notices
// a dead connection within half a minute; behind a proxy, the proxy's alone.
//
// A session makes two or three calls, one after the other, and later holds one
// stream: HTTP/2 would cost both sides more than it gives them.
func New() http.RoundTripper { return newSystem(os.Getenv, bundles) }

// With returns a transport like New's that trusts pool alone.
func With(pool *x509.CertPool) http.RoundTripper { return transport(pool) }

// keepAlive finds a peer that is gone without a word: after 15 seconds of
// silence and three questions.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

func transport(pool *x509.CertPool) *http.Transport {
	dialer, config := &net.Dialer{Timeout: 10 * time.Second, KeepAliveConfig: keepAlive}, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		OnProxyConnectResponse: proxyAnswer,
		DialContext:            dialer.DialContext,
		DialTLSContext:         dialTLS(&tls.Dialer{NetDialer: dialer, Config: config}),
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    10 * time.Second,
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConnsPerHost:    2,
		ExpectContinueTimeout:  time.Second,
	}
}

// dialTLS needs no goroutine for the handshake, as the transport's own way does:
// that one is for what is behind a proxy. Connection and handshake share the
// dialer's timeout.
func dialTLS(d *tls.Dialer) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, address)
		if _, ok := errors.AsType[*net.OpError](err); !ok && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			err = errNoHandshake
		}
		return conn, err
	}
}

// errNoHandshake says more than the context's error, which is the dialer's own.
var errNoHandshake error = &net.OpError{Op: "TLS handshake", Net: "tcp", Err: os.ErrDeadlineExceeded}

func newSystem(getenv func(string) string, files []string) http.RoundTripper {
	whole := transport(nil)
	if runtime.GOOS != "linux" {
		return whole
	}
	if file := getenv("SSL_CERT_FILE"); file != "" {
		files = []string{file}
	}
	return &system{
		// Read when it is needed: many a token is a variable, and many a test
		// speaks plain http.
		bundle: sync.OnceValue(func() http.RoundTripper {
			pool := readFirst(files)
			if pool == nil {
				return whole
			}
			return transport(pool)
		}),
		whole: whole,
	}
}

// readFirst returns the certificates of the first file that can be read, as
// crypto/x509 does; nil if there is none.
func readFirst(files []string) *x509.CertPool {
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		pem, err := io.ReadAll(io.LimitReader(f, maxBundleBytes))
		_ = f.Close() // nothing was written
		pool := x509.NewCertPool()
		if err == nil && pool.AppendCertsFromPEM(pem) {
			return pool
		}
		return nil
	}
	return nil
}

// system tries the bundle, and the whole system once that wasn't enough.
type system struct {
	bundle     func() http.RoundTripper
	whole      http.RoundTripper
	needsWhole atomic.Bool
}

func (s *system) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" || s.needsWhole.Load() {
		return s.whole.RoundTrip(r)
	}
	resp, err := s.bundle().RoundTrip(r)
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); !unknown {
		return resp, err
	}
	s.needsWhole.Store(true)
	if r.Body != nil && r.Body != http.NoBody {
		// The handshake failed, so nobody has seen the body; but the
		// transport has closed it.
		if r.GetBody == nil {
			return nil, err
		}
		body, berr := r.GetBody()
		if berr != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.Body = body
	}
	return s.whole.RoundTrip(r)
}
