package leakscan_test

import (
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/internal/leakscan"
	"github.com/runenv/action/internal/needle"
)

// runnerReads gives the entries of a command file as GitHub's runner takes
// them on Linux, in order. It says false where the runner refuses the file.
func runnerReads(text string) (entries []string, ok bool) {
	lines := strings.Split(text, "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		equals, heredoc := strings.Index(line, "="), strings.Index(line, "<<")
		switch {
		case line == "":
		case equals >= 0 && (heredoc < 0 || equals < heredoc):
			entries = append(entries, line)
		case heredoc >= 0:
			name, delimiter, _ := strings.Cut(line, "<<")
			entry := name + "="
			for i++; ; i++ {
				if i == len(lines) {
					return entries, false
				}
				if lines[i] == delimiter {
					break
				}
				entry += lines[i] + "\n"
			}
			entries = append(entries, entry)
		default:
			return entries, false
		}
	}
	return entries, true
}

func TestT26CommandFileLosesTheWholeEntry(t *testing.T) {
	t.Parallel()
	multi := "line-one-of-it\nA=1\nline-three-of-it"
	for _, tt := range []struct {
		name   string
		format leakscan.Format
		in     string
		want   string
		hits   int
	}{
		{"nothing", leakscan.Entries, "A=1\nB<<E\nx\nE\n", "A=1\nB<<E\nx\nE\n", 0},
		{"the only line", leakscan.Entries, "A=" + value + "\n", "", 1},
		{"a line among others", leakscan.Entries, "A=1\nB=x" + value + "y\nC=3\n", "A=1\nC=3\n", 1},
		{"the last line, not ended", leakscan.Entries, "A=1\nB=" + value, "A=1\n", 1},
		{"a block", leakscan.Entries, "A=1\nB<<E\nx\n" + value + "\ny=1\nE\nC=3\n", "A=1\nC=3\n", 1},
		{"a block with another's mark in it", leakscan.Entries, "B<<E\nC<<F\n" + value + "\nF\nE\nC=3\n", "C=3\n", 1},
		{"a block that nothing closes", leakscan.Entries, "A=1\nB<<E\n" + value + "\nC=3\n", "A=1\n", 1},
		{"a block's name", leakscan.Entries, "line-three-of-it<<E\nC=3\nE\nD=4\n", "D=4\n", 1},
		{"a delimiter", leakscan.Entries, "A<<line-three-of-it\nC=3\nline-three-of-it\nD=4\n", "D=4\n", 1},
		{"no entry at all", leakscan.Entries, "A=1\n" + value + "\nB=2\n", "A=1\nB=2\n", 1},
		{"two", leakscan.Entries, "A=" + value + "\nB=2\nC=" + hex.EncodeToString([]byte(value)) + "\nD=4\n", "B=2\nD=4\n", 1},
		{"an equals sign before the mark", leakscan.Entries, "A=x<<E\nB=" + value + "\nE=5\n", "A=x<<E\nE=5\n", 1},
		// Its lines stand outside of the block that the first of them ended.
		{"a value that ends its block", leakscan.Entries, "A<<A=1\n" + multi + "\nA=1\nZ=1\n", "Z=1\n", 1},
		{"a folder of the PATH", leakscan.Lines, "/a\n/b/" + value + "/c\n/d<<E\n/e", "/a\n/d<<E\n/e", 1},
		{"a summary", leakscan.Lines, "# x\n`" + value + "`\nE\n", "# x\nE\n", 1},
	} {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, []byte(tt.in))
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		hits, err := leakscan.ScrubCommandFile(path, tt.format, needles(value, multi))
		if err != nil || len(hits) < tt.hits || tt.hits == 0 && len(hits) > 0 {
			t.Errorf("%s: hits %+v, %v, want %d", tt.name, hits, err, tt.hits)
		}
		for _, h := range hits {
			if !h.Scrubbed || h.Path != path {
				t.Errorf("%s: hit %+v, want it scrubbed, of %s", tt.name, h, path)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if tt.name == "a value that ends its block" {
			// What is left may only be what the file's own entries were.
			if strings.Contains(string(got), "-of-it") {
				t.Errorf("%s: left %q", tt.name, got)
			}
			continue
		}
		if string(got) != tt.want {
			t.Errorf("%s: left %q, want %q", tt.name, got, tt.want)
		}
		after, err := os.Stat(path)
		if err != nil || !os.SameFile(before, after) {
			t.Errorf("%s: it is another file now (%v)", tt.name, err)
		}
	}
}

func TestCommandFileInUTF16(t *testing.T) {
	t.Parallel()
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		path := filepath.Join(t.TempDir(), "file")
		var text []byte
		for _, u := range utf16.Encode([]rune("\ufeffA=1\nB=" + value + "\nC=ü\n")) {
			text = append(text, 0, 0)
			order.PutUint16(text[len(text)-2:], u)
		}
		write(t, path, text)
		hits, err := leakscan.ScrubCommandFile(path, leakscan.Entries, needles(value))
		got, readErr := os.ReadFile(path)
		if err != nil || readErr != nil || len(hits) != 1 || string(got) != "A=1\nC=ü\n" {
			t.Errorf("%v: hits %v, %v, left %q, %v", order, hits, err, got, readErr)
		}
	}
}

