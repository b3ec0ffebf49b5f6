//go:build linux || darwin

package filesecret

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// unlockedFor is how long a directory without a lock may be one in the making.
const unlockedFor = time.Minute

// lockLimit is far more than a sweep holds a lock on a loaded machine.
const lockLimit = 2 * time.Second

func (d *Dir) make() (err error) {
	if err := unix.Mkdir(d.path, 0o700); err != nil {
		return err
	}
	if d.disks != nil {
		if err := d.disks.Mount(d.path); err != nil {
			_ = unix.Rmdir(d.path)
			return err
		}
	}
	if d.handle, err = openDir(d.path, true); err != nil {
		return errors.Join(err, release(d.path, d.disks, nil))
	}
	defer func() {
		if err != nil {
			_ = d.erase()
		}
	}()
	// A umask may have taken bits away, never added some.
	if err := d.handle.Chmod(0o700); err != nil {
		return err
	}
	if d.memory = d.disks != nil; !d.memory {
		if d.memory, err = inMemory(d.path); err != nil {
			return err
		}
	}
	d.swappable = swappable(d.path)
	fd, err := unix.Openat(int(d.handle.Fd()), lockName, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	d.lock = os.NewFile(uintptr(fd), lockName)
	return take(fd)
}

// take takes the lock of a directory in the making. A sweep that looks whether
// it lives holds it for a moment; nobody else is waited for.
func take(lock int) error {
	for end := time.Now().Add(lockLimit); ; time.Sleep(time.Millisecond) {
		err := unix.Flock(lock, unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK && err != unix.EINTR || time.Now().After(end) {
			return err
		}
	}
}

// openDir opens a directory of this user; a private one, nobody else may enter.
func openDir(path string, private bool) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	if int(st.Uid) != os.Geteuid() || private && st.Mode&0o077 != 0 {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%w: somebody else's", os.ErrPermission)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func (d *Dir) enter() (err error) {
	if d.handle, err = openDir(d.path, true); err != nil {
		return err
	}
	memory, err := inMemory(d.path)
	if err == nil && !memory {
		err = errors.New("it isn't in memory")
	}
	if err != nil {
		_ = d.handle.Close()
	}
	d.memory = memory
	return err
}

// parent makes the folder that name is in, if any, and opens it; the caller
// closes what comes with done. base is the name in it.
func (d *Dir) parent(name string) (dir int, base string, done func(), err error) {
	folder, base, nested := strings.Cut(name, "/")
	if !nested {
		return int(d.handle.Fd()), name, func() {}, nil
	}
	if err := unix.Mkdirat(int(d.handle.Fd()), folder, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return 0, "", nil, err
	}
	fd, err := unix.Openat(int(d.handle.Fd()), folder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, "", nil, err
	}
	// A umask may have taken bits away, never added some.
	if err := unix.Fchmod(fd, 0o700); err != nil {
		_ = unix.Close(fd)
		return 0, "", nil, err
	}
	return fd, base, func() { _ = unix.Close(fd) }, nil
}

func (d *Dir) link(name, target string) error {
	dir, base, done, err := d.parent(name)
	if err != nil {
		return err
	}
	defer done()
	return unix.Symlinkat(target, dir, base)
}

func (d *Dir) write(name string, content []byte) error {
	dir, name, done, err := d.parent(name)
	if err != nil {
		return err
	}
	defer done()
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o400)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(content)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		// A full file system: half a secret is no use, and a secret all the same.
		return errors.Join(err, eraseFile(dir, name))
	}
	return nil
}

func (d *Dir) erase() error { return eraseIn(d.handle, d.lock, d.path, d.disks) }

func erase(path string) error { return eraseAt(path, ownDisks()) }

func eraseAt(path string, own disks) error {
	dir, err := openSpoiled(path)
	if err != nil {
		return gone(err)
	}
	return eraseIn(dir, nil, path, own)
}

// openSpoiled opens a directory of this user, whatever its mode.
func openSpoiled(path string) (*os.File, error) {
	dir, err := openDir(path, false)
	if errors.Is(err, os.ErrPermission) {
		// A command may have shut its own folder.
		chmodAt(unix.AT_FDCWD, path, 0o700)
		dir, err = openDir(path, false)
	}
	return dir, err
}

// eraseIn empties dir, closes it and its lock, and removes it.
func eraseIn(dir, lock *os.File, path string, own disks) error {
	err := emptyIn(dir)
	if lock != nil {
		_ = lock.Close()
	}
	_ = dir.Close() // a disk in use can't be taken away but by force
	return release(path, own, err)
}

