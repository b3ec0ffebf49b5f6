// Package proc runs one child process as if its caller weren't there: the
// child's streams, signals and exit status pass through unchanged.
//
// It promises that nothing the child left behind outlives [Run] unnoticed:
// its process group, where Run made one, and (Linux, [Config].Adopt) every
// orphaned descendant are told to end, then made to; on macOS every descendant
// that hasn't left the child's session is; on Windows every descendant is made
// to, at the caller's own death too. A descendant that holds
// the output open can't keep Run waiting for longer than [Config].WaitDelay.
// The child sees [Config].Env and nothing of the caller's environment.
//
// Windows knows no signals but the console's own events, which reach the child
// without Run. There an output pipe held open is abandoned after WaitDelay.
package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"time"
)

const (
	// settle is how long what the child left behind may take to end by itself:
	// the tee of bash's `exec > >(tee log)` still has to write what it was given.
	settle = 250 * time.Millisecond
	// doubleTap is within what time a second Ctrl-C kills.
	doubleTap = time.Second

	// DefaultGrace suits a GitHub runner's cancel, which kills 2.5 s after
	// its SIGTERM: the session still has to be ended within that time.
	DefaultGrace = time.Second
	// DefaultWaitDelay is short because all that the child itself wrote is
	// copied whatever the delay.
	DefaultWaitDelay = 500 * time.Millisecond

	copyBytes = 64 << 10 // a Linux pipe's capacity
	// maxDrainBytes bounds what is read after WaitDelay: the largest pipe
	// that an unprivileged Linux process may make.
	maxDrainBytes = 1 << 20
)

// Config says what to run and how.
type Config struct {
	// Args is the command and its arguments. Args[0] without a slash is
	// looked up in the PATH of Env, as a shell with that environment would.
	Args []string
	// Env is the child's whole environment; nil is an empty one.
	Env []string
	// Dir is the working directory; "" is the caller's.
	Dir string
	// Stdin is handed to the child; nil is the null device.
	Stdin *os.File
	// Stdout and Stderr get the child's output. An *os.File is handed to the
	// child itself; anything else is fed from a pipe, each from a goroutine of
	// its own. nil is the null device.
	Stdout, Stderr io.Writer
	// Signals are passed on to the child; nil means none. See [Notify].
	Signals <-chan os.Signal
	// Terminal says that the caller has a controlling terminal (see
	// [OnTerminal]): the child then stays in the caller's process group, and
	// what the terminal sends to the whole group isn't passed on.
	Terminal bool
	// PTY gives the child a terminal of its own, whose output goes to Stdout
	// as if that were one: it merges streams and turns LF into CRLF, so it is
	// for callers whose own stdout is a terminal. It needs Terminal, and isn't
	// used (nor is it an error) where the caller isn't in its terminal's
	// foreground, or the system has none.
	PTY *PTY
	// Detach lets what the child left behind live on.
	Detach bool
	// Adopt makes the calling process the parent of the child's orphans
	// (Linux), or gives a child without a terminal a session of its own (macOS),
	// so that those that left the group are found. The caller starts no process
	// of its own while Run runs; earlier ones are left alone.
	Adopt bool
	// Prepared, if set, is what [Prepare] made for Adopt ahead of time, for this
	// one Run.
	Prepared *Prepared
	// Grace is the time between TERM and KILL, for the child when the context
	// is cancelled and for what it left behind; 0 is [DefaultGrace].
	Grace time.Duration
	// WaitDelay bounds the wait for output after the child has exited, while
	// another process holds the pipe; 0 is [DefaultWaitDelay]. What the child
	// itself wrote is never cut off.
	WaitDelay time.Duration
	// Start, if set, stands in for [os.StartProcess], which is given what it is:
	// the process that it returns becomes the command. Where it fails nothing
	// is left of that process. An error with a method Signal() syscall.Signal
	// says that this signal ended it first: that is then the command's status.
	Start starter
	// OnStart, if set, is called with the child's process id once it runs.
	OnStart func(pid int)
	// Problem, if set, is told of what Run couldn't do and goes on without.
	Problem func(what string, err error)
}

type starter = func(path string, args []string, attr *os.ProcAttr) (*os.Process, error)

// PTY says which of the child's streams, beside stdout, are its own terminal.
type PTY struct{ Stdin, Stderr bool }

// A Status is how the child ended. The zero Status is success.
type Status struct {
	exit   int
	signal syscall.Signal
}

// Code is the exit code that a shell would report: the child's own, or 128+n
// after death by signal n.
func (s Status) Code() int {
	if s.signal != 0 {
		return 128 + int(s.signal)
	}
	return s.exit
}

// Signal is the signal that killed the child, 0 if it exited.
func (s Status) Signal() syscall.Signal { return s.signal }

// A StartError says that the command never ran.
type StartError struct {
	Name string // the command as given
	Err  error
}

