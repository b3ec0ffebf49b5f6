package leakscan

import (
	"crypto/rand"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the longest that the coarse clock stands still: it goes at 100 Hz or
// faster. A sandbox's own kernel may show it finer than its host stamps files.
const tick = 10 * time.Millisecond

// deviceTime says which device a path is on, and what time it is there.
func deviceTime(path string) (dev uint64, at int64, ok bool) {
	fd, err := openat(unix.AT_FDCWD, path, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return 0, 0, false
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0, 0, false
	}
	dev = uint64(st.Dev) //nolint:unconvert // its type depends on the architecture
	if at, ok := kernelTime(fd, &st); ok {
		return dev, at, true
	}
	if at, ok := stampIn(fd); ok {
		return dev, at, true
	}
	return dev, time.Now().Add(-hostSlack).UnixNano(), true
}

// kernelTime is for file systems of this machine, which stamp with the
// kernel's coarse clock: nothing needs to be written to read that.
func kernelTime(fd int, st *unix.Stat_t) (at int64, ok bool) {
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil {
		return 0, false
	}
	switch int64(fs.Type) { //nolint:unconvert // its type depends on the architecture
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC:
	default:
		return 0, false
	}
	var now unix.Timespec
	if st.Ctim.Nsec == 0 || unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now) != nil {
		return 0, false // the inodes of an old ext3 know whole seconds alone
	}
	return now.Nano() - int64(tick), true
}

// stampIn makes an empty file in a folder and tells its change time. The file
// has no name, or, where a file system knows no such files, one for a moment.
func stampIn(folder int) (at int64, ok bool) {
	fd, err := unix.Openat(folder, ".", unix.O_WRONLY|unix.O_CLOEXEC|unix.O_TMPFILE, 0o600)
	if err != nil {
		return stampNamed(folder)
	}
	return changeTime(fd)
}

func stampNamed(folder int) (at int64, ok bool) {
	name := ".runenv-start-" + rand.Text()
	fd, err := unix.Openat(folder, name, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, false
	}
	defer func() { _ = unix.Unlinkat(folder, name, 0) }()
	return changeTime(fd)
}

// changeTime closes fd.
func changeTime(fd int) (at int64, ok bool) {
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return st.Ctim.Nano(), err == nil
}
