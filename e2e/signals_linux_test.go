package e2e_test

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// lastSignal is the last of Linux's.
const lastSignal = 64

// theirs are signals 32 and 33, which the C library keeps for itself.
func theirs(n syscall.Signal) bool { return n == 32 || n == 33 }

// A command that dies by a signal has the status that a shell gives it, for
// each signal that kills.
func TestEverySignalHasItsStatus(t *testing.T) {
	t.Parallel()
	s := newFileSite(t, jobUser{}, fileLeaseOf("one", fileOf("A_FILE", "token", "", []byte(fileCanary))))
	harmless := []syscall.Signal{
		syscall.SIGCHLD, syscall.SIGCONT, syscall.SIGURG, syscall.SIGWINCH,
		syscall.SIGSTOP, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, // these stop
	}
	for n := syscall.Signal(1); n <= lastSignal; n++ {
		if theirs(n) || slices.Contains(harmless, n) {
			continue
		}
		_, errs, status := s.run(t, nil, "sh", "-c", fmt.Sprintf("ulimit -c 0; kill -%d $$; exit 1", n))
		if want := 128 + int(n); status != want || errs != "" {
			t.Errorf("a command that dies by signal %d (%v) = %d, want %d\n%s", n, n, status, want, errs)
		}
	}
	for n := range 256 {
		if n%17 != 0 && n != 1 && n < 123 {
			continue // the rest is as these
		}
		if _, errs, status := s.run(t, nil, "sh", "-c", fmt.Sprintf("exit %d", n)); status != n || errs != "" {
			t.Errorf("exit %d = %d\n%s", n, status, errs)
		}
	}
}

// What somebody sends to runenv reaches the command, but for what is about
// runenv alone.
func TestEverySignalReachesTheCommand(t *testing.T) {
	t.Parallel()
	not := map[syscall.Signal]string{
		syscall.SIGKILL: "kills", syscall.SIGSTOP: "stops", syscall.SIGCHLD: "is about runenv's children", syscall.SIGURG: "is Go's own", syscall.SIGPROF: "is Go's own",
		syscall.SIGPIPE: "is about runenv's output", 34: "is the C library's", 62: "tells of the parent's death",
	}
	var numbers []string
	for n := syscall.Signal(1); n <= lastSignal; n++ {
		if n != syscall.SIGKILL && n != syscall.SIGSTOP && n != syscall.SIGCHLD && !theirs(n) {
			numbers = append(numbers, fmt.Sprint(int(n)))
		}
	}
	for mode, flags := range fileModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newFileSite(t, jobUser{}, fileLeaseOf("one", fileOf("A_FILE", "token", "", []byte(fileCanary))))
			// It waits without a process of its own, which some signals would stop.
			cmd := s.command(t, append([]string{"--debug"}, flags...), "bash", "-c", `mkfifo never; exec 3<>never; for n in `+strings.Join(numbers, " ")+`; do trap "echo got $n." $n; done; echo ready; while ! test -e end; do read -rt 0.02 _ <&3; done; exit 7`)
			cmd.SysProcAttr.Setsid = true // no terminal
			out := new(output)
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			harness.Eventually(t, 20*time.Second, "the command is ready, and old enough for rare signals", func() bool {
				return strings.Contains(out.String(), "ready\n") && strings.Contains(out.String(), "all signals are passed on")
			})
			for n := syscall.Signal(1); n <= lastSignal; n++ {
				if not[n] != "" || theirs(n) {
					continue
				}
				if err := cmd.Process.Signal(n); err != nil {
					t.Fatalf("signal %d (%v): %v\n%s", n, n, err, out)
				}
				harness.Eventually(t, 5*time.Second, fmt.Sprintf("signal %d (%v) reaches the command", n, n), func() bool {
					return strings.Contains(out.String(), fmt.Sprintf("got %d.\n", n))
				})
			}
			for _, n := range []syscall.Signal{syscall.SIGURG, syscall.SIGPIPE, syscall.SIGCHLD} {
				if err := cmd.Process.Signal(n); err != nil {
					t.Fatal(err)
				}
			}
			if err := exec.CommandContext(t.Context(), "touch", cmd.Dir+"/end").Run(); err != nil {
				t.Fatal(err)
			}
			err := cmd.Wait()
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 7 {
				t.Errorf("runenv run ends with %v, want the command's own 7\n%s", err, out)
			}
			for _, n := range []syscall.Signal{syscall.SIGURG, syscall.SIGPIPE} {
				if strings.Contains(out.String(), fmt.Sprintf("got %d.\n", n)) {
					t.Errorf("signal %d (%v), which %s, was passed on", n, n, not[n])
				}
			}
		})
	}
}

// Rare signals wait until the command is some milliseconds old. The usual ones
// don't: this command has one sent as soon as it can.
func TestUsualSignalsReachACommandThatHasJustBegun(t *testing.T) {
	t.Parallel()
	for mode, flags := range fileModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newFileSite(t, jobUser{}, fileLeaseOf("one", fileOf("A_FILE", "token", "", []byte(fileCanary))))
			for _, name := range []string{"TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "ABRT"} {
				cmd := s.command(t, flags, "sh", "-c", fmt.Sprintf(`trap 'echo got %[1]s.; exit 7' %[1]s; kill -s %[1]s $PPID; read -r _; exit 8`, name))
				cmd.SysProcAttr.Setsid = true // no terminal
				out := new(output)
				cmd.Stdout, cmd.Stderr = out, out
				stdin, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				// A command that the signal never reaches goes on some day.
				after := time.AfterFunc(10*time.Second, func() { _ = stdin.Close() })
				err = cmd.Run()
				after.Stop()
				if got := cmd.ProcessState.ExitCode(); got != 7 || !strings.Contains(out.String(), "got "+name+".\n") {
					t.Errorf("%s: runenv run ends with %d, %v, want the command's 7\n%s", name, got, err, out)
				}
			}
		})
	}
}
