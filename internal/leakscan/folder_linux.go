package leakscan

import "golang.org/x/sys/unix"

const (
	seekData = unix.SEEK_DATA
	seekHole = unix.SEEK_HOLE
)

// keepsFiles reports whether a folder is on a file system that holds what was
// written to it; those through which the kernel is spoken to don't, and reading
// them may have effects, or no end.
func keepsFiles(f *folder) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(f.fd, &st) != nil {
		return true
	}
	switch int64(st.Type) { //nolint:unconvert // its type depends on the architecture
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC,
		unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.SELINUX_MAGIC,
		unix.EFIVARFS_MAGIC, unix.BINFMTFS_MAGIC, unix.PSTOREFS_MAGIC, unix.NSFS_MAGIC:
		return false
	}
	return true
}
