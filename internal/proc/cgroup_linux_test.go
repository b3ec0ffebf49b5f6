package proc

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestOwnCgroup(t *testing.T) {
	t.Parallel()
	const whole = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
	tests := []struct{ name, self, mounts, want string }{
		{"a slice", "0::/user.slice/run-1.scope\n", whole, "/sys/fs/cgroup/user.slice/run-1.scope"},
		{"the root of a container", "0::/\n", whole, "/sys/fs/cgroup"},
		{"part of the tree is mounted", "0::/docker/abc/x\n", "30 24 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n", "/sys/fs/cgroup/x"},
		{"another part", "0::/docker/abc\n", "30 24 0:26 /docker/other /sys/fs/cgroup rw - cgroup2 cgroup rw\n", ""},
		{"version 1 alone", "4:memory:/x\n", "31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", ""},
		{"both, and 2 isn't mounted", "4:memory:/x\n0::/\n", "31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", ""},
		{"nothing", "", "", ""},
	}
	for _, tt := range tests {
		if got := ownCgroup(tt.self, tt.mounts); got != tt.want {
			t.Errorf("%s: ownCgroup = %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestCgroupIsKilledAndRemoved(t *testing.T) {
	t.Parallel()
	if c := cgroupIn(t.TempDir()); c != nil {
		t.Error("a folder that is no control group is taken for one")
	}
	c := &cgroup{path: t.TempDir()}
	kill := filepath.Join(c.path, "cgroup.kill")
	if err := os.WriteFile(kill, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.kill()
	if got, err := os.ReadFile(kill); err != nil || string(got) != "1" {
		t.Errorf("cgroup.kill = %q, %v, want 1", got, err)
	}
}

func TestWhatWasPreparedGoesWithoutAStart(t *testing.T) {
	t.Parallel()
	c := &cgroup{path: t.TempDir()}
	var err error
	if c.dir, err = os.Open(c.path); err != nil {
		t.Fatal(err)
	}
	_, err = Run(t.Context(), Config{Args: []string{"/no/such/command"}, Adopt: true, Prepared: &Prepared{cgroup: c}})
	if _, ok := errors.AsType[*StartError](err); !ok {
		t.Errorf("error = %v, want that nothing can be started", err)
	}
	if _, err := os.Stat(c.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control group is left: %v", err)
	}
}
