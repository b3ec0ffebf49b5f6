package guardian

import (
	"os"
	"syscall"

	"golang.org/x/sys/windows"
)

const rootDir = `\`

// environment has the one variable that Windows' network stack needs.
func environment() []string { return []string{"SYSTEMROOT=" + os.Getenv("SYSTEMROOT")} }

func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.DETACHED_PROCESS | windows.CREATE_NEW_PROCESS_GROUP}
}
