// Package redact hides secret values in a stream of bytes as it passes.
//
// A [Redactor] finds each value as it is, line by line, and in the encodings
// that programs put it in: base64 (both alphabets, at any offset in a larger
// text, with or without padding, whole or wrapped at 64 or 76 columns), hex,
// percent-encoding and JSON strings. Each hit becomes [REDACTED:lease].
//
// It promises that the split of the stream into writes changes nothing, that
// overlapping hits are hidden to the last byte of each, that a writer holds
// back no more than what may still become a hit (at most 127 bytes), and that
// memory and time per byte are bounded whatever passes.
//
// It can't recognise a value that was transformed in another way, and leaves
// values under six bytes alone: hiding "1" would hide every 1 in the log.
package redact

import (
	"fmt"
	"io"
	"os"

	"github.com/runenv/action/internal/needle"
)

// MinBytes is the length from which a value, or a line of one, is hidden.
const MinBytes = needle.MinBytes

// sliceBytes is how much of a long Write is looked at in one go, so that a
// writer's buffers stay small.
const sliceBytes = 64 << 10

// A Secret is a value to hide and the lease to name in its place.
type Secret = needle.Secret

// A Redactor knows what to hide. It keeps copies of the values, never changes
// once made, and is safe for concurrent use.
type Redactor struct {
	set    *needle.Set
	marker [][]byte // by lease number
}

// New compiles the secrets. Where two leases have the same value, the first
// is the one that is named.
func New(secrets []Secret) *Redactor {
	r := &Redactor{set: needle.New(secrets)}
	for i := range r.set.Leases() {
		r.marker = append(r.marker, fmt.Appendf(nil, "[REDACTED:%s]", r.set.Lease(i)))
	}
	return r
}

// Short lists the leases with a value that is too short to be hidden.
func (r *Redactor) Short() []string { return r.set.Short() }

// Bytes returns b with every hit replaced; b itself if there is none.
func (r *Redactor) Bytes(b []byte) []byte {
	var c cover
	out, changed, _ := r.pass(nil, b, &c, true)
	if !changed {
		return b
	}
	return out
}

// Writer returns a writer that passes on to w what is written to it, redacted.
func (r *Redactor) Writer(w io.Writer) *Writer { return &Writer{r: r, w: w} }

// A cover says how far the last hit reaches into bytes that aren't passed on
// yet. Its marker has been.
type cover struct {
	until  int  // bytes before it are hidden
	marked bool // the marker stands directly before the bytes from until
	lease  int  // that it names
}

// pass redacts t as far as it is settled and appends the result to out, unless
// nothing changed: then t[:settled] is the result. It leaves c ready for
// t[settled:] and what follows.
func (r *Redactor) pass(out, t []byte, c *cover, last bool) (result []byte, changed bool, settled int) {
	settled = r.set.Find(t, last, func(start, end, lease int) {
		// A hit that overlaps the one before, or continues it for the same
		// lease, shares its marker.
		if start > c.until || start == c.until && !(c.marked && lease == c.lease) {
			out = append(out, t[c.until:start]...)
			out = append(out, r.marker[lease]...)
			*c = cover{marked: true, lease: lease}
		}
		c.until = max(c.until, end)
	})
	changed = c.until > 0
	switch {
	case c.until >= settled:
		c.until -= settled
	case changed:
		out = append(out, t[c.until:settled]...)
		fallthrough
	default:
		*c = cover{}
	}
	return out, changed, settled
}

// A Writer redacts what passes through it. It isn't safe for concurrent use.
type Writer struct {
	r     *Redactor
	w     io.Writer
	held  []byte // may become a hit
	cover cover
	out   []byte
	err   error
}

// Write passes p on but for what may be the head of a hit, which it keeps
// until the next Write or Close. It returns len(p) unless the underlying
// writer fails; then it and every later call return that error.
func (w *Writer) Write(p []byte) (int, error) {
	written := 0
	for w.err == nil && written < len(p) {
		part := p[written:min(len(p), written+sliceBytes)]
		if err := w.write(part); err != nil {
			return written, err
		}
		written += len(part)
	}
	return written, w.err
}

func (w *Writer) write(p []byte) error {
	t := p
	if len(w.held) > 0 {
		w.held = append(w.held, p...)
		t = w.held
	}
	settled := w.emit(t, false)
	w.held = append(w.held[:0], t[settled:]...)
	return w.err
}

// Close passes on what was held back. It doesn't close the underlying writer.
// Nothing can be written after it.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	w.emit(w.held, true)
	w.held = nil
	if w.err != nil {
		return w.err
	}
	w.err = os.ErrClosed
	return nil
}

func (w *Writer) emit(t []byte, last bool) (settled int) {
	out, changed, settled := w.r.pass(w.out[:0], t, &w.cover, last)
	w.out = out
	if !changed {
		out = t[:settled]
	}
	if len(out) == 0 {
		return settled
	}
	n, err := w.w.Write(out)
	if err == nil && n < len(out) {
		err = io.ErrShortWrite
	}
	w.err = err
	return settled
}
