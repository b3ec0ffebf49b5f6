//go:build unix

package leakscan

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A folder is an open directory. What is in it is reached by its name alone,
// so that nobody can lead a search elsewhere by swapping a directory above.
type folder struct {
	dir *os.File
	fd  int
}

// openat repeats what a signal interrupted.
func openat(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// openRoot opens a folder, or the folder of a file, whose name it then gives.
// It follows symbolic links.
func openRoot(path string) (f *folder, m meta, name string, err error) {
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return nil, meta{}, "", err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, meta{}, "", err
	}
	dir := path
	if !info.IsDir() {
		dir, name = filepath.Dir(path), filepath.Base(path)
	}
	f, m, err = openFolder(unix.AT_FDCWD, dir)
	return f, m, name, err
}

func openFolder(at int, name string) (*folder, meta, error) {
	fd, err := openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return nil, meta{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, meta{}, err
	}
	return &folder{os.NewFile(uintptr(fd), name), fd}, metaOf(&st), nil
}

func metaOf(st *unix.Stat_t) meta {
	m := meta{
		id:      id{uint64(st.Dev), uint64(st.Ino)}, //nolint:unconvert // their types depend on the system
		size:    st.Size,
		stored:  st.Blocks * 512,
		changed: st.Ctim.Nano(),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		m.kind = regular
	case unix.S_IFDIR:
		m.kind = directory
	case unix.S_IFLNK:
		m.kind = symlink
	}
	return m
}

func (f *folder) close() { _ = f.dir.Close() }

// names gives the next names, at most n, and [io.EOF] after the last.
func (f *folder) names(n int) ([]string, error) { return f.dir.Readdirnames(n) }

func (f *folder) stat(name string) (meta, error) {
	var st unix.Stat_t
	for {
		err := unix.Fstatat(f.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil {
			return metaOf(&st), nil
		}
		if !errors.Is(err, unix.EINTR) {
			return meta{}, err
		}
	}
}

func (f *folder) sub(name string) (*folder, meta, error) { return openFolder(f.fd, name) }

func (f *folder) target(name string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Readlinkat(f.fd, name, buf)
	return string(buf[:max(n, 0)]), err
}

// A file is open for reading, or for that and writing.
type file struct{ fd int }

// open opens a file without following a link, and without waiting for the
// other end of a named pipe if it has become one.
func (f *folder) open(name string, write bool) (file, meta, error) {
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
	}
	fd, err := openat(f.fd, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC)
	if err != nil {
		return file{}, meta{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return file{}, meta{}, err
	}
	return file{fd}, metaOf(&st), nil
}

func (f file) close() { _ = unix.Close(f.fd) }

func (f file) readAt(p []byte, at int64) (int, error) {
	for {
		n, err := unix.Pread(f.fd, p, at)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (f file) writeAt(p []byte, at int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(f.fd, p, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

// data says where the next bytes that were written begin, from at on, and
// where they end. [io.EOF] says that only a hole follows.
func (f file) data(at int64) (start, end int64, err error) {
	if start, err = unix.Seek(f.fd, at, seekData); err == nil {
		end, err = unix.Seek(f.fd, start, seekHole)
	}
	if errors.Is(err, unix.ENXIO) {
		err = io.EOF
	}
	return start, end, err
}

// gone reports whether an error says that there is no such entry any more.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) }

// swapped reports whether an error says that an entry has become another kind.
func swapped(err error) bool {
	return errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENXIO)
}
