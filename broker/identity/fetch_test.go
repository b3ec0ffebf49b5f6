package identity

import (
	"context"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/runenv/action/broker/identity/identitytest"
	"github.com/runenv/action/secret"
)

func bigInt(b []byte) *big.Int { return new(big.Int).SetBytes(b) }

// A trap counts the connections that it gets.
type trap struct {
	url, port string
	hits      atomic.Int64
}

func newTrap(t *testing.T) *trap {
	t.Helper()
	tr := &trap{}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			tr.hits.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	tr.url = server.URL
	tr.port = server.URL[strings.LastIndexByte(server.URL, ':'):]
	return tr
}

func TestT01AnUnknownIssuerCostsNoNetworkCall(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	tr := newTrap(t)
	for _, iss := range []string{
		tr.url, tr.url + "/", strings.Replace(tr.url, "http:", "https:", 1),
		strings.Replace(tr.url, "127.0.0.1", "localhost", 1),
		w.URL + "/", w.URL + "/acme", w.URL + "?x", w.URL + "#", w.URL + "@" + strings.TrimPrefix(tr.url, "http://"),
		strings.ToUpper(w.URL), " " + w.URL, strings.TrimPrefix(w.URL, "http://"),
		"http://169.254.169.254/latest", "file:///etc/passwd", "gopher://" + strings.TrimPrefix(tr.url, "http://"),
	} {
		w.wantReason(t, w.Sign(w.GitHub(brokerURL, object{"iss": iss})), ReasonIssuerUnknown)
	}
	if own, theirs := w.Hits(), tr.hits.Load(); own != 0 || theirs != 0 {
		t.Errorf("%d requests to the issuer and %d to the trap, want none", own, theirs)
	}
}

func TestT01TheIssuersTableDoesntReachInside(t *testing.T) {
	t.Parallel()
	tr := newTrap(t)
	c := newClock()
	signer := identitytest.New(t)
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0.0.0.0", "[::]", "127.1.2.3"} {
		url := "https://" + host + tr.port
		v := newTestVerifier(t, c, IssuerConfig{Name: "inside", Profile: "github", URL: url})
		token := signer.Sign(signer.GitHub(brokerURL, object{"iss": url}))
		_, err := v.Verify(context.Background(), secret.FromString(token))
		if got := reasonOf(t, err); got != ReasonKeysUnavailable {
			t.Errorf("%s: Verify = %v, want reason %q", host, err, ReasonKeysUnavailable)
		}
		if err == nil || !strings.Contains(err.Error(), errAddress.Error()) {
			t.Errorf("%s: Verify = %v, want it to name the address as the cause", host, err)
		}
	}
	if got := tr.hits.Load(); got != 0 {
		t.Errorf("the trap got %d connections, want 0", got)
	}
}

func TestT01RedirectsArentFollowed(t *testing.T) {
	t.Parallel()
	tr := newTrap(t)
	w := newWorld(t, "github")
	w.Redirect(tr.url)
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), ReasonKeysUnavailable)

	// Nor within the issuer's own origin.
	own := newWorld(t, "github")
	own.Fail(func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, own.URL+"/elsewhere", http.StatusMovedPermanently)
	})
	own.wantReason(t, own.Sign(own.GitHub(brokerURL)), ReasonKeysUnavailable)
	if hits := own.Hits(); hits != 1 {
		t.Errorf("%d requests, want 1", hits)
	}
	if got := tr.hits.Load(); got != 0 {
		t.Errorf("the trap got %d connections, want 0", got)
	}
}

func TestT01DiscoveryCantSendUsElsewhere(t *testing.T) {
	t.Parallel()
	tr := newTrap(t)
	for name, change := range map[string]func(w *world) object{
		"keys at another port":       func(*world) object { return object{"jwks_uri": tr.url + "/jwks"} },
		"keys at another host":       func(*world) object { return object{"jwks_uri": "http://localhost" + tr.port} },
		"keys by https":              func(w *world) object { return object{"jwks_uri": strings.Replace(w.URL, "http:", "https:", 1)} },
		"keys in a file":             func(*world) object { return object{"jwks_uri": "file:///etc/passwd"} },
		"keys without a host":        func(*world) object { return object{"jwks_uri": "/jwks"} },
		"keys at a user's":           func(w *world) object { return object{"jwks_uri": strings.Replace(w.URL, "//", "//u:p@", 1)} },
		"keys by a list":             func(w *world) object { return object{"jwks_uri": []string{w.URL}} },
		"no keys":                    func(*world) object { return object{"jwks_uri": nil} },
		"in another issuer's name":   func(*world) object { return object{"issuer": "https://token.actions.githubusercontent.com"} },
		"in our name and more":       func(w *world) object { return object{"issuer": w.URL + "/"} },
		"in nobody's name":           func(*world) object { return object{"issuer": nil} },
		"in two names":               func(w *world) object { return object{"Issuer": "https://evil.example.com"} },
		"with the keys' URL doubled": func(*world) object { return object{"JWKS_URI": tr.url} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "github")
			w.SetDiscovery(w.Discovery(change(w)))
			w.wantReason(t, w.Sign(w.GitHub(brokerURL)), ReasonKeysUnavailable)
			if got := w.Hits(); got != 1 {
				t.Errorf("%d requests, want 1", got)
			}
		})
	}
	t.Cleanup(func() {
		if got := tr.hits.Load(); got != 0 {
			t.Errorf("the trap got %d connections, want 0", got)
		}
	})
}

