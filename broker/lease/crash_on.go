//go:build crashpoints

package lease

import (
	"os"
	"syscall"
)

// crash kills the process without any clean-up if RUNENV_CRASH_AT names the
// point: the tests' way of losing power between two instructions.
func crash(point string) {
	if os.Getenv("RUNENV_CRASH_AT") == point {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
