package shape

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/ref"
	"github.com/runenv/action/secret"
)

// render writes all fields as one text, sorted by name, or those that a ready
// shape has.
func (v Var) render(fields map[string]secret.Value) ([]byte, []part, error) {
	switch v.As {
	case asProfile:
		return v.profile(fields)
	case asDocker:
		return v.dockerConfig(fields)
	case asKubeconfig:
		return v.kubeconfig(fields)
	}
	names := slices.Sorted(maps.Keys(fields))
	var parts []part
	for _, name := range names {
		if !utf8.Valid(fields[name].Reveal()) {
			return nil, nil, fmt.Errorf("field %s isn't text in UTF-8", name)
		}
		parts = append(parts, part{name, bytes.Clone(fields[name].Reveal())})
	}
	if v.As == "json" {
		all := make(map[string]string, len(names))
		for _, name := range names {
			all[name] = string(fields[name].Reveal())
		}
		text, err := marshal(all)
		return text, parts, err
	}
	var b strings.Builder
	seen := map[string]bool{}
	for _, name := range names {
		value := string(fields[name].Reveal())
		switch v.As {
		case "dotenv":
			// It becomes the environment of whatever reads it.
			key := ref.CleanVariable("", name)
			if err := api.CheckVariable(key); err != nil {
				return nil, nil, fmt.Errorf("field %s: %w", key, err)
			}
			if seen[key] {
				return nil, nil, fmt.Errorf("two fields come to the one name %s", key)
			}
			seen[key] = true
			b.WriteString(key + "=" + dotenv(value) + "\n")
		case "properties":
			b.WriteString(property(name, true) + "=" + property(value, false) + "\n")
		default:
			return nil, nil, errors.New("no such form")
		}
	}
	return []byte(b.String()), parts, nil
}

// dotenv quotes a value so that the readers in use agree on it: in single
// quotes all is literal; in double quotes a few things need a backslash, on
// which readers differ, so that they come last.
func dotenv(value string) string {
	if !strings.Contains(value, "'") {
		return "'" + value + "'"
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(value) + `"`
}

// property escapes for java.util.Properties.
func property(s string, key bool) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\\', r == ' ' && (key || i == 0), key && strings.ContainsRune("=:#!", r):
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r > '~' && r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
