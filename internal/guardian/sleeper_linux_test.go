package guardian

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func procFile(h *Handle, name string) string {
	return filepath.Join("/proc", strconv.Itoa(h.pid), name)
}

func TestT31SleeperIsHardened(t *testing.T) {
	t.Parallel()
	h := start(t, Config{SessionURL: newBroker(t).URL})
	limits, err := os.ReadFile(procFile(h, "limits"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && f[4] != "1" && f[5] != "0" {
			t.Errorf("the core limit is %s, want 1", f[4])
		}
	}
	if name, err := os.ReadFile(procFile(h, "comm")); err != nil || string(name) != "runenv-guardian\n" {
		t.Errorf("the sleeper's name = %q, %v", name, err)
	}
	if args, err := os.ReadFile(procFile(h, "cmdline")); err != nil || len(args) != 0 {
		t.Errorf("the sleeper's arguments = %q, %v, want none", args, err)
	}
	environ, err := os.ReadFile(procFile(h, "environ"))
	files, filesErr := os.ReadDir(procFile(h, "fd"))
	switch {
	case os.Getuid() != 0: // root reads everything
		if err == nil || filesErr == nil {
			t.Error("the sleeper is dumpable: its /proc entries can be read")
		}
	case err != nil || len(environ) != 0:
		t.Errorf("the sleeper's environment = %q, %v, want none", environ, err)
	case filesErr != nil || len(files) != 3: // its memory, the socket, the program
		t.Errorf("the sleeper has files %v, %v, want 3", files, filesErr)
	}
	if err := h.Done(); err != nil {
		t.Error(err)
	}
}

// What a wrapper knew when it forked is in no memory of the sleeper's.
func TestT31SleeperKnowsNothing(t *testing.T) {
	t.Parallel()
	canary := []byte(rand.Text() + rand.Text())
	var known [][]byte
	for size := len(canary); size < 1<<20; size *= 2 {
		known = append(known, bytes.Repeat(canary, size/len(canary)))
	}
	var stacks sync.WaitGroup
	release := make(chan struct{})
	for range 100 {
		ready := make(chan struct{})
		stacks.Go(func() {
			var local [200]byte
			copy(local[:], canary)
			close(ready)
			<-release
			runtime.KeepAlive(&local)
		})
		<-ready
	}
	cfg := Config{SessionURL: newBroker(t).URL}
	leaveOnStack(canary)
	h := start(t, cfg)
	self := &Handle{pid: os.Getpid()}
	if os.Getuid() == 0 {
		if n := copies(t, self, canary); n < len(known) {
			t.Errorf("the wrapper's own memory has %d copies of what it knows, want %d at least", n, len(known))
		}
		if n := copies(t, h, canary); n != 0 {
			t.Errorf("the sleeper's memory has %d copies of what the wrapper knows", n)
		}
	} else if f, err := os.Open(procFile(h, "mem")); err == nil { // it isn't dumpable
		_ = f.Close()
		t.Error("the sleeper's memory can be read")
	}
	close(release)
	stacks.Wait()
	runtime.KeepAlive(known)
	if err := h.Done(); err != nil {
		t.Error(err)
	}
}

// The part of its stack that the sleeper keeps holds nothing of the calls that
// came before the fork.
func TestT31SleeperKeepsNoStackOfOtherCalls(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		return // nobody else reads it: see TestT31SleeperKnowsNothing
	}
	all := []byte(rand.Text() + rand.Text())
	for size := 12; size >= 8; size-- { // what lies there lies at any offset
		canary := all[:size]
		n, err := 0, error(nil)
		var calls sync.WaitGroup
		calls.Go(func() { // little else is on its stack
			leaveOnStack(canary)
			var h *Handle
			if h, err = Start(""); err != nil {
				return
			}
			if err = h.confirmed(); err == nil {
				n = copies(t, h, canary)
			}
			err = errors.Join(err, h.Done())
		})
		calls.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if n != 0 {
			t.Errorf("the sleeper's stack has %d copies of %d bytes that a call before left", n, size)
		}
	}
}

// leaveOnStack does what any call may that handles a value.
//
//go:noinline
func leaveOnStack(what []byte) {
	var local [6000]byte
	for i := 0; i < len(local); i += len(what) {
		copy(local[i:], what)
	}
	runtime.KeepAlive(&local)
}

// copies counts what in all memory of a process.
func copies(t *testing.T, h *Handle, what []byte) int {
	t.Helper()
	maps, err := os.ReadFile(procFile(h, "maps"))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open(procFile(h, "mem"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = memory.Close() }()
	n, all := 0, 0
	b := make([]byte, 64<<10)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || from < 0 || mode[0] != 'r' || strings.Contains(line, "[v") {
			continue
		}
		if to-from > 4<<30 {
			continue // what the race detector keeps of addresses
		}
		for at := from; at < to; at += int64(len(b) - len(what)) {
			got, _ := memory.ReadAt(b[:min(to-at, int64(len(b)))], at) // a hole is an error
			n += bytes.Count(b[:got], what)
			all += got
		}
	}
	if all == 0 {
		t.Error("no memory can be read")
	}
	return n
}

