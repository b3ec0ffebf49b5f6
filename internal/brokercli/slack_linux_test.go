package brokercli

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTimersAreRelaxedByOneMoreStart(t *testing.T) {
	t.Parallel()
	starts := 0
	again := func() error {
		starts++
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread goes with its slack
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 50_000, 0, 0, 0); err != nil {
			t.Error(err)
			return
		}
		for _, c := range []struct {
			again  func() error
			starts int
			slack  int
		}{{nil, 0, 50_000}, {again, 1, int(timerSlack)}, {again, 1, int(timerSlack)}} {
			if err := relaxTimers(c.again); err != nil {
				t.Error(err)
			}
			slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
			if err != nil || slack != c.slack || starts != c.starts {
				t.Errorf("%d starts with a slack of %d ns (%v), want %d with %d", starts, slack, err, c.starts, c.slack)
			}
		}
	}()
	<-done
}
