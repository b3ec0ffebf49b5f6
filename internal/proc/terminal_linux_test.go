package proc_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runenv/action/internal/proc"
)

// ownTerminalMode runs its arguments as runenv does on a terminal when it
// redacts: with a terminal of their own.
func ownTerminalMode() int {
	signals, stop := proc.Notify(true)
	defer stop()
	status, err := proc.Run(context.Background(), proc.Config{
		Args: os.Args[1:], Env: os.Environ(), Stdin: os.Stdin, Signals: signals, Adopt: true, Terminal: proc.OnTerminal(),
		Stdout: struct{ io.Writer }{os.Stdout}, Stderr: struct{ io.Writer }{os.Stderr},
		PTY: &proc.PTY{Stdin: proc.IsTerminal(os.Stdin), Stderr: proc.IsTerminal(os.Stderr)},
	})
	if err != nil {
		return fail(err)
	}
	fmt.Printf("status %d\n", status.Code())
	return status.Code()
}

// A screen is somebody's terminal, with a shell in it.
type screen struct {
	t      *testing.T
	master *os.File
	cmd    *exec.Cmd

	mu   sync.Mutex
	seen bytes.Buffer
	read int // what was looked at
	more chan struct{}
}

func newScreen(t *testing.T, argv ...string) *screen {
	t.Helper()
	blocking, slave := pty(t)
	// One that can be closed while it is read.
	fd, err := unix.FcntlInt(blocking.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	master := os.NewFile(uintptr(fd), "master")
	_ = blocking.Close()
	s := &screen{t: t, master: master, cmd: exec.Command(argv[0], argv[1:]...), more: make(chan struct{}, 1)}
	s.cmd.Env = env("PS1=$ ", "TERM=dumb", "HISTFILE=", "WRAP="+modeVar+"=own-terminal "+self(t))
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = slave, slave, slave
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			s.mu.Lock()
			s.seen.Write(buf[:n])
			s.mu.Unlock()
			select {
			case s.more <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		_ = master.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.Failed() {
			t.Logf("the screen:\n%s", s.seen.String())
		}
	})
	return s
}

func (s *screen) keys(text string) {
	s.t.Helper()
	if _, err := s.master.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// want waits for text after what was seen before, and returns what stood
// before it.
func (s *screen) want(text string) string {
	s.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		s.mu.Lock()
		rest := s.seen.String()[s.read:]
		before, _, ok := strings.Cut(rest, text)
		if ok {
			s.read += len(before) + len(text)
		}
		s.mu.Unlock()
		if ok {
			return before
		}
		select {
		case <-s.more:
		case <-timer.C:
			s.t.Fatalf("%q doesn't come", text)
		}
	}
}

func bash(t *testing.T) *screen {
	t.Helper()
	s := newScreen(t, "bash", "--norc", "--noprofile", "-i")
	s.want("$ ")
	s.keys("set +o history; bind 'set enable-bracketed-paste off' 2>/dev/null; stty -echo; alias wrap=\"$WRAP\"; echo rea''dy\n")
	s.want("ready")
	s.want("$ ")
	return s
}

func TestOwnTerminalIsOne(t *testing.T) {
	t.Parallel()
	s := bash(t)
	s.keys("stty rows 33 cols 101; wrap sh -c 'test -t 0 && test -t 1 && test -t 2 && tty </dev/tty >/dev/null && stty size'\n")
	s.want("33 101\r\n")
	s.want("status 0\r\n")
	// The settings are as they were.
	s.want("$ ")
	s.keys("stty -a | grep -o ' -\\?icanon'; echo e''nd\n")
	if got := s.want("end"); strings.Contains(got, "-icanon") || !strings.Contains(got, "icanon") {
		t.Errorf("the caller's terminal is left raw: %q", got)
	}
}

func TestOwnTerminalResizes(t *testing.T) {
	t.Parallel()
	s := bash(t)
	s.keys(`wrap sh -c 'trap "stty size; exit 0" WINCH; echo st"a"rted; while :; do read -r _; done'` + "\n")
	s.want("started")
	size := &unix.Winsize{Row: 44, Col: 55}
	conn, err := s.master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Control(func(fd uintptr) { err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) }); err != nil {
		t.Fatal(err)
	}
	s.keys("\n") // read is begun again after the signal
	s.want("44 55")
	s.want("status 0")
}

func TestPasswordPrompt(t *testing.T) {
	t.Parallel()
	s := bash(t)
	s.keys(`wrap sh -c 'printf "Pass""word: "; stty -echo; read -r p </dev/tty; stty echo; echo; echo "got ${#p} letters"'` + "\n")
	s.want("Password: ")
	s.keys("hunter22\n")
	if got := s.want("got 8 letters"); strings.Contains(got, "hunter22") {
		t.Errorf("the password is echoed: %q", got)
	}
	s.want("status 0")
}

