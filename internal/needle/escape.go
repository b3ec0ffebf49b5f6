package needle

import (
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// A style is a way to escape with backslashes.
type style struct {
	quoted  string // what gets a backslash before it
	bare    string // what doesn't, of all that is not a letter, digit or control character; "" means: go by quoted
	names   string // control characters, each followed by its letter after a backslash
	control escape // other control characters, and DEL
	wide    escape // characters beyond ASCII
	broken  escape // bytes that aren't UTF-8
	html    bool   // < > & and the two line separators go as \u003c does
	upper   bool   // programs differ in the case of the digits
}

// An escape is how a character, or a byte, is written.
type escape uint8

const (
	asIs      escape = iota
	jsonRune         // \u001b, \ud83d\udd11
	goRune           // \u043f, \U0001f511
	unprinted        // as goRune, if the character can't be printed
	pyRune           // as goRune, but \xe9 up to there
	pyHidden         // as pyRune, if the character can't be printed
	hexBytes         // \x1b
	octBytes         // \033
	replaced         // � in its place
)

const (
	cNames    = "\aa\bb\tt\nn\vv\ff\rr"
	jsonNames = "\bb\tt\nn\ff\rr"
	pyNames   = "\tt\nn\rr"
)

// escapeStyles are the ways of programs, the most used first.
var escapeStyles = []style{
	// JSON.
	{quoted: `"\`, names: jsonNames, control: jsonRune, upper: true},
	{quoted: `"\`, names: jsonNames, control: jsonRune, broken: replaced, html: true, upper: true}, // Go
	{quoted: `"\`, names: jsonNames, control: jsonRune, broken: replaced, upper: true},
	{quoted: `"\/`, names: jsonNames, control: jsonRune, upper: true},
	{quoted: `"\/`, names: jsonNames, control: jsonRune, wide: jsonRune, broken: replaced, upper: true}, // PHP
	{quoted: `"\`, names: jsonNames, control: jsonRune, wide: jsonRune, broken: replaced, upper: true},  // Python
	{quoted: `"\`, control: jsonRune, upper: true},
	// Shells: in double quotes, in $'…', and bare.
	{quoted: "\"\\$`"},
	{quoted: "\"\\$`!"},
	{quoted: `'\`, names: cNames + "\x1bE", control: octBytes, broken: octBytes},
	{quoted: `'\`, names: cNames + "\x1bE", control: octBytes, wide: octBytes, broken: octBytes},
	{quoted: " !\"$&'()*,;<>?[\\]^`{|}"}, // bash's printf %q
	{bare: "_-.,:+/@"},                   // Ruby's Shellwords
	{bare: "_"},                          // Perl's quotemeta
	// Go's %q and %+q.
	{quoted: `"\`, names: cNames, control: hexBytes, wide: unprinted, broken: hexBytes},
	{quoted: `"\`, names: cNames, control: hexBytes, wide: goRune, broken: hexBytes},
	// Python's repr of a text, ascii, and repr of bytes.
	{quoted: `\`, names: pyNames, control: hexBytes, wide: pyHidden, broken: hexBytes},
	{quoted: `\'`, names: pyNames, control: hexBytes, wide: pyHidden, broken: hexBytes},
	{quoted: `\`, names: pyNames, control: hexBytes, wide: pyRune, broken: hexBytes},
	{quoted: `\'`, names: pyNames, control: hexBytes, wide: pyRune, broken: hexBytes},
	{quoted: `\`, names: pyNames, control: hexBytes, wide: hexBytes, broken: hexBytes},
	{quoted: `\'`, names: pyNames, control: hexBytes, wide: hexBytes, broken: hexBytes},
	// Node's inspect.
	{quoted: `\`, names: jsonNames, control: hexBytes, upper: true},
	{quoted: `\'`, names: jsonNames, control: hexBytes, upper: true},
}

// escape appends v as the style writes it.
func (st *style) escape(b, v []byte, digits string) []byte {
	for i := 0; i < len(v); {
		c := v[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRune(v[i:])
			how := st.wide
			switch {
			case r == utf8.RuneError && size == 1:
				how = st.broken
			case st.html && (r == '\u2028' || r == '\u2029'):
				how = jsonRune
			case (how == unprinted || how == pyHidden) && strconv.IsPrint(r):
				how = asIs
			}
			if st.bare != "" {
				b = append(b, '\\')
			}
			b = how.append(b, r, v[i:i+size], digits)
			i += size
			continue
		}
		i++
		switch {
		case c < ' ' || c == 0x7f:
			b = st.escapeControl(b, c, digits)
		case st.html && (c == '<' || c == '>' || c == '&'):
			b = jsonRune.append(b, rune(c), nil, digits)
		case st.bare != "" && !alphanumeric(c) && strings.IndexByte(st.bare, c) < 0, strings.IndexByte(st.quoted, c) >= 0:
			b = append(b, '\\', c)
		default:
			b = append(b, c)
		}
	}
	return b
}

func (st *style) escapeControl(b []byte, c byte, digits string) []byte {
	for i := 0; i < len(st.names); i += 2 {
		if st.names[i] == c {
			return append(b, '\\', st.names[i+1])
		}
	}
	if c == 0x7f && st.control == jsonRune && st.wide == asIs {
		return append(b, c) // only those who escape all beyond ~ escape DEL
	}
	return st.control.append(b, rune(c), []byte{c}, digits)
}

// append writes r, which is raw in UTF-8.
func (how escape) append(b []byte, r rune, raw []byte, digits string) []byte {
	unit := func(r rune) {
		b = append(b, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
	}
	if (how == pyRune || how == pyHidden) && r < 0x100 {
		return append(b, '\\', 'x', digits[r>>4], digits[r&15])
	}
	switch how {
	case jsonRune:
		if r < 0x10000 {
			unit(r)
		} else {
			high, low := utf16.EncodeRune(r)
			unit(high)
			unit(low)
		}
	case goRune, unprinted, pyRune, pyHidden:
		if r < 0x10000 {
			unit(r)
		} else {
			b = append(b, '\\', 'U', '0', '0', digits[r>>20&15], digits[r>>16&15], digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
		}
	case hexBytes:
		for _, c := range raw {
			b = append(b, '\\', 'x', digits[c>>4], digits[c&15])
		}
	case octBytes:
		for _, c := range raw {
			b = append(b, '\\', '0'+c>>6, '0'+c>>3&7, '0'+c&7)
		}
	case replaced:
		b = append(b, `\ufffd`...)
	default:
		b = append(b, raw...)
	}
	return b
}
