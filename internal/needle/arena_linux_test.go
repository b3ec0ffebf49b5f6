package needle

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/runenv/action/secret"
)

// The needles' bytes are in no core dump, and in no process that is forked.
func TestT31NeedlesStayInThisProcess(t *testing.T) {
	t.Parallel()
	m := New([]Secret{{Lease: "l", Value: secret.FromString("a-value-to-find")}})
	at := uintptr(unsafe.Pointer(unsafe.SliceData(m.text.b)))
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	within := false
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		if _, err := fmt.Sscanf(line, "%x-%x ", &from, &to); err == nil {
			within = from <= at && at < to
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && within {
			has := strings.Fields(flags)
			if !slices.Contains(has, "dd") || !slices.Contains(has, "wf") && !slices.Contains(has, "dc") {
				t.Errorf("their memory has the flags %q, want dd, and wf or dc", has)
			}
			runtime.KeepAlive(m)
			return
		}
	}
	t.Error("their memory isn't found")
}
