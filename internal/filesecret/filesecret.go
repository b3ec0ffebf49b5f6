// Package filesecret keeps secret values in files that never lie on a disk.
//
// [Open] makes a directory of mode 0700 on a memory file system (the kernel is
// asked, by statfs), outside the job's workspace, and [Dir.Write] puts files
// of mode 0400 into it. [Dir.Remove] overwrites and unlinks them. A lock that
// the kernel takes back at the owner's death tells a live directory from one
// that was left: [Sweep] removes the latter, and so does the guardian, by
// [Erase].
//
// Where none is found, on macOS, each directory becomes the root of a RAM disk
// of its own, which is detached when the directory is removed, whoever does it.
// Without a memory file system Open refuses, unless a disk was asked for by
// name. It doesn't promise that the kernel never pages: [Dir.Swappable] says
// whether it may.
package filesecret

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

const (
	// MaxFileBytes bounds one file.
	MaxFileBytes = 4 << 20
	// MaxFiles bounds the files of one directory.
	MaxFiles = 256
	// MaxLinks bounds its links.
	MaxLinks = 256

	lockName  = ".lock"
	dirPrefix = "runenv-"
)

// isDirName: Open calls a directory so, and Erase and Sweep touch no other.
// Nothing is compiled for it: that would cost every start half a millisecond.
func isDirName(name string) bool {
	random, ok := strings.CutPrefix(name, dirPrefix)
	return ok && len(random) == 26 && strings.Trim(random, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// isFileName: one plain name, or one in a folder. No other path, and nothing
// hidden.
func isFileName(name string) bool {
	folder, file, inFolder := strings.Cut(name, "/")
	return isPlain(folder) && (!inFolder || isPlain(file))
}

func isPlain(name string) bool {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
	return name != "" && len(name) <= 128 && name[0] != '.' && name[0] != '-' && strings.Trim(name, letters) == ""
}

// isLinkName: a file in a folder, which may be hidden.
func isLinkName(name string) bool {
	folder, file, inFolder := strings.Cut(name, "/")
	return inFolder && isPlain(folder) && file != "" && len(file) <= 255 && !strings.ContainsAny(file, "/\x00")
}

// Options say where a directory may be.
type Options struct {
	// Getenv looks up XDG_RUNTIME_DIR and TMPDIR; nil is [os.Getenv].
	Getenv func(string) string
	// Outside are folders that a cache or an artifact may take up: the
	// directory lies in none of them.
	Outside []string
	// Disk allows a disk where no memory file system is found.
	Disk bool
}

func (o Options) getenv(name string) string {
	if o.Getenv == nil {
		return os.Getenv(name)
	}
	return o.Getenv(name)
}

// temporary is the folder for temporary files.
func (o Options) temporary() string {
	if dir := o.getenv("TMPDIR"); filepath.IsAbs(dir) {
		return dir
	}
	return os.TempDir()
}

// A NoMemoryError says that no place for file secrets was found.
type NoMemoryError struct {
	tried []string
	disk  bool // a disk was allowed
}

func (e *NoMemoryError) Error() string {
	if e.disk {
		return "no folder for file secrets, on a disk either: " + strings.Join(e.tried, "; ")
	}
	return "no memory file system for file secrets: " + strings.Join(e.tried, "; ")
}

// Hint names the cure.
func (e *NoMemoryError) Hint() string {
	if e.disk {
		return "set TMPDIR to a folder outside of the workspace and of caches"
	}
	if runtime.GOOS == "darwin" {
		return "set TMPDIR to a folder outside of the workspace, where a RAM disk can be mounted; --files=disk writes them to a disk all the same"
	}
	return "mount a tmpfs at /dev/shm or set XDG_RUNTIME_DIR to one; --files=disk writes them to a disk all the same"
}

// disks make a memory file system for one directory, where the system has none
// that several could share.
type disks interface {
	// Mount mounts one, in memory for certain, on an empty folder of this
	// user's. After an error it isn't mounted.
	Mount(dir string) error
	// Unmount takes it away, and what lies there with it. was is false where
	// nothing is mounted on dir.
	Unmount(dir string) (was bool, err error)
}

// A Dir is a directory of file secrets. It isn't safe for concurrent use.
type Dir struct {
	path      string
	handle    *os.File // the directory, which its lock hangs on
	lock      *os.File
	disks     disks // what it is mounted with; nil for a directory of a file system
	memory    bool
	swappable bool
	files     int
	links     int
	served    []*fifo
}

// Open makes a directory. Call [Dir.Remove] in the end.
func Open(opt Options) (*Dir, error) { return open(opt, ownDisks()) }

func open(opt Options, own disks) (*Dir, error) {
	failed := &NoMemoryError{}
	for _, base := range candidates(opt) {
		err := usable(base, opt, true)
		if err == nil {
			return openIn(base, nil)
		}
		failed.tried = append(failed.tried, fmt.Sprintf("%s %v", base, err))
	}
	if own == nil && !opt.Disk {
		return nil, failed
	}
	base := opt.temporary()
	err := usable(base, opt, false)
	if own != nil && err == nil {
		d, err := openIn(base, own)
		if err == nil {
			return d, nil
		}
		failed.tried = append(failed.tried, fmt.Sprintf("a RAM disk: %v", err))
	}
	if err != nil {
		failed.tried, failed.disk = append(failed.tried, fmt.Sprintf("%s %v", base, err)), opt.Disk
		return nil, failed
	}
	if !opt.Disk {
		return nil, failed
	}
	return openIn(base, nil)
}

// usable says why base can't hold the directory.
func usable(base string, opt Options, memory bool) error {
	real, err := filepath.EvalSymlinks(base)
	if err != nil {
		return errors.New("isn't there")
	}
	for _, out := range opt.Outside {
		if out == "" {
			continue
		}
		if o, err := filepath.EvalSymlinks(out); err == nil {
			out = o
		}
		if rel, err := filepath.Rel(out, real); err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
			return errors.New("lies in the workspace")
		}
	}
	if err := shared(real); err != nil {
		return err
	}
	if memory {
		if ok, err := inMemory(real); err != nil {
			return err
		} else if !ok {
			return errors.New("isn't a memory file system")
		}
	}
	return nil
}

func openIn(base string, own disks) (*Dir, error) {
	real, err := filepath.EvalSymlinks(base)
	if err != nil {
		return nil, fmt.Errorf("making a folder for file secrets: %w", err)
	}
	d := &Dir{path: filepath.Join(real, dirPrefix+rand.Text()), disks: own}
	if err := d.make(); err != nil {
		return nil, fmt.Errorf("making a folder for file secrets: %w", err)
	}
	return d, nil
}

// Path is the directory's.
func (d *Dir) Path() string { return d.path }

// Memory reports whether the directory lies in memory; else it is on a disk.
func (d *Dir) Memory() bool { return d.memory }

// Swappable reports whether the kernel may page the files out, as they are, to a
// swap that this machine has. macOS's is encrypted.
func (d *Dir) Swappable() bool { return d.swappable }

// Enter gives a folder, on which a memory file system is mounted, to write
// into. It takes no lock: the mount is the caller's, and goes with it.
func Enter(path string) (*Dir, error) {
	d := &Dir{path: path}
	if err := d.enter(); err != nil {
		return nil, fmt.Errorf("entering the folder for file secrets: %w", err)
	}
	return d, nil
}

// Write makes a file of mode 0400 and returns its path. name is one plain path
// segment, or two: a folder that is made of mode 0700, and a file in it.
func (d *Dir) Write(name string, content []byte) (string, error) {
	if err := d.admit(name, len(content)); err != nil {
		return "", err
	}
	if err := d.write(name, content); err != nil {
		return "", fmt.Errorf("file secret %q: %w", name, err)
	}
	return filepath.Join(d.path, name), nil
}

func (d *Dir) admit(name string, size int) error {
	switch {
	case !isFileName(name):
		return fmt.Errorf("file secret %q: not a plain file name", name)
	case size > MaxFileBytes:
		return fmt.Errorf("file secret %q: %d bytes are more than %d", name, size, MaxFileBytes)
	case d.files >= MaxFiles:
		return fmt.Errorf("file secret %q: more than %d files", name, MaxFiles)
	}
	d.files++
	return nil
}

// Link makes a symbolic link. name is a folder, which [Dir.Write] may have
// made, and a name in it; target is absolute.
func (d *Dir) Link(name, target string) error {
	if !isLinkName(name) || strings.HasSuffix(name, "/.") || strings.HasSuffix(name, "/..") || !filepath.IsAbs(target) || d.links >= MaxLinks {
		return errors.New("linking beside a file secret: not such a link, or too many")
	}
	if err := d.link(name, target); err != nil {
		return fmt.Errorf("linking beside a file secret: %w", err)
	}
	d.links++
	return nil
}

// Serve makes a FIFO that can be read as often as reads says, and is gone then
// (and gives no end-of-file before a reader comes). It isn't for Windows.
func (d *Dir) Serve(name string, content []byte, reads int) (string, error) {
	if err := d.admit(name, len(content)); err != nil {
		return "", err
	}
	if reads < 1 {
		return "", fmt.Errorf("file secret %q: to be read %d times", name, reads)
	}
	if err := d.serve(name, content, reads); err != nil {
		return "", fmt.Errorf("file secret %q: %w", name, err)
	}
	return filepath.Join(d.path, name), nil
}

// Remove overwrites and unlinks the files and the directory. Removing twice
// does no harm.
func (d *Dir) Remove() error {
	if d.handle == nil {
		return nil
	}
	for _, f := range d.served {
		f.stop()
	}
	err := d.erase()
	d.handle, d.lock = nil, nil
	if err != nil {
		return fmt.Errorf("removing file secrets: %w", err)
	}
	return nil
}

// Erase removes a directory that [Open] made, whoever holds it, and refuses
// any other path. One that is gone is no error.
func Erase(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || !isDirName(filepath.Base(path)) {
		return errors.New("not a folder of file secrets")
	}
	if err := erase(path); err != nil {
		return fmt.Errorf("removing file secrets: %w", err)
	}
	return nil
}

// Sweep removes the directories that this user's processes left when they
// were killed, and returns how many there were. With opt.Disk it looks in the
// folder for temporary files as well.
func Sweep(opt Options) (int, error) {
	var swept int
	var failed error
	seen := map[string]bool{}
	for _, base := range bases(opt) {
		real, err := filepath.EvalSymlinks(base)
		if err != nil || seen[real] {
			continue
		}
		seen[real] = true
		for _, name := range ours(real) {
			done, err := sweep(filepath.Join(real, name))
			failed = errors.Join(failed, err)
			if done {
				swept++
			}
		}
	}
	if failed != nil {
		return swept, fmt.Errorf("removing file secrets that were left: %w", failed)
	}
	return swept, nil
}

// bases are the folders in which Open with these options makes its own.
func bases(opt Options) []string {
	var out []string
	for _, base := range candidates(opt) {
		if ok, err := inMemory(base); ok && err == nil {
			out = append(out, base)
		}
	}
	if opt.Disk {
		out = append(out, opt.temporary())
	}
	return out
}

// ours are the names in base that Open gives. It reads names alone: /tmp may
// hold thousands.
func ours(base string) []string {
	f, err := os.Open(base)
	if err != nil {
		return nil // nothing of ours can be there
	}
	defer func() { _ = f.Close() }()
	var out []string
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			if isDirName(name) {
				out = append(out, name)
			}
		}
		if err != nil {
			return out
		}
	}
}
