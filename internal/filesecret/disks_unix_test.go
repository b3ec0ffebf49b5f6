//go:build linux || darwin

package filesecret

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeDisks stand for RAM disks: what lies in a folder goes with its disk.
type fakeDisks struct {
	mounted   map[string]bool
	left      []string // what lay there when they were taken away
	refuse    error
	keep      error
	tried     int
	unmounted int
}

func (d *fakeDisks) Mount(dir string) error {
	d.tried++
	if d.refuse != nil {
		return d.refuse
	}
	d.mounted[dir] = true
	return os.WriteFile(filepath.Join(dir, ".metadata_never_index"), nil, 0o400)
}

func (d *fakeDisks) Unmount(dir string) (bool, error) {
	if !d.mounted[dir] {
		return false, nil
	}
	if d.keep != nil {
		return true, d.keep
	}
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		d.left = append(d.left, e.Name())
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	delete(d.mounted, dir)
	d.unmounted++
	return true, err
}

// without is a system without a memory file system.
func without(t *testing.T) (*fakeDisks, Options) {
	t.Helper()
	base := t.TempDir()
	return &fakeDisks{mounted: map[string]bool{}}, Options{Getenv: func(name string) string {
		if name == "TMPDIR" {
			return base
		}
		return ""
	}, Outside: []string{"/dev/shm", "/run/shm"}}
}

// onDisk makes a directory with a disk of its own.
func onDisk(t *testing.T, opt Options, own disks) *Dir {
	t.Helper()
	d, err := openIn(opt.temporary(), own)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Remove() })
	return d
}

func TestDirectoryOfItsOwnDisk(t *testing.T) {
	t.Parallel()
	own, opt := without(t)
	d := onDisk(t, opt, own)
	if !d.Memory() || !own.mounted[d.Path()] {
		t.Fatalf("Memory() = %v with %v mounted", d.Memory(), own.mounted)
	}
	path, err := d.Write("token", []byte("value"))
	if err != nil {
		t.Fatal(err)
	}
	held, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Close() }()
	if err := d.Remove(); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if own.unmounted != 1 || len(own.left) > 0 {
		t.Errorf("taken away %d times, with %q there", own.unmounted, own.left)
	}
	got := make([]byte, 5)
	if _, err := held.ReadAt(got, 0); err != nil || string(got) != "\x00\x00\x00\x00\x00" {
		t.Errorf("who had the file open reads %q, %v, want zeros", got, err)
	}
	if _, err := os.Stat(d.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
}

func TestP1OpenTakesADiskOfItsOwnBeforeAnyOther(t *testing.T) {
	t.Parallel()
	refused := errors.New("attaching a RAM disk: hdiutil: exit status 1")
	tests := []struct {
		name          string
		refuse        error
		typed         bool
		workspace     bool
		memory, opens bool
		tried         int
	}{
		{name: "memory", memory: true, opens: true, tried: 1},
		{name: "memory though a disk was typed", typed: true, memory: true, opens: true, tried: 1},
		{name: "no memory", refuse: refused, tried: 1},
		{name: "no memory and a typed disk", refuse: refused, typed: true, opens: true, tried: 1},
		{name: "in the workspace", workspace: true},
		{name: "in the workspace, typed", workspace: true, typed: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			own, opt := without(t)
			base := opt.temporary()
			own.refuse, opt.Disk = tt.refuse, tt.typed
			if tt.workspace {
				opt.Outside = append(opt.Outside, base)
			}
			d, err := open(opt, own)
			if own.tried != tt.tried {
				t.Errorf("%d disks were tried, want %d", own.tried, tt.tried)
			}
			if (err == nil) != tt.opens {
				t.Fatalf("open = %v, want success %v", err, tt.opens)
			}
			if err == nil {
				defer func() { _ = d.Remove() }()
				if d.Memory() != tt.memory {
					t.Errorf("Memory() = %v, want %v", d.Memory(), tt.memory)
				}
				return
			}
			if names := ours(base); len(names) > 0 {
				t.Errorf("left: %q", names)
			}
			if tt.refuse != nil && !strings.Contains(err.Error(), "hdiutil") {
				t.Errorf("open = %v, without the reason", err)
			}
		})
	}
}

func TestT30SweepTakesALeftDiskAway(t *testing.T) {
	t.Parallel()
	own, opt := without(t)
	d := onDisk(t, opt, own)
	if _, err := d.Write("token", []byte("value")); err != nil {
		t.Fatal(err)
	}
	if done, err := sweepAt(d.Path(), own); done || err != nil || own.unmounted != 0 {
		t.Errorf("while its owner lives: sweep = %v, %v, %d taken away", done, err, own.unmounted)
	}
	// Its owner dies: the kernel takes the lock back.
	_ = d.lock.Close()
	if done, err := sweepAt(d.Path(), own); !done || err != nil || own.unmounted != 1 || len(own.left) > 0 {
		t.Errorf("after its owner's death: sweep = %v, %v, %d taken away with %q there", done, err, own.unmounted, own.left)
	}
	if _, err := os.Stat(d.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
}

// A start beside this one doesn't take a disk that has just been mounted.
func TestSweepLeavesADiskInTheMaking(t *testing.T) {
	t.Parallel()
	own, opt := without(t)
	d := onDisk(t, opt, own)
	_ = d.lock.Close() // made, and not yet taken
	if done, err := sweepAt(d.Path(), own); done || err != nil || own.unmounted != 0 {
		t.Errorf("sweep = %v, %v, %d taken away", done, err, own.unmounted)
	}
	past := time.Now().Add(-2 * unlockedFor)
	if err := os.Chtimes(filepath.Join(d.Path(), lockName), past, past); err != nil {
		t.Fatal(err)
	}
	if done, err := sweepAt(d.Path(), own); !done || err != nil || own.unmounted != 1 {
		t.Errorf("a minute later: sweep = %v, %v, %d taken away", done, err, own.unmounted)
	}
}

func TestT30GuardianTakesTheDiskAway(t *testing.T) {
	t.Parallel()
	own, opt := without(t)
	d := onDisk(t, opt, own)
	if _, err := d.Write("token", []byte("value")); err != nil {
		t.Fatal(err)
	}
	if err := eraseAt(d.Path(), own); err != nil || own.unmounted != 1 || slices.Contains(own.left, "token") {
		t.Errorf("erasing = %v, %d taken away with %q there", err, own.unmounted, own.left)
	}
	if err := eraseAt(d.Path(), own); err != nil {
		t.Errorf("erasing again: %v", err)
	}
}

func TestDiskThatStaysIsAnError(t *testing.T) {
	t.Parallel()
	own, opt := without(t)
	d := onDisk(t, opt, own)
	own.keep = errors.New("detaching a RAM disk: it took longer than 15s")
	if err := d.Remove(); !errors.Is(err, own.keep) {
		t.Errorf("Remove = %v, want %v", err, own.keep)
	}
	own.keep = nil
	// The system's own folders on a disk can't be removed; they go with it.
	if err := release(d.Path(), own, errors.New("unlinking .fseventsd: not permitted")); err != nil {
		t.Errorf("release = %v, want nothing left to complain of", err)
	}
}
