package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/broker/api"
)

// net/http logs, by itself, what comes on a connection where nothing is due:
// the tail of an answer, where something on the way got its length wrong.
func TestT18TailOfAnAnswerIsntLogged(t *testing.T) {
	t.Parallel()
	const value = "YzRuNHJ5LXRhaWw="
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	defer server.Close()
	answer := func(v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) }
	}
	ended := make(chan struct{}) // what came on the idle connection has been read
	mux.HandleFunc("GET "+api.PathDiscovery, answer(api.Discovery{Issuer: server.URL}))
	body, err := json.Marshal(api.Token{
		AccessToken: api.NewText("access"), TokenType: api.SchemeDPoP, SessionID: "s",
		EndToken: api.NewText("end"), HardEnd: time.Now().Add(time.Hour), HeartbeatSeconds: 3600,
		Leases: &api.Leases{Leases: []api.Lease{{Name: "demo"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	mux.HandleFunc("DELETE "+api.PathSession, answer(api.Ended{}))
	mux.HandleFunc("POST "+api.PathToken, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s%s", len(body), body, value)
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, _ = conn.Read(make([]byte, 1)) // the client closes it
		close(ended)
	})
	mux.HandleFunc("GET /wait", func(http.ResponseWriter, *http.Request) { <-ended })

	cmd := exec.Command("runenv", "run", "--broker", server.URL, "--role", "demo", "--", "waitfor", server.URL+"/wait")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "RUNENV_ID_TOKEN=e30.e30.c2ln", "GORACE=atexit_sleep_ms=0"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("runenv: %v", err)
	}
	if strings.Contains(string(out), value) {
		t.Errorf("the output holds a part of an answer:\n%s", out)
	}
}

// waitFor is a command that ends when the URL has answered.
func waitFor() {
	resp, err := http.Get(os.Args[1])
	if err != nil {
		os.Exit(1)
	}
	_ = resp.Body.Close()
}
