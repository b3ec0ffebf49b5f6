package providers

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Vars are what templates may read: project.name, project.vars.KEY,
// role.name, and environment where the role pins it.
type Vars map[string]string

// A Template is a string with holes, such as
// "database/creds/{{project.name}}-ro". Each hole becomes one path segment's
// text or the whole is refused: what steers a path is the operator's word
// alone, never something a caller or a rename can choose.
type Template struct {
	text  string
	parts []part
}

type part struct{ literal, name string } // one of the two

const maxTemplateBytes = 1024

var (
	holeName = regexp.MustCompile(`^(project\.name|project\.vars\.[A-Za-z_][A-Za-z0-9_-]{0,62}|role\.name|environment)$`)
	// A segment neither steers a path (/ . .. ? # %) nor a shell, a template
	// or an identifier with separators of its own (: * { } and blanks).
	safeSegment = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@=+-]{0,127}$`)
)

// ParseTemplate reads a template. The error names what is wrong, never the
// text.
func ParseTemplate(text string) (Template, error) {
	if len(text) > maxTemplateBytes {
		return Template{}, fmt.Errorf("a template of %d bytes: at most %d", len(text), maxTemplateBytes)
	}
	t := Template{text: text}
	rest := text
	for {
		before, after, found := strings.Cut(rest, "{{")
		if strings.Contains(before, "}}") {
			return Template{}, fmt.Errorf("a template with }} before {{")
		}
		if before != "" {
			t.parts = append(t.parts, part{literal: before})
		}
		if !found {
			return t, nil
		}
		hole, tail, closed := strings.Cut(after, "}}")
		if !closed {
			return Template{}, fmt.Errorf("a template with {{ and no }}")
		}
		name := strings.TrimSpace(hole)
		if !holeName.MatchString(name) {
			return Template{}, fmt.Errorf("a template reads an unknown name; it may read project.name, project.vars.KEY, role.name and environment")
		}
		t.parts = append(t.parts, part{name: name})
		rest = tail
	}
}

// UnmarshalText is [ParseTemplate].
func (t *Template) UnmarshalText(b []byte) error {
	parsed, err := ParseTemplate(string(b))
	if err != nil {
		return err
	}
	*t = parsed
	return nil
}

// String is the text as written.
func (t Template) String() string { return t.text }

// Names are the variables that the template reads, each once.
func (t Template) Names() []string {
	var names []string
	for _, p := range t.parts {
		if p.name != "" && !slices.Contains(names, p.name) {
			names = append(names, p.name)
		}
	}
	return names
}

// Expand fills the holes. It refuses a variable that isn't there and a value
// that isn't one safe path segment; "." and ".." aren't.
func (t Template) Expand(vars Vars) (string, error) {
	var b strings.Builder
	for _, p := range t.parts {
		if p.name == "" {
			b.WriteString(p.literal)
			continue
		}
		value, ok := vars[p.name]
		if !ok {
			return "", fmt.Errorf("template variable %s has no value here", p.name)
		}
		if !safeSegment.MatchString(value) || strings.Contains(value, "..") {
			return "", fmt.Errorf("the value of template variable %s isn't one safe path segment", p.name)
		}
		b.WriteString(value)
	}
	return b.String(), nil
}
