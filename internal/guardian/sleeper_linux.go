package guardian

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startLimit is far more than a loaded machine takes for a fork.
const startLimit = 10 * time.Second

const (
	// The guardian's memory begins with places for folders, each a length in
	// four bytes and a path. A length of 0 is an empty place: it is written last
	// and alone, so that a wrapper killed in the middle leaves no half folder.
	// The configuration comes after the places, as long as it is.
	placeBytes  = 4 + maxPathBytes
	configAt    = maxFolders * placeBytes
	memoryBytes = configAt + 3*4 + maxConfigBytes
)

// A Handle is the wrapper's side of a guardian.
type Handle struct {
	pid     int
	life    int  // a socket: closing it without Done is the wrapper's death
	ready   bool // the guardian has said so
	memory  int  // what the guardian will read
	folders [maxFolders]string
}

// Start starts a guardian, which has nothing to guard until [Handle.Guard]. exe
// is the program that it is to be; "" is the running one, which may be replaced
// meanwhile. Call [Handle.Done] in the end.
func Start(exe string) (*Handle, error) {
	if exe == "" {
		exe = "/proc/self/exe"
	}
	h, err := fork(exe)
	if err != nil {
		return nil, fmt.Errorf("starting the guardian: %w", err)
	}
	return h, nil
}

// fork gives the sleeper what it is to become, its memory, and our life.
func fork(path string) (*Handle, error) {
	exe, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("finding its program: %w", err)
	}
	defer func() { _ = unix.Close(exe) }()
	memory, err := newMemory()
	if err != nil {
		return nil, fmt.Errorf("making its memory: %w", err)
	}
	life, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		_ = unix.Close(memory)
		return nil, fmt.Errorf("making its socket: %w", err)
	}
	defer func() { _ = unix.Close(life[0]) }()
	h := &Handle{life: life[1], memory: memory}
	s, free, err := newSleeper(life[0], memory, exe)
	if err == nil {
		syscall.ForkLock.Lock()
		pid, errno := s.forkBetweenZeros()
		syscall.ForkLock.Unlock()
		free()
		if h.pid = int(pid); errno != 0 {
			err = errno
		}
	}
	if err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

// takeOver reads what the wrapper left, which is dead.
func takeOver() (*charge, error) {
	b, err := io.ReadAll(io.LimitReader(os.Stdin, memoryBytes))
	if err != nil {
		return nil, err
	}
	return recall(b)
}

// recall refuses what a wrapper left unfinished: it has no session yet.
func recall(b []byte) (*charge, error) {
	if len(b) < configAt {
		return nil, io.ErrUnexpectedEOF
	}
	w, err := decode(bytes.NewReader(b[configAt:]))
	if err != nil {
		return nil, err
	}
	c := &charge{wire: w}
	for place := range slices.Chunk(b[:configAt], placeBytes) {
		switch size := binary.BigEndian.Uint32(place); {
		case size > maxPathBytes:
			return nil, errors.New("a path is too long")
		case size > 0:
			c.folders = append(c.folders, string(place[4:4+size]))
		}
	}
	return c, nil
}

// newMemory makes a file without a name, that nobody can execute.
func newMemory() (int, error) {
	fd, err := unix.MemfdCreate("runenv-guardian", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // before Linux 6.3
		return unix.MemfdCreate("runenv-guardian", unix.MFD_CLOEXEC)
	}
	return fd, err
}

func (h *Handle) close() {
	_ = unix.Close(h.life)
	_ = unix.Close(h.memory)
}

// Guard hands the guardian its session. Once it watches it ends the session when
// the caller exits, however it does, unless [Handle.Done] came first. Ask
// [Handle.Watches] whether it does before anything depends on that. After an
// error there is no guardian any more.
func (h *Handle) Guard(cfg Config) error {
	message, err := encode(wire{SessionURL: cfg.SessionURL, EndToken: cfg.EndToken.Reveal(), CAPEM: cfg.CAPEM})
	if err == nil {
		err = h.write(message, configAt)
		clear(message)
	}
	if err != nil {
		_ = h.Done()
		return fmt.Errorf("configuring the guardian: %w", err)
	}
	return nil
}

// Watches returns once the guardian has confirmed that it watches. After an
// error there is no guardian any more.
func (h *Handle) Watches() error {
	if err := h.confirmed(); err != nil {
		_ = h.Done()
		return fmt.Errorf("configuring the guardian: %w", err)
	}
	return nil
}

// confirmed waits for the word of the guardian, which has nothing else to say.
func (h *Handle) confirmed() error {
	for end := time.Now().Add(startLimit); !h.ready; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(h.life), Events: unix.POLLIN}}, int(max(0, time.Until(end)).Milliseconds()))
		if err == unix.EINTR && time.Now().Before(end) {
			continue
		}
		if n == 1 {
			n, _ = unix.Read(h.life, make([]byte, 1))
		}
		if n != 1 {
			return errors.New("it didn't confirm")
		}
		h.ready = true
	}
	return nil
}

// Files tells the guardian of a folder of file secrets, to be removed if the
// caller dies, and returns once it knows. Call it after [Handle.Guard] and
// before the first secret lies there.
func (h *Handle) Files(dir string) error {
	err := h.files(dir)
	if err == nil {
		err = h.confirmed()
	}
	if err != nil {
		return fmt.Errorf("telling the guardian of a folder: %w", err)
	}
	return nil
}

func (h *Handle) files(dir string) error {
	if len(dir) > maxPathBytes {
		return errors.New("its path is too long")
	}
	for i, old := range h.folders {
		// A command that is started again gets a folder anew.
		if old != "" {
			if _, err := os.Lstat(old); !errors.Is(err, fs.ErrNotExist) {
				continue
			}
		}
		at := int64(i) * placeBytes
		for _, w := range []struct {
			b  []byte
			at int64
		}{{make([]byte, 4), at}, {[]byte(dir), at + 4}, {binary.BigEndian.AppendUint32(nil, uint32(len(dir))), at}} {
			if err := h.write(w.b, w.at); err != nil {
				return err
			}
		}
		h.folders[i] = dir
		return nil
	}
	return fmt.Errorf("it knows %d already", maxFolders)
}

func (h *Handle) write(b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(h.memory, b, at)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("writing its memory: %w", err)
		}
		n = max(n, 0)
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// Done dismisses the guardian, since the session has ended or there is none,
// and waits for its exit: a sleeper is killed, which reaches a stopped one too. The error says that it died before: the session has
// ended all the same. Call it once.
func (h *Handle) Done() error {
	defer h.close()
	if h.gone() {
		return errors.New("dismissing the guardian: it had ended before")
	}
	err := unix.Kill(h.pid, unix.SIGKILL)
	if err == nil {
		_, err = h.reap(0)
	}
	if err != nil {
		return fmt.Errorf("dismissing the guardian: %w", err)
	}
	return nil
}

// gone reports whether the guardian has exited, or somebody else took its
// status.
func (h *Handle) gone() bool {
	pid, err := h.reap(unix.WNOHANG)
	return pid != 0 || err != nil
}

func (h *Handle) reap(options int) (pid int, err error) {
	for {
		if pid, err = unix.Wait4(h.pid, nil, options|unix.WALL, nil); err != unix.EINTR {
			return pid, err
		}
	}
}
