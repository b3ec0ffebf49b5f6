package leakscan

import (
	"archive/tar"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"io"
	"strings"
)

// memberSep stands between an archive and what is in it.
const memberSep = "!/"

// limits bound what one file may make a search do.
type limits struct {
	depth   int   // archives in each other; a compressed tar is two
	members int   // of all archives in a file
	free    int64 // bytes that any file may unpack to
	ratio   int64 // how many times its own size a file may unpack to, besides
	total   int64 // bytes that all files may unpack to, together
}

// Deflate packs zeros 1,032 times as small, and real logs up to 100 times.
var defaultLimits = limits{depth: 8, members: 1_000_000, free: 16 << 20, ratio: 250, total: 16 << 30}

// allow is how much a file of size bytes may unpack to.
func (l limits) allow(size int64) int64 {
	return l.free + min(size, 1<<40)*l.ratio
}

// A layer unpacks at one depth inside archives. Its parts are made when they
// are first needed, and used again.
type layer struct {
	stream *stream
	gz     *gzip.Reader
	zl     io.ReadCloser
	fl     io.ReadCloser
	tmp    []byte
}

func (w *worker) layer(depth int) *layer {
	for len(w.layers) <= depth {
		w.layers = append(w.layers, &layer{})
	}
	return w.layers[depth]
}

type packing uint8

const (
	plain packing = iota
	gzipped
	deflated // with zlib's head, as git's objects are
	zipped
	tarred
)

const (
	tarBlock = 512
	zipHead  = "PK\x03\x04"
	zipEmpty = "PK\x05\x06"
	gzipHead = "\x1f\x8b\x08"
)

func packingOf(head []byte) packing {
	switch {
	case bytes.HasPrefix(head, []byte(gzipHead)):
		return gzipped
	case bytes.HasPrefix(head, []byte(zipHead)), bytes.HasPrefix(head, []byte(zipEmpty)):
		return zipped
	case len(head) >= 2 && head[0] == 0x78 && head[1]&0x20 == 0 && binary.BigEndian.Uint16(head)%31 == 0:
		return deflated
	case isTar(head):
		return tarred
	}
	return plain
}

// isTar checks the sum of the first header: old archives have no other mark.
func isTar(head []byte) bool {
	if len(head) < tarBlock {
		return false
	}
	field := strings.Trim(string(head[148:156]), " \x00")
	if field == "" || strings.Trim(field, "01234567") != "" || head[0] == 0 {
		return false
	}
	var want, got int
	for _, c := range field {
		want = want<<3 | int(c-'0')
	}
	for i, c := range head[:tarBlock] {
		if i >= 148 && i < 156 {
			c = ' '
		}
		got += int(c)
	}
	return want == got
}

// contents searches a stream to its end, and what is packed in it. It reports
// whether it is no archive.
func (w *worker) contents(s *stream, member string, depth int) bool {
	p := packingOf(s.peek(tarBlock))
	archive := p != plain
	switch {
	case !archive:
	case depth == w.limits.depth:
		w.gap(w.in, w.rel, member, reasonNested)
		p = plain
	case depth == 0 && w.source.hollow():
		w.gap(w.in, w.rel, member, reasonHollow)
		p = plain
	}
	switch p {
	case gzipped:
		w.gunzip(s, member, depth)
	case deflated:
		// Two bytes are a weak mark: what isn't zlib is a file like any other.
		archive = w.inflateZlib(s, member, depth)
	case zipped:
		w.unzip(s, member, depth)
	case tarred:
		w.untar(s, member, depth)
	case plain:
		if depth == 0 {
			w.source.holes = w.source.m.sparse()
		}
	}
	if err := s.drain(); err != nil && !w.overflow {
		w.gap(w.in, w.rel, member, unpackReason(err))
	}
	w.collect(s, member)
	return !archive
}

// unpackReason is for errors of files and of unpackers.
func unpackReason(err error) string {
	var corrupt flate.CorruptInputError
	if errors.As(err, &corrupt) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, gzip.ErrChecksum) ||
		errors.Is(err, gzip.ErrHeader) || errors.Is(err, zlib.ErrChecksum) || errors.Is(err, tar.ErrHeader) {
		return reasonMalformed
	}
	return reason(err)
}

// unpack searches what comes out of an unpacker.
func (w *worker) unpack(member string, depth int, from io.Reader) {
	if !w.open(member) {
		return
	}
	inner := w.layer(depth + 1)
	if inner.stream == nil {
		inner.stream = newStream(w.set, innerBytes)
	}
	inner.stream.reset(from)
	w.contents(inner.stream, member, depth+1)
}

// open counts a member of an archive.
func (w *worker) open(member string) bool {
	if w.members--; w.members < 0 {
		w.full(member, reasonMembers)
		return false
	}
	w.counts.Members++
	return true
}

