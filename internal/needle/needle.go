// Package needle finds secret values in bytes, as they are and in the
// encodings that programs put them in: what the redactor and the leak scan
// share.
//
// A [Set] finds each value line by line, and in base64 (both alphabets, at any
// offset in a larger text, with or without padding, whole or wrapped at 64 or
// 76 columns), hex (whole or wrapped at 60 columns), percent-encoding, and as
// JSON, shells, Go, Python, Node and markup escape it. docs/redaction.md has the
// list.
//
// It promises that time per byte is bounded whatever the bytes are, and that
// no more than [MaxBytes] bytes are needed to settle whether a needle begins
// somewhere.
//
// It can't recognise a value that was transformed in another way, and leaves
// values under six bytes alone: "1" is in every text.
package needle

import (
	"bytes"
	"runtime"
	"slices"

	"github.com/runenv/action/secret"
)

const (
	// MinBytes is the length from which a value, or a line of one, is found.
	MinBytes = 6
	// MaxBytes bounds a needle. A longer one is looked for in pieces, so that
	// a part of it is found too.
	MaxBytes = 127
)

// A Secret is a value to find and the lease that it belongs to.
type Secret struct {
	Lease string
	Value secret.Value
	Part  bool // it stands only within others: [Weak] leaves it out
}

// New compiles the secrets. Where two leases have the same value, the first
// is the one that is named.
func New(secrets []Secret) *Set {
	m := &Set{}
	erased(func() { m.build(secrets) })
	return m
}

func (m *Set) build(secrets []Secret) {
	var c collector
	defer c.wipe()
	numbers := map[string]int32{}
	for _, s := range secrets {
		number, ok := numbers[s.Lease]
		if !ok {
			number = int32(len(m.lease))
			numbers[s.Lease] = number
			m.lease = append(m.lease, s.Lease)
		}
		c.lease = number
		c.value(s.Value.Reveal())
	}
	forms, size := c.unique()
	m.text = newArena(size + loadBytes) // a load may begin at the last byte
	m.needles = make([]needle, len(forms))
	at := 0
	for i, f := range forms {
		copy(m.text.b[at:], c.buf[f.at:f.at+f.size])
		m.needles[i] = needle{at: uint32(at), size: uint8(f.size), lease: f.lease}
		at += f.size
	}
	m.compile()
	runtime.AddCleanup(m, arena.free, m.text)
}

// Wipe overwrites the copies of the values. The Set finds nothing from then
// on. It mustn't be in use.
func (m *Set) Wipe() {
	clear(m.text.b)
	clear(m.grams)
	clear(m.places)
	clear(m.heads)
	clear(m.groups)
	m.needles = nil
	m.longest = 0
}

// Lease is the name of the lease with a number that [Set.Find] gave: they
// count from 0 in the order in which [New] met them.
func (m *Set) Lease(number int) string { return m.lease[number] }

// Leases is how many leases there are.
func (m *Set) Leases() int { return len(m.lease) }

func tooShort(trimmed []byte) bool { return len(trimmed) < MinBytes }

// Longest is the length of the longest needle in bytes, at most [MaxBytes]; 0
// if there is none.
func (m *Set) Longest() int { return m.longest }

// Head is the number of the lease whose needle b is, or begins; ok says whether
// there is one. Where there are several it is that of the first by its bytes.
func (m *Set) Head(b []byte) (lease int, ok bool) {
	defer runtime.KeepAlive(m)
	i, _ := slices.BinarySearchFunc(m.needles, b, func(n needle, b []byte) int {
		return bytes.Compare(m.text.b[n.at:n.at+uint32(n.size)], b)
	})
	if i == len(m.needles) || !bytes.HasPrefix(m.bytes(int32(i)), b) {
		return 0, false
	}
	return int(m.needles[i].lease), true
}

// Any reports whether a needle stands anywhere in b.
func (m *Set) Any(b []byte) bool {
	_, _, _, ok := m.First(b)
	return ok
}

// First finds the first needle in b, the longest of those that begin there.
func (m *Set) First(b []byte) (start, end, lease int, ok bool) {
	m.scan(b, true, func(s, e, l int) bool {
		start, end, lease, ok = s, e, l, true
		return false
	})
	return start, end, lease, ok
}
