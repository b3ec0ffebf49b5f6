//go:build linux || darwin

package proc_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/runenv/action/internal/proc"
)

func TestStatusIsTheChilds(t *testing.T) {
	t.Parallel()
	tests := []struct {
		script string
		code   int
		signal syscall.Signal
	}{
		{"true", 0, 0},
		{"exit 7", 7, 0},
		{"exit 255", 255, 0},
		{"kill -9 $$", 137, syscall.SIGKILL},
		{"kill -15 $$", 143, syscall.SIGTERM},
	}
	for _, tt := range tests {
		got := run(t, shell(tt.script))
		if got.Code() != tt.code || got.Signal() != tt.signal {
			t.Errorf("%q: code %d, signal %d, want %d, %d", tt.script, got.Code(), got.Signal(), tt.code, tt.signal)
		}
	}
}

// stopped is an error of a start that a signal ended.
type stopped struct{ error }

func (stopped) Signal() syscall.Signal { return syscall.SIGINT }

func TestSignalBeforeTheCommandIsItsStatus(t *testing.T) {
	t.Parallel()
	cfg := shell("true")
	cfg.Start = func(string, []string, *os.ProcAttr) (*os.Process, error) {
		return nil, stopped{errors.New("stopped by a signal")}
	}
	if got := run(t, cfg); got.Code() != 130 || got.Signal() != syscall.SIGINT {
		t.Errorf("code %d, signal %d, want 130 and %d", got.Code(), got.Signal(), syscall.SIGINT)
	}
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := file("plain", "#!/bin/sh\n", 0o644)
	foreign := file("foreign", "\xfe\xed\xfa\xce\x00\x00\x00\x00", 0o755)
	orphan := file("orphan", "#!/no/such/interpreter\n", 0o755)
	tests := []struct {
		name string
		arg  string
		env  []string
		code int
		hint bool
	}{
		{"not in PATH", "no-such-command-here", env(), 127, true},
		{"no PATH at all", "sh", nil, 127, true},
		{"empty name", "", env(), 127, true},
		{"no such path", filepath.Join(dir, "nothing"), env(), 127, true},
		{"not executable", plain, env(), 126, true},
		{"not executable, by PATH", "plain", []string{"PATH=" + dir}, 126, true},
		{"a directory", dir, env(), 126, false},
		{"another machine's binary", foreign, env(), 126, false},
		{"interpreter missing", orphan, env(), 127, true},
		{"a file's child", plain + "/x", env(), 126, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := proc.Run(t.Context(), proc.Config{Args: []string{tt.arg}, Env: tt.env})
			var se *proc.StartError
			if !errors.As(err, &se) {
				t.Fatalf("Run(%q) = %v, want a StartError", tt.arg, err)
			}
			if se.Code() != tt.code {
				t.Errorf("%v: code %d, want %d", err, se.Code(), tt.code)
			}
			if (se.Hint() != "") != tt.hint {
				t.Errorf("%v: hint %q", err, se.Hint())
			}
		})
	}
	if _, err := proc.Run(t.Context(), proc.Config{}); err == nil {
		t.Error("Run without a command gave no error")
	}
}

func TestTooLargeEnvironmentHasAHint(t *testing.T) {
	t.Parallel()
	_, err := proc.Run(t.Context(), proc.Config{Args: []string{"/bin/sh", "-c", "true"}, Env: []string{"BIG=" + strings.Repeat("x", 8<<20)}})
	var se *proc.StartError
	if !errors.As(err, &se) || se.Code() != 126 || !strings.Contains(se.Hint(), "larger") {
		t.Errorf("Run = %v, want a StartError with code 126 and a hint", err)
	}
}

