package proc

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A cgroup holds the child and all that descends from it, wherever it hides:
// the kernel kills the whole at a word. There is one where this process may
// make one below its own (a delegated slice, a container of one's own).
type cgroup struct {
	path string
	dir  *os.File
}

// newCgroup returns nil where there can be none.
func newCgroup() *cgroup {
	self, err := readKernel("/proc/self/cgroup")
	if err != nil || !bytes.Contains(self, []byte("0::")) {
		return nil
	}
	mounts, err := readKernel("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	own := ownCgroup(string(self), string(mounts))
	if own == "" {
		return nil
	}
	return cgroupIn(own)
}

func cgroupIn(own string) *cgroup {
	c := &cgroup{path: filepath.Join(own, "runenv-"+rand.Text())}
	if err := os.Mkdir(c.path, 0o750); err != nil {
		return nil
	}
	// Without cgroup.kill (before Linux 5.14) it would be of no use.
	kill, err := os.OpenFile(filepath.Join(c.path, "cgroup.kill"), os.O_WRONLY, 0)
	if err == nil {
		_ = kill.Close()
		c.dir, err = os.Open(c.path)
	}
	if err != nil {
		_ = os.Remove(c.path)
		return nil
	}
	return c
}

// ownCgroup finds the folder of this process's group of version 2.
func ownCgroup(self, mounts string) string {
	within := ""
	for line := range strings.SplitSeq(self, "\n") {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			within = path
		}
	}
	for line := range strings.SplitSeq(mounts, "\n") {
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if !ok || within == "" || !strings.HasPrefix(after, "cgroup2 ") || len(fields) < 5 {
			continue
		}
		// root is what of the tree is mounted there.
		root, at := fields[3], fields[4]
		rel, err := filepath.Rel(root, within)
		if err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return filepath.Join(at, rel)
		}
	}
	return ""
}

func (c *cgroup) kill() { _ = os.WriteFile(filepath.Join(c.path, "cgroup.kill"), []byte("1"), 0) }

// remove waits a moment for what was killed to be gone: a group with anybody
// in it can't be removed, and then the system's manager does in time.
func (c *cgroup) remove() {
	_ = c.dir.Close()
	for range 20 {
		if syscall.Rmdir(c.path) == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}
