//go:build linux || darwin

package proc

import (
	"os"

	"golang.org/x/sys/unix"
)

// keys are read from a terminal until that is to end. A read can't be left to
// Go's poller: macOS's kqueue doesn't work with /dev/tty, and a read that blocks
// would end with the next key alone. select(2) works on both.
type keys struct{ end, ended *os.File }

func newKeys() (*keys, error) {
	ended, end, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &keys{end, ended}, nil
}

// read waits for keys.
func (k *keys) read(from *os.File, buf []byte) (int, error) {
	err := control(from, func(fd int) error {
		return control(k.ended, func(ended int) error {
			if max(fd, ended) >= unix.FD_SETSIZE {
				return nil // beyond select: the read waits
			}
			var ready unix.FdSet
			ready.Set(fd)
			ready.Set(ended)
			if _, err := unix.Select(max(fd, ended)+1, &ready, nil, nil, nil); err != nil {
				return err
			}
			if ready.IsSet(ended) {
				return os.ErrClosed
			}
			return nil
		})
	})
	if err != nil {
		return 0, err
	}
	return from.Read(buf)
}

// stop has read return, now and from now on.
func (k *keys) stop() { _ = k.end.Close() }

// close is for when nobody reads any more.
func (k *keys) close() { _ = k.ended.Close() }
