//go:build unix

package redact_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/internal/redact"
	"github.com/runenv/action/secret"
)

const benchBytes = 4 << 20

const (
	plainLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	oddLetters   = plainLetters + "!#$%&*+/=?@\"'\\ "
)

// values makes n values of low to high characters behind what they share.
// Every other one has punctuation, so that it has all the encodings.
func values(n, low, high int, shared string) []redact.Secret {
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	var s []redact.Secret
	for i := range n {
		letters := []string{plainLetters, oddLetters}[i%2]
		v := []byte(shared)
		for range low + rnd.IntN(high-low+1) {
			v = append(v, letters[rnd.IntN(len(letters))])
		}
		s = append(s, redact.Secret{Lease: fmt.Sprintf("lease-%d", i), Value: secret.New(v)})
	}
	return s
}

// ordinaryLog is what builds and tests print.
func ordinaryLog() []byte {
	rnd := rand.New(rand.NewPCG(2, 2))
	words := []string{"compiling", "package", "github.com/acme/shop-api/internal/server", "ok", "cached", "PASS", "error:", "warning:",
		"0.031s", "npm", "info", "using", "node@v20.11.1", "Downloading", "https://registry.example.com/lodash/-/lodash-4.17.21.tgz",
		"sha512-v2kDEe57lecTulaDIuNTPy3Ry4gLGJ6Z1O3vE1krgXZNrsQ+LFTGHVxVjcXPs17LhbZVGedAJv8XZ1tvj5FvSg==", "at", "Object.<anonymous>",
		"(/home/runner/shop/test.js:10:15)", "layer", "3f4a9c1b2d5e:", "Pull", "complete", "|####      |", "42%", "2026-11-23T10:00:00Z"}
	return repeat(func(b *bytes.Buffer) {
		for range 4 + rnd.IntN(12) {
			b.WriteString(words[rnd.IntN(len(words))])
			b.WriteByte(' ')
		}
		b.WriteByte('\n')
	})
}

func repeat(part func(*bytes.Buffer)) []byte {
	var b bytes.Buffer
	for b.Len() < benchBytes {
		part(&b)
	}
	return b.Bytes()[:benchBytes]
}

// bench writes the text in pieces and reports the best speed seen, for each
// second of the process's own CPU time: other work on the machine doesn't
// count.
func bench(b *testing.B, w io.Writer, text []byte, piece int) {
	b.ReportAllocs()
	best := time.Duration(1 << 62)
	for b.Loop() {
		before := cpuTime(b)
		for rest := text; len(rest) > 0; {
			n := min(piece, len(rest))
			if _, err := w.Write(rest[:n]); err != nil {
				b.Fatal(err)
			}
			rest = rest[n:]
		}
		best = min(best, cpuTime(b)-before)
	}
	b.ReportMetric(float64(len(text))/1e6/best.Seconds(), "MB/cpu-s")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A copier is what a wrapper without redaction would do at least.
type copier struct{ buf []byte }

func (c copier) Write(p []byte) (int, error) { return copy(c.buf, p), nil }

// A replacer is what is at hand in Go: it knows no encodings and no splits.
type replacer struct{ r *strings.Replacer }

func (r replacer) Write(p []byte) (int, error) {
	_, err := r.r.WriteString(io.Discard, string(p))
	return len(p), err
}

func newReplacer(secrets []redact.Secret) replacer {
	var pairs []string
	for _, s := range secrets {
		pairs = append(pairs, string(s.Value.Reveal()), "[REDACTED:"+s.Lease+"]")
	}
	return replacer{strings.NewReplacer(pairs...)}
}

const pipe = 64 << 10 // what one read of a pipe gives

func benchValues(b *testing.B, text []byte, piece int, numbers []int, make func(n int) []redact.Secret) {
	for _, n := range numbers {
		b.Run(fmt.Sprintf("values=%d", n), func(b *testing.B) {
			w := redact.New(make(n)).Writer(io.Discard)
			bench(b, w, text, piece)
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func long(n int) []redact.Secret { return values(n, 20, 40, "") }

func BenchmarkOrdinary(b *testing.B) {
	text := ordinaryLog()
	b.Run("copy", func(b *testing.B) { bench(b, copier{make([]byte, pipe)}, text, pipe) })
	for _, n := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("replacer=%d", n), func(b *testing.B) { bench(b, newReplacer(long(n)), text, pipe) })
	}
	benchValues(b, text, pipe, []int{1, 10, 100, 1000}, long)
}

func BenchmarkEightBytes(b *testing.B) {
	benchValues(b, ordinaryLog(), pipe, []int{1, 10, 100, 1000}, func(n int) []redact.Secret { return values(n, 8, 8, "") })
}

func BenchmarkSixBytes(b *testing.B) {
	benchValues(b, ordinaryLog(), pipe, []int{1, 10, 100}, func(n int) []redact.Secret { return values(n, 6, 6, "") })
}

func BenchmarkLines(b *testing.B) { benchValues(b, ordinaryLog(), 100, []int{1, 10, 100, 1000}, long) }

// The log is full of heads that the values share.
func BenchmarkSharedPrefix(b *testing.B) {
	const shared = "-----BEGIN-SHARED-PREFIX-----"
	rnd := rand.New(rand.NewPCG(3, 3))
	text := repeat(func(b *bytes.Buffer) {
		b.WriteString(shared[:len(shared)-rnd.IntN(3)])
		b.WriteByte(byte('a' + rnd.IntN(26)))
	})
	many := func(n int) []redact.Secret { return values(n, 6, 26, shared) }
	b.Run("replacer=100", func(b *testing.B) { bench(b, newReplacer(many(100)), text, pipe) })
	benchValues(b, text, pipe, []int{10, 100, 1000}, many)
}

// The log is all values but for the last byte of each.
func BenchmarkNearMiss(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		s, i := long(n), 0
		text := repeat(func(b *bytes.Buffer) {
			v := s[i%n].Value.Reveal()
			b.Write(v[:len(v)-1])
			b.WriteByte('\n')
			i++
		})
		benchValues(b, text, pipe, []int{n}, long)
	}
}

// The log and the values are one byte over and over, so that a value's head
// is everywhere.
func BenchmarkOneByte(b *testing.B) {
	text := repeat(func(b *bytes.Buffer) { b.WriteByte('a') })
	benchValues(b, text, pipe, []int{10, 100}, func(n int) []redact.Secret { return values(n, 6, 26, strings.Repeat("a", 30)) })
}

// The log is nothing but values.
func BenchmarkAllHits(b *testing.B) {
	s, i := long(10), 0
	text := repeat(func(b *bytes.Buffer) {
		b.Write(s[i%10].Value.Reveal())
		b.WriteByte('\n')
		i++
	})
	benchValues(b, text, pipe, []int{10}, long)
}
