//go:build linux || darwin

package filesecret

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Whoever keeps the lock to itself can't keep a run from its end.
func TestLockThatSomebodyKeepsIsntWaitedForLong(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	var locks [2]*os.File
	for i := range locks {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		locks[i] = f
	}
	if err := take(int(locks[0].Fd())); err != nil {
		t.Fatal(err)
	}
	if err := take(int(locks[1].Fd())); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("taken while another has it: %v", err)
	}
	if err := unix.Flock(int(locks[0].Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err := take(int(locks[1].Fd())); err != nil {
		t.Errorf("not taken once it is free: %v", err)
	}
}
