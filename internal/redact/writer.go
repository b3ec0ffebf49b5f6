package redact

import (
	"io"
	"os"
	"sync"
	"time"
)

const (
	// sliceBytes is how much of a long Write is looked at in one go, so that a
	// writer's buffers stay small.
	sliceBytes = 64 << 10
	// tick is how often a writer that waits for the rest of a hit looks whether
	// it did so at the tick before: then it gives up. So nothing waits for more
	// than two ticks, which with late timers is 20 ms, and no write has to ask
	// for the time.
	tick = 8 * time.Millisecond
)

// A Writer redacts what passes through it. It is safe for concurrent use.
type Writer struct {
	// AfterFunc is the clock: it runs f once, after d, and not from within
	// itself. It is package time's unless it is set before the first Write.
	AfterFunc func(d time.Duration, f func())

	mu    sync.Mutex
	r     *Redactor
	w     io.Writer
	held  []byte // is the head of what may become a hit
	cover cover  // of held: what is beyond it waits
	aged  bool   // some of that was there at the last tick
	armed bool   // there will be a tick
	out   []byte
	err   error
}

// Write passes p on but for what may be the head of a hit, which it keeps
// until the next Write or Close, or for two ticks. It returns len(p) unless the
// underlying writer fails; then it and every later call return that error.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	written := 0
	for w.err == nil && written < len(p) {
		part := p[written:min(len(p), written+sliceBytes)]
		if err := w.write(part); err != nil {
			return written, err
		}
		written += len(part)
	}
	if w.err == nil && w.waits() && !w.armed {
		w.arm()
	}
	return written, w.err
}

func (w *Writer) write(p []byte) error {
	t, before := p, len(w.held)
	if before > 0 {
		w.held = append(w.held, p...)
		t = w.held
	}
	settled := w.emit(t, false)
	w.held = append(w.held[:0], t[settled:]...)
	if w.waits() && settled+w.cover.until >= before {
		w.aged = false // all that waits came now
	}
	return w.err
}

// waits says whether something is held back that hasn't been shown or hidden.
func (w *Writer) waits() bool { return len(w.held) > w.cover.until }

func (w *Writer) arm() {
	w.armed = true
	w.AfterFunc(tick, w.expire)
}

// expire is a tick.
func (w *Writer) expire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed = false
	if w.err != nil || !w.waits() {
		return
	}
	if !w.aged {
		w.aged = true
		w.arm()
		return
	}
	w.letGo()
}

// letGo decides about what is held back without what follows. It stays in
// held: a hit that begins there still hides the rest of itself. A head as long
// as a value must be is taken for a hit, since to show it could show most of a
// value; so is one that continues a hit, which may be the next piece of a long
// value.
func (w *Writer) letGo() {
	out := w.out[:0]
	r := w.r.current() // what is held back is a head of its needles too
	lease, ok := r.set.Head(w.held)
	if ok && (len(w.held) >= MinBytes || w.cover.marked && lease == w.cover.lease) {
		out = r.hide(out, w.held, &w.cover, 0, len(w.held), lease)
	} else {
		out = append(out, w.held[w.cover.until:]...)
		w.cover = cover{until: len(w.held)}
	}
	w.out = out
	w.pass(out)
}

// Close passes on what was held back. It doesn't close the underlying writer.
// Nothing can be written after it.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if len(w.held) > 0 {
		w.emit(w.held, true)
	}
	clear(w.held[:cap(w.held)])
	w.held = nil
	if w.err != nil {
		return w.err
	}
	w.err = os.ErrClosed
	return nil
}

func (w *Writer) emit(t []byte, last bool) (settled int) {
	out, changed, settled := w.r.current().pass(w.out[:0], t, &w.cover, last)
	w.out = out
	if !changed {
		out = t[:settled]
	}
	w.pass(out)
	return settled
}

// pass writes b and keeps the error.
func (w *Writer) pass(b []byte) {
	if len(b) == 0 {
		return
	}
	n, err := w.w.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	w.err = err
}
