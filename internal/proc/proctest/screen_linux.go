package proctest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait; none takes that long unless something is broken.
const patience = 30 * time.Second

// A Screen is somebody's terminal, with a program on it.
type Screen struct {
	t      testing.TB
	master *os.File
	cmd    *exec.Cmd

	mu   sync.Mutex
	seen bytes.Buffer
	read int // what was looked at
	more chan struct{}
}

// OpenTerminal makes a terminal; both ends are closed when the test ends.
func OpenTerminal(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close(); _ = master.Close() })
	return master, slave
}

// NewScreen starts a program that leads a session on a terminal of its own. A
// failed test shows the screen.
func NewScreen(t testing.TB, cmd *exec.Cmd) *Screen {
	t.Helper()
	blocking, slave := OpenTerminal(t)
	// One that can be closed while it is read.
	fd, err := unix.FcntlInt(blocking.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	master := os.NewFile(uintptr(fd), "master")
	_ = blocking.Close()
	s := &Screen{t: t, master: master, cmd: cmd, more: make(chan struct{}, 1)}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	go s.watch()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = master.Close()
		if t.Failed() {
			t.Logf("the screen:\n%s", s.Shown())
		}
	})
	return s
}

func (s *Screen) watch() {
	buf := make([]byte, 4096)
	for {
		n, err := s.master.Read(buf)
		s.mu.Lock()
		s.seen.Write(buf[:n])
		s.mu.Unlock()
		select {
		case s.more <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// Shown is all that the screen showed so far.
func (s *Screen) Shown() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.String()
}

// Keys types.
func (s *Screen) Keys(text string) {
	s.t.Helper()
	if _, err := s.master.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// Want waits for text after what was seen before, and returns what stood
// before it.
func (s *Screen) Want(text string) string {
	s.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		s.mu.Lock()
		rest := s.seen.String()[s.read:]
		before, _, ok := strings.Cut(rest, text)
		if ok {
			s.read += len(before) + len(text)
		}
		s.mu.Unlock()
		if ok {
			return before
		}
		select {
		case <-s.more:
		case <-timer.C:
			s.t.Fatalf("%q doesn't come", text)
		}
	}
}

// Resize changes the terminal's size.
func (s *Screen) Resize(rows, columns uint16) {
	s.t.Helper()
	conn, err := s.master.SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	size := &unix.Winsize{Row: rows, Col: columns}
	if cerr := conn.Control(func(fd uintptr) { err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) }); cerr != nil || err != nil {
		s.t.Fatal(cerr, err)
	}
}

// HangUp closes the terminal, and returns once the program has ended.
func (s *Screen) HangUp() {
	s.t.Helper()
	_ = s.master.Close()
	ended := make(chan struct{})
	go func() { _ = s.cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(patience):
		s.t.Fatal("the program outlives its terminal")
	}
}
