package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
)

// escape is what no text of a broker may do to a terminal or a CI's log.
const escape = "x\n::error::y\x1b[2J\u009b2J\u202e"

// hostile serves a session whose every text is escape.
func hostile(t *testing.T) *client.Client {
	t.Helper()
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	answer := func(status int, v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(v)
		}
	}
	leases := []api.Lease{{ID: escape, Name: escape, Provider: escape, State: escape, Revocability: escape}}
	mux.HandleFunc("GET "+api.PathDiscovery, answer(http.StatusOK, api.Discovery{Issuer: server.URL}))
	mux.HandleFunc("POST "+api.PathToken, answer(http.StatusOK, api.Token{
		AccessToken: api.NewText("access"), TokenType: api.SchemeDPoP, SessionID: escape,
		EndToken: api.NewText("end"), HardEnd: time.Now().Add(time.Hour),
	}))
	mux.HandleFunc("POST "+api.PathLeases, answer(http.StatusOK, api.Leases{Leases: leases}))
	mux.HandleFunc("POST "+api.PathLeases+"/{id}/renew", answer(http.StatusOK, leases[0]))
	mux.HandleFunc("GET "+api.PathWatch, answer(http.StatusOK, api.Event{Event: api.EventRenewed, Lease: &leases[0]}))
	mux.HandleFunc("DELETE "+api.PathSession, answer(http.StatusOK, api.Ended{Leases: leases}))
	c, err := client.New(client.Config{URL: server.URL, Source: &source{now: time.Now, lives: []time.Duration{time.Hour}}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A lease's name stands in the place of each value in the command's output.
func TestTextsOfAnAnswerAreHarmless(t *testing.T) {
	t.Parallel()
	s, err := hostile(t).Exchange(t.Context(), "demo")
	if err != nil {
		t.Fatal(err)
	}
	leases, err := s.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	renewed, err := s.Renew(t.Context(), api.Lease{ID: "id", Renewable: true})
	if err != nil {
		t.Fatal(err)
	}
	ended, err := s.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var told api.Lease
	if err := s.KeepAlive(ctx, func(e api.Event) { told = *e.Lease; cancel() }); err != nil {
		t.Fatal(err)
	}
	texts := []string{s.ID()}
	for _, l := range append(append(leases, renewed, told), ended.Leases...) {
		texts = append(texts, l.ID, l.Name, l.Provider, l.State, l.Revocability)
	}
	if len(texts) != 21 {
		t.Fatalf("%d texts: %q", len(texts), texts)
	}
	for _, text := range texts {
		if !strings.HasPrefix(text, "x ") || strings.ContainsAny(text, "\n\x1b\u009b\u202e") {
			t.Errorf("a text of the broker is %q", text)
		}
	}
}

// A hint is there to be pasted into a shell.
func TestHintHoldsNoStrangeRequestID(t *testing.T) {
	t.Parallel()
	for id, shown := range map[string]bool{
		"req_01J-a.b":           true,
		"$(reboot)":             false,
		"a;reboot":              false,
		"a b":                   false,
		"--config=x":            false,
		"":                      false,
		strings.Repeat("a", 99): false,
	} {
		err := &client.Error{Refusal: &api.Error{Code: api.CodeServerError, RequestID: id}}
		if got := strings.Contains(err.Hint(), "audit show"); got != shown {
			t.Errorf("the hint for request id %q is %q", id, err.Hint())
		}
	}
}

// A proxy that a job goes through may send back what it doesn't understand,
// and net/http quotes what it doesn't understand itself.
func TestT18EchoedTokenIsntShown(t *testing.T) {
	t.Parallel()
	for name, around := range map[string][2]string{
		"status line":       {"", "\r\n\r\n"},
		"status":            {"HTTP/1.1 ", "\r\n\r\n"},
		"header":            {"HTTP/1.1 200 OK\r\n", "\r\n\r\n"},
		"length":            {"HTTP/1.1 200 OK\r\nContent-Length: ", "\r\n\r\n"},
		"transfer encoding": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: ", "\r\n\r\n"},
		"location":          {"HTTP/1.1 302 Found\r\nLocation: http://%zz", "\r\nContent-Length: 0\r\n\r\n"},
		"body":              {"HTTP/1.1 200 OK\r\n\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mux := http.NewServeMux()
			server := httptest.NewServer(mux)
			defer server.Close()
			mux.HandleFunc("GET "+api.PathDiscovery, func(w http.ResponseWriter, _ *http.Request) {
				_ = json.NewEncoder(w).Encode(api.Discovery{Issuer: server.URL})
			})
			var token string
			mux.HandleFunc("POST "+api.PathToken, func(w http.ResponseWriter, r *http.Request) {
				token = r.FormValue("subject_token")
				conn, _, err := w.(http.Hijacker).Hijack()
				if err != nil {
					return
				}
				_, _ = conn.Write([]byte(around[0] + token + around[1]))
				_ = conn.Close()
			})
			var log bytes.Buffer
			c, err := client.New(client.Config{
				URL: server.URL, Source: &source{now: time.Now, lives: []time.Duration{time.Hour}},
				Log:  slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
				Wait: func(ctx context.Context, _ time.Duration) error { return context.Cause(ctx) },
			})
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Exchange(t.Context(), "demo")
			if err == nil || token == "" {
				t.Fatalf("Exchange: %v; the broker got %q", err, token)
			}
			for _, part := range strings.Split(token, ".")[1:] {
				if strings.Contains(err.Error()+hint(err)+log.String(), part) {
					t.Errorf("the token is shown: %v\n%s", err, log.String())
				}
			}
		})
	}
}
