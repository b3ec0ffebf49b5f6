package needle

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"runtime"
)

// A Set knows what to look for. It keeps copies of the values and is safe for
// concurrent use until [Set.Wipe].
//
// All needles are at least a window long. A text is looked at in every step-th
// place only: each stretch of a window holds one of these places with the
// gram (a few bytes) that follows it. A filter tells whether the gram is in
// the first window of some needle; that costs a few instructions which don't
// wait for those of the place before, and nearly always says no. Where it
// doesn't, each start that has its gram there is tried: a second filter by
// its first bytes, then a hash of its whole window, which leads to the needles
// that begin so, in sorted order, and a binary search that compares no byte
// twice. So what a byte costs is bounded, whatever the text.
type Set struct {
	lease []string // by number

	text    arena    // the needles' bytes, one after another
	needles []needle // sorted by their bytes
	window  int      // length of the shortest needle, at most maxWindow
	longest int      // length of the longest needle

	step     int    // window - gram + 1
	gram     int    // bytes
	gramMask uint64 // of a load: the bytes of a gram
	grams    filter
	places   []uint32 // by hash of a gram: where it is in windows, bit o for offset o

	headMask uint64 // of a load: the bytes of the window, at most 8
	headSize int    // and how many these are
	heads    filter // by the first 1 to headSize bytes of each needle; see group too

	first     [257]int32 // by first byte: the needles from there up to the next byte's
	groups    []group
	groupBits uint // log2 of len(groups)
}

// A needle is some bytes of the Set's text.
type needle struct {
	at     uint32
	size   uint8
	lease  int32
	prefix int32 // the longest other needle that this one begins with, or -1
}

// A group is the needles from lo up to hi, which share a window; key is its
// hash. They share their first same bytes at least, and what follows in each,
// next bytes, is in the Set's filter of heads.
type group struct {
	key        uint64
	lo, hi     int32
	same, next uint8
}

const (
	maxWindow = 32
	loadBytes = 8 // what one load reads

	// hash64 is the multiplier of Fibonacci hashing: 2^64 over the golden ratio.
	hash64 = 0x9E3779B97F4A7C15
)

// A filter is a Bloom filter of two bits within one word.
type filter []uint64

// newFilter makes room for n entries: at 16 bits for each, one of 50 strangers
// or fewer is let through.
func newFilter(n int) filter {
	return make(filter, 1<<min(maxFilterBits, bits.Len(uint(max(n, minFilter)*filterBitsPer/64-1))))
}

const (
	filterBitsPer = 16
	minFilter     = 256
	maxFilterBits = 17 // 1 MiB: it should stay in a core's second cache
	maxPlaceBits  = 18 // 1 MiB too
)

func (f filter) add(x uint64) {
	h := x * hash64
	f[h>>32&uint64(len(f)-1)] |= 1<<(h>>58) | 1<<(h>>52&63)
}

func (f filter) has(x uint64) bool {
	h := x * hash64
	w := f[h>>32&uint64(len(f)-1)]
	return w>>(h>>58)&(w>>(h>>52&63))&1 != 0
}

func load(t []byte, i int) uint64 { return binary.LittleEndian.Uint64(t[i:]) }

// loadEnd is load where fewer than loadBytes may be left.
func loadEnd(t []byte, i int) uint64 {
	if i+loadBytes <= len(t) {
		return load(t, i)
	}
	if len(t) >= loadBytes {
		return load(t, len(t)-loadBytes) >> (8 * uint(i+loadBytes-len(t)) & 63)
	}
	var x uint64
	for j := len(t) - 1; j >= i; j-- {
		x = x<<8 | uint64(t[j])
	}
	return x
}

func (m *Set) bytes(n int32) []byte {
	at := m.needles[n].at
	return m.text.b[at : at+uint32(m.needles[n].size)]
}

