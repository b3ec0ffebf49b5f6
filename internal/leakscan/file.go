package leakscan

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"path/filepath"
	"strings"

	"github.com/runenv/action/internal/needle"
)

const (
	// sparseFrom is the size in bytes from which holes are looked for.
	sparseFrom = 1 << 20
	// maxHoles is how many bytes that were never written are read of a file
	// that is an archive, in which nothing can be left out.
	maxHoles = 4 << 30
)

// sparse: there are holes in it, or a file system packs what it holds.
func (m meta) sparse() bool { return m.stored < m.size && m.size >= sparseFrom }

// maxPending bounds the hits of one file that are kept until it is read.
const maxPending = 4 * maxHits

// A worker searches, with buffers of its own.
type worker struct {
	*search
	findings

	source source
	top    *stream
	layers []*layer // by depth inside archives

	// Of the name that is looked at:
	nameFrom int // hits that end before it are of a folder above
	named    []found
	tellName func(start, end, lease int)

	// Of the file that is looked at:
	in       *dir
	rel      string
	pending  []Hit
	inflate  int64 // how much more of it may be unpacked, in bytes
	members  int   // how many more members may be opened
	overflow bool  // one of the two ran out, and was told of
}

func newWorker(s *search) *worker {
	w := &worker{search: s, findings: newFindings()}
	w.tellName = func(start, end, lease int) {
		if end <= w.nameFrom {
			return
		}
		for i := range w.named {
			if f := &w.named[i]; f.lease == lease {
				if int64(start) >= f.until {
					f.count++
				}
				f.until = max(f.until, int64(end))
				return
			}
		}
		w.named = append(w.named, found{lease, int64(start), 1, int64(end)})
	}
	return w
}

func (w *worker) path(in *dir, rel string) string {
	return short(filepath.FromSlash(show(w.set, filepath.ToSlash(filepath.Join(in.root, rel)))), maxPathShown)
}

func (w *worker) gap(in *dir, rel, member, reason string) {
	w.gaps.add(Gap{Path: w.path(in, rel), Member: show(w.set, member), Reason: reason})
}

// name searches a name, or a path for what reaches beyond from.
func (w *worker) name(in *dir, rel, text string, from int, where Where) {
	w.findName(text, from)
	for _, f := range w.named {
		w.hits.add(Hit{Path: w.path(in, rel), Where: where, Lease: w.set.Lease(f.lease), Offset: f.offset, Count: f.count})
	}
}

func (w *worker) findName(text string, from int) {
	w.named, w.nameFrom = w.named[:0], from
	w.set.Find([]byte(text), true, w.tellName)
}

// file searches a regular file.
func (w *worker) file(in *dir, name, rel string) {
	f, m, err := in.open(name, false)
	if err != nil {
		w.failed(in, name, err)
		return
	}
	defer f.close()
	if m.kind != regular {
		w.gap(in, rel, "", reasonSwapped)
		return
	}
	w.counts.Read++
	if w.top == nil {
		w.top = newStream(w.set, bufBytes)
	}
	w.in, w.rel, w.pending = in, rel, w.pending[:0]
	w.inflate, w.members, w.overflow = w.limits.allow(min(m.size, m.stored)), w.limits.members, false
	w.source = source{ctx: w.ctx.Err, f: f, m: m}
	w.top.reset(&w.source)
	plain := w.contents(w.top, "", 0)
	w.counts.Bytes += w.source.at - w.source.skipped
	switch {
	case !plain || !w.source.zipAtEnd(w.top):
	case w.source.hollow():
		plain = false
		w.gap(in, rel, "", reasonHollow)
	default:
		// A program with an archive behind it. Its bytes were searched.
		plain = false
		w.source = source{ctx: w.ctx.Err, f: f, m: m}
		w.top.reset(&w.source)
		w.unzip(w.top, "", 0)
	}
	if len(w.pending) == 0 {
		return
	}
	if w.scrub && plain && !in.keep {
		w.overwrite(name, m)
	}
	w.settle()
}

// collect takes the hits of a stream that was read.
func (w *worker) collect(s *stream, member string) {
	for _, f := range s.hits {
		w.pend(member, Content, f)
	}
}

func (w *worker) pend(member string, where Where, f found) {
	if len(w.pending) == maxPending {
		w.hits.dropped++
		return
	}
	w.pending = append(w.pending, Hit{Member: member, Where: where, Lease: w.set.Lease(f.lease), Offset: f.offset, Count: f.count})
}