func (e *StartError) Error() string { return fmt.Sprintf("starting %q: %v", e.Name, e.Err) }

func (e *StartError) Unwrap() error { return e.Err }

// Code is what a shell reports: 127 for a command that wasn't found, 126 for
// one that can't be executed.
func (e *StartError) Code() int {
	if errors.Is(e.Err, os.ErrNotExist) {
		return 127
	}
	return 126
}

// Hint names the cure, or is empty.
func (e *StartError) Hint() string {
	switch {
	case errors.Is(e.Err, errNotInPath):
		return "check the spelling, or give the command's path; shell built-ins and pipes need: sh -c '…'"
	case errors.Is(e.Err, os.ErrNotExist):
		return "check the path, and the interpreter named in the file's first line"
	case errors.Is(e.Err, syscall.E2BIG):
		return "the environment and arguments are larger than the system allows"
	case errors.Is(e.Err, os.ErrPermission):
		return "make the file executable: chmod +x"
	}
	return ""
}

// errNotInPath is os.ErrNotExist to those who ask.
var errNotInPath error = &findError{"not found in PATH", os.ErrNotExist}

// A findError is made without package fmt, whose first use costs every start.
type findError struct {
	what string
	is   error
}

func (e *findError) Error() string { return e.what + ": " + e.is.Error() }

func (e *findError) Unwrap() error { return e.is }

// Run starts the child, waits for it and for its output, stops what it left
// behind, and returns how it ended. Cancelling ctx sends the child TERM, and
// KILL after Grace; Run still returns its status.
//
// The error is a [*StartError] if the child never ran. When Stdout or Stderr
// fails, the child's pipe is closed, as in a shell pipeline, and Run returns
// the status together with an error; a broken pipe (EPIPE) isn't reported, the
// child's own status tells of it.
func Run(ctx context.Context, cfg Config) (Status, error) {
	if len(cfg.Args) == 0 {
		return Status{}, errors.New("no command given")
	}
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.WaitDelay == 0 {
		cfg.WaitDelay = DefaultWaitDelay
	}
	if cfg.Env == nil {
		cfg.Env = []string{} // os.StartProcess takes nil for its own environment
	}
	if cfg.Start == nil {
		cfg.Start = os.StartProcess
	}
	unused := cfg.Prepared
	defer func() {
		if unused != nil {
			unused.Close()
		}
	}()
	path, err := find(cfg)
	if err != nil {
		return Status{}, &StartError{Name: cfg.Args[0], Err: err}
	}
	var term *terminal
	if cfg.PTY != nil && cfg.Terminal {
		if term, err = openTerminal(); err == nil {
			cfg.Terminal = false // the child is on another one
			defer term.close()
		}
	}
	if term == nil {
		cfg.PTY = nil
	}
	var s streams
	if err := s.open(cfg, term); err != nil {
		s.closeAll()
		return Status{}, fmt.Errorf("opening the command's streams: %w", err)
	}
	family := newFamily(cfg)
	unused = nil
	defer family.close()

	child, err := start(cfg, path, s.files, family)
	if err != nil {
		s.closeAll()
		if killed, ok := errors.AsType[interface {
			error
			Signal() syscall.Signal
		}](err); ok {
			return Status{signal: killed.Signal()}, nil
		}
		return Status{}, &StartError{Name: cfg.Args[0], Err: err}
	}
	family.own(child.process.Pid)
	if term != nil {
		term.run(child.process.Pid)
	}
	s.startCopying()
	if cfg.OnStart != nil {
		cfg.OnStart(child.process.Pid)
	}

	status, err := supervise(ctx, cfg, child, family)
	if term != nil {
		term.childEnded()
	}
	if !cfg.Detach {
		family.stop(cfg.Grace)
	}
	if werr := s.finish(cfg.WaitDelay); err == nil {
		err = werr
	}
	return status, err
}

// waitGone asks until nobody lives, for limit at most, and reports whether it
// came to that.
func waitGone(limit time.Duration, living func() int) bool {
	end := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		if living() == 0 {
			return true
		}
		left := time.Until(end)
		if left <= 0 {
			return false
		}
		time.Sleep(min(pause, left))
	}
}

