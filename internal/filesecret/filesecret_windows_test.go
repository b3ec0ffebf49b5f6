package filesecret

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"
)

func opened(t *testing.T) *Dir {
	t.Helper()
	base := t.TempDir()
	d, err := Open(Options{Disk: true, Getenv: func(name string) string { return map[string]string{"TMPDIR": base}[name] }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Remove() })
	return d
}

func write(t *testing.T, d *Dir, name, content string) string {
	t.Helper()
	path, err := d.Write(name, []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestP1WithoutATypedDiskNothing(t *testing.T) {
	t.Parallel()
	_, err := Open(Options{})
	if _, ok := errors.AsType[*NoMemoryError](err); !ok {
		t.Errorf("Open = %v, want a NoMemoryError", err)
	}
}

// Whatever the folder around it lets its heirs have.
func TestP1FolderIsTheOwnersAlone(t *testing.T) {
	t.Parallel()
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	everybody, err := windows.SecurityDescriptorFromString("D:(A;OICI;FA;;;WD)")
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := everybody.DACL()
	if err != nil {
		t.Fatal(err)
	}
	if err := windows.SetNamedSecurityInfo(base, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION, nil, nil, list, nil); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(base, "plain")
	if err := os.Mkdir(plain, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := private(plain, user.User.Sid); err == nil {
		t.Error("a plain folder passes for a private one")
	}
	path := filepath.Join(base, "ours")
	if err := mkdir(path); err != nil {
		t.Fatal(err)
	}
	if err := private(path, user.User.Sid); err != nil {
		t.Errorf("ours isn't private: %v", err)
	}
}

func TestFilesAreReadAndRemoved(t *testing.T) {
	t.Parallel()
	d := opened(t)
	if d.Memory() || !d.Swappable() {
		t.Errorf("Memory() = %v, Swappable() = %v, want false, true", d.Memory(), d.Swappable())
	}
	for name, content := range map[string]string{"KEY": "plain", "docker/config.json": "{}"} {
		path := write(t, d, name, content)
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("%s holds %q, %v, want %q", name, got, err, content)
		}
		if _, err := d.Write(name, nil); err == nil {
			t.Errorf("%s was made twice", name)
		}
	}
	if err := d.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(d.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

// Another name of the file shows what became of its content.
func TestFilesAreOverwritten(t *testing.T) {
	t.Parallel()
	d := opened(t)
	outside := t.TempDir()
	for _, name := range []string{"KEY", "folder/KEY", "READONLY"} {
		path := write(t, d, name, "a value")
		kept := filepath.Join(outside, strings.ReplaceAll(name, "/", "-"))
		if err := os.Link(path, kept); err != nil {
			t.Fatal(err)
		}
		if name == "READONLY" {
			if err := os.Chmod(path, 0o400); err != nil {
				t.Fatal(err)
			}
		}
		defer func() {
			if got, err := os.ReadFile(kept); err != nil || strings.Trim(string(got), "\x00") != "" || len(got) != len("a value") {
				t.Errorf("%s was left as %q, %v, want zeros", name, got, err)
			}
		}()
	}
	if err := d.Remove(); err != nil {
		t.Error(err)
	}
}

func TestSweepTellsLiveFromLeft(t *testing.T) {
	t.Parallel()
	d := opened(t)
	write(t, d, "KEY", "a value")
	opt := Options{Disk: true, Getenv: func(string) string { return filepath.Dir(d.Path()) }}
	long := time.Now().Add(-2 * unlockedFor)
	if err := os.Chtimes(d.Path(), long, long); err != nil {
		t.Fatal(err)
	}
	if n, err := Sweep(opt); n != 0 || err != nil {
		t.Errorf("Sweep of a live one = %d, %v, want 0", n, err)
	}
	_ = d.lock.Close() // as its owner's death does
	_ = d.handle.Close()
	if n, err := Sweep(opt); n != 1 || err != nil {
		t.Errorf("Sweep of a left one = %d, %v, want 1", n, err)
	}
	if _, err := os.Lstat(d.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

func TestEraseTouchesNothingElse(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	for _, path := range []string{base, "", `runenv-AAAAAAAAAAAAAAAAAAAAAAAAAA`, base + `\runenv-x`} {
		if err := Erase(path); err == nil {
			t.Errorf("Erase(%q) gave no error", path)
		}
	}
	if err := Erase(filepath.Join(base, dirPrefix+strings.Repeat("A", 26))); err != nil {
		t.Errorf("Erase of what is gone = %v", err)
	}
}
