package proc

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/windows"
)

// OnTerminal is true: the console sends its own events to every process
// attached to it.
func OnTerminal() bool { return true }

// Notify keeps Ctrl-C from ending this process before its child, which gets
// it from the console itself.
func Notify(bool) (signals <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 64)
	signal.Notify(c, os.Interrupt)
	return c, func() { signal.Stop(c) }
}

// NotifyFirst is Notify until the program ends.
func NotifyFirst(terminal bool) (signals <-chan os.Signal, rest func()) {
	signals, _ = Notify(terminal)
	return signals, func() {}
}

// Prepared is nothing here.
type Prepared struct{}

// Prepare does nothing.
func Prepare() *Prepared { return &Prepared{} }

// Close does nothing.
func (*Prepared) Close() {}

// HardenSelf does nothing: Windows writes no core dumps for an ordinary user.
func HardenSelf() error { return nil }

// DieWithParent does nothing: Windows has no signal for a parent's death.
func DieWithParent() error { return nil }

func find(cfg Config) (string, error) {
	path, err := exec.LookPath(cfg.Args[0])
	if errors.Is(err, exec.ErrNotFound) {
		return "", errNotInPath
	}
	return path, err
}

func startProcess(start starter, path string, args []string, attr *os.ProcAttr) (*os.Process, error) {
	return start(path, args, attr)
}

func statusOf(state *os.ProcessState) Status { return Status{exit: state.ExitCode()} }

func readNow(*os.File, []byte) (int, error) { return 0, nil }

// A family is the child alone.
type family struct{ pid int }

func newFamily(Config) *family                { return &family{} }
func (f *family) own(pid int)                 { f.pid = pid }
func (*family) forward(os.Signal)             {}
func (f *family) terminate()                  { f.kill() }
func (*family) stop(time.Duration)            {}
func (*family) orphanEnded() <-chan os.Signal { return nil }
func (*family) reap() []int                   { return nil }
func (*family) close()                        {}

func (*family) sysProcAttr(Config) *syscall.SysProcAttr { return nil }

func (*family) withoutCgroup(*os.ProcAttr) bool { return false }

// IsTerminal reports whether f is a console.
func IsTerminal(f *os.File) bool {
	var mode uint32
	return windows.GetConsoleMode(windows.Handle(f.Fd()), &mode) == nil
}

// A terminal is what Unix has: a console isn't replaced.
type terminal struct{ master, slave *os.File }

func openTerminal() (*terminal, error) { return nil, errors.ErrUnsupported }
func (*terminal) run(int)              {}
func (*terminal) childEnded()          {}
func (*terminal) close()               {}

func (f *family) kill() {
	if p, err := os.FindProcess(f.pid); err == nil {
		_ = p.Kill()
		_ = p.Release()
	}
}
