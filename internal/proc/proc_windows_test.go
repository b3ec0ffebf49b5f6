package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/windows"
)

// patience bounds every wait in these tests; none takes that long unless
// something is broken.
const patience = 30 * time.Second

const modeVar = "RUNENV_PROC_TEST"

// The test binary plays the processes, since there is no shell to rely on.
func TestMain(m *testing.M) {
	mode, rest, _ := strings.Cut(os.Getenv(modeVar), " ")
	switch mode {
	case "":
		os.Exit(m.Run())
	case "exit":
		code, _ := strconv.ParseUint(rest, 0, 32)
		os.Exit(int(code))
	case "echo":
		in, _ := io.ReadAll(os.Stdin)
		fmt.Printf("out %s %s", strings.Join(os.Args[1:], " "), in)
		fmt.Fprintf(os.Stderr, "err %s", in)
	case "environ":
		own := slices.DeleteFunc(os.Environ(), func(kv string) bool { return !strings.HasPrefix(kv, "RUNENV_") })
		fmt.Print(strings.Join(own, "\n"))
	case "hold":
		fmt.Println("pid", os.Getpid())
		<-time.After(2 * patience) // nobody may be left to end it
	case "leave": // a process that holds stdout
		if _, err := leave(); err != nil {
			os.Exit(98)
		}
	case "leave-and-hold":
		if _, err := leave(); err != nil {
			os.Exit(98)
		}
		<-time.After(2 * patience) // nobody may be left to end it
	case "told": // ends when it is told to
		signals, _ := Notify(false)
		_, _ = os.Stdin.Write([]byte{'R'}) // see console
		fmt.Println("got", <-signals)
		os.Exit(3)
	case "console":
		os.Exit(console(rest))
	case "run": // another mode, as runenv does
		os.Exit(wrapper(rest))
	default:
		os.Exit(99)
	}
}

func leave() (*os.Process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return os.StartProcess(exe, []string{exe}, &os.ProcAttr{
		Env: environ("hold"), Files: []*os.File{nil, os.Stdout, nil}, Sys: &syscall.SysProcAttr{CreationFlags: windows.DETACHED_PROCESS},
	})
}

// console runs another mode on a console of its own, and sends Ctrl-C to all
// that are on it.
func console(mode string) int {
	dll := windows.NewLazySystemDLL("kernel32.dll")
	_, _, _ = dll.NewProc("FreeConsole").Call()
	if done, _, err := dll.NewProc("AllocConsole").Call(); done == 0 {
		fmt.Println("no console:", err)
		return 95
	}
	_, stop := Notify(false) // we are on it too
	defer stop()
	r, w, err := os.Pipe()
	if err != nil {
		return 94
	}
	exe, err := os.Executable()
	if err != nil {
		return 93
	}
	p, err := os.StartProcess(exe, []string{exe}, &os.ProcAttr{Env: environ(mode), Files: []*os.File{w, os.Stdout, os.Stdout}})
	if err != nil {
		return 92
	}
	_ = w.Close()
	if n, err := r.Read(make([]byte, 1)); n != 1 {
		fmt.Println("nobody is ready:", err)
		return 89
	}
	if err := windows.GenerateConsoleCtrlEvent(windows.CTRL_C_EVENT, 0); err != nil {
		fmt.Println("no event:", err)
		return 91
	}
	state, err := p.Wait()
	if err != nil {
		return 90
	}
	return state.ExitCode()
}

func wrapper(mode string) int {
	exe, err := os.Executable()
	if err != nil {
		return 97
	}
	signals, stop := Notify(false)
	defer stop()
	status, err := Run(context.Background(), Config{
		Args: []string{exe}, Env: environ(mode), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Signals: signals,
		Problem: func(what string, err error) { fmt.Println("problem:", what, err) },
	})
	if err != nil {
		return 96
	}
	return status.Code()
}

// environ runs the test binary in a mode; Windows' own libraries need SYSTEMROOT.
func environ(mode string) []string {
	return []string{modeVar + "=" + mode, "SYSTEMROOT=" + os.Getenv("SYSTEMROOT")}
}

