package needle

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"strings"
)

// A Set knows what to look for. It keeps copies of the values, never changes
// once made but for [Set.Wipe], and is safe for concurrent use.
//
// It looks at the
// last few bytes (a block) of a window as long as the shortest needle: a table
// says how far the window may move on before a needle's head could end there.
// Where it may not move, a hash of the window's first bytes leads to the
// needles that begin so, in sorted order, and a binary search finds the
// longest that stands there. So a byte costs a fraction of a table look-up as
// a rule, and at worst log2(needles) comparisons of maxNeedle bytes.
type Set struct {
	lease []string // by number
	short []string

	needles []needle // sorted by text
	window  int      // length of the shortest needle, at most maxWindow
	span    int      // window, or loadBytes if that is more
	longest int      // length of the longest needle

	drop  uint    // bits of a 4-byte load that aren't in the block
	shift []uint8 // by hash of a block: how far the window may move
	bits  uint    // log2 of len(shift)

	mask   uint64 // of a load: the bytes of the window, at most 8
	groups []group
	gbits  uint // log2 of len(groups)

	heads []uint64 // a set of hashes of the first 1 to 4 bytes of each needle
	hbits uint     // log2 of its number of bits
}

type needle struct {
	text   string
	lease  int32
	prefix int32 // the longest other needle that this one begins with, or -1
}

// A group is the needles from lo up to hi, which begin with the bytes in key.
type group struct {
	key    uint64
	lo, hi int32
}

const (
	maxWindow = 32
	maxBits   = 20 // 1 MiB of shifts: they should stay in a core's cache
	loadBytes = 8  // what a candidate's first load reads

	// Multipliers of Fibonacci hashing: 2^32 and 2^64 over the golden ratio.
	hash32 = 0x9E3779B1
	hash64 = 0x9E3779B97F4A7C15
)

func compile(m *Set, set *needleSet) {
	m.window = maxWindow
	for text, lease := range set.lease {
		m.needles = append(m.needles, needle{text: text, lease: lease})
		m.window = min(m.window, len(text))
		m.longest = max(m.longest, len(text))
	}
	if len(m.needles) == 0 {
		return
	}
	m.span = max(m.window, loadBytes)
	slices.SortFunc(m.needles, func(a, b needle) int { return strings.Compare(a.text, b.text) })
	m.linkPrefixes()
	m.fillShifts()
	m.fillGroups()
	m.fillHeads()
}

// linkPrefixes: in sorted order a needle's prefixes come before it, and
// everything between begins with them.
func (m *Set) linkPrefixes() {
	for i := range m.needles {
		p := int32(i) - 1
		for p >= 0 && !strings.HasPrefix(m.needles[i].text, m.needles[p].text) {
			p = m.needles[p].prefix
		}
		m.needles[i].prefix = p
	}
}

// fillShifts takes longer blocks for more needles: too many short ones would
// occur in any text.
func (m *Set) fillShifts() {
	block := 4
	switch n := len(m.needles) * m.window; {
	case n < 100:
		block = 2
	case n < 10_000:
		block = 3
	}
	m.drop = uint(32 - 8*block)
	m.bits = uint(min(maxBits, max(12, bits.Len(uint(len(m.needles)*m.window*8)))))
	m.shift = make([]uint8, 1<<m.bits)
	for i := range m.shift {
		m.shift[i] = uint8(m.window - block + 1)
	}
	for _, n := range m.needles {
		head := n.text[:m.window]
		for end := block; end <= m.window; end++ {
			// The load ends with the block; what comes before it is dropped.
			var load [4]byte
			copy(load[4-block:], head[end-block:end])
			h := m.blockHash(load[:])
			m.shift[h] = min(m.shift[h], uint8(m.window-end))
		}
	}
}

func (m *Set) blockHash(b []byte) uint32 {
	return (binary.LittleEndian.Uint32(b) >> m.drop) * hash32 >> (32 - m.bits)
}

func (m *Set) fillGroups() {
	m.mask = ^uint64(0)
	if m.window < loadBytes {
		m.mask = 1<<(8*m.window) - 1
	}
	m.gbits = uint(bits.Len(uint(2 * len(m.needles))))
	m.groups = make([]group, 1<<m.gbits)
	for i := 0; i < len(m.needles); {
		key := m.key(m.needles[i].text)
		end := i + 1
		for end < len(m.needles) && m.key(m.needles[end].text) == key {
			end++
		}
		slot := m.slot(key)
		for m.groups[slot].hi != 0 {
			slot = (slot + 1) & (1<<m.gbits - 1)
		}
		m.groups[slot] = group{key, int32(i), int32(end)}
		i = end
	}
}

