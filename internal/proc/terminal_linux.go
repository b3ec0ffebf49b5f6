package proc

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	getTermios        = unix.TCGETS
	setTermios        = unix.TCSETS
	setTermiosDrained = unix.TCSETSW
)

// parent is the parent of a process, 0 where that can't be known.
func parent(pid int) int {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	return parentOf(stat)
}
