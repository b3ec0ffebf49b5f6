package policy

import "strings"

// maxNameBytes bounds the names of projects, leases, roles and issuers.
const maxNameBytes = 63

// ValidName reports whether s can name an entry of the file: lower-case
// letters, digits, and - _ . within, 63 bytes at most. Such a name is one safe
// segment of a path, so that templates may read it.
func ValidName(s string) bool {
	if s == "" || len(s) > maxNameBytes || strings.Contains(s, "..") {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9':
		case i > 0 && (c == '-' || c == '_' || c == '.'):
		default:
			return false
		}
	}
	return true
}

// validRole is narrower than ValidName, because clouds' trust policies hold
// role names: [a-z0-9-]{1,63}.
func validRole(s string) bool {
	return s != "" && len(s) <= maxNameBytes && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// validVar reports whether s can name a project's variable, so that a template
// can read it: [A-Za-z_][A-Za-z0-9_-]{0,62}.
func validVar(s string) bool {
	if s == "" || len(s) > maxNameBytes {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_':
		case i > 0 && ('0' <= c && c <= '9' || c == '-'):
		default:
			return false
		}
	}
	return true
}

const (
	// maxNearestBytes bounds the words that Nearest compares.
	maxNearestBytes = 64
	// minPrefixBytes is how long the beginning of a word is to count as near.
	minPrefixBytes = 3
)

// Nearest returns a hint that asks after the known word that is most like
// word, or "" if none is near. It never holds word itself, which may be a
// value in the wrong place.
func Nearest(word string, known []string) string {
	if word == "" || len(word) > maxNearestBytes {
		return ""
	}
	best, bestDistance := "", len(word)/3+2
	for _, k := range known {
		if k == word || len(k) > maxNearestBytes {
			continue
		}
		a, b := strings.ToLower(word), strings.ToLower(k)
		d := distance(a, b)
		if len(a) >= minPrefixBytes && strings.HasPrefix(b, a) {
			d = min(d, 2) // event for event_name
		}
		// A distance as long as the word itself is no likeness.
		if d < bestDistance && d < len(k) && d < len(word) || d == bestDistance && best != "" && k < best {
			best, bestDistance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return `did you mean "` + best + `"?`
}

// distance counts insertions, deletions, substitutions and swaps of
// neighbours (optimal string alignment).
func distance(a, b string) int {
	var before, above, row []int
	above = make([]int, len(b)+1)
	for j := range above {
		above[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row = make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(above[j]+1, row[j-1]+1, above[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, above = above, row
	}
	return above[len(b)]
}
