package guardian

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestT31GuardianIsHardened(t *testing.T) {
	t.Parallel()
	h := start(t, Config{SessionURL: newBroker(t).URL})
	dir := "/proc/" + strconv.Itoa(h.process.Pid)
	limits, err := os.ReadFile(dir + "/limits")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && f[4] != "1" && f[5] != "0" {
			t.Errorf("the core limit is %s, want 1", f[4])
		}
	}
	if os.Getuid() != 0 { // root reads everything
		if _, err := os.ReadFile(dir + "/environ"); err == nil {
			t.Error("the guardian is dumpable: its /proc entries can be read")
		}
	}
	if args, err := os.ReadFile(dir + "/cmdline"); err == nil && strings.Contains(string(args), endToken) {
		t.Error("the end token is in the arguments")
	}
	if err := h.Done(); err != nil {
		t.Error(err)
	}
}
