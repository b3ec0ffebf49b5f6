package leakscan

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

const (
	maxGlobs     = 1000
	maxGlobBytes = 4096
	// maxStars bounds the time that one match may take.
	maxStars = 4
)

// globs are patterns by segment.
type globs [][]string

// CheckIgnore says which pattern of [Config].Ignore makes no sense.
func CheckIgnore(patterns []string) error {
	_, err := compileGlobs(patterns)
	return err
}

func compileGlobs(patterns []string) (globs, error) {
	if len(patterns) > maxGlobs {
		return nil, fmt.Errorf("%d patterns to ignore, more than %d", len(patterns), maxGlobs)
	}
	var out globs
	for _, p := range patterns {
		segments := strings.Split(strings.TrimSuffix(strings.TrimPrefix(p, "./"), "/"), "/")
		for _, s := range segments {
			if _, err := path.Match(s, ""); err != nil || s == "" || s == "." || s == ".." {
				return nil, fmt.Errorf("pattern to ignore %q: it is matched against paths below the folder searched, segment by segment: %q can't be one", p, s)
			}
		}
		segments = slices.CompactFunc(segments, func(a, b string) bool { return a == "**" && b == "**" })
		stars := 0
		for _, s := range segments {
			if s == "**" {
				stars++
			}
		}
		if len(p) > maxGlobBytes || stars > maxStars {
			return nil, fmt.Errorf("pattern to ignore %.40q…: more than %d bytes, or than %d times **", p, maxGlobBytes, maxStars)
		}
		out = append(out, segments)
	}
	return out, nil
}

// match reports whether a pattern matches a path with forward slashes.
func (g globs) match(name string) bool {
	if len(g) == 0 {
		return false
	}
	segments := strings.Split(name, "/")
	return slices.ContainsFunc(g, func(pattern []string) bool { return matchSegments(pattern, segments) })
}

func matchSegments(pattern, name []string) bool {
	for len(pattern) > 0 {
		if pattern[0] == "**" {
			for skip := 0; skip <= len(name); skip++ {
				if matchSegments(pattern[1:], name[skip:]) {
					return true
				}
			}
			return false
		}
		if len(name) == 0 {
			return false
		}
		if ok, _ := path.Match(pattern[0], name[0]); !ok {
			return false
		}
		pattern, name = pattern[1:], name[1:]
	}
	return len(name) == 0
}