// compile makes the tables for m.needles, which are sorted.
func (m *Set) compile() {
	if len(m.needles) == 0 {
		return
	}
	m.window = maxWindow
	for _, n := range m.needles {
		m.window = min(m.window, int(n.size))
		m.longest = max(m.longest, int(n.size))
	}
	m.gram = gramBytes(m.window)
	m.step = m.window - m.gram + 1
	m.gramMask = ^uint64(0) >> (64 - 8*m.gram)
	m.headSize = min(m.window, loadBytes)
	m.headMask = ^uint64(0) >> (64 - 8*m.headSize)
	m.grams = newFilter(len(m.needles) * m.step)
	m.places = make([]uint32, 1<<min(maxPlaceBits, bits.Len(uint(len(m.needles)*m.step))))
	m.heads = newFilter(len(m.needles) * (m.headSize + 1))
	m.groupBits = uint(bits.Len(uint(len(m.needles) * 3 / 2)))
	m.groups = make([]group, 1<<m.groupBits)
	for i, n := range m.needles {
		m.first[int(m.text.b[n.at])+1] = int32(i) + 1
	}
	for i := range m.first[1:] {
		m.first[i+1] = max(m.first[i+1], m.first[i])
	}
	for i := int32(0); i < int32(len(m.needles)); {
		text := m.text.b[m.needles[i].at:] // the arena goes on for a load's length
		for o := range m.step {
			gram := load(text, o) & m.gramMask
			m.grams.add(gram)
			*m.place(gram) |= 1 << o
		}
		end := i + 1
		for end < int32(len(m.needles)) && bytes.Equal(m.bytes(end)[:m.window], text[:m.window]) {
			end++
		}
		m.addGroup(group{key: m.key(text, 0), lo: i, hi: end})
		for n := i; n < end; n++ {
			m.linkPrefix(n)
		}
		m.addHeads(text)
		i = end
	}
}

func (m *Set) place(gram uint64) *uint32 {
	return &m.places[gram*hash64>>32&uint64(len(m.places)-1)]
}

// gramBytes weighs rare grams against large steps.
func gramBytes(window int) int {
	switch {
	case window >= 16:
		return 8
	case window >= 10:
		return window / 2
	case window >= 7:
		return 4
	}
	return 3
}

func (m *Set) addHeads(text []byte) {
	x := load(text, 0) & m.headMask
	m.heads.add(x)
	for l := 1; l < m.headSize; l++ {
		m.heads.add(shortHead(x, l))
	}
}

// shortHead is what stands in the filter for the first l < loadBytes bytes of x.
func shortHead(x uint64, l int) uint64 {
	return x&(1<<(8*uint(l)&63)-1) | uint64(l)<<56
}

func (m *Set) addGroup(g group) {
	g.same = uint8(common(m.bytes(g.lo), m.bytes(g.hi-1), m.window))
	g.next = loadBytes / 2
	for n := g.lo; n < g.hi; n++ {
		g.next = min(g.next, m.needles[n].size-g.same)
	}
	for n := g.lo; n < g.hi && g.next > 0; n++ {
		m.heads.add(g.following(load(m.text.b, int(m.needles[n].at)+int(g.same))))
	}
	slot := m.slot(g.key)
	for m.groups[slot].hi != 0 {
		slot = (slot + 1) & (1<<m.groupBits - 1)
	}
	m.groups[slot] = g
}

// following is what stands in the filter for the bytes that follow the shared
// ones, x, in a group.
func (g *group) following(x uint64) uint64 {
	return x&(1<<(8*uint(g.next)&63)-1) | uint64(g.lo)<<32 | 0xff<<56
}

// linkPrefix: in sorted order a needle's prefixes come before it, and
// everything between begins with them.
func (m *Set) linkPrefix(i int32) {
	p := i - 1
	for p >= 0 && !bytes.HasPrefix(m.bytes(i), m.bytes(p)) {
		p = m.needles[p].prefix
	}
	m.needles[i].prefix = p
}

// key is a hash of the window that begins at start.
func (m *Set) key(t []byte, start int) uint64 {
	x := loadEnd(t, start) & m.headMask
	if m.window > loadBytes {
		x ^= bits.RotateLeft64(load(t, start+m.window-loadBytes)*hash64, 32)
	}
	return x
}

func (m *Set) slot(key uint64) uint64 { return key * hash64 >> (64 - m.groupBits) }

// find returns the group of the needles that may stand at start, where a whole
// window is; nil if there is none.
func (m *Set) find(t []byte, start int) *group {
	key := m.key(t, start)
	for slot := m.slot(key); ; slot = (slot + 1) & (1<<m.groupBits - 1) {
		g := &m.groups[slot]
		if g.hi == 0 {
			return nil
		}
		if g.key != key || !bytes.Equal(m.bytes(g.lo)[:m.window], t[start:start+m.window]) {
			continue
		}
		end := start + int(g.same)
		if end+loadBytes <= len(t) && g.next > 0 && !m.heads.has(g.following(load(t, end))) {
			return nil
		}
		return g
	}
}