// The command is looked up where the child would look, in Dir and its PATH.
func TestLookup(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{"tool": "#!/bin/sh\necho shebang $1\n", "bare": "echo bare $1\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name string
		cfg  proc.Config
		want string
	}{
		{"by PATH of the child", proc.Config{Args: []string{"tool", "1"}, Env: []string{"PATH=/none:" + dir}}, "shebang 1\n"},
		{"the last PATH counts", proc.Config{Args: []string{"tool", "2"}, Env: []string{"PATH=/none", "PATH=" + dir}}, "shebang 2\n"},
		{"relative to Dir", proc.Config{Args: []string{"./tool", "3"}, Dir: dir}, "shebang 3\n"},
		{"empty PATH element", proc.Config{Args: []string{"tool", "4"}, Dir: dir, Env: []string{"PATH=:/none"}}, "shebang 4\n"},
		{"script without a first line", proc.Config{Args: []string{"bare", "5"}, Env: []string{"PATH=" + dir}}, "bare 5\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			tt.cfg.Stdout = &out
			if got := run(t, tt.cfg); got.Code() != 0 || out.String() != tt.want {
				t.Errorf("code %d, output %q, want 0, %q", got.Code(), out.String(), tt.want)
			}
		})
	}
}

func TestEnvironmentIsOnlyWhatIsGiven(t *testing.T) {
	t.Setenv("RUNENV_PROC_PARENT", "leak")
	for name, given := range map[string][]string{"nil": nil, "empty": {}, "some": {"A=1"}} {
		var out bytes.Buffer
		run(t, proc.Config{Args: []string{"/usr/bin/env"}, Env: given, Stdout: &out})
		if want := strings.Join(given, ""); strings.TrimSpace(out.String()) != want {
			t.Errorf("%s: the child's environment is %q, want %q", name, out.String(), want)
		}
	}
}

func TestStreamsPass(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if _, err := w.WriteString("line in\n"); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	var out, errs bytes.Buffer
	cfg := shell("read x; echo out $x; echo err $x >&2")
	cfg.Stdin, cfg.Stdout, cfg.Stderr = r, &out, &errs
	run(t, cfg)
	if out.String() != "out line in\n" || errs.String() != "err line in\n" {
		t.Errorf("stdout %q, stderr %q", out.String(), errs.String())
	}
}

func TestWithoutStreamsTheNullDevice(t *testing.T) {
	t.Parallel()
	if got := run(t, shell("cat && echo lost && echo lost >&2")); got.Code() != 0 {
		t.Errorf("code %d, want 0", got.Code())
	}
}

// A file is the child's own stdout, so that a terminal stays a terminal.
func TestFileIsHandedOver(t *testing.T) {
	t.Parallel()
	w, read := holders(t)
	cfg := shell("sh -c 'sleep 0; echo from a grandchild'")
	cfg.Stdout = w
	run(t, cfg)
	if got := read(); got != "from a grandchild\n" {
		t.Errorf("output %q", got)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestFailingWriter(t *testing.T) {
	t.Parallel()
	broken := errors.New("disk full")
	for _, tt := range []struct{ in, want error }{{broken, broken}, {syscall.EPIPE, nil}} {
		cfg := shell("while :; do echo y; done")
		cfg.Stdout = failing{tt.in}
		status, err := proc.Run(t.Context(), cfg)
		if !errors.Is(err, tt.want) || status.Signal() != syscall.SIGPIPE {
			t.Errorf("writer failing with %v: Run = %v, signal %d, want %v, SIGPIPE", tt.in, err, status.Signal(), tt.want)
		}
	}
}

func TestSignalsReachTheGroup(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			out, signals := newLines(t), make(chan os.Signal, 1)
			// The grandchild ends the wait of its parent, which ignores the signal.
			cfg := shell(`trap 'echo parent; exit 3' INT TERM HUP USR1
				sh -c 'trap "echo grandchild; exit" INT TERM HUP USR1; echo ready; while :; do sleep 0.01; done'
				while :; do sleep 0.01; done`)
			cfg.Stdout, cfg.Signals = out, signals
			done := make(chan proc.Status, 1)
			go func() { done <- run(t, cfg) }()
			out.want("ready")
			// These aren't passed on: the first would stop the shell.
			signals <- syscall.SIGPIPE
			signals <- syscall.SIGURG
			signals <- syscall.SIGCHLD
			signals <- sig
			out.want("grandchild")
			out.want("parent")
			if got := <-done; got.Code() != 3 {
				t.Errorf("code %d, want 3", got.Code())
			}
		})
	}
}

