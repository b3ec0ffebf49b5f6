package needle

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
)

const (
	// pieceBytes is the length of the pieces that a form of more than
	// MaxBytes is looked for in.
	pieceBytes = 64
	// manyFormsBytes is the length up to which all ways to escape a value are
	// looked for; beyond it they would cost more memory than they are worth.
	manyFormsBytes = 4 << 10
	// maxGrowth is how much longer than a text a form of it may be.
	maxGrowth = 6
)

// A collector makes the forms of values, one after another, in a buffer that
// can be wiped.
type collector struct {
	buf   []byte
	lease int32 // of the value at hand
	large bool  // it has more than manyFormsBytes
	found []form

	padded []byte   // two zeros and the text at hand, for base64
	whole  [][2]int // the forms of the text at hand, as ranges of buf
}

// A form is what to look for: bytes of a collector's buffer.
type form struct {
	key      uint64 // its first bytes, so that it sorts fast
	at, size int
	lease    int32
}

// wipe clears all copies of values.
func (c *collector) wipe() {
	clear(c.buf[:cap(c.buf)])
	clear(c.padded[:cap(c.padded)])
	clear(c.found)
}

// value adds a value and its lines in all their encodings, if it is long enough
// to be found.
func (c *collector) value(v []byte) {
	trimmed := bytes.TrimSpace(v)
	if tooShort(trimmed) {
		return
	}
	c.large = len(trimmed) > manyFormsBytes
	short, long, lines := false, false, 0 // some line is too short to be looked for by itself, or isn't
	var before []byte
	for line := range bytes.SplitSeq(trimmed, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) >= MinBytes && bytes.Equal(line, before) {
			lines++ // it was added
			continue
		}
		before = line
		if len(line) >= MinBytes && !(boilerplate(line) && len(line) < len(trimmed)) {
			c.begin(line)
			c.byteForms()
			c.base64Forms()
			long = true
		}
		short = short || len(line) > 0 && len(line) < MinBytes
		lines++
	}
	if lines == 1 && long {
		return
	}
	// The lines' borders don't show in base64 alone.
	c.begin(trimmed)
	c.base64Forms()
	if !short && long {
		return
	}
	// The short lines are found as parts of the whole; the others were added
	// in all forms already.
	forms := c.byteForms
	if long {
		forms = c.fewForms
	}
	forms()
	for _, end := range []string{"\n", "\r\n"} {
		c.begin(c.lineEnds(trimmed, end))
		forms()
	}
}

// boilerplate says whether a line of a longer value is in every file of its kind and
// no secret: what frames a PEM block, a key of YAML or JSON that only opens what
// follows, and what every kubeconfig and every Google key file says.
func boilerplate(line []byte) bool {
	if bytes.HasPrefix(line, []byte("-----")) && bytes.HasSuffix(line, []byte("-----")) {
		return true
	}
	if _, ok := boilerplateLines[string(line)]; ok {
		return true
	}
	key, ok := bytes.CutSuffix(line, []byte(":"))
	if !ok {
		key, ok = bytes.CutSuffix(bytes.TrimRight(line, " {["), []byte(":"))
	}
	return ok && len(key) <= maxKeyBytes && len(bytes.Trim(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_\"' ")) == 0
}

// maxKeyBytes bounds what is taken for a key: a longer text of letters may be a
// secret.
const maxKeyBytes = 24

var boilerplateLines = map[string]struct{}{
	"apiVersion: v1": {}, "kind: Config": {}, "preferences: {}": {},
	"apiVersion: client.authentication.k8s.io/v1beta1": {}, "apiVersion: client.authentication.k8s.io/v1": {},
	`"type": "service_account",`: {}, `"type": "external_account",`: {}, `"type": "authorized_user",`: {},
	`"auth_uri": "https://accounts.google.com/o/oauth2/auth",`:                     {},
	`"token_uri": "https://oauth2.googleapis.com/token",`:                          {},
	`"auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs",`: {},
	`"universe_domain": "googleapis.com"`:                                          {},
}

// begin makes v the text at hand.
func (c *collector) begin(v []byte) {
	c.whole = c.whole[:0]
	if cap(c.padded) < len(v)+2 {
		clear(c.padded)
		c.padded = make([]byte, 2, 2*len(v)+64)
	}
	clear(c.padded)
	c.padded = append(c.padded[:2], v...)
}

