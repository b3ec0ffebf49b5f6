package filesecret

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
	"unsafe"

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

func (d *Dir) make() (err error) {
	if err := mkdir(d.path); err != nil {
		return err
	}
	d.swappable = true
	if d.handle, err = os.Open(d.path); err != nil {
		return errors.Join(err, os.Remove(d.path))
	}
	if d.lock, err = create(filepath.Join(d.path, lockName), 0); err != nil {
		_ = d.erase()
	}
	return err
}

// mkdir makes a folder that this user alone may enter, whatever the one around
// it lets its heirs have. What is made in it inherits that. The system itself
// has no entry: it gets by without one where it must.
func mkdir(path string) error {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return err
	}
	sid := user.User.Sid
	access, err := windows.SecurityDescriptorFromString("O:" + sid.String() + "D:P(A;OICI;FA;;;" + sid.String() + ")")
	if err != nil {
		return err
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	attr := windows.SecurityAttributes{SecurityDescriptor: access}
	attr.Length = uint32(unsafe.Sizeof(attr))
	if err := windows.CreateDirectory(name, &attr); err != nil {
		return err
	}
	if err := private(path, sid); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// private: FAT and some network file systems keep no access list. The system
// may have got an entry all the same.
func private(path string, user *windows.SID) error {
	sd, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return fmt.Errorf("reading its access list: %w", err)
	}
	list, _, err := sd.DACL()
	if err != nil || list == nil {
		return errors.New("the file system keeps no access list")
	}
	for i := range uint32(list.AceCount) {
		var entry *windows.ACCESS_ALLOWED_ACE
		if err := windows.GetAce(list, i, &entry); err != nil {
			return fmt.Errorf("reading its access list: %w", err)
		}
		if entry.Header.AceType != windows.ACCESS_ALLOWED_ACE_TYPE {
			continue
		}
		if sid := (*windows.SID)(unsafe.Pointer(&entry.SidStart)); !sid.Equals(user) && !sid.IsWellKnown(windows.WinLocalSystemSid) { //nolint:gosec // it lies there
			return errors.New("others may enter it")
		}
	}
	return nil
}

// create makes a file that the system keeps in its cache if it can, and that a
// search doesn't index. Sharing nothing, it is a lock as well.
func create(path string, share uint32) (*os.File, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	h, err := windows.CreateFile(name, windows.GENERIC_READ|windows.GENERIC_WRITE, share, nil,
		windows.CREATE_NEW, windows.FILE_ATTRIBUTE_TEMPORARY|windows.FILE_ATTRIBUTE_NOT_CONTENT_INDEXED, 0)
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
		return errors.Join(err, os.Remove(path))
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
	if fi, err := os.Lstat(path); err != nil || !fi.IsDir() {
		return gone(err) // a link isn't ours
	}
	// No link is followed. What can't be overwritten should go all the same.
	_ = filepath.WalkDir(path, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			overwrite(path)
		}
		return nil
	})
	return gone(os.RemoveAll(path))
}

// overwrite does so on the disk too: what is removed before it was written out
// never is.
func overwrite(path string) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return
	}
	_ = windows.SetFileAttributes(name, windows.FILE_ATTRIBUTE_NORMAL) // a command may have made it read-only
	h, err := windows.CreateFile(name, windows.GENERIC_WRITE, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE,
		nil, windows.OPEN_EXISTING, windows.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(h), path)
	defer func() { _ = f.Close() }()
	if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
		_, _ = f.Write(make([]byte, min(fi.Size(), MaxFileBytes)))
		_ = f.Sync()
	}
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
