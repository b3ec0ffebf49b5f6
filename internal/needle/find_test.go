package needle

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/secret"
)

type found struct{ Start, End, Lease int }

// naive tries every needle at every place.
func naive(m *Set, text []byte) (hits []found) {
	for start := range text {
		best, lease := 0, 0
		for n := range m.needles {
			if b := m.bytes(int32(n)); len(b) > best && bytes.HasPrefix(text[start:], b) {
				best, lease = len(b), int(m.needles[n].lease)
			}
		}
		if best > 0 {
			hits = append(hits, found{start, start + best, lease})
		}
	}
	return hits
}

// headed says whether b begins a longer needle.
func headed(m *Set, b []byte) bool {
	for n := range m.needles {
		if t := m.bytes(int32(n)); len(t) > len(b) && bytes.HasPrefix(t, b) {
			return true
		}
	}
	return false
}

// check compares Find with the naive way: on the whole text, and on a text
// that comes in random parts.
func check(t *testing.T, m *Set, text []byte, rnd *rand.Rand) {
	t.Helper()
	want := naive(m, text)
	var got []found
	if settled := m.Find(text, true, func(s, e, l int) { got = append(got, found{s, e, l}) }); settled != len(text) {
		t.Fatalf("Find settles %d of %d bytes", settled, len(text))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("Find(%q) (-want +got):\n%s", text, diff)
	}
	start, end, lease, ok := m.First(text)
	if ok != (len(want) > 0) || ok && (found{start, end, lease}) != want[0] || m.Any(text) != ok {
		t.Fatalf("First(%q) = %d, %d, %d, %v; hits %v", text, start, end, lease, ok, want)
	}
	got = nil
	for base, end := 0, 0; end < len(text); {
		end += min(len(text)-end, 1+rnd.IntN(1+rnd.IntN(100)))
		part := text[base:end]
		settled := m.Find(part, end == len(text), func(s, e, l int) { got = append(got, found{base + s, base + e, l}) })
		if end < len(text) {
			for i := range part {
				if i < settled && headed(m, part[i:]) {
					t.Fatalf("%q: settled to %d, but %q may go on", part, settled, part[i:])
				}
			}
			if settled < len(part) && !headed(m, part[settled:]) {
				t.Fatalf("%q: %q isn't settled, but can't go on", part, part[settled:])
			}
		}
		base += settled
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("in parts: Find(%q) (-want +got):\n%s", text, diff)
	}
}

func FuzzFind(f *testing.F) {
	f.Add("abcabdabc", "second-value", "xx abcabcabdabc second-value", uint64(1))
	f.Add("aaaaaaa", "aaaaaaaaaaaa", "aaaaaaaaaaaaaaaaaaaaaaaaaab", uint64(2))
	f.Add("line one\nline two\r\n x", "\x00\x00\x00\x00\x00\x00", "line two\x00\x00\x00\x00\x00\x00\x00", uint64(3))
	f.Add(strings.Repeat("long value ", 20), "ng value", strings.Repeat("long value ", 41), uint64(4))
	f.Add("qu\"o/<te>%", "12345", `qu\"o\/<te>% qu\"o/\u003cte\u003e% qu%22o%2f%3cte%3e%25`, uint64(5))
	f.Add("abcabdabcabe", "abcabd", "abcababcabdabcabe", uint64(6))
	f.Fuzz(func(t *testing.T, a, b, text string, seed uint64) {
		if len(a)+len(b)+len(text) > 600 {
			return // the naive way is slow
		}
		rnd := rand.New(rand.NewPCG(seed, seed))
		// Values must turn up: splice them and their encodings into the text.
		parts := []string{a, b, hex.EncodeToString([]byte(a)), base64.StdEncoding.EncodeToString([]byte(b)), fmt.Sprintf("%q", a), a[:len(a)/2], b[len(b)/2:]}
		full := []byte(text)
		for range rnd.IntN(6) {
			at := rnd.IntN(len(full) + 1)
			full = append(full[:at:at], parts[rnd.IntN(len(parts))]+string(full[at:])...)
		}
		check(t, New([]Secret{{Lease: "a", Value: secret.FromString(a)}, {Lease: "b", Value: secret.FromString(b)}}), full, rnd)
	})
}

// Sizes and numbers of needles choose other steps, grams and tables; the
// result may not differ.
func TestFindAgainstNaive(t *testing.T) {
	t.Parallel()
	for _, alphabet := range []string{"ab", "abcdefghijklmnopqrstuvwxyz0123456789+/\"\\% \n"} {
		for _, shortest := range []int{6, 7, 8, 9, 10, 12, 15, 16, 20, 31, 32, 33, 40} {
			rnd := rand.New(rand.NewPCG(7, uint64(shortest)))
			var secrets []Secret
			var values [][]byte
			for range 1 + rnd.IntN(30)*(shortest%3) {
				v := make([]byte, shortest+rnd.IntN(30))
				for j := range v {
					v[j] = alphabet[rnd.IntN(len(alphabet))]
				}
				values = append(values, v)
				secrets = append(secrets, Secret{Lease: fmt.Sprint(rnd.IntN(3)), Value: secret.New(v)})
			}
			m := New(secrets)
			for range 4 {
				var text []byte
				for range 8 {
					v := values[rnd.IntN(len(values))]
					text = append(text, v[rnd.IntN(len(v)):]...)
					if rnd.IntN(3) == 0 {
						text = append(text, v...)
					}
					text = append(text, alphabet[rnd.IntN(len(alphabet))])
				}
				check(t, m, text, rnd)
			}
		}
	}
}