func TestT01BodiesAreBounded(t *testing.T) {
	t.Parallel()
	pad := func(doc []byte, size int) []byte {
		return append(doc, strings.Repeat(" ", size-len(doc))...)
	}
	tests := []struct {
		name string
		set  func(w *world)
		want string
	}{
		{"discovery of 64 KiB", func(w *world) { w.SetDiscovery(pad(w.Discovery(nil), maxDiscoveryBytes)) }, ""},
		{"discovery over it", func(w *world) { w.SetDiscovery(pad(w.Discovery(nil), maxDiscoveryBytes+1)) }, ReasonKeysUnavailable},
		{"keys of 512 KiB", func(w *world) { w.SetJWKS(pad(w.JWKS(), maxKeySetBytes)) }, ""},
		{"keys over it", func(w *world) { w.SetJWKS(pad(w.JWKS(), maxKeySetBytes+1)) }, ReasonKeysUnavailable},
		{"a body without end", func(w *world) {
			w.Fail(func(rw http.ResponseWriter, _ *http.Request) {
				for {
					if _, err := rw.Write(make([]byte, 4<<10)); err != nil {
						return
					}
				}
			})
		}, ReasonKeysUnavailable},
		{"headers of 128 KiB", func(w *world) {
			w.Fail(func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("X", strings.Repeat("x", 1<<17))
				doc := w.JWKS()
				if strings.HasSuffix(r.URL.Path, "/openid-configuration") {
					doc = w.Discovery(nil)
				}
				_, _ = rw.Write(doc)
			})
		}, ReasonKeysUnavailable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "github")
			tt.set(w)
			w.wantReason(t, w.Sign(w.GitHub(brokerURL)), tt.want)
		})
	}
}

func TestT01Addresses(t *testing.T) {
	t.Parallel()
	refusedAddrs := []string{
		"127.0.0.1", "127.255.255.255", "::1", "0.0.0.0", "::", "0.1.2.3",
		"10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255",
		"169.254.169.254", "fe80::1", "fe80::1%eth0", "fec0::1", "fd00:ec2::254", "fc00::1",
		"168.63.129.16", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
		"224.0.0.1", "240.0.0.1", "255.255.255.255", "ff02::1",
		"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
		"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "64:ff9b:1::1",
		"2002:7f00:1::", "2001::1", "2001:db8::1", "100::1", "5f00::1",
	}
	for _, a := range refusedAddrs {
		if err := checkAddr(netip.MustParseAddr(a), nil, false); err == nil {
			t.Errorf("checkAddr(%s) = nil, want a refusal", a)
		}
	}
	for _, a := range []string{"140.82.112.3", "172.32.0.1", "100.128.0.1", "8.8.8.8", "::ffff:8.8.8.8", "2606:50c0:8000::153", "2001:4860:4860::8888"} {
		if err := checkAddr(netip.MustParseAddr(a), nil, false); err != nil {
			t.Errorf("checkAddr(%s) = %v, want nil", a, err)
		}
		if err := checkAddr(netip.MustParseAddr(a), nil, true); err == nil {
			t.Errorf("checkAddr(%s) of a loopback issuer = nil, want a refusal", a)
		}
	}
	allow := []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("fd12::/16")}
	for a, want := range map[string]bool{
		"10.20.1.1": true, "::ffff:10.20.1.1": true, "fd12::1": true, "10.21.0.1": false, "fd13::1": false,
		"127.0.0.1": false, "64:ff9b::a14:101": false, "8.8.8.8": true,
	} {
		if err := checkAddr(netip.MustParseAddr(a), allow, false); (err == nil) != want {
			t.Errorf("checkAddr(%s) with %v = %v, want allowed: %v", a, allow, err, want)
		}
	}
}

func TestT01ATLSIssuerInAnAllowedNetwork(t *testing.T) {
	t.Parallel()
	c := newClock()
	iss := identitytest.NewTLS(t)
	iss.SetNow(c.now)
	good := IssuerConfig{Name: "ghes", Profile: "github", URL: iss.URL, AllowNetworks: iss.Networks, RootCAs: iss.RootCAs}
	w := &world{Issuer: iss, clock: c, verifier: newTestVerifier(t, c, good)}
	w.wantReason(t, iss.Sign(iss.GitHub(brokerURL)), "")

	untrusted := good
	untrusted.RootCAs = nil
	w.verifier = newTestVerifier(t, c, untrusted)
	w.wantReason(t, iss.Sign(iss.GitHub(brokerURL)), ReasonKeysUnavailable)

	inside := good
	inside.AllowNetworks = nil
	w.verifier = newTestVerifier(t, c, inside)
	before := iss.Hits()
	w.wantReason(t, iss.Sign(iss.GitHub(brokerURL)), ReasonKeysUnavailable)
	if got := iss.Hits() - before; got != 0 {
		t.Errorf("%d requests, want 0", got)
	}
}

func TestT01NoProxyIsAsked(t *testing.T) {
	t.Parallel()
	// The proxy of the environment is never used towards loopback, so no
	// server of a test could show it.
	transport, ok := newFetcher(nil, nil, nil, nil, false).client.Transport.(*http.Transport)
	if !ok || transport.Proxy != nil {
		t.Errorf("the transport is %+v, want one without a proxy function", transport)
	}
}