// pathless drops the path from an error that will be wrapped with the
// command's name.
func pathless(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// A child is a running process; ended gets one value, when it has exited.
type child struct {
	process *os.Process
	ended   chan ended
}

type ended struct {
	status Status
	err    error
}

// start runs the command from an operating system thread that lives as long
// as the child: Linux sends the parent-death signal when that thread ends.
func start(cfg Config, path string, files []*os.File, f *family) (*child, error) {
	c := &child{ended: make(chan ended, 1)}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		attr := &os.ProcAttr{Dir: cfg.Dir, Env: cfg.Env, Files: files, Sys: f.sysProcAttr(cfg)}
		var err error
		c.process, err = f.startProcess(cfg.Start, path, cfg.Args, attr)
		if err != nil && f.withoutCgroup(attr) {
			c.process, err = f.startProcess(cfg.Start, path, cfg.Args, attr)
		}
		started <- err
		if err != nil {
			return
		}
		state, err := c.process.Wait()
		if err != nil {
			c.ended <- ended{Status{}, fmt.Errorf("waiting for the command: %w", err)}
			return
		}
		c.ended <- ended{statusOf(state), nil}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

// supervise passes signals on until the child has exited.
func supervise(ctx context.Context, cfg Config, c *child, f *family) (Status, error) {
	signals, cancelled := cfg.Signals, ctx.Done()
	var kill <-chan time.Time
	for {
		select {
		case sig, ok := <-signals:
			if !ok {
				signals = nil
			} else {
				f.forward(sig)
			}
		case <-cancelled:
			cancelled = nil
			timer := time.NewTimer(cfg.Grace)
			defer timer.Stop()
			kill = timer.C
			f.terminate()
		case <-kill:
			f.kill()
		case <-f.orphanEnded():
			f.reap()
		case e := <-c.ended:
			return e.status, e.err
		}
	}
}

// streams are the child's three standard streams.
type streams struct {
	files  []*os.File // what the child gets
	owned  []*os.File // those of files that we close once it has started
	copies []*pipeCopy
}

func (s *streams) open(cfg Config, term *terminal) error {
	in := cfg.Stdin
	switch {
	case term != nil && cfg.PTY.Stdin:
		in = term.slave
	case in == nil:
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		s.owned = append(s.owned, null)
		in = null
	}
	s.files = append(s.files, in)
	for i, w := range []io.Writer{cfg.Stdout, cfg.Stderr} {
		f, ok := w.(*os.File)
		switch {
		case term != nil && i == 0:
			s.copies = append(s.copies, &pipeCopy{from: term.master, to: w, done: make(chan struct{})})
			f = term.slave
		case term != nil && cfg.PTY.Stderr:
			f = term.slave
		case w == nil:
			null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			s.owned = append(s.owned, null)
			f = null
		case !ok:
			r, pw, err := os.Pipe()
			if err != nil {
				return err
			}
			s.owned = append(s.owned, pw)
			s.copies = append(s.copies, &pipeCopy{from: r, to: w, done: make(chan struct{})})
			f = pw
		}
		s.files = append(s.files, f)
	}
	return nil
}

// closeAll is for a child that didn't start; a file's close can't lose data
// here.
func (s *streams) closeAll() {
	for _, f := range s.owned {
		_ = f.Close()
	}
	for _, c := range s.copies {
		_ = c.from.Close()
	}
}

func (s *streams) startCopying() {
	for _, f := range s.owned {
		_ = f.Close() // the child has its own copy of the descriptor
	}
	for _, c := range s.copies {
		go c.run()
	}
}

// finish waits until the output is copied. A read that waits for longer than
// delay is given up; a slow writer is waited for, since it holds what the
// child itself wrote.
func (s *streams) finish(delay time.Duration) error {
	end := time.Now().Add(delay)
	var err error
	for _, c := range s.copies {
		if c.from.SetReadDeadline(end) == nil {
			<-c.done
		} else if !c.waitUntil(end) { // Windows: its pipes have no deadline
			continue
		}
		if c.err != nil && err == nil && !errors.Is(c.err, syscall.EPIPE) {
			err = fmt.Errorf("passing on the command's output: %w", c.err)
		}
	}
	return err
}

// A pipeCopy feeds a writer from the read end of a pipe.
type pipeCopy struct {
	from *os.File
	to   io.Writer
	done chan struct{}
	err  error // the writer's; read it after done
}

func (c *pipeCopy) run() {
	defer close(c.done)
	defer func() { _ = c.from.Close() }()
	buf := make([]byte, copyBytes)
	for {
		n, err := c.from.Read(buf)
		if n > 0 {
			if _, c.err = c.to.Write(buf[:n]); c.err != nil {
				return
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.drain(buf)
		}
		if err != nil {
			return
		}
	}
}

// drain copies what already lies in the pipe: the child may have written it
// while the writer was slow.
func (c *pipeCopy) drain(buf []byte) {
	for total := 0; total < maxDrainBytes; {
		n, err := readNow(c.from, buf)
		if n <= 0 || err != nil {
			return
		}
		if _, c.err = c.to.Write(buf[:n]); c.err != nil {
			return
		}
		total += n
	}
}

func (c *pipeCopy) waitUntil(end time.Time) bool {
	timer := time.NewTimer(time.Until(end))
	defer timer.Stop()
	select {
	case <-c.done:
		return true
	case <-timer.C:
		return false
	}
}
