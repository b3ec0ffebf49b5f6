package isolate

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMessage(t *testing.T) {
	t.Parallel()
	want := message{Env: [][]byte{[]byte("A=\xff"), []byte("B=1")}, Files: []File{{Name: "a", Content: []byte{0, 1}}, {Name: "d/l", Target: "/x"}}}
	text, err := encode(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decode(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("decode(encode()) -want +got:\n%s", diff)
	}
	for n := range text {
		if _, err := decode(bytes.NewReader(text[:n])); err == nil {
			t.Fatalf("the first %d bytes are a message", n)
		}
	}
	if _, err := decode(bytes.NewReader(binary.BigEndian.AppendUint32(nil, maxMessageBytes+1))); err == nil {
		t.Error("a message over the limit is read")
	}
}

func FuzzMessage(f *testing.F) {
	text, err := encode(message{Env: [][]byte{[]byte("A=1")}, Files: []File{{Name: "a", Content: []byte("x")}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) >= 4 && binary.BigEndian.Uint32(text) > 1<<20 {
			return
		}
		m, err := decode(bytes.NewReader(text))
		if err != nil {
			return
		}
		again, err := encode(m)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := decode(bytes.NewReader(again)); err != nil || !cmp.Equal(m, same) {
			t.Errorf("decode(encode(%v)) = %v, %v", m, same, err)
		}
	})
}
