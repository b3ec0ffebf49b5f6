package lease_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/store/sqlite"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// far is a back end that takes a while to answer.
type far struct {
	*backEnd
	latency time.Duration
}

func (f far) wait(ctx context.Context) {
	timer := time.NewTimer(f.latency)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (f far) Login(ctx context.Context, req providers.LoginRequest) (*providers.Login, error) {
	f.wait(ctx)
	return f.backEnd.Login(ctx, req)
}

func (f far) Issue(ctx context.Context, req providers.Request) (*providers.Credential, error) {
	f.wait(ctx)
	return f.backEnd.Issue(ctx, req)
}

func (f far) Revoke(ctx context.Context, handle, login secret.Value) error {
	f.wait(ctx)
	return f.backEnd.Revoke(ctx, handle, login)
}

// onDisk gives the rig a store that syncs.
func (r *rig) onDisk() {
	r.t.Helper()
	dir := filepath.Join(r.t.TempDir(), "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	st, err := sqlite.Open(r.t.Context(), sqlite.Config{Path: filepath.Join(dir, "broker.db")})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = st.Close() })
	r.store, r.verbs = st, st
	r.engine = r.newEngine()
}

// BenchmarkIssueLatency is one request for a number of leases of one provider,
// whose every call takes 50 ms, in a session that hasn't logged in yet; and the
// session's end. trips is the request's time in round trips to the back end.
func BenchmarkIssueLatency(b *testing.B) {
	const latency = 50 * time.Millisecond
	for _, n := range []int{1, 10, 50} {
		b.Run(fmt.Sprintf("leases=%d", n), func(b *testing.B) {
			r := newRig(b)
			r.provider = far{r.back, latency}
			r.onDisk()
			var defs []lease.Definition
			for i := range n {
				defs = append(defs, r.def(fmt.Sprint("l", i), providers.Revocable))
			}
			var issuing, ending time.Duration
			for b.Loop() {
				s := r.session()
				req := r.request(s, defs...)
				req.Limit = n
				start := time.Now()
				if _, err := r.engine.Issue(b.Context(), req); err != nil {
					b.Fatal(err)
				}
				issued := time.Now()
				if _, err := r.engine.End(b.Context(), s, "client", "", time.Minute); err != nil {
					b.Fatal(err)
				}
				issuing, ending = issuing+issued.Sub(start), ending+time.Since(issued)
				<-r.events
			}
			logins := float64(r.back.calls("login ")) / float64(b.N)
			if logins != 1 {
				b.Errorf("%v logins a request, want 1", logins)
			}
			b.ReportMetric(float64(issuing.Microseconds())/1e3/float64(b.N), "issue-ms")
			b.ReportMetric(float64(issuing)/float64(b.N)/float64(latency), "trips")
			b.ReportMetric(float64(ending.Microseconds())/1e3/float64(b.N), "end-ms")
			b.ReportMetric(logins, "logins")
		})
	}
}

// BenchmarkStored is one request for a stored value, with a store on disk.
func BenchmarkStored(b *testing.B) {
	for _, p := range []string{"one-step", "intent-first"} {
		b.Run(p, func(b *testing.B) {
			r := newRig(b)
			r.provider = plain{r.back}
			if p == "intent-first" {
				r.provider = bare{r.back, r.back}
			}
			r.onDisk()
			s := r.session()
			d := r.def("a", providers.Static)
			for b.Loop() {
				if _, err := r.engine.Issue(b.Context(), r.request(s, d)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A request's leases are asked for at once, under one login: a login and one
// round trip, whatever their number.
func TestManyLeasesAreOneRoundTrip(t *testing.T) {
	t.Parallel()
	const n = 50
	r := newRig(t)
	s := r.session()
	release := make(chan struct{})
	r.back.hold["issue"] = release
	var defs []lease.Definition
	for i := range n {
		defs = append(defs, r.def(fmt.Sprint("l", i), providers.Revocable))
	}
	req := r.request(s, defs...)
	req.Limit = n
	done := make(chan error, 1)
	go func() {
		_, err := r.engine.Issue(context.Background(), req)
		done <- err
	}()
	late := time.After(20 * time.Second)
	for i := range n {
		select {
		case <-r.back.held:
		case <-late:
			t.Fatalf("%d calls at once, want %d", i, n)
		}
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := r.back.calls("login "); got != 1 {
		t.Errorf("%d logins, want 1", got)
	}
}
