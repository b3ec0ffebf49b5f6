package proc

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/windows"
)

// A job is a job object: a process in it can't leave it, nor can what that
// starts. It may lie in another one, as those of CI runners do. Its handle is
// not inherited, so it is the only one.
type job struct{ handle windows.Handle }

// newJob makes one. If it is strict, all in it die with the handle, and so with
// this process, however that ends. Otherwise they live on, and may leave.
func newJob(strict bool) (*job, error) {
	h, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return nil, fmt.Errorf("making a job object: %w", err)
	}
	info := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{}
	defer pin(&info)()
	info.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_BREAKAWAY_OK
	if strict {
		info.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	}
	if _, err := windows.SetInformationJobObject(h, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info))); err != nil { //nolint:gosec // pinned
		_ = windows.CloseHandle(h)
		return nil, fmt.Errorf("making a job object: %w", err)
	}
	return &job{h}, nil
}

// take puts a process into the job.
func (j *job) take(p *os.Process) error {
	var err error
	if herr := p.WithHandle(func(h uintptr) { err = windows.AssignProcessToJobObject(j.handle, windows.Handle(h)) }); herr != nil {
		err = herr
	}
	if err != nil {
		return fmt.Errorf("putting the command into a job object: %w", err)
	}
	return nil
}

// kill ends all that is in the job, with the status of what Ctrl-C ends.
func (j *job) kill() error {
	return windows.TerminateJobObject(j.handle, uint32(windows.STATUS_CONTROL_C_EXIT))
}

// living counts the processes in the job.
func (j *job) living() int {
	var info struct { // JOBOBJECT_BASIC_ACCOUNTING_INFORMATION
		_         [4]int64
		_, _      uint32
		Active, _ uint32
	}
	defer pin(&info)()
	if err := windows.QueryInformationJobObject(j.handle, windows.JobObjectBasicAccountingInformation,
		uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)), nil); err != nil { //nolint:gosec // pinned
		return 1 // kill then finds out
	}
	return int(info.Active)
}

// pin keeps what is passed on as a number in its place: a stack may move.
func pin(pointer any) (unpin func()) {
	var p runtime.Pinner
	p.Pin(pointer)
	return p.Unpin
}

func (j *job) close() error { return windows.CloseHandle(j.handle) }

// resume lets a process run that was started suspended. It has one thread,
// unless a virus scanner put one of its own there, which this does no harm.
func resume(pid int) error {
	threads, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPTHREAD, 0)
	if err != nil {
		return fmt.Errorf("listing threads: %w", err)
	}
	defer func() { _ = windows.CloseHandle(threads) }()
	resumed := false
	entry := windows.ThreadEntry32{Size: uint32(unsafe.Sizeof(windows.ThreadEntry32{}))}
	for err = windows.Thread32First(threads, &entry); err == nil; err = windows.Thread32Next(threads, &entry) {
		if entry.OwnerProcessID != uint32(pid) {
			continue
		}
		if err := resumeThread(entry.ThreadID); err != nil {
			return err
		}
		resumed = true
	}
	if !resumed {
		return errors.New("its thread wasn't found")
	}
	return nil
}

func resumeThread(id uint32) error {
	h, err := windows.OpenThread(windows.THREAD_SUSPEND_RESUME, false, id)
	if err != nil {
		return fmt.Errorf("opening its thread: %w", err)
	}
	defer func() { _ = windows.CloseHandle(h) }()
	if _, err := windows.ResumeThread(h); err != nil {
		return fmt.Errorf("resuming its thread: %w", err)
	}
	return nil
}
