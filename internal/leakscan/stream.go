package leakscan

import (
	"errors"
	"io"

	"github.com/runenv/action/internal/needle"
)

// A stream searches what is read through it, each byte once, however the
// reads are cut. It is an [io.Reader] and [io.ByteReader] for what unpacks it.
type stream struct {
	set  *needle.Set
	src  io.Reader
	buf  []byte
	read int // bytes of buf before it are read
	end  int // bytes of buf before it are there
	// settled: hits that begin before it are told of.
	settled int
	base    int64 // where buf begins in src
	err     error // of src, io.EOF included: no more comes
	hits    []found
	tell    func(start, end, lease int)
	wipe    func(start, end int64) error // nil: hits are only told of
	wipeErr error
}

// found are the hits of one lease.
type found struct {
	lease  int
	offset int64 // of the first
	count  int
	until  int64 // end of the last
}

// A jumper is a source that leaves out zeros: jumped is how many bytes since
// it was last asked.
type jumper interface{ jumped() int64 }

func newStream(set *needle.Set, bytes int) *stream {
	s := &stream{set: set, buf: make([]byte, bytes)}
	s.tell = s.found
	return s
}

// reset makes s a stream of src.
func (s *stream) reset(src io.Reader) {
	s.src, s.read, s.end, s.settled, s.base, s.err, s.hits = src, 0, 0, 0, 0, nil, s.hits[:0]
	s.wipe, s.wipeErr = nil, nil
}

func (s *stream) found(start, end, lease int) {
	from := s.base + int64(s.settled) + int64(start)
	to := from + int64(end-start)
	if s.wipe != nil {
		if err := s.wipe(from, to); err != nil && s.wipeErr == nil {
			s.wipeErr = err
		}
	}
	for i := range s.hits {
		f := &s.hits[i]
		if f.lease != lease {
			continue
		}
		if from >= f.until {
			f.count++
		}
		f.until = max(f.until, to)
		return
	}
	s.hits = append(s.hits, found{lease, from, 1, to})
}

// fill gets at least one byte more, or the error that says why there is none.
// The buffer must have room: nobody may peek at a whole buffer.
func (s *stream) fill() error {
	if s.err != nil {
		return s.err
	}
	if keep := min(s.read, s.settled); keep > 0 {
		copy(s.buf, s.buf[keep:s.end])
		s.read -= keep
		s.end -= keep
		s.settled -= keep
		s.base += int64(keep)
	}
	n := 0
	for tries := 0; n == 0 && s.err == nil; tries++ {
		n, s.err = s.src.Read(s.buf[s.end:])
		if tries > 100 {
			s.err = io.ErrNoProgress
		}
	}
	if j, ok := s.src.(jumper); ok {
		s.base += j.jumped()
	}
	s.end += n
	s.settled += s.set.Find(s.buf[s.settled:s.end], s.err != nil, s.tell)
	if n == 0 {
		return s.err
	}
	return nil
}

// peek shows up to n bytes that come next, fewer at the end.
func (s *stream) peek(n int) []byte {
	for s.end-s.read < n && s.fill() == nil {
	}
	return s.buf[s.read:min(s.end, s.read+n)]
}

// Read implements [io.Reader].
func (s *stream) Read(p []byte) (int, error) {
	if s.read == s.end {
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.buf[s.read:s.end])
	s.read += n
	return n, nil
}

// ReadByte implements [io.ByteReader], so that an unpacker takes no byte that
// isn't its own.
func (s *stream) ReadByte() (byte, error) {
	if s.read == s.end {
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	c := s.buf[s.read]
	s.read++
	return c, nil
}

// drain reads to the end, and says why it couldn't.
func (s *stream) drain() error {
	for {
		s.read = s.end
		if err := s.fill(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}
