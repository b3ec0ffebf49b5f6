package guardian

import (
	"os"
	"syscall"

	"golang.org/x/sys/windows"
)

const rootDir = `\`

// environment has the one variable that Windows' network stack needs.
func environment() []string { return []string{"SYSTEMROOT=" + os.Getenv("SYSTEMROOT")} }

// closeInherited does nothing: on Windows a process inherits what it is given.
func closeInherited() {}

func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.DETACHED_PROCESS | windows.CREATE_NEW_PROCESS_GROUP}
}
