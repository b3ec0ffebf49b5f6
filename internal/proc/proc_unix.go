//go:build linux || darwin

package proc

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// OnTerminal reports whether this process has a controlling terminal.
func OnTerminal() bool {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

// Notify subscribes to the signals that [Run] passes on. With a terminal, the
// ones that stop and continue a job keep their effect on this process, so that
// the shell's job control works. SIGHUP and SIGINT, if they were ignored when
// this process began, stay ignored, for the child too; of other signals Go's
// runtime can't tell, so the child begins with their defaults. Call stop when
// done.
//
// SIGPIPE is subscribed to as well, and passed on to nobody: a closed stdout
// would otherwise kill a Go program before it can clean up.
func Notify(terminal bool) (signals <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 64)
	subscribe(c, terminal, true)
	subscribe(c, terminal, false)
	return c, func() { signal.Stop(c) }
}

// NotifyFirst is Notify for a program that has other things to begin with, and
// whose end is the end of this: it subscribes at once to the signals that others
// send to a program, and to the rest when that is called. They are fifty, and
// each costs two switches between threads.
func NotifyFirst(terminal bool) (signals <-chan os.Signal, rest func()) {
	c := make(chan os.Signal, 64)
	subscribe(c, terminal, true)
	return c, func() { subscribe(c, terminal, false) }
}

func subscribe(c chan<- os.Signal, terminal, first bool) {
	var some []os.Signal
	for n := syscall.Signal(1); n <= 64; n++ {
		if usual(n) == first && catchable(n) && !signal.Ignored(n) && !(terminal && jobControl(n)) {
			some = append(some, n)
		}
	}
	if len(some) > 0 { // none would be all
		signal.Notify(c, some...)
	}
}

// usual signals are those that people and programs send, and SIGPIPE. Without
// a subscription ABRT ends a Go program with a dump of its registers.
func usual(n syscall.Signal) bool {
	switch n {
	case syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGPIPE, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGABRT:
		return true
	}
	return false
}

// parentSignal is what [DieWithParent] is told by: a real-time signal, which
// nothing else sends.
const parentSignal = syscall.Signal(62)

// catchable leaves out what can't be caught, what the Go runtime and the C
// library use themselves (URG, 32 to 34), and what concerns this process only.
func catchable(n syscall.Signal) bool {
	switch n {
	case syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGCHLD, syscall.SIGURG, 32, 33, 34, parentSignal:
		return false
	}
	return true
}

func jobControl(n syscall.Signal) bool {
	switch n {
	case syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGCONT, syscall.SIGWINCH:
		return true
	}
	return false
}

// passedOn says whether the child is to get a signal that we got.
func passedOn(sig syscall.Signal, terminal bool) bool {
	switch sig {
	case syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPIPE:
		return false
	case syscall.SIGINT, syscall.SIGQUIT:
		return !terminal // the terminal has sent it to the child already
	}
	return !terminal || !jobControl(sig)
}

// find returns the path of the command, or the error that a shell would act
// on: os.ErrNotExist, else why it can't be executed.
func find(cfg Config) (string, error) {
	name := cfg.Args[0]
	if name == "" {
		return "", errNotInPath
	}
	if strings.Contains(name, "/") {
		return name, executable(cfg.Dir, name)
	}
	found := errNotInPath
	for _, dir := range filepath.SplitList(lookup(cfg.Env, "PATH")) {
		if dir == "" {
			dir = "."
		}
		path := dir + "/" + name // filepath.Join would drop a leading "./"
		err := executable(cfg.Dir, path)
		if err == nil {
			return path, nil
		}
		if errors.Is(err, errNotExecutable) {
			found = err // unless a later directory has one that is
		}
	}
	return "", found
}

// lookup gives the last setting of a variable.
func lookup(env []string, name string) string {
	value := ""
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			value = v
		}
	}
	return value
}

// errNotExecutable differs from a directory that may not be searched, which a
// lookup in PATH passes over.
var errNotExecutable error = &findError{"not executable", os.ErrPermission}

func executable(dir, path string) error {
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	fi, err := os.Stat(path)
	if err != nil {
		return pathless(err)
	}
	if fi.IsDir() {
		return syscall.EISDIR
	}
	if err := unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS); err != nil {
		return errNotExecutable
	}
	return nil
}

// startProcess starts path, or has the shell start it if it is a script that
// names no interpreter: execvp(3) and every shell do so.
func (*family) startProcess(start starter, path string, args []string, attr *os.ProcAttr) (*os.Process, error) {
	p, err := start(path, args, attr)
	if errors.Is(err, syscall.ENOEXEC) && isText(attr.Dir, path) {
		p, err = start("/bin/sh", append([]string{"/bin/sh", path}, args[1:]...), attr)
	}
	if err != nil {
		return nil, pathless(err)
	}
	return p, nil
}

