//go:build linux || darwin

package proc

import (
	"bytes"
	"os"
	"testing"
	"time"
)

// What the child wrote before it exited arrives even if the deadline is over
// when its reader gets to it, and though somebody still holds the pipe.
func TestNothingInThePipeIsLost(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	want := bytes.Repeat([]byte("x"), 60000)
	if _, err := w.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	c := &pipeCopy{from: r, to: &out, done: make(chan struct{})}
	c.run()
	if out.Len() != len(want) || c.err != nil {
		t.Errorf("%d bytes, error %v, want %d bytes", out.Len(), c.err, len(want))
	}
}
