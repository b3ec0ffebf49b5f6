//go:build unix

package needle

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/secret"
)

// randomValues has punctuation in every other value.
func randomValues(n int) []Secret {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_!#$%&*+/=?@\"'\\ "
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	var s []Secret
	for i := range n {
		v := make([]byte, 20+rnd.IntN(21))
		for j := range v {
			v[j] = letters[rnd.IntN(len(letters)-15*(1-i%2))]
		}
		s = append(s, Secret{Lease: fmt.Sprint("lease-", i), Value: secret.New(v)})
	}
	return s
}

// BenchmarkNew shows the needles and the memory of a set too. To compile it is
// on the way of every run.
func BenchmarkNew(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		s := randomValues(n)
		b.Run(fmt.Sprintf("values=%d", n), func(b *testing.B) {
			var m *Set
			best := time.Duration(1 << 62)
			for b.Loop() {
				before := cpuTime(b)
				m = New(s)
				best = min(best, cpuTime(b)-before)
			}
			b.ReportMetric(float64(best.Nanoseconds())/1000, "cpu-µs")
			b.ReportMetric(float64(len(m.needles)), "needles")
			b.ReportMetric(float64(m.memory())/1024, "KiB")
		})
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
