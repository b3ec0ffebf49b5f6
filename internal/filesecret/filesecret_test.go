//go:build linux

package filesecret_test

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/internal/filesecret"
)

// TestMain is also the process that a test kills: it makes a file secret,
// tells where, and waits.
func TestMain(m *testing.M) {
	if base := os.Getenv("FILESECRET_HOLDER"); base != "" {
		d, err := filesecret.Open(inside(base))
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		size, _ := strconv.Atoi(os.Getenv("FILESECRET_BYTES"))
		signal.Ignore(syscall.SIGXFSZ)
		if _, err := d.Write("token", append([]byte("canary-of-the-holder"), make([]byte, size)...)); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println(d.Path())
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// inside are options by which base is the only place.
func inside(base string) filesecret.Options {
	return filesecret.Options{Getenv: func(name string) string {
		if name == "XDG_RUNTIME_DIR" {
			return base
		}
		return ""
	}}
}

// memory makes a folder of this test on a memory file system.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "runenv-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func open(t *testing.T, opt filesecret.Options) *filesecret.Dir {
	t.Helper()
	d, err := filesecret.Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Remove() })
	return d
}

func TestFileIsItsOwnersAlone(t *testing.T) {
	t.Parallel()
	base := memory(t)
	d := open(t, inside(base))
	if !d.Memory() || filepath.Dir(d.Path()) != base {
		t.Fatalf("Open() = %s, memory %v, want memory in %s", d.Path(), d.Memory(), base)
	}
	path, err := d.Write("kubeconfig.yaml", []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]fs.FileMode{d.Path(): fs.ModeDir | 0o700, path: 0o400} {
		if fi, err := os.Stat(p); err != nil || fi.Mode() != want {
			t.Errorf("mode of %s = %v, %v, want %v", p, fi.Mode(), err, want)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "content" {
		t.Errorf("ReadFile = %q, %v, want the content", got, err)
	}
	if _, err := d.Write("kubeconfig.yaml", []byte("other")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("writing the same name again = %v, want %v", err, fs.ErrExist)
	}
	for _, name := range []string{"", ".", "..", ".lock", "a/b/c", "../a", "a/..", "a/", "/a", "a\x00", strings.Repeat("x", 129), "-x"} {
		if _, err := d.Write(name, nil); err == nil {
			t.Errorf("Write(%q) succeeds", name)
		}
	}
	if _, err := d.Write("huge", make([]byte, filesecret.MaxFileBytes+1)); err == nil {
		t.Error("a file over the limit is written")
	}
}

func TestP1NoMemoryIsRefused(t *testing.T) {
	t.Parallel()
	// proc is a file system that surely isn't in memory.
	_, err := filesecret.Open(filesecret.Options{Getenv: func(string) string { return "/proc" }, Outside: []string{"/dev/shm", "/run/shm", "/tmp"}})
	none, ok := errors.AsType[*filesecret.NoMemoryError](err)
	if !ok {
		t.Fatalf("Open() = %v, want a NoMemoryError", err)
	}
	if !strings.Contains(none.Hint(), "--files=disk") {
		t.Errorf("Hint() = %q, without the cure", none.Hint())
	}
}

func TestDiskOnlyWhenAsked(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	opt := filesecret.Options{Getenv: func(name string) string {
		if name == "TMPDIR" {
			return base
		}
		return ""
	}, Outside: []string{"/dev/shm", "/run/shm"}, Disk: true}
	d := open(t, opt)
	if filepath.Dir(d.Path()) != base && !d.Memory() {
		t.Errorf("Open() = %s, want one in %s or in memory", d.Path(), base)
	}
}

func TestWorkspaceIsAvoided(t *testing.T) {
	t.Parallel()
	base := memory(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(base, link); err != nil {
		t.Fatal(err)
	}
	for _, workspace := range []string{base, filepath.Dir(base), link} {
		opt := inside(base)
		opt.Outside = []string{workspace}
		if d, err := filesecret.Open(opt); err == nil {
			if strings.HasPrefix(d.Path(), base) {
				t.Errorf("Open() outside %s = %s", workspace, d.Path())
			}
			_ = d.Remove()
		}
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	t.Parallel()
	base := memory(t)
	d := open(t, inside(base))
	path, err := d.Write("key", []byte("canary"))
	if err != nil {
		t.Fatal(err)
	}
	// Whoever still holds the file reads zeros.
	held, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Close() }()
	// What a command may have made of the folder.
	outside := filepath.Join(base, "outside")
	if err := os.WriteFile(outside, []byte("not ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Symlink(outside, filepath.Join(d.Path(), "link")),
		os.MkdirAll(filepath.Join(d.Path(), "cache", "deep"), 0o755),
		os.WriteFile(filepath.Join(d.Path(), "cache", "deep", "copy"), []byte("canary"), 0o400),
		syscall.Mkfifo(filepath.Join(d.Path(), "fifo"), 0o600),
		os.Chmod(filepath.Join(d.Path(), "cache"), 0),
		os.Chmod(d.Path(), 0o500),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := d.Remove(); err != nil {
			t.Errorf("Remove() = %v", err)
		}
	}
	if _, err := os.Lstat(d.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
	if got, err := os.ReadFile(outside); err != nil || string(got) != "not ours" {
		t.Errorf("what a link pointed to = %q, %v, want it untouched", got, err)
	}
	got := make([]byte, 6)
	if n, _ := held.Read(got); strings.Trim(string(got[:n]), "\x00") != "" {
		t.Errorf("an open descriptor still reads %q", got[:n])
	}
}

func TestEraseRefusesOtherPaths(t *testing.T) {
	t.Parallel()
	base := memory(t)
	other := filepath.Join(base, "runenv-something")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", "/", base, other, "runenv-ABCDEFGHIJKLMNOPQRSTUVWXYZ", other + "/../runenv-ABCDEFGHIJKLMNOPQRSTUVWXYZ"} {
		if err := filesecret.Erase(path); err == nil {
			t.Errorf("Erase(%q) succeeds", path)
		}
	}
	if err := filesecret.Erase(filepath.Join(base, "runenv-ABCDEFGHIJKLMNOPQRSTUVWXYZ")); err != nil {
		t.Errorf("Erase of what is gone = %v, want nil", err)
	}
	// A link of the right name isn't followed.
	victim := filepath.Join(base, "victim")
	if err := os.WriteFile(filepath.Join(t.TempDir(), "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(victim, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(base, "runenv-BBCDEFGHIJKLMNOPQRSTUVWXYZ")
	if err := os.Symlink(victim, link); err != nil {
		t.Fatal(err)
	}
	if err := filesecret.Erase(link); err == nil {
		t.Error("Erase follows a link")
	}
	if _, err := os.Stat(victim); err != nil {
		t.Errorf("the link's target: %v", err)
	}
}

func TestT30SweepTellsLiveFromStale(t *testing.T) {
	t.Parallel()
	base := memory(t)
	live := open(t, inside(base))
	if _, err := live.Write("token", []byte("live")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FILESECRET_HOLDER="+base)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stale, err := bufio.NewReader(stdout).ReadString('\n')
	stale = strings.TrimSpace(stale)
	if err != nil || !filepath.IsAbs(stale) {
		t.Fatalf("the holder said %q, %v", stale, err)
	}
	// It looks into /dev/shm too, so how many it finds there isn't this test's.
	if _, err := filesecret.Sweep(inside(base)); err != nil {
		t.Errorf("Sweep() beside two live ones = %v", err)
	}
	if _, err := os.Stat(filepath.Join(stale, "token")); err != nil {
		t.Fatalf("the file of a live holder: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if _, err := os.Stat(filepath.Join(stale, "token")); err != nil {
		t.Fatalf("the killed holder's file: %v", err)
	}
	// A young folder without a lock may be in the making; an old one isn't.
	young, old := filepath.Join(base, "runenv-CBCDEFGHIJKLMNOPQRSTUVWXYZ"), filepath.Join(base, "runenv-DBCDEFGHIJKLMNOPQRSTUVWXYZ")
	for _, dir := range []string{young, old} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	before := time.Now().Add(-time.Hour)
	if err := os.Chtimes(old, before, before); err != nil {
		t.Fatal(err)
	}
	if n, err := filesecret.Sweep(inside(base)); n < 2 || err != nil {
		t.Errorf("Sweep() = %d, %v, want 2 at least", n, err)
	}
	for path, want := range map[string]bool{stale: false, old: false, young: true, filepath.Join(live.Path(), "token"): true} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", path, err == nil, want)
		}
	}
}

// A folder is made while other runs look for what was left.
func TestMadeBesideSweepers(t *testing.T) {
	t.Parallel()
	base := memory(t)
	var sweepers sync.WaitGroup
	defer sweepers.Wait()
	done := make(chan struct{})
	defer close(done)
	for range 3 {
		sweepers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					_, _ = filesecret.Sweep(inside(base))
				}
			}
		})
	}
	for i := range 300 {
		d, err := filesecret.Open(inside(base))
		if err != nil {
			t.Fatalf("folder %d: %v", i, err)
		}
		path, err := d.Write("token", []byte("live"))
		if err != nil {
			t.Fatalf("folder %d: %v", i, err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("folder %d: %v", i, err)
		}
		if err := d.Remove(); err != nil {
			t.Errorf("folder %d: %v", i, err)
		}
	}
}

func TestFullFileSystemLeavesNoHalf(t *testing.T) {
	t.Parallel()
	base := memory(t)
	// A limit on the size of files cuts a write short as a full file system
	// does. It is a whole process's, so another one tries.
	cmd := exec.Command("prlimit", "--fsize=4096", os.Args[0])
	cmd.Env = append(os.Environ(), "FILESECRET_HOLDER="+base, "FILESECRET_BYTES=100000")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "file too large") {
		t.Fatalf("the holder = %v, %q, want that the file is too large", err, out)
	}
	left, err := filepath.Glob(filepath.Join(base, "runenv-*", "token"))
	if err != nil || len(left) != 0 {
		t.Errorf("half a file is left: %q, %v", left, err)
	}
}