func TestSet(t *testing.T) {
	t.Parallel()
	secrets := []Secret{
		{Lease: "one", Value: secret.FromString("1")},
		{Lease: "two", Value: secret.FromString("hunter22")},
		{Lease: "one", Value: secret.FromString("hunter22")},
		{Lease: "three", Value: secret.FromString(" 12345\n")},
		{Lease: "one", Value: secret.FromString("")},
	}
	m := New(secrets)
	var names []string
	for i := range m.Leases() {
		names = append(names, m.Lease(i))
	}
	if diff := cmp.Diff([]string{"one", "two", "three"}, names); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
	if s, e, l, ok := m.First([]byte("a hunter22 ")); !ok || s != 2 || e != 10 || m.Lease(l) != "two" {
		t.Errorf("First = %d, %d, %d, %v", s, e, l, ok)
	}
	if m.Any([]byte("a hunter2 12345")) {
		t.Error("Any finds what isn't there")
	}
	if got := m.Longest(); got != 16 {
		t.Errorf("Longest() = %d, want 16, the hex form", got)
	}
	if empty := New(nil); empty.Any([]byte("text")) || empty.Longest() != 0 || empty.Find([]byte("text"), false, nil) != 4 {
		t.Error("an empty set finds something")
	}
}

func TestT31WipeLeavesNoValue(t *testing.T) {
	t.Parallel()
	value := "c4n4ry-value-of-a-lease"
	m := New([]Secret{{Lease: "a", Value: secret.FromString(value)}})
	text := m.text.b
	if !bytes.Contains(text, []byte(value)) || !m.Any([]byte(value)) {
		t.Fatal("the value isn't in the set's memory: the test looks at the wrong place")
	}
	m.Wipe()
	for name, left := range map[string]bool{
		"text":   bytes.Count(text, []byte{0}) != len(text),
		"grams":  nonZero(m.grams),
		"heads":  nonZero(m.heads),
		"places": nonZero(m.places),
		"groups": nonZero(m.groups),
		"found":  m.Any([]byte(value)) || m.Longest() != 0,
	} {
		if left {
			t.Errorf("after Wipe %s holds something", name)
		}
	}
}

func nonZero[T comparable](s []T) bool {
	var zero T
	for _, x := range s {
		if x != zero {
			return true
		}
	}
	return false
}

func TestT31CollectorIsWiped(t *testing.T) {
	t.Parallel()
	var c collector
	v := []byte("c4n4ry \"value\" of a lease")
	c.value(v)
	buf, padded, forms := c.buf[:cap(c.buf)], c.padded[:cap(c.padded)], c.found
	c.wipe()
	if nonZero(buf) || nonZero(padded) || nonZero(forms) {
		t.Error("a copy is left")
	}
}

// What a set holds is bounded by the size of the values.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(3, 3))
	binary := make([]byte, 256<<10)
	for i := range binary {
		binary[i] = byte(rnd.IntN(256))
	}
	var config strings.Builder
	config.WriteString("{\n")
	for i := range 40 {
		fmt.Fprintf(&config, "  \"name-%d\": \"%x & more\",\n", i, rnd.Uint64())
	}
	config.WriteString("}\n")
	for name, v := range map[string][]byte{
		"a password":   []byte("kX7-abca&dabc'be\"Zq9"),
		"a file":       []byte(config.String()),
		"4 KiB":        binary[:manyFormsBytes],
		"256 KiB":      binary,
		"letters only": bytes.Repeat([]byte("AbCdEfGh12345_"), 5000),
	} {
		m := New([]Secret{{Lease: "a", Value: secret.New(v)}})
		if got, most := m.memory(), 8<<10+800*min(len(v), manyFormsBytes)+80*len(v); got > most {
			t.Errorf("%s of %d bytes takes %d, want at most %d", name, len(v), got, most)
		}
		t.Logf("%s of %d bytes: %d needles, %d bytes", name, len(v), len(m.needles), m.memory())
	}
}

// memory is what the set holds, in bytes.
func (m *Set) memory() int {
	return len(m.text.b) + len(m.needles)*int(unsafe.Sizeof(needle{})) + len(m.groups)*int(unsafe.Sizeof(group{})) +
		8*len(m.grams) + 8*len(m.heads) + 4*len(m.places)
}

// A kubeconfig in a variable doesn't make every manifest in the log a hit.
func TestCommonLinesAreNoNeedles(t *testing.T) {
	t.Parallel()
	const kubeconfig = "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    certificate-authority-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t\nusers:\n- name: ci\n  user:\n    token: c4n4ry-token\nhunterhunterhunterhunterhunter:\n"
	set := New([]Secret{{Lease: "kube", Value: secret.FromString(kubeconfig)}})
	for text, want := range map[string]bool{
		"apiVersion: v1\nkind: Deployment\nclusters:\nusers:\n": false,
		"kind: Config\n":                       false,
		"token: c4n4ry-token":                  true,
		"LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t": false, // the line is more than that
		"certificate-authority-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t": true,
		"hunterhunterhunterhunterhunter:":                                  true, // too long for a key
	} {
		hit := false
		set.Find([]byte(text), true, func(int, int, int) { hit = true })
		if hit != want {
			t.Errorf("%q is a hit: %v, want %v", text, hit, want)
		}
	}
	alone := New([]Secret{{Lease: "odd", Value: secret.FromString("clusters:")}})
	hit := false
	alone.Find([]byte("x clusters: y"), true, func(int, int, int) { hit = true })
	if !hit {
		t.Error("a value that is one such line isn't found")
	}
}
