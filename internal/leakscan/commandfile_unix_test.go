//go:build unix

package leakscan_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/runenv/action/internal/leakscan"
)

// The runner reads a file that the command made read-only, so it is cut too,
// for an ordinary user, whom the mode keeps from writing.
func TestT26ReadOnlyCommandFile(t *testing.T) {
	const child = "LEAKSCAN_TEST_READ_ONLY"
	if dir := os.Getenv(child); dir != "" {
		path := filepath.Join(dir, "file")
		write(t, path, []byte("A=1\nB="+value+"\n"))
		if err := os.Chmod(path, 0o444); err != nil {
			t.Fatal(err)
		}
		hits, err := leakscan.ScrubCommandFile(path, leakscan.Entries, needles(value))
		got, readErr := os.ReadFile(path)
		if err != nil || readErr != nil || len(hits) != 1 || string(got) != "A=1\n" {
			t.Errorf("hits %v, %v, left %q, %v", hits, err, got, readErr)
		}
		return
	}
	dir, err := os.MkdirTemp("", "leakscan-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), self, "-test.run=^TestT26ReadOnlyCommandFile$", "-test.v")
	cmd.Env = append(os.Environ(), child+"="+dir)
	if os.Getuid() == 0 {
		// The file itself, wherever it lies: another user may not go there.
		cmd.Path, cmd.Dir = "/proc/self/exe", "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("as an ordinary user: %v\n%s", err, out)
	}
}