// Find calls hit for the longest needle at each position of t where one
// stands, in order. It returns the position from which t must be looked at
// again with the bytes that follow, since a needle, or a longer one, may begin
// there: t from there is the head of one. That is len(t) if none may, or if t
// is the last there is.
func (m *Set) Find(t []byte, last bool, hit func(start, end, lease int)) (settled int) {
	return m.scan(t, last, func(start, end, lease int) bool {
		hit(start, end, lease)
		return true
	})
}

// scan is Find with a hit that may end it by saying false.
func (m *Set) scan(t []byte, last bool, hit func(start, end, lease int) bool) int {
	if len(m.needles) == 0 {
		return len(t)
	}
	defer runtime.KeepAlive(m) // else its text could be unmapped
	p := m.step - 1
	for { // starts up to p-step are settled
		p = m.next(t, p)
		if p+loadBytes > len(t) {
			break
		}
		if start := m.around(t, p, m.step, last, hit); start >= 0 {
			return start
		}
		p += m.step
	}
	// The last places hold a gram, but no load, or lie closer together. A head
	// of a needle that the text ends with has a gram there too, or is shorter
	// than a gram.
	first := p - m.step + 1 // not settled
	for end := len(t) - m.gram; first <= end; first = p + 1 {
		p = min(first+m.step-1, end)
		if start := m.around(t, p, p-first+1, last, hit); start >= 0 {
			return start
		}
	}
	if last {
		return len(t)
	}
	for ; first < len(t); first++ {
		if !m.at(t, first, last, hit) {
			return first
		}
	}
	return len(t)
}

// next is the first place from p on, in steps, whose gram passes the filter,
// or the first with less than a load.
func (m *Set) next(t []byte, p int) int {
	grams, mask, step := m.grams, m.gramMask, m.step
	for ; p+loadBytes <= len(t); p += step {
		if grams.has(load(t, p) & mask) {
			break
		}
	}
	return p
}

// around looks at the n starts up to p, as far as the gram at p is in a needle
// that begins there. It returns the one at which the scan ends, or -1.
func (m *Set) around(t []byte, p, n int, last bool, hit func(start, end, lease int) bool) int {
	gram := loadEnd(t, p) & m.gramMask
	if !m.grams.has(gram) {
		return -1
	}
	for offsets := *m.place(gram) & (1<<n - 1); offsets != 0; {
		o := bits.Len32(offsets) - 1
		if !m.at(t, p-o, last, hit) {
			return p - o
		}
		offsets &^= 1 << o
	}
	return -1
}

// at looks at one start; it says false if the scan ends there.
func (m *Set) at(t []byte, start int, last bool, hit func(start, end, lease int) bool) bool {
	left := len(t) - start
	if x := loadEnd(t, start); left >= m.headSize && !m.heads.has(x&m.headMask) || left < m.headSize && !m.heads.has(shortHead(x, left)) {
		return true
	}
	lo, hi, same := m.first[t[start]], m.first[int(t[start])+1], 1
	if left >= m.window {
		g := m.find(t, start)
		if g == nil {
			return true
		}
		lo, hi, same = g.lo, g.hi, m.window
	}
	n, more := m.longestIn(lo, hi, t[start:], same)
	if more && !last {
		return false
	}
	return n < 0 || hit(start, start+int(m.needles[n].size), int(m.needles[n].lease))
}

// longestIn finds, among the needles from lo up to hi, which t may share the
// first same bytes with, the longest that t begins with (its index, or -1),
// and whether t is the head of a longer one.
func (m *Set) longestIn(lo, hi int32, t []byte, same int) (n int32, more bool) {
	t = t[:min(len(t), m.longest)]
	next, end := lo, hi // the first needle greater than t lies between them
	low, high := same, same
	for next < end {
		mid := (next + end) / 2
		text := m.bytes(mid)
		k := common(text, t, min(low, high))
		if k < len(text) && (k == len(t) || text[k] > t[k]) {
			end, high = mid, k
			more = k == len(t)
		} else {
			next, low = mid+1, k
		}
	}
	if next == lo {
		return -1, more
	}
	// Those that t begins with are the needle before, or begin it.
	n = next - 1
	for k := common(m.bytes(n), t, low); n >= 0 && int(m.needles[n].size) > k; {
		n = m.needles[n].prefix
	}
	return n, more
}

// common is how many bytes a and b begin with in common, from which is known.
func common(a, b []byte, from int) int {
	n := min(len(a), len(b))
	for ; from+loadBytes <= n; from += loadBytes {
		if other := load(a, from) ^ load(b, from); other != 0 {
			return from + bits.TrailingZeros64(other)/8
		}
	}
	for from < n && a[from] == b[from] {
		from++
	}
	return from
}
