//go:build unix

package leakscan_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/internal/leakscan"
)

// begin is a start that what is in dir lies before: it waits for the tick of
// the file system's clock to pass.
func begin(t *testing.T, dir string) *leakscan.Start {
	t.Helper()
	for {
		start := leakscan.Begin(dir)
		r := search(t, leakscan.Config{Paths: []string{dir}, Since: start})
		if r.Read == 0 {
			return start
		}
	}
}

// volumes are a folder on a disk and, where there is one, in memory.
func volumes(t *testing.T) []string {
	t.Helper()
	dirs := []string{t.TempDir()}
	if shm, err := os.MkdirTemp("/dev/shm", "leakscan-test-"); err == nil {
		t.Cleanup(func() { _ = os.RemoveAll(shm) })
		dirs = append(dirs, shm)
	}
	return dirs
}

func TestSinceReadsWhatChangedAndNothingElse(t *testing.T) {
	t.Parallel()
	for _, base := range volumes(t) {
		dir, outside := filepath.Join(base, "in"), filepath.Join(base, "out")
		for _, name := range []string{"old", "rewritten", "appended", "kept-time", "linked", "mode", "sub/renamed", "gone"} {
			write(t, filepath.Join(dir, name), []byte(value))
		}
		for _, name := range []string{"moved", "folder/in-it"} {
			write(t, filepath.Join(outside, name), []byte(value))
		}
		start := begin(t, base)
		long := time.Now().Add(-1000 * time.Hour)
		for _, err := range []error{
			os.WriteFile(filepath.Join(dir, "new"), []byte(value), 0o600),
			os.WriteFile(filepath.Join(dir, "rewritten"), []byte(value), 0o600),
			appendTo(filepath.Join(dir, "appended"), "x"),
			os.WriteFile(filepath.Join(dir, "kept-time"), []byte(value), 0o600),
			os.Chtimes(filepath.Join(dir, "kept-time"), long, long), // as cp -p and tar do
			os.Link(filepath.Join(dir, "linked"), filepath.Join(dir, "link")),
			os.Rename(filepath.Join(dir, "sub/renamed"), filepath.Join(dir, "sub/named-anew")),
			os.Rename(filepath.Join(outside, "moved"), filepath.Join(dir, "moved")),
			os.Rename(filepath.Join(outside, "folder"), filepath.Join(dir, "folder")),
			os.Remove(filepath.Join(dir, "gone")),
			os.Chmod(filepath.Join(dir, "mode"), 0o640),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		r := search(t, leakscan.Config{Paths: []string{dir}, Since: start})
		got := []string{}
		for _, h := range told(r, dir) {
			got = append(got, strings.Fields(h)[0])
		}
		// What is in a folder that was moved here was written before the
		// start: it holds nothing that was leased since.
		want := []string{"appended", "kept-time", "link", "linked", "mode", "moved", "new", "rewritten", "sub/named-anew"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: read (-want +got):\n%s", base, diff)
		}
	}
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// A write in the very tick of the start counts.
func TestSinceCountsTheSameTick(t *testing.T) {
	t.Parallel()
	for _, dir := range volumes(t) {
		for i := range 200 {
			path := filepath.Join(dir, fmt.Sprint(i))
			start := leakscan.Begin(dir)
			write(t, path, []byte(value))
			r := search(t, leakscan.Config{Paths: []string{path}, Since: start})
			if len(r.Hits) != 1 {
				t.Fatalf("%s: a file written just after the start isn't read", dir)
			}
		}
	}
}

func TestSinceOfAnUnknownFileSystemReadsAll(t *testing.T) {
	t.Parallel()
	for _, dir := range volumes(t) {
		write(t, filepath.Join(dir, "a"), []byte(value))
		r := search(t, leakscan.Config{Paths: []string{dir}, Since: leakscan.Begin(filepath.Join(dir, "missing"))})
		if len(r.Hits) != 1 {
			t.Errorf("%s: %d hits, want 1: the start knows nothing of it", dir, len(r.Hits))
		}
	}
}

func TestFindsValuesInTargetsAndOddNames(t *testing.T) {
	t.Parallel()
	const plain = "s3cr3t-value-of-db"
	dir := tree(t, map[string]string{"a\n::" + plain: ""})
	if err := os.Symlink("/tmp/"+plain, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	r := search(t, leakscan.Config{Paths: []string{dir}, Needles: needles(plain)})
	want := []string{`a\x0a::[REDACTED:lease-0] name lease-0@4 x1`, "link target lease-0@5 x1"}
	if diff := cmp.Diff(want, told(r, dir)); diff != "" {
		t.Errorf("hits (-want +got):\n%s", diff)
	}
}

// Neither a pipe nor what a file became while it was looked at holds up a
// search, and none of it is read.
func TestSpecialFilesDoNotBlock(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"a": value})
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo-"+value[:6]), 0o600); err != nil {
		t.Fatal(err)
	}
	r := search(t, leakscan.Config{Paths: []string{dir, filepath.Join(dir, "fifo-"+value[:6])}})
	if len(r.Hits) != 1 || r.Special != 2 || len(r.Gaps) != 0 {
		t.Errorf("%d hits, %d special, gaps %v; want 1, 2 and none", len(r.Hits), r.Special, r.Gaps)
	}
}

