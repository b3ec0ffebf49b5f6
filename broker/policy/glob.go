package policy

import (
	"errors"
	"strings"
)

const (
	// maxGlobBytes and maxGlobSegments bound a glob. The claims that globs are
	// for (refs, workflow paths) have a dozen segments.
	maxGlobBytes    = 512
	maxGlobSegments = 63
)

// separators are what no wildcard crosses, but that ** runs over '/'.
const separators = "/:@"

// A glob matches whole texts, segment by segment. Segments are what stands
// between / : and @.
//
//   - * is any run of characters within a segment, and at least one character
//     where it is the whole segment
//   - ** is a whole segment by itself: one or more segments joined by /, none
//     of them empty
//
// All else is literal.
type glob struct{ segments []segment }

// A segment ends with sep, or with the text where sep is 0.
type segment struct {
	text string
	sep  byte
	kind segmentKind
}

type segmentKind uint8

const (
	literal segmentKind = iota
	star                // holds *
	whole               // is *
	deep                // is **
)

// Errors of compileGlob. They hold no part of the glob.
var (
	errGlobEmpty    = errors.New("an empty glob")
	errGlobLong     = errors.New("a glob of over 512 bytes or 63 segments")
	errGlobNoStar   = errors.New("a glob without a *")
	errGlobDeep     = errors.New("** isn't a whole segment")
	errGlobSpecial  = errors.New("a glob with one of ? [ ] { } \\: they mean nothing here")
	errGlobAnything = errors.New("a glob that matches anything")
)

func compileGlob(text string) (*glob, error) {
	switch {
	case text == "":
		return nil, errGlobEmpty
	case len(text) > maxGlobBytes:
		return nil, errGlobLong
	case strings.ContainsAny(text, `?[]{}\`):
		return nil, errGlobSpecial
	case !strings.Contains(text, "*"):
		return nil, errGlobNoStar
	case text == "*" || text == "**":
		return nil, errGlobAnything
	}
	g := &glob{}
	for rest, more := text, true; more; {
		var s segment
		s.text, s.sep, rest, more = cut(rest)
		switch {
		case s.text == "**":
			s.kind = deep
		case strings.Contains(s.text, "**"):
			return nil, errGlobDeep
		case s.text == "*":
			s.kind = whole
		case strings.Contains(s.text, "*"):
			s.kind = star
		}
		g.segments = append(g.segments, s)
	}
	if len(g.segments) > maxGlobSegments {
		return nil, errGlobLong
	}
	return g, nil
}

// cut takes the first segment off text. more is false if it was the last.
func cut(text string) (first string, sep byte, rest string, more bool) {
	i := strings.IndexAny(text, separators)
	if i < 0 {
		return text, 0, "", false
	}
	return text[:i], text[i], text[i+1:], true
}

// match walks the text once with the set of segments that may come next, one
// bit each, so that no glob takes more than segments × text.
func (g *glob) match(text string) bool {
	const first = uint64(1)
	active := first
	for rest, more := text, true; more; {
		var t string
		var sep byte
		t, sep, rest, more = cut(rest)
		next := uint64(0)
		for i := range g.segments {
			if active&(first<<i) == 0 {
				continue
			}
			s := &g.segments[i]
			if !s.matches(t) {
				continue
			}
			if s.sep == sep {
				next |= first << (i + 1)
			}
			if s.kind == deep && sep == '/' {
				next |= first << i
			}
		}
		if active = next; active == 0 {
			return false
		}
	}
	return active&(first<<len(g.segments)) != 0
}

// matches reports whether t, which holds no separator, is in the segment.
func (s *segment) matches(t string) bool {
	switch s.kind {
	case literal:
		return s.text == t
	case star:
		return matchStars(s.text, t)
	default:
		return t != ""
	}
}

// matchStars matches one segment: on a mismatch the latest * takes one more
// character, which is enough, since it may take anything.
func matchStars(pattern, t string) bool {
	p, i := 0, 0
	back, taken := -1, 0
	for i < len(t) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			back, taken = p, i
			p++
		case p < len(pattern) && pattern[p] == t[i]:
			p++
			i++
		case back >= 0:
			taken++
			p, i = back+1, taken
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// says reports whether the glob holds a letter or digit of its own, beside
// the word refs with which every full ref begins: refs/** says nothing.
func (g *glob) says() bool {
	for i, s := range g.segments {
		if i == 0 && s.text == "refs" {
			continue
		}
		if strings.ContainsFunc(s.text, func(r rune) bool { return r != '*' && r != '-' && r != '.' && r != '_' }) {
			return true
		}
	}
	return false
}
