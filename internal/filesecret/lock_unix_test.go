//go:build linux || darwin

package filesecret

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lockPatience bounds every wait here; none takes that long unless something is
// broken.
const lockPatience = 30 * time.Second

func twoLocks(t *testing.T) (first, second int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lock")
	var locks [2]int
	for i := range locks {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		locks[i] = int(f.Fd())
	}
	if err := take(locks[0]); err != nil {
		t.Fatal(err)
	}
	return locks[0], locks[1]
}

// bounded is what do says, which mustn't wait for ever.
func bounded(t *testing.T, do func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-time.After(lockPatience):
		t.Fatal("a lock that another has is waited for without an end")
		return nil
	}
}

func taken(t *testing.T, lock int) error {
	t.Helper()
	return bounded(t, func() error { return take(lock) })
}

// Whoever keeps the lock to itself can't keep a run from its end.
func TestLockThatSomebodyKeepsIsntWaitedForLong(t *testing.T) {
	t.Parallel()
	first, second := twoLocks(t)
	if err := taken(t, second); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("taken while another has it: %v", err)
	}
	if err := unix.Flock(first, unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err := taken(t, second); err != nil {
		t.Errorf("not taken once it is free: %v", err)
	}
}

// A sweep that looks at a new folder keeps it from nothing.
func TestLockThatSomebodyHasForAMomentIsWaitedFor(t *testing.T) {
	t.Parallel()
	first, second := twoLocks(t)
	freed := make(chan error, 1)
	time.AfterFunc(lockLimit/20, func() { freed <- unix.Flock(first, unix.LOCK_UN) })
	if err := taken(t, second); err != nil {
		t.Errorf("not taken when it is freed: %v", err)
	}
	if err := <-freed; err != nil {
		t.Error(err)
	}
}

// A folder whose lock is another's wouldn't be known for one in use.
func TestT30NoFolderWithoutItsLock(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	for end := time.Now().Add(lockPatience); ; {
		d := &Dir{path: filepath.Join(base, dirPrefix+rand.Text())}
		made, others := make(chan struct{}), make(chan int, 1)
		go func() { others <- takeFirst(filepath.Join(d.path, lockName), made) }()
		err := bounded(t, d.make)
		close(made)
		other := <-others
		if other < 0 {
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Remove(); err != nil {
				t.Fatal(err)
			}
			if time.Now().After(end) {
				t.Fatal("nobody was faster than a folder's maker")
			}
			continue
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			t.Errorf("a folder whose lock another has is made: %v", err)
		}
		if _, err := os.Lstat(d.path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it is left: %v", err)
		}
		_ = unix.Close(other)
		return
	}
}

// takeFirst takes the lock of a folder that is being made, or is -1.
func takeFirst(path string, made <-chan struct{}) (fd int) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
				return fd
			}
			_ = unix.Close(fd)
			return -1
		}
		select {
		case <-made:
			return -1
		default:
		}
	}
}