// room makes room for n bytes at the end of the buffer.
func (c *collector) room(n int) []byte {
	if cap(c.buf)-len(c.buf) < n {
		old := c.buf
		c.buf = append(make([]byte, 0, 2*cap(old)+n+4<<10), old...)
		clear(old)
	}
	return c.buf
}

// lineEnds gives the lines of v other ends.
func (c *collector) lineEnds(v []byte, end string) []byte {
	b := c.room(2 * len(v))
	at := len(b)
	for i, ch := range v {
		switch {
		case ch == '\n':
			b = append(b, end...)
		case ch == '\r' && i+1 < len(v) && v[i+1] == '\n':
		default:
			b = append(b, ch)
		}
	}
	c.buf = b
	return b[at:]
}

// fewForms adds the text at hand as it is and as a JSON string.
func (c *collector) fewForms() {
	v := c.padded[2:]
	c.add(append(c.room(len(v)), v...))
	c.add(escapeStyles[0].escape(c.room(maxGrowth*len(v)), v, lowerDigits))
}

// byteForms adds the text at hand as it is and in the encodings that go byte
// by byte.
func (c *collector) byteForms() {
	v := c.padded[2:]
	room := maxGrowth * len(v)
	c.add(append(c.room(room), v...))
	c.add(hex.AppendEncode(c.room(room), v))
	at, end := len(c.buf)-2*len(v), len(c.buf)
	upper := append(c.room(room), c.buf[at:end]...)
	for i := len(upper) - 2*len(v); i < len(upper); i++ {
		if upper[i] >= 'a' {
			upper[i] -= 'a' - 'A'
		}
	}
	c.add(upper)
	c.wrapped(at, end, end, 60) // as xxd -p breaks it
	if !needsEscapes(v) {
		return
	}
	if c.large {
		c.add(percent(c.room(room), v, percentKept[0], upperDigits, false))
		c.add(escapeStyles[0].escape(c.room(room), v, lowerDigits))
		return
	}
	for _, k := range percentKept {
		for _, digits := range []string{lowerDigits, upperDigits} {
			c.add(percent(c.room(room), v, k, digits, false))
			c.add(percent(c.room(room), v, k, digits, true))
		}
	}
	for _, st := range escapeStyles {
		c.add(st.escape(c.room(room), v, lowerDigits))
		if st.upper {
			c.add(st.escape(c.room(room), v, upperDigits))
		}
	}
	for _, e := range entities {
		c.add(markup(c.room(room), v, e))
	}
	for _, q := range singleQuotes {
		c.add(singleQuoted(c.room(room), v, q))
	}
}

// needsEscapes says whether an encoder may escape some byte of v.
func needsEscapes(v []byte) bool {
	for _, c := range v {
		if !alphanumeric(c) && c != '-' && c != '_' && c != '.' {
			return true
		}
	}
	return false
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// base64Forms adds the text at hand as it stands in a larger text, offset
// bytes after a multiple of three.
func (c *collector) base64Forms() {
	size := len(c.padded) - 2
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		for offset := range 3 {
			at := len(c.room(2*size + 16))
			c.buf = enc.AppendEncode(c.buf, c.padded[2-offset:])
			// The first characters hold bits of what stands before the value.
			first := at + (8*offset+5)/6
			// The middle leaves out what holds bits of what follows. Where the
			// text ends with the value, its last character holds bits of the
			// value alone.
			middle := at + 8*(offset+size)/6
			end := len(c.buf)
			bare := at + len(bytes.TrimRight(c.buf[at:end], "="))
			for i, to := range []int{middle, bare, end} {
				if i == 0 || to != middle && (i == 1 || to != bare) {
					c.pieces(first, to)
				}
			}
			if offset == 0 {
				c.wrapped(at, middle, end, 64, 76) // as openssl and base64(1) break it
			}
		}
	}
}

// wrapped adds the lines of an encoding that is broken at some columns; what is
// from the middle on depends on what follows the value. A short last line is
// looked for with the end of the line before: by itself it would slow down the
// search and be found in other texts.
func (c *collector) wrapped(at, middle, end int, widths ...int) {
	const long = maxWindow
	for _, width := range widths {
		if end-at <= width {
			continue
		}
		i := at
		for ; middle-i >= long; i += min(width, middle-i) {
			c.piece(i, min(i+width, middle))
		}
		last := at + (end-at-1)/width*width // where the last line begins
		for _, to := range []int{middle, end} {
			switch {
			case to-last >= long:
				c.piece(last, to)
			case to > last:
				for _, eol := range []string{"\n", "\r\n"} {
					b := c.room(2*long + 2)
					from := len(b)
					b = append(append(append(b, b[last-long:last]...), eol...), b[last:to]...)
					c.buf = b
					c.piece(from, len(b))
				}
			}
		}
	}
}