func TestT26CommandFileInUTF32(t *testing.T) {
	t.Parallel()
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		path := filepath.Join(t.TempDir(), "file")
		var text []byte
		for _, r := range "\ufeffA=1\nB=" + value + "\nC=ü😀\n" {
			text = append(text, 0, 0, 0, 0)
			order.PutUint32(text[len(text)-4:], uint32(r))
		}
		write(t, path, text)
		hits, err := leakscan.ScrubCommandFile(path, leakscan.Entries, needles(value))
		got, readErr := os.ReadFile(path)
		if err != nil || readErr != nil || len(hits) != 1 || string(got) != "A=1\nC=ü😀\n" {
			t.Errorf("%v: hits %v, %v, left %q, %v", order, hits, err, got, readErr)
		}
	}
}

// A file that PowerShell began, and another program went on with in UTF-8.
func TestT26CommandFileOfTwoMinds(t *testing.T) {
	t.Parallel()
	for _, mark := range []string{"\xff\xfe", "\xfe\xff", "\xff\xfe\x00\x00"} {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, []byte(mark+"A=1\nB="+value+"\n"))
		hits, err := leakscan.ScrubCommandFile(path, leakscan.Entries, needles(value))
		got, readErr := os.ReadFile(path)
		if err != nil || readErr != nil || len(hits) != 1 || len(got) != 0 {
			t.Errorf("%q: hits %v, %v, left %q, %v, want one hit and nothing left", mark, hits, err, got, readErr)
		}
	}
}

func TestLargeWideCommandFileIsEmptied(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, []byte("\xff\xfe"+strings.Repeat("A\x00", 8<<20)))
	_, err := leakscan.ScrubCommandFile(path, leakscan.Entries, needles(value))
	info, statErr := os.Stat(path)
	if err == nil || statErr != nil || info.Size() != 0 {
		t.Errorf("%v, size %d, %v, want an error and nothing left", err, info.Size(), statErr)
	}
}

func TestLargeCommandFileIsEmptied(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	large := strings.Repeat("A=1\n", 5<<20)
	write(t, path, []byte(large))
	if hits, err := leakscan.ScrubCommandFile(path, leakscan.Entries, needles(value)); err != nil || len(hits) != 0 {
		t.Errorf("hits %v, %v, want none", hits, err)
	}
	write(t, path, []byte(large+"B="+value+"\n"))
	hits, err := leakscan.ScrubCommandFile(path, leakscan.Entries, needles(value))
	info, statErr := os.Stat(path)
	if err != nil || statErr != nil || len(hits) != 1 || info.Size() != 0 {
		t.Errorf("hits %v, %v, size %d, %v, want one hit and nothing left", hits, err, info.Size(), statErr)
	}
}

// FuzzT26ScrubCommandFile: the runner takes from the file afterwards what it
// took before, less entries with a value, and nothing else.
func FuzzT26ScrubCommandFile(f *testing.F) {
	const v = "secret-value"
	f.Add("A=1\nB<<E\n" + v + "\nE\nC=3\n")
	f.Add("A<<E\nx\nB=" + v + "\nE")
	f.Add("\n\n=<<\n" + v)
	f.Add("A<<\n\n" + v + "=<<x\nx\n")
	f.Add("A<<E\n" + v + "\nE\nsecret-" + "B=1\nvalue")
	set := needles(v)
	f.Fuzz(func(t *testing.T, in string) {
		for _, mark := range []string{"\xff\xfe", "\xfe\xff", "\x00\x00\xfe\xff"} {
			if strings.HasPrefix(in, mark) {
				return // read as UTF-16 or UTF-32
			}
		}
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, []byte(in))
		if _, err := leakscan.ScrubCommandFile(path, leakscan.Entries, set); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if set.Any(got) {
			t.Fatalf("%q became %q, with the value in it", in, got)
		}
		if !set.Any([]byte(in)) && string(got) != in {
			t.Fatalf("%q became %q, without a value in it", in, got)
		}
		before, ok := runnerReads(in)
		after, _ := runnerReads(string(got))
		if !ok {
			return
		}
		rest := before
		for _, entry := range after {
			i := 0
			for i < len(rest) && rest[i] != entry {
				i++
			}
			if i == len(rest) {
				t.Fatalf("%q became %q: the runner takes %q, which it didn't before", in, got, entry)
			}
			rest = rest[i+1:]
		}
		if diff := cmp.Diff(without(before, set), without(after, set)); diff != "" {
			t.Fatalf("%q became %q: entries without a value (-before +after):\n%s", in, got, diff)
		}
	})
}

// without are the entries that have no value in them, taken apart as in a file.
func without(entries []string, set *needle.Set) []string {
	out := []string{}
	for _, e := range entries {
		if !set.Any([]byte(e)) {
			out = append(out, e)
		}
	}
	return out
}
