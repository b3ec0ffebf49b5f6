//go:build linux || darwin

package needle

import "golang.org/x/sys/unix"

// newArena maps memory that is swapped out and dumped only where the system
// insists: both are asked for and not needed, since RLIMIT_MEMLOCK may be
// small.
func newArena(size int) arena {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return arena{b: make([]byte, size)}
	}
	_ = unix.Mlock(b)
	keepHere(b)
	return arena{b, true}
}

// free wipes and unmaps.
func (a arena) free() {
	clear(a.b)
	if a.mapped {
		_ = unix.Munmap(a.b)
	}
}
