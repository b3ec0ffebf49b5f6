package config

import (
	"regexp"
	"strings"
	"time"
)

// What YAML 1.1 and 1.2 read as something other than text.
var (
	// 0b1, 0o17, 0x1f, 1_000, 0123
	numberLike = regexp.MustCompile(`^[-+]?(0[bB][01_]+|0[oO]?[0-7_]+|0[xX][0-9a-fA-F_]+|[0-9][0-9_]*)$`)
	// 1.10, .5, 1e3, 1_0.0
	floatLike = regexp.MustCompile(`^[-+]?([0-9][0-9_]*)?\.?[0-9_]*([eE][-+]?[0-9_]+)?$`)
	// 22:22, 1:30:00.5
	sexagesimalLike = regexp.MustCompile(`^[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?$`)
	// 2001-01-01, 2001-01-01T00:00:00Z
	dateLike = regexp.MustCompile(`^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?$`)
)

// ambiguous reports whether some version of YAML reads the plain scalar as
// something other than its text.
func ambiguous(text string) bool {
	switch strings.ToLower(text) {
	case "", "~", "null", "y", "yes", "n", "no", "true", "false", "on", "off",
		".inf", "+.inf", "-.inf", ".nan", "=", "<<", "-", ".":
		return true
	}
	if c := text[0]; c != '-' && c != '+' && c != '.' && (c < '0' || c > '9') {
		return false
	}
	return numberLike.MatchString(text) || floatLike.MatchString(text) ||
		sexagesimalLike.MatchString(text) || dateLike.MatchString(text)
}

// maxDuration bounds every time in the file; what each may be is narrower.
const maxDuration = 1000 * time.Hour

// duration reads a positive time like 90s, 15m or 1h30m.
func duration(text string) (time.Duration, bool) {
	d, err := time.ParseDuration(text)
	return d, err == nil && d > 0 && d <= maxDuration
}

// wholeRef reads ${env:NAME} or ${file:PATH}. found means that one of them
// stands in text at all, whole that it is all of text.
func wholeRef(text string) (scheme, name string, whole, found bool) {
	found = strings.Contains(text, "${env:") || strings.Contains(text, "${file:")
	inner, ok := strings.CutPrefix(text, "${")
	if !ok {
		return "", "", false, found
	}
	inner, ok = strings.CutSuffix(inner, "}")
	scheme, name, colon := strings.Cut(inner, ":")
	if !ok || !colon || name == "" || strings.ContainsAny(name, "{}$\x00\n") || scheme != "env" && scheme != "file" {
		return "", "", false, found
	}
	return scheme, name, true, true
}
