package e2e_test

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// What comes while the command's mount is being made isn't lost. A changed
// runenv sends the signal at that very moment: to the one process that will be
// the command, as a terminal's keys do, or to the wrapper, as a CI does.
func TestSignalsWhileTheMountIsMade(t *testing.T) {
	t.Parallel()
	const place = "\ta, err := parse(args)\n"
	// What waits for a signal waits for a clock: a Go program in which nothing
	// could ever go on ends itself, if the signal is late.
	const interrupt = "\t_ = syscall.Kill(os.Getpid(), syscall.SIGINT)\n\t<-time.After(time.Hour)\n"
	tests := []struct {
		name, insert, isolate string
		want                  int
	}{
		{"interrupted by a key", interrupt, "require", 128 + int(syscall.SIGINT)},
		{"interrupted by a key where a fallback is allowed", interrupt, "auto", 128 + int(syscall.SIGINT)},
		{"terminated by a CI", "\t_ = syscall.Kill(os.Getppid(), syscall.SIGTERM)\n", "require", 128 + int(syscall.SIGTERM)},
		{"told by another program", "\t_ = syscall.Kill(os.Getppid(), syscall.SIGUSR1)\n", "require", 128 + int(syscall.SIGUSR1)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			program := harness.Changed(t, harness.Change{File: "internal/isolate/isolate_linux.go", Before: place, Insert: tt.insert})
			for _, u := range jobUsers(t) {
				s := newFileSite(t, u, fileLeaseOf("one", fileOf("A_FILE", "token", "", []byte(fileCanary)))).apart(t)
				cmd := s.command(t, []string{"--isolate=" + tt.isolate}, "sh", "-c", "read -r _; echo it went on >went")
				cmd.Path = program
				var said bytes.Buffer
				cmd.Stdout, cmd.Stderr = &said, &said
				stdin, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				// A command that the signal never reaches goes on some day.
				after := time.AfterFunc(10*time.Second, func() { _ = stdin.Close() })
				err = cmd.Run()
				after.Stop()
				if got := cmd.ProcessState.ExitCode(); got != tt.want {
					t.Errorf("%s: runenv run ends with %d, %v, want %d\n%s", u.name, got, err, tt.want, &said)
				}
				if _, err := os.Lstat(filepath.Join(cmd.Dir, "went")); err == nil {
					t.Errorf("%s: the command went on after the signal", u.name)
				}
				left, err := filepath.Glob(filepath.Join(s.env[0][len("XDG_RUNTIME_DIR="):], "runenv-*"))
				if err != nil || len(left) != 0 {
					t.Errorf("%s: %v is left, %v", u.name, left, err)
				}
			}
		})
	}
}
