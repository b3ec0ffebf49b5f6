package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/client"
	"github.com/runenv/action/e2e/harness"
	"github.com/runenv/action/secret"
)

// The benchmarks here measure whole processes, so each runs as often as it
// says and not as -benchtime does; -short runs each once, to see that it
// works. They need Linux.

// A figure is a measured number and its unit.
type figure struct {
	value float64
	unit  string
}

// figures gives a benchmark's result in numbers of its own.
func figures(b *testing.B, name string, all ...figure) {
	b.Helper()
	b.Run(name, func(b *testing.B) {
		b.ReportMetric(0, "ns/op") // the time of this function says nothing
		for _, f := range all {
			b.ReportMetric(f.value, f.unit)
		}
	})
}

// quantile is the value below which the share q of the samples lies, in
// milliseconds.
func quantile(samples []time.Duration, q float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	return milliseconds(sorted[min(int(q*float64(len(sorted))), len(sorted)-1)])
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// syncsPerSecond is how often a second an append of 4 KiB to a file in dir
// can be made durable.
func syncsPerSecond(b *testing.B, dir string) float64 {
	b.Helper()
	f, err := os.CreateTemp(dir, "sync-")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	defer func() { _ = f.Close() }()
	page, n := make([]byte, 4096), 500
	begin := time.Now()
	for range n {
		if _, err := f.Write(page); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	return float64(n) / time.Since(begin).Seconds()
}

// wrapped is a broker with roles of ten static leases, of these and a file, of
// ten values of a real Vault, and of a database user of that Vault.
type wrapped struct {
	ci     *harness.CI
	broker *harness.BrokerServer
}

func newWrapped(b *testing.B) *wrapped {
	b.Helper()
	w := &wrapped{ci: harness.NewCI(b, nil), broker: harness.NewBroker(b)}
	w.broker.LogLevel = "info" // as it is by itself
	vault, pg := harness.Vault(b), harness.Postgres(b)
	vault.MountDatabase(b, pg, "ro", time.Hour, time.Hour)
	vault.MountKV(b, "kv", 2)
	var leases, statics, values []string
	for i := range 10 {
		static, value := fmt.Sprintf("static-%d", i), fmt.Sprintf("value-%d", i)
		statics, values = append(statics, static), append(values, value)
		leases = append(leases,
			fmt.Sprintf("  %s: {provider: local, values: {token: \"${env:STATIC_%d}\"}, env: {STATIC_%d: token}}", static, i, i),
			fmt.Sprintf("  %s: {provider: vault, path: kv/ci/%s, env: {VALUE_%d: token}}", value, value, i))
		w.broker.Env = append(w.broker.Env, fmt.Sprintf("STATIC_%d=a-static-value-of-the-benchmark-%d", i, i))
		vault.Write(b, "kv/data/ci/"+value, map[string]any{"data": map[string]any{"token": "a-vault-value-of-the-benchmark-" + value}})
	}
	w.broker.Env = append(w.broker.Env, "STATIC_KEY="+strings.Repeat("a-line-of-the-file-of-the-benchmark\n", 40))
	role := func(name string, leases ...string) string {
		return fmt.Sprintf("  %s: {projects: [shop-api], match: {github: {ref: refs/heads/main, event_name: push}}, leases: [%s]}\n", name, strings.Join(leases, ", "))
	}
	w.broker.Start(b, fmt.Sprintf(`
issuers:
  github: {profile: github, url: "%s", ca_file: "%s", allow_networks: ["127.0.0.0/8"]}
providers:
  local: {type: static}
  vault: {type: vault, address: "%s"}
projects:
  shop-api: {github: acme/shop-api@1001}
leases:
  db: {provider: vault, path: database/creds/ro, env: {DB_USER: username, DB_PASSWORD: password}, ttl: 15m}
  key: {provider: local, values: {key: "${env:STATIC_KEY}"}, file: {DEPLOY_KEY: key}}
%s
roles:
`, w.ci.URL, w.broker.CAFile, vault.Address, strings.Join(leases, "\n"))+
		role("static", statics...)+role("file", append(statics, "key")...)+role("values", values...)+role("db", "db"))
	vault.TrustIssuer(b, w.broker.URL, harness.CA(b))
	vault.TrustRole(b, "values", `path "kv/data/ci/*" { capabilities = ["read"] }`)
	vault.TrustRole(b, "db", `path "database/creds/ro" { capabilities = ["read"] }`)
	return w
}

// token is a fresh token of the job.
func (w *wrapped) token(b *testing.B) string {
	b.Helper()
	token, err := w.ci.Issuer.GitHubToken(w.broker.URL, nil)
	if err != nil {
		b.Fatal(err)
	}
	return token
}

// runenv is `runenv run` of a command; the job's token is in a variable.
func (w *wrapped) runenv(b *testing.B, role string, command ...string) *exec.Cmd {
	b.Helper()
	cmd := w.broker.Runenv(b, w.ci, append([]string{"run", "--role", role, "--"}, command...)...)
	cmd.Env = append(cmd.Env, "RUNENV_ID_TOKEN="+w.token(b))
	return cmd
}

// BenchmarkRun is the life of a command that does nothing, from fork to exit:
// by itself, under the least wrapper there is, under the least one that asks a
// server, and under runenv. The kinds take turns, so that none has the
// machine's good minutes; times-a-child is the wall time beside the least
// wrapper's.
func BenchmarkRun(b *testing.B) {
	w := newWrapped(b)
	child, toy := harness.Program(b, "tools/child"), harness.Program(b, "tools/toy")
	kinds := []struct {
		name    string
		command func() *exec.Cmd
	}{
		{"true,by_itself", func() *exec.Cmd { return exec.CommandContext(b.Context(), "true") }},
		{"true,under_a_child's_parent:_fork,_pipe,_wait", func() *exec.Cmd { return exec.CommandContext(b.Context(), child, "true") }},
		{"true,under_a_toy:_TLS_and_two_requests", func() *exec.Cmd {
			return exec.CommandContext(b.Context(), toy, w.broker.URL+"/.well-known/runenv", w.broker.CAFile, "true")
		}},
		{"runenv_run,ten_static_leases_and_a_file", func() *exec.Cmd { return w.runenv(b, "file", "true") }},
		{"runenv_run,ten_static_leases", func() *exec.Cmd { return w.runenv(b, "static", "true") }},
		{"runenv_run,ten_static_leases,token_by_GitHub's_request", func() *exec.Cmd {
			return w.broker.Runenv(b, w.ci, "run", "--role", "static", "--", "true")
		}},
		{"runenv_run,ten_values_of_a_real_Vault", func() *exec.Cmd { return w.runenv(b, "values", "true") }},
	}
	rounds := 41
	wall, cpu := make([][]time.Duration, len(kinds)), make([][]time.Duration, len(kinds))
	for round := -3; round < rounds; round++ { // the first few warm caches
		for i, kind := range kinds {
			cmd := kind.command()
			begin := time.Now()
			if err := cmd.Run(); err != nil {
				b.Fatalf("%s: %v", kind.name, err)
			}
			took := time.Since(begin)
			if round >= 0 {
				wall[i] = append(wall[i], took)
				cpu[i] = append(cpu[i], cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
			}
		}
	}
	least := quantile(wall[1], 0.5)
	for i, kind := range kinds {
		median := quantile(wall[i], 0.5)
		figures(b, kind.name, figure{median, "wall-ms"}, figure{quantile(cpu[i], 0.5), "cpu-ms"},
			figure{quantile(wall[i], 0.9), "wall-p90-ms"}, figure{median / least, "times-a-child"}, figure{float64(rounds), "runs"})
	}
}

// BenchmarkEnd is the time from a command's last act to the end of its
// session: recorded by the broker, recorded for its lease after Vault said that
// it is revoked, and runenv's own exit.
func BenchmarkEnd(b *testing.B) {
	w := newWrapped(b)
	rounds := 41
	kinds := []string{"static", "db"}
	last, exit := make([][]time.Time, len(kinds)), make([][]time.Duration, len(kinds))
	for range rounds {
		for i, role := range kinds {
			cmd := w.runenv(b, role, "date", "+%s.%N")
			out, err := cmd.Output()
			now := time.Now()
			if err != nil {
				b.Fatalf("%s: %v", role, err)
			}
			at := wallTime(b, string(bytes.TrimSpace(out)))
			last[i], exit[i] = append(last[i], at), append(exit[i], now.Sub(at))
		}
	}
	w.broker.Stop() // signs what is pending
	ended := w.ends(b)
	for i, role := range kinds {
		if len(ended["session.ended"][role]) != rounds {
			b.Fatalf("%d sessions of role %s ended, want %d", len(ended["session.ended"][role]), role, rounds)
		}
		session := gaps(last[i], ended["session.ended"][role])
		if role == "static" {
			figures(b, "ten_static_leases", figure{quantile(session, 0.5), "session-ended-ms"},
				figure{quantile(exit[i], 0.5), "runenv-exit-ms"}, figure{quantile(exit[i], 0.9), "runenv-exit-p90-ms"}, figure{float64(rounds), "runs"})
			continue
		}
		revoked := ended["lease.revoked"][role]
		if len(revoked) != rounds {
			b.Fatalf("%d database users were revoked, want %d", len(revoked), rounds)
		}
		figures(b, "database_user_of_a_real_Vault", figure{quantile(session, 0.5), "session-ended-ms"},
			figure{quantile(gaps(last[i], revoked), 0.5), "revoked-ms"}, figure{quantile(gaps(last[i], revoked), 0.9), "revoked-p90-ms"},
			figure{quantile(exit[i], 0.5), "runenv-exit-ms"}, figure{quantile(exit[i], 0.9), "runenv-exit-p90-ms"}, figure{float64(rounds), "runs"})
	}
}

// wallTime reads seconds and nanoseconds as date prints them.
func wallTime(b *testing.B, text string) time.Time {
	b.Helper()
	seconds, nanos, _ := strings.Cut(text, ".")
	s, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		b.Fatalf("date printed %q", text)
	}
	n, err := strconv.ParseInt(nanos, 10, 64)
	if err != nil {
		b.Fatalf("date printed %q: this benchmark needs GNU's", text)
	}
	return time.Unix(s, n)
}

// gaps are the times from each of the one to its partner, in order.
func gaps(from, to []time.Time) []time.Duration {
	out := make([]time.Duration, len(from))
	for i := range from {
		out[i] = to[i].Sub(from[i])
	}
	return out
}

// ends are the times of the audit log's records, by event and role, in order.
func (w *wrapped) ends(b *testing.B) map[string]map[string][]time.Time {
	b.Helper()
	var stderr bytes.Buffer
	cmd := w.broker.Command(b, "audit", "export", "--config", w.broker.Config)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("exporting the audit log: %v\n%s", err, &stderr)
	}
	all, roles := map[string]map[string][]time.Time{}, map[string]string{}
	for line := range bytes.Lines(out) {
		var l struct {
			Entry struct {
				Time                 time.Time
				Event, Session, Role string
			}
		}
		if err := json.Unmarshal(line, &l); err != nil {
			b.Fatal(err)
		}
		e := l.Entry
		if e.Role != "" {
			roles[e.Session] = e.Role
		}
		if all[e.Event] == nil {
			all[e.Event] = map[string][]time.Time{}
		}
		role := roles[e.Session]
		all[e.Event][role] = append(all[e.Event][role], e.Time)
	}
	return all
}

// farms are how many projects the jobs of a load come from: what one project
// may do at once is limited.
const farms = 16

// A load is a broker that is asked by many jobs at once, with tokens that were
// signed before and keys that it has at hand.
type load struct {
	ci     *harness.CI
	broker *harness.BrokerServer
	jobs   atomic.Int64
}

// newLoad starts one whose store is in dir.
func newLoad(b *testing.B, dir string) *load {
	b.Helper()
	l := &load{ci: harness.NewCI(b, nil), broker: harness.NewBroker(b)}
	l.broker.LogLevel = "info"
	jwks := filepath.Join(l.broker.Dir, "jwks.json")
	var names, projects []string
	for i := range farms {
		names = append(names, fmt.Sprintf("farm-%d", i))
		projects = append(projects, fmt.Sprintf("  farm-%d: {github: acme/farm-%d@%d}", i, i, 5000+i))
	}
	config := fmt.Sprintf(`url: %s
listen: %s
tls: {cert: %[3]s/tls.crt, key: %[3]s/tls.key}
store: sqlite:%[4]s
seal: ${file:%[3]s/seal.key}
issuers:
  github: {profile: github, url: "%[5]s", jwks_file: "%[6]s"}
providers:
  local: {type: static}
projects:
%[7]s
leases:
  npm: {provider: local, values: {token: "${env:TOKEN}"}, env: {NPM_TOKEN: token}}
roles:
  deploy: {projects: [%[8]s], match: {github: {ref: refs/heads/main, event_name: push}}, leases: [npm]}
`, l.broker.URL, strings.TrimPrefix(l.broker.URL, "https://"), l.broker.Dir, filepath.Join(dir, "broker.db"), l.ci.URL, jwks,
		strings.Join(projects, "\n"), strings.Join(names, ", "))
	for path, content := range map[string][]byte{jwks: l.ci.Issuer.JWKS(), l.broker.Config: []byte(config)} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	l.broker.Env = []string{"TOKEN=a-static-value-of-the-benchmark"}
	l.broker.Restart(b)
	return l
}

// tokens signs one for each of n jobs.
func (l *load) tokens(b *testing.B, n int) []string {
	b.Helper()
	out := make([]string, n)
	var next atomic.Int64
	next.Store(-1)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := next.Add(1); i < int64(n); i = next.Add(1) {
				job := l.jobs.Add(1)
				farm := job % farms
				token, err := l.ci.Issuer.GitHubToken(l.broker.URL, map[string]any{
					"repository": fmt.Sprintf("acme/farm-%d", farm), "repository_id": strconv.FormatInt(5000+farm, 10),
					"run_id": strconv.FormatInt(20000000001+job, 10),
				})
				if err != nil {
					b.Error(err)
					return
				}
				out[i] = token
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return out
}

// A heldToken is a source of the one token that a job holds.
type heldToken struct{ token *string }

func (t heldToken) Token(context.Context, string) (secret.Value, error) {
	return secret.FromString(*t.token), nil
}

// A caller is one of a load's clients, on an address of its own, as jobs on
// many machines have: what one address may do at once is limited.
type caller struct {
	client    *client.Client
	transport *http.Transport
	token     string // of the next exchange
}

func (l *load) newCaller(b *testing.B, i int) *caller {
	b.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(harness.CA(b))
	c := &caller{transport: &http.Transport{
		DialContext:       (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i))}}).DialContext,
		TLSClientConfig:   &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true,
	}}
	var err error
	c.client, err = client.New(client.Config{URL: l.broker.URL, Source: heldToken{&c.token}, Transport: c.transport})
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// drive lets n clients do the act with one token after another, and reports
// what the broker did a second and needed for it.
func (l *load) drive(b *testing.B, name string, n int, tokens []string, extra []figure, act func(i int, token string) error) {
	b.Helper()
	took := make([]time.Duration, len(tokens))
	var next atomic.Int64
	next.Store(-1)
	var wg sync.WaitGroup
	begin, broker, own := time.Now(), l.broker.CPU(b), ownCPU(b)
	for i := range n {
		wg.Go(func() {
			for j := next.Add(1); j < int64(len(tokens)); j = next.Add(1) {
				begin := time.Now()
				if err := act(i, tokens[j]); err != nil {
					b.Errorf("%s: %v", name, err)
					return
				}
				took[j] = time.Since(begin)
			}
		})
	}
	wg.Wait()
	wall := time.Since(begin)
	broker, own = l.broker.CPU(b)-broker, ownCPU(b)-own
	if b.Failed() {
		b.FailNow()
	}
	each := func(d time.Duration) float64 { return milliseconds(d) / float64(len(tokens)) }
	figures(b, name, append([]figure{
		{float64(len(tokens)) / wall.Seconds(), "done/s"}, {each(broker), "broker-cpu-ms"}, {each(own), "load-cpu-ms"},
		{quantile(took, 0.5), "p50-ms"}, {quantile(took, 0.99), "p99-ms"},
	}, extra...)...)
}