// add takes what was appended to the buffer as a form, unless the text at hand
// has it already.
func (c *collector) add(b []byte) {
	at, end := len(c.buf), len(b)
	for _, w := range c.whole {
		if w[1]-w[0] == end-at && bytes.Equal(b[w[0]:w[1]], b[at:end]) {
			clear(b[at:end])
			return
		}
	}
	c.buf = b
	c.whole = append(c.whole, [2]int{at, end})
	c.pieces(at, end)
}

func (c *collector) pieces(at, end int) {
	if end-at <= MaxBytes {
		c.piece(at, end)
		return
	}
	for ; end-at > pieceBytes; at += pieceBytes {
		c.piece(at, at+pieceBytes)
	}
	c.piece(end-pieceBytes, end)
}

func (c *collector) piece(at, end int) {
	var key uint64
	for i := range loadBytes {
		key <<= 8
		if at+i < end {
			key |= uint64(c.buf[at+i])
		}
	}
	if len(c.found) == cap(c.found) {
		old := c.found
		c.found = append(make([]form, 0, 2*len(old)+256), old...)
		clear(old)
	}
	c.found = append(c.found, form{key, at, end - at, c.lease})
}

// unique sorts what was found by its bytes and drops what is there twice: the
// first secret keeps it. It returns the sum of the sizes too.
func (c *collector) unique() (forms []form, size int) {
	text := func(f form) []byte { return c.buf[f.at : f.at+f.size] }
	slices.SortFunc(c.found, func(a, b form) int {
		if a.key != b.key {
			return cmp.Compare(a.key, b.key)
		}
		if order := bytes.Compare(text(a), text(b)); order != 0 {
			return order
		}
		return cmp.Compare(a.at, b.at)
	})
	forms = slices.CompactFunc(c.found, func(a, b form) bool { return a.key == b.key && bytes.Equal(text(a), text(b)) })
	for _, f := range forms {
		size += f.size
	}
	return forms, size
}

// percentKept are the sets of punctuation that encoders leave as it is, the
// most used first.
var percentKept = []string{
	"-_.~",                 // RFC 3986's unreserved
	"-_.~!'()*",            // encodeURIComponent
	"-_.~/",                // Python's quote
	"-_.~!'()*;/?:@&=+$,#", // encodeURI
	"-_.~$&+=:@",           // Go's url.PathEscape
	"-_.~$&+,;=",           // Go's url.UserPassword
	"-_.~!$&'()*+,;=:@",    // RFC 3986's pchar
	"-_.*",                 // HTML forms
}

const (
	lowerDigits = "0123456789abcdef"
	upperDigits = "0123456789ABCDEF"
)

func percent(b, v []byte, kept, digits string, plus bool) []byte {
	for _, c := range v {
		switch {
		case alphanumeric(c), strings.IndexByte(kept, c) >= 0:
			b = append(b, c)
		case c == ' ' && plus:
			b = append(b, '+')
		default:
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return b
}

// entities are what HTML and XML encoders write for a double and a single
// quote.
var entities = [][2]string{{`"`, `'`}, {"&quot;", `'`}, {"&quot;", "&apos;"}, {"&#34;", "&#39;"}, {"&quot;", "&#39;"}, {"&quot;", "&#x27;"}}

func markup(b, v []byte, quotes [2]string) []byte {
	for _, c := range v {
		switch c {
		case '&':
			b = append(b, "&amp;"...)
		case '<':
			b = append(b, "&lt;"...)
		case '>':
			b = append(b, "&gt;"...)
		case '"':
			b = append(b, quotes[0]...)
		case '\'':
			b = append(b, quotes[1]...)
		default:
			b = append(b, c)
		}
	}
	return b
}

// singleQuotes are the ways to write a single quote within single quotes in a
// shell.
var singleQuotes = []string{`'\''`, `'"'"'`}

// singleQuoted leaves out a quote at either end, where shells differ.
func singleQuoted(b, v []byte, quote string) []byte {
	at := len(b)
	for _, c := range v {
		if c == '\'' {
			b = append(b, quote...)
		} else {
			b = append(b, c)
		}
	}
	if v[len(v)-1] == '\'' {
		b = b[:len(b)-1]
	}
	if v[0] == '\'' {
		b = append(b[:at], b[at+1:]...)
	}
	return b
}
