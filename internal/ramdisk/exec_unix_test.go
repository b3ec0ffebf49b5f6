//go:build linux || darwin

package ramdisk

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestExecGivesOutputAndStatus(t *testing.T) {
	t.Parallel()
	out, err := Exec("/bin/sh", "-c", "echo /dev/disk4; echo warning >&2")
	if string(out) != "/dev/disk4\n" || err != nil {
		t.Errorf("Exec = %q, %v", out, err)
	}
	if _, err := Exec("/bin/sh", "-c", "exit 3"); err == nil {
		t.Error("a failure passes for success")
	}
	if _, err := Exec("/nowhere/hdiutil"); err == nil {
		t.Error("a program that isn't there passes for success")
	}
}

// The environment of a job holds what obtains tokens: no tool gets it.
func TestT29ToolsGetNoEnvironment(t *testing.T) {
	t.Setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "canary-of-the-environment")
	out, err := Exec("/usr/bin/env")
	if err != nil || strings.Contains(string(out), "canary") || !strings.Contains(string(out), "LC_ALL=C") {
		t.Errorf("a tool's environment is %q, %v", out, err)
	}
	if os.Getenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN") == "" {
		t.Error("there was nothing to be seen")
	}
}

func TestExecIsBounded(t *testing.T) {
	t.Parallel()
	if out, err := Exec("/bin/sh", "-c", "head -c 2000000 /dev/zero"); err == nil {
		t.Errorf("%d bytes are taken", len(out))
	}
	begin := time.Now()
	if _, err := run(50*time.Millisecond, "/bin/sh", "-c", "sleep 60 & wait"); err == nil || time.Since(begin) > 30*time.Second {
		t.Errorf("a tool that hangs: %v after %v", err, time.Since(begin))
	}
}