// ownCPU is the processor time of this process, which is the load.
func ownCPU(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// stores are where a broker keeps its state: a folder on the disk, and one
// that is memory, which leaves everything of sqlite but the disk.
func stores(b *testing.B) []struct{ name, dir string } {
	b.Helper()
	memory, err := os.MkdirTemp("/dev/shm", "runenv-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(memory) })
	return []struct{ name, dir string }{{"disk", b.TempDir()}, {"memory", memory}}
}

// BenchmarkExchange is a job's token for a session, over connections that are
// open already: TLS, HTTP/2, the token's signature, the proof's, the policy,
// and a commit.
func BenchmarkExchange(b *testing.B) {
	for _, store := range stores(b) {
		for _, n := range []int{1, 16, 64} {
			dir, err := os.MkdirTemp(store.dir, "")
			if err != nil {
				b.Fatal(err)
			}
			syncs := syncsPerSecond(b, dir)
			l := newLoad(b, dir)
			callers := make([]*caller, n)
			exchange := func(i int, token string) error {
				callers[i].token = token
				_, err := callers[i].client.Exchange(b.Context(), "deploy")
				return err
			}
			for i, token := range l.tokens(b, n) { // opens the connections
				callers[i] = l.newCaller(b, i)
				if err := exchange(i, token); err != nil {
					b.Fatal(err)
				}
			}
			count := 8000
			if n == 1 {
				count = 3000
			}
			l.drive(b, fmt.Sprintf("%s,%d_clients", store.name, n), n, l.tokens(b, count), []figure{{syncs, "fsyncs/s"}}, exchange)
			for _, c := range callers {
				c.transport.CloseIdleConnections()
			}
			l.broker.Stop()
		}
	}
}

// BenchmarkSession is all that a short job asks of a broker, on a connection
// of its own: discovery, exchange, one static lease, and the end.
func BenchmarkSession(b *testing.B) {
	for _, store := range stores(b) {
		for _, n := range []int{1, 16, 64} {
			dir, err := os.MkdirTemp(store.dir, "")
			if err != nil {
				b.Fatal(err)
			}
			l := newLoad(b, dir)
			l.drive(b, fmt.Sprintf("%s,%d_clients", store.name, n), n, l.tokens(b, 2000), nil, func(i int, token string) error {
				c := l.newCaller(b, i)
				defer c.transport.CloseIdleConnections()
				c.token = token
				s, err := c.client.Exchange(b.Context(), "deploy")
				if err != nil {
					return err
				}
				if _, err := s.Lease(b.Context()); err != nil {
					return err
				}
				_, err = s.End(b.Context())
				return err
			})
			l.broker.Stop()
		}
	}
}
