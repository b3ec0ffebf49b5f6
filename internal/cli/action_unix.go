//go:build unix

package cli

import (
	"os"
	"syscall"
)

// makeBlocking undoes what Node does to its streams. They stay so for whatever
// comes after it, and most programs take the EAGAIN that a full pipe then
// gives them for a failure. What isn't open stays so.
func makeBlocking(streams ...*os.File) {
	for _, f := range streams {
		if conn, err := f.SyscallConn(); err == nil {
			_ = conn.Control(func(fd uintptr) { _ = syscall.SetNonblock(int(fd), false) })
		}
	}
}
