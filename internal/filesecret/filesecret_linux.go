package filesecret

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// candidates are where a memory file system usually is, best first.
func candidates(opt Options) []string {
	var out []string
	for _, base := range []string{opt.getenv("XDG_RUNTIME_DIR"), "/dev/shm", "/run/shm", opt.getenv("TMPDIR"), "/tmp"} {
		if filepath.IsAbs(base) {
			out = append(out, filepath.Clean(base))
		}
	}
	return out
}

func inMemory(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, err
	}
	return st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC, nil
}

// swappable says whether pages of the file system at path may leave memory.
func swappable(path string) bool {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) == nil && st.Type == unix.RAMFS_MAGIC {
		return false
	}
	swaps, err := os.ReadFile("/proc/swaps")
	if err == nil && bytes.Count(swaps, []byte("\n")) <= 1 {
		return false // a heading and nothing else
	}
	return !mountedNoswap(path)
}

// mountedNoswap looks for the option of the mount that path lies on.
func mountedNoswap(path string) bool {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	best, noswap := "", false
	for line := range strings.SplitSeq(string(mounts), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 7 {
			continue
		}
		at := fields[4]
		if (path == at || strings.HasPrefix(path, strings.TrimSuffix(at, "/")+"/")) && len(at) >= len(best) {
			best, noswap = at, strings.Contains(fields[len(fields)-1], "noswap")
		}
	}
	return noswap
}

// chmodAt changes the mode of what name is, and of nothing that it links to. It
// doesn't use fchmodat2, which came with Linux 6.6. It is best effort.
func chmodAt(dir int, name string, mode uint32) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK {
		_ = unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode)
	}
}
