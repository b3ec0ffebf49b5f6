//go:build unix

package leakscan

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A named pipe in the place of a command file doesn't hold up its search.
func TestT26CommandFileSwappedForAPipe(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, flags := range []int{os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND} {
		done := make(chan error, 1)
		go func() {
			_, err := openSame(path, info, flags)
			done <- err
		}()
		select {
		case err := <-done:
			if err == nil {
				t.Errorf("with flags %#x the pipe was opened as if it were the file", flags)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("with flags %#x it waits for the pipe's other end", flags)
		}
	}
}
