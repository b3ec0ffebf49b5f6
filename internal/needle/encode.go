package needle

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	pieceBytes = 64
	// manyFormsBytes is the length up to which rare ways to escape a value
	// are looked for too; beyond it they would cost more memory than they are
	// worth.
	manyFormsBytes = 16 << 10
)

// A needleSet collects what to look for: each text with the number of the
// lease that brought it first.
type needleSet struct{ lease map[string]int32 }

func newNeedleSet() *needleSet { return &needleSet{lease: map[string]int32{}} }

// addValue adds a value and its lines in all their encodings. It reports
// whether the value is long enough to be hidden.
func (s *needleSet) addValue(v []byte, lease int) bool {
	trimmed := bytes.TrimSpace(v)
	if len(trimmed) < MinBytes {
		return false
	}
	short := false // a line that is too short to be looked for by itself
	for line := range bytes.SplitSeq(trimmed, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) >= MinBytes {
			s.addText(line, lease)
			s.addBase64(line, lease)
		}
		short = short || len(line) > 0 && len(line) < MinBytes
	}
	// The lines' borders don't show in base64 alone.
	s.addBase64(trimmed, lease)
	if short {
		s.addText(trimmed, lease)
	}
	return true
}

// addText adds a text as it is and in the encodings that go byte by byte.
func (s *needleSet) addText(v []byte, lease int) {
	s.add(string(v), lease)
	lower := hex.EncodeToString(v)
	s.add(lower, lease)
	s.add(strings.ToUpper(lower), lease)
	if bytes.IndexFunc(v, escaped) < 0 {
		return
	}
	kept, styles := percentKept, jsonStyles
	if len(v) > manyFormsBytes {
		kept, styles = kept[:2], styles[:2]
	}
	forms := map[string]bool{}
	for _, digits := range []string{lowerDigits, upperDigits} {
		for _, k := range kept {
			forms[percent(v, k, digits, false)] = true
			forms[percent(v, k, digits, true)] = true
		}
		for _, style := range styles {
			forms[jsonEscape(v, style, digits)] = true
		}
	}
	for form := range forms {
		s.add(form, lease)
	}
}

// escaped says of some character that an encoder may escape it.
func escaped(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
}

func (s *needleSet) addBase64(v []byte, lease int) {
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		for offset := range 3 {
			middle, end := base64At(enc, v, offset)
			s.add(middle, lease)
			// Where the text ends with the value, its last character holds
			// bits of the value alone.
			s.add(strings.TrimRight(end, "="), lease)
			s.add(end, lease)
		}
		middle, _ := base64At(enc, v, 0)
		s.addWrapped(middle, lease)
	}
}

func (s *needleSet) add(needle string, lease int) {
	if len(needle) <= MaxBytes {
		s.addPiece(needle, lease)
		return
	}
	for i := 0; i < len(needle)-pieceBytes; i += pieceBytes {
		s.addPiece(needle[i:i+pieceBytes], lease)
	}
	s.addPiece(needle[len(needle)-pieceBytes:], lease)
}

func (s *needleSet) addPiece(needle string, lease int) {
	if _, ok := s.lease[needle]; !ok {
		s.lease[needle] = int32(lease)
	}
}

// base64At encodes v as it stands in a larger text, offset bytes after a
// multiple of three: in its middle, without the characters that hold bits of
// its neighbours, and at its end, padding included.
func base64At(enc *base64.Encoding, v []byte, offset int) (middle, end string) {
	text := enc.EncodeToString(append(make([]byte, offset, offset+len(v)), v...))
	first := (8*offset + 5) / 6
	return text[first : 8*(offset+len(v))/6], text[first:]
}

// addWrapped adds the lines of a base64 text as openssl and base64(1) break
// it.
func (s *needleSet) addWrapped(text string, lease int) {
	for _, width := range []int{64, 76} {
		if len(text) <= width {
			continue
		}
		for rest := text; len(rest) >= MinBytes; rest = rest[min(width, len(rest)):] {
			s.addPiece(rest[:min(width, len(rest))], lease)
		}
	}
}

// percentKept are the sets of punctuation that encoders leave as it is, the
// most used first.
var percentKept = []string{
	"-_.~",                 // RFC 3986's unreserved
	"-_.~!'()*",            // encodeURIComponent
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

func percent(v []byte, kept, digits string, plus bool) string {
	b := make([]byte, 0, len(v))
	for _, c := range v {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte(kept, c) >= 0:
			b = append(b, c)
		case c == ' ' && plus:
			b = append(b, '+')
		default:
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return string(b)
}

// A jsonStyle is what an encoder escapes beyond what it must.
type jsonStyle struct {
	html  bool // < > & and the two line separators, as Go does
	slash bool // as PHP does
	ascii bool // everything above ~, as Python does
	plain bool // \u000a rather than \n
	raw   bool // invalid UTF-8 stays as it is; else it is replaced
}

var jsonStyles = []jsonStyle{ // the most used first
	{raw: true},
	{html: true},
	{},
	{slash: true, raw: true},
	{slash: true, ascii: true},
	{ascii: true},
	{plain: true, raw: true},
}

func jsonEscape(v []byte, st jsonStyle, digits string) string {
	b := make([]byte, 0, len(v))
	escape := func(r rune) {
		b = append(b, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
	}
	for i := 0; i < len(v); {
		r, size := utf8.DecodeRune(v[i:])
		broken := r == utf8.RuneError && size == 1
		switch {
		case broken && !st.raw:
			escape(utf8.RuneError)
		case r == '"', r == '\\', r == '/' && st.slash:
			b = append(b, '\\', v[i])
		case r < ' ' && !st.plain && jsonNames[r] != 0:
			b = append(b, '\\', jsonNames[r])
		case r < ' ', st.html && strings.ContainsRune("<>&\u2028\u2029", r), st.ascii && r > '~' && r < 0x10000:
			escape(r)
		case st.ascii && r >= 0x10000:
			high, low := utf16.EncodeRune(r)
			escape(high)
			escape(low)
		default:
			b = append(b, v[i:i+size]...)
		}
		i += size
	}
	return string(b)
}

// jsonNames are the control characters with a letter of their own.
var jsonNames = [' ']byte{'\b': 'b', '\t': 't', '\n': 'n', '\f': 'f', '\r': 'r'}
