//go:build unix

package leakscan

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// T26: what was a folder or a file when it was listed, and is a link or a pipe
// when it is opened, is neither followed nor waited for; and a folder that is
// open stays that folder, wherever its name leads by then.
func TestT26SwapsLeadNowhere(t *testing.T) {
	t.Parallel()
	outside, dir := t.TempDir(), t.TempDir()
	for path, text := range map[string]string{outside + "/secret": "outside", dir + "/secret": "inside"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Symlink(outside, filepath.Join(dir, "folder")),
		os.Symlink(outside+"/secret", filepath.Join(dir, "file")),
		syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	f, _, name, err := openRoot(dir)
	if err != nil || name != "" {
		t.Fatal(name, err)
	}
	defer f.close()
	if sub, _, err := f.sub("folder"); err == nil || !swapped(err) {
		t.Errorf("a folder that became a link was opened: %v, %v", sub, err)
	}
	for _, write := range []bool{false, true} {
		if h, _, err := f.open("file", write); err == nil || !swapped(err) {
			t.Errorf("a file that became a link was opened: %v, %v", h, err)
		}
		h, m, err := f.open("pipe", write)
		if err == nil {
			h.close()
		}
		if err == nil && m.kind != special {
			t.Errorf("a file that became a pipe is taken for one of kind %d", m.kind)
		}
	}

	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, dir); err != nil {
		t.Fatal(err)
	}
	h, _, err := f.open("secret", false)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	buf := make([]byte, 20)
	if n, err := h.readAt(buf, 0); err != nil && !errors.Is(err, io.EOF) || string(buf[:n]) != "inside" {
		t.Errorf("read %q, %v, want what is in the folder that was opened", buf[:n], err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
}
