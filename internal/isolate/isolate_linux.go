package isolate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runenv/action/internal/filesecret"
)

const hint = "leave --isolate=require out, or let this user make namespaces: Ubuntu 24.04 refuses them " +
	"(sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for runenv that has userns), and so do most containers"

const (
	startLimit = 10 * time.Second
	maxReason  = 512

	// What the mode says, a byte and what belongs to it. That it has become the
	// command shows in the end of the pipe.
	saysReady  = 'R' // the folder is mounted
	saysNo     = 'N' // why not
	saysBroken = 'E' // the number of the error by which the command can't be executed

	// lowestFD keeps our descriptors away from those that the command inherits
	// and from those that the start of a process uses for a moment.
	lowestFD = 100
)

// Namespaces, as an argument.
const (
	userAndMounts = "user"
	mountsOnly    = "mounts"
)

func (s *Stage) start(path string, args []string, attr *os.ProcAttr) (*os.Process, error) {
	p, err := s.launch(path, args, attr)
	if err != nil {
		return nil, err
	}
	if err := s.hand(p, attr.Env); err != nil {
		_ = p.process.Kill()
		state, _ := p.process.Wait() // nil if somebody else reaped it
		if sig := interruption(state); sig != 0 {
			return nil, &Interrupted{sig}
		}
		return nil, err
	}
	return p.process, nil
}

// interruption is the signal that ended a process, if it is one by which people
// and CIs end a command; else 0.
func interruption(state *os.ProcessState) syscall.Signal {
	if state == nil {
		return 0
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || !slices.Contains([]syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM}, status.Signal()) {
		return 0
	}
	return status.Signal()
}

// A launched process is one in the mode, and the pipes to and from it.
type launched struct {
	process  *os.Process
	in, says *os.File
}

func (s *Stage) launch(path string, args []string, attr *os.ProcAttr) (*launched, error) {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, &Error{err}
	}
	defer func() { _ = theirIn.Close() }()
	says, theirSays, err := os.Pipe()
	if err != nil {
		_ = in.Close()
		return nil, &Error{err}
	}
	defer func() { _ = theirSays.Close() }()
	p := &launched{in: in, says: says}
	if err := p.launch(s.Dir, path, args, attr, theirIn, theirSays); err != nil {
		_ = in.Close()
		_ = says.Close()
		return nil, &Error{err}
	}
	return p, nil
}

// launch starts the mode where the command is to be. The pipes keep numbers of
// their own: 3 and 4 may be the command's, from its caller's shell.
func (p *launched) launch(dir, path string, args []string, attr *os.ProcAttr, in, says *os.File) error {
	var fds [2]int
	for i, f := range []*os.File{in, says} {
		fd, err := inheritable(f)
		if err != nil {
			return fmt.Errorf("passing a pipe on: %w", err)
		}
		defer func() { _ = unix.Close(fd) }()
		fds[i] = fd
	}
	sys := syscall.SysProcAttr{}
	if attr.Sys != nil {
		sys = *attr.Sys
	}
	namespaces, own := mountsOnly, capabilities()
	sys.Cloneflags |= unix.CLONE_NEWNS
	if own&(1<<unix.CAP_SYS_ADMIN) == 0 {
		// Its exec as a user without capabilities keeps these, which count in the
		// new namespace alone: to mount, and to take the rest from root's command.
		namespaces = userAndMounts
		sys.Cloneflags |= unix.CLONE_NEWUSER
		sys.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP}
	}
	argv := append([]string{
		"runenv", argument, namespaces, strconv.Itoa(os.Geteuid()), strconv.Itoa(os.Getegid()),
		strconv.Itoa(int(sys.Pdeathsig)), strconv.FormatUint(own, 10), strconv.Itoa(fds[0]), strconv.Itoa(fds[1]), dir, path,
	}, args...)
	var err error
	p.process, err = os.StartProcess("/proc/self/exe", argv, &os.ProcAttr{Dir: attr.Dir, Env: []string{}, Files: attr.Files, Sys: &sys})
	return err
}

// inheritable is another descriptor of f, which isn't closed on exec.
func inheritable(f *os.File) (fd int, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := conn.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD, lowestFD) })
	return fd, errors.Join(cerr, err)
}

// capabilities are those of this process, a bit for each.
func capabilities() uint64 {
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if unix.Capget(&header, &data[0]) != nil {
		return 0
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective)
}

// hand waits until the folder is ready, hands over what the command gets, and
// waits until the command is there.
func (s *Stage) hand(p *launched, env []string) error {
	defer func() { _, _ = p.in.Close(), p.says.Close() }()
	end := time.Now().Add(startLimit)
	_ = p.in.SetWriteDeadline(end)
	_ = p.says.SetReadDeadline(end)
	var what [1]byte
	if _, err := io.ReadFull(p.says, what[:]); err != nil {
		return &Error{errors.New("the system ended the process that was to do it")}
	}
	if what[0] != saysReady {
		return p.refusal(what[0])
	}
	m := message{Files: s.Files}
	for _, kv := range env {
		m.Env = append(m.Env, []byte(kv))
	}
	body, err := encode(m)
	if err != nil {
		return &Error{err}
	}
	_, err = p.in.Write(body)
	clear(body)
	if err != nil {
		return &Error{errors.New("the files couldn't be handed over")}
	}
	switch _, err := io.ReadFull(p.says, what[:]); {
	case err == io.EOF:
		return nil // it is the command now
	case err != nil:
		return &Error{errors.New("the command didn't start in time")}
	}
	return p.refusal(what[0])
}

