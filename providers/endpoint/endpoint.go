// Package endpoint is how providers reach their back ends over HTTP: which
// addresses they take, whom they trust there, and their pool of connections.
//
// It refuses plain http to anything but this machine, and knows no proxy: what
// a back end answers is for the broker's process alone.
package endpoint

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"
)

// maxCAFileBytes bounds a file of authorities: a whole system's bundle has
// about 250 KiB.
const maxCAFileBytes = 1 << 20

// Check wants an https origin; http to a loopback literal alone, whose packets
// stay on this machine. The error goes on where the name of the key stands, and
// names example for one that is right.
func Check(origin, example string) error {
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" || u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Opaque != "" || strings.Contains(origin, "#") {
		return fmt.Errorf("isn't an origin, such as %s", example)
	}
	switch u.Scheme {
	case "https":
		return nil
	case "http":
		if ip, err := netip.ParseAddr(u.Hostname()); err == nil && ip.IsLoopback() {
			return nil
		}
		return errors.New("is plain http: everybody on the way could read what comes from there; use https (http only to 127.0.0.1)")
	}
	return errors.New("is neither https nor http to a loopback address")
}

// Roots are the authorities in a PEM file that the key `ca_file` names; nil,
// which stands for the system's, without a file.
func Roots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("`ca_file`: %w", err)
	}
	defer func() { _ = f.Close() }()
	pem, err := io.ReadAll(io.LimitReader(f, maxCAFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("`ca_file` %s: %w", file, err)
	}
	if len(pem) > maxCAFileBytes {
		return nil, fmt.Errorf("`ca_file` %s: larger than %d bytes", file, maxCAFileBytes)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("`ca_file` %s holds no certificate in PEM", file)
	}
	return pool, nil
}

// Transport is one provider's pool of connections, shared by its sessions. idle
// is how long one is kept that nobody uses: less than the back end keeps it.
func Transport(tlsConfig *tls.Config, idle time.Duration) *http.Transport {
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    5 * time.Second,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           64,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        idle,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
	}
}
