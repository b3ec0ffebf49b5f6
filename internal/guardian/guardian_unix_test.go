//go:build linux || darwin

package guardian

import (
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A shell's `exec 3>&1`, or a lock that it holds, outlives its program in no
// guardian: whoever waits for the end of that pipe would wait for a minute.
func TestInheritedFilesAreClosed(t *testing.T) {
	// Not in parallel: other tests' children would get the duplicates too.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	// Duplicates aren't close-on-exec: any guardian that this process starts
	// gets them, at low and at high numbers.
	var inherited []int
	for _, least := range []int{20, 200} {
		fd, err := unix.FcntlInt(w.Fd(), unix.F_DUPFD, least)
		if err != nil {
			t.Fatal(err)
		}
		inherited = append(inherited, fd)
	}
	h := start(t, Config{SessionURL: newBroker(t).URL})
	for _, fd := range inherited {
		if err := syscall.Close(fd); err != nil {
			t.Error(err)
		}
	}
	_ = w.Close()
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := r.Read(b[:]); err != io.EOF {
		t.Errorf("reading a pipe that pid %d may still hold: %v, want EOF", pidOf(h), err)
	}
	if err := h.Done(); err != nil {
		t.Error(err)
	}
}
