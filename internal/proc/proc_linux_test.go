package proc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/runenv/action/internal/proc"
	"github.com/runenv/action/internal/proc/proctest"
)

// systemModes are helpers that change their own process, so each runs apart.
var systemModes = map[string]func() int{
	"adopt":        adoptMode,
	"wrap":         wrapMode,
	"tty":          ttyMode,
	"own-terminal": ownTerminalMode,
	"first":        firstMode,
	"detach":       detachMode,
	"notify":       notifyMode,
	"pipe":         pipeMode,
	"harden":       hardenMode,
	"parent":       parentMode,
	"follower":     followerMode,
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 98
}

func osExecutable() string {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return exe
}

func wrap(cfg proc.Config) int {
	cfg.Stdout, cfg.Stderr = os.Stdout, os.Stderr
	status, err := proc.Run(context.Background(), cfg)
	if err != nil {
		return fail(err)
	}
	return status.Code()
}

// adoptMode has a child of its own, which must survive, and runs a command
// that leaves a daemon behind, which must not.
func adoptMode() int {
	own := exec.Command("/bin/cat")
	in, err := own.StdinPipe()
	if err != nil {
		return fail(err)
	}
	if err := own.Start(); err != nil {
		return fail(err)
	}
	code := wrap(proc.Config{
		Args: []string{"/bin/sh", "-c", `"$0"; exit 5`, osExecutable()}, Env: env(modeVar + "=daemonize"),
		Adopt: true, Grace: 100e6,
	})
	_ = in.Close()
	if err := own.Wait(); err != nil {
		return fail(err)
	}
	return code
}

func TestAdoptStopsWhatLeftTheGroup(t *testing.T) {
	t.Parallel()
	held, gone := holders(t)
	cfg := helper(t, "adopt")
	cfg.Stdout, cfg.Stderr = held, os.Stderr
	if got := run(t, cfg); got.Code() != 5 {
		t.Errorf("code %d, want 5", got.Code())
	}
	pid := daemonPid(t, gone()) // returns when the daemon has gone
	if err := syscall.Kill(pid, 0); err == nil {
		t.Errorf("the daemon %d still lives", pid)
	}
}

// wrapMode is a wrapper that dies by KILL while its child runs.
func wrapMode() int {
	return wrap(proc.Config{Args: []string{osExecutable()}, Env: env(modeVar + "=hold")})
}

func TestT30ChildDiesWithKilledWrapper(t *testing.T) {
	t.Parallel()
	out := newLines(t)
	held, gone := holders(t)
	cfg := helper(t, "wrap")
	wrapper := exec.Command(cfg.Args[0])
	wrapper.Env = cfg.Env
	stdout, err := wrapper.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	wrapper.Stderr = held // a file: the child has it too
	if err := wrapper.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, err := stdout.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write(buf[:n]); err != nil {
		t.Fatal(err)
	}
	out.want("holding")
	if err := wrapper.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	gone()
	_ = wrapper.Wait() // killed, as intended
}

// ttyMode is a wrapper in the foreground of a terminal.
func ttyMode() int {
	if !proc.OnTerminal() {
		return fail(fmt.Errorf("no terminal"))
	}
	signals, stop := proc.Notify(true)
	defer stop()
	return wrap(proc.Config{
		Args: []string{osExecutable()}, Env: env(modeVar + "=relay-int"),
		Terminal: true, Signals: signals, Stdin: os.Stdin,
	})
}

func TestControlCLeavesTheWrapperAlive(t *testing.T) {
	t.Parallel()
	master, slave := proctest.OpenTerminal(t)
	cmd := exec.Command(self(t))
	cmd.Env = env(modeVar + "=tty")
	out := newLines(t)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.want("ready")
	if _, err := master.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	out.want("got 2")
	// The wrapper survived the INT, and passes TERM on.
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	out.want("got 15")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed, as intended
}

// notifyMode is a wrapper without a terminal.
func notifyMode() int {
	signals, stop := proc.Notify(false)
	defer stop()
	return wrap(proc.Config{Args: []string{osExecutable()}, Env: env(modeVar + "=relay-int"), Signals: signals})
}

// What the runner sends to the wrapper alone arrives at the command.
func TestSignalsToTheWrapper(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(self(t))
	out := newLines(t)
	cmd.Env, cmd.Stdout, cmd.Stderr = env(modeVar+"=notify"), out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.want("ready")
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		out.want(fmt.Sprint("got ", int(s)))
	}
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil { // ends the child
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 128+int(syscall.SIGHUP) {
		t.Errorf("the wrapper ended with %v, want exit status %d", err, 128+int(syscall.SIGHUP))
	}
}

