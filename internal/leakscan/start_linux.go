package leakscan

import (
	"crypto/rand"
	"time"

	"golang.org/x/sys/unix"
)

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
	if at, ok := stampIn(fd); ok {
		return uint64(st.Dev), at, true //nolint:unconvert // its type depends on the architecture
	}
	return uint64(st.Dev), time.Now().Add(-hostSlack).UnixNano(), true //nolint:unconvert // as above
}

// stampIn makes an empty file in a folder and tells its change time.
func stampIn(folder int) (at int64, ok bool) {
	const flags = unix.O_WRONLY | unix.O_CLOEXEC
	fd, err := unix.Openat(folder, ".", flags|unix.O_TMPFILE, 0o600)
	if err != nil {
		// A file system without such files gets one with a name for a moment.
		name := ".runenv-start-" + rand.Text()
		if fd, err = unix.Openat(folder, name, flags|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600); err != nil {
			return 0, false
		}
		defer func() { _ = unix.Unlinkat(folder, name, 0) }()
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0, false
	}
	return st.Ctim.Nano(), true
}
