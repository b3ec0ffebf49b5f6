package ref

import (
	"errors"
	"slices"
	"strings"
)

// maxGlobSegments bounds a glob's segments, and so the time that it takes.
const maxGlobSegments = 63

// A Glob grants references: vault://secret/ci/shop/**. Scheme and provider are
// exact, and a glob without a provider is for references without one. The path
// is matched segment by segment, where / and : end one:
//
//   - * is any run of characters within a segment, at least one where it is the
//     whole segment
//   - ** is a whole segment by itself: one or more segments with / between
//
// Neither crosses a colon, so that a glob grants an ARN only if it says the
// region and the account. Every version is granted. A field is asked for only
// where one is written (behind the #, of gcp-sm as ?field=): then a reference
// matches that names this field or, by a JSON pointer, a part of it.
type Glob struct {
	scheme, provider string
	segments         []segment
	field            string
}

type segment struct {
	text string
	sep  byte // behind it; 0 at the end
}

const deep = "**"

// ParseGlob reads a glob. Its first segment (a mount, a project) must say
// something. Errors hold no part of the text.
func ParseGlob(text string) (Glob, error) {
	if len(text) > MaxBytes {
		return Glob{}, errors.New("a glob of over 1024 bytes")
	}
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok || !slices.Contains([]string{SchemeVault, SchemeAWSSM, SchemeSSM, SchemeGCPSM}, scheme) {
		return Glob{}, errors.New("a glob begins with vault://, aws-sm://, aws-ssm:// or gcp-sm://")
	}
	path, query, fragment, err := pieces(rest)
	if err != nil {
		return Glob{}, err
	}
	r := Ref{Scheme: scheme, Path: path}
	if fragment != "" {
		*r.fragment() = fragment
	}
	if err := r.query(query); err != nil {
		return Glob{}, err
	}
	if r.Version != "" {
		return Glob{}, errors.New("a glob names no version: every one is granted")
	}
	if err := checkPath(path, segmentChars+"*"); err != nil {
		return Glob{}, err
	}
	if err := checkField(r.Field, fieldChars); err != nil {
		return Glob{}, err
	}
	if r.Provider != "" && !validProvider(r.Provider) {
		return Glob{}, errors.New("not the name of a provider")
	}
	g := Glob{scheme: scheme, provider: r.Provider, field: r.Field}
	for rest := path; ; {
		i := strings.IndexAny(rest, "/:")
		if i < 0 {
			g.segments = append(g.segments, segment{text: rest})
			break
		}
		g.segments = append(g.segments, segment{rest[:i], rest[i]})
		rest = rest[i+1:]
	}
	if len(g.segments) > maxGlobSegments {
		return Glob{}, errors.New("a glob of over 63 segments")
	}
	for _, s := range g.segments {
		if s.text != deep && strings.Contains(s.text, deep) {
			return Glob{}, errors.New("** isn't a whole segment")
		}
	}
	if only(g.segments[0].text, "*") {
		return Glob{}, errors.New("a glob whose first segment is nothing but * grants too much: write the mount, the project or the first part of the name")
	}
	return g, nil
}

// Scheme is that of the references that the glob grants.
func (g Glob) Scheme() string { return g.scheme }

// Provider is that of the references that the glob grants; empty for those
// that name none.
func (g Glob) Provider() string { return g.provider }

// Match reports whether the glob grants the reference.
func (g Glob) Match(r Ref) bool {
	if g.scheme == "" || r.Scheme != g.scheme || r.Provider != g.provider || !g.matchField(r) {
		return false
	}
	return g.matchPath(r.Path)
}

// MatchCredential reports whether the glob grants some field of the credential:
// what keeps one alive that was granted by a field.
func (g Glob) MatchCredential(r Ref) bool {
	g.field = ""
	return g.Match(r)
}

func (g Glob) matchField(r Ref) bool {
	return g.field == "" || r.Field == g.field || r.root() == g.field ||
		strings.HasPrefix(g.field, "/") && strings.HasPrefix(r.Field, g.field+"/")
}

// matchPath walks the path once with the set of segments that may come next,
// one bit each.
func (g Glob) matchPath(path string) bool {
	active := uint64(1)
	for rest, more := path, true; more; {
		var t string
		var sep byte
		if i := strings.IndexAny(rest, "/:"); i >= 0 {
			t, sep, rest = rest[:i], rest[i], rest[i+1:]
		} else {
			t, more = rest, false
		}
		next := uint64(0)
		for i, s := range g.segments {
			if active&(1<<i) == 0 || !s.matches(t) {
				continue
			}
			if s.sep == sep {
				next |= 1 << (i + 1)
			}
			if s.text == deep && sep == '/' {
				next |= 1 << i
			}
		}
		if active = next; active == 0 {
			return false
		}
	}
	return active&(1<<len(g.segments)) != 0
}

// matches reports whether t, which holds no separator, is in the segment.
func (s segment) matches(t string) bool {
	switch {
	case !strings.Contains(s.text, "*"):
		return s.text == t
	case only(s.text, "*"):
		return t != ""
	}
	// On a mismatch the latest * takes one more character, which is enough,
	// since it may take anything.
	p, i, back, taken := 0, 0, -1, 0
	for i < len(t) {
		switch {
		case p < len(s.text) && s.text[p] == '*':
			back, taken = p, i
			p++
		case p < len(s.text) && s.text[p] == t[i]:
			p++
			i++
		case back >= 0:
			taken++
			p, i = back+1, taken
		default:
			return false
		}
	}
	return only(s.text[p:], "*")
}