// full tells once of a file that a limit was reached.
func (w *worker) full(member, reason string) {
	if !w.overflow {
		w.overflow = true
		w.gap(w.in, w.rel, member, reason)
	}
}

var errTooMuch = errors.New("unpacks to too much")

// A meter counts what an unpacker gives, and stops it.
type meter struct {
	w      *worker
	member string
	from   io.Reader
	packed bool // what it gives was compressed
}

func (m *meter) Read(p []byte) (int, error) {
	w := m.w
	if w.overflow {
		return 0, errTooMuch
	}
	if w.inflate <= 0 || w.inflated.Load() > w.limits.total {
		w.full(m.member, reasonInflated)
		return 0, errTooMuch
	}
	n, err := m.from.Read(p[:min(int64(len(p)), w.inflate)])
	w.inflate -= int64(n)
	if m.packed {
		w.inflated.Add(int64(n))
		w.counts.Inflated += int64(n)
	}
	return n, err
}

// innerName names what a compressed file holds: its own name without the end
// that says how it is compressed.
func (w *worker) innerName(member string) string {
	name := member
	if name == "" {
		name = w.rel
	}
	name = name[strings.LastIndexByte(name, '/')+1:]
	switch {
	case strings.HasSuffix(name, ".tgz"):
		name = name[:len(name)-2] + "ar"
	case strings.HasSuffix(name, ".gz"):
		name = name[:len(name)-3]
	}
	return join(member, name)
}

// inside is where a member is. An archive's own words for that may be long, and
// there are many hits.
func (w *worker) inside(archive, name string) string {
	if len(name) > maxMemberName {
		name = short(show(w.set, name), maxMemberName)
	}
	return join(archive, name)
}

func join(archive, name string) string {
	if archive == "" {
		return name
	}
	return archive + memberSep + name
}

// gunzip searches what is in the gzip members of a stream, one after the other,
// as one file.
func (w *worker) gunzip(s *stream, member string, depth int) {
	l := w.layer(depth)
	if l.gz == nil {
		l.gz = new(gzip.Reader)
	}
	if err := l.gz.Reset(s); err != nil {
		w.gap(w.in, w.rel, member, unpackReason(err))
		return
	}
	l.gz.Multistream(false)
	inner := w.innerName(member)
	w.memberName(inner, l.gz.Name)
	w.unpack(inner, depth, &meter{w: w, member: inner, from: &gunzipper{s: s, gz: l.gz}, packed: true})
}

type gunzipper struct {
	s  *stream
	gz *gzip.Reader
}

func (g *gunzipper) Read(p []byte) (int, error) {
	for {
		n, err := g.gz.Read(p)
		if n > 0 || !errors.Is(err, io.EOF) {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return n, err
		}
		// What follows and is no gzip is padding, and was searched as it is.
		if !bytes.HasPrefix(g.s.peek(len(gzipHead)), []byte(gzipHead)) {
			return 0, io.EOF
		}
		if err := g.gz.Reset(g.s); err != nil {
			return 0, err
		}
		g.gz.Multistream(false)
	}
}

// inflateZlib searches what a zlib stream holds. It reports false if it holds
// nothing.
func (w *worker) inflateZlib(s *stream, member string, depth int) bool {
	l := w.layer(depth)
	var err error
	if l.zl == nil {
		l.zl, err = zlib.NewReader(s)
	} else {
		err = l.zl.(zlib.Resetter).Reset(s, nil) // compress/zlib documents it
	}
	if err != nil {
		return false
	}
	if len(l.tmp) == 0 {
		l.tmp = make([]byte, tarBlock)
	}
	n, err := l.zl.Read(l.tmp[:tarBlock])
	if n == 0 {
		return false
	}
	inner := w.innerName(member)
	from := io.Reader(bytes.NewReader(bytes.Clone(l.tmp[:n])))
	broken := err != nil && !errors.Is(err, io.EOF)
	if !broken {
		from = io.MultiReader(from, l.zl)
	}
	w.unpack(inner, depth, &meter{w: w, member: inner, from: from, packed: true})
	return !broken
}

// memberName searches the names that an archive has for a member.
func (w *worker) memberName(member string, names ...string) {
	for _, name := range names {
		w.findName(name, 0)
		for _, f := range w.named {
			w.pend(member, Name, f)
		}
	}
}

func (w *worker) untar(s *stream, member string, depth int) {
	r := tar.NewReader(s)
	for w.ctx.Err() == nil && !w.overflow { // to pass over a member is to read it
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			w.gap(w.in, w.rel, member, unpackReason(err))
			return
		}
		inner := w.inside(member, h.Name)
		w.memberName(inner, h.Name, h.Linkname)
		if h.Size > 0 {
			// A sparse member may be far longer than the archive.
			w.unpack(inner, depth, &meter{w: w, member: inner, from: r})
		}
	}
}

