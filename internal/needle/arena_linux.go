package needle

import "golang.org/x/sys/unix"

// keepHere keeps memory out of core dumps, and out of a guardian that is forked
// later.
func keepHere(b []byte) {
	_ = unix.Madvise(b, unix.MADV_DONTDUMP)
	if unix.Madvise(b, unix.MADV_WIPEONFORK) != nil { // before Linux 4.14, and in gVisor
		_ = unix.Madvise(b, unix.MADV_DONTFORK)
	}
}
