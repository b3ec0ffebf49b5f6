package audit_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/broker/store/sqlite"
)

// childPath names, in a child's environment, the store that it writes to until
// it is killed.
const childPath = "RUNENV_TEST_STORE"

func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		if err := writeUntilKilled(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

var t0 = time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.UTC)

// testSealer seals with the same key in a child as in its parent.
func testSealer() (seal.Sealer, error) {
	return seal.NewKey(bytes.Repeat([]byte{7}, seal.KeyBytes))
}

func newStore(t testing.TB) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: sqlite.Memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func openLog(t testing.TB, s store.Store, changes ...func(*audit.Config)) *audit.Log {
	t.Helper()
	sealer, err := testSealer()
	if err != nil {
		t.Fatal(err)
	}
	cfg := audit.Config{Store: s, Keys: s, Sealer: sealer, Origin: "runenv.example.com", Now: func() time.Time { return t0 }}
	for _, change := range changes {
		change(&cfg)
	}
	l, err := audit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("Open() = %v", err)
	}
	return l
}

// record makes entries durable, about session s-<i>.
func record(t testing.TB, s store.AuditStore, from, to int) {
	t.Helper()
	var entries []store.Entry
	for i := from; i < to; i++ {
		e, err := audit.Record{
			Time: t0.Add(time.Duration(i) * time.Second), Event: "session.created", Request: fmt.Sprint("r-", i),
			Session: fmt.Sprint("s-", i), Role: "deploy", Claims: map[string]string{"ref": "refs/heads/main"},
		}.Entry()
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	if err := s.Record(t.Context(), t0, entries); err != nil {
		t.Fatal(err)
	}
}

// newLogged is a log of n entries.
func newLogged(t testing.TB, n int) (*sqlite.Store, *audit.Log) {
	t.Helper()
	s := newStore(t)
	l := openLog(t, s)
	record(t, s, 0, n)
	flush(t, l)
	return s, l
}

func flush(t testing.TB, l *audit.Log) {
	t.Helper()
	if err := l.Flush(t.Context()); err != nil {
		t.Fatalf("Flush() = %v", err)
	}
}

func verify(t testing.TB, s store.AuditStore, key string, known ...string) audit.Report {
	t.Helper()
	r, err := audit.Verify(t.Context(), s, key, known...)
	if err != nil {
		t.Fatalf("Verify() = %v", err)
	}
	return r
}

func TestLogOfEverySizeVerifies(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	l := openLog(t, s)
	key := l.VerifierKey()
	if r := verify(t, s, key); r.Size != 0 || l.Latest() != "" {
		t.Errorf("an empty log has size %d and checkpoint %q", r.Size, l.Latest())
	}
	var known []string
	size := 0
	// Every size up to two tiles and a bit, and then steps over several.
	steps := []int{255, 256, 257, 511, 512, 513, 700, 1024, 3000, 6000}
	for i := 1; i <= 20; i++ {
		steps = append([]int{21 - i}, steps...)
	}
	for _, next := range steps {
		record(t, s, size, next)
		size = next
		flush(t, l)
		known = append(known, l.Latest())
		r := verify(t, s, key, known...)
		want := audit.Report{
			Size: int64(size), First: t0.Truncate(time.Microsecond),
			Last: t0.Add(time.Duration(size-1) * time.Second).Truncate(time.Microsecond), Known: len(known), Checkpoint: l.Latest(),
		}
		if diff := cmp.Diff(want, r); diff != "" {
			t.Fatalf("report differs (-want +got):\n%s", diff)
		}
	}
	var export bytes.Buffer
	if err := audit.Export(t.Context(), s, &export); err != nil {
		t.Fatal(err)
	}
	r, err := audit.VerifyExport(t.Context(), &export, key, known...)
	if err != nil || r.Size != int64(size) || r.Known != len(known) {
		t.Errorf("VerifyExport() = %+v, %v, want size %d", r, err, size)
	}
	// It goes on after a restart, with the same key.
	again := openLog(t, s, func(c *audit.Config) { c.Origin = "renamed.example.com" })
	if again.VerifierKey() != key || again.Latest() != l.Latest() {
		t.Errorf("after a restart: key %s, checkpoint %q, want %s, %q", again.VerifierKey(), again.Latest(), key, l.Latest())
	}
	record(t, s, size, size+10)
	if r := verify(t, s, key); r.Pending != 10 {
		t.Errorf("%d entries wait, want 10", r.Pending)
	}
	flush(t, again)
	verify(t, s, key, append(known, again.Latest())...)
	stored, err := audit.StoredKey(t.Context(), s)
	if err != nil || stored != key {
		t.Errorf("StoredKey() = %q, %v, want %q", stored, err, key)
	}
}

func TestRunSignsWhileTheLogGrowsAndOnceMoreAtTheEnd(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	l := openLog(t, s, func(c *audit.Config) { c.Interval = time.Millisecond })
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	record(t, s, 0, 5)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for l.Latest() == "" {
		<-tick.C
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run() = %v", err)
	}
	// A Run that ends at once still flushes.
	record(t, s, 5, 9)
	if err := l.Run(ctx); err != nil {
		t.Errorf("Run() = %v", err)
	}
	if r := verify(t, s, l.VerifierKey(), l.Latest()); r.Size != 9 || r.Pending != 0 {
		t.Errorf("Verify() = %+v, want 9 entries and none that waits", r)
	}
}

// failing is a store whose growth fails for a while.
type failing struct {
	store.Store
	mu    sync.Mutex
	times int
}

func (f *failing) Grow(ctx context.Context, now time.Time, s store.Sequence) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.times > 0 {
		f.times--
		return errors.New("disk full")
	}
	return f.Store.Grow(ctx, now, s)
}

