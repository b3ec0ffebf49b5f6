// Package redact hides secret values in a stream of bytes as it passes.
//
// A [Redactor] finds what a [needle.Set] finds: each value as it is, line by
// line, and in the encodings that programs put it in. Each hit becomes
// [REDACTED:lease].
//
// It promises that the split of the stream into writes changes nothing, that
// overlapping hits are hidden to the last byte of each, that a writer holds
// back only what may still become a hit, at most 127 bytes and 20 ms, and that
// memory and time per byte are bounded whatever passes.
//
// What was held back for too long is shown if it is under six bytes long;
// longer, it is hidden as a hit would be. So a program that stops in the midst
// of a value shows at most its first five bytes.
//
// It can't recognise a value that was transformed in another way, and leaves
// values under six bytes alone: hiding "1" would hide every 1 in the log.
package redact

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/runenv/action/internal/needle"
)

// MinBytes is the length from which a value, or a line of one, is hidden.
const MinBytes = needle.MinBytes

// A Secret is a value to hide and the lease to name in its place.
type Secret = needle.Secret

// A Redactor knows what to hide, and can learn more. It keeps the values, and
// copies of them once it was asked, and is safe for concurrent use.
type Redactor struct {
	adding  sync.Mutex
	secrets []Secret
	now     atomic.Pointer[compiled] // nil until it is first asked
}

// compiled never changes. What is compiled after it, of the same Redactor,
// finds all that it finds, and has the same numbers for its leases.
type compiled struct {
	set    *needle.Set
	marker [][]byte // by lease number
}

// New hides the secrets. Where two leases have the same value, the first is the
// one that is named. It compiles them when it is first asked: many a command
// prints nothing. Leave the values as they are until [Redactor.Wipe].
func New(secrets []Secret) *Redactor { return &Redactor{secrets: slices.Clone(secrets)} }

// Add has more secrets hidden, besides all that are hidden already. What is
// written after it returns is looked at with them, and so is what a writer
// holds back by then; what a writer has passed on is gone. Leave these values
// as they are too.
func (r *Redactor) Add(secrets []Secret) {
	r.adding.Lock()
	defer r.adding.Unlock()
	r.secrets = append(r.secrets, secrets...)
	if r.now.Load() != nil {
		r.compile()
	}
}

func (r *Redactor) compile() {
	c := &compiled{set: needle.New(r.secrets)}
	for i := range c.set.Leases() {
		c.marker = append(c.marker, fmt.Appendf(nil, "[REDACTED:%s]", c.set.Lease(i)))
	}
	// The one before may be in use. It is wiped when nobody has it any more.
	r.now.Store(c)
}

// current is what is hidden now.
func (r *Redactor) current() *compiled {
	if c := r.now.Load(); c != nil {
		return c
	}
	r.adding.Lock()
	defer r.adding.Unlock()
	if r.now.Load() == nil {
		r.compile()
	}
	return r.now.Load()
}

// Needles are what it looks for by now, so that others look for the same. They
// are its own: [Redactor.Wipe] wipes them.
func (r *Redactor) Needles() *needle.Set { return r.current().set }

// Bytes returns b with every hit replaced; b itself if there is none.
func (r *Redactor) Bytes(b []byte) []byte {
	var c cover
	out, changed, _ := r.current().pass(nil, b, &c, true)
	if !changed {
		return b
	}
	return out
}

// Writer returns a writer that passes on to w what is written to it, redacted.
// It must be closed.
func (r *Redactor) Writer(w io.Writer) *Writer {
	return &Writer{
		AfterFunc: func(d time.Duration, f func()) { time.AfterFunc(d, f) },
		r:         r,
		w:         w,
	}
}

// Wipe overwrites the copies of the values. Nothing is hidden from then on: so
// every writer is closed before, and nothing added after.
func (r *Redactor) Wipe() {
	if c := r.now.Load(); c != nil {
		c.set.Wipe()
	}
}

// A cover says how far the last hit reaches into bytes that aren't passed on
// yet. Its marker has been.
type cover struct {
	until  int  // bytes before it are hidden, or shown already if not marked
	marked bool // the marker stands directly before the bytes from until
	lease  int  // that it names
}

// hide covers t from start to end and appends to out what stands before that,
// and the marker. A hit that overlaps the one before, or continues it for the
// same lease, shares its marker.
func (r *compiled) hide(out, t []byte, c *cover, start, end, lease int) []byte {
	if start > c.until || !c.marked || start == c.until && lease != c.lease {
		if start > c.until {
			out = append(out, t[c.until:start]...)
		}
		out = append(out, r.marker[lease]...)
		*c = cover{until: c.until, marked: true, lease: lease}
	}
	c.until = max(c.until, end)
	return out
}

// pass redacts t as far as it is settled and appends the result to out, unless
// nothing changed: then t[:settled] is the result. It leaves c ready for
// t[settled:] and what follows.
func (r *compiled) pass(out, t []byte, c *cover, last bool) (result []byte, changed bool, settled int) {
	settled = r.set.Find(t, last, func(start, end, lease int) { out = r.hide(out, t, c, start, end, lease) })
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
