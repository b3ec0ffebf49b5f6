package brokercli

import (
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// timerSlack is how late the kernel may wake the broker's sleeping threads; its
// own default is 50 µs. While anything runs, Go's runtime has a thread that
// sleeps for 20 µs at a time, and it was a sixth of what a lone short session
// cost. Nothing in the broker needs to wake to the microsecond.
const timerSlack = time.Millisecond

// relaxTimers sets the slack. A thread has it from the one that made it, and the
// runtime has made its own before any of our code runs: so the program is
// executed again, in its place, where that can work. After that it finds the
// slack set.
func relaxTimers(again func() error) error {
	if again == nil {
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// 0 is a real-time thread's, which has no slack.
	slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || slack == 0 || slack >= int(timerSlack) {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0); err != nil {
		return fmt.Errorf("setting the timer slack: %w", err)
	}
	// Were it not to stay, there would be no end of it.
	if slack, err = unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err != nil || slack != int(timerSlack) {
		return err
	}
	return again()
}
