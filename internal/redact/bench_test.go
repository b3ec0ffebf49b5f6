package redact_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/runenv/action/internal/redact"
	"github.com/runenv/action/secret"
)

const benchBytes = 4 << 20

// values makes n values of 20 to 40 characters, as passwords and keys are.
func values(n int, shared string) []redact.Secret {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	var s []redact.Secret
	for i := range n {
		v := []byte(shared)
		for range 20 + rnd.IntN(21) - len(shared)/2 {
			v = append(v, alphabet[rnd.IntN(len(alphabet))])
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

// adversarialLog is full of heads that the values share.
func adversarialLog(shared string) []byte {
	rnd := rand.New(rand.NewPCG(3, 3))
	var b bytes.Buffer
	for b.Len() < benchBytes {
		b.WriteString(shared[:len(shared)-rnd.IntN(3)])
		b.WriteByte(byte('a' + rnd.IntN(26)))
	}
	return b.Bytes()[:benchBytes]
}

func bench(b *testing.B, w io.Writer, text []byte, piece int) {
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		for rest := text; len(rest) > 0; {
			n := min(piece, len(rest))
			if _, err := w.Write(rest[:n]); err != nil {
				b.Fatal(err)
			}
			rest = rest[n:]
		}
	}
}

// A copier is what a wrapper without redaction would do at least.
type copier struct{ buf []byte }

func (c copier) Write(p []byte) (int, error) { return copy(c.buf, p), nil }

const pipe = 64 << 10 // what one read of a pipe gives

func BenchmarkOrdinary(b *testing.B) {
	text := ordinaryLog()
	b.Run("copy", func(b *testing.B) { bench(b, copier{make([]byte, pipe)}, text, pipe) })
	for _, n := range []int{1, 10, 100, 1000} {
		r := redact.New(values(n, ""))
		b.Run(fmt.Sprintf("values=%d", n), func(b *testing.B) { bench(b, r.Writer(io.Discard), text, pipe) })
	}
}

func BenchmarkLines(b *testing.B) {
	text := ordinaryLog()
	for _, n := range []int{1, 10, 100, 1000} {
		r := redact.New(values(n, ""))
		b.Run(fmt.Sprintf("values=%d", n), func(b *testing.B) { bench(b, r.Writer(io.Discard), text, 100) })
	}
}

func BenchmarkSharedPrefix(b *testing.B) {
	const shared = "-----BEGIN-SHARED-PREFIX-----"
	text := adversarialLog(shared)
	for _, n := range []int{10, 1000} {
		r := redact.New(values(n, shared))
		b.Run(fmt.Sprintf("values=%d", n), func(b *testing.B) { bench(b, r.Writer(io.Discard), text, pipe) })
	}
}

// The log that is nothing but secrets.
func BenchmarkAllHits(b *testing.B) {
	s := values(10, "")
	var text bytes.Buffer
	for text.Len() < benchBytes {
		for _, v := range s {
			text.Write(v.Value.Reveal())
			text.WriteByte('\n')
		}
	}
	bench(b, redact.New(s).Writer(io.Discard), text.Bytes()[:benchBytes], pipe)
}

func BenchmarkNew(b *testing.B) {
	for _, n := range []int{10, 1000} {
		s := values(n, "")
		b.Run(fmt.Sprintf("values=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				redact.New(s)
			}
		})
	}
}
