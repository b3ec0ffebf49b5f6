package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// A killedRun is a command with a file secret whose wrapper is to be killed.
type killedRun struct {
	site   *fileSite
	cmd    *exec.Cmd
	stdin  io.Closer
	folder string // of the file secrets
	child  int    // the command
}

func (s *fileSite) startToKill(t *testing.T, flags []string) *killedRun {
	t.Helper()
	work := filepath.Join(s.dir, "work")
	_ = os.Remove(filepath.Join(work, "tell"))
	cmd := s.command(t, flags, "sh", "-c", `test "$(cat "$A_FILE" | wc -c)" -gt 9 && echo "${A_FILE%/*}" >tell; read -r _`)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	k := &killedRun{site: s, cmd: cmd, stdin: stdin}
	k.folder = awaitFile(t, filepath.Join(work, "tell"))
	for _, pid := range childrenOf(t, cmd.Process.Pid) {
		if name, err := os.ReadFile(procFile(pid, "comm")); err == nil && string(name) != "runenv-guardian\n" {
			k.child = pid
		}
	}
	return k
}

// gone waits until the folder is gone and tells how long that took.
func (k *killedRun) gone(t *testing.T, since time.Time, within time.Duration, what string) {
	t.Helper()
	end := time.NewTimer(within)
	defer end.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Lstat(k.folder); errors.Is(err, os.ErrNotExist) {
			t.Logf("%s: the files were gone after %v", what, time.Since(since).Round(100*time.Microsecond))
			return
		}
		select {
		case <-tick.C:
		case <-end.C:
			t.Fatalf("%s: %s is still there after %v", what, k.folder, within)
		}
	}
}

func TestT30FilesAfterAKill(t *testing.T) {
	t.Parallel()
	for _, u := range jobUsers(t) {
		for mode, flags := range fileModes {
			t.Run(u.name+", "+mode, func(t *testing.T) {
				t.Parallel()
				lease := fileLeaseOf("one", fileOf("A_FILE", "token", "", []byte(fileCanary)))

				t.Run("wrapper", func(t *testing.T) {
					k := newFileSite(t, u, lease).apart(t).startToKill(t, flags)
					since := time.Now()
					kill(t, k.cmd.Process.Pid)
					k.gone(t, since, 2*time.Second, "wrapper killed")
					_ = k.cmd.Wait()
				})
				t.Run("guardian", func(t *testing.T) {
					k := newFileSite(t, u, lease).apart(t).startToKill(t, flags)
					kill(t, guardianOf(t, &run{cmd: k.cmd}))
					if _, err := os.Lstat(k.folder); err != nil {
						t.Errorf("the files of a living wrapper: %v", err)
					}
					since := time.Now()
					if err := k.stdin.Close(); err != nil {
						t.Fatal(err)
					}
					_ = k.cmd.Wait()
					k.gone(t, since, 2*time.Second, "guardian killed, then the command's end")
				})
				t.Run("both", func(t *testing.T) { killBoth(t, newFileSite(t, u, lease).apart(t), flags, mode) })
			})
		}
	}
}

// killBoth: nobody is left who could remove the folder, until the next start.
// What was mounted for the command alone is gone with it.
func killBoth(t *testing.T, s *fileSite, flags []string, mode string) {
	k := s.startToKill(t, flags)
	kill(t, guardianOf(t, &run{cmd: k.cmd}))
	since := time.Now()
	kill(t, k.cmd.Process.Pid)
	_ = k.cmd.Wait()
	// The kernel takes the command along.
	harness.Eventually(t, 2*time.Second, "the command is killed too", func() bool {
		stat, err := os.ReadFile(procFile(k.child, "stat"))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
	t.Logf("both killed: the command was gone after %v", time.Since(since).Round(100*time.Microsecond))
	left, err := filepath.Glob(filepath.Join(k.folder, "[^.]*"))
	if err != nil || (mode == "isolated") != (len(left) == 0) {
		t.Errorf("%s: of the command is left %v, %v", mode, left, err)
	}
	if mode == "isolated" {
		return // an empty folder, which a start a minute later removes
	}
	// The next start of the same user, whatever it runs.
	since = time.Now()
	if out, errs, status := s.run(t, nil, "true"); status != 0 {
		t.Fatalf("the next start: %d\n%s%s", status, out, errs)
	}
	k.gone(t, since, 5*time.Second, "both killed, then the next start")
}

// A command's leftovers hold the mount; the wrapper's end takes them along, or
// the guardian takes the mount from them.
func TestT30MountOfLeftoversGoesToo(t *testing.T) {
	t.Parallel()
	for _, u := range jobUsers(t) {
		t.Run(u.name, func(t *testing.T) {
			t.Parallel()
			s := newFileSite(t, u, fileLeaseOf("one", fileOf("A_FILE", "token", "", []byte(fileCanary)))).apart(t)
			work := filepath.Join(s.dir, "work")
			cmd := s.command(t, []string{"--isolate=require"}, "bash", "-c", `setsid bash -c 'echo "$$ ${A_FILE}" >tell; while test -e "$A_FILE"; do sleep 0.01; done; echo gone >left' & wait`)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			awaitFile(t, filepath.Join(work, "tell"))
			kill(t, cmd.Process.Pid)
			_ = cmd.Wait()
			// Whoever lives on finds the mount detached.
			if got := awaitFile(t, filepath.Join(work, "left")); got != "gone" {
				t.Errorf("the leftover wrote %q", got)
			}
		})
	}
}

func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

// With the broker in the wrapper's process no session is left to end, and the
// files are.
func TestT30FilesOfABrokerInTheProcess(t *testing.T) {
	t.Parallel()
	ci := harness.NewCI(t, nil)
	s := newFileSite(t, jobUser{}).apart(t)
	work := filepath.Join(s.dir, "work")
	for name, text := range map[string]string{"ca.crt": string(harness.CA(t)), "runenv.yaml": fmt.Sprintf(`url: %s
issuers:
  github: {profile: github, url: "%s", ca_file: ca.crt, allow_networks: ["127.0.0.0/8"]}
providers:
  local: {type: static}
projects:
  shop-api: {github: acme/shop-api@1001}
leases:
  key: {provider: local, values: {token: "${env:THE_VALUE}"}, file: {A_FILE: token}}
roles:
  r: {projects: [shop-api], match: {github: {ref: refs/heads/main}}, leases: [key]}
`, directBroker, ci.URL)} {
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for mode, flags := range fileModes {
		t.Run(mode, func(t *testing.T) {
			_ = os.Remove(filepath.Join(work, "tell"))
			args := append([]string{"run", "--config", "runenv.yaml", "--role", "r"}, flags...)
			cmd := exec.CommandContext(t.Context(), harness.Binaries(t).Broker, append(args, "--", "sh", "-c", `test "$(wc -c <"$A_FILE")" -gt 9 && echo "${A_FILE%/*}" >tell; exec sleep 300`)...)
			cmd.Dir = work
			cmd.Env = append(append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "SSL_CERT_FILE=ca.crt", "THE_VALUE=" + fileCanary}, s.env...), ci.Environ...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			k := &killedRun{site: s, cmd: cmd, folder: awaitFile(t, filepath.Join(work, "tell"))}
			since := time.Now()
			kill(t, cmd.Process.Pid)
			k.gone(t, since, 2*time.Second, "runenv-broker run killed")
			_ = cmd.Wait()
		})
	}
}
