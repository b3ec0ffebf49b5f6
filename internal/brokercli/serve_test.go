package brokercli

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/broker/config"
)

var day = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// writeCertificate writes tls.crt and tls.key: valid for a day, for the names.
func writeCertificate(t *testing.T, dir string, names ...string) *config.TLS {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: names,
		NotBefore: day, NotAfter: day.Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	out := &config.TLS{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	for path, block := range map[string]*pem.Block{out.Cert: {Type: "CERTIFICATE", Bytes: der}, out.Key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestCertificateWarns(t *testing.T) {
	t.Parallel()
	var cert certificate
	if err := cert.load(writeCertificate(t, t.TempDir(), "runenv.example.com")); err != nil {
		t.Fatal(err)
	}
	const url = "https://runenv.example.com"
	tests := []struct {
		name, url string
		now       time.Time
		want      string // empty: no warning
	}{
		{"valid", url, day.Add(time.Hour), ""},
		{"with a port", url + ":8443", day.Add(time.Hour), ""},
		{"an address", "https://[::1]:8443", day.Add(time.Hour), ""},
		{"its last second", url, day.Add(24 * time.Hour), ""},
		{"expired", url, day.Add(24*time.Hour + time.Second), "the certificate has expired"},
		{"not valid yet", url, day.Add(-time.Second), "the certificate isn't valid yet"},
		{"another host", "https://other.example.com", day.Add(time.Hour), "the certificate isn't one for the host of `url`"},
		{"the parent domain", "https://example.com", day.Add(time.Hour), "the certificate isn't one for the host of `url`"},
	}
	for _, tt := range tests {
		var log bytes.Buffer
		cert.warn(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), tt.url, tt.now)
		if got := log.String(); (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) || strings.Count(got, "level=WARN") > 1 {
			t.Errorf("%s: the log says %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestCertificateRefuses(t *testing.T) {
	t.Parallel()
	good := writeCertificate(t, t.TempDir(), "a.example.com")
	other := writeCertificate(t, t.TempDir(), "a.example.com")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string]*config.TLS{
		"no certificate":       {Cert: filepath.Join(t.TempDir(), "none"), Key: good.Key},
		"no key":               {Cert: good.Cert, Key: filepath.Join(t.TempDir(), "none")},
		"an empty file":        {Cert: empty, Key: good.Key},
		"another's key":        {Cert: good.Cert, Key: other.Key},
		"the two mistaken":     {Cert: good.Key, Key: good.Cert},
		"the key in its stead": {Cert: good.Key, Key: good.Key},
	} {
		var cert certificate
		err := cert.load(pair)
		if err == nil || !strings.HasPrefix(err.Error(), "tls: ") || !strings.HasPrefix(hintOf(err), "cert is the chain in PEM") {
			t.Errorf("%s: load = %v, hint %q", name, err, hintOf(err))
		}
		if cert.current.Load() != nil {
			t.Errorf("%s: it is in force", name)
		}
	}
}

// A reload puts file and certificate in force together, or neither.
func TestReloadAll(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "broker.yaml")
	text := strings.NewReplacer(
		"url: http://127.0.0.1:8098", "url: https://runenv.example.com",
		`store: "memory:"`, "store: sqlite:"+filepath.Join(dir, "store", "broker.db")+"\nseal: ${env:SEAL}\ntls: {cert: tls.crt, key: tls.key}",
		`"http://127.0.0.1:8099"`, "https://token.actions.githubusercontent.com",
		"token: c4n4ry-value", `token: "${env:VALUE}"`,
	).Replace(local)
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(text)
	if err := os.Mkdir(filepath.Join(dir, "store"), 0o700); err != nil {
		t.Fatal(err)
	}
	env := testEnv("VALUE=c4n4ry-value")
	file, err := load(env, path, mode{})
	if err != nil {
		t.Fatal(err)
	}
	var cert certificate
	if err := cert.load(writeCertificate(t, dir, "runenv.example.com")); err != nil {
		t.Fatal(err)
	}
	w, err := assemble(t.Context(), env, file, mode{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	first, firstCert := w.inForce(), cert.current.Load()

	// A new certificate beside a broken file: neither.
	pair := writeCertificate(t, dir, "runenv.example.com")
	write(text + "nonsense: c4n4ry\n")
	if err := reloadAll(t.Context(), env, path, w, &cert); err == nil || strings.Contains(err.Error(), "c4n4ry") {
		t.Errorf("reloadAll of a broken file = %v, want an error without its text", err)
	}
	if w.inForce() != first || cert.current.Load() != firstCert {
		t.Error("a broken file changed something")
	}

	// A good file beside a broken certificate: neither.
	key, err := os.ReadFile(pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pair.Key, key[:len(key)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	write(text + "# another\n")
	if err := reloadAll(t.Context(), env, path, w, &cert); err == nil || hintOf(err) == "" {
		t.Errorf("reloadAll with half a key = %v, want an error with a hint", err)
	}
	if w.inForce() != first || cert.current.Load() != firstCert {
		t.Error("a broken certificate changed something")
	}

	// Both good: both.
	writeCertificate(t, dir, "runenv.example.com")
	if err := reloadAll(t.Context(), env, path, w, &cert); err != nil {
		t.Fatal(err)
	}
	if w.inForce() == first || cert.current.Load() == firstCert {
		t.Error("a good reload left something as it was")
	}
	if got, err := cert.get(nil); err != nil || got != cert.current.Load() {
		t.Errorf("a handshake gets another certificate: %v", err)
	}
}

func TestListenHints(t *testing.T) {
	t.Parallel()
	l, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for addr, want := range map[string]string{
		l.Addr().String(): "stop what uses this address",
		"192.0.2.1:8443":  "this machine has no such address",
	} {
		_, err := listen(t.Context(), addr)
		if err == nil || !strings.HasPrefix(err.Error(), "listening: ") || !strings.Contains(hintOf(err), want) {
			t.Errorf("listen(%s) = %v, hint %q, want %q", addr, err, hintOf(err), want)
		}
	}
}

// Serving that fails ends the broker, with the reason.
func TestRunEndsWhenServingFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broken := errors.New("accept: too many open files")
	err := run(t.Context(), w, newServer(w.broker.Handler(), w.log), func() error { return broken })
	if !errors.Is(err, broken) {
		t.Errorf("run = %v, want %v", err, broken)
	}
}
