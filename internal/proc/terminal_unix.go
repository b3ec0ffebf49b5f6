//go:build linux || darwin

package proc

import (
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// IsTerminal reports whether f is a terminal.
func IsTerminal(f *os.File) bool {
	return control(f, func(fd int) error {
		_, err := unix.IoctlGetTermios(fd, getTermios)
		return err
	}) == nil
}

// A terminal is the child's own: a pseudo-terminal whose output we read, fed
// from the caller's terminal, which is raw meanwhile. It takes on the caller's
// settings and size.
//
// The child leads a session of its own there. The kernel lets no key stop the
// leader of an orphaned process group, so the suspend key is ours to act on:
// see [terminal.suspend].
type terminal struct {
	outer  *os.File // the caller's, opened anew
	typed  *keys    // from there
	master *os.File
	slave  *os.File // until the child has exited
	saved  *unix.Termios
	pid    int

	mu      sync.Mutex
	raw     bool
	closed  bool // the caller's settings are back for good
	lastInt time.Time

	resized chan os.Signal
	stopped chan os.Signal
	done    chan struct{}
	all     sync.WaitGroup
}

// openTerminal fails where the caller isn't in its terminal's foreground: it
// may neither read from it nor change it then.
func openTerminal() (*terminal, error) {
	outer, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t := &terminal{outer: outer, done: make(chan struct{})}
	if t.typed, err = newKeys(); err != nil {
		_ = outer.Close()
		return nil, err
	}
	if t.master, t.slave, err = openPair(); err != nil {
		_ = outer.Close()
		t.typed.stop()
		t.typed.close()
		return nil, err
	}
	if err := t.begin(); err != nil {
		t.closeFiles()
		t.typed.close()
		return nil, err
	}
	return t, nil
}

// openPair makes a pseudo-terminal. Its master can be read with a deadline,
// and be closed while somebody reads, which what the library gives can't.
func openPair() (master, slave *os.File, err error) {
	blocking, slave, err := pty.Open()
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = blocking.Close() }()
	fd, err := unix.FcntlInt(blocking.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		_ = slave.Close()
		return nil, nil, err
	}
	return os.NewFile(uintptr(fd), blocking.Name()), slave, nil
}

func (t *terminal) begin() error {
	err := control(t.outer, func(fd int) (err error) {
		group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		if err != nil {
			return err
		}
		if group != unix.Getpgrp() {
			return errors.New("not in the terminal's foreground")
		}
		t.saved, err = unix.IoctlGetTermios(fd, getTermios)
		return err
	})
	if err != nil {
		return err
	}
	if err := control(t.slave, func(fd int) error { return unix.IoctlSetTermios(fd, setTermios, t.saved) }); err != nil {
		return err
	}
	t.resize()
	return nil
}

// resize gives the child's terminal the size of the caller's, if that has one.
func (t *terminal) resize() {
	var size *unix.Winsize
	err := control(t.outer, func(fd int) (err error) {
		size, err = unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		return err
	})
	if err == nil {
		_ = control(t.master, func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size) })
	}
}

// control does something to an open file. Setting a terminal waits for its
// output, and Go's own signals interrupt that.
func control(f *os.File, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	inner := error(syscall.EINTR)
	for errors.Is(inner, syscall.EINTR) {
		if err := conn.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
			return err
		}
	}
	return inner
}

// setRaw hands every key to the child's terminal, or puts the caller's
// settings back.
func (t *terminal) setRaw(raw bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.raw == raw || t.closed {
		return
	}
	settings := *t.saved
	if raw {
		settings.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		settings.Oflag &^= unix.OPOST
		settings.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		settings.Cflag &^= unix.CSIZE | unix.PARENB
		settings.Cflag |= unix.CS8
		settings.Cc[unix.VMIN], settings.Cc[unix.VTIME] = 1, 0
	}
	if control(t.outer, func(fd int) error { return unix.IoctlSetTermios(fd, setTermiosDrained, &settings) }) == nil {
		t.raw = raw
	}
}

