package proc_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/runenv/action/internal/proc"
	"github.com/runenv/action/internal/proc/proctest"
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

// newScreen runs a program on a terminal; $WRAP is what runs a command there as
// runenv does.
func newScreen(t *testing.T, argv ...string) *proctest.Screen {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env("PS1=$ ", "TERM=dumb", "HISTFILE=", "WRAP="+modeVar+"=own-terminal "+self(t))
	return proctest.NewScreen(t, cmd)
}

func bash(t *testing.T) *proctest.Screen {
	t.Helper()
	s := newScreen(t, "bash", "--norc", "--noprofile", "-i")
	s.Want("$ ")
	s.Keys("set +o history; bind 'set enable-bracketed-paste off' 2>/dev/null; stty -echo; alias wrap=\"$WRAP\"; echo rea''dy\n")
	s.Want("ready")
	s.Want("$ ")
	return s
}

func TestOwnTerminalIsOne(t *testing.T) {
	t.Parallel()
	s := bash(t)
	s.Keys("stty rows 33 cols 101; wrap sh -c 'test -t 0 && test -t 1 && test -t 2 && tty </dev/tty >/dev/null && stty size'\n")
	s.Want("33 101\r\n")
	s.Want("status 0\r\n")
	// The settings are as they were.
	s.Want("$ ")
	s.Keys("stty -a | grep -o ' -\\?icanon'; echo e''nd\n")
	if got := s.Want("end"); strings.Contains(got, "-icanon") || !strings.Contains(got, "icanon") {
		t.Errorf("the caller's terminal is left raw: %q", got)
	}
}

func TestOwnTerminalResizes(t *testing.T) {
	t.Parallel()
	s := bash(t)
	s.Keys(`wrap sh -c 'trap "stty size; exit 0" WINCH; echo st"a"rted; while :; do read -r _; done'` + "\n")
	s.Want("started")
	s.Resize(44, 55)
	s.Keys("\n") // read is begun again after the signal
	s.Want("44 55")
	s.Want("status 0")
}

func TestPasswordPrompt(t *testing.T) {
	t.Parallel()
	s := bash(t)
	s.Keys(`wrap sh -c 'printf "Pass""word: "; stty -echo; read -r p </dev/tty; stty echo; echo; echo "got ${#p} letters"'` + "\n")
	s.Want("Password: ")
	s.Keys("hunter22\n")
	if got := s.Want("got 8 letters"); strings.Contains(got, "hunter22") {
		t.Errorf("the password is echoed: %q", got)
	}
	s.Want("status 0")
}

func TestSuspendGivesTheShellBack(t *testing.T) {
	t.Parallel()
	s := bash(t)
	for _, wrapped := range []string{
		`sh -c 'echo st"a"rted; while read -r l; do echo "heard $l"; done'`,
		`cat -u <(echo st"a"rted) -`,
	} {
		s.Keys("wrap " + wrapped + "\n")
		s.Want("started")
		for range 2 {
			s.Keys("\x1a")
			s.Want("Stopped")
			s.Want("$ ")
			s.Keys("echo shell $((20+3)); stty -a | grep -o ' -\\?icanon'\n")
			if got := s.Want("icanon"); !strings.Contains(got, "shell 23") || strings.HasSuffix(got, "-") {
				t.Errorf("the shell's terminal is raw while the job is stopped: %q", got)
			}
			s.Want("$ ")
			s.Keys("fg\n")
			s.Want("\n") // the job's command line
			s.Keys("again\n")
			s.Want("again")
		}
		s.Keys("\x04")
		s.Want("status 0")
		s.Want("$ ")
	}
}

// Who leads a session has no shell that could have it go on.
func TestSuspendDoesNothingWithoutAShell(t *testing.T) {
	t.Parallel()
	s := newScreen(t, "sh", "-c", `exec env $WRAP sh -c 'while read -r l; do echo "heard $l"; test "$l" = three || kill -TSTP $PPID; done'`)
	s.Keys("one\n")
	s.Want("heard one")
	s.Keys("\x1atwo\n")
	s.Want("heard two")
	s.Keys("three\n")
	s.Want("heard three")
	s.Keys("\x04")
	s.Want("status 0")
}

func TestInteractiveShellKeepsItsJobs(t *testing.T) {
	t.Parallel()
	s := bash(t)
	s.Keys("wrap bash --norc --noprofile -i\n")
	s.Want("$ ")
	s.Keys("stty -echo; echo fir''st\n")
	s.Want("first")
	s.Keys("\x1a") // means nothing at a prompt
	s.Keys("sh -c 'echo inn\"e\"r; exec sleep 1000'\n")
	s.Want("inner")
	s.Keys("\x1a")
	s.Want("Stopped")
	s.Keys("kill %1; echo $((20+4))\n") // of the inner one
	s.Want("24")
	s.Keys("exit 3\n")
	s.Want("exit")
	s.Keys("exit 3\n") // there may have been stopped jobs
	s.Want("status 3")
}

func TestControlCInterrupts(t *testing.T) {
	t.Parallel()
	s := bash(t)
	s.Keys(`wrap sh -c 'trap "echo interr""upted; exit 9" INT; echo st"a"rted; while :; do sleep 0.05; done'` + "\n")
	s.Want("started")
	s.Keys("\x03")
	s.Want("interrupted")
	s.Want("status 9")
}

func TestSecondControlCKills(t *testing.T) {
	t.Parallel()
	s := bash(t)
	s.Keys(`wrap sh -c 'trap "echo ignor""ed" INT; echo st"a"rted; while :; do sleep 0.05; done'` + "\n")
	s.Want("started")
	s.Keys("\x03")
	s.Want("ignored")
	s.Keys("\x03\x03") // the first of these may come too late on a slow machine
	s.Want("status 137")
}

func TestHangUpEndsTheCommand(t *testing.T) {
	t.Parallel()
	s := newScreen(t, "sh", "-c", `exec env $WRAP sh -c 'echo $$; exec sleep 1000'`)
	line := strings.TrimSpace(s.Want("\r\n"))
	var pid int
	if _, err := fmt.Sscan(line, &pid); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	s.HangUp()
	if err := syscall.Kill(pid, 0); err == nil {
		t.Error("the command outlives its terminal")
	}
}

func TestPipedInputWithOwnTerminal(t *testing.T) {
	t.Parallel()
	s := bash(t)
	s.Keys(`echo fr"o"m-pipe | wrap sh -c 'test -t 0 || cat; test -t 1 && echo ter"m"inal'` + "\n")
	s.Want("from-pipe")
	s.Want("terminal")
	s.Want("status 0")
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
