package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Program builds a program of this module, as `make build` builds ours, and
// returns its path. pkg is its folder under e2e.
func Program(tb testing.TB, pkg string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), filepath.Base(pkg))
	cmd := exec.CommandContext(tb.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./"+pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("building %s: %v\n%s", pkg, err, out)
	}
	return path
}

// clockTick is the unit of the times in /proc/PID/stat: USER_HZ, which is 100
// on every Linux that Go runs on.
const clockTick = time.Second / 100

// CPU is the processor time, user and system, that the running broker has
// used, to 10 ms. It needs Linux.
func (b *BrokerServer) CPU(tb testing.TB) time.Duration {
	tb.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.process.cmd.Process.Pid))
	if err != nil {
		tb.Fatal(err)
	}
	// proc(5): behind the name, which is in brackets and may hold anything,
	// the user's ticks are the 12th field and the system's the 13th.
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		tb.Fatalf("/proc/PID/stat has %d fields", len(fields))
	}
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			tb.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick
}
