package leakscan

import (
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runenv/action/internal/needle"
)

// What a file system is asked for and what the kernel's clock says are the same
// where both can be had.
func TestFileSystemsOwnTime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fd, err := openat(unix.AT_FDCWD, dir, unix.O_PATH)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	before := time.Now().Add(-2 * tick).UnixNano()
	for i, stamp := range []func(int) (int64, bool){stampIn, stampNamed} {
		at, ok := stamp(fd)
		if after := time.Now().UnixNano(); !ok || at < before || at > after {
			t.Errorf("stamp %d = %d, %t, want it between %d and %d", i, at, ok, before, after)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	if at, ok := kernelTime(fd, &st); ok && (at < before-int64(tick) || at > time.Now().UnixNano()) {
		t.Errorf("kernelTime = %d, want it close to %d", at, before)
	}
	st.Ctim.Nsec = 0
	if at, ok := kernelTime(fd, &st); ok {
		t.Errorf("kernelTime = %d on a file system that knows whole seconds alone", at)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left in the folder: %v, %v", left, err)
	}
}

// A clock that is set back by an hour while the command runs hides nothing.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := Begin(dir)
	path := filepath.Join(dir, "a")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	// The start as a clock that was an hour ahead then had it.
	ahead := &Start{at: s.at, wall: s.wall + int64(time.Hour), dev: map[uint64]int64{}}
	for dev, at := range s.dev {
		ahead.dev[dev] = at + int64(time.Hour)
	}
	dev := uint64(st.Dev) //nolint:unconvert // its type depends on the architecture
	if got := ahead.now().of(dev); st.Ctim.Nano() < got || got < st.Ctim.Nano()-int64(time.Minute) {
		t.Errorf("from %d on files count as changed, want those of %d among them", got, st.Ctim.Nano())
	}
	if got := s.now().of(dev); got > s.dev[dev] || got < s.dev[dev]-int64(time.Second) {
		t.Errorf("the start moved from %d to %d, though no clock was set", s.dev[dev], got)
	}
	if got := s.now().of(dev + 1); got != math.MinInt64 {
		t.Errorf("of(unknown device) = %d, want everything", got)
	}
}

// Files through which a kernel speaks have no end, or do something when read.
func TestKernelFilesAreLeftAlone(t *testing.T) {
	t.Parallel()
	r, err := Run(t.Context(), Config{Needles: needle.New(nil), Paths: []string{"/proc"}})
	if err != nil || len(r.Gaps) != 1 || r.Gaps[0].Reason != reasonKernel || r.Folders != 0 {
		t.Errorf("Run(/proc) = %+v, %v, want a gap and nothing read", r, err)
	}
}
