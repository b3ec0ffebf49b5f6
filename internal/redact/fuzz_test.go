package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/runenv/action/internal/needle"
	"github.com/runenv/action/secret"
)

// naive redacts the whole text at once. At the places in pauses the program
// stopped for longer than a writer waits.
func naive(set *needle.Set, text []byte, pauses []int) string {
	type event struct {
		start, end, lease int
		pause             bool
	}
	var events []event
	for _, p := range pauses {
		if start := set.Find(text[:p], false, func(int, int, int) {}); start < p {
			lease, _ := set.Head(text[start:p])
			events = append(events, event{start, p, lease, true})
		}
	}
	// What is decided at a pause comes before the hits from there on.
	set.Find(text, true, func(start, end, lease int) {
		i := 0
		for i < len(events) && events[i].start <= start {
			i++
		}
		events = append(events[:i:i], append([]event{{start, end, lease, false}}, events[i:]...)...)
	})
	var out []byte
	done, marked, last := 0, false, 0 // marked: done is the end of what last's marker hides
	for _, e := range events {
		if e.start > done {
			out = append(out, text[done:e.start]...)
			done, marked = e.start, false
		}
		if e.pause && e.end-e.start < MinBytes && !(marked && last == e.lease) {
			if e.end > done {
				out = append(out, text[done:e.end]...)
				done, marked = e.end, false
			}
			continue
		}
		if e.pause && e.end <= done {
			continue // nothing waits
		}
		if !marked || e.start == done && e.lease != last {
			out = append(out, "[REDACTED:"+set.Lease(e.lease)+"]"...)
			last = e.lease
		}
		done, marked = max(done, e.end), true
	}
	return string(append(out, text[done:]...))
}

// split writes text in random parts, with pauses behind some, and tells where
// these were.
func split(t *testing.T, r *Redactor, text []byte, rnd *rand.Rand) (string, []int) {
	t.Helper()
	var out bytes.Buffer
	var pauses []int
	clock := newClock()
	w := clock.writer(r, &out)
	often := rnd.IntN(4)
	for at := 0; at < len(text); {
		n := 1 + rnd.IntN(min(len(text)-at, 1+rnd.IntN(20)))
		if got, err := w.Write(text[at : at+n]); got != n || err != nil {
			t.Fatalf("Write = %d, %v, want %d, nil", got, err, n)
		}
		if len(w.held) > needle.MaxBytes {
			t.Fatalf("%d bytes are held back, want at most %d", len(w.held), needle.MaxBytes)
		}
		at += n
		if rnd.IntN(4) < often {
			clock.advance(limit)
			pauses = append(pauses, at)
			if w.waits() {
				t.Fatalf("%q waits for longer than %v", w.held[w.cover.until:], limit)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String(), pauses
}

var markers = regexp.MustCompile(`\[REDACTED:[ab]\]`)

func FuzzAgainstNaive(f *testing.F) {
	f.Add("abcabdabc", "second-value", "xx abcabcabdabc second-value", uint64(1))
	f.Add("aaaaaaa", "aaaaaaaaaaaa", "aaaaaaaaaaaaaaaaaaaaaaaaaab", uint64(2))
	f.Add("line one\nline two\r\n x", "\x00\x00\x00\x00\x00\x00", "line two\x00\x00\x00\x00\x00\x00\x00", uint64(3))
	f.Add(strings.Repeat("long value ", 20), "ng value", strings.Repeat("long value ", 41), uint64(4))
	f.Add("qu\"o/<te>%", "12345", `qu\"o\/<te>% qu\"o/\u003cte\u003e% qu%22o%2f%3cte%3e%25`, uint64(5))
	f.Add("prefix", "prefix-and-more", "prefix-and-mor prefix-and-more prefix", uint64(6))
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
		secrets := []Secret{{Lease: "a", Value: secret.FromString(a)}, {Lease: "b", Value: secret.FromString(b)}}
		r := New(secrets)
		want := naive(r.set, full, nil)
		if got := string(r.Bytes(full)); got != want {
			t.Fatalf("Bytes(%q) = %q, want %q", full, got, want)
		}
		got, pauses := split(t, r, full, rnd)
		if want := naive(r.set, full, pauses); got != want {
			t.Fatalf("%q with pauses at %d: %q, want %q", full, pauses, got, want)
		}
		if markers.Match(full) {
			return
		}
		for _, shown := range markers.Split(got, -1) {
			for _, s := range secrets {
				for line := range bytes.SplitSeq(s.Value.Reveal(), []byte("\n")) {
					if line = bytes.TrimSpace(line); len(line) >= MinBytes && strings.Contains(shown, string(line)) {
						t.Fatalf("%q with pauses at %d: %q shows %q", full, pauses, got, line)
					}
				}
			}
		}
	})
}
