//go:build linux || darwin

package filesecret

import (
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A fifo gives content to each reader, as long as there are reads left. Every
// reader has a node of its own: with one for all, the reader before would get
// the next one's content too.
type fifo struct {
	path    string
	content []byte
	done    chan struct{}

	mu      sync.Mutex
	stopped bool
	current *os.File // that a reader reads
}

func (d *Dir) serve(name string, content []byte, reads int) error {
	_, _, done, err := d.parent(name)
	if err != nil {
		return err
	}
	defer done()
	path := filepath.Join(d.path, name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return err
	}
	f := &fifo{path: path, content: content, done: make(chan struct{})}
	d.served = append(d.served, f)
	go f.run(reads)
	return nil
}

func (f *fifo) run(reads int) {
	defer close(f.done)
	for ; reads > 0 && !f.isStopped(); reads-- {
		w, err := openWriter(f.path)
		if err != nil {
			return
		}
		if !f.begin(w) {
			_ = w.Close()
			return
		}
		// The next reader finds another node, or none.
		if reads == 1 {
			err = os.Remove(f.path)
		} else {
			err = f.renew()
		}
		if err == nil {
			_, _ = w.Write(f.content) // a reader that left has had its read
		}
		_ = w.Close()
		if err != nil {
			return
		}
	}
}

func (f *fifo) renew() error {
	next := f.path + ".next"
	if err := unix.Mkfifo(next, 0o600); err != nil {
		return err
	}
	return os.Rename(next, f.path)
}

// openWriter waits for a reader.
func openWriter(path string) (*os.File, error) {
	for {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			_ = unix.Close(fd)
			return nil, err
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

func (f *fifo) isStopped() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stopped
}

// begin makes w the one that stop cuts off.
func (f *fifo) begin(w *os.File) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current = w
	return !f.stopped
}

// stopLimit bounds the wait for a server that waits for a reader of a node that
// the command has unlinked: nobody can wake that one, and nobody read from it.
const stopLimit = 100 * time.Millisecond

// stop returns once nothing is written any more.
func (f *fifo) stop() {
	f.mu.Lock()
	f.stopped = true
	if f.current != nil {
		_ = f.current.SetWriteDeadline(time.Now())
	}
	f.mu.Unlock()
	// It may wait for a reader, or be about to.
	fd, err := unix.Open(f.path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	timer := time.NewTimer(stopLimit)
	defer timer.Stop()
	select {
	case <-f.done:
	case <-timer.C:
	}
	if err == nil {
		_ = unix.Close(fd)
	}
}
