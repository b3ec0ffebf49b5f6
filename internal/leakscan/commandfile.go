package leakscan

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"syscall"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/runenv/action/internal/needle"
)

// A Format is how a CI reads one of its command files.
type Format uint8

const (
	// Entries are NAME=value lines and NAME<<DELIMITER blocks: GITHUB_ENV,
	// GITHUB_OUTPUT and GITHUB_STATE.
	Entries Format = iota
	// Lines are what GITHUB_PATH and GITHUB_STEP_SUMMARY consist of.
	Lines
)

const (
	// maxCommandBytes is the size up to which single entries are cut out. A
	// larger file with a value in it is emptied.
	maxCommandBytes = 16 << 20
	// maxCommandRead is how much of a command file is searched at all. The
	// runner reads it whole into memory, and can't take more either.
	maxCommandRead = 1 << 30
	// maxCuts is how often a file is looked at again: others may append.
	maxCuts = 8
)

// ScrubCommandFile cuts out of a command file each entry in which a value of
// the set stands, and reports the hits, one for each lease. What isn't there
// has no hits, and neither has what isn't a file, since nothing can be read
// back from it; a symbolic link is an error. A file of our own that is read-only
// becomes writable if it can be read.
//
// The file stays the same file. What is cut is first overwritten by empty
// lines, from its end to its beginning, so that at no moment a part of a value
// stands where a CI would take it for an entry. An error that comes with hits
// says that a value may still be there.
func ScrubCommandFile(path string, format Format, set *needle.Set) ([]Hit, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, commandError(set, path, err)
	}
	if !info.Mode().IsRegular() {
		if info.Mode()&fs.ModeSymlink != 0 {
			return nil, commandError(set, path, errors.New("it is a symbolic link"))
		}
		return nil, nil
	}
	f, err := openSame(path, info, os.O_RDWR)
	if errors.Is(err, fs.ErrPermission) && makeWritable(path, info) == nil {
		f, err = openSame(path, info, os.O_RDWR)
	}
	if err != nil {
		return nil, commandError(set, path, err)
	}
	hits, err := scrubCommands(f, func() (*os.File, error) { return openSame(path, info, os.O_WRONLY|os.O_APPEND) }, format, set)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	for i := range hits {
		hits[i].Path, hits[i].Scrubbed = show(set, path), err == nil
	}
	if err != nil {
		err = commandError(set, path, err)
	}
	return hits, err
}

func commandError(set *needle.Set, path string, err error) error {
	// The path in a PathError isn't fit to be seen.
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	return fmt.Errorf("searching the command file %s: %w", show(set, path), err)
}

