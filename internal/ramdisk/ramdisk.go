// Package ramdisk puts a folder into memory on macOS, which has no memory file
// system that an ordinary user may mount.
//
// [System.Mount] attaches a RAM disk, makes a file system on it and mounts that
// on a folder, by macOS's own tools and without root's rights. It formats and
// mounts nothing but what the system itself lists as a RAM disk of this user's,
// and believes the mount only once the kernel confirms it: no answer of a tool
// makes a disk pass for memory. [System.Unmount] detaches the disk, and with it
// goes what lay there. It detaches no other disk.
//
// A process killed within Mount may leave a RAM disk with nothing on it, until
// the user ejects it or logs out.
//
// The package has no build tag, and reaches the system through fields, so that
// it is tested where there is no macOS. It was never run on one.
package ramdisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	// Bytes is the size of a disk, which takes up memory as it is written to.
	Bytes = 64 << 20

	sectorBytes = 512
	imagePrefix = "ram://"
	devPrefix   = "/dev/disk"
	fsType      = "hfs"

	hdiutil  = "/usr/bin/hdiutil"
	newfsHFS = "/sbin/newfs_hfs"
	mount    = "/sbin/mount"

	// A command's binary is no secret, and nothing on the disk is one: what
	// can't be run, can't be planted either.
	mountOptions = "nobrowse,nodev,nosuid,noexec"

	// Spotlight reads no volume that has it.
	neverIndexed = ".metadata_never_index"
)

// A System is what disks are made with. All fields are needed.
type System struct {
	// Run runs a program of the system and returns its standard output. It
	// bounds its time and its output. See [Exec].
	Run func(name string, args ...string) ([]byte, error)
	// Mounted asks the kernel for the file system that a folder lies on.
	Mounted func(dir string) (Mount, error)
	// UID and GID are this process's effective ones.
	UID, GID int
}

// A Mount is what the kernel says of a file system.
type Mount struct {
	On     string // its root folder
	From   string // its device
	Type   string
	Owners bool // files belong to who made them, and not to everybody
}

// Mount makes a RAM disk and mounts it on dir: an empty folder of this user's,
// absolute and without symbolic links. After an error it isn't mounted.
func (s *System) Mount(dir string) error {
	out, err := s.Run(hdiutil, "attach", "-nomount", "-nobrowse", imagePrefix+strconv.Itoa(Bytes/sectorBytes))
	if err != nil {
		return fmt.Errorf("attaching a RAM disk: %w", err)
	}
	device, err := parseDevice(out)
	if err == nil {
		err = s.check(device, s.UID)
	}
	if err != nil {
		// Whatever this is, it is neither formatted nor detached.
		return fmt.Errorf("attaching a RAM disk: %w", err)
	}
	if err := s.fill(device, dir); err != nil {
		return errors.Join(err, s.detach(device))
	}
	return nil
}

// fill makes a file system, with no journal, and mounts it.
func (s *System) fill(device, dir string) error {
	if _, err := s.Run(newfsHFS, "-s", "-U", strconv.Itoa(s.UID), "-G", strconv.Itoa(s.GID), "-v", "runenv", device); err != nil {
		return fmt.Errorf("making a file system on a RAM disk: %w", err)
	}
	if _, err := s.Run(mount, "-t", fsType, "-o", mountOptions, device, dir); err != nil {
		return fmt.Errorf("mounting a RAM disk: %w", err)
	}
	m, err := s.Mounted(dir)
	switch {
	case err != nil:
		return fmt.Errorf("mounting a RAM disk: %w", err)
	case m.On != dir || m.From != device || m.Type != fsType:
		return errors.New("mounting a RAM disk: the kernel has something else there")
	case !m.Owners:
		return errors.New("mounting a RAM disk: its files would be everybody's")
	}
	if err := shut(dir); err != nil {
		return fmt.Errorf("shutting a RAM disk to others: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, neverIndexed), nil, 0o400); err != nil {
		return fmt.Errorf("keeping Spotlight from a RAM disk: %w", err)
	}
	return nil
}

// shut leaves a folder to its owner alone.
func shut(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return f.Chmod(0o700)
}

// Unmount detaches the RAM disk that is mounted on dir, whatever still uses it.
// was is false where dir is no root of a file system.
func (s *System) Unmount(dir string) (was bool, err error) {
	m, err := s.Mounted(dir)
	if err != nil {
		return false, fmt.Errorf("detaching a RAM disk: %w", err)
	}
	if m.On != dir {
		return false, nil
	}
	if err := s.check(m.From, s.UID); err != nil {
		return true, fmt.Errorf("detaching a RAM disk: %w", err)
	}
	return true, s.detach(m.From)
}

// Holds reports whether dir lies on a RAM disk of this user's or of root's: who
// attached one can read it.
func (s *System) Holds(dir string) (bool, error) {
	m, err := s.Mounted(dir)
	if err != nil || m.Type != fsType || !m.Owners {
		return false, err
	}
	err = s.check(m.From, s.UID, 0)
	if errors.Is(err, errNotRAM) {
		return false, nil
	}
	return err == nil, err
}

func (s *System) detach(device string) error {
	if _, err := s.Run(hdiutil, "detach", device); err == nil {
		return nil
	}
	// Somebody has a file open there, or it went just now.
	_, err := s.Run(hdiutil, "detach", "-force", device)
	if err != nil && errors.Is(s.check(device, s.UID), errNotAttached) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("detaching a RAM disk: %w", err)
	}
	return nil
}

var (
	errNotRAM = errors.New("the system lists no such RAM disk of this user's")
	// errNotAttached is an errNotRAM.
	errNotAttached = fmt.Errorf("%w, nor any other disk image", errNotRAM)
)

// check asks the system whether device is of a RAM disk that one of the owners
// has attached; else the error is an errNotRAM, or says why that isn't known.
func (s *System) check(device string, owners ...int) error {
	out, err := s.Run(hdiutil, "info", "-plist")
	if err != nil {
		return fmt.Errorf("asking for the RAM disks: %w", err)
	}
	images, err := parseInfo(out)
	if err != nil {
		return fmt.Errorf("asking for the RAM disks: %w", err)
	}
	found := errNotAttached
	for _, i := range images {
		if !i.has(device) {
			continue
		}
		if found == nil || !i.inMemory() || !i.ownedBy(owners) {
			return errNotRAM
		}
		found = nil
	}
	return found
}

// parseDevice reads the answer of `hdiutil attach -nomount`: a device, and
// white space for what a device without a partition hasn't got.
func parseDevice(out []byte) (string, error) {
	device := strings.TrimRight(string(out), " \t\n")
	number, ok := strings.CutPrefix(device, devPrefix)
	if !ok || !isNumber(number) {
		return "", errors.New("its answer names no disk")
	}
	return device, nil
}

// isNumber: decimal, at most nine digits.
func isNumber(s string) bool {
	return s != "" && len(s) <= 9 && strings.Trim(s, "0123456789") == ""
}