func TestLinksAreNotFollowed(t *testing.T) {
	t.Parallel()
	outside := tree(t, map[string]string{"secret": value, "d/secret": value})
	dir := tree(t, map[string]string{"a": ""})
	for name, target := range map[string]string{"file": outside + "/secret", "folder": outside + "/d", "loop": ".", "up": ".."} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if r := search(t, leakscan.Config{Paths: []string{dir}}); len(r.Hits) != 0 {
		t.Errorf("hits behind links: %q", told(r, dir))
	}
	// What was named is another matter.
	r := search(t, leakscan.Config{Paths: []string{filepath.Join(dir, "file"), filepath.Join(dir, "folder")}})
	if len(r.Hits) != 2 {
		t.Errorf("hits %q, want both of the links that were named", told(r, dir))
	}
}

// A command that puts a link in the place of what is to be searched has nothing
// overwritten behind it.
func TestT26ScrubIsNotLedElsewhere(t *testing.T) {
	t.Parallel()
	for name, swap := range map[string]func(dir, elsewhere string) error{
		"the folder": func(dir, elsewhere string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "in", "work")), os.Symlink(elsewhere, filepath.Join(dir, "in", "work")))
		},
		"one above": func(dir, elsewhere string) error {
			above := filepath.Join(dir, "in")
			return errors.Join(os.RemoveAll(above), os.Symlink(filepath.Dir(elsewhere), above))
		},
		"a new one": func(dir, elsewhere string) error {
			return os.Symlink(elsewhere, filepath.Join(dir, "in", "cache"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			paths := []string{filepath.Join(dir, "in", "work"), filepath.Join(dir, "in", "cache"), filepath.Join(dir, "in", "own")}
			elsewhere := filepath.Join(dir, "else", "work")
			for _, folder := range []string{paths[0], elsewhere} {
				if err := os.MkdirAll(folder, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			start := leakscan.Begin(paths...)
			file := filepath.Join(elsewhere, "file")
			write(t, file, []byte(value))
			if err := swap(dir, elsewhere); err != nil {
				t.Fatal(err)
			}
			if name == "a new one" { // and one that leads nowhere else
				if err := os.Mkdir(paths[2], 0o700); err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(paths[2], "file"), []byte(value))
			}
			r := search(t, leakscan.Config{Paths: paths, Since: start, Scrub: true})
			if text, err := os.ReadFile(file); err != nil || string(text) != value {
				t.Errorf("elsewhere: %q, %v", text, err)
			}
			told := map[bool]int{}
			for _, h := range r.Hits {
				told[h.Scrubbed]++
			}
			if want := map[bool]int{false: 1}; name != "a new one" && !cmp.Equal(told, want) || name == "a new one" && !cmp.Equal(told, map[bool]int{false: 1, true: 1}) {
				t.Errorf("hits %+v, want one that isn't scrubbed", r.Hits)
			}
		})
	}
}

func TestHolesAreNotRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	const size = 10 << 30
	places := []int64{100, 3<<30 + 4095, 9<<30 + 17, size - int64(len(value))}
	for _, at := range places {
		if _, err := f.WriteAt([]byte(value), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// The first or last bytes of these are of a hole, and never were written.
	const head, tail = "\x00\x00\x00\x00\x00\x00keystore", "trailer!\x00\x00\x00\x00\x00\x00"
	if f, err = os.Create(filepath.Join(dir, "zeros")); err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("keystore"), 1<<30)
	_, tailErr := f.WriteAt([]byte("trailer!"), 2<<30-8)
	if err := errors.Join(err, tailErr, f.Truncate(3<<30), f.Close()); err != nil {
		t.Fatal(err)
	}
	r := search(t, leakscan.Config{Paths: []string{dir}, Needles: needles(value, head, tail)})
	want := []string{"sparse content lease-0@100 x4", fmt.Sprintf("zeros content lease-1@%d x1", 1<<30-6), fmt.Sprintf("zeros content lease-2@%d x1", 2<<30-8)}
	if diff := cmp.Diff(want, told(r, dir)); diff != "" {
		t.Errorf("hits (-want +got):\n%s", diff)
	}
	if r.Bytes > 1<<20 {
		t.Errorf("%d bytes were read of a file that holds four values", r.Bytes)
	}
	set := needles(value, head, tail)
	r = search(t, leakscan.Config{Paths: []string{dir}, Scrub: true, Needles: set})
	if len(r.Hits) != 3 || len(search(t, leakscan.Config{Paths: []string{dir}, Needles: set}).Hits) != 0 {
		t.Errorf("scrubbing left something: %+v", r.Hits)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("the file takes %d bytes, %v: its holes were filled", st.Blocks*512, err)
	}
}

