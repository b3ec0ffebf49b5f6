//go:build !linux

package guardian

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"time"
)

const (
	startLimit = 10 * time.Second // a loaded machine starts a process in well under one
	exitLimit  = 2 * time.Second

	readyByte = 'R'
	doneByte  = 'D'
	filesByte = 'F' // then the length of a path in four bytes, and the path
)

// A Handle is the wrapper's side of a guardian.
type Handle struct {
	process *os.Process
	life    *os.File // closing it without doneByte is the wrapper's death
	ready   *os.File
	unread  int // confirmations that are to come
	exited  chan struct{}
	state   *os.ProcessState // after exited
}

// Start starts a guardian, which has nothing to guard until [Handle.Guard]:
// its start can go on beside the opening of the session. exe is the program;
// "" is the running one. Call [Handle.Done] in the end.
func Start(exe string) (*Handle, error) {
	if exe == "" {
		var err error
		if exe, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("finding the guardian's program: %w", err)
		}
	}
	h, err := spawn(exe)
	if err != nil {
		return nil, fmt.Errorf("starting the guardian: %w", err)
	}
	return h, nil
}

// Guard hands the guardian its session. Once it has started it ends the session
// when the caller exits, however it does, unless [Handle.Done] came first. Ask
// [Handle.Watches] whether it has started before anything depends on that.
// After an error there is no guardian any more.
func (h *Handle) Guard(cfg Config) error {
	message, err := encode(wire{SessionURL: cfg.SessionURL, EndToken: cfg.EndToken.Reveal(), CAPEM: cfg.CAPEM})
	if err == nil {
		err = h.send(message)
		clear(message)
	}
	if err != nil {
		h.abandon()
		return fmt.Errorf("configuring the guardian: %w", err)
	}
	return nil
}

// Watches returns once the guardian has confirmed that it watches. After an
// error there is no guardian any more.
func (h *Handle) Watches() error {
	if err := h.confirmed(); err != nil {
		h.abandon()
		return fmt.Errorf("configuring the guardian: %w", err)
	}
	return nil
}

func (h *Handle) abandon() {
	_ = h.process.Kill()
	_ = h.life.Close()
	_ = h.ready.Close()
	<-h.exited
}

// spawn gives the guardian two pipes and nothing else: the wrapper's life as
// its standard input, and its standard output, for the ready byte. Our ends
// are close-on-exec: a command that inherited the first would keep the
// guardian waiting for ever.
func spawn(exe string) (*Handle, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()
	theirLife, life, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirLife.Close() }()
	ready, theirReady, err := os.Pipe()
	if err != nil {
		_ = life.Close()
		return nil, err
	}
	defer func() { _ = theirReady.Close() }()
	p, err := os.StartProcess(exe, []string{"runenv", argument}, &os.ProcAttr{
		Dir: rootDir, Env: environment(), Files: []*os.File{theirLife, theirReady, null}, Sys: detached(),
	})
	if err != nil {
		_ = life.Close()
		_ = ready.Close()
		return nil, err
	}
	h := &Handle{process: p, life: life, ready: ready, exited: make(chan struct{})}
	go func() {
		defer close(h.exited)
		h.state, _ = p.Wait() // nil if somebody else reaped it
	}()
	return h, nil
}

// Files tells the guardian of a folder of file secrets, to be removed if the
// caller dies, and returns once it knows. Call it after [Handle.Guard] and
// before the first secret lies there.
func (h *Handle) Files(dir string) error {
	if len(dir) > maxPathBytes {
		return errors.New("telling the guardian of a folder: its path is too long")
	}
	message := binary.BigEndian.AppendUint32([]byte{filesByte}, uint32(len(dir)))
	err := h.send(append(message, dir...))
	if err == nil {
		err = h.confirmed()
	}
	if err != nil {
		return fmt.Errorf("telling the guardian of a folder: %w", err)
	}
	return nil
}

// send sends a message, which will be confirmed.
func (h *Handle) send(message []byte) error {
	// Windows' pipes have no deadlines; there only a live guardian is bounded.
	_ = h.life.SetWriteDeadline(time.Now().Add(startLimit))
	if _, err := h.life.Write(message); err != nil {
		return fmt.Errorf("sending a message: %w", err)
	}
	h.unread++
	return nil
}

// confirmed waits until all that was sent is confirmed.
func (h *Handle) confirmed() error {
	_ = h.ready.SetReadDeadline(time.Now().Add(startLimit))
	for ; h.unread > 0; h.unread-- {
		var answer [1]byte
		if _, err := io.ReadFull(h.ready, answer[:]); err != nil || answer[0] != readyByte {
			return errors.New("it didn't confirm")
		}
	}
	return nil
}

// Done tells the guardian that the session has ended, or that there is none,
// and waits for its exit, for two seconds at most. The error says that the
// guardian died before, or had to be killed: the session has ended all the
// same. Call it once.
func (h *Handle) Done() error {
	_ = h.life.SetWriteDeadline(time.Now().Add(exitLimit))
	_, err := h.life.Write([]byte{doneByte})
	if err != nil {
		err = fmt.Errorf("dismissing the guardian: %w", err)
		_ = h.process.Kill() // or it would end the session when the pipe closes
	}
	_ = h.life.Close()
	_ = h.ready.Close()
	timer := time.NewTimer(exitLimit)
	defer timer.Stop()
	select {
	case <-h.exited:
	case <-timer.C:
		err = errors.New("dismissing the guardian: it had to be killed")
		_ = h.process.Kill()
		<-h.exited
	}
	return err
}

// takeOver returns when the wrapper is dead, or says that all is done: then
// there is no charge.
func takeOver() (*charge, error) {
	runtime.GOMAXPROCS(1) // it waits: more threads would only cost their start and end
	closeInherited()
	w, err := decode(os.Stdin)
	if err != nil {
		return nil, err
	}
	// A wrapper that died already shows in the next read.
	_, _ = os.Stdout.Write([]byte{readyByte})
	folders, done := watch(os.Stdin, os.Stdout)
	if done {
		return nil, nil
	}
	return &charge{w, folders}, nil
}

// watch returns when the wrapper says that all is done, or is dead.
func watch(life io.Reader, ready io.Writer) (folders []string, done bool) {
	for {
		var what [1]byte
		if _, err := io.ReadFull(life, what[:]); err != nil {
			return folders, false
		}
		switch what[0] {
		case doneByte:
			return folders, true
		case filesByte:
			path, err := readFrame(life, maxPathBytes)
			// A command that is started again gets a folder anew.
			folders = slices.DeleteFunc(folders, func(dir string) bool {
				_, err := os.Lstat(dir)
				return errors.Is(err, os.ErrNotExist)
			})
			if err != nil || len(folders) == maxFolders {
				return folders, false
			}
			folders = append(folders, string(path))
			_, _ = ready.Write([]byte{readyByte})
		default:
			return folders, false
		}
	}
}
