package guardian

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pidOf(h *Handle) int { return h.pid }

// hangUp closes the pipe, as the wrapper's death does.
func hangUp(t *testing.T, h *Handle) {
	t.Helper()
	if err := unix.Close(h.life); err != nil {
		t.Fatal(err)
	}
}

// awaitDeath returns when the guardian is dead, and leaves its status.
func awaitDeath(t *testing.T, h *Handle) {
	t.Helper()
	await(t, h, func() { _ = unix.Waitid(unix.P_PID, h.pid, nil, unix.WEXITED|unix.WNOWAIT|unix.WALL, nil) })
}

// exitCode takes the status: Done isn't to be called after it.
func exitCode(t *testing.T, h *Handle) int {
	t.Helper()
	var status unix.WaitStatus
	await(t, h, func() { _, _ = unix.Wait4(h.pid, &status, unix.WALL, nil) })
	return status.ExitStatus()
}

func await(t *testing.T, h *Handle, wait func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		_ = unix.Kill(h.pid, unix.SIGKILL)
		t.Fatal("the guardian doesn't exit")
	}
}
