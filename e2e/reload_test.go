package e2e_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/e2e/harness"
	"github.com/runenv/action/secret"
)

// tokens are those of a job, for the client in the test's own process.
type tokens struct{ ci *harness.CI }

func (s tokens) Token(_ context.Context, audience string) (secret.Value, error) {
	token, err := s.ci.Issuer.GitHubToken(audience, nil)
	return secret.FromString(token), err
}

// exchange opens a session that lives as long as its first heartbeat timeout.
func (s *site) exchange(t *testing.T, role string) *client.Session {
	t.Helper()
	c, err := client.New(client.Config{URL: s.broker.URL, Source: tokens{s.ci}, CAPEM: harness.CA(t)})
	if err != nil {
		t.Fatal(err)
	}
	session, err := c.Exchange(t.Context(), role)
	if err != nil {
		t.Fatal(err)
	}
	return session
}

func isRefusal(err error, code string) bool {
	refusal, ok := errors.AsType[*api.Error](err)
	return ok && refusal.Code == code
}

// writeCertificate gives the broker a certificate of another authority, its
// own, and returns that authority's path.
func writeCertificate(t *testing.T, dir string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "new certificate"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	ca := filepath.Join(t.TempDir(), "ca.crt")
	for path, content := range map[string][]byte{
		filepath.Join(dir, "tls.crt"): certificate,
		filepath.Join(dir, "tls.key"): pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		ca:                            certificate,
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return ca
}

// breakKey puts something else where the broker's key was.
func breakKey(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "tls.key"), []byte("not a key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// trusting is TLS that trusts an authority alone.
func trusting(t *testing.T, ca string) *tls.Config {
	t.Helper()
	content, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(content)
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

// dial makes a new connection to the broker that trusts an authority alone.
func (s *site) dial(t *testing.T, ca string) error {
	t.Helper()
	u, err := url.Parse(s.broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	d := tls.Dialer{Config: trusting(t, ca)}
	conn, err := d.DialContext(t.Context(), "tcp", u.Host)
	if err != nil {
		return err
	}
	return conn.Close()
}

// connected makes a connection to the broker and returns what makes another
// request over it, and over no other.
func (s *site) connected(t *testing.T) (ask func() error) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: trusting(t, s.broker.CAFile)}
	t.Cleanup(transport.CloseIdleConnections)
	dials := 0
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{ConnectStart: func(string, string) { dials++ }})
	ask = func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.broker.URL+api.PathDiscovery, http.NoBody)
		if err != nil {
			return err
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK || dials != 1 {
			return fmt.Errorf("status %d, over connection number %d", resp.StatusCode, dials)
		}
		return nil
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	return ask
}

// together is a file of several authorities.
func together(t *testing.T, files ...string) string {
	t.Helper()
	var all []byte
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, content...)
	}
	path := filepath.Join(t.TempDir(), "authorities.crt")
	if err := os.WriteFile(path, all, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