// Nothing can be left out of an archive: one that a command makes endless by a
// hole is told of, and searched like other files.
func TestArchivesOfHolesDoNotHoldUp(t *testing.T) {
	t.Parallel()
	const size = 8 << 40
	endless := []byte(tarred("b", "x"))
	copy(endless[124:], "\x80\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00") // 7 TiB in base 256
	copy(endless[148:], "        ")
	sum := 0
	for _, c := range endless[:512] {
		sum += int(c)
	}
	copy(endless[148:], fmt.Sprintf("%06o\x00 ", sum))
	for name, head := range map[string]string{
		"gzip": gzipped("x"), "zlib": zlibbed("x"), "zip": zippedRaw("b", "x"), "tar": tarred("b", "x"), "tar of one": string(endless), "zip at its end": "#!",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "a")
			write(t, path, []byte(head+value))
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
			want := []string{"a: it is an archive that is made of holes"}
			if name == "zip at its end" {
				f, err := os.OpenFile(path, os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				_, err = f.WriteAt([]byte("PK\x05\x06"), size-22)
				if err := errors.Join(err, f.Close()); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			r, err := leakscan.Run(ctx, leakscan.Config{Paths: []string{dir}, Needles: needles(value)})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, gaps(r, dir)); diff != "" {
				t.Errorf("gaps (-want +got):\n%s", diff)
			}
			if len(r.Hits) != 1 || r.Bytes > 1<<20 {
				t.Errorf("hits %q in %d bytes, want the one behind the head", told(r, dir), r.Bytes)
			}
		})
	}
}

// An ordinary user is told of what it may not read.
func TestUnreadableIsReported(t *testing.T) {
	t.Parallel()
	const child = "LEAKSCAN_TEST_UNREADABLE"
	if dir := os.Getenv(child); dir != "" {
		r := search(t, leakscan.Config{Paths: []string{dir}, Scrub: true})
		want := []string{"closed: permission denied", "folder: permission denied"}
		if diff := cmp.Diff(want, gaps(r, dir)); diff != "" {
			t.Errorf("gaps (-want +got):\n%s", diff)
		}
		if len(r.Hits) != 1 || r.Hits[0].Scrubbed {
			t.Errorf("hits %+v, want that in a file that can't be written, not scrubbed", r.Hits)
		}
		return
	}
	dir, err := os.MkdirTemp("", "leakscan-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, name := range []string{"closed", "folder/a", "readonly"} {
		write(t, filepath.Join(dir, name), []byte(value))
	}
	for name, mode := range map[string]os.FileMode{"": 0o755, "closed": 0, "folder": 0, "readonly": 0o444} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), self, "-test.run=^TestUnreadableIsReported$", "-test.v")
	cmd.Env = append(os.Environ(), child+"="+dir)
	if os.Getuid() == 0 {
		// The file itself, wherever it lies: another user may not go there.
		cmd.Path, cmd.Dir = "/proc/self/exe", "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("as an ordinary user: %v\n%s", err, out)
	}
	if err := os.Chmod(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestVeryDeepFolders(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := dir
	for range 5 {
		path = filepath.Join(path, strings.Repeat("d/", 119)+"d")
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(path, "a"), []byte(value))
	write(t, filepath.Join(dir, strings.Repeat("d/", 500), "a"), []byte(value))
	r := search(t, leakscan.Config{Paths: []string{dir}})
	if len(r.Hits) != 1 || len(r.Gaps) != 1 || !strings.HasSuffix(r.Gaps[0].Reason, "nested too deeply") {
		t.Errorf("%d hits, gaps %d, want one of each", len(r.Hits), len(r.Gaps))
	}
}

func TestCommandFileThatIsNone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	write(t, target, []byte("A="+value+"\n"))
	link := filepath.Join(dir, value[:6])
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	for path, bad := range map[string]bool{filepath.Join(dir, "missing"): false, dir: false, os.DevNull: false, link: true} {
		hits, err := leakscan.ScrubCommandFile(path, leakscan.Entries, needles(value))
		if (err != nil) != bad || len(hits) != 0 {
			t.Errorf("%s: hits %v, error %v, want an error: %t", path, hits, err, bad)
		}
	}
	if text, err := os.ReadFile(target); err != nil || string(text) != "A="+value+"\n" {
		t.Errorf("behind the link: %q, %v", text, err)
	}
}

// The search of command files knows no end but theirs: none may be endless.
func TestT26EndlessCommandFileIsEmptied(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, []byte("A="+value+"\n"))
	if err := os.Truncate(path, 8<<40); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := leakscan.ScrubCommandFile(path, leakscan.Entries, needles(value))
		done <- err
	}()
	select {
	case err := <-done:
		info, statErr := os.Stat(path)
		if err == nil || statErr != nil || info.Size() != 0 {
			t.Errorf("%v, left %v, %v, want an error and nothing left", err, info, statErr)
		}
	case <-time.After(20 * time.Second):
		t.Error("it is still being read")
	}
}
