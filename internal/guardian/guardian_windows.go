package guardian

import (
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

const rootDir = `\`

// environment has the one variable that Windows' network stack needs.
func environment() []string { return []string{"SYSTEMROOT=" + os.Getenv("SYSTEMROOT")} }

// closeInherited does nothing: on Windows a process inherits what it is given.
func closeInherited() {}

func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: creationFlags(jobLimits())}
}

// creationFlags: without a console, so that its closing and its events don't
// reach the guardian, and outside of the wrapper's job, which may end with it.
// Where a job forbids leaving, a process that is to leave doesn't start at all.
func creationFlags(limits uint32) uint32 {
	flags := uint32(windows.DETACHED_PROCESS | windows.CREATE_NEW_PROCESS_GROUP)
	if limits&windows.JOB_OBJECT_LIMIT_BREAKAWAY_OK != 0 {
		flags |= windows.CREATE_BREAKAWAY_FROM_JOB
	}
	return flags
}

// jobLimits are those of the job that this process is in; 0 where there is none.
func jobLimits() uint32 {
	info := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{}
	var pin runtime.Pinner // a stack may move
	pin.Pin(&info)
	defer pin.Unpin()
	if err := windows.QueryInformationJobObject(0, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)), nil); err != nil { //nolint:gosec // pinned
		return 0
	}
	return info.BasicLimitInformation.LimitFlags
}
