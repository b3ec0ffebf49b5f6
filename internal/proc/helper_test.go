//go:build linux || darwin

package proc_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/internal/proc"
)

// patience bounds every wait in these tests; none takes that long unless
// something is broken.
const patience = 30 * time.Second

const modeVar = "RUNENV_PROC_TEST"

// The test binary plays the processes that a shell can't.
func TestMain(m *testing.M) {
	switch mode := os.Getenv(modeVar); mode {
	case "":
		// Under nohup children would begin with SIGHUP ignored; what is caught
		// here is theirs to take again.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
		os.Exit(m.Run())
	case "flood":
		flood()
	case "daemonize":
		daemonize()
	case "hold":
		fmt.Println("holding")
		<-time.After(time.Hour) // not select {}: the runtime would call it a deadlock
	case "relay-int": // says which signals it gets
		c := make(chan os.Signal, 8)
		signal.Notify(c, syscall.SIGINT, syscall.SIGTERM)
		fmt.Println("ready")
		for s := range c {
			fmt.Println("got", int(s.(syscall.Signal)))
		}
	default:
		if f, ok := systemModes[mode]; ok {
			os.Exit(f())
		}
		fmt.Fprintln(os.Stderr, "unknown mode", mode)
		os.Exit(99)
	}
}

func flood() {
	buf := bytes.Repeat([]byte("0123456789abcde\n"), 4096)
	for n := 0; n < 1<<30; n += len(buf) {
		if _, err := os.Stdout.Write(buf); err != nil {
			os.Exit(1)
		}
	}
}

// daemonize leaves a process in a session of its own, holding stdout, and
// exits when that process runs.
func daemonize() {
	r, w, err := os.Pipe()
	if err != nil {
		os.Exit(1)
	}
	p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "trap '' TERM; echo >&3; while :; do sleep 100; done"}, &os.ProcAttr{
		Env: []string{"PATH=" + os.Getenv("PATH")}, Files: []*os.File{nil, os.Stdout, nil, w}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		os.Exit(1)
	}
	_ = w.Close()
	if _, err := r.Read(make([]byte, 1)); err != nil {
		os.Exit(1)
	}
	fmt.Println("daemon", p.Pid)
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func daemonPid(t *testing.T, out string) int {
	t.Helper()
	return number(t, strings.TrimSpace(strings.TrimPrefix(out, "daemon ")))
}

func self(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

func env(extra ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH")}, extra...)
}

// helper is a Config that runs the test binary in a mode.
func helper(t *testing.T, mode string) proc.Config {
	return proc.Config{Args: []string{self(t)}, Env: env(modeVar + "=" + mode)}
}

func shell(script string) proc.Config {
	return proc.Config{Args: []string{"sh", "-c", script}, Env: env()}
}

func run(t *testing.T, cfg proc.Config) proc.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	status, err := proc.Run(ctx, cfg)
	if err != nil {
		t.Fatalf("Run(%q) = %v, want no error", cfg.Args, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("Run(%q) had to be cancelled", cfg.Args)
	}
	return status
}

// lines is an output that a test reads line by line as it comes.
type lines struct {
	t *testing.T
	c chan string

	mu   sync.Mutex
	part string
}

func newLines(t *testing.T) *lines { return &lines{t: t, c: make(chan string, 100)} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part += string(p)
	for {
		line, rest, ok := strings.Cut(l.part, "\n")
		if !ok {
			return len(p), nil
		}
		l.part = rest
		l.c <- line
	}
}

func (l *lines) next() string {
	l.t.Helper()
	select {
	case line := <-l.c:
		return line
	case <-time.After(patience):
		l.t.Fatal("no line came")
		return ""
	}
}

func (l *lines) want(want string) {
	l.t.Helper()
	if got := l.next(); got != want {
		l.t.Fatalf("line = %q, want %q", got, want)
	}
}

// holders is a pipe whose write end goes to a process; read returns all that
// was written once every process that holds the end is gone.
func holders(t *testing.T) (w *os.File, read func() string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	return w, func() string {
		t.Helper()
		_ = w.Close()
		if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("a process still holds the pipe: %v", err)
		}
		return string(b)
	}
}
