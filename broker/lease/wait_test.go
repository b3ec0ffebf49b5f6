package lease_test

import (
	"sync"
	"testing"
)

// A broker that stops waits for ends under way while callers still begin new
// ones.
func TestEndsBeginWhileOthersAreWaitedFor(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.session()
	stop := make(chan struct{})
	var waiting, ending sync.WaitGroup
	for range 4 {
		waiting.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					r.engine.Wait()
				}
			}
		})
	}
	for range 4 {
		ending.Go(func() {
			for range 50 {
				if _, err := r.engine.End(t.Context(), s, "client", "r-1", 0); err != nil {
					t.Error(err)
				}
				<-r.events
			}
		})
	}
	ending.Wait()
	close(stop)
	waiting.Wait()
}
