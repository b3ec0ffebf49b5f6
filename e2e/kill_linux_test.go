package e2e_test

import (
	"bytes"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// A CI cancels a job in three steps, here GitHub's: SIGINT, then SIGTERM, then
// SIGKILL, each to the process that it started.
const (
	untilTerm = 7500 * time.Millisecond
	untilKill = 10 * time.Second
)

func TestT30UserIsGoneHoweverTheCommandEnds(t *testing.T) {
	t.Parallel()
	s := newComponents(t).newSite(t, plan{})
	for _, u := range jobUsers(t) {
		t.Run(u.name, func(t *testing.T) { t.Parallel(); s.endsOfRuns(t, u.as) })
	}
}

type jobUser struct {
	name string
	as   *syscall.Credential // nil: whoever runs the tests
}

// jobUsers are those as whom jobs run: the one who runs the tests, and an
// ordinary user if that one is root.
func jobUsers(t *testing.T) []jobUser {
	t.Helper()
	if os.Getuid() != 0 {
		return []jobUser{{"ordinary user", nil}}
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.ParseUint(nobody.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return []jobUser{{"root", nil}, {"ordinary user", &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}}
}

func (s *site) endsOfRuns(t *testing.T, as *syscall.Credential) {
	t.Run("exit", func(t *testing.T) {
		t.Parallel()
		r := s.start(t, order{script: tell + hold + `; exit 7`, as: as})
		s.alive(t, r)
		r.release()
		if got := r.status(t, 10*time.Second); got != 7 {
			t.Errorf("runenv run ends with %d, want the command's own 7", got)
		}
		s.gone(t, r, 2*time.Second, "the command's end")
	})
	t.Run("wrapper killed", func(t *testing.T) {
		t.Parallel()
		r := s.start(t, order{script: tell + hold, as: as})
		s.alive(t, r)
		r.signal(t, syscall.SIGKILL)
		s.gone(t, r, 5*time.Second, "the kill")
	})
	t.Run("guardian killed", func(t *testing.T) {
		t.Parallel()
		r := s.start(t, order{script: tell + hold + `; exit 7`, as: as})
		kill(t, guardianOf(t, r))
		s.alive(t, r)
		r.release()
		if got := r.status(t, 10*time.Second); got != 7 {
			t.Errorf("runenv run ends with %d, want the command's own 7", got)
		}
		s.gone(t, r, 2*time.Second, "the command's end")
	})
	t.Run("wrapper and guardian killed", func(t *testing.T) {
		t.Parallel()
		r := s.start(t, order{script: tell + hold, flags: []string{"--debug"}, as: as})
		r.streams(t)
		kill(t, guardianOf(t, r))
		r.signal(t, syscall.SIGKILL)
		s.gone(t, r, 35*time.Second, "the kill")
	})
	for _, c := range []struct {
		name  string
		entry []string
	}{
		{"cancelled", nil},
		// The script is the entry process: the runner's SIGINT and SIGTERM
		// don't reach runenv, but the kernel's word of the script's death does.
		{"cancelled under a step's shell", []string{"bash", "-e", "-c", `"$@"; true`, "bash"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := s.start(t, order{script: `trap '' INT; ` + tell + `while :; do read -r line; sleep 1; done`, entry: c.entry, as: as})
			begin := time.Now()
			r.signal(t, syscall.SIGINT)
			select {
			case <-r.done:
				t.Fatalf("runenv ended %v after a SIGINT that its command ignores", time.Since(begin))
			case <-time.After(untilTerm):
			}
			s.alive(t, r)
			r.signal(t, syscall.SIGTERM)
			s.gone(t, r, untilKill-time.Since(begin), "SIGTERM")
			if c.entry != nil {
				return
			}
			if got := r.status(t, untilKill-time.Since(begin)); got != 128+int(syscall.SIGTERM) {
				t.Errorf("runenv run ends with %d, want %d", got, 128+int(syscall.SIGTERM))
			}
		})
	}
}

func TestSignalsBeforeAndAfterTheCommand(t *testing.T) {
	t.Parallel()
	c := newComponents(t)

	t.Run("the CI's token endpoint hangs", func(t *testing.T) {
		t.Parallel()
		s := c.newSite(t, plan{})
		stalled := make(chan struct{}, 1)
		ci := harness.NewProxy(t, func() string { return c.ci.URL })
		ci.Meddle(stallAt(stalled, "/token", nil))
		r := s.launch(t, order{script: hold, env: []string{"ACTIONS_ID_TOKEN_REQUEST_URL=" + ci.URL + "/token?api-version=2.0"}})
		await(t, stalled, r)
		s.ends(t, r, syscall.SIGINT, 3*time.Second, 2*time.Second)
	})
	t.Run("the exchange hangs", func(t *testing.T) {
		t.Parallel()
		s := c.newSite(t, plan{front: true})
		stalled := make(chan struct{}, 1)
		s.front.Meddle(stallAt(stalled, "/oauth2/token", nil))
		r := s.launch(t, order{script: hold})
		await(t, stalled, r)
		s.ends(t, r, syscall.SIGTERM, 3*time.Second, 2*time.Second)
	})
	t.Run("the exchange's answer is lost", func(t *testing.T) {
		t.Parallel()
		s := c.newSite(t, plan{front: true, heartbeat: 3 * time.Second})
		s.front.Meddle(func(r *http.Request) harness.Fault {
			if r.URL.Path == "/oauth2/token" {
				return harness.Fault{HoldAnswer: make(chan struct{})}
			}
			return harness.Fault{}
		})
		r := s.launch(t, order{script: hold})
		s.logged(t, "session.created", 20*time.Second)
		s.ends(t, r, syscall.SIGINT, 3*time.Second, 10*time.Second) // by missed heartbeats
		s.logged(t, "session.ended", 10*time.Second)
	})
	t.Run("the lease's answer hangs", func(t *testing.T) {
		t.Parallel()
		s := c.newSite(t, plan{front: true})
		s.front.Meddle(func(r *http.Request) harness.Fault {
			if r.URL.Path == "/v1/leases" {
				return harness.Fault{HoldAnswer: make(chan struct{})}
			}
			return harness.Fault{}
		})
		r := s.launch(t, order{script: hold})
		s.anyUser(t)
		s.ends(t, r, syscall.SIGTERM, 4*time.Second, 2*time.Second)
	})
	t.Run("the clean-up hangs", func(t *testing.T) {
		t.Parallel()
		s := c.newSite(t, plan{front: true})
		r := s.start(t, order{script: tell + hold + `; exit 7`})
		stalled, release := make(chan struct{}, 1), make(chan struct{})
		s.front.Meddle(stallAt(stalled, "/v1/session", release))
		r.release()
		await(t, stalled, r)
		begin := time.Now()
		r.signal(t, syscall.SIGINT)
		r.signal(t, syscall.SIGTERM)
		if got := r.status(t, 5*time.Second); got != 7 {
			t.Errorf("runenv run ends with %d, want the command's own 7", got)
		}
		t.Logf("it ended %v after the signals", time.Since(begin).Round(time.Millisecond))
		r.says(t, "runenv: warning: the session isn't ended yet")
		close(release) // the guardian goes on
		s.gone(t, r, 5*time.Second, "the end of the stall")
	})
	t.Run("Vault hangs in the clean-up", func(t *testing.T) {
		t.Parallel()
		s := c.newSite(t, plan{back: true})
		r := s.start(t, order{script: tell + hold + `; exit 7`})
		stalled, release := make(chan struct{}, 1), make(chan struct{})
		s.back.Meddle(stallAt(stalled, "/v1/sys/leases/revoke", release))
		r.release()
		await(t, stalled, r)
		r.signal(t, syscall.SIGINT)
		r.signal(t, syscall.SIGTERM)
		if got := r.status(t, 3*time.Second); got != 7 {
			t.Errorf("runenv run ends with %d, want the command's own 7", got)
		}
		close(release) // the broker goes on
		s.gone(t, r, 5*time.Second, "the end of the stall")
	})
}

// ends signals a run before its command has begun: it ends as a shell would
// report that, and no user is left some time after.
func (s *site) ends(t *testing.T, r *run, sig syscall.Signal, within, gone time.Duration) {
	t.Helper()
	begin := time.Now()
	r.signal(t, sig)
	if got := r.status(t, within); got != 128+int(sig) {
		t.Errorf("runenv run ends with %d, want %d", got, 128+int(sig))
	}
	t.Logf("it ended %v after the signal", time.Since(begin).Round(time.Millisecond))
	s.noUsers(t, gone, "runenv's end")
}

// logged waits for an entry in the audit log.
func (s *site) logged(t *testing.T, event string, within time.Duration) {
	t.Helper()
	harness.Eventually(t, within, event+" in the audit log", func() bool {
		return strings.Contains(s.audit(t, "export"), event)
	})
}

// stallAt holds requests to a path until release is closed, and says so on
// stalled.
func stallAt(stalled chan<- struct{}, path string, release <-chan struct{}) func(*http.Request) harness.Fault {
	if release == nil {
		release = make(chan struct{})
	}
	return func(r *http.Request) harness.Fault {
		if r.URL.Path != path {
			return harness.Fault{}
		}
		select {
		case stalled <- struct{}{}:
		default:
		}
		return harness.Fault{Hold: release}
	}
}

// await waits for a stall.
func await(t *testing.T, stalled <-chan struct{}, r *run) {
	t.Helper()
	select {
	case <-stalled:
	case <-r.done:
		t.Fatalf("runenv ended before: %v", r.cmd.ProcessState)
	case <-time.After(30 * time.Second):
		t.Fatal("no request came")
	}
}

// guardianOf finds the guardian of a run.
func guardianOf(t *testing.T, r *run) int {
	t.Helper()
	var pid int
	harness.Eventually(t, 10*time.Second, "the wrapper has a guardian", func() bool {
		for _, child := range childrenOf(t, r.cmd.Process.Pid) {
			name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(child), "comm"))
			if err == nil && string(name) == "runenv-guardian\n" {
				pid = child
			}
		}
		return pid != 0
	})
	return pid
}

func childrenOf(t *testing.T, parent int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var children []int
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// The name before the last parenthesis may hold anything.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) > 1 && string(fields[1]) == strconv.Itoa(parent) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				t.Fatal(err)
			}
			children = append(children, pid)
		}
	}
	return children
}

// kill ends a process and waits until it is dead, if not reaped.
func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 5*time.Second, "the process is dead", func() bool {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		return err != nil || bytes.HasPrefix(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" Z"))
	})
}
