package leakscan

import (
	"math"
	"path/filepath"
	"time"
)

// hostSlack is taken off the machine's clock where a file system can't be
// asked for its own: file systems exist that round times down to two seconds.
const hostSlack = 2 * time.Second

// A Start is a point in time before a command, on the clocks of the file
// systems that will be searched. Files whose status changed at it or later have
// changed; a clock is coarse, so some that changed a few milliseconds before
// are among them.
type Start struct {
	at   time.Time         // by the clock that nobody can set
	wall int64             // the same by the other, in nanoseconds since 1970
	dev  map[uint64]int64  // by device: its time, likewise
	led  map[string]string // where each path led, past all symbolic links
}

// Begin marks the present for the file systems that the paths are on. It walks
// nothing. A file system that isn't this machine's own (NFS, a virtual
// machine's share) is asked for its time by a file that is gone at once. What
// lies on another file system below one of the paths, or on one of a path that
// wasn't there yet, counts as changed.
func Begin(paths ...string) *Start {
	now := time.Now()
	s := &Start{at: now, wall: now.UnixNano(), dev: map[uint64]int64{}, led: map[string]string{}}
	for _, path := range paths {
		s.led[path] = leads(path)
		if dev, at, ok := deviceTime(path); ok {
			if old, ok := s.dev[dev]; ok {
				at = min(at, old)
			}
			s.dev[dev] = at
		}
	}
	return s
}

// now is the start to compare with at the end of the command. If the machine's
// clock was set back meanwhile, files changed since then carry times that lie
// before the start by as much.
func (s *Start) now() *Start {
	if s == nil {
		return nil
	}
	end := time.Now()
	back := int64(end.Sub(s.at)) - (end.UnixNano() - s.wall)
	if back <= 0 {
		return s
	}
	moved := &Start{at: s.at, wall: s.wall, led: s.led, dev: make(map[uint64]int64, len(s.dev))}
	for dev, at := range s.dev {
		moved.dev[dev] = at - back
	}
	return moved
}

// of is the time from which what is on a device counts as changed.
func (s *Start) of(dev uint64) int64 {
	if s != nil {
		if at, ok := s.dev[dev]; ok {
			return at
		}
	}
	return math.MinInt64
}

// leads is where a path leads past all symbolic links; what isn't there leads
// to itself.
func leads(path string) string {
	var below []string
	for at := filepath.Clean(path); ; at = filepath.Dir(at) {
		if real, err := filepath.EvalSymlinks(at); err == nil {
			return filepath.Join(append([]string{real}, below...)...)
		}
		if filepath.Dir(at) == at {
			return filepath.Clean(path)
		}
		below = append([]string{filepath.Base(at)}, below...)
	}
}

// misled reports whether a path leads elsewhere than it did at the start.
func (s *Start) misled(path string) bool {
	if s == nil {
		return false
	}
	led, known := s.led[path]
	return known && led != leads(path)
}
