package filesecret

import (
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/runenv/action/internal/ramdisk"
)

// candidates: macOS gives an ordinary user no memory file system; what somebody
// else has mounted is found by XDG_RUNTIME_DIR or TMPDIR.
func candidates(opt Options) []string {
	var out []string
	for _, base := range []string{opt.getenv("XDG_RUNTIME_DIR"), opt.getenv("TMPDIR")} {
		if filepath.IsAbs(base) {
			out = append(out, filepath.Clean(base))
		}
	}
	return out
}

// inMemory knows tmpfs, which root may mount, and RAM disks.
func inMemory(path string) (bool, error) {
	m, err := mounted(path)
	if err != nil || m.Type == "tmpfs" {
		return err == nil, err
	}
	return ramDisks().Holds(path)
}

// swappable: RAM disks are paged like a program's memory, to a swap that macOS
// encrypts.
func swappable(string) bool {
	usage, err := unix.SysctlRaw("vm.swapusage")
	return err != nil || !ramdisk.SwapEncrypted(usage)
}

// chmodAt changes the mode of what name is, and of nothing that it links to. It
// is best effort.
func chmodAt(dir int, name string, mode uint32) {
	_ = unix.Fchmodat(dir, name, mode, unix.AT_SYMLINK_NOFOLLOW)
}
