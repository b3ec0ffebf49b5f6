package brokercli

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

func inside(h http.HandlerFunc, before func(context.Context) error) *http.Client {
	if before == nil {
		before = func(context.Context) error { return nil }
	}
	return &http.Client{Transport: inProcess{h, before}}
}

// get closes the body of an answer at the end of the test, if nobody does before.
func get(ctx context.Context, t *testing.T, c *http.Client, body io.Reader) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://runenv.example.com/a%2Fb?x=1", body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err == nil {
		t.Cleanup(func() { _ = resp.Body.Close() })
	}
	return resp, err
}

// failure is why there was no answer.
func failure(ctx context.Context, t *testing.T, c *http.Client) error {
	t.Helper()
	resp, err := get(ctx, t, c, nil)
	if err == nil {
		_ = resp.Body.Close()
	}
	return err
}

// A handler sees what it would behind a server.
func TestInProcessRequest(t *testing.T) {
	t.Parallel()
	c := inside(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil || string(b) != "hello" || r.Host != "runenv.example.com" || r.URL.EscapedPath() != "/a%2Fb" ||
			r.URL.Host != "" || r.URL.Query().Get("x") != "1" || r.RequestURI != "/a%2Fb?x=1" || r.RemoteAddr == "" {
			t.Errorf("the handler gets %q, %v, %+v", b, err, r)
		}
		w.Header().Set("X-Before", "1")
		w.WriteHeader(http.StatusTeapot)
		w.Header().Set("X-After", "1")
		w.WriteHeader(http.StatusOK) // too late
		_, _ = io.WriteString(w, "world")
	}, nil)
	resp, err := get(t.Context(), t, c, strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != "world" || resp.StatusCode != http.StatusTeapot || resp.Header.Get("X-Before") != "1" || resp.Header.Get("X-After") != "" {
		t.Errorf("the client gets %q, %v, %+v", b, err, resp)
	}

	empty := inside(func(_ http.ResponseWriter, r *http.Request) {
		if b, err := io.ReadAll(r.Body); err != nil || len(b) > 0 {
			t.Errorf("no body is %q, %v", b, err)
		}
	}, nil)
	resp, err = get(t.Context(), t, empty, nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("an empty answer = %v, %v", resp, err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || len(b) > 0 {
		t.Errorf("its body = %q, %v", b, err)
	}
	_ = resp.Body.Close()
}

// A stream is read as it is written, and its close is seen by the handler.
func TestInProcessStream(t *testing.T) {
	t.Parallel()
	lines, left := make(chan string), make(chan error)
	c := inside(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		for {
			select {
			case line := <-lines:
				_, err := io.WriteString(w, line+"\n")
				if err = errors.Join(err, rc.Flush()); err != nil {
					t.Error(err)
				}
			case <-r.Context().Done():
				_, err := io.WriteString(w, "late\n")
				left <- err
				return
			}
		}
	}, nil)
	go func() { lines <- "one" }()
	resp, err := get(t.Context(), t, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewScanner(resp.Body)
	for _, want := range []string{"one", "two"} {
		if want == "two" {
			go func() { lines <- "two" }()
		}
		if !r.Scan() || r.Text() != want {
			t.Fatalf("read %q, %v, want %q", r.Text(), r.Err(), want)
		}
	}
	_ = resp.Body.Close()
	if err := <-left; err == nil {
		t.Error("a write after the close went well")
	}
}

func TestInProcessFailures(t *testing.T) {
	t.Parallel()
	// A panic ends the call, and its text goes nowhere.
	c := inside(func(http.ResponseWriter, *http.Request) { panic("c4n4ry") }, nil)
	if err := failure(t.Context(), t, c); !errors.Is(err, errPanicked) || strings.Contains(err.Error(), "c4n4ry") {
		t.Errorf("a panic gives %v", err)
	}
	c = inside(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("half")); panic("c4n4ry") }, nil)
	resp, err := get(t.Context(), t, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if b, err := io.ReadAll(resp.Body); !errors.Is(err, errPanicked) || string(b) != "half" {
		t.Errorf("a late panic gives %q, %v", b, err)
	}

	// The caller gives up, while the handler is at work.
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan struct{})
	c = inside(func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
		close(seen)
	}, nil)
	if err := failure(ctx, t, c); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gave up gets %v", err)
	}
	<-seen
}

// Nothing leaves before the record has.
func TestInProcessRecordsFirst(t *testing.T) {
	t.Parallel()
	full := errors.New("no space left")
	closed := make(chan struct{})
	c := inside(func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := io.WriteString(w, "c4n4ry"); err != nil {
				close(closed)
				return
			}
		}
	}, func(context.Context) error { return full })
	if err := failure(t.Context(), t, c); !errors.Is(err, full) {
		t.Errorf("without a record there is an answer, or %v", err)
	}
	<-closed
}
