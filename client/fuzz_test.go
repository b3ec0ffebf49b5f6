package client_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
)

// answering is a transport that answers discovery well, and the rest as told.
type answering struct {
	discovery string
	status    int
	body      []byte
}

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: r, Body: io.NopCloser(strings.NewReader(a.discovery))}
	if r.Method != http.MethodGet {
		resp.StatusCode = a.status
		resp.Body = io.NopCloser(bytes.NewReader(a.body))
	}
	return resp, nil
}

// Whatever answers, what is shown of it is one bounded line without control
// characters.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"access_token":"a","token_type":"DPoP","end_token":"e","hard_end":"2030-01-01T00:00:00Z"}`))
	f.Add(200, []byte(`{"access_token":"a","token_type":"DPoP","end_token":"e","hard_end":"2030-01-01T00:00:00Z","leases":[{"name":"a\nb","files":[{"variable":"A","name":"a"}]}],"checkpoint":"c"}`))
	f.Add(400, []byte(`{"error":"invalid_target","error_description":"a\nb\u001b","request_id":"r","claims":{"a":[1]}}`))
	f.Add(503, []byte(`{"error":"x","lease":"\u0085"}`))
	f.Add(302, []byte(nil))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		if status < 200 || status > 599 {
			return
		}
		c, err := client.New(client.Config{
			URL: "https://runenv.example.com", Source: given("https://runenv.example.com"),
			Transport: answering{`{"issuer":"https://runenv.example.com"}`, status, body},
			Wait:      func(context.Context, time.Duration) error { return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.Exchange(t.Context(), "demo")
		if err == nil && (s.EndToken().Len() == 0 || s.HardEnd().IsZero()) {
			t.Errorf("a session without an end: %+v", s)
		}
		with, leases, werr := c.ExchangeAndLease(t.Context(), "demo", api.LeaseRequest{})
		if werr == nil && (with.EndToken().Len() == 0 || len(leases) == 0) {
			t.Errorf("a session without an end or leases: %+v", with)
		}
		for _, err := range []error{err, werr} {
			if err == nil {
				continue
			}
			for _, text := range []string{err.Error(), hint(err)} {
				if len(text) > 5000 || strings.ContainsFunc(text, unicode.IsControl) {
					t.Errorf("shown: %q", text)
				}
			}
		}
	})
}
