package sqlite

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// Modes say nothing on Windows: a file takes its folder's access list, which
// is the administrator's to set.

func checkFolder(path string) error {
	_, err := os.Stat(path)
	return err
}

func checkFile(path string) error {
	_, err := os.Stat(path)
	return err
}

// lockFile takes the lock by which one broker keeps out another. It ends with
// the process, however that ends.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, new(windows.Overlapped))
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		err = errInUse
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
