package leakscan_test

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/internal/leakscan"
)

// A plant is a tree of random files together with where values were put.
type plant struct {
	rnd    *rand.Rand
	values []string
	files  map[string]string
	want   []string // path, member and lease
}

// content is random text with values in it, in some encoding, here and there,
// the borders of buffers among the places. It gives the leases.
func (p *plant) content() (text string, leases []int) {
	sizes := []int{0, 10, 500, 32 << 10, 100_000, 256 << 10, 300_000, 600_000}
	b := make([]byte, sizes[p.rnd.IntN(len(sizes))]+p.rnd.IntN(64))
	for i := range b {
		b[i] = byte('A' + p.rnd.IntN(26))
	}
	for range p.rnd.IntN(3) {
		lease := p.rnd.IntN(len(p.values))
		v := p.values[lease]
		switch p.rnd.IntN(6) {
		case 0:
			v = hex.EncodeToString([]byte(v))
		case 1:
			v = base64.URLEncoding.EncodeToString([]byte(v))
		case 2:
			v = url.QueryEscape(v)
		case 3:
			v = strings.Repeat(v, 2)
		}
		if len(b) > len(v) {
			at := p.rnd.IntN(len(b) - len(v) + 1)
			if borders := []int{32 << 10, 64 << 10, 256 << 10}; p.rnd.IntN(2) == 0 {
				border := borders[p.rnd.IntN(3)]*(1+p.rnd.IntN(2)) - p.rnd.IntN(len(v)+1)
				if border >= 0 && border+len(v) <= len(b) {
					at = border
				}
			}
			copy(b[at:], v)
		} else {
			b = []byte(v)
		}
	}
	for lease, v := range p.values {
		if naive(b, v) {
			leases = append(leases, lease)
		}
	}
	return string(b), leases
}

// naive looks at the whole, and by nothing but the standard library.
func naive(text []byte, v string) bool {
	for _, form := range []string{v, hex.EncodeToString([]byte(v)), base64.RawURLEncoding.EncodeToString([]byte(v)), url.QueryEscape(v)} {
		if bytes.Contains(text, []byte(form)) {
			return true
		}
	}
	return false
}

func (p *plant) file(name string) {
	text, leases := p.content()
	for range p.rnd.IntN(4) {
		inner := "m" + fmt.Sprint(p.rnd.IntN(10))
		switch p.rnd.IntN(4) {
		case 0:
			text = tarred("first", strings.Repeat("x", p.rnd.IntN(2000)), inner, text)
		case 1:
			text = zipped(zip.Deflate, "first", "x", inner, text)
		case 2:
			text = zippedRaw(inner, text)
		case 3:
			text = gzipped(text)
		}
	}
	p.files[name] = text
	for _, lease := range leases {
		p.want = append(p.want, fmt.Sprintf("%s lease-%d", name, lease))
	}
}

func FuzzAgainstNaive(f *testing.F) {
	for seed := range uint64(40) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		p := &plant{rnd: rand.New(rand.NewPCG(seed, 1)), files: map[string]string{}}
		for range 1 + p.rnd.IntN(5) {
			// No value is a part of another, in any encoding.
			p.values = append(p.values, fmt.Sprintf("%s-%d &%s", strings.Repeat("q", p.rnd.IntN(5)), len(p.values), base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprint(p.rnd.Uint64())))))
		}
		for i := range 1 + p.rnd.IntN(6) {
			p.file(path.Join(strings.Repeat("d/", p.rnd.IntN(4)), fmt.Sprint(i)))
		}
		dir := tree(t, p.files)
		r := search(t, leakscan.Config{Paths: []string{dir}, Needles: needles(p.values...)})
		got := []string{}
		for _, h := range r.Hits {
			rel, err := filepath.Rel(dir, h.Path)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, filepath.ToSlash(rel)+" "+h.Lease)
		}
		slices.Sort(got)
		slices.Sort(p.want)
		if diff := cmp.Diff(slices.Compact(append([]string{}, p.want...)), slices.Compact(got)); diff != "" {
			t.Errorf("seed %d (-want +got):\n%s", seed, diff)
		}
		if len(r.Gaps) > 0 {
			t.Errorf("seed %d: gaps %v", seed, r.Gaps)
		}
	})
}

// FuzzArchives: whatever bytes an archive consists of, the search ends within
// its bounds, and a value that stands in it as it is is found.
func FuzzArchives(f *testing.F) {
	for _, text := range []string{
		gzipped("x"), zlibbed("x"), tarred("a", "b"), zipped(zip.Deflate, "a", "b"), zippedRaw("a", "b"), gzipped(tarred("a", zipped(zip.Store, "b", "c"))),
		sparseTar(), "PK\x03\x04", "PK\x05\x06", "\x1f\x8b\x08", "x\x9c",
	} {
		f.Add([]byte(text), uint16(len(text)))
	}
	set := needles(value)
	f.Fuzz(func(t *testing.T, text []byte, at uint16) {
		at = min(at, uint16(min(len(text), 1<<16-1)))
		text = slices.Concat(text[:at], []byte(value), text[at:])
		dir := tree(t, map[string]string{"a": string(text)})
		r := search(t, leakscan.Bounded(leakscan.Config{Paths: []string{dir}, Needles: set}, 4, 100, 1<<20, 10, 1<<30))
		if len(r.Hits) == 0 {
			t.Errorf("%q: no hit", text)
		}
		if r.Inflated > 2<<20 || r.Members > 100 {
			t.Errorf("%q: %d bytes and %d members unpacked", text, r.Inflated, r.Members)
		}
	})
}

// FuzzIgnore holds patterns against regular expressions.
func FuzzIgnore(f *testing.F) {
	f.Add("a/**/b", "a/x/y/b")
	f.Add("**", "a")
	f.Add("a*/?/**", "ab/c")
	f.Fuzz(func(t *testing.T, glob, name string) {
		got, err := leakscan.Match(glob, name)
		if err != nil || strings.ContainsAny(glob, "[\\") || !utf8.ValidString(glob) || !utf8.ValidString(name) || name == "" || path.Clean(name) != name {
			return
		}
		var expr strings.Builder
		for s := range strings.SplitSeq(strings.TrimSuffix(strings.TrimPrefix(glob, "./"), "/"), "/") {
			if s == "**" {
				expr.WriteString("(/[^/]+)*")
				continue
			}
			s = regexp.QuoteMeta(s)
			s = strings.NewReplacer(`\*`, "[^/]*", `\?`, "[^/]").Replace(s)
			expr.WriteString("/" + s)
		}
		want := regexp.MustCompile("(?s)^" + expr.String() + "$").MatchString("/" + name)
		if got != want {
			t.Errorf("Match(%q, %q) = %t, want %t", glob, name, got, want)
		}
	})
}
