//go:build unix

package needle

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/secret"
)

const benchBytes = 4 << 20

// cpuMB reports MB for each second of the process's own CPU time.
func cpuMB(b *testing.B, bytesEach int, f func()) {
	cpu := func() time.Duration {
		var u syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	b.ReportAllocs()
	best := time.Duration(1 << 62)
	for b.Loop() {
		before := cpu()
		for range 8 {
			f()
		}
		best = min(best, cpu()-before)
	}
	b.ReportMetric(float64(8*bytesEach)/1e6/best.Seconds(), "MB/cpu-s")
}

func ordinaryLog() []byte {
	rnd := rand.New(rand.NewPCG(2, 2))
	words := []string{"compiling", "package", "github.com/acme/shop-api/internal/server", "ok", "cached", "PASS", "error:", "warning:",
		"0.031s", "npm", "info", "using", "node@v20.11.1", "Downloading", "https://registry.example.com/lodash/-/lodash-4.17.21.tgz",
		"sha512-v2kDEe57lecTulaDIuNTPy3Ry4gLGJ6Z1O3vE1krgXZNrsQ+LFTGHVxVjcXPs17LhbZVGedAJv8XZ1tvj5FvSg==", "at", "Object.<anonymous>",
		"(/home/runner/shop/test.js:10:15)", "layer", "3f4a9c1b2d5e:", "Pull", "complete", "|####      |", "42%", "2026-11-23T10:00:00Z"}
	var b bytes.Buffer
	for b.Len() < benchBytes {
		for range 4 + rnd.IntN(12) {
			b.WriteString(words[rnd.IntN(len(words))])
			b.WriteByte(' ')
		}
		b.WriteByte('\n')
	}
	return b.Bytes()[:benchBytes]
}

func randomValues(n, size int, alphabet string) []Secret {
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	var s []Secret
	for i := range n {
		v := make([]byte, size)
		for j := range v {
			v[j] = alphabet[rnd.IntN(len(alphabet))]
		}
		s = append(s, Secret{fmt.Sprint(i), secret.New(v)})
	}
	return s
}

func BenchmarkFind(b *testing.B) {
	text := ordinaryLog()
	for _, size := range []int{6, 7, 8, 10, 12, 16, 20, 24, 32} {
		for _, n := range []int{1, 10, 100, 1000} {
			m := New(randomValues(n, size, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!$%&/"))
			b.Run(fmt.Sprintf("size=%d/values=%d/needles=%d", size, n, len(m.needles)), func(b *testing.B) {
				cpuMB(b, len(text), func() {
					for rest := text; len(rest) > 0; {
						k := min(len(rest), 64<<10)
						m.Find(rest[:k], true, func(int, int, int) {})
						rest = rest[k:]
					}
				})
			})
		}
	}
}
