package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	maxDiscoveryBytes = 64 << 10
	maxKeySetBytes    = 512 << 10

	// maxDiscoveryMembers bounds the members of a discovery document.
	maxDiscoveryMembers = 500

	// requestTimeout bounds each of the two requests of a fetch, in whole.
	requestTimeout = 5 * time.Second
)

// A fetcher gets one issuer's keys by OpenID Connect discovery. It follows no
// redirect, uses no proxy, and connects only to addresses that a CI's issuer
// may have.
type fetcher struct {
	issuer     *url.URL
	algorithms []string
	client     *http.Client
}

// newFetcher takes the issuer's URL as checked by [checkIssuerURL].
func newFetcher(issuer *url.URL, algorithms []string, allow []netip.Prefix, roots *x509.CertPool, loopback bool) *fetcher {
	dialer := &net.Dialer{
		Timeout: requestTimeout,
		// Called with the address itself, after names were resolved: a name
		// that resolves otherwise the second time gains nothing.
		Control: func(_, address string, _ syscall.RawConn) error {
			addr, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("connecting to an address that can't be read: %w", err)
			}
			return checkAddr(addr.Addr(), allow, loopback)
		},
	}
	return &fetcher{
		issuer:     issuer,
		algorithms: algorithms,
		client: &http.Client{
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				Proxy:                  nil,
				DialContext:            dialer.DialContext,
				TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
				MaxResponseHeaderBytes: 16 << 10,
				DisableCompression:     true,
				DisableKeepAlives:      true, // the next fetch is minutes away
			},
		},
	}
}

// keys makes exactly two requests, or one if discovery fails.
func (f *fetcher) keys(ctx context.Context) ([]publicKey, error) {
	discovery := strings.TrimSuffix(f.issuer.String(), "/") + "/.well-known/openid-configuration"
	doc, err := f.get(ctx, discovery, maxDiscoveryBytes)
	if err != nil {
		return nil, fmt.Errorf("fetching discovery: %w", err)
	}
	keysURL, err := f.keysURL(doc)
	if err != nil {
		return nil, fmt.Errorf("reading discovery: %w", err)
	}
	doc, err = f.get(ctx, keysURL, maxKeySetBytes)
	if err != nil {
		return nil, fmt.Errorf("fetching keys: %w", err)
	}
	return parseKeys(doc, f.algorithms)
}

// keysURL finds the key set's URL in a discovery document. Documents that
// speak for another issuer, or send us to another host, are refused.
func (f *fetcher) keysURL(doc []byte) (string, error) {
	object, err := strictObject(doc, maxDiscoveryMembers)
	if err != nil {
		return "", err
	}
	if object["issuer"] != f.issuer.String() {
		return "", errors.New("its issuer isn't the one asked")
	}
	text, ok := boundedText(object["jwks_uri"], 2<<10)
	if !ok {
		return "", errors.New("no jwks_uri")
	}
	u, err := url.Parse(text)
	if err != nil || u.User != nil || u.Fragment != "" || u.Opaque != "" {
		return "", errors.New("its jwks_uri isn't a plain URL")
	}
	if u.Scheme != f.issuer.Scheme || !strings.EqualFold(u.Host, f.issuer.Host) {
		return "", errors.New("its jwks_uri is at another origin")
	}
	return u.String(), nil
}

func (f *fetcher) get(ctx context.Context, target string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "runenv-broker")
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("answered with status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("answered with more than %d bytes", limit)
	}
	return body, nil
}

// refused are networks in which no issuer lives unless the operator says so.
// https://www.iana.org/assignments/iana-ipv4-special-registry
// https://www.iana.org/assignments/iana-ipv6-special-registry
var refused = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // carrier-grade NAT, some clouds' metadata
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("168.63.129.16/32"), // Azure's host, seen from its machines
	netip.MustParsePrefix("169.254.0.0/16"),   // metadata services
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("224.0.0.0/3"), // multicast, reserved, broadcast

	// Of IPv6 only 2000::/3 is global unicast; NAT64 (64:ff9b::/96), ULA,
	// link-local, multicast and the rest lie outside. See checkAddr.
	netip.MustParsePrefix("2001::/23"), // Teredo and other protocols: may wrap an IPv4 address
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), // 6to4: wraps an IPv4 address
	netip.MustParsePrefix("3fff::/20"),
}

var globalIPv6 = netip.MustParsePrefix("2000::/3")

var errAddress = errors.New("address isn't public, and not in the issuer's allow_networks")

// checkAddr says whether an issuer may have this address.
func checkAddr(addr netip.Addr, allow []netip.Prefix, loopback bool) error {
	addr = addr.Unmap().WithZone("")
	contains := func(p netip.Prefix) bool { return p.Contains(addr) }
	switch {
	case slices.ContainsFunc(allow, contains):
		return nil
	case loopback && addr.IsLoopback():
		return nil
	case loopback:
		return errAddress
	case slices.ContainsFunc(refused, contains):
		return errAddress
	case addr.Is6() && !globalIPv6.Contains(addr):
		return errAddress
	}
	return nil
}

// checkIssuerURL takes https URLs in their one spelling: tokens name their
// issuer by it, byte for byte. With loopback it takes instead http URLs whose
// host is a literal loopback address.
func checkIssuerURL(text string, loopback bool) (*url.URL, error) {
	if len(text) > maxIssuerBytes {
		return nil, fmt.Errorf("longer than %d bytes", maxIssuerBytes)
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("not a URL")
	}
	if u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" ||
		u.Opaque != "" || u.String() != text || u.Host != strings.ToLower(u.Host) {
		return nil, errors.New("not a plain URL: lower-case host, no user, query or fragment")
	}
	if loopback {
		addr, err := netip.ParseAddr(u.Hostname())
		if u.Scheme != "http" || err != nil || !addr.Unmap().IsLoopback() {
			return nil, errors.New("not http on a loopback address such as 127.0.0.1")
		}
		return u, nil
	}
	if u.Scheme != "https" {
		return nil, errors.New("not https")
	}
	return u, nil
}
