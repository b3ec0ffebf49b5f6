//go:build unix

package sqlite

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// checkFolder refuses a folder that others may look into: they could swap the
// database for another, or copy it while its modes are changed.
func checkFolder(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return &hinted{
				fmt.Sprintf("the folder %s doesn't exist", path),
				"make it, as the broker's user: mkdir -m 700 " + path,
			}
		}
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s isn't a folder", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return &hinted{
			fmt.Sprintf("other users can get into the folder %s (mode %04o)", path, mode),
			"give the store a folder of its own, closed to others: chmod 700 " + path,
		}
	}
	return nil
}

// checkFile refuses a file that others may read.
func checkFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s isn't a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return &hinted{
			fmt.Sprintf("other users can get at %s (mode %04o)", path, mode),
			"close it to others: chmod 600 " + path,
		}
	}
	return nil
}

// lockFile takes the lock by which one broker keeps out another. It ends with
// the process, however that ends.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errInUse
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
