package harness

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
)

// maxRecordedBytes bounds what is kept of one body.
const maxRecordedBytes = 4 << 20

// A Proxy stands before a component, with a certificate by [CA]. It passes
// requests on, keeps what was said, and does what networks and failing
// servers do, where a test asks for that.
type Proxy struct {
	URL string // https://127.0.0.1:…

	closing chan struct{}

	mu        sync.Mutex
	meddle    func(*http.Request) Fault
	exchanges []*exchange
}

// An Exchange is one request and its answer so far.
type Exchange struct {
	Method, Path string
	Request      http.Header
	RequestBody  []byte
	Status       int // 0: not answered yet
	Answer       http.Header
	AnswerBody   []byte
}

type exchange struct {
	mu sync.Mutex
	Exchange
}

// A Fault is what happens to a request. The zero Fault passes it on.
type Fault struct {
	// Hold keeps the request until it is closed.
	Hold <-chan struct{}
	// Status and Body are the answer, in the component's stead.
	Status int
	Body   string
	// Cut breaks the connection in the component's stead.
	Cut bool
	// HoldAnswer keeps the component's answer until it is closed.
	HoldAnswer <-chan struct{}
	// CutAnswer breaks the connection when the component has answered.
	CutAnswer bool
}

type proxied struct {
	to    *exchange
	fault Fault
}

type proxiedKey struct{}

// NewProxy starts one. target gives the component's origin; it is asked at
// each request, so that the component may start later.
func NewProxy(tb testing.TB, target func() string) *Proxy {
	tb.Helper()
	c := authority(tb)
	p := &Proxy{closing: make(chan struct{})}
	upstream := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: c.pool, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true,
		// A connection that is kept would be one that breaks when the
		// component restarts, which isn't what is being tested here.
		DisableKeepAlives: true,
	}
	pass := &httputil.ReverseProxy{
		Transport:     upstream,
		FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			if u, err := url.Parse(target()); err == nil {
				r.SetURL(u)
			}
			r.Out.Host = r.In.Host
		},
		ModifyResponse: p.answered,
		// Whoever asks sees a broken connection where the component has one.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ErrorLog:     discardLog(),
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.serve(w, r, pass)
	}))
	server.TLS = c.serverConfig()
	server.EnableHTTP2 = true
	server.Config.ErrorLog = discardLog()
	server.StartTLS()
	p.URL = server.URL
	tb.Cleanup(func() {
		close(p.closing)
		server.CloseClientConnections()
		server.Close()
	})
	return p
}

// Meddle has f say what happens to each request from now on; nil lets all
// pass. f is called from several goroutines.
func (p *Proxy) Meddle(f func(*http.Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.meddle = f
}

// Exchanges is what was said so far.
func (p *Proxy) Exchanges() []Exchange {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Exchange, len(p.exchanges))
	for i, e := range p.exchanges {
		e.mu.Lock()
		out[i] = e.Exchange
		out[i].AnswerBody = bytes.Clone(e.AnswerBody)
		e.mu.Unlock()
	}
	return out
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRecordedBytes))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	e := &exchange{Exchange: Exchange{Method: r.Method, Path: r.URL.Path, Request: r.Header.Clone(), RequestBody: body}}
	p.mu.Lock()
	p.exchanges = append(p.exchanges, e)
	meddle := p.meddle
	p.mu.Unlock()
	var f Fault
	if meddle != nil {
		f = meddle(r)
	}
	p.wait(r.Context(), f.Hold)
	switch {
	case f.Cut:
		panic(http.ErrAbortHandler)
	case f.Status != 0:
		e.mu.Lock()
		e.Status, e.AnswerBody = f.Status, []byte(f.Body)
		e.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(f.Status)
		_, _ = io.WriteString(w, f.Body)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	pass.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), proxiedKey{}, proxied{e, f})))
}

var errCut = errors.New("the answer is cut off")

func (p *Proxy) answered(resp *http.Response) error {
	about, ok := resp.Request.Context().Value(proxiedKey{}).(proxied)
	if !ok {
		return errCut
	}
	to, f := about.to, about.fault
	to.mu.Lock()
	to.Status, to.Answer = resp.StatusCode, resp.Header.Clone()
	to.mu.Unlock()
	resp.Body = &recorded{resp.Body, to}
	if f.HoldAnswer == nil && !f.CutAnswer {
		return nil
	}
	// The component is done with it when its answer is whole.
	whole, err := io.ReadAll(io.LimitReader(resp.Body, maxRecordedBytes))
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(whole))
	p.wait(resp.Request.Context(), f.HoldAnswer)
	if f.CutAnswer {
		return errCut
	}
	return nil
}

// wait waits for the end of a hold, of the request or of the proxy.
func (p *Proxy) wait(ctx context.Context, hold <-chan struct{}) {
	if hold == nil {
		return
	}
	select {
	case <-hold:
	case <-ctx.Done():
	case <-p.closing:
	}
}

// recorded keeps what is read of an answer.
type recorded struct {
	io.ReadCloser
	to *exchange
}

func (r *recorded) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	r.to.mu.Lock()
	defer r.to.mu.Unlock()
	if len(r.to.AnswerBody) < maxRecordedBytes {
		r.to.AnswerBody = append(r.to.AnswerBody, b[:n]...)
	}
	return n, err
}