// release removes a directory that is as empty as err tells, and takes away
// what own has mounted on it: what couldn't be removed goes with that.
func release(path string, own disks, err error) error {
	if own != nil {
		was, uerr := own.Unmount(path)
		switch {
		case uerr != nil:
			return errors.Join(err, uerr)
		case was:
			err = nil
		}
	}
	return errors.Join(err, gone(unix.Rmdir(path)))
}

// emptyIn empties dir. The lock goes last: until then the directory is known
// for what it is.
func emptyIn(dir *os.File) error {
	_ = dir.Chmod(0o700) // a command may have changed it
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		if name != lockName {
			err = errors.Join(err, eraseFile(int(dir.Fd()), name))
		}
	}
	if uerr := gone(unix.Unlinkat(int(dir.Fd()), lockName, 0)); uerr != nil {
		err = errors.Join(err, eraseFile(int(dir.Fd()), lockName)) // a command made a folder of it
	}
	return err
}

// eraseFile overwrites a regular file and unlinks it, or whatever a command
// made of the name: it may have put a folder or a link of its own there.
func eraseFile(dir int, name string) error {
	if err := overwrite(dir, name); err != nil && !errors.Is(err, os.ErrNotExist) {
		// Whatever it is, it shouldn't stay.
		if uerr := unix.Unlinkat(dir, name, 0); errors.Is(uerr, unix.EISDIR) || errors.Is(uerr, unix.EPERM) {
			return removeTree(dir, name)
		}
		return nil
	}
	return gone(unix.Unlinkat(dir, name, 0))
}

func overwrite(dir int, name string) error {
	// The mode is 0400; the owner may change that, and root needs not.
	chmodAt(dir, name, 0o600)
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return err
	}
	left := min(fi.Size(), MaxFileBytes)
	for zero := make([]byte, min(left, 64<<10)); left > 0; {
		n, err := f.Write(zero[:min(left, int64(len(zero)))])
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	// What is unlinked before it was written out never is: on a disk the values
	// would stay, and the zeros go. In memory this does nothing.
	return f.Sync()
}

// removeTree removes what a command put beside its files, following no link.
func removeTree(dir int, name string) error {
	chmodAt(dir, name, 0o700)
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return gone(err)
	}
	sub := os.NewFile(uintptr(fd), name)
	defer func() { _ = sub.Close() }()
	names, err := sub.Readdirnames(-1)
	for _, n := range names {
		err = errors.Join(err, eraseFile(fd, n))
	}
	return errors.Join(err, gone(unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)))
}

func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// sweep removes a directory whose owner is dead. Somebody else's isn't ours to
// look into.
func sweep(path string) (bool, error) { return sweepAt(path, ownDisks()) }

func sweepAt(path string, own disks) (bool, error) {
	dir, err := openSpoiled(path)
	if err != nil {
		return false, nil
	}
	defer func() { _ = dir.Close() }()
	chmodAt(int(dir.Fd()), lockName, 0o600)
	fd, err := unix.Openat(int(dir.Fd()), lockName, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EISDIR) {
		// None yet, or a command made a link or a folder of it.
		fi, err := dir.Stat()
		if err != nil || time.Since(fi.ModTime()) < unlockedFor {
			return false, nil
		}
		return true, eraseIn(dir, nil, path, own)
	}
	if err != nil {
		return false, err
	}
	lock := os.NewFile(uintptr(fd), lockName)
	defer func() { _ = lock.Close() }()
	if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false, nil // it lives
	}
	// Its maker may be between making the lock and taking it; only then is the
	// directory young and holds nothing else.
	fi, err := lock.Stat()
	if err != nil || time.Since(fi.ModTime()) < unlockedFor && empty(dir) {
		return false, nil
	}
	return true, eraseIn(dir, lock, path, own)
}

// empty: no name that is ours begins with a dot, but the lock's.
func empty(dir *os.File) bool {
	names, err := dir.Readdirnames(-1)
	return err == nil && !slices.ContainsFunc(names, func(name string) bool { return name[0] != '.' })
}

// shared says who else could put something of theirs in the place of what lies
// in base: whoever may rename it, there or further up. A command started by
// root would read that.
func shared(base string) error {
	for dir := base; ; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return err
		}
		switch {
		case st.Uid != 0 && int(st.Uid) != os.Geteuid() && st.Uid != unknownUID:
			return errors.New("lies in a folder of somebody else's")
		case st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0:
			return errors.New("lies in a folder that others may write to")
		case dir == filepath.Dir(dir):
			return nil
		}
	}
}

// unknownUID is whom a user namespace shows for those that it doesn't know,
// the system's root among them.
const unknownUID = 65534
