package leakscan

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// A folder is an open directory. What is in it is reached through an
// [os.Root], which nothing leads out of.
type folder struct {
	root *os.Root
	dir  *os.File
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
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, meta{}, "", err
	}
	f, m, err = newFolder(root)
	return f, m, name, err
}

func newFolder(root *os.Root) (*folder, meta, error) {
	dir, err := root.Open(".")
	if err != nil {
		_ = root.Close()
		return nil, meta{}, err
	}
	info, err := dir.Stat()
	if err != nil {
		_ = dir.Close()
		_ = root.Close()
		return nil, meta{}, err
	}
	m := metaOf(info)
	var by syscall.ByHandleFileInformation
	if syscall.GetFileInformationByHandle(syscall.Handle(dir.Fd()), &by) == nil {
		m.id = id{uint64(by.VolumeSerialNumber), uint64(by.FileIndexHigh)<<32 | uint64(by.FileIndexLow)}
	}
	return &folder{root, dir}, m, nil
}

// metaOf takes the later of two times for a change, since a listing has no
// other: of the last write, and of creation, which is new in a copy.
func metaOf(info fs.FileInfo) meta {
	m := meta{size: info.Size(), stored: info.Size(), changed: info.ModTime().UnixNano()}
	if sys, ok := info.Sys().(*syscall.Win32FileAttributeData); ok {
		m.changed = max(m.changed, sys.CreationTime.Nanoseconds())
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		m.kind = regular
	case mode.IsDir():
		m.kind = directory
	case mode&fs.ModeSymlink != 0:
		m.kind = symlink
	}
	return m
}

func (f *folder) close() {
	_ = f.dir.Close()
	_ = f.root.Close()
}

// names gives the next names, at most n, and [io.EOF] after the last.
func (f *folder) names(n int) ([]string, error) { return f.dir.Readdirnames(n) }

func (f *folder) stat(name string) (meta, error) {
	info, err := f.root.Lstat(name)
	if err != nil {
		return meta{}, err
	}
	return metaOf(info), nil
}

func (f *folder) sub(name string) (*folder, meta, error) {
	root, err := f.root.OpenRoot(name)
	if err != nil {
		return nil, meta{}, err
	}
	return newFolder(root)
}

func (f *folder) target(name string) (string, error) { return f.root.Readlink(name) }

// A file is open for reading, or for that and writing.
type file struct{ f *os.File }

func (f *folder) open(name string, write bool) (file, meta, error) {
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR
	}
	h, err := f.root.OpenFile(name, flags, 0)
	if err != nil {
		return file{}, meta{}, err
	}
	info, err := h.Stat()
	if err != nil {
		_ = h.Close()
		return file{}, meta{}, err
	}
	return file{h}, metaOf(info), nil
}

func (f file) close() { _ = f.f.Close() }

func (f file) readAt(p []byte, at int64) (int, error) {
	n, err := f.f.ReadAt(p, at)
	if n > 0 {
		return n, nil
	}
	return 0, err
}

func (f file) writeAt(p []byte, at int64) error {
	_, err := f.f.WriteAt(p, at)
	return err
}

// data knows nothing of holes here.
func (f file) data(int64) (start, end int64, err error) { return 0, 0, errors.ErrUnsupported }

func keepsFiles(*folder) bool { return true }

// gone reports whether an error says that there is no such entry any more.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// swapped reports whether an error says that an entry has become another kind.
func swapped(err error) bool {
	return errors.Is(err, syscall.ENOTDIR) || errors.Is(err, io.ErrUnexpectedEOF)
}
