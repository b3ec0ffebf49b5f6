package filesecret_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/runenv/action/internal/filesecret"
)

// A command may make what it likes of the folder, its lock among that: neither
// the removal nor a later sweep leaves a secret for it.
func TestT30SpoiledFoldersAreRemovedToo(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(dir string) error{
		"the lock is a folder with a secret": func(dir string) error {
			lock := filepath.Join(dir, ".lock")
			return errors.Join(os.Remove(lock), os.Mkdir(lock, 0o700), os.Rename(filepath.Join(dir, "token"), filepath.Join(lock, "token")))
		},
		"the lock is a link": func(dir string) error {
			lock := filepath.Join(dir, ".lock")
			return errors.Join(os.Remove(lock), os.Symlink("token", lock))
		},
		"the lock is shut":   func(dir string) error { return os.Chmod(filepath.Join(dir, ".lock"), 0) },
		"a file is shut":     func(dir string) error { return os.Chmod(filepath.Join(dir, "token"), 0) },
		"the folder is shut": func(dir string) error { return os.Chmod(dir, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := memory(t)
			spoiled := func() *filesecret.Dir {
				d := open(t, inside(base))
				if _, err := d.Write("token", []byte("canary")); err != nil {
					t.Fatal(err)
				}
				if err := spoil(d.Path()); err != nil {
					t.Fatal(err)
				}
				return d
			}
			d := spoiled()
			if err := d.Remove(); err != nil {
				t.Errorf("Remove() = %v", err)
			}
			if _, err := os.Lstat(d.Path()); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Remove leaves the folder: %v", err)
			}

			d = spoiled()
			if err := filesecret.Erase(d.Path()); err != nil {
				t.Errorf("Erase() = %v", err)
			}
			if _, err := os.Lstat(d.Path()); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Erase leaves the folder: %v", err)
			}

			// What a killed owner left: nobody holds its lock.
			stale := filepath.Join(base, "runenv-EBCDEFGHIJKLMNOPQRSTUVWXYZ")
			for _, err := range []error{
				os.Mkdir(stale, 0o700),
				os.WriteFile(filepath.Join(stale, ".lock"), nil, 0o600),
				os.WriteFile(filepath.Join(stale, "token"), []byte("canary"), 0o400),
				spoil(stale),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			before := time.Now().Add(-time.Hour)
			if err := os.Chtimes(stale, before, before); err != nil {
				t.Fatal(err)
			}
			if _, err := filesecret.Sweep(inside(base)); err != nil {
				t.Errorf("Sweep() = %v", err)
			}
			if _, err := os.Lstat(stale); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Sweep leaves the folder: %v", err)
			}
		})
	}
}

// Whoever may rename what lies in a folder can put a file of their own where
// the command reads its secret.
func TestT30FoldersOfOthersAreAvoided(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(dir string) error{
		"others may write":      func(dir string) error { return os.Chmod(dir, 0o777) },
		"its group may write":   func(dir string) error { return os.Chmod(dir, 0o770) },
		"others may, in sticky": func(dir string) error { return os.Chmod(dir, 0o777|fs.ModeSticky) },
		"somebody else's": func(dir string) error {
			if os.Geteuid() != 0 {
				return os.Chmod(dir, 0o777) // the same to an ordinary user, who can give nothing away
			}
			return os.Chown(dir, 4711, 4711)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			above := memory(t)
			base := filepath.Join(above, "below")
			if err := errors.Join(os.Mkdir(base, 0o700), make(above)); err != nil {
				t.Fatal(err)
			}
			for _, at := range []string{above, base} {
				d := open(t, inside(at))
				if in, want := filepath.Dir(d.Path()) == at, name == "others may, in sticky"; in != want {
					t.Errorf("Open() gives %s: in %s %v, want %v", d.Path(), at, in, want)
				}
			}
		})
	}
}