// What the head of a member of a zip archive says.
type zipMember struct {
	flags, method uint16
	packed        uint64 // bytes; unknown with zipStreamed
	name          string
}

const (
	zipHeadBytes = 30
	zipEncrypted = 1 << 0
	zipStreamed  = 1 << 3
	zipStored    = 0
	zipDeflated  = 8
	zip64Extra   = 1
	zipMaxNeeded = 63 // the version of the format that may be needed, times ten
)

// unzip goes from one member's head to the next, as they stand, rather than by
// the directory at the end: so it finds those that no directory names, needs no
// way to go back, and finds its way on after damage.
func (w *worker) unzip(s *stream, member string, depth int) {
	for w.ctx.Err() == nil && !w.overflow {
		if !seek(s, zipHead) {
			return
		}
		m, ok := w.zipMember(s, depth)
		if !ok {
			continue
		}
		inner := w.inside(member, m.name)
		w.memberName(inner, m.name)
		switch {
		case m.flags&zipEncrypted != 0:
			w.gap(w.in, w.rel, inner, reasonEncrypted)
		case m.method == zipDeflated:
			l := w.layer(depth)
			if l.fl == nil {
				l.fl = flate.NewReader(s)
			} else if err := l.fl.(flate.Resetter).Reset(s, nil); err != nil { // compress/flate documents it
				return
			}
			w.unpack(inner, depth, &meter{w: w, member: inner, from: l.fl, packed: true})
		case m.method != zipStored:
			w.gap(w.in, w.rel, inner, reasonMethod)
		case m.packed > 0:
			w.stored(s, inner, depth, m.packed)
		case m.flags&zipStreamed != 0 && !bytes.HasPrefix(s.peek(len(zipHead)), []byte("PK")):
			// Where it ends isn't said before it. As it isn't compressed it
			// was searched, but for what it may itself be.
			w.gap(w.in, w.rel, inner, reasonMethod)
		}
	}
}

func (w *worker) stored(s *stream, inner string, depth int, packed uint64) {
	limited := &io.LimitedReader{R: s, N: int64(min(packed, 1<<62))}
	w.unpack(inner, depth, limited)
	if limited.N > 0 && !w.overflow && s.err != nil {
		w.gap(w.in, w.rel, inner, reasonMalformed)
	}
}

// zipMember reads the head of a member. If it isn't one, no more than the mark
// that it begins with is read.
func (w *worker) zipMember(s *stream, depth int) (m zipMember, ok bool) {
	h := s.peek(zipHeadBytes)
	if len(h) < zipHeadBytes {
		s.skip(len(zipHead))
		return m, false
	}
	m.flags, m.method = binary.LittleEndian.Uint16(h[6:]), binary.LittleEndian.Uint16(h[8:])
	m.packed = uint64(binary.LittleEndian.Uint32(h[18:]))
	nameBytes, extraBytes := int(binary.LittleEndian.Uint16(h[26:])), int(binary.LittleEndian.Uint16(h[28:]))
	if h[4] > zipMaxNeeded || m.method > 99 || nameBytes == 0 {
		s.skip(len(zipHead))
		return m, false
	}
	s.skip(zipHeadBytes)
	l := w.layer(depth)
	if need := nameBytes + extraBytes; len(l.tmp) < need {
		l.tmp = make([]byte, max(need, 4<<10))
	}
	text := l.tmp[:nameBytes+extraBytes]
	if n, err := io.ReadFull(s, text); err != nil {
		w.gap(w.in, w.rel, "", reasonMalformed)
		m.name = string(text[:min(n, nameBytes)])
		return m, false
	}
	m.name = string(text[:nameBytes])
	if m.packed == 1<<32-1 {
		m.packed = zip64Size(text[nameBytes:])
	}
	return m, true
}

// zip64Size finds the packed size among a member's extra fields; 0 if there is
// none.
func zip64Size(extra []byte) uint64 {
	for len(extra) >= 4 {
		id, n := binary.LittleEndian.Uint16(extra), int(binary.LittleEndian.Uint16(extra[2:]))
		extra = extra[4:]
		if n > len(extra) {
			return 0
		}
		if id == zip64Extra && n >= 16 {
			return binary.LittleEndian.Uint64(extra[8:]) // after the size unpacked
		}
		extra = extra[n:]
	}
	return 0
}

// seek reads on to where mark begins.
func seek(s *stream, mark string) bool {
	for {
		if i := bytes.Index(s.buf[s.read:s.end], []byte(mark)); i >= 0 {
			s.read += i
			return true
		}
		s.read = max(s.read, s.end-len(mark)+1)
		if s.fill() != nil {
			return false
		}
	}
}

// skip passes over bytes that were peeked at.
func (s *stream) skip(n int) { s.read = min(s.read+n, s.end) }
