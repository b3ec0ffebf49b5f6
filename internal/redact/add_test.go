package redact

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/runenv/action/secret"
)

// T18: what is added while a writer writes is hidden from then on, with what is
// held back by then; what was known stays hidden.
func TestT18AddedValuesAreHidden(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	r := New([]Secret{{Lease: "db", Value: secret.FromString("first-value")}})
	w := newClock().writer(r, &out)
	write := func(text string) {
		t.Helper()
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	write("1 first-value 2 first-")
	r.Add([]Secret{{Lease: "db", Value: secret.FromString("second-value")}, {Lease: "aws", Value: secret.FromString("first-of-aws")}})
	write("of-aws 3 second-value 4 first-value 5 c2Vjb25kLXZhbHVl")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "1 [REDACTED:db] 2 [REDACTED:aws] 3 [REDACTED:db] 4 [REDACTED:db] 5 [REDACTED:db]"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if !r.Needles().Any([]byte("first-value")) || !r.Needles().Any([]byte("second-value")) {
		t.Error("the needles aren't the union")
	}
}

func TestAddWhileWritersWrite(t *testing.T) {
	t.Parallel()
	r := New([]Secret{{Lease: "l", Value: secret.FromString("value-before")}})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			w := r.Writer(io.Discard)
			for range 200 {
				_, _ = io.WriteString(w, "value-before value-")
			}
			_ = w.Close()
		})
	}
	for n := range 20 {
		value := fmt.Sprintf("value-%d-after", n)
		r.Add([]Secret{{Lease: "l", Value: secret.FromString(value)}})
		if got := string(r.Bytes([]byte(value))); got != "[REDACTED:l]" {
			t.Errorf("%q is %q", value, got)
		}
	}
	all.Wait()
}
