package guardian

import (
	"errors"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/runenv/action/internal/filesecret"
)

func TestT31GuardianIsHardened(t *testing.T) {
	t.Parallel()
	h := start(t, Config{SessionURL: newBroker(t).URL})
	dir := "/proc/" + strconv.Itoa(h.process.Pid)
	limits, err := os.ReadFile(dir + "/limits")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && f[4] != "1" && f[5] != "0" {
			t.Errorf("the core limit is %s, want 1", f[4])
		}
	}
	if os.Getuid() != 0 { // root reads everything
		if _, err := os.ReadFile(dir + "/environ"); err == nil {
			t.Error("the guardian is dumpable: its /proc entries can be read")
		}
	}
	if args, err := os.ReadFile(dir + "/cmdline"); err == nil && strings.Contains(string(args), endToken) {
		t.Error("the end token is in the arguments")
	}
	if err := h.Done(); err != nil {
		t.Error(err)
	}
}

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
	if err := start(t, Config{SessionURL: newBroker(t).URL}).Files("/" + strings.Repeat("x", maxPathBytes)); err == nil {
		t.Error("a path over the limit is taken")
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
	last := folder(t)
	if err := h.Files(last.Path()); err != nil {
		t.Fatal(err)
	}
	_ = die(t, h)
	if _, err := os.Lstat(last.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the last folder outlives the wrapper: %v", err)
	}
}