// pipeMode has an output that nobody reads.
func pipeMode() int {
	signals, stop := proc.Notify(false)
	defer stop()
	status, err := proc.Run(context.Background(), proc.Config{
		Args: []string{"/bin/sh", "-c", "while :; do echo y; done"}, Stdout: struct{ io.Writer }{os.Stdout}, Signals: signals,
	})
	if err != nil {
		return fail(err)
	}
	return status.Code()
}

func TestClosedPipeLeavesTheWrapperAlive(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	cmd := exec.Command(self(t))
	cmd.Env, cmd.Stdout, cmd.Stderr = env(modeVar+"=pipe"), w, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 128+int(syscall.SIGPIPE) {
		t.Errorf("the wrapper ended with %v, want exit status %d", err, 128+int(syscall.SIGPIPE))
	}
}

// hardenMode prints its own limits and dumpable flag, then has a child print
// the limit that it got.
func hardenMode() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &lim); err != nil {
		return fail(err)
	}
	lim.Cur = min(4096, lim.Max)
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &lim); err != nil {
		return fail(err)
	}
	original := lim
	for range 2 { // twice: the original is the first
		if err := proc.HardenSelf(); err != nil {
			return fail(err)
		}
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return fail(err)
	}
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &lim); err != nil {
		return fail(err)
	}
	fmt.Println("dumpable", dumpable, "core", lim.Cur == min(1, lim.Max), "hard kept", lim.Max == original.Max)
	r, w, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	return wrap(proc.Config{
		Args: []string{"/bin/sh", "-c", `read go; grep -c "^Max core file size *` + strconv.FormatUint(original.Cur, 10) + ` " /proc/self/limits`},
		Env:  env(), Stdin: r,
		OnStart: func(int) { _, _ = w.WriteString("go\n") },
	})
}

func TestT31HardenSelf(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	cfg := helper(t, "harden")
	cfg.Stdout, cfg.Stderr = &out, os.Stderr
	got := run(t, cfg)
	if want := "dumpable 0 core true hard kept true\n1\n"; got.Code() != 0 || out.String() != want {
		t.Errorf("code %d, output %q, want 0, %q", got.Code(), out.String(), want)
	}
}

// questions are so many that a signal sent before the first has long arrived
// at the last.
const questions = 100

// parentMode starts a follower from a thread that ends, asks it whether it
// still runs, and waits to be killed.
func parentMode() int {
	cmd := exec.Command(osExecutable())
	ready, following, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	cmd.Env, cmd.Stdout, cmd.Stderr = env(modeVar+"=follower"), os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{following}
	thread, release := make(chan int), make(chan struct{})
	var starter func()
	starter = func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this func
		if unix.Gettid() == os.Getpid() {
			go starter() // the first thread never ends: it is kept out of the way
			select {}
		}
		if err := cmd.Start(); err != nil {
			os.Exit(fail(err))
		}
		thread <- unix.Gettid()
		<-release
	}
	go starter()
	tid := <-thread
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		return fail(err)
	}
	close(release)
	for {
		if err := unix.Tgkill(os.Getpid(), tid, 0); errors.Is(err, syscall.ESRCH) {
			break
		}
		runtime.Gosched()
	}
	for range questions {
		if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			return fail(err)
		}
		if _, err := ready.Read(make([]byte, 1)); err != nil {
			return fail(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		return fail(err)
	}
	return 0
}

func followerMode() int {
	term, asked := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	signal.Notify(asked, syscall.SIGUSR1)
	if err := proc.DieWithParent(); err != nil {
		return fail(err)
	}
	fmt.Println("following")
	ready := os.NewFile(3, "ready")
	for range questions {
		if _, err := ready.Write([]byte{1}); err != nil {
			return fail(err)
		}
		select {
		case <-term:
			fmt.Println("told too early")
			return 1
		case <-asked:
		}
	}
	if _, err := ready.Write([]byte{1}); err != nil {
		return fail(err)
	}
	fmt.Println("still here")
	<-term
	fmt.Println("told")
	return 0
}

func TestT30DieWithParent(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	parent := exec.Command(self(t))
	parent.Env, parent.Stdout, parent.Stderr = env(modeVar+"=parent"), w, os.Stderr
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	out := newLines(t)
	go func() {
		buf := make([]byte, 256)
		for {
			n, err := r.Read(buf)
			if err != nil {
				return
			}
			_, _ = out.Write(buf[:n])
		}
	}()
	out.want("following")
	out.want("still here") // though the thread that made it has ended
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	out.want("told")
	_ = parent.Wait() // killed, as intended
}
