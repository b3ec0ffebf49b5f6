package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/runenv/action/secret"
)

// naive redacts the whole text at once by trying every needle everywhere.
func naive(set *needleSet, markers [][]byte, text []byte) string {
	var out []byte
	byHead := map[byte][]string{}
	for n := range set.lease {
		byHead[n[0]] = append(byHead[n[0]], n)
	}
	until, last := 0, int32(-1)
	for start := range text {
		if start > until {
			last = -1
		}
		best, lease := 0, int32(0)
		for _, n := range byHead[text[start]] {
			if len(n) > best && bytes.HasPrefix(text[start:], []byte(n)) {
				best, lease = len(n), set.lease[n]
			}
		}
		if best > 0 {
			if start > until || start == until && lease != last {
				out = append(out, markers[lease]...)
				last = lease
			}
			until = max(until, start+best)
		}
		if start >= until {
			out = append(out, text[start])
		}
	}
	return string(out)
}

// split writes text in random parts.
func split(t *testing.T, r *Redactor, text []byte, rnd *rand.Rand) string {
	t.Helper()
	var out bytes.Buffer
	w := r.Writer(&out)
	for rest := text; len(rest) > 0; {
		n := 1 + rnd.IntN(min(len(rest), 1+rnd.IntN(20)))
		if got, err := w.Write(rest[:n]); got != n || err != nil {
			t.Fatalf("Write = %d, %v, want %d, nil", got, err, n)
		}
		if len(w.held) > maxNeedle {
			t.Fatalf("%d bytes are held back, want at most %d", len(w.held), maxNeedle)
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func FuzzAgainstNaive(f *testing.F) {
	f.Add("abcabdabc", "second-value", "xx abcabcabdabc second-value", uint64(1))
	f.Add("aaaaaaa", "aaaaaaaaaaaa", "aaaaaaaaaaaaaaaaaaaaaaaaaab", uint64(2))
	f.Add("line one\nline two\r\n x", "\x00\x00\x00\x00\x00\x00", "line two\x00\x00\x00\x00\x00\x00\x00", uint64(3))
	f.Add(strings.Repeat("long value ", 20), "ng value", strings.Repeat("long value ", 41), uint64(4))
	f.Add("qu\"o/<te>%", "12345", `qu\"o\/<te>% qu\"o/\u003cte\u003e% qu%22o%2f%3cte%3e%25`, uint64(5))
	f.Fuzz(func(t *testing.T, a, b, text string, seed uint64) {
		if len(a)+len(b)+len(text) > 1000 {
			return // the reference is slow
		}
		rnd := rand.New(rand.NewPCG(seed, seed))
		// Values must turn up: splice them and their encodings into the text.
		parts := []string{a, b, hex.EncodeToString([]byte(a)), base64.StdEncoding.EncodeToString([]byte(b)), a[:len(a)/2], b[len(b)/2:]}
		full := []byte(text)
		for range rnd.IntN(6) {
			at := rnd.IntN(len(full) + 1)
			full = append(full[:at:at], parts[rnd.IntN(len(parts))]+string(full[at:])...)
		}
		secrets := []Secret{{"a", secret.FromString(a)}, {"b", secret.FromString(b)}}
		r := New(secrets)
		set := newNeedleSet()
		set.addValue([]byte(a), 0)
		set.addValue([]byte(b), 1)
		want := naive(set, [][]byte{[]byte("[REDACTED:a]"), []byte("[REDACTED:b]")}, full)
		if got := string(r.Bytes(full)); got != want {
			t.Fatalf("Bytes(%q) = %q, want %q", full, got, want)
		}
		if got := split(t, r, full, rnd); got != want {
			t.Fatalf("split: %q, want %q", got, want)
		}
	})
}

// With many values the tables differ in kind; the result may not.
func TestManyNeedlesAgainstNaive(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(7, 7))
	for _, count := range []int{1, 3, 30, 120} {
		for _, alphabet := range []string{"ab", "abcdefghijklmnopqrstuvwxyz0123456789+/\"\\% \n"} {
			set := newNeedleSet()
			var secrets []Secret
			var markers [][]byte
			var values []string
			for i := range count {
				v := make([]byte, 6+rnd.IntN(30))
				for j := range v {
					v[j] = alphabet[rnd.IntN(len(alphabet))]
				}
				values = append(values, string(v))
				secrets = append(secrets, Secret{Lease: "x", Value: secret.New(v)})
				set.addValue(v, 0)
				if i == 0 {
					markers = append(markers, []byte("[REDACTED:x]"))
				}
			}
			r := New(secrets)
			for range 10 {
				var text []byte
				for range 12 {
					v := values[rnd.IntN(len(values))]
					text = append(text, v[rnd.IntN(len(v)):]...)
					if rnd.IntN(3) == 0 {
						text = append(text, v...)
					}
					text = append(text, alphabet[rnd.IntN(len(alphabet))])
				}
				want := naive(set, markers, text)
				if got := split(t, r, text, rnd); got != want {
					t.Fatalf("%d values: %q becomes %q, want %q", count, text, got, want)
				}
			}
		}
	}
}
