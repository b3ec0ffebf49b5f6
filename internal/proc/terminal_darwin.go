package proc

import "golang.org/x/sys/unix"

const (
	getTermios        = unix.TIOCGETA
	setTermios        = unix.TIOCSETA
	setTermiosDrained = unix.TIOCSETAW
)

// parent is the parent of a process, 0 where that can't be known.
func parent(pid int) int {
	info, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err != nil {
		return 0
	}
	return int(info.Eproc.Ppid)
}
