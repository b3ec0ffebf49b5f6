package brokercli

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// inProcess hands a client's requests to a handler in this process. There is
// no address by which another process could reach it.
type inProcess struct {
	handler http.Handler
	// before is called before an answer is given, which its error withholds.
	before func(context.Context) error
}

// RoundTrip implements [http.RoundTripper]. An answer is streamed: its body
// can be read while the handler writes it, and closing it ends the request's
// context for the handler.
func (p inProcess) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(req.Context())
	in := req.Clone(ctx)
	in.URL = &url.URL{Path: req.URL.Path, RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery}
	in.RequestURI = req.URL.RequestURI()
	in.Host = cmp.Or(req.Host, req.URL.Host)
	in.RemoteAddr = "127.0.0.1:0" // this process: one address for its limits
	if in.Body == nil {
		in.Body = http.NoBody
	}
	r, w := io.Pipe()
	a := &answer{header: http.Header{}, body: w, begun: make(chan struct{})}
	go func() {
		defer func() { _ = in.Body.Close() }()
		a.end(handle(p.handler, a, in))
	}()
	body := &answerBody{r, cancel}
	select {
	case <-a.begun:
	case <-req.Context().Done():
		_ = body.Close()
		return nil, context.Cause(req.Context())
	}
	if a.failed != nil {
		_ = body.Close()
		return nil, a.failed
	}
	if err := p.before(ctx); err != nil {
		_ = body.Close()
		return nil, err
	}
	return &http.Response{
		Status: http.StatusText(a.status), StatusCode: a.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.sent, Body: body, ContentLength: -1, Request: req,
	}, nil
}

// errPanicked is all that is told of a handler's panic: its text may hold
// anything.
var errPanicked = errors.New("the broker panicked")

func handle(h http.Handler, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if recover() != nil {
			err = errPanicked
		}
	}()
	h.ServeHTTP(w, r)
	return nil
}

// answer is a handler's [http.ResponseWriter].
type answer struct {
	header http.Header
	body   *io.PipeWriter
	once   sync.Once
	begun  chan struct{} // closed once what follows is set
	sent   http.Header
	status int
	failed error
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	a.once.Do(func() {
		a.status, a.sent = status, a.header.Clone()
		close(a.begun)
	})
}

func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(b)
}

// Flush and the deadlines are what [http.ResponseController] asks for. Each
// write is read at once, by this process, or given up with the body.
func (a *answer) Flush() { a.WriteHeader(http.StatusOK) }

func (*answer) SetReadDeadline(time.Time) error  { return nil }
func (*answer) SetWriteDeadline(time.Time) error { return nil }

func (a *answer) end(err error) {
	a.once.Do(func() {
		a.status, a.sent, a.failed = http.StatusOK, a.header.Clone(), err
		close(a.begun)
	})
	_ = a.body.CloseWithError(err) // it never fails; nil is the end of the body
}

// answerBody ends the request's context when it is closed.
type answerBody struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (b *answerBody) Close() error {
	b.cancel()
	return b.PipeReader.Close()
}
