package endpoint

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxSocketsBytes bounds a table of sockets: 150 bytes a line.
	maxSocketsBytes = 64 << 20
	// socketLooks is how often a table is read for a socket that must be in
	// it: what changes meanwhile can hide a line.
	socketLooks = 3
	// maxAncestors bounds a walk up.
	maxAncestors = 4096
	// ticksPerSecond is the unit of times in /proc (USER_HZ), the same on every
	// architecture that Go knows.
	ticksPerSecond = 100
)

var (
	errOtherUser = errors.New("who asks is another user")
	errStranger  = errors.New("who asks isn't a process that the command started")
	errNoPeer    = errors.New("who asks is gone")
)

// peers tells the command's processes from others: they are descendants of
// this process that it started after newPeers.
type peers struct {
	uid, pid int
	since    uint64     // ticks after the machine's start
	looking  sync.Mutex // one search of /proc at a time
}

func newPeers() (*peers, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return nil, fmt.Errorf("asking for the time since the machine's start: %w", err)
	}
	if _, err := processOf(os.Getpid()); err != nil {
		return nil, fmt.Errorf("who asks can't be told here: %w", err)
	}
	ticks := time.Duration(now.Nano()) / (time.Second / ticksPerSecond)
	return &peers{uid: os.Geteuid(), pid: os.Getpid(), since: uint64(ticks)}, nil
}

// check reports why the holder of the socket at the other end of a connection
// may not ask. remote is its end, local is ours.
func (p *peers) check(remote, local netip.AddrPort) error {
	p.looking.Lock()
	defer p.looking.Unlock()
	var found socket
	for range socketLooks {
		for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
			s, ok, err := lookUp(table, remote, local)
			if err != nil {
				return err
			}
			if ok {
				found = s
			}
		}
		if found.inode != 0 {
			break
		}
	}
	switch {
	case found.inode == 0:
		return errNoPeer
	case found.uid != p.uid:
		return errOtherUser
	}
	return p.held(found.inode)
}

func lookUp(table string, remote, local netip.AddrPort) (socket, bool, error) {
	f, err := os.Open(table)
	if errors.Is(err, os.ErrNotExist) {
		return socket{}, false, nil // a kernel without IPv6
	}
	if err != nil {
		return socket{}, false, fmt.Errorf("who asks can't be told: %w", err)
	}
	defer f.Close() //nolint:errcheck // it was read
	return findSocket(f, remote, local)
}

// A socket is a line of /proc/net/tcp.
type socket struct {
	uid   int
	inode uint64 // 0: nobody holds it any more
}

// findSocket finds the socket whose own end is local and whose other end is
// remote in a table of the kernel's.
func findSocket(r io.Reader, local, remote netip.AddrPort) (socket, bool, error) {
	lines := bufio.NewScanner(io.LimitReader(r, maxSocketsBytes))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 {
			continue
		}
		if l, ok := parseEnd(f[1]); !ok || l != local {
			continue
		}
		if r, ok := parseEnd(f[2]); !ok || r != remote {
			continue
		}
		uid, err1 := strconv.ParseUint(f[7], 10, 32)
		inode, err2 := strconv.ParseUint(f[9], 10, 64)
		if err1 != nil || err2 != nil {
			continue
		}
		return socket{int(uid), inode}, true, nil
	}
	if err := lines.Err(); err != nil {
		return socket{}, false, fmt.Errorf("who asks can't be told: reading the kernel's sockets: %w", err)
	}
	return socket{}, false, nil
}

// parseEnd reads 0100007F:1F90: an address as words in the machine's order of
// bytes, and a port. An IPv4 address in IPv6 becomes one of IPv4.
func parseEnd(s string) (netip.AddrPort, bool) {
	words, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(words)
	n, portErr := strconv.ParseUint(port, 16, 16)
	if err != nil || portErr != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), ok
}

// held looks for a process of the command that holds the socket.
func (p *peers) held(inode uint64) error {
	names, err := dirNames("/proc")
	if err != nil {
		return fmt.Errorf("who asks can't be told: %w", err)
	}
	all := map[int]process{}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if of, err := processOf(pid); err == nil {
			all[pid] = of
		}
	}
	want := "socket:[" + strconv.FormatUint(inode, 10) + "]"
	for pid := range all {
		if p.descends(all, pid) && holds(pid, want) {
			return nil
		}
	}
	return errStranger
}

// descends reports whether a process comes from one that this process started,
// or was given as an orphan, after newPeers. What it had before isn't the
// command's: a shell's background jobs stay with what the shell becomes.
func (p *peers) descends(all map[int]process, pid int) bool {
	for range maxAncestors {
		of, ok := all[pid]
		if !ok {
			return false
		}
		if of.parent == p.pid {
			return of.started >= p.since
		}
		pid = of.parent
	}
	return false
}

// A process is what /proc/PID/stat says of one.
type process struct {
	parent  int
	started uint64 // ticks after the machine's start
}

func processOf(pid int) (process, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return process{}, err
	}
	return parseStat(string(stat))
}

// parseStat reads past the program's name, which may hold anything.
func parseStat(stat string) (process, error) {
	_, rest, ok := cutLast(stat, ')')
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		return process{}, errors.New("a process's state of another form")
	}
	parent, err1 := strconv.Atoi(f[1])
	started, err2 := strconv.ParseUint(f[19], 10, 64)
	if err1 != nil || err2 != nil {
		return process{}, errors.New("a process's state of another form")
	}
	return process{parent, started}, nil
}

func cutLast(s string, sep byte) (before, after string, found bool) {
	i := strings.LastIndexByte(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// holds reports whether a process has a descriptor of that name.
func holds(pid int, want string) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	names, err := dirNames(dir)
	if err != nil {
		return false // it is gone, or not ours to read
	}
	for _, name := range names {
		if link, err := os.Readlink(filepath.Join(dir, name)); err == nil && link == want {
			return true
		}
	}
	return false
}

func dirNames(path string) ([]string, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer d.Close() //nolint:errcheck // it was read
	return d.Readdirnames(-1)
}