func TestT30NoSignalDisturbsTheSleeper(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	h := start(t, Config{SessionURL: b.URL + "/v1/session"})
	for range 100 {
		for n := syscall.Signal(1); n <= signals; n++ {
			if n == unix.SIGKILL || n == unix.SIGSTOP {
				continue
			}
			if err := syscall.Kill(h.pid, n); err != nil {
				t.Fatalf("signal %d: %v", n, err)
			}
		}
	}
	if code := die(t, h); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if got := b.next(t); got != wantAsked {
		t.Errorf("the broker was asked %q, want %q", got, wantAsked)
	}
}

func TestStoppedGuardianIsDismissed(t *testing.T) {
	t.Parallel()
	h := start(t, Config{SessionURL: newBroker(t).URL})
	if err := syscall.Kill(h.pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := h.Done(); err != nil {
		t.Error(err)
	}
}

// A wrapper that is killed before the guardian said a word.
func TestT30KilledAtOnce(t *testing.T) {
	t.Parallel()
	for stage, want := range map[string]int{"start": 0, "guard": 1} {
		t.Run(stage, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t)
			for range 20 {
				r := startWrapper(t, testProgram(t), b, diesVar+"="+stage)
				if out, err := io.ReadAll(r.out); err != nil || string(out) != "<nil>\n" {
					t.Fatalf("the wrapper says %q, %v", out, err)
				}
				_ = r.cmd.Wait() // killed, as intended
				for range want {
					if got := b.next(t); got != wantAsked {
						t.Errorf("the broker was asked %q, want %q", got, wantAsked)
					}
				}
			}
			if len(b.asked) != 0 {
				t.Errorf("the broker was asked %q", <-b.asked)
			}
		})
	}
}

// An update of RunEnv while it runs changes nothing for its guardian.
func TestT30ProgramThatIsGone(t *testing.T) {
	// Not in parallel: what others fork would hold the program open for writing.
	for name, do := range map[string]func(path string) error{
		"deleted": os.Remove,
		"replaced": func(path string) error {
			other := path + ".new"
			if err := os.WriteFile(other, []byte("#!/bin/false\n"), 0o700); err != nil {
				return err
			}
			return os.Rename(other, path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			program, err := os.ReadFile(testProgram(t))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "runenv")
			if err := os.WriteFile(path, program, 0o700); err != nil {
				t.Fatal(err)
			}
			b := newBroker(t)
			r := startWrapper(t, path, b)
			child := r.child(t)
			defer func() { _ = syscall.Kill(child, syscall.SIGKILL) }()
			if err := do(path); err != nil {
				t.Fatal(err)
			}
			if err := r.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if got := b.next(t); got != wantAsked {
				t.Errorf("the broker was asked %q, want %q", got, wantAsked)
			}
			_ = r.cmd.Wait()
		})
	}
}

// Forks while everything else goes on: other threads allocate, lock and start
// processes, the collector runs, and others fork.
func TestForksUnderLoad(t *testing.T) {
	// Not in parallel: it sets GOMAXPROCS.
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	for _, threads := range []int{1, 4} {
		runtime.GOMAXPROCS(threads)
		stop := make(chan struct{})
		var load sync.WaitGroup
		for i := range 6 {
			load.Go(func() {
				var kept [][]byte
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					kept = append(kept, make([]byte, 1<<(n%14)))
					if len(kept) > 100 {
						kept = nil
					}
					if i == 0 && n%1000 == 0 {
						runtime.GC()
					}
					if i == 1 && n%1000 == 0 {
						_ = exec.Command("/bin/true").Run()
					}
					if n%10 == 0 {
						runtime.Gosched()
					}
				}
			})
		}
		var forks sync.WaitGroup
		for range 2 {
			forks.Go(func() {
				for range 125 {
					h, err := watched("", Config{})
					if err != nil {
						t.Error(err)
						return
					}
					if err := h.Done(); err != nil {
						t.Error(err)
					}
					if err := syscall.Kill(h.pid, 0); err != syscall.ESRCH {
						t.Errorf("a guardian is left after Done: %v", err)
					}
				}
			})
		}
		forks.Wait()
		close(stop)
		load.Wait()
	}
}

// A fork of others, as one into a user namespace is, finds its heap there.
func TestHeapIsCopiedAgainAfterTheFork(t *testing.T) {
	// Not in parallel: the heap is marked while another test forks.
	h, err := Start("")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	mapping, areas := "", 0
	for line := range strings.Lines(string(maps)) {
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); !ok {
			if first, _, _ := strings.Cut(line, " "); strings.Contains(first, "-") {
				mapping = line
			}
		} else if areas++; slices.Contains(strings.Fields(flags), "dc") {
			t.Errorf("a fork lacks %s", mapping)
		}
	}
	if areas == 0 {
		t.Error("no memory is listed")
	}
	if err := h.Done(); err != nil {
		t.Error(err)
	}
}

func TestKilledSleeperIsNoticed(t *testing.T) {
	t.Parallel()
	h, err := Start("")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(h.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitDeath(t, h)
	if h.Watches() == nil && h.Done() == nil { // it may have said its word before
		t.Error("nobody notices that the guardian is dead")
	}
}
