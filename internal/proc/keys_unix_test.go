//go:build linux || darwin

package proc

import (
	"errors"
	"os"
	"testing"
)

// A terminal of macOS can't be waited for by Go's poller: a read of it blocks,
// and has to end all the same.
func TestReadingKeysEnds(t *testing.T) {
	t.Parallel()
	from, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = from.Close(), to.Close() }()
	from.Fd() // makes it block
	k, err := newKeys()
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	if _, err := to.WriteString("key"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, err := k.read(from, buf); err != nil || string(buf[:n]) != "key" {
		t.Errorf("read = %q, %v, want the key", buf[:n], err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := k.read(from, buf)
		ended <- err
	}()
	k.stop()
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after stop = %v, want %v", err, os.ErrClosed)
	}
	if _, err := to.WriteString("late"); err != nil {
		t.Fatal(err)
	}
	if n, err := k.read(from, buf); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read of what comes after the end = %q, %v, want %v", buf[:n], err, os.ErrClosed)
	}
}