func TestRunOutlivesFailures(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	s := &failing{Store: newStore(t), times: 3}
	l := openLog(t, s, func(c *audit.Config) {
		c.Interval = time.Millisecond
		c.Log = slog.New(slog.NewTextHandler(&logged, nil))
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	record(t, s, 0, 5)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for l.Latest() == "" {
		<-tick.C
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run() = %v", err)
	}
	if n := strings.Count(logged.String(), "disk full"); n != 3 {
		t.Errorf("%d failures were logged, want 3:\n%s", n, &logged)
	}
	verify(t, s, l.VerifierKey())
}

func TestSequencersGiveWayToEachOther(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	logs := []*audit.Log{openLog(t, s), openLog(t, s), openLog(t, s)}
	var wg sync.WaitGroup
	for i, l := range logs {
		wg.Go(func() {
			for k := range 20 {
				record(t, s, 1000*i+k, 1000*i+k+1)
				if err := l.Flush(t.Context()); err != nil {
					t.Errorf("Flush() = %v", err)
				}
			}
		})
	}
	wg.Wait()
	var known []string
	for _, l := range logs {
		if l.Latest() != "" {
			known = append(known, l.Latest())
		}
	}
	if r := verify(t, s, logs[0].VerifierKey(), known...); r.Size != 60 || r.Pending != 0 || r.Known != len(known) {
		t.Errorf("Verify() = %+v, want 60 entries under all checkpoints", r)
	}
}

// writeUntilKilled is the child of the test below.
func writeUntilKilled(path string) error {
	ctx := context.Background()
	s, err := sqlite.Open(ctx, sqlite.Config{Path: path})
	if err != nil {
		return err
	}
	sealer, err := testSealer()
	if err != nil {
		return err
	}
	l, err := audit.Open(ctx, audit.Config{Store: s, Keys: s, Sealer: sealer, Origin: "runenv.example.com", Interval: time.Millisecond})
	if err != nil {
		return err
	}
	errs := make(chan error, 2)
	go func() { errs <- l.Run(ctx) }()
	go func() {
		for i := 0; ; i++ {
			e, err := audit.Record{Time: time.Now(), Event: "session.created", Session: fmt.Sprint("s-", i)}.Entry()
			if err == nil {
				err = s.Record(ctx, time.Now(), []store.Entry{e})
			}
			if err == nil {
				// An answer, and the checkpoint that goes with it.
				_, err = fmt.Printf("%q %q\n", fmt.Sprint("s-", i), l.Latest())
			}
			if err != nil {
				errs <- err
				return
			}
		}
	}()
	return <-errs
}

func TestT19KillLosesNoEntryAndNoCheckpoint(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "broker.db")
	var sessions []string
	known := map[string]bool{}
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childPath+"="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for lines := bufio.NewScanner(out); lines.Scan(); n++ {
			var session, checkpoint string
			if _, err := fmt.Sscanf(lines.Text(), "%q %q", &session, &checkpoint); err != nil {
				t.Fatal(err)
			}
			sessions = append(sessions, session)
			if checkpoint != "" {
				known[checkpoint] = true
			}
			if n == 100+37*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.Exited() {
			t.Fatalf("the child ended by itself: %v", err)
		}
	}
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	l := openLog(t, s)
	var checkpoints []string
	for c := range known {
		checkpoints = append(checkpoints, c)
	}
	if r := verify(t, s, l.VerifierKey(), checkpoints...); r.Known != len(checkpoints) || len(checkpoints) == 0 {
		t.Errorf("the log continues %d of %d checkpoints", r.Known, len(checkpoints))
	}
	flush(t, l)
	if r := verify(t, s, l.VerifierKey(), checkpoints...); r.Pending != 0 || r.Size < int64(len(sessions)) {
		t.Errorf("Verify() = %+v, want at least the %d answered entries", r, len(sessions))
	}
	counts := map[string]int{}
	for _, id := range sessions {
		counts[id]++
	}
	for id, n := range counts {
		if told, err := audit.Show(t.Context(), s, id); err != nil || len(told) < n {
			t.Errorf("Show(%s) = %d entries, %v, want %d", id, len(told), err, n)
		}
	}
}

func TestOpenFailsClosed(t *testing.T) {
	t.Parallel()
	s, _ := newLogged(t, 3)
	sealer, err := testSealer()
	if err != nil {
		t.Fatal(err)
	}
	good := audit.Config{Store: s, Keys: s, Sealer: sealer, Origin: "runenv.example.com"}
	for name, change := range map[string]func(*audit.Config){
		"no store":                 func(c *audit.Config) { c.Store = nil },
		"no keys":                  func(c *audit.Config) { c.Keys = nil },
		"no sealer":                func(c *audit.Config) { c.Sealer = nil },
		"no origin":                func(c *audit.Config) { c.Origin = "" },
		"an origin of two words":   func(c *audit.Config) { c.Origin = "two words" },
		"another seal key":         func(c *audit.Config) { c.Sealer = seal.Ephemeral() },
		"another log's checkpoint": func(c *audit.Config) { other, _ := newLogged(t, 3); c.Store = other },
		"a checkpoint that is cut": func(c *audit.Config) {
			c.Store = &tampered{AuditStore: s, checkpoint: func(b []byte) []byte { return b[1:] }}
		},
		"a size that isn't signed": func(c *audit.Config) { c.Store = &tampered{AuditStore: s, size: 2} },
		"a checkpoint that is gone": func(c *audit.Config) {
			c.Store = &tampered{AuditStore: s, checkpoint: func([]byte) []byte { return nil }}
		},
	} {
		cfg := good
		cfg.Now = func() time.Time { return t0 }
		change(&cfg)
		if _, err := audit.Open(t.Context(), cfg); err == nil {
			t.Errorf("%s: Open() = nil, want an error", name)
		}
	}
}

// A sequencer doesn't sign for a past that was changed under it.
func TestT19GrowthRefusesTamperedTiles(t *testing.T) {
	t.Parallel()
	s, _ := newLogged(t, 300)
	bad := &tampered{AuditStore: s, tile: func(_ store.Tile, data []byte) { data[len(data)-1] ^= 1 }}
	l := openLog(t, s, func(c *audit.Config) { c.Store = bad })
	record(t, s, 300, 301)
	if err := l.Flush(t.Context()); err == nil {
		t.Error("Flush() over tampered tiles = nil, want an error")
	}
	flush(t, openLog(t, s))
}
