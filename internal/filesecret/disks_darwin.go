package filesecret

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/runenv/action/internal/ramdisk"
)

// ownDisks are RAM disks.
func ownDisks() disks { return ramDisks() }

func ramDisks() *ramdisk.System {
	return &ramdisk.System{Run: ramdisk.Exec, Mounted: mounted, UID: os.Geteuid(), GID: os.Getegid()}
}

func mounted(dir string) (ramdisk.Mount, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return ramdisk.Mount{}, err
	}
	return ramdisk.Mount{
		On:     unix.ByteSliceToString(st.Mntonname[:]),
		From:   unix.ByteSliceToString(st.Mntfromname[:]),
		Type:   unix.ByteSliceToString(st.Fstypename[:]),
		Owners: st.Flags&unix.MNT_IGNORE_OWNERSHIP == 0,
	}, nil
}
