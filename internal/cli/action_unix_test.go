//go:build unix

package cli

import (
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The script's streams block, although the launcher's Node left them otherwise.
func TestStreamsBlockAgain(t *testing.T) {
	t.Parallel()
	var fds [2]int
	if err := syscall.Pipe(fds[:]); err != nil {
		t.Fatal(err)
	}
	if err := syscall.SetNonblock(fds[1], true); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	t.Cleanup(func() {
		_ = r.Close()
		_ = w.Close()
	})
	makeBlocking(nil, r, w)
	flags, err := unix.FcntlInt(uintptr(fds[1]), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("flags %o, %v, want no O_NONBLOCK", flags, err)
	}
}