// isText keeps the binary of another machine from the shell, whose complaint
// nobody would understand.
func isText(dir, path string) bool {
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	head, err := io.ReadAll(io.LimitReader(f, 128))
	return err == nil && bytes.IndexByte(head, 0) < 0
}

func statusOf(state *os.ProcessState) Status {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return Status{signal: ws.Signal()}
	}
	return Status{exit: state.ExitCode()}
}

// readNow reads what lies in the pipe without waiting.
func readNow(f *os.File, buf []byte) (n int, err error) {
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		return 0, err
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := conn.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), buf)
		return true
	})
	if cerr != nil {
		return 0, cerr
	}
	return n, err
}

// A family is the child and all that descends from it, as far as we can
// reach: its process group, and the orphans that we adopt.
type family struct {
	pid      int  // the child's
	terminal bool // no group of its own
	cgroup   *cgroup
	*adoption
}

func newFamily(cfg Config) *family {
	f := &family{terminal: cfg.Terminal}
	if cfg.Adopt && !cfg.Detach {
		ready := cfg.Prepared
		if ready == nil {
			ready = Prepare()
		}
		f.adoption, f.cgroup = ready.adoption, ready.cgroup
	}
	return f
}

// Prepared is what a [Run] with Adopt begins with.
type Prepared struct {
	*adoption
	cgroup *cgroup
}

// Prepare makes it while the caller waits for something else. The caller starts
// no process of its own from here until Run has returned. Without a Run it is
// to be closed.
func Prepare() *Prepared {
	// The first use of a process's handle has the runtime try whether there are
	// any, by a process of its own.
	if p, err := os.FindProcess(os.Getpid()); err == nil {
		_ = p.Release()
	}
	return &Prepared{adopt(), newCgroup()}
}

// Close is for what no Run took.
func (p *Prepared) Close() { (&family{adoption: p.adoption, cgroup: p.cgroup}).close() }

// groupAttr puts the child into a group of its own, or, with a terminal of its
// own, into a session of its own, unless it shares our terminal.
func groupAttr(cfg Config) *syscall.SysProcAttr {
	if cfg.PTY != nil {
		return &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 1} // its stdout
	}
	return &syscall.SysProcAttr{Setpgid: !cfg.Terminal}
}

// own tells the family its child.
func (f *family) own(pid int) {
	f.pid = pid
	if f.adoption != nil {
		f.known[pid] = true
	}
	restoreCoreLimit(pid)
}

// target is what kill(2) reaches the child by, and its group if it has one.
func (f *family) target() int {
	if f.terminal {
		return f.pid
	}
	return -f.pid
}

// A failing kill means that nobody is left, or that it is somebody else's
// process (sudo): either way there is nothing to do.
func (f *family) forward(sig os.Signal) {
	if s, ok := sig.(syscall.Signal); ok && passedOn(s, f.terminal) {
		_ = syscall.Kill(f.target(), s)
	}
}

func (f *family) terminate() { _ = syscall.Kill(f.target(), syscall.SIGTERM) }
func (f *family) kill()      { _ = syscall.Kill(f.target(), syscall.SIGKILL) }

// stop ends what the child left behind and what doesn't end by itself: TERM,
// then KILL after grace. It returns as soon as nothing is left, and at last a
// grace after KILL.
func (f *family) stop(grace time.Duration) {
	if waitGone(settle, func() int { return f.tell(0, map[int]bool{}) }) {
		return
	}
	told := map[int]bool{}
	if f.tell(syscall.SIGTERM, told) == 0 {
		return
	}
	if waitGone(grace, func() int { return f.tell(syscall.SIGTERM, told) }) {
		return
	}
	if f.cgroup != nil {
		f.cgroup.kill()
	}
	waitGone(grace, func() int {
		clear(told)
		return f.tell(syscall.SIGKILL, told)
	})
}

// tell sends sig once to each that isn't in told, and counts the living.
func (f *family) tell(sig syscall.Signal, told map[int]bool) int {
	targets := f.reap()
	if !f.terminal {
		targets = append(targets, -f.pid)
	}
	living := 0
	for _, t := range targets {
		s := sig
		if told[t] {
			s = 0
		}
		told[t] = true
		if syscall.Kill(t, s) == nil {
			living++
		}
	}
	return living
}

func (f *family) orphanEnded() <-chan os.Signal {
	if f.adoption == nil {
		return nil
	}
	return f.ended
}

// reap takes the status of adopted orphans that have ended, and returns those
// that live.
func (f *family) reap() []int {
	if f.adoption == nil {
		return nil
	}
	return f.adoption.reap()
}

func (f *family) close() {
	if f.adoption != nil {
		f.adoption.close()
	}
	if f.cgroup != nil {
		f.cgroup.remove()
	}
}
