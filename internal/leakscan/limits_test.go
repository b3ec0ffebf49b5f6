package leakscan_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/internal/leakscan"
)

func TestWhatIsNotSearchedIsSaid(t *testing.T) {
	t.Parallel()
	zeros := strings.Repeat("\x00", 8<<20)
	nested := value
	for range 6 {
		nested = gzipped(nested)
	}
	many := make([]string, 0, 40)
	for i := range 20 {
		many = append(many, fmt.Sprintf("m%02d", i), "x")
	}
	encrypted := []byte(zipped(zip.Deflate, "e", "x"))
	encrypted[6] |= 1
	method := []byte(zipped(zip.Deflate, "lzma", "x"))
	binary.LittleEndian.PutUint16(method[8:], 14)
	for _, tt := range []struct {
		name, file, content string
		want                []string
		hits                int
	}{
		{"a bomb of gzip", "a.gz", gzipped(zeros), []string{"a.gz!/a: it unpacks to too much"}, 0},
		{"a bomb of zip", "a.zip", zipped(zip.Deflate, "b", zeros), []string{"a.zip!/b: it unpacks to too much"}, 0},
		{"a bomb in a bomb", "a.gz", gzipped(gzipped(zeros) + zeros), []string{"a.gz!/a!/a: it unpacks to too much"}, 0},
		{"a value before the bomb", "a.gz", gzipped(value + zeros), []string{"a.gz!/a: it unpacks to too much"}, 1},
		{"archives in each other", "a.gz", nested, []string{"a.gz!/a!/a!/a!/a: archives are nested too deeply"}, 0},
		{"many members", "a.zip", zipped(zip.Deflate, many...), []string{"a.zip!/m10: the archive has too many members"}, 0},
		{"gzip cut off", "a.gz", gzipped(value + "x")[:20], []string{"a.gz!/a: the archive is damaged or cut off"}, 0},
		{"gzip with a damaged sum", "a.gz", damaged(gzipped(value), -8), []string{"a.gz!/a: the archive is damaged or cut off"}, 1},
		{"no gzip", "a.gz", "\x1f\x8b\x08", []string{"a.gz: the archive is damaged or cut off"}, 0},
		{"tar cut off", "a.tar", tarred("b", value+strings.Repeat("y", 900))[:700], []string{"a.tar: the archive is damaged or cut off", "a.tar!/b: the archive is damaged or cut off"}, 1},
		{"zip, encrypted", "a.zip", string(encrypted), []string{"a.zip!/e: it is encrypted"}, 0},
		{"zip, packed otherwise", "a.zip", string(method), []string{"a.zip!/lzma: it is packed in a way that can't be unpacked here"}, 0},
		{"zip cut off", "a.zip", zippedRaw("b", value+"yy")[:58], []string{"a.zip!/b: the archive is damaged or cut off"}, 1},
		{"a sparse member", "a.tar", sparseTar(), []string{"a.tar!/sparse: it unpacks to too much"}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := tree(t, map[string]string{tt.file: tt.content, "after": value})
			r := search(t, leakscan.Bounded(leakscan.Config{Paths: []string{dir}, Needles: needles(value)}, 4, 10, 1<<20, 10, 1<<30))
			if diff := cmp.Diff(tt.want, gaps(r, dir)); diff != "" {
				t.Errorf("gaps (-want +got):\n%s", diff)
			}
			if len(r.Hits) != tt.hits+1 {
				t.Errorf("hits %q, want %d and the one in another file", told(r, dir), tt.hits)
			}
			if r.Inflated > 3<<20 {
				t.Errorf("%d bytes were unpacked: the bound isn't kept", r.Inflated)
			}
		})
	}
}

func damaged(s string, at int) string {
	b := []byte(s)
	b[len(b)+at] ^= 0xff
	return string(b)
}

// sparseTar has a member of 4 TiB, in GNU's format, that is nothing but a hole.
func sparseTar() string {
	const size = "\x80\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00" // 4 TiB in base 256
	var h [512]byte
	copy(h[:], "sparse")
	copy(h[100:], "0000600\x000000000\x000000000\x0000000000000\x0000000000000\x00")
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	copy(h[386:], size)              // where its only piece begins
	copy(h[398:], "00000000000\x00") // how long that is
	copy(h[483:], size)              // how long the member is
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	var b bytes.Buffer
	b.Write(h[:])
	b.Write(make([]byte, 1024))
	if _, err := tar.NewReader(bytes.NewReader(b.Bytes())).Next(); err != nil {
		panic(err)
	}
	return b.String()
}

func TestBoundHoldsOverAllFiles(t *testing.T) {
	t.Parallel()
	files := map[string]string{}
	for i := range 10 {
		files[fmt.Sprintf("%d.gz", i)] = gzipped(strings.Repeat("\x00", 900<<10))
	}
	dir := tree(t, files)
	r := search(t, leakscan.Bounded(leakscan.Config{Paths: []string{dir}}, 4, 10, 1<<20, 10, 3<<20))
	if len(r.Gaps) < 5 || r.Inflated > 5<<20 {
		t.Errorf("%d gaps, %d bytes unpacked, want most of ten files left out after 3 MiB", len(r.Gaps), r.Inflated)
	}
}

// A program with a zip archive behind it is one wherever the file's last piece
// begins, and whatever comment the archive has.
func TestZipBehindAProgram(t *testing.T) {
	t.Parallel()
	packed := []byte(zipped(zip.Deflate, "b", value+value))
	commented := append(bytes.Clone(packed), strings.Repeat("c", 4<<10)...)
	binary.LittleEndian.PutUint16(commented[len(packed)-2:], 4<<10)
	for name, archive := range map[string][]byte{"plain": packed, "commented": commented} {
		for _, end := range []int{100, 1, 21, 22, 4000} {
			size := 256<<10 + end
			dir := tree(t, map[string]string{"a": strings.Repeat("x", size-len(archive)) + string(archive)})
			r := search(t, leakscan.Config{Paths: []string{dir}, Needles: needles(value)})
			if len(r.Hits) != 1 || r.Hits[0].Member != "b" {
				t.Errorf("%s, %d bytes: hits %+v, want one in b", name, size, r.Hits)
			}
		}
	}
}