func (p *launched) refusal(what byte) error {
	rest, err := io.ReadAll(io.LimitReader(p.says, maxReason))
	switch {
	case what == saysBroken && len(rest) == 4 && err == nil:
		return syscall.Errno(binary.BigEndian.Uint32(rest))
	case what == saysNo && err == nil:
		return &Error{errors.New(string(rest))}
	}
	return &Error{errors.New("the answer can't be read")}
}

// Main is the mode: it becomes the command, or returns the exit code of a
// process that nobody waits for.
func Main(args []string) int {
	// Capabilities, and the signal at the parent's death, are a thread's own.
	runtime.LockOSThread()
	a, err := parse(args)
	if err != nil {
		return 1
	}
	dir, err := a.isolate()
	if err != nil {
		return a.no(err)
	}
	if _, err := a.says.Write([]byte{saysReady}); err != nil {
		return 1
	}
	m, err := decode(a.in)
	if err != nil {
		return a.no(err)
	}
	_ = a.in.Close()
	if err := put(dir, m.Files); err != nil {
		return a.no(err)
	}
	if err := a.drop(); err != nil {
		return a.no(err)
	}
	env := make([]string, len(m.Env))
	for i, kv := range m.Env {
		env[i] = string(kv)
	}
	err = syscall.Exec(a.path, a.args, env)
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		errno = syscall.EINVAL // a NUL byte in an argument
	}
	_, _ = a.says.Write(binary.BigEndian.AppendUint32([]byte{saysBroken}, uint32(errno)))
	return 1
}

// arguments are the mode's.
type arguments struct {
	namespaces string
	uid, gid   int
	orphaned   syscall.Signal // what it is to get when its parent ends
	own        uint64         // the capabilities that its caller has
	in, says   *os.File
	dir, path  string
	args       []string
}

func parse(args []string) (*arguments, error) {
	if len(args) < 12 {
		return nil, errors.New("too few arguments")
	}
	var numbers [6]int
	for i, text := range args[3:9] {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return nil, errors.New("not a number")
		}
		numbers[i] = n
	}
	if !slices.Contains([]string{userAndMounts, mountsOnly}, args[2]) {
		return nil, errors.New("not such namespaces")
	}
	for _, fd := range numbers[4:] {
		unix.CloseOnExec(fd)
	}
	return &arguments{
		namespaces: args[2], uid: numbers[0], gid: numbers[1],
		orphaned: syscall.Signal(numbers[2]), own: uint64(numbers[3]),
		in: os.NewFile(uintptr(numbers[4]), "in"), says: os.NewFile(uintptr(numbers[5]), "says"),
		dir: args[9], path: args[10], args: args[11:],
	}, nil
}

func (a *arguments) no(why error) int {
	text := why.Error()
	_, _ = a.says.Write(append([]byte{saysNo}, text[:min(len(text), maxReason)]...))
	return 1
}

// isolate mounts a memory file system over the folder, for this process and
// its descendants.
func (a *arguments) isolate() (*filesecret.Dir, error) {
	if a.namespaces == userAndMounts {
		if err := a.mapIDs(); err != nil {
			return nil, fmt.Errorf("making a user namespace: %w", err)
		}
	}
	// From here on other processes of this user can't look in. It is undone
	// when the command is executed.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("making the process non-dumpable: %w", err)
	}
	// What is mounted outside later on is to be seen inside, and not the other
	// way round.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return nil, fmt.Errorf("making mounts private: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	err := unix.Mount("tmpfs", a.dir, "tmpfs", flags, "mode=0700,nr_inodes=4096,size=256m,noswap")
	if err != nil {
		// An older kernel, or a user namespace: the option isn't known.
		err = unix.Mount("ramfs", a.dir, "ramfs", flags, "mode=0700")
	}
	if err != nil {
		return nil, fmt.Errorf("mounting a memory file system: %w", err)
	}
	return filesecret.Enter(a.dir)
}

// mapIDs makes the user's own id stand for itself.
func (a *arguments) mapIDs() error {
	for _, m := range []struct{ file, text string }{
		{"/proc/self/uid_map", fmt.Sprintf("%d %d 1", a.uid, a.uid)},
		{"/proc/self/setgroups", "deny"},
		{"/proc/self/gid_map", fmt.Sprintf("%d %d 1", a.gid, a.gid)},
	} {
		if err := os.WriteFile(m.file, []byte(m.text), 0); err != nil {
			return err
		}
	}
	return nil
}

// drop takes away what the command isn't to inherit, and gives it what it would
// have had. The first thread got the signal from the process that made it.
func (a *arguments) drop() error {
	if a.namespaces == userAndMounts {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
			return fmt.Errorf("dropping capabilities: %w", err)
		}
		if err := a.bound(); err != nil {
			return fmt.Errorf("dropping capabilities: %w", err)
		}
		var data [2]unix.CapUserData
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		if err := unix.Capset(&header, &data[0]); err != nil {
			return fmt.Errorf("dropping capabilities: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(a.orphaned), 0, 0, 0); err != nil {
		return fmt.Errorf("asking for a signal at the parent's death: %w", err)
	}
	return nil
}

// bound keeps root to the capabilities that it had: when it executes a program
// it gets all of the namespace's. Others get those of the program's file alone,
// which wouldn't start if it couldn't have them.
func (a *arguments) bound() error {
	if a.uid != 0 {
		return nil
	}
	for c := range uintptr(64) {
		if a.own&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); errors.Is(err, unix.EINVAL) {
			return nil // the kernel knows no more of them
		} else if err != nil {
			return err
		}
	}
	return nil
}