// makeWritable is for a file of our own that the command made read-only: the
// runner reads it all the same.
func makeWritable(path string, info fs.FileInfo) error {
	f, err := openSame(path, info, os.O_RDONLY)
	if err != nil {
		return err
	}
	err = f.Chmod(info.Mode().Perm() | 0o200)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// openSame opens the file that info is of. A named pipe that took its place
// doesn't hold it up.
func openSame(path string, info fs.FileInfo, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	now, err := f.Stat()
	if err == nil && !os.SameFile(info, now) {
		err = errors.New(reasonSwapped)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func scrubCommands(f *os.File, appender func() (*os.File, error), format Format, set *needle.Set) ([]Hit, error) {
	var hits []Hit
	for range maxCuts {
		text, err := io.ReadAll(io.NewSectionReader(f, 0, maxCommandBytes+1))
		if err != nil {
			return hits, err
		}
		if len(text) > maxCommandBytes {
			return emptyLarge(f, text, hits, set)
		}
		utf8Text, wide := narrow(text)
		mixed := wide && set.Any(text)
		if mixed {
			// Another program appended to it as if it were UTF-8. The runner
			// takes that for other characters, and no entry ends where it seems to.
			utf8Text = text
		}
		ranges, found := findAll(utf8Text, set)
		if len(ranges) == 0 {
			return hits, nil
		}
		if hits == nil {
			hits = found
		}
		cuts, kept := cut(utf8Text, ranges, format)
		read := int64(len(text))
		if wide {
			// A file that .NET would read as UTF-16 or UTF-32 becomes one in UTF-8.
			kept = append(utf8Text[:cuts[0].start:cuts[0].start], kept...)
			if mixed {
				kept = nil
			}
			cuts = []span{{0, len(text)}}
		}
		if err := replace(f, appender, cuts, kept, read); err != nil {
			return hits, err
		}
	}
	return hits, errors.New("others keep writing values to it")
}

// emptyLarge searches a large file, and empties it if a value is in it. One
// that is too large is emptied unread: a command may have made it endless by a
// hole. So is one in UTF-16 or UTF-32; head is how it begins.
func emptyLarge(f *os.File, head []byte, hits []Hit, set *needle.Set) ([]Hit, error) {
	info, err := f.Stat()
	if err != nil {
		return hits, err
	}
	if info.Size() > maxCommandRead {
		return hits, errors.Join(errLarge, f.Truncate(0))
	}
	if wide, _ := wideUnits(head); wide > 0 {
		return hits, errors.Join(errLargeWide, f.Truncate(0))
	}
	s := newStream(set, bufBytes)
	s.reset(io.NewSectionReader(f, 0, maxCommandRead))
	if err := s.drain(); err != nil {
		return hits, err
	}
	if len(s.hits) == 0 {
		return hits, nil
	}
	return append(hits, hitsOf(s.hits, set)...), f.Truncate(0)
}

var (
	errLarge     = errors.New("it has over 1 GiB, and was emptied unread")
	errLargeWide = errors.New("it has over 16 MiB in UTF-16 or UTF-32, and was emptied unread")
)

func hitsOf(all []found, set *needle.Set) []Hit {
	var hits []Hit
	for _, f := range all {
		hits = append(hits, Hit{Where: Content, Lease: set.Lease(f.lease), Offset: f.offset, Count: f.count})
	}
	return hits
}

// A span is a part of a text, in bytes.
type span struct{ start, end int }

func findAll(text []byte, set *needle.Set) ([]span, []Hit) {
	var ranges []span
	s := newStream(set, 0)
	set.Find(text, true, func(start, end, lease int) {
		ranges = append(ranges, span{start, end})
		s.found(start, end, lease)
	})
	return ranges, hitsOf(s.hits, set)
}

// wideUnits is how many bytes each unit of a text has, as its first bytes say,
// by which .NET goes too; 0 says that it isn't UTF-16 or UTF-32.
func wideUnits(text []byte) (size int, order binary.ByteOrder) {
	switch {
	case bytes.HasPrefix(text, []byte{0xff, 0xfe, 0, 0}):
		return 4, binary.LittleEndian
	case bytes.HasPrefix(text, []byte{0, 0, 0xfe, 0xff}):
		return 4, binary.BigEndian
	case bytes.HasPrefix(text, []byte{0xff, 0xfe}):
		return 2, binary.LittleEndian
	case bytes.HasPrefix(text, []byte{0xfe, 0xff}):
		return 2, binary.BigEndian
	}
	return 0, nil
}

// narrow turns UTF-16 and UTF-32, which PowerShell writes and the runner reads,
// into UTF-8. It reports whether it had to.
func narrow(text []byte) ([]byte, bool) {
	size, order := wideUnits(text)
	switch size {
	case 2:
		var units []uint16
		for i := size; i+size <= len(text); i += size {
			units = append(units, order.Uint16(text[i:]))
		}
		return []byte(string(utf16.Decode(units))), true
	case 4:
		var out []byte
		for i := size; i+size <= len(text); i += size {
			// Too large for a rune, it is no character, whatever its sign.
			out = utf8.AppendRune(out, rune(order.Uint32(text[i:])))
		}
		return out, true
	}
	return text, false
}

// cut splits a text into the entries with a hit and what is left from the first
// of them on.
func cut(text []byte, hits []span, format Format) (cuts []span, kept []byte) {
	for at := 0; at < len(text); {
		end := lineEnd(text, at)
		if format == Entries {
			end = entryEnd(text, at)
		}
		for len(hits) > 0 && hits[0].end <= at {
			hits = hits[1:]
		}
		switch {
		case overlaps(hits, at, end):
			cuts = append(cuts, span{at, end})
		case len(cuts) > 0:
			kept = append(kept, text[at:end]...)
		}
		at = end
	}
	return cuts, kept
}

// overlaps: hits are in order of their beginnings, and one may lie in another.
func overlaps(hits []span, start, end int) bool {
	for _, h := range hits {
		if h.start >= end {
			return false
		}
		if h.end > start {
			return true
		}
	}
	return false
}

func lineEnd(text []byte, at int) int {
	if i := bytes.IndexByte(text[at:], '\n'); i >= 0 {
		return at + i + 1
	}
	return len(text)
}

// entryEnd finds where the entry that begins at a line ends, as GitHub's runner
// does: a block that is never closed goes on to the end.
func entryEnd(text []byte, at int) int {
	end := lineEnd(text, at)
	line := lineText(text[at:end])
	equals, heredoc := bytes.IndexByte(line, '='), bytes.Index(line, []byte("<<"))
	if heredoc < 0 || equals >= 0 && equals < heredoc {
		return end
	}
	delimiter := line[heredoc+2:]
	for end < len(text) {
		next := lineEnd(text, end)
		line := lineText(text[end:next])
		end = next
		if bytes.Equal(line, delimiter) {
			break
		}
	}
	return end
}

// lineText is a line without its end. A carriage return belongs to the end on
// Windows alone.
func lineText(line []byte) []byte {
	line = bytes.TrimSuffix(line, []byte("\n"))
	if runtime.GOOS == "windows" {
		line = bytes.TrimSuffix(line, []byte("\r"))
	}
	return line
}

// replace overwrites the cuts, and then everything from the first of them on by
// what is kept of it and by what others have written since read bytes were.
func replace(f *os.File, appender func() (*os.File, error), cuts []span, kept []byte, read int64) error {
	for i := len(cuts) - 1; i >= 0; i-- {
		c := cuts[i]
		if _, err := f.WriteAt(bytes.Repeat([]byte("\n"), c.end-c.start), int64(c.start)); err != nil {
			return err
		}
	}
	late, err := io.ReadAll(io.NewSectionReader(f, read, maxCommandBytes))
	if err != nil {
		return err
	}
	kept = append(kept, late...)
	if err := f.Truncate(int64(cuts[0].start)); err != nil {
		return err
	}
	if len(kept) == 0 {
		return nil
	}
	// Whoever else appends now comes before or after, never between.
	a, err := appender()
	if err != nil {
		return err
	}
	_, err = a.Write(kept)
	if closeErr := a.Close(); err == nil {
		err = closeErr
	}
	return err
}
