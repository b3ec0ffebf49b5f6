package proc

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sysProcAttr: macOS has no subreaper, but a process that leaves its group stays
// in its session. So the child gets one of its own, where it would have got a
// group: there is no terminal then that it could lose.
func (f *family) sysProcAttr(cfg Config) *syscall.SysProcAttr {
	attr := groupAttr(cfg)
	if attr.Setpgid && f.adoption != nil {
		attr.Setpgid, attr.Setsid = false, true // its leader leads a group too
	}
	return attr
}

// A cgroup is Linux's.
type cgroup struct{}

func (*family) withoutCgroup(*os.ProcAttr) bool { return false }

func newCgroup() *cgroup { return nil }
func (*cgroup) kill()    {}
func (*cgroup) remove()  {}

// HardenSelf keeps this process's memory from debuggers of the same user and
// from core dumps; a debugger that has attached already ends it. macOS can't set
// another process's limits, so children keep the soft limit of 0, which they may
// raise again. What this process was started with, its environment included,
// stays open to its user.
func HardenSelf() error {
	if err := unix.PtraceDenyAttach(); err != nil {
		return fmt.Errorf("shutting debuggers out: %w", err)
	}
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

// ignoresSuspend reports whether a process has chosen that the suspend key
// means nothing to it, as a shell at its prompt has.
func ignoresSuspend(pid int) bool {
	info, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	return err == nil && info.Proc.P_sigignore&(1<<(syscall.SIGTSTP-1)) != 0
}

// DieWithParent sees to it that this process gets TERM when its parent ends,
// and at once if that has happened during the call. A parent that ended
// earlier can't be told from one that never was. Call it once.
func DieWithParent() error {
	parent := os.Getppid()
	if parent <= 1 {
		return nil // launchd, which never ends
	}
	events, err := unix.Kqueue()
	if err != nil {
		return fmt.Errorf("asking for the parent's death: %w", err)
	}
	unix.CloseOnExec(events) // a fork doesn't copy it
	watch := unix.Kevent_t{Filter: unix.EVFILT_PROC, Flags: unix.EV_ADD | unix.EV_ONESHOT, Fflags: unix.NOTE_EXIT}
	watch.Ident = uint64(parent)
	_, err = kevent(events, []unix.Kevent_t{watch}, nil)
	gone := errors.Is(err, unix.ESRCH)
	if err != nil && !gone {
		_ = unix.Close(events)
		return fmt.Errorf("asking for the parent's death: %w", err)
	}
	go func() {
		defer func() { _ = unix.Close(events) }()
		var told [1]unix.Kevent_t
		if !gone && os.Getppid() == parent {
			if _, err := kevent(events, nil, told[:]); err != nil {
				return
			}
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
	}()
	return nil
}

// kevent isn't put off by Go's own signals.
func kevent(events int, changes, told []unix.Kevent_t) (int, error) {
	for {
		n, err := unix.Kevent(events, changes, told, nil)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

const zombie = 5 // SZOMB of sys/proc.h

// An adoption finds the processes of the child's session that have left its
// group. Nobody but launchd adopts them, and reaps them.
type adoption struct {
	known map[int]bool   // the child, once it runs
	ended chan os.Signal // nothing comes
}

func adopt() *adoption { return &adoption{known: map[int]bool{}} }

func (a *adoption) close() {}

// reap returns those that live. A child that shares our terminal leads no
// session: then there are none.
func (a *adoption) reap() []int {
	all, err := unix.SysctlKinfoProcSlice("kern.proc.uid", os.Geteuid())
	if err != nil {
		return nil
	}
	var living []int
	for i := range all {
		pid, group := int(all[i].Proc.P_pid), int(all[i].Eproc.Pgid)
		if all[i].Proc.P_stat == zombie || a.known[pid] || a.known[group] {
			continue
		}
		if session, err := unix.Getsid(pid); err == nil && a.known[session] {
			living = append(living, pid)
		}
	}
	return living
}
