//go:build linux

package filesecret_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/runenv/action/internal/filesecret"
)

func TestFIFOIsReadAsOftenAsItSays(t *testing.T) {
	t.Parallel()
	d := open(t, inside(memory(t)))
	path, err := d.Serve("docker/config.json", []byte("content"), 3)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if fi, err := os.Lstat(path); err != nil || fi.Mode() != fs.ModeNamedPipe|0o600 {
			t.Fatalf("before read %d it is %v, %v", i+1, fi, err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != "content" {
			t.Errorf("read %d = %q, %v", i+1, got, err)
		}
	}
	if _, err := os.ReadFile(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read 4 = %v, want %v", err, fs.ErrNotExist)
	}
}

func TestFIFOsEndWithTheFolder(t *testing.T) {
	t.Parallel()
	d := open(t, inside(memory(t)))
	large := make([]byte, 1<<20) // more than a pipe holds
	var paths []string
	for _, name := range []string{"unread", "half", "unlinked"} {
		path, err := d.Serve(name, large, 2)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	half, err := os.Open(paths[1])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = half.Close() }()
	if _, err := half.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(paths[2]); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(); err != nil {
		t.Errorf("Remove() = %v", err)
	}
	if _, err := os.Lstat(d.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

func TestFoldersAndLinks(t *testing.T) {
	t.Parallel()
	d := open(t, inside(memory(t)))
	path, err := d.Write("docker/config.json", []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Link("docker/contexts", "/usr/share"); err != nil {
		t.Error(err)
	}
	if target, err := os.Readlink(filepath.Join(filepath.Dir(path), "contexts")); err != nil || target != "/usr/share" {
		t.Errorf("the link leads to %q, %v", target, err)
	}
	if fi, err := os.Stat(filepath.Dir(path)); err != nil || fi.Mode() != fs.ModeDir|0o700 {
		t.Errorf("the folder is %v, %v", fi, err)
	}
	for name, target := range map[string]string{"contexts": "/usr", "../x": "/usr", "docker/..": "/usr", "docker/a/b": "/usr", "docker/rel": "usr", "docker/config.json": "/usr"} {
		if err := d.Link(name, target); err == nil {
			t.Errorf("Link(%q, %q) succeeds", name, target)
		}
	}
	// A link in place of the folder isn't followed.
	if err := os.Symlink(t.TempDir(), filepath.Join(d.Path(), "elsewhere")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Write("elsewhere/token", []byte("canary")); err == nil {
		t.Error("Write follows a link")
	}
	if err := d.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/usr/share"); err != nil {
		t.Errorf("what the link led to: %v", err)
	}
}

func TestEnterWantsMemoryOfItsOwn(t *testing.T) {
	t.Parallel()
	base := memory(t)
	open := filepath.Join(base, "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{open, "/proc/self", filepath.Join(base, "absent")} {
		if _, err := filesecret.Enter(path); err == nil {
			t.Errorf("Enter(%s) succeeds", path)
		}
	}
}

// BenchmarkSweep is what every start pays where nothing was left.
func BenchmarkSweep(b *testing.B) {
	opt := filesecret.Options{Getenv: os.Getenv, Disk: true}
	for b.Loop() {
		if _, err := filesecret.Sweep(opt); err != nil {
			b.Fatal(err)
		}
	}
}
