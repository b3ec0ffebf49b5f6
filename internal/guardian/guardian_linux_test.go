package guardian

import (
	"encoding/binary"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/internal/filesecret"
)

func folder(t *testing.T) *filesecret.Dir {
	t.Helper()
	d, err := filesecret.Open(filesecret.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Remove() })
	if _, err := d.Write("token", []byte("canary")); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestT30FilesGoWithTheWrapper(t *testing.T) {
	t.Parallel()
	for _, code := range []int{http.StatusNoContent, http.StatusNotFound} {
		b := newBroker(t)
		b.code.Store(int64(code))
		h := start(t, Config{SessionURL: b.URL + "/v1/session"})
		dirs := []*filesecret.Dir{folder(t), folder(t)}
		for _, d := range dirs {
			if err := h.Files(d.Path()); err != nil {
				t.Fatal(err)
			}
		}
		_ = die(t, h)
		for _, d := range dirs {
			if _, err := os.Lstat(d.Path()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the folder outlives the wrapper where the broker says %d: %v", code, err)
			}
		}
		if got := b.next(t); got != wantAsked {
			t.Errorf("the broker was asked %q, want %q", got, wantAsked)
		}
	}
}

func TestFilesStayWhenAllIsDone(t *testing.T) {
	t.Parallel()
	h := start(t, Config{SessionURL: newBroker(t).URL})
	d := folder(t)
	if err := h.Files(d.Path()); err != nil {
		t.Fatal(err)
	}
	if err := h.Done(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(d.Path()); err != nil {
		t.Errorf("the guardian that was dismissed removed the folder: %v", err)
	}
}

func TestGuardianErasesNothingElse(t *testing.T) {
	t.Parallel()
	h := start(t, Config{SessionURL: newBroker(t).URL})
	dir := t.TempDir()
	if err := h.Files(dir); err != nil {
		t.Fatal(err)
	}
	if code := die(t, h); code == 0 {
		t.Error("the guardian's exit code is 0 after a path that isn't a folder of file secrets")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("the guardian removed %s: %v", dir, err)
	}
	h = start(t, Config{SessionURL: newBroker(t).URL})
	if err := h.Files("/" + strings.Repeat("x", maxPathBytes)); err == nil {
		t.Error("a path over the limit is taken")
	}
	if err := h.Done(); err != nil {
		t.Error(err)
	}
}

func TestT30FilesWithoutASession(t *testing.T) {
	t.Parallel()
	h, err := Start("")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Guard(Config{}); err != nil {
		t.Fatal(err)
	}
	d := folder(t)
	if err := h.Files(d.Path()); err != nil {
		t.Fatal(err)
	}
	if code := die(t, h); code != 0 {
		t.Errorf("the guardian's exit code = %d, want 0", code)
	}
	if _, err := os.Lstat(d.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder outlives the wrapper: %v", err)
	}
}

func TestFoldersThatAreGoneDontCount(t *testing.T) {
	t.Parallel()
	h := start(t, Config{SessionURL: newBroker(t).URL})
	for range 2 * maxFolders {
		d := folder(t)
		if err := h.Files(d.Path()); err != nil {
			t.Fatal(err)
		}
		if err := d.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	var living []*filesecret.Dir
	for range maxFolders {
		d := folder(t)
		if err := h.Files(d.Path()); err != nil {
			t.Fatal(err)
		}
		living = append(living, d)
	}
	if err := h.Files(folder(t).Path()); err == nil {
		t.Errorf("the guardian takes more than %d folders", maxFolders)
	}
	_ = die(t, h)
	for _, d := range living {
		if _, err := os.Lstat(d.Path()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a folder outlives the wrapper: %v", err)
		}
	}
}

// What a wrapper left that was killed while it wrote.
func TestT30TornMemory(t *testing.T) {
	t.Parallel()
	config, err := encode(wire{SessionURL: "https://broker.example.com/v1/session", EndToken: []byte(endToken)})
	if err != nil {
		t.Fatal(err)
	}
	whole := append(make([]byte, configAt), config...)
	place := func(i int, size uint32, path string) {
		binary.BigEndian.PutUint32(whole[i*placeBytes:], size)
		copy(whole[i*placeBytes+4:], path)
	}
	place(0, 4, "/one")
	place(1, 0, "/half") // its length would have come last
	place(3, 6, "/three that was longer")
	want := []string{"/one", "/three"}
	for cut := range whole {
		if c, err := recall(whole[:cut]); err == nil {
			t.Fatalf("recall of %d of %d bytes = %v, want an error", cut, len(whole), c)
		}
	}
	c, err := recall(whole)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, c.folders); diff != "" || string(c.EndToken) != endToken {
		t.Errorf("recall = %q, -want +got:\n%s", c.EndToken, diff)
	}
	place(2, maxPathBytes+1, "/")
	if _, err := recall(whole); err == nil {
		t.Error("recall takes a path that is too long")
	}
}

func FuzzRecall(f *testing.F) {
	config, err := encode(wire{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{0, 0, 0, 4, '/', 'o', 'n', 'e'}, config)
	f.Add([]byte{0xff}, config)
	f.Add([]byte{}, []byte{1})
	f.Fuzz(func(t *testing.T, places, config []byte) {
		b := make([]byte, configAt, configAt+len(config))
		copy(b, places)
		c, err := recall(append(b, config...))
		if err != nil {
			return
		}
		if len(c.folders) > maxFolders {
			t.Errorf("%d folders", len(c.folders))
		}
		for _, dir := range c.folders {
			if dir == "" || len(dir) > maxPathBytes {
				t.Errorf("a folder of %d bytes", len(dir))
			}
		}
	})
}
