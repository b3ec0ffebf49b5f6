package policy

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestT08GlobTable(t *testing.T) {
	t.Parallel()
	tests := []struct {
		glob string
		yes  []string
		no   []string
	}{
		{
			"refs/heads/release-*",
			[]string{"refs/heads/release-1", "refs/heads/release-"},
			[]string{"refs/heads/release-1/x", "refs/heads/release", "refs/heads/xrelease-1", "refs/tags/release-1", "refs/heads/release-1:x", "refs/heads/release-a@b", "", "refs/heads/release-1/"},
		},
		{
			"refs/tags/*",
			[]string{"refs/tags/v1"},
			[]string{"refs/tags/", "refs/tags", "refs/tags/v1/x", "refs/tags/v1@x", "refs/heads/refs/tags/v1", "xrefs/tags/v1"},
		},
		{
			"refs/heads/release/**",
			[]string{"refs/heads/release/1", "refs/heads/release/1/2/3"},
			[]string{"refs/heads/release", "refs/heads/release/", "refs/heads/release//x", "refs/heads/release/x//y", "refs/heads/release/x/", "refs/heads/release2/x", "refs/heads/release/x:y", "refs/heads/release/x@y"},
		},
		{
			"acme/**/.github/workflows/deploy.yml@refs/heads/main",
			[]string{"acme/api/.github/workflows/deploy.yml@refs/heads/main", "acme/a/b/.github/workflows/deploy.yml@refs/heads/main"},
			[]string{"acme/.github/workflows/deploy.yml@refs/heads/main", "acme/api/.github/workflows/deploy.yml@refs/heads/main2", "acme/api@x/.github/workflows/deploy.yml@refs/heads/main", "evil/acme/api/.github/workflows/deploy.yml@refs/heads/main"},
		},
		{
			"repo:acme/*:ref:refs/heads/main",
			[]string{"repo:acme/api:ref:refs/heads/main"},
			[]string{"repo:acme/api:environment:x:ref:refs/heads/main", "repo:acme/api@7:ref:refs/heads/main", "repo:acme/a/b:ref:refs/heads/main", "repo:acme/:ref:refs/heads/main"},
		},
		{
			"repo:acme/**:ref:refs/heads/main",
			[]string{"repo:acme/a/b:ref:refs/heads/main"},
			[]string{"repo:acme/a:environment:b:ref:refs/heads/main"},
		},
		{
			"gitlab.example.com/pay/api//ci/*.yml@refs/heads/main",
			[]string{"gitlab.example.com/pay/api//ci/deploy.yml@refs/heads/main"},
			[]string{"gitlab.example.com/pay/api/ci/deploy.yml@refs/heads/main"},
		},
		{"a*b*c", []string{"abc", "axbxc", "abbcc", "abcbc"}, []string{"ab", "acb", "abcx", "xabc", "a/b/c"}},
		{"**/x/**", []string{"a/x/b", "a/x/x/b", "a/b/x/c"}, []string{"x/b", "a/x", "a/y/b"}},
	}
	for _, tt := range tests {
		g, err := compileGlob(tt.glob)
		if err != nil {
			t.Fatalf("compileGlob(%q): %v", tt.glob, err)
		}
		for _, s := range tt.yes {
			if !g.match(s) {
				t.Errorf("glob %q doesn't match %q, want a match", tt.glob, s)
			}
		}
		for _, s := range tt.no {
			if g.match(s) {
				t.Errorf("glob %q matches %q, want none", tt.glob, s)
			}
		}
	}
}

func TestT08GlobsRefused(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]error{
		"":                            errGlobEmpty,
		"*":                           errGlobAnything,
		"**":                          errGlobAnything,
		"refs/heads/main":             errGlobNoStar,
		"refs/**x":                    errGlobDeep,
		"refs/x**":                    errGlobDeep,
		"refs/***":                    errGlobDeep,
		"refs/v?*":                    errGlobSpecial,
		"refs/[ab]*":                  errGlobSpecial,
		"refs/{a,b}*":                 errGlobSpecial,
		`refs/\**`:                    errGlobSpecial,
		strings.Repeat("*", 513):      errGlobLong,
		strings.Repeat("*/", 63) + "": errGlobLong,
	} {
		if _, err := compileGlob(text); !errors.Is(err, want) {
			t.Errorf("compileGlob(%q) = %v, want %v", text, err, want)
		}
	}
}

// TestT08GlobProperty holds the matcher against a naive one written from the
// rules, and against the rule that matters most: a wildcard never crosses
// a separator.
func TestT08GlobProperty(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	word := func(alphabet string, n int) string {
		b := make([]byte, r.IntN(n))
		for i := range b {
			b[i] = alphabet[r.IntN(len(alphabet))]
		}
		return string(b)
	}
	matched := 0
	for range 1_000_000 {
		pattern := word("aab**//:@", 9)
		g, err := compileGlob(pattern)
		if err != nil {
			continue
		}
		text := word("aaabb//:@", 11)
		got, want := g.match(text), naive(g.segments, text)
		if got != want {
			t.Fatalf("glob %q on %q = %v, want %v", pattern, text, got, want)
		}
		if !got {
			continue
		}
		matched++
		for _, sep := range []string{":", "@"} {
			if strings.Count(pattern, sep) != strings.Count(text, sep) {
				t.Fatalf("glob %q matched %q across %q", pattern, text, sep)
			}
		}
		if !strings.Contains(pattern, "**") && strings.Count(pattern, "/") != strings.Count(text, "/") {
			t.Fatalf("glob %q matched %q across /", pattern, text)
		}
	}
	if matched < 1000 {
		t.Errorf("%d matches seen, want at least 1000: the property was hardly tried", matched)
	}
}

// naive tries everything.
func naive(segments []segment, text string) bool {
	t, sep, rest, more := cut(text)
	s := segments[0]
	fits := s.text == t
	switch s.kind {
	case star:
		fits = naiveStars(s.text, t)
	case whole, deep:
		fits = t != ""
	}
	if !fits {
		return false
	}
	if s.kind == deep && sep == '/' && naive(segments, rest) {
		return true
	}
	if s.sep != sep {
		return false
	}
	if len(segments) == 1 || !more {
		return len(segments) == 1 && !more
	}
	return naive(segments[1:], rest)
}

func naiveStars(pattern, t string) bool {
	if pattern == "" {
		return t == ""
	}
	if pattern[0] == '*' {
		return naiveStars(pattern[1:], t) || t != "" && naiveStars(pattern, t[1:])
	}
	return t != "" && t[0] == pattern[0] && naiveStars(pattern[1:], t[1:])
}

func FuzzGlob(f *testing.F) {
	f.Add("refs/heads/release-*", "refs/heads/release-1")
	f.Add("a/**/b", "a/x/y/b")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		g, err := compileGlob(pattern)
		if err != nil {
			return
		}
		if g.match(text) && (strings.Count(pattern, ":") != strings.Count(text, ":") || strings.Count(pattern, "@") != strings.Count(text, "@")) {
			t.Errorf("glob %q matched %q across a separator", pattern, text)
		}
		if !strings.ContainsAny(text, "*") && !g.match(strings.ReplaceAll(pattern, "*", "x")) {
			t.Errorf("glob %q doesn't match itself with x for *", pattern)
		}
	})
}