// The terminal itself sends INT to the whole group; twice would look like an
// impatient user. TERM only we get.
func TestTerminalSignalsAreNotDoubled(t *testing.T) {
	t.Parallel()
	out, signals := newLines(t), make(chan os.Signal)
	cfg := helper(t, "relay-int")
	cfg.Stdout, cfg.Signals, cfg.Terminal = out, signals, true
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := proc.Run(ctx, cfg); done <- err }()
	out.want("ready")
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTSTP, syscall.SIGTERM} {
		signals <- s
	}
	close(signals)
	out.want("got 15")
	cancel()
	out.want("got 15") // the cancelled context's, before KILL
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestCancelTermsThenKills(t *testing.T) {
	t.Parallel()
	out := newLines(t)
	cfg := shell("trap 'echo asked' TERM; echo ready; while :; do sleep 0.01; done")
	cfg.Stdout, cfg.Grace = out, 100e6
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan proc.Status, 1)
	go func() {
		status, err := proc.Run(ctx, cfg)
		if err != nil {
			t.Error(err)
		}
		done <- status
	}()
	out.want("ready")
	cancel()
	out.want("asked")
	if got := <-done; got.Signal() != syscall.SIGKILL {
		t.Errorf("signal %d, want SIGKILL", got.Signal())
	}
}

func TestBackgroundChildIsStopped(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"obedient":     "sleep 1000 & echo over; exit 4",
		"ignores TERM": "(trap '' TERM; while :; do sleep 1; done) & echo over; exit 4",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			held, gone := holders(t)
			var errs bytes.Buffer
			cfg := shell(script)
			cfg.Stdout, cfg.Stderr, cfg.Grace = held, &errs, 100e6
			if got := run(t, cfg); got.Code() != 4 {
				t.Errorf("code %d, want 4", got.Code())
			}
			if got := gone(); got != "over\n" {
				t.Errorf("output %q", got)
			}
		})
	}
}

// The tee of `exec > >(tee log)` is left behind with work to do.
func TestBackgroundChildMayEndByItself(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	cfg := shell("(sleep 0.05; echo late) & echo over")
	cfg.Stdout = &out
	if got := run(t, cfg); got.Code() != 0 {
		t.Errorf("code %d, want 0", got.Code())
	}
	if got, want := out.String(), "over\nlate\n"; got != want {
		t.Errorf("output %q, want %q", got, want)
	}
}

// A process that left the group and holds stdout can't keep Run.
func TestEscapedHolderOfStdout(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	cfg := helper(t, "daemonize")
	cfg.Stdout, cfg.WaitDelay = &out, 50e6
	run(t, cfg)
	pid := daemonPid(t, out.String())
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("killing the daemon, which nobody was to stop here: %v", err)
	}
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// Not parallel: it measures what the process allocates.
func TestOneGiBInConstantMemory(t *testing.T) {
	var before, after runtime.MemStats
	var n counter
	cfg := helper(t, "flood")
	cfg.Stdout = &n
	runtime.ReadMemStats(&before)
	got := run(t, cfg)
	runtime.ReadMemStats(&after)
	if got.Code() != 0 || n.n != 1<<30 {
		t.Errorf("code %d, %d bytes, want 0, %d", got.Code(), n.n, 1<<30)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20 {
		t.Errorf("1 GiB of output allocated %d bytes, want at most 4 MiB", used)
	}
}

func TestOnStart(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	pid := 0
	cfg := shell("echo $$")
	cfg.Stdout, cfg.OnStart = &out, func(p int) { pid = p }
	run(t, cfg)
	if got := number(t, strings.TrimSpace(out.String())); pid == 0 || got != pid {
		t.Errorf("OnStart got %d, the child is %d", pid, got)
	}
}
