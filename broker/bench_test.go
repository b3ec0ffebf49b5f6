package broker_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runenv/action/broker/api"
)

// benchProjects and benchAddresses spread the calls, so that none of the
// limits of package broker is what is measured.
const (
	benchProjects  = 256
	benchAddresses = 4096
)

// benchFile has many projects and a static lease.
func benchFile() string {
	var projects strings.Builder
	var names []string
	for i := range benchProjects {
		fmt.Fprintf(&projects, "  p%d: {github: \"acme/p%d@%d\"}\n", i, i, i+1)
		names = append(names, fmt.Sprint("p", i))
	}
	return `
url: URL
issuers: {github: {profile: github, url: "GITHUB"}}
providers: {local: {type: static}}
projects:
` + projects.String() + `
leases:
  npm: {provider: local, values: {token: "` + canary + `"}, env: {NPM_TOKEN: token}}
roles:
  prod:
    projects: [` + strings.Join(names, ", ") + `]
    match: {github: {ref: refs/heads/main, event_name: push}}
    leases: [npm]
`
}

// BenchmarkExchange is a whole session of a job: exchange, one static lease,
// end; three requests over HTTP on loopback, with the store in memory. Tokens
// are made before; the clients' three proofs, signatures by ECDSA, are made in
// the same process and count.
func BenchmarkExchange(b *testing.B) {
	for _, clients := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) { benchmarkExchange(b, clients) })
	}
}

func benchmarkExchange(b *testing.B, clients int) {
	var calls atomic.Int64
	r := newRig(b, func(s *settings) {
		s.file = benchFile()
		s.now = time.Now
		s.wrap = func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				n := calls.Add(1) % benchAddresses
				q.RemoteAddr = fmt.Sprintf("10.0.%d.%d:1", n/256, n%256)
				h.ServeHTTP(w, q)
			})
		}
	})
	tokens := make([]string, b.N)
	for i := range tokens {
		p := i % benchProjects
		tokens[i] = r.github.Sign(r.github.GitHub(r.url, map[string]any{
			"run_id": fmt.Sprint(i + 1), "repository_id": fmt.Sprint(p + 1), "repository": fmt.Sprintf("acme/p%d", p),
		}))
	}
	next := make(chan string, len(tokens))
	for _, t := range tokens {
		next <- t
	}
	close(next)
	keys := make([]key, clients)
	for i := range keys {
		keys[i] = newKey(b)
	}
	b.ResetTimer()
	start := time.Now()
	var wg sync.WaitGroup
	for _, k := range keys {
		wg.Go(func() {
			for token := range next {
				if err := r.cycle(b, k, token); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "sessions/s")
}

// cycle is one session from its beginning to its end.
func (r *rig) cycle(b *testing.B, k key, token string) error {
	ctx := b.Context()
	prove := func(method, path, access string) option {
		return dpop(r.proof(k, method, path, access).with(map[string]any{"iat": time.Now().Unix()}))
	}
	a, err := r.try(ctx, http.MethodPost, api.PathToken, form(token, "prod").Encode(), header("Content-Type", formType), prove(http.MethodPost, api.PathToken, ""))
	if err != nil || a.status != http.StatusOK {
		return fmt.Errorf("exchange = %v, %w", a, err)
	}
	var t api.Token
	if err := json.Unmarshal(a.body, &t); err != nil {
		return err
	}
	access := string(t.AccessToken.Reveal())
	for _, e := range []endpoint{{http.MethodPost, api.PathLeases, "{}"}, {http.MethodDelete, api.PathSession, ""}} {
		a, err := r.try(ctx, e.method, e.path, e.body, authorization("DPoP", access), prove(e.method, e.path, access))
		if err != nil || a.status != http.StatusOK {
			return fmt.Errorf("%s %s = %v, %w", e.method, e.path, a, err)
		}
	}
	return nil
}