func (m *Set) key(text string) uint64 {
	var load [loadBytes]byte
	copy(load[:], text)
	return binary.LittleEndian.Uint64(load[:]) & m.mask
}

func (m *Set) slot(key uint64) uint64 { return key * hash64 >> (64 - m.gbits) }

func (m *Set) fillHeads() {
	m.hbits = uint(max(10, bits.Len(uint(len(m.needles)*4*8))))
	m.heads = make([]uint64, 1<<m.hbits/64)
	for _, n := range m.needles {
		for l := 1; l <= 4; l++ {
			h := m.headHash([]byte(n.text[:l]))
			m.heads[h/64] |= 1 << (h % 64)
		}
	}
}

func (m *Set) headHash(t []byte) uint64 {
	v := uint64(min(len(t), 4))
	for i := range v {
		v = v<<8 | uint64(t[i])
	}
	return v * hash64 >> (64 - m.hbits)
}

// Find calls hit for the longest needle at each position of t where one
// stands, in order. It returns the position from which t must be looked at
// again with the bytes that follow, since a needle, or a longer one, may begin
// there; that is len(t) if none may, or if t is the last there is.
func (m *Set) Find(t []byte, last bool, hit func(start, end, lease int)) int {
	if len(m.needles) == 0 {
		return len(t)
	}
	// visit looks at one position; it says false if t isn't settled there.
	visit := func(start int, lo, hi int32) bool {
		n, more := m.longestIn(lo, hi, t[start:])
		if more && !last {
			return false
		}
		if n >= 0 {
			hit(start, start+len(m.needles[n].text), int(m.needles[n].lease))
		}
		return true
	}
	end := m.span
	for {
		end = m.candidate(t, end)
		if end > len(t) {
			break
		}
		start := end - m.span
		if g := m.find(binary.LittleEndian.Uint64(t[start:]) & m.mask); g != nil && !visit(start, g.lo, g.hi) {
			return start
		}
		end++
	}
	for start := end - m.span; start < len(t); start++ {
		h := m.headHash(t[start:])
		if m.heads[h/64]&(1<<(h%64)) != 0 && !visit(start, 0, int32(len(m.needles))) {
			return start
		}
	}
	return len(t)
}

// candidate moves on the end of a span until a needle's head may stand at its
// beginning. The result is beyond t if there is no such place.
func (m *Set) candidate(t []byte, end int) int {
	back := m.span - m.window + 4 // from there to the window's last block
	shift, drop, rest := m.shift, m.drop&31, (32-m.bits)&31
	for end <= len(t) {
		block := binary.LittleEndian.Uint32(t[end-back:]) >> drop
		s := shift[block*hash32>>rest]
		if s == 0 {
			break
		}
		end += int(s)
	}
	return end
}

func (m *Set) find(key uint64) *group {
	for slot := m.slot(key); ; slot = (slot + 1) & (1<<m.gbits - 1) {
		g := &m.groups[slot]
		if g.hi == 0 {
			return nil
		}
		if g.key == key {
			return g
		}
	}
}

// longestIn finds, among the needles from lo up to hi, the longest that t
// begins with (its index, or -1), and whether t is the head of a longer one.
func (m *Set) longestIn(lo, hi int32, t []byte) (n int32, more bool) {
	t = t[:min(len(t), m.longest)]
	next, end := lo, hi // the first needle greater than t lies between them
	for next < end {
		if mid := (next + end) / 2; m.needles[mid].text > string(t) {
			end = mid
		} else {
			next = mid + 1
		}
	}
	if next < hi {
		text := m.needles[next].text
		more = len(text) > len(t) && text[:len(t)] == string(t)
	}
	if next == lo {
		return -1, more
	}
	// Those that t begins with are the needle before, or begin it.
	for n = next - 1; n >= 0; n = m.needles[n].prefix {
		if text := m.needles[n].text; len(text) <= len(t) && text == string(t[:len(text)]) {
			return n, more
		}
	}
	return -1, more
}
