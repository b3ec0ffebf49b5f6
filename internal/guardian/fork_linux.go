//nolint:gosec // what is unsafe here is what a fork takes
package guardian

import (
	"errors"
	"os"
	"reflect"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The runtime keeps these for programs that fork as package syscall does.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

// What the kernel reads of a sleeper's, from the program's own constants.
const (
	sleeperName = "runenv-guardian\x00" // as long as a process's name can be
	programName = "runenv\x00"
	argumentZ   = argument + "\x00"
	rootDirZ    = "/\x00"
	openFilesZ  = "/proc/self/fd\x00"
	emptyZ      = "\x00"
	readyZ      = "R"
)

const (
	// stackUse is more than functions that can't grow their stack may use of
	// it: the linker holds them to 800 bytes together.
	stackUse = 1 << 10

	// programReach is more than the program's text and constants take, on both
	// sides of any function in them.
	programReach = 64 << 20

	// heapReach is more than the wrapper's heap takes, which begins where the
	// program is far away, on both sides of any stack in it.
	heapReach = 1 << 30
)

// A span of addresses.
type span struct{ from, to uintptr }

// A call of the kernel: its number and arguments.
type call [6]uintptr

// A sleeper is what the forked process needs. It lies on pages of its own:
// nothing of the wrapper's heap is left where it runs.
type sleeper struct {
	life, exe uintptr // descriptors

	core    unix.Rlimit
	ignore  [4]uintptr // the kernel's struct sigaction
	none    uint64     // a set of signals
	argv    [3]uintptr
	environ [1]uintptr
	settle  [7]call
	page    uintptr // the size of one
	kept    [3]span // whole pages: the program, this struct, the stack in use
	given   [2]span // whole pages: what the kernel began the stack with, the heap
	stack   span    // what of it is in use

	entries [1 << 10]byte // of a folder, as the kernel writes them
}

func newSleeper(life, memory, exe int) (s *sleeper, free func(), err error) {
	b, err := unix.Mmap(-1, 0, int(unsafe.Sizeof(sleeper{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, nil, err
	}
	free = func() { _ = unix.Munmap(b) }
	s = (*sleeper)(unsafe.Pointer(unsafe.SliceData(b)))
	s.life, s.exe = uintptr(life), uintptr(exe)
	s.page, s.ignore[0] = uintptr(os.Getpagesize()), sigIgn
	s.argv = [3]uintptr{address(programName), address(argumentZ)}
	s.settle = [...]call{
		{unix.SYS_PRCTL, unix.PR_SET_DUMPABLE},
		{unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, uintptr(unsafe.Pointer(&s.core))},
		{unix.SYS_PRCTL, unix.PR_SET_NAME, address(sleeperName)},
		{unix.SYS_SETSID},
		{unix.SYS_CHDIR, address(rootDirZ)},
		{unix.SYS_DUP3, uintptr(memory), 0},
		{unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&s.none)), 0, unsafe.Sizeof(s.none)},
	}
	here, code := uintptr(unsafe.Pointer(s)), reflect.ValueOf((*sleeper).fork).Pointer()
	s.kept[0] = s.pages(code-min(code, programReach), code+programReach)
	s.kept[1] = s.pages(here, here+unsafe.Sizeof(sleeper{}))
	if err := s.bounds(); err != nil {
		free()
		return nil, nil, err
	}
	return s, free, nil
}

func (s *sleeper) bounds() error {
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &s.core); err != nil {
		return err
	}
	s.core.Cur = min(1, s.core.Max) // as proc.HardenSelf does
	vector, err := unix.Auxv()
	if err != nil {
		return err
	}
	// Arguments and environment lie between these two.
	var random, name uintptr
	for _, v := range vector {
		switch v[0] {
		case atRandom:
			random = v[1]
		case atExecfn:
			name = v[1]
		}
	}
	if random == 0 || name < random {
		return errors.New("where its environment lies is unknown")
	}
	s.given[0] = s.pages(random, name+1)
	return nil
}

const (
	sigIgn  = 1
	signals = 64

	// Keys of the auxiliary vector.
	atRandom = 25 // bytes for the C library
	atExecfn = 31 // the program's name
)

// address is for constants, which stay where they are.
//
//go:norace
//go:nosplit
func address(s string) uintptr { return uintptr(unsafe.Pointer(unsafe.StringData(s))) }

// pages are the whole pages around some addresses.
//
//go:norace
//go:nosplit
func (s *sleeper) pages(from, to uintptr) span {
	return span{from &^ (s.page - 1), (to + s.page - 1) &^ (s.page - 1)}
}

// forkBetweenZeros forks where the stack on both sides of what the sleeper uses
// holds nothing: it keeps some of that.
//
//go:noinline
func (s *sleeper) forkBetweenZeros() (pid uintptr, errno syscall.Errno) {
	var above [2 * stackUse]byte
	cleanStack()
	pid, errno = s.fork()
	runtime.KeepAlive(&above)
	return pid, errno
}

// cleanStack overwrites the stack that a fork called next uses: other calls, and
// goroutines before this one, left there what they did.
//
//go:noinline
func cleanStack() {
	var b [2 * stackUse]byte
	clear(b[:])
	runtime.KeepAlive(&b)
}

// fork makes the process. From beforeFork on, parent and child may neither
// allocate nor grow their stack, and the runtime blocks all signals.
//
// The child never returns: it becomes the guardian when the wrapper's end of the
// socket closes, and exits where something fails, which [Handle.Watches] and
// [Handle.Done] see.
//
//go:norace
//go:nosplit
func (s *sleeper) fork() (pid uintptr, errno syscall.Errno) {
	s.bound()
	// Neither page tables nor pages of the heap are copied: not now, and not when
	// the wrapper writes to them next. A kernel that refuses costs time only.
	s.heap(unix.MADV_DONTFORK)
	beforeFork()
	// No flags, and no signal at its end: whoever waits for any child, or asks
	// whether there is one, doesn't meet it. (With none, the order in which an
	// architecture takes the arguments doesn't matter either.)
	pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, 0, 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		afterFork()
		s.heap(unix.MADV_DOFORK)
		return pid, errno
	}
	if s.deafen() && s.closeOthers() && s.forget() && s.wait() {
		_, _, _ = syscall.RawSyscall6(unix.SYS_EXECVEAT, s.exe, address(emptyZ), uintptr(unsafe.Pointer(&s.argv)),
			uintptr(unsafe.Pointer(&s.environ)), unix.AT_EMPTY_PATH, 0)
	}
	for {
		_, _, _ = syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 1, 0, 0, 0, 0, 0)
	}
}