func helper(t *testing.T, mode string) Config {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Config{Args: []string{exe}, Env: environ(mode), Problem: func(what string, err error) { t.Errorf("%s: %v", what, err) }}
}

func run(t *testing.T, cfg Config) Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	status, err := Run(ctx, cfg)
	if err != nil {
		t.Fatalf("Run(%q) = %v, want no error", cfg.Args, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("Run(%q) had to be cancelled", cfg.Args)
	}
	return status
}

// holders is a pipe whose write end goes to processes; its lines come as they
// are written, and the channel is closed when every process that holds the end
// is gone.
func holders(t *testing.T) (w *os.File, lines <-chan string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	c := make(chan string, 100)
	go func() {
		defer close(c)
		defer func() { _ = r.Close() }()
		var all []byte
		buf := make([]byte, 100)
		for {
			n, err := r.Read(buf)
			all = append(all, buf[:n]...)
			for {
				line, rest, ok := bytes.Cut(all, []byte("\n"))
				if !ok {
					break
				}
				c <- string(line)
				all = rest
			}
			if err != nil {
				return
			}
		}
	}()
	return w, c
}

func next(t *testing.T, lines <-chan string) (line string, more bool) {
	t.Helper()
	select {
	case line, more = <-lines:
		return line, more
	case <-time.After(patience):
		t.Fatal("nothing came, and a process still holds the pipe")
		return "", false
	}
}

func pidOf(t *testing.T, lines <-chan string) int {
	t.Helper()
	line, _ := next(t, lines)
	pid, err := strconv.Atoi(strings.TrimPrefix(line, "pid "))
	if err != nil {
		t.Fatalf("line %q, want a pid", line)
	}
	return pid
}

func allGone(t *testing.T, lines <-chan string) {
	t.Helper()
	for {
		line, more := next(t, lines)
		if !more {
			return
		}
		t.Log(line)
	}
}

