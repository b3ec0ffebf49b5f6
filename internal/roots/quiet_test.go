package roots

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"syscall"
	"testing"
)

func TestT18Quiet(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	cancel(stopped)
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	for _, tt := range []struct {
		ctx       context.Context
		err, want error
	}{
		{t.Context(), errors.New(`malformed HTTP response "c4n4ry"`), errUnreadable},
		{t.Context(), &url.Error{Op: "Get", URL: "http://c4n4ry", Err: errors.New("c4n4ry")}, errUnreadable},
		{t.Context(), &url.Error{Op: "Get", URL: "http://c4n4ry", Err: refused}, refused},
		{t.Context(), fmt.Errorf("c4n4ry: %w", io.ErrUnexpectedEOF), io.ErrUnexpectedEOF},
		{t.Context(), fmt.Errorf("c4n4ry: %w", context.DeadlineExceeded), context.DeadlineExceeded},
		{t.Context(), stopped, errUnreadable},
		{ctx, fmt.Errorf("c4n4ry: %w", stopped), stopped},
		{ctx, errors.New("c4n4ry"), errUnreadable},
	} {
		if got := Quiet(tt.ctx, tt.err); got != tt.want { //nolint:errorlint // the error itself and nothing around it, which could quote
			t.Errorf("Quiet(%v) = %v, want %v", tt.err, got, tt.want)
		}
	}
}

// Whoever must go through a proxy learns that it said no, and not in its words.
func TestProxySaysNo(t *testing.T) {
	t.Parallel()
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 407 c4n4ry\r\nContent-Length: 0\r\n\r\n")
		_ = conn.Close()
	}))
	defer proxy.Close()
	address, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	tr := transport(nil)
	tr.Proxy = http.ProxyURL(address)
	answer, err := (&http.Client{Transport: tr}).Get("https://runenv.example.com")
	if err == nil {
		_ = answer.Body.Close()
		t.Fatal("no error")
	}
	if got := Quiet(t.Context(), err).Error(); !strings.Contains(got, "the proxy answered HTTP status 407") || strings.Contains(got, "c4n4ry") {
		t.Errorf("Quiet = %q", got)
	}
}
