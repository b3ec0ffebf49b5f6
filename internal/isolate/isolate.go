// Package isolate gives a command file secrets that no other process finds by
// their path: they lie on a memory file system that is mounted for the command
// and its descendants alone, in a mount namespace of their own, and that is
// gone with the last of them.
//
// [Stage.Start] stands in for [os.StartProcess]. It starts this program in
// another mode (see [Is]), which makes the namespace, mounts over the folder,
// says that it is ready, gets environment and files through a pipe, and then
// becomes the command: the process, its parent, its group and its terminal are
// those that the command would have had. Nothing secret is in an argument or in
// the environment of that mode, and the command inherits no descriptor of it.
//
// The mount never goes to a swap: tmpfs with noswap where the caller has
// CAP_SYS_ADMIN and Linux is 6.4 or newer, else ramfs. Without that capability
// the namespace belongs to a user namespace, in which the user has their own
// id and no capability that they lack outside: what needs a set-uid program (sudo) doesn't work in it.
//
// Where the system refuses, the files are handed over by [Stage.Fallback], or
// the command isn't started. Other systems than Linux refuse always.
package isolate

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/runenv/action/internal/filesecret"
)

// argument is what the mode's arguments begin with.
const argument = "__isolate"

// A File is one to be made in the folder, or a link if it has a target.
type File struct {
	Name    string // as [filesecret.Dir] takes it
	Content []byte
	Target  string
}

// A Stage is where one command gets its files.
type Stage struct {
	// Dir is the folder that is mounted over: the caller's own, and empty.
	Dir string
	// Files are what the command finds in it.
	Files []File
	// Fallback, if set, has the files in the folder without a mount, and is
	// told why. Without it the command isn't started where it can't be isolated.
	// It is called once.
	Fallback func(why error) error

	fellBack bool
}

// An Error says that the command wasn't started since it can't be isolated.
type Error struct{ why error }

func (e *Error) Error() string { return "isolating the command's file secrets: " + e.why.Error() }

func (e *Error) Unwrap() error { return e.why }

// An Interrupted error says that a signal ended the process before it was the
// command: what a terminal sends goes to the whole group. Nothing refused, so
// nothing falls back.
type Interrupted struct{ signal syscall.Signal }

func (e *Interrupted) Error() string { return "stopped by a signal: " + e.signal.String() }

// Signal is the one by which the command would have ended.
func (e *Interrupted) Signal() syscall.Signal { return e.signal }

// Hint names the cure.
func (e *Error) Hint() string { return hint }

// Start starts the command isolated. It has the signature of [os.StartProcess]
// and its errors, an [*Error] or an [*Interrupted]. It can be called again.
func (s *Stage) Start(path string, args []string, attr *os.ProcAttr) (*os.Process, error) {
	if s.fellBack {
		return os.StartProcess(path, args, attr)
	}
	p, err := s.start(path, args, attr)
	refused, ok := errors.AsType[*Error](err)
	if !ok || s.Fallback == nil {
		return p, err
	}
	if err := s.Fallback(refused.why); err != nil {
		return nil, err
	}
	s.fellBack = true
	return os.StartProcess(path, args, attr)
}

// Is reports whether a program with these arguments (os.Args, whole) was
// started to become an isolated command.
func Is(args []string) bool { return len(args) > 1 && args[1] == argument }

// A message is what crosses the pipe once the folder is ready: its length in
// four bytes, then JSON.
type message struct {
	Env   [][]byte // texts of JSON would have to be UTF-8
	Files []File
}

// maxMessageBytes has room for what the broker's wire can deliver.
const maxMessageBytes = 64 << 20

func encode(m message) ([]byte, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return nil, errors.New("the files can't be encoded")
	}
	defer clear(body)
	if len(body) > maxMessageBytes {
		return nil, errors.New("the files are too large")
	}
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))), body...), nil
}

func decode(r io.Reader) (message, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return message{}, errors.New("nothing came")
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxMessageBytes {
		return message{}, errors.New("a message is too large")
	}
	body := make([]byte, size)
	defer clear(body)
	if _, err := io.ReadFull(r, body); err != nil {
		return message{}, errors.New("a message was cut off")
	}
	var m message
	if json.Unmarshal(body, &m) != nil {
		return message{}, errors.New("a message can't be read")
	}
	return m, nil
}

// put makes the files.
func put(dir *filesecret.Dir, files []File) error {
	for _, f := range files {
		var err error
		if f.Target != "" {
			err = dir.Link(f.Name, f.Target)
		} else {
			_, err = dir.Write(f.Name, f.Content)
		}
		clear(f.Content)
		if err != nil {
			return err
		}
	}
	return nil
}