// run begins once the child has started. The child's side stays open: else a
// child that closes its streams before it exits, as cat does, would be hung up
// on.
func (t *terminal) run(pid int) {
	t.pid = pid
	t.setRaw(true)
	t.resized, t.stopped = make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(t.resized, syscall.SIGWINCH)
	signal.Notify(t.stopped, syscall.SIGTSTP)
	t.all.Go(t.passKeys)
	t.all.Go(func() {
		for {
			select {
			case <-t.done:
				return
			case <-t.resized:
				t.resize()
			case <-t.stopped:
				if continuable() {
					t.suspend()
				}
			}
		}
	})
}

// passKeys passes on what is typed.
func (t *terminal) passKeys() {
	buf := make([]byte, 4096)
	for {
		n, err := t.typed.read(t.outer, buf)
		if err != nil {
			return
		}
		for rest := buf[:n]; len(rest) > 0; {
			pass, act := t.split(rest)
			if _, err := t.master.Write(rest[:pass]); err != nil {
				return
			}
			if act == nil {
				break
			}
			act()
			rest = rest[pass+1:]
		}
	}
}

// split says how many bytes to pass on, and what to do in place of the key
// after them: nil where there is none.
func (t *terminal) split(b []byte) (pass int, act func()) {
	now, err := t.settings()
	if err != nil || now.Lflag&unix.ISIG == 0 {
		return len(b), nil // the child takes every key itself
	}
	for i, c := range b {
		switch {
		case c == now.Cc[unix.VSUSP] && t.leads() && !ignoresSuspend(t.pid) && continuable():
			return i, t.suspend
		case c == now.Cc[unix.VINTR]:
			at := time.Now()
			if double := at.Sub(t.lastInt) < doubleTap; double && t.leads() {
				return i, func() { _ = syscall.Kill(-t.pid, syscall.SIGKILL) }
			}
			t.lastInt = at
		}
	}
	return len(b), nil
}

func (t *terminal) settings() (now *unix.Termios, err error) {
	err = control(t.master, func(fd int) error {
		now, err = unix.IoctlGetTermios(fd, getTermios)
		return err
	})
	return now, err
}

// leads reports whether the child itself is in its terminal's foreground, and
// not a job of the shell that it may be.
func (t *terminal) leads() bool {
	group := 0
	err := control(t.master, func(fd int) (err error) {
		group, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		return err
	})
	return err == nil && group == t.pid
}

// continuable reports whether somebody could have us go on: the parent of our
// group, if that is in our session. Without one (the first process of a
// container, what ssh -t starts) the kernel lets no key stop a process, and who
// stopped all the same would stay so for ever.
func continuable() bool {
	group := unix.Getpgrp()
	for pid := os.Getppid(); pid > 0; pid = parent(pid) {
		if theirs, err := unix.Getpgid(pid); err != nil || theirs != group {
			session, serr := unix.Getsid(pid)
			own, oerr := unix.Getsid(0)
			return err == nil && serr == nil && oerr == nil && session == own
		}
	}
	return false
}

// suspend stops the child and then ourselves, so that the caller's shell has a
// stopped job, and goes on when the shell says so. It is for [continuable]
// processes.
func (t *terminal) suspend() {
	_ = syscall.Kill(-t.pid, syscall.SIGSTOP)
	t.setRaw(false)
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, syscall.SIGCONT)
	// Our whole group is one job of the shell's. TSTP wouldn't do: once Go has
	// caught it, it is never again what stops a process.
	_ = syscall.Kill(0, syscall.SIGSTOP)
	select {
	case <-continued:
	case <-t.done:
	}
	signal.Stop(continued)
	t.setRaw(true)
	t.resize()
	_ = syscall.Kill(-t.pid, syscall.SIGCONT)
}

// childEnded lets the output end.
func (t *terminal) childEnded() {
	_ = t.slave.Close()
	t.slave = nil
}

// close puts the caller's terminal back. What the child wrote has been read.
func (t *terminal) close() {
	close(t.done)
	if t.resized != nil {
		signal.Stop(t.resized)
		signal.Stop(t.stopped)
	}
	t.setRaw(false)
	t.mu.Lock()
	t.closed = true // a suspension may be about to end
	t.mu.Unlock()
	t.closeFiles()
	t.all.Wait()
	t.typed.close()
}

func (t *terminal) closeFiles() {
	t.typed.stop()
	_ = t.outer.Close()
	_ = t.master.Close()
	if t.slave != nil {
		_ = t.slave.Close()
	}
}
