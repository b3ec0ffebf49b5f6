package proc

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func (f *family) sysProcAttr(cfg Config) *syscall.SysProcAttr { return groupAttr(cfg) }

// A cgroup is Linux's.
type cgroup struct{}

func (*family) withoutCgroup(*os.ProcAttr) bool { return false }

func newCgroup() *cgroup { return nil }
func (*cgroup) kill()    {}
func (*cgroup) remove()  {}

// HardenSelf keeps this process's memory from core dumps. macOS can't set
// another process's limits, so children keep the soft limit of 0, which they
// may raise again.
func HardenSelf() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &lim); err != nil {
		return fmt.Errorf("reading the core limit: %w", err)
	}
	lim.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &lim); err != nil {
		return fmt.Errorf("setting the core limit: %w", err)
	}
	return nil
}

func restoreCoreLimit(int) {}

// ignoresSuspend can't be known.
func ignoresSuspend(int) bool { return false }

// DieWithParent does nothing: macOS has no signal for a parent's death.
func DieWithParent() error { return nil }

// An adoption is Linux's.
type adoption struct {
	known map[int]bool
	ended chan os.Signal
}

func adopt() *adoption        { return nil }
func (*adoption) close()      {}
func (*adoption) reap() []int { return nil }
