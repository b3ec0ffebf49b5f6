package guardian

import (
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/secret"
)

// What a run pays for a guardian that has nothing to do: wall time, and the
// processor time of this process and of the guardian.
func BenchmarkGuardian(b *testing.B) {
	cfg := Config{SessionURL: "https://broker.example.com/v1/session", EndToken: secret.FromString(endToken)}
	before := cpuTime(b)
	for b.Loop() {
		h, err := watched("", cfg)
		if err != nil {
			b.Fatal(err)
		}
		if err := h.Done(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var sum time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}
