package filesecret

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/windows"
)

// unlockedFor is how long a directory without a lock may be one in the making.
const unlockedFor = time.Minute

// Windows has no memory file system: file secrets need Options.Disk there.
func candidates(Options) []string   { return nil }
func inMemory(string) (bool, error) { return false, nil }
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// make: the folder for temporary files is the user's own, and what is made in
// it inherits its access list.
func (d *Dir) make() (err error) {
	if err := os.Mkdir(d.path, 0o700); err != nil {
		return err
	}
	d.swappable = true
	if d.handle, err = os.Open(d.path); err != nil {
		return err
	}
	if d.lock, err = create(filepath.Join(d.path, lockName), 0); err != nil {
		_ = d.erase()
	}
	return err
}

// create makes a file that the system keeps in its cache if it can. Sharing
// nothing, it is a lock as well.
func create(path string, share uint32) (*os.File, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	h, err := windows.CreateFile(name, windows.GENERIC_READ|windows.GENERIC_WRITE, share, nil,
		windows.CREATE_NEW, windows.FILE_ATTRIBUTE_TEMPORARY, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(h), path), nil
}

// enter: there is no memory file system to be mounted on it.
func (*Dir) enter() error { return errors.ErrUnsupported }

// link: it takes a privilege there.
func (*Dir) link(string, string) error { return errors.ErrUnsupported }

// A fifo is what Unix has.
type fifo struct{}

func (*fifo) stop() {}

func (*Dir) serve(string, []byte, int) error { return errors.ErrUnsupported }

func (d *Dir) write(name string, content []byte) error {
	path := filepath.Join(d.path, name)
	if dir := filepath.Dir(path); dir != d.path {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	f, err := create(path, windows.FILE_SHARE_READ)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, eraseFile(path))
	}
	return nil
}

func (d *Dir) erase() error {
	if d.lock != nil {
		_ = d.lock.Close()
	}
	_ = d.handle.Close()
	return erase(d.path)
}

func erase(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return gone(err)
	}
	for _, e := range entries {
		err = errors.Join(err, eraseFile(filepath.Join(path, e.Name())))
	}
	return errors.Join(err, gone(os.RemoveAll(path)))
}

func eraseFile(path string) error {
	if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
		if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
			_, _ = f.Write(make([]byte, min(fi.Size(), MaxFileBytes)))
		}
		_ = f.Close()
	}
	return gone(os.RemoveAll(path))
}

// sweep: a lock that can be opened has no owner any more.
func sweep(path string) (bool, error) {
	fi, err := os.Stat(path)
	if err != nil || time.Since(fi.ModTime()) < unlockedFor {
		return false, nil
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR, 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, nil // it lives
	}
	if err == nil {
		_ = lock.Close()
	}
	return true, erase(path)
}

// shared: a profile's folder for temporary files is its user's.
func shared(string) error { return nil }
