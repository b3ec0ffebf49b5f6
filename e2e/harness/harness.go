// Package harness starts the real components that the end-to-end tests run
// against: a Vault, a PostgreSQL, a CI's issuer and the broker itself, each a
// process or server of its own on a free loopback port, gone with its test.
//
// It fakes nothing but the CI. Where a component is missing, a test fails with
// one line that says how to get it: none is skipped.
package harness

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// startTimeout bounds how long a component may take until it answers. On two
// busy cores the slowest took about 3 s.
const startTimeout = 60 * time.Second

// stopTimeout is how long a component may take to end when asked, before it is
// killed.
const stopTimeout = 10 * time.Second

// Main runs the tests of a package after it has printed the versions of the
// real components, and removes what [Binaries] built.
func Main(m *testing.M) int {
	for _, c := range [][]string{
		{os.Getenv("RUNENV_E2E_VAULT"), "version"},
		{filepath.Join(os.Getenv("RUNENV_E2E_POSTGRES"), "postgres"), "--version"},
		{os.Getenv("RUNENV_E2E_BUILDAH"), "--version"},
		{os.Getenv("RUNENV_E2E_ACT"), "--version"},
		{os.Getenv("RUNENV_E2E_MINIO"), "--version"},
	} {
		if out, err := exec.Command(c[0], c[1:]...).Output(); err == nil {
			fmt.Printf("real component: %s", out)
		}
	}
	for _, name := range []string{"gitlab-ci-local", "verdaccio", "@actions/cache", "node24-*", "node22-*", "node20-*"} {
		printNPM(name)
	}
	code := m.Run()
	removeBinaries()
	removeLaid()
	return code
}

// tool is the path in the environment variable name, or the test fails with
// the cure.
func tool(tb testing.TB, name string) string {
	tb.Helper()
	path := os.Getenv(name)
	if path == "" {
		tb.Fatalf("%s isn't set: run `make e2e`, which builds or finds the real component and sets it", name)
	}
	return path
}

// nextPort begins at a random place, so that two runs side by side seldom meet.
var nextPort = func() *atomic.Uint32 {
	var b [2]byte
	_, _ = rand.Read(b[:])
	var n atomic.Uint32
	n.Store((uint32(b[0])<<8 | uint32(b[1])) % 12000 &^ 1)
	return &n
}()

// freePort finds a loopback TCP port that nobody listens on. It lies below the
// ports that the kernel gives to outgoing connections, so none of those takes
// it before the component does. The port after it stays free too: Vault takes
// that for its cluster.
func freePort(tb testing.TB) int {
	tb.Helper()
	for range 1000 {
		port := 20000 + int(nextPort.Add(2)%12000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = l.Close()
			return port
		}
	}
	tb.Fatal("no free port between 20000 and 32000")
	return 0
}

// publicDir makes a folder that other users may traverse, which a test's own
// TempDir is not, and removes it after the test.
func publicDir(tb testing.TB, pattern string) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", pattern)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// writeFile writes a file that only its owner reads.
func writeFile(tb testing.TB, path string, content []byte) {
	tb.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// A log keeps what a process prints. It is safe for concurrent use.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// A process is a component that runs until its test ends.
type process struct {
	cmd  *exec.Cmd
	log  *log
	done chan struct{} // closed when it has ended
}

// start starts cmd with its output in log. Its end doesn't fail a test by
// itself. It dies with the test process, however that ends (Linux only).
func start(tb testing.TB, cmd *exec.Cmd, log *log) *process {
	tb.Helper()
	cmd.Stdout, cmd.Stderr = log, log
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		tb.Fatalf("starting %s: %v", filepath.Base(cmd.Path), err)
	}
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	tb.Cleanup(func() {
		p.stop(syscall.SIGTERM)
		if tb.Failed() {
			tb.Logf("%s printed:\n%s", filepath.Base(cmd.Path), tail(p.log.String(), 16<<10))
		}
	})
	return p
}

// tail is the end of s, at most n bytes.
func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "…" + s[len(s)-n:]
}

// stop sends the signal and waits for the end; after [stopTimeout] it kills.
func (p *process) stop(sig syscall.Signal) {
	select {
	case <-p.done:
		return
	default:
	}
	_ = p.cmd.Process.Signal(sig)
	_ = p.cmd.Process.Signal(syscall.SIGCONT) // a frozen process can't hear
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// await polls ready until it gives nil, the process ends or time is up. It
// fails with what ready last said, not with the end of the wait.
func (p *process) await(tb testing.TB, what string, ready func(context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := ready(ctx)
		if err == nil {
			return
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-p.done:
			tb.Fatalf("%s ended before it was ready (%v): %v", what, p.cmd.ProcessState, last)
		case <-ctx.Done():
			tb.Fatalf("%s isn't ready after %v: %v", what, startTimeout, last)
		case <-tick.C:
		}
	}
}

// Eventually polls got until it gives true, and fails the test with the
// message when that takes longer than within.
func Eventually(tb testing.TB, within time.Duration, message string, got func() bool) {
	tb.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !got() {
		select {
		case <-deadline.C:
			tb.Fatalf("not within %v: %s", within, message)
		case <-tick.C:
		}
	}
}

// A Bin holds the paths of the built programs.
type Bin struct {
	Runenv string
	Broker string
}

// built holds the folder of binaries for each set of build tags.
var built struct {
	mu   sync.Mutex
	dirs map[string]string
}

// Binaries gives the programs: those that make built, or, with build tags or
// without make, ones built here, once for each set of tags.
func Binaries(tb testing.TB, tags ...string) Bin {
	tb.Helper()
	dir := os.Getenv("RUNENV_E2E_BIN")
	if len(tags) > 0 || dir == "" {
		var err error
		if dir, err = buildBinaries(strings.Join(tags, ",")); err != nil {
			tb.Fatal(err)
		}
	}
	return Bin{filepath.Join(dir, "runenv"), filepath.Join(dir, "runenv-broker")}
}

func buildBinaries(tags string) (string, error) {
	built.mu.Lock()
	defer built.mu.Unlock()
	if dir, ok := built.dirs[tags]; ok {
		return dir, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "runenv-bin-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // other users' processes run them too
		return "", err
	}
	if built.dirs == nil {
		built.dirs = make(map[string]string)
	}
	built.dirs[tags] = dir
	cmd := exec.Command("go", "build", "-trimpath", "-tags", tags, "-o", dir, "./cmd/...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building with tags %q: %w\n%s", tags, err, out)
	}
	return dir, nil
}

func removeBinaries() {
	built.mu.Lock()
	defer built.mu.Unlock()
	for _, dir := range built.dirs {
		_ = os.RemoveAll(dir)
	}
	clear(built.dirs)
}

// moduleRoot is the folder of the module under test.
func moduleRoot() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/runenv/action").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return "", fmt.Errorf("finding the module under test: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// randomWord is a password or token for this run: 32 letters and digits.
func randomWord() string { return rand.Text() + rand.Text()[:6] }

// signal sends a signal to a process that is expected to run.
func (p *process) signal(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		tb.Fatalf("%v to %s: %v", sig, filepath.Base(p.cmd.Path), err)
	}
}
