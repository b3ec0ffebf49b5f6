package proc

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/windows"
)

// OnTerminal reports whether one of the standard streams is a console: then
// somebody sits before it. A CI's runner gives each step a console as well, but
// pipes for its streams.
func OnTerminal() bool {
	return slices.ContainsFunc([]*os.File{os.Stdin, os.Stdout, os.Stderr}, IsTerminal)
}

// Notify keeps the console's events from ending this process before its child,
// which gets them from the console itself: Ctrl-C and Ctrl-Break come as
// [os.Interrupt]; the closing of the console, logging off and the system's end,
// after which Windows leaves five seconds, as SIGTERM.
func Notify(bool) (signals <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 64)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
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

// find returns the path of the command. Unlike cmd.exe it doesn't look into the
// working directory first: what lies in a workspace isn't to stand in for a
// program.
func find(cfg Config) (string, error) {
	name := cfg.Args[0]
	if name == "" {
		return "", errNotInPath
	}
	if strings.ContainsAny(name, `:\/`) {
		return withExtension(cfg, name)
	}
	for _, dir := range filepath.SplitList(lookup(cfg.Env, "PATH")) {
		if dir == "" {
			continue
		}
		// filepath.Join would drop a leading ".\"
		if path, err := withExtension(cfg, strings.TrimRight(dir, `\/`)+`\`+name); err == nil {
			return path, nil
		}
	}
	return "", errNotInPath
}

// withExtension is the path itself, if it has an extension and is there, or the
// path with the first extension of PATHEXT that makes a file of it.
func withExtension(cfg Config, path string) (string, error) {
	exts := []string{".com", ".exe", ".bat", ".cmd"}
	if given := lookup(cfg.Env, "PATHEXT"); given != "" {
		exts = strings.Split(given, ";")
	}
	if filepath.Ext(path) != "" {
		exts = slices.Insert(exts, 0, "")
	}
	err := os.ErrNotExist
	for _, ext := range exts {
		full := path + ext
		if !filepath.IsAbs(full) {
			full = filepath.Join(cfg.Dir, full)
		}
		fi, serr := os.Stat(full)
		switch {
		case serr == nil && fi.IsDir():
			err = syscall.EISDIR
		case serr == nil:
			return path + ext, nil
		case !errors.Is(serr, os.ErrNotExist):
			err = pathless(serr)
		}
	}
	return "", err
}

// lookup gives the last setting of a variable, whose name has no case.
func lookup(env []string, name string) string {
	value := ""
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok && strings.EqualFold(k, name) {
			value = v
		}
	}
	return value
}

// statusOf: an exit code has 32 bits there, 0xC000013A after Ctrl-C.
func statusOf(state *os.ProcessState) Status { return Status{exit: state.ExitCode()} }

func readNow(*os.File, []byte) (int, error) { return 0, nil }

// A family is the child and all that descends from it, which a job holds; or
// the child alone where there is no job.
type family struct {
	grace   time.Duration
	taps    taps
	problem func(what string, err error)

	mu      sync.Mutex
	child   *os.Process
	job     *job // nil is none
	killing *time.Timer
}

func newFamily(cfg Config) *family {
	f := &family{grace: cfg.Grace, taps: taps{terminal: cfg.Terminal}, problem: cfg.Problem}
	var err error
	if f.job, err = newJob(!cfg.Detach); err != nil {
		f.alone(err)
	}
	return f
}

// alone goes on without a job.
func (f *family) alone(err error) {
	f.job = nil
	if f.problem != nil {
		f.problem("what the command starts can't be stopped with it", err)
	}
}

// sysProcAttr: what the child starts before it is in the job wouldn't be there
// either, so it begins to run after that. It stays in our process group: a new
// one would shut Ctrl-C off.
func (f *family) sysProcAttr(Config) *syscall.SysProcAttr {
	if f.job == nil {
		return nil
	}
	return &syscall.SysProcAttr{CreationFlags: windows.CREATE_SUSPENDED}
}

func (f *family) startProcess(start starter, path string, args []string, attr *os.ProcAttr) (*os.Process, error) {
	p, err := start(path, args, attr)
	if err != nil {
		return nil, pathless(err)
	}
	f.child = p
	if f.job == nil {
		return p, nil
	}
	if err := f.job.take(p); err != nil {
		_ = f.job.close()
		f.alone(err)
	}
	if err := resume(p.Pid); err != nil {
		_ = p.Kill()
		_, _ = p.Wait()
		return nil, err
	}
	return p, nil
}

func (*family) withoutCgroup(*os.ProcAttr) bool { return false }
func (*family) own(int)                         {}
func (*family) orphanEnded() <-chan os.Signal   { return nil }
func (*family) reap() []int                     { return nil }

// forward acts on what the child was told by the console, or can't be told at
// all: that the user insists, and that there is little time left.
func (f *family) forward(sig os.Signal) {
	insists := sig == os.Interrupt && f.taps.insist(time.Now())
	switch {
	case insists && f.taps.terminal:
		f.kill()
	case insists, sig == syscall.SIGTERM:
		f.killLater()
	}
}

// terminate: nothing can be said to a single process.
func (f *family) terminate() { f.kill() }

func (f *family) kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.job == nil {
		_ = f.child.Kill() // a failure means that it has ended
		return
	}
	_ = f.job.kill()
}

func (f *family) killLater() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.killing == nil {
		f.killing = time.AfterFunc(f.grace, f.kill)
	}
}

// stop ends what the child left behind and what doesn't end by itself.
func (f *family) stop(grace time.Duration) {
	if f.job == nil || waitGone(settle, f.job.living) {
		return
	}
	f.kill()
	waitGone(grace, f.job.living)
}

func (f *family) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.killing != nil {
		f.killing.Stop()
	}
	if f.job != nil {
		_ = f.job.close()
		f.job = nil
	}
}

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

// echo is within what time an event is the one before, told twice: MSYS2's
// shells pass on what the console has sent already.
const echo = 50 * time.Millisecond

// taps tell from Ctrl-C and Ctrl-Break when somebody insists on the end.
//
// At a terminal it is the second within doubleTap: what is typed later is a new
// wish, to a shell or an interpreter. Elsewhere it is the second at all, and
// one within doubleTap is the first, told twice: a GitHub runner sends Ctrl-C,
// 7.5 s later Ctrl-Break, and 2.5 s later kills every process that descends
// from the step, the guardian too.
type taps struct {
	terminal bool
	last     time.Time // not at a terminal: the first
}

func (t *taps) insist(now time.Time) bool {
	since, first := now.Sub(t.last), t.last.IsZero()
	switch {
	case first:
		t.last = now
		return false
	case t.terminal && since > echo:
		t.last = now
		return since <= doubleTap
	}
	return !t.terminal && since > doubleTap
}
