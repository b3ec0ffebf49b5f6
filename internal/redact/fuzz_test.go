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

// A change is what is looked for from a place in the text on.
type change struct {
	at  int
	set *needle.Set
}

// naive redacts the whole text at once. At the places in pauses the program
// stopped for longer than a writer waits; a change at such a place came after.
func naive(changes []change, text []byte, pauses []int) string {
	type event struct {
		start, end, lease int
		pause             bool
	}
	var events []event
	from := 0 // what is before it is settled
	for n, c := range changes {
		until, last := len(text), n == len(changes)-1
		if !last {
			until = changes[n+1].at
		}
		for _, p := range pauses {
			if p <= c.at || p > until {
				continue
			}
			if start := from + c.set.Find(text[from:p], false, func(int, int, int) {}); start < p {
				lease, _ := c.set.Head(text[start:p])
				events = append(events, event{start, p, lease, true})
			}
		}
		// What is decided at a pause comes before the hits from there on.
		from += c.set.Find(text[from:until], last, func(start, end, lease int) {
			i := 0
			for i < len(events) && events[i].start <= from+start {
				i++
			}
			events = append(events[:i:i], append([]event{{from + start, from + end, lease, false}}, events[i:]...)...)
		})
	}
	set := changes[len(changes)-1].set
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
// these were. Before some it adds one of more, and tells what changed.
func split(t *testing.T, r *Redactor, text []byte, more []Secret, rnd *rand.Rand) (string, []int, []change) {
	t.Helper()
	var out bytes.Buffer
	var pauses []int
	changes := []change{{0, r.Needles()}}
	clock := newClock()
	w := clock.writer(r, &out)
	often := rnd.IntN(4)
	for at := 0; at < len(text); {
		if len(more) > 0 && rnd.IntN(8) == 0 {
			r.Add(more[:1])
			more = more[1:]
			changes = append(changes, change{at, r.Needles()})
		}
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
	return out.String(), pauses, changes
}

var markers = regexp.MustCompile(`\[REDACTED:[abc]\]`)

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
		want := naive([]change{{0, r.Needles()}}, full, nil)
		if got := string(r.Bytes(full)); got != want {
			t.Fatalf("Bytes(%q) = %q, want %q", full, got, want)
		}
		// What is added begins or continues what is known, or stands in the
		// text, and is another lease's or one's that is known.
		part := func(s []byte) string { at := rnd.IntN(len(s) + 1); return string(s[at : at+rnd.IntN(len(s)-at+1)]) }
		var more []Secret
		for _, text := range []string{part(full), a + part(full), part([]byte(b)) + a, b + b}[:rnd.IntN(5)] {
			more = append(more, Secret{Lease: []string{"b", "c"}[rnd.IntN(2)], Value: secret.FromString(text)})
		}
		got, pauses, changes := split(t, r, full, more, rnd)
		if want := naive(changes, full, pauses); got != want {
			t.Fatalf("%q with pauses at %d, changes %v: %q, want %q", full, pauses, changes, got, want)
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
