package filesecret

import (
	"path/filepath"

	"golang.org/x/sys/unix"
)

// candidates: macOS has no tmpfs of its own; a RAM disk that somebody attached
// is found by TMPDIR or XDG_RUNTIME_DIR.
func candidates(opt Options) []string {
	var out []string
	for _, base := range []string{opt.getenv("XDG_RUNTIME_DIR"), opt.getenv("TMPDIR")} {
		if filepath.IsAbs(base) {
			out = append(out, filepath.Clean(base))
		}
	}
	return out
}

// inMemory knows tmpfs alone: a RAM disk can't be told from another disk.
func inMemory(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, err
	}
	return unix.ByteSliceToString(st.Fstypename[:]) == "tmpfs", nil
}

func swappable(string) bool { return true }

// chmodAt changes the mode of what name is, and of nothing that it links to. It
// is best effort.
func chmodAt(dir int, name string, mode uint32) {
	_ = unix.Fchmodat(dir, name, mode, unix.AT_SYMLINK_NOFOLLOW)
}
