package roots

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// server is a TLS server and the PEM file of its certificate.
func server(t *testing.T) (*httptest.Server, string) {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(append([]byte(r.Proto+" "), body...))
	}))
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	t.Cleanup(srv.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(file, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return srv, file
}

func knowing(pool *x509.CertPool) func() http.RoundTripper {
	return func() http.RoundTripper { return transport(pool) }
}

func post(rt http.RoundTripper, url string) (string, error) {
	resp, err := (&http.Client{Transport: rt}).Post(url, "text/plain", strings.NewReader("hello"))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func TestBundleIsTrusted(t *testing.T) {
	t.Parallel()
	srv, file := server(t)
	env := func(name string) string {
		if name == "SSL_CERT_FILE" {
			return file
		}
		return ""
	}
	for name, rt := range map[string]http.RoundTripper{
		"by its usual place": newSystem(func(string) string { return "" }, []string{filepath.Join(t.TempDir(), "none"), file}),
		"by SSL_CERT_FILE":   newSystem(env, []string{filepath.Join(t.TempDir(), "none")}),
	} {
		got, err := post(rt, srv.URL)
		if runtime.GOOS != "linux" {
			continue // the system's own verifier decides there
		}
		if err != nil || got != "HTTP/1.1 hello" {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

// The handshake fails under the bundle; the whole system's answer counts, and
// gets the body.
func TestUnknownAuthorityAsksTheWholeSystem(t *testing.T) {
	t.Parallel()
	srv, _ := server(t)
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	s := &system{bundle: knowing(x509.NewCertPool()), whole: transport(pool)}
	for range 2 {
		if got, err := post(s, srv.URL); err != nil || got != "HTTP/1.1 hello" {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	if !s.needsWhole.Load() {
		t.Error("the bundle is still asked first")
	}
}

// What neither knows stays refused.
func TestUnknownToBothIsRefused(t *testing.T) {
	t.Parallel()
	srv, _ := server(t)
	s := &system{bundle: knowing(x509.NewCertPool()), whole: transport(x509.NewCertPool())}
	_, err := post(s, srv.URL)
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
		t.Errorf("got %v, want an unknown authority", err)
	}
}

// A certificate that is wrong in another way isn't taken to the system.
func TestOtherFailuresArentRetried(t *testing.T) {
	t.Parallel()
	srv, file := server(t)
	s, ok := newSystem(func(string) string { return "" }, []string{file}).(*system)
	if !ok {
		return // not Linux
	}
	_, err := post(s, strings.Replace(srv.URL, "127.0.0.1", "localhost", 1))
	if _, ok := errors.AsType[x509.HostnameError](err); !ok {
		t.Errorf("got %v, want a name that doesn't match", err)
	}
	if s.needsWhole.Load() {
		t.Error("the whole system was asked")
	}
}

// Whoever takes the connection and says nothing is named for that: the context's
// error would tell of a limit of the caller's.
func TestHandshakeThatIsntAnsweredIsTold(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	dial := dialTLS(&tls.Dialer{NetDialer: &net.Dialer{Timeout: 50 * time.Millisecond}})
	_, err = dial(t.Context(), "tcp", silent.Addr().String())
	if err == nil {
		t.Fatal("connected")
	}
	if got, want := Quiet(t.Context(), err).Error(), "TLS handshake tcp: i/o timeout"; got != want {
		t.Errorf("the error is %q, want %q", got, want)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err = dial(ctx, "tcp", silent.Addr().String()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the caller's limit is told as %v", err)
	}
}
