//go:build !linux && !darwin

package needle

// newArena takes memory that may be swapped out.
func newArena(size int) arena { return arena{b: make([]byte, size)} }

func (a arena) free() { clear(a.b) }