// deafen has all signals ignored that can be: the runtime's handlers can't run
// here. The guardian proper begins with that, so what was sent before isn't
// delivered to it. Then it settles in.
//
//go:norace
//go:nosplit
func (s *sleeper) deafen() bool {
	for n := uintptr(1); n <= signals; n++ {
		// KILL and STOP refuse.
		_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGACTION, n, uintptr(unsafe.Pointer(&s.ignore)), 0, unsafe.Sizeof(s.none), 0, 0)
	}
	for i := range s.settle {
		c := &s.settle[i]
		if _, _, e := syscall.RawSyscall6(c[0], c[1], c[2], c[3], c[4], c[5], 0); e != 0 {
			return false
		}
	}
	return true
}

// closeOthers closes what the wrapper opened and what it inherited. Go's runtime
// opens the null device for standard output and error when the guardian proper
// begins. It doesn't ask close_range, which older kernels lack and older
// container engines forbid.
//
//go:norace
//go:nosplit
func (s *sleeper) closeOthers() bool {
	dir, _, e := syscall.RawSyscall6(unix.SYS_OPENAT, ^uintptr(0), address(openFilesZ), unix.O_RDONLY|unix.O_DIRECTORY, 0, 0, 0)
	if e != 0 {
		return false
	}
	for {
		n, _, e := syscall.RawSyscall6(unix.SYS_GETDENTS64, dir, uintptr(unsafe.Pointer(&s.entries)), unsafe.Sizeof(s.entries), 0, 0, 0)
		if e != 0 {
			return false
		}
		if n == 0 {
			_, _, _ = syscall.RawSyscall6(unix.SYS_CLOSE, dir, 0, 0, 0, 0, 0)
			return true
		}
		for i := uintptr(0); i+entryName < n; {
			if fd, ok := s.number(i + entryName); ok && fd != 0 && fd != s.life && fd != s.exe && fd != dir {
				_, _, _ = syscall.RawSyscall6(unix.SYS_CLOSE, fd, 0, 0, 0, 0, 0)
			}
			i += uintptr(*(*uint16)(unsafe.Pointer(&s.entries[i+entrySize])))
		}
	}
}