// An NTSTATUS passes as it is.
func TestStatusIsTheChilds(t *testing.T) {
	t.Parallel()
	for _, code := range []uint32{0, 1, 7, 255, 256, 0xC0000005, 0xC000013A, 0xFFFFFFFF} {
		for _, mode := range []string{"exit ", "run exit "} {
			got := run(t, helper(t, mode+strconv.FormatUint(uint64(code), 10)))
			if uint32(got.Code()) != code || got.Signal() != 0 {
				t.Errorf("%s%#x: code %#x, signal %d", mode, code, got.Code(), got.Signal())
			}
		}
	}
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := filepath.Join(dir, "text.exe")
	if err := os.WriteFile(text, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		arg  string
		code int
	}{
		{"not in PATH", "no-such-command-here", 127},
		{"empty name", "", 127},
		{"no such path", filepath.Join(dir, "nothing"), 127},
		{"a directory", dir + `\.`, 126},
		{"no program", text, 126},
		{"no program, by PATH", "text", 126},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := Run(t.Context(), Config{Args: []string{tt.arg}, Env: []string{"PATH=" + dir}})
			se, ok := errors.AsType[*StartError](err)
			if !ok {
				t.Fatalf("Run(%q) = %v, want a StartError", tt.arg, err)
			}
			if se.Code() != tt.code {
				t.Errorf("%v: code %d, want %d", err, se.Code(), tt.code)
			}
		})
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"both.exe", "both.bat", "dotted.v1.exe", "script.cmd"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return dir + `\` + name }
	path := "Path=C:\\none;;" + dir
	tests := []struct {
		what, name string
		dir        string
		env        []string
		want       string // "" is none
	}{
		{"the first extension counts", "both", "", []string{path}, in("both.exe")},
		{"PATHEXT says which", "both", "", []string{path, "PATHEXT=.bat;.exe"}, in("both.bat")},
		{"an extension given", "both.bat", "", []string{path}, in("both.bat")},
		{"a dot that is no extension's", "dotted.v1", "", []string{path}, in("dotted.v1.exe")},
		{"npm and its like", "script", "", []string{path}, in("script.cmd")},
		{"the last PATH counts", "both", "", []string{path, "PATH=C:\\none"}, ""},
		{"no PATH", "both", dir, nil, ""},
		{"not the working directory's", "both", dir, []string{"PATH=C:\\none;"}, ""},
		{"a path in Dir", `.\both`, dir, nil, `.\both.exe`},
		{"a whole path", in("both"), "", nil, in("both.exe")},
	}
	for _, tt := range tests {
		got, err := find(Config{Args: []string{tt.name}, Dir: tt.dir, Env: tt.env})
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: find(%q) = %q, %v, want %q", tt.what, tt.name, got, err, tt.want)
		}
	}
}

func TestEnvironmentIsOnlyWhatIsGiven(t *testing.T) {
	t.Setenv("RUNENV_PROC_PARENT", "leak")
	var out bytes.Buffer
	cfg := helper(t, "environ")
	cfg.Stdout = &out
	run(t, cfg)
	if want := modeVar + "=environ"; out.String() != want {
		t.Errorf("the child's environment is %q, want %q", out.String(), want)
	}
}

func TestStreamsPass(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if _, err := w.WriteString("line in"); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	var out, errs bytes.Buffer
	cfg := helper(t, "echo")
	cfg.Args = append(cfg.Args, "an", `"argument" \`)
	cfg.Stdin, cfg.Stdout, cfg.Stderr = r, &out, &errs
	run(t, cfg)
	if out.String() != `out an "argument" \ line in` || errs.String() != "err line in" {
		t.Errorf("stdout %q, stderr %q", out.String(), errs.String())
	}
}

func TestWhatIsLeftIsStopped(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"leave", "run leave"} { // the latter's job lies in another
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w, lines := holders(t)
			cfg := helper(t, mode)
			cfg.Stdout = w
			if got := run(t, cfg); got.Code() != 0 {
				t.Errorf("code %d, want 0", got.Code())
			}
			_ = w.Close()
			allGone(t, lines)
		})
	}
}

// It may hold the pipe of the output, whose end is waited for before the job
// is closed.
func TestWhatIsLeftIsStoppedBeforeTheOutputsEnd(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	cfg := helper(t, "leave")
	cfg.Stdout, cfg.WaitDelay = &out, patience
	if got := run(t, cfg); got.Code() != 0 {
		t.Errorf("code %d, want 0", got.Code())
	}
}

func TestDetachedLiveOn(t *testing.T) {
	t.Parallel()
	w, lines := holders(t)
	cfg := helper(t, "leave")
	cfg.Stdout, cfg.Detach = w, true
	run(t, cfg)
	_ = w.Close()
	left, err := os.FindProcess(pidOf(t, lines))
	if err != nil {
		t.Fatalf("what was left is gone: %v", err)
	}
	if err := left.Kill(); err != nil {
		t.Errorf("what was left is gone: %v", err)
	}
	allGone(t, lines)
}

// The wrapper's handle is the job's only one.
func TestT30KilledWrapperTakesEverythingAlong(t *testing.T) {
	t.Parallel()
	w, lines := holders(t)
	cfg := helper(t, "run leave-and-hold")
	p, err := os.StartProcess(cfg.Args[0], cfg.Args, &os.ProcAttr{Env: cfg.Env, Files: []*os.File{nil, w, w}})
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	pidOf(t, lines)
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = p.Wait()
	allGone(t, lines)
}

func TestWithoutAJobTheChildAlone(t *testing.T) {
	t.Parallel()
	cfg := helper(t, "exit 5")
	told := ""
	cfg.Problem = func(what string, _ error) { told = what }
	f := newFamily(cfg)
	defer f.close()
	real := f.job
	f.job = &job{} // nothing can be put into that
	defer func() { _ = real.close() }()
	p, err := f.startProcess(os.StartProcess, cfg.Args[0], cfg.Args, &os.ProcAttr{Env: cfg.Env, Files: make([]*os.File, 3), Sys: f.sysProcAttr(cfg)})
	if err != nil {
		t.Fatal(err)
	}
	state, err := p.Wait()
	if err != nil || state.ExitCode() != 5 {
		t.Errorf("the child ended with %v, %v, want 5", state, err)
	}
	if told != "what the command starts can't be stopped with it" {
		t.Errorf("told of %q", told)
	}
}

// killed is the status of what RunEnv ends.
const killed = uint32(windows.STATUS_CONTROL_C_EXIT)

func TestCancelKills(t *testing.T) {
	t.Parallel()
	w, lines := holders(t)
	cfg := helper(t, "leave-and-hold")
	cfg.Stdout = w
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cfg.OnStart = func(int) { _ = w.Close() }
	done := make(chan Status, 1)
	go func() {
		status, err := Run(ctx, cfg)
		if err != nil {
			t.Error(err)
		}
		done <- status
	}()
	pidOf(t, lines)
	cancel()
	if got := <-done; uint32(got.Code()) != killed {
		t.Errorf("code %#x, want %#x", got.Code(), killed)
	}
	allGone(t, lines)
}

// Windows leaves five seconds: the command gets Grace of them.
func TestClosedConsoleEndsTheChildAfterGrace(t *testing.T) {
	t.Parallel()
	signals := make(chan os.Signal, 1)
	signals <- syscall.SIGTERM
	cfg := helper(t, "hold")
	cfg.Signals, cfg.Grace = signals, 10*time.Millisecond
	if got := run(t, cfg); uint32(got.Code()) != killed {
		t.Errorf("code %#x, want %#x", got.Code(), killed)
	}
}

func TestWhoInsistsKills(t *testing.T) {
	t.Parallel()
	for _, terminal := range []bool{true, false} {
		cfg := helper(t, "hold")
		cfg.Terminal, cfg.Grace = terminal, 10*time.Millisecond
		f := newFamily(cfg)
		defer f.close()
		p, err := f.startProcess(os.StartProcess, cfg.Args[0], cfg.Args, &os.ProcAttr{Env: cfg.Env, Files: make([]*os.File, 3), Sys: f.sysProcAttr(cfg)})
		if err != nil {
			t.Fatal(err)
		}
		before := doubleTap / 2
		if !terminal {
			before = 7500 * time.Millisecond
		}
		f.taps.last = time.Now().Add(-before)
		f.forward(os.Interrupt)
		state, err := p.Wait()
		if err != nil || uint32(state.ExitCode()) != killed {
			t.Errorf("terminal %v: the child ended with %v, %v, want %#x", terminal, state, err, killed)
		}
	}
}

func TestTaps(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	tests := []struct {
		name     string
		terminal bool
		at       []time.Duration
		want     []bool
	}{
		{"two in a second", true, []time.Duration{0, 400 * ms}, []bool{false, true}},
		{"two wishes", true, []time.Duration{0, 1500 * ms, 9000 * ms}, []bool{false, false, false}},
		{"the second of two wishes doubled", true, []time.Duration{0, 1500 * ms, 1900 * ms}, []bool{false, false, true}},
		{"told twice", true, []time.Duration{0, 5 * ms, 10 * ms}, []bool{false, false, false}},
		{"told twice, then again", true, []time.Duration{0, 5 * ms, 300 * ms}, []bool{false, false, true}},
		{"a GitHub runner's cancel", false, []time.Duration{0, 7500 * ms}, []bool{false, true}},
		{"the same, told twice", false, []time.Duration{0, 300 * ms, 7500 * ms}, []bool{false, false, true}},
	}
	for _, tt := range tests {
		taps := taps{terminal: tt.terminal}
		begin := time.Now()
		for i, at := range tt.at {
			if got := taps.insist(begin.Add(at)); got != tt.want[i] {
				t.Errorf("%s: insist(%v) = %v, want %v", tt.name, at, got, tt.want[i])
			}
		}
	}
}

// As a GitHub runner cancels: the event goes to all on the step's console, and
// the wrapper waits for its child. Wine has no Ctrl-Break, which Go doesn't tell
// from Ctrl-C.
func TestCtrlCReachesTheChild(t *testing.T) {
	t.Parallel()
	w, lines := holders(t)
	cfg := helper(t, "console run told")
	cfg.Stdout = w
	cfg.OnStart = func(int) { _ = w.Close() }
	if got := run(t, cfg); got.Code() != 3 {
		t.Errorf("code %#x, want the child's 3", got.Code())
	}
	if line, _ := next(t, lines); line != "got interrupt" {
		t.Errorf("the child says %q", line)
	}
	allGone(t, lines)
}