func TestSuspendGivesTheShellBack(t *testing.T) {
	t.Parallel()
	s := bash(t)
	for _, wrapped := range []string{
		`sh -c 'echo st"a"rted; while read -r l; do echo "heard $l"; done'`,
		`cat -u <(echo st"a"rted) -`,
	} {
		s.keys("wrap " + wrapped + "\n")
		s.want("started")
		for range 2 {
			s.keys("\x1a")
			s.want("Stopped")
			s.want("$ ")
			s.keys("echo shell $((20+3)); stty -a | grep -o ' -\\?icanon'\n")
			if got := s.want("icanon"); !strings.Contains(got, "shell 23") || strings.HasSuffix(got, "-") {
				t.Errorf("the shell's terminal is raw while the job is stopped: %q", got)
			}
			s.want("$ ")
			s.keys("fg\n")
			s.want("\n") // the job's command line
			s.keys("again\n")
			s.want("again")
		}
		s.keys("\x04")
		s.want("status 0")
		s.want("$ ")
	}
}

func TestInteractiveShellKeepsItsJobs(t *testing.T) {
	t.Parallel()
	s := bash(t)
	s.keys("wrap bash --norc --noprofile -i\n")
	s.want("$ ")
	s.keys("stty -echo; echo fir''st\n")
	s.want("first")
	s.keys("\x1a") // means nothing at a prompt
	s.keys("sh -c 'echo inn\"e\"r; exec sleep 1000'\n")
	s.want("inner")
	s.keys("\x1a")
	s.want("Stopped")
	s.keys("kill %1; echo $((20+4))\n") // of the inner one
	s.want("24")
	s.keys("exit 3\n")
	s.want("exit")
	s.keys("exit 3\n") // there may have been stopped jobs
	s.want("status 3")
}

func TestControlCInterrupts(t *testing.T) {
	t.Parallel()
	s := bash(t)
	s.keys(`wrap sh -c 'trap "echo interr""upted; exit 9" INT; echo st"a"rted; while :; do sleep 0.05; done'` + "\n")
	s.want("started")
	s.keys("\x03")
	s.want("interrupted")
	s.want("status 9")
}

func TestSecondControlCKills(t *testing.T) {
	t.Parallel()
	s := bash(t)
	s.keys(`wrap sh -c 'trap "echo ignor""ed" INT; echo st"a"rted; while :; do sleep 0.05; done'` + "\n")
	s.want("started")
	s.keys("\x03")
	s.want("ignored")
	s.keys("\x03\x03") // the first of these may come too late on a slow machine
	s.want("status 137")
}

func TestHangUpEndsTheCommand(t *testing.T) {
	t.Parallel()
	s := newScreen(t, "sh", "-c", `exec env $WRAP sh -c 'echo $$; exec sleep 1000'`)
	line := strings.TrimSpace(s.want("\r\n"))
	var pid int
	if _, err := fmt.Sscan(line, &pid); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	_ = s.master.Close()
	ended := make(chan struct{})
	go func() { _ = s.cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the wrapper outlives its terminal")
	}
	if err := syscall.Kill(pid, 0); err == nil {
		t.Error("the command outlives its terminal")
	}
}

func TestPipedInputWithOwnTerminal(t *testing.T) {
	t.Parallel()
	s := bash(t)
	s.keys(`echo fr"o"m-pipe | wrap sh -c 'test -t 0 || cat; test -t 1 && echo ter"m"inal'` + "\n")
	s.want("from-pipe")
	s.want("terminal")
	s.want("status 0")
}

// The first process of a container is the parent of all orphans, and signals
// don't end it unless it asks for them.
func TestFirstProcessOfAContainer(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(self(t), "sh", "-c", `exec 2>/dev/null; test $PPID = 1 && (sh -c : &); trap "echo told; exit 4" TERM; echo ready; while :; do sleep 0.05; done`)
	out := newLines(t)
	cmd.Env, cmd.Stdout, cmd.Stderr = env(modeVar+"=first"), out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("this system gives no PID namespace: %v", err)
	}
	out.want("ready")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	out.want("told")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 4 {
		t.Errorf("the first process ended with %v, want the command's 4", err)
	}
}

func firstMode() int {
	signals, stop := proc.Notify(false)
	defer stop()
	return wrap(proc.Config{Args: os.Args[1:], Env: os.Environ(), Signals: signals, Adopt: true})
}

// detachMode leaves its daemon alone.
func detachMode() int {
	return wrap(proc.Config{Args: []string{"/bin/sh", "-c", `sleep 1000 & echo "$!"`}, Env: os.Environ(), Adopt: true, Detach: true})
}

func TestDetachLeavesWhatRuns(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(self(t))
	cmd.Env = env(modeVar + "=detach")
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	said, err := os.ReadFile(out.Name())
	var pid int
	if _, serr := fmt.Sscan(string(said), &pid); err != nil || serr != nil {
		t.Fatalf("it said %q: %v %v", said, err, serr)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("what the command left was stopped: %v", err)
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
}
