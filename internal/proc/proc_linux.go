package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sysProcAttr: whoever kills us with KILL would, without us, have killed the
// child. The signal misses grandchildren and set-uid programs.
func (f *family) sysProcAttr(cfg Config) *syscall.SysProcAttr {
	attr := groupAttr(cfg)
	attr.Pdeathsig = syscall.SIGKILL
	if f.cgroup != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(f.cgroup.dir.Fd())
	}
	return attr
}

// withoutCgroup takes back a group that the kernel may have refused to put the
// child into; it reports whether there was one.
func (f *family) withoutCgroup(attr *os.ProcAttr) bool {
	if f.cgroup == nil {
		return false
	}
	f.cgroup.remove()
	f.cgroup, attr.Sys.UseCgroupFD = nil, false
	return true
}

// ignoresSuspend reports whether a process has chosen that the suspend key
// means nothing to it, as a shell at its prompt has.
func ignoresSuspend(pid int) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(status) {
		if mask, ok := bytes.CutPrefix(line, []byte("SigIgn:")); ok {
			bits, err := strconv.ParseUint(string(bytes.TrimSpace(mask)), 16, 64)
			return err == nil && bits&(1<<(syscall.SIGTSTP-1)) != 0
		}
	}
	return false
}

// originalCore is the soft core limit that [HardenSelf] found first; nil until
// then. Limits belong to the process, so this does too.
var originalCore atomic.Pointer[uint64]

// HardenSelf keeps this process's memory from core dumps and from debuggers
// of the same user, and its /proc entries from everybody but root; and, from a
// second on, from the swap, where the limit on locked memory is no obstacle.
// Children of [Run] get the core limit back that this process began with.
func HardenSelf() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making the process non-dumpable: %w", err)
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &lim); err != nil {
		return fmt.Errorf("reading the core limit: %w", err)
	}
	found := lim.Cur
	originalCore.CompareAndSwap(nil, &found)
	// 1, not 0: the kernel still feeds a piped core_pattern under 0.
	soft := min(1, lim.Max)
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: soft, Max: lim.Max}); err != nil {
		return fmt.Errorf("setting the core limit: %w", err)
	}
	time.AfterFunc(lockAfter, lockMemory)
	return nil
}

// lockAfter is when memory is locked. Nothing that was in use a second ago is
// swapped out, and for a command that takes less the locking costs a
// noticeable part of its life.
const lockAfter = time.Second

// lockMemory locks pages as they are used. Under a limit it doesn't try: an
// allocation beyond that would end the process.
func lockMemory() {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim); err != nil || lim.Cur != unix.RLIM_INFINITY && os.Geteuid() != 0 {
		return
	}
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
}

// restoreCoreLimit is best effort: a set-uid child keeps our limit.
func restoreCoreLimit(pid int) {
	found := originalCore.Load()
	if found == nil {
		return
	}
	var lim unix.Rlimit
	if unix.Prlimit(pid, unix.RLIMIT_CORE, nil, &lim) == nil {
		lim.Cur = min(*found, lim.Max)
		_ = unix.Prlimit(pid, unix.RLIMIT_CORE, &lim, nil)
	}
}

// DieWithParent sees to it that this process gets TERM when its parent ends,
// and at once if that has happened during the call. A parent that ended
// earlier can't be told from one that never was. Call it once.
//
// The kernel tells of the end of the thread that made us, which in a parent
// with threads (a runner in .NET, Go or Java) may end long before the parent
// does. So it tells by a signal of our own, and who the parent is decides.
func DieWithParent() error {
	parent := os.Getppid()
	told := make(chan os.Signal, 1)
	signal.Notify(told, parentSignal)
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(parentSignal), 0, 0, 0); err != nil {
		signal.Stop(told)
		return fmt.Errorf("asking for a signal at the parent's death: %w", err)
	}
	go func() {
		for os.Getppid() == parent {
			<-told
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
	}()
	return nil
}

// An adoption makes this process the parent of its descendants' orphans.
type adoption struct {
	known map[int]bool // children that aren't orphans
	ended chan os.Signal
}

// adopt is best effort: without it, orphans that left the child's group are
// beyond reach.
func adopt() *adoption {
	a := &adoption{known: map[int]bool{}, ended: make(chan os.Signal, 1)}
	for _, pid := range children() {
		a.known[pid] = true
	}
	if unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != nil {
		return nil
	}
	signal.Notify(a.ended, unix.SIGCHLD)
	return a
}

func (a *adoption) close() {
	signal.Stop(a.ended)
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
}

func (a *adoption) reap() []int {
	var living []int
	for _, pid := range children() {
		if a.known[pid] {
			continue
		}
		got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		if err == nil && got == 0 {
			living = append(living, pid)
		}
	}
	return living
}

// children lists this process's children, zombies included. One that was made
// to end without a signal, as a guardian is, may be left out.
func children() []int {
	err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if errors.Is(err, unix.ECHILD) {
		return nil // as nearly always, and reading of each thread's takes its time
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	var pids []int
	for _, task := range tasks {
		list, err := readKernel("/proc/self/task/" + task.Name() + "/children")
		if errors.Is(err, os.ErrNotExist) && task.Name() == strconv.Itoa(os.Getpid()) {
			return childrenByStat() // a kernel without CONFIG_PROC_CHILDREN
		}
		for field := range bytes.FieldsSeq(list) {
			if pid, err := strconv.Atoi(string(field)); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// readKernel is os.ReadFile for what the kernel makes up: it doesn't try whether
// that can be waited for.
func readKernel(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	all := make([]byte, 0, 4<<10)
	for {
		n, err := unix.Read(fd, all[len(all):cap(all)])
		if n <= 0 || err != nil {
			return all, err
		}
		if all = all[:len(all)+n]; len(all) == cap(all) {
			all = append(all, 0)[:len(all)]
		}
	}
}

func childrenByStat() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	self := os.Getpid()
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err == nil && parentOf(stat) == self {
			pids = append(pids, pid)
		}
	}
	return pids
}

// parentOf reads the fourth field of /proc/PID/stat. The second, the command
// name, may itself hold spaces and parentheses.
func parentOf(stat []byte) int {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0
	}
	fields := bytes.Fields(stat[end+1:])
	if len(fields) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0
	}
	return parent
}