// Where an entry of a folder has its size and its name.
const (
	entrySize = 16
	entryName = 19
)

// number reads an entry's name.
//
//go:norace
//go:nosplit
func (s *sleeper) number(at uintptr) (n uintptr, ok bool) {
	for ; at < uintptr(len(s.entries)); at++ {
		c := s.entries[at]
		if c < '0' || c > '9' {
			return n, ok
		}
		n, ok = 10*n+uintptr(c-'0'), true
	}
	return 0, false
}

// forget gives back the heap, but for the part of the stack that is in use, and
// with it what the wrapper knows; and the arguments and the environment that it
// began with, which /proc shows as long as they are there: at a step's end a
// runner kills whoever has its mark among them.
//
// The rest stays: the kernel writes to what a C library told it of.
//
//go:norace
//go:nosplit
//go:nocheckptr
func (s *sleeper) forget() bool {
	for i := range s.given {
		if s.each(&s.given[i], unix.SYS_MUNMAP, 0) != 0 {
			return false
		}
	}
	// These pages hold parts of other stacks as well.
	var local uintptr
	for at := s.kept[2].from; at < s.kept[2].to; at += unsafe.Sizeof(at) {
		if at < s.stack.from || at >= s.stack.to {
			*(*uintptr)(unsafe.Add(unsafe.Pointer(&local), int(at)-int(uintptr(unsafe.Pointer(&local))))) = 0
		}
	}
	return true
}

// bound finds the stack in use, and the heap around it.
//
//go:norace
//go:nosplit
func (s *sleeper) bound() {
	var local uintptr
	here := uintptr(unsafe.Pointer(&local))
	s.stack = span{here - stackUse, here + stackUse}
	s.kept[2] = s.pages(s.stack.from, s.stack.to)
	s.given[1] = s.pages(here-min(here, heapReach), here+heapReach)
}

// heap advises the kernel on the heap.
//
//go:norace
//go:nosplit
func (s *sleeper) heap(advice uintptr) { _ = s.each(&s.given[1], unix.SYS_MADVISE, advice) }

// each calls the kernel for each part that isn't kept. Parts of it may not be
// mapped.
//
//go:norace
//go:nosplit
func (s *sleeper) each(all *span, number, third uintptr) (errno syscall.Errno) {
	for from := all.from; from < all.to; {
		next := span{all.to, all.to}
		for i := range s.kept {
			if k := &s.kept[i]; k.to > from && k.from < next.from {
				next = *k
			}
		}
		if next.from > from {
			if _, _, e := syscall.RawSyscall6(number, from, next.from-from, third, 0, 0, 0); e != 0 {
				errno = e
			}
		}
		from = next.to
	}
	return errno
}

// wait says that all is ready, and returns true when nobody has the socket's
// other end any more. A wrapper that hasn't read what it was told resets it.
//
//go:norace
//go:nosplit
func (s *sleeper) wait() bool {
	if _, _, e := syscall.RawSyscall6(unix.SYS_WRITE, s.life, address(readyZ), 1, 0, 0, 0); e != 0 && e != syscall.EPIPE {
		return false
	}
	for {
		n, _, e := syscall.RawSyscall6(unix.SYS_READ, s.life, uintptr(unsafe.Pointer(&s.entries)), 1, 0, 0, 0)
		if e == 0 && n == 0 || e == syscall.ECONNRESET {
			return true
		}
		if e != 0 && e != syscall.EINTR {
			return false
		}
	}
}
