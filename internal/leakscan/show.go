package leakscan

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/runenv/action/internal/needle"
)

// show makes a path fit to be seen: each value in it becomes its lease, and
// what a terminal or a CI may act on, or JSON can't hold, is spelled out.
func show(set *needle.Set, path string) string {
	text := []byte(path)
	var out strings.Builder
	done := 0
	set.Find(text, true, func(start, end, lease int) {
		if start >= done {
			out.WriteString(escape(text[done:start]))
			out.WriteString("[REDACTED:" + set.Lease(lease) + "]")
		}
		done = max(done, end)
	})
	out.WriteString(escape(text[done:]))
	return out.String()
}

// Longer paths, and names in archives, aren't shown whole: in bytes.
const (
	maxPathShown  = 8 << 10
	maxMemberName = 1 << 10
)

// short leaves out the middle of a text that was made fit to be seen, if it has
// more than limit bytes.
func short(text string, limit int) string {
	const gap = "…"
	if len(text) <= limit {
		return text
	}
	half := (limit - len(gap)) / 2
	return strings.ToValidUTF8(text[:half], "") + gap + strings.ToValidUTF8(text[len(text)-half:], "")
}

func escape(b []byte) string {
	const digits = "0123456789abcdef"
	var out strings.Builder
	for len(b) > 0 {
		r, size := utf8.DecodeRune(b)
		if r == utf8.RuneError && size <= 1 || !unicode.IsPrint(r) {
			for _, c := range b[:size] {
				out.WriteString(`\x` + string(digits[c>>4]) + string(digits[c&15]))
			}
		} else {
			out.Write(b[:size])
		}
		b = b[size:]
	}
	return out.String()
}