// settle reports the hits of a file: those in an archive at the member alone,
// though an archive that isn't compressed shows them too.
func (w *worker) settle() {
	type outer struct{ member, lease string }
	inside := map[outer]bool{}
	for _, h := range w.pending {
		if h.Member == "" {
			continue
		}
		inside[outer{"", h.Lease}] = true
		for i := 0; ; i += len(memberSep) {
			next := strings.Index(h.Member[i:], memberSep)
			if next < 0 {
				break
			}
			i += next
			inside[outer{h.Member[:i], h.Lease}] = true
		}
	}
	path := w.path(w.in, w.rel)
	for _, h := range w.pending {
		if h.Where == Content && inside[outer{h.Member, h.Lease}] {
			continue
		}
		h.Path, h.Member = path, show(w.set, h.Member)
		w.hits.add(h)
	}
}

// overwrite puts asterisks over each value in a file, and notes in its hits
// whether it could.
func (w *worker) overwrite(name string, was meta) {
	f, m, err := w.in.open(name, true)
	if err != nil {
		return
	}
	defer f.close()
	if m.id != was.id || m.kind != regular {
		return
	}
	var stars [needle.MaxBytes]byte
	for i := range stars {
		stars[i] = '*'
	}
	w.source = source{ctx: w.ctx.Err, f: f, m: m, holes: m.sparse()}
	w.top.reset(&w.source)
	w.top.wipe = func(start, end int64) error { return f.writeAt(stars[:end-start], start) }
	if w.top.drain() != nil || w.top.wipeErr != nil {
		return
	}
	for i := range w.pending {
		w.pending[i].Scrubbed = true
	}
}

// A source reads a file from its beginning to the end that it had when it was
// opened. With holes it leaves out what was never written, but for as much at
// its borders as a needle may reach into.
type source struct {
	ctx     func() error
	f       file
	m       meta
	at      int64
	holes   bool
	until   int64 // what lies before it is to be read
	skipped int64 // in all
	jump    int64 // since jumped was called
}

// hollow: it would take long to read what it doesn't hold.
func (s *source) hollow() bool { return s.m.size-s.m.stored > maxHoles }

func (s *source) jumped() int64 {
	n := s.jump
	s.jump = 0
	return n
}

// Read implements [io.Reader].
func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx(); err != nil {
		return 0, err
	}
	if s.holes && s.at >= s.until && s.at < s.m.size {
		s.next()
	}
	// A file that is said to be empty may be one of a kernel's.
	if s.m.size > 0 && s.at >= s.m.size {
		return 0, io.EOF
	}
	if s.holes {
		p = p[:min(int64(len(p)), s.until-s.at)]
	}
	n, err := s.f.readAt(p, s.at)
	s.at += int64(n)
	if err == nil && s.m.size > 0 && s.at >= s.m.size {
		err = io.EOF
	}
	return n, err
}

// next moves on to shortly before the next data.
func (s *source) next() {
	start, end, err := s.f.data(s.at)
	if errors.Is(err, io.EOF) {
		start, end, err = s.m.size, s.m.size, nil
	}
	if err != nil || end < s.at {
		s.until = s.m.size // this file system doesn't know
		return
	}
	if over := min(start, s.m.size) - needle.MaxBytes - s.at; over > 0 {
		s.at += over
		s.jump += over
		s.skipped += over
	}
	s.until = min(end+needle.MaxBytes, s.m.size)
}

// zipEndBytes is the size of what a zip archive ends with, and maxZipTail of
// that with as much of a comment as is looked through.
const (
	zipEndBytes = 22
	maxZipTail  = zipEndBytes + 4<<10
)

// zipAtEnd reports whether a stream that was read to its end ends as a zip
// archive does.
func (s *source) zipAtEnd(t *stream) bool {
	tail := t.buf[:t.end]
	if want := min(s.at, maxZipTail); int64(len(tail)) < want || s.skipped > 0 {
		tail = make([]byte, want) // the buffer holds only the last piece
		n, err := s.f.readAt(tail, s.at-want)
		if err != nil {
			return false
		}
		tail = tail[:n]
	}
	tail = tail[max(0, len(tail)-maxZipTail):]
	for {
		i := bytes.Index(tail, []byte(zipEmpty))
		if i < 0 || len(tail)-i < zipEndBytes {
			return false
		}
		if tail = tail[i:]; len(tail) == zipEndBytes+int(binary.LittleEndian.Uint16(tail[zipEndBytes-2:])) {
			return true
		}
		tail = tail[len(zipEmpty):]
	}
}
