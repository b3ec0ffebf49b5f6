package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/runenv/action/broker/identity"
)

// sources are the programs' Go files below a folder of the repository, without
// tests and their helpers.
func sources(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, dir := range dirs {
		err := filepath.WalkDir(filepath.Join("..", dir), func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() && strings.HasSuffix(path, "test") {
				return filepath.SkipDir
			}
			if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				text, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				out[path] = string(text)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func parse(t *testing.T, path string) *ast.File {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// keys are the names in the yaml tags of a file's structs. Those that are
// refused by name are left out.
func keys(t *testing.T, path string) []string {
	t.Helper()
	var out []string
	ast.Inspect(parse(t, path), func(n ast.Node) bool {
		field, ok := n.(*ast.Field)
		if !ok || field.Tag == nil {
			return true
		}
		if kind, ok := field.Type.(*ast.Ident); ok && (kind.Name == "unsupported" || kind.Name == "mainOnly") {
			return true
		}
		tag, err := strconv.Unquote(field.Tag.Value)
		if err != nil {
			t.Fatal(err)
		}
		if name, _, _ := strings.Cut(reflect.StructTag(tag).Get("yaml"), ","); name != "" {
			out = append(out, name)
		}
		return true
	})
	return out
}

// constants are the strings of a file's constants whose names begin with prefix.
func constants(t *testing.T, path, prefix string) []string {
	t.Helper()
	var out []string
	for _, decl := range parse(t, path).Decls {
		group, ok := decl.(*ast.GenDecl)
		if !ok || group.Tok != token.CONST {
			continue
		}
		for _, spec := range group.Specs {
			value := spec.(*ast.ValueSpec)
			for i, name := range value.Names {
				if !strings.HasPrefix(name.Name, prefix) || i >= len(value.Values) {
					continue
				}
				if lit, ok := value.Values[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
					text, err := strconv.Unquote(lit.Value)
					if err != nil {
						t.Fatal(err)
					}
					out = append(out, text)
				}
			}
		}
	}
	return out
}

// states are those of a lease, which have a type of their own.
func states(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../broker/store/store.go")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^\t[A-Z][a-z]+ +State = "([a-z]+)"`).FindAllStringSubmatch(string(text), -1) {
		out = append(out, m[1])
	}
	return out
}

func metrics(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../broker/metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`runenv_[a-z_]+`).FindAllString(string(text), -1)
}

// events are those of the audit log, but for the logins', which the document
// sums up, and those that are named after a state.
func events(t *testing.T) []string {
	t.Helper()
	found := map[string]bool{}
	for _, text := range sources(t, "broker", "internal/brokercli") {
		for _, m := range regexp.MustCompile(`"((?:broker|policy|session|lease)\.[a-z_]+)"`).FindAllStringSubmatch(text, -1) {
			found[m[1]] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

func claims(t *testing.T, of func(*identity.Profile) []string) []string {
	t.Helper()
	var out []string
	for _, name := range identity.ProfileNames() {
		profile, _ := identity.ProfileByName(name)
		out = append(out, of(profile)...)
	}
	return out
}

// TestDocumentsAreComplete: what the programs have, the documents name.
func TestDocumentsAreComplete(t *testing.T) {
	t.Parallel()
	const errorsFile, api = "../broker/identity/errors.go", "../broker/api/api.go"
	for _, tt := range []struct {
		what, document string
		least          int
		names          []string
	}{
		{"a key of the broker's file", "broker-file.md", 40, keys(t, "../broker/config/raw.go")},
		{"a claim", "broker-file.md", 50, claims(t, func(p *identity.Profile) []string { return p.Known })},
		{"a denied event", "broker-file.md", 11, claims(t, func(p *identity.Profile) []string { return p.DeniedEvents })},
		{"a key of Vault's", "providers/vault.md", 21, slices.Concat(
			keys(t, "../providers/vault/vault.go"), keys(t, "../providers/vault/auth.go"), keys(t, "../providers/vault/issue.go"))},
		{"a key of AWS's", "providers/aws.md", 30, append(keys(t, "../providers/aws/aws.go"), keys(t, "../providers/aws/define.go")...)},
		{"a key of Google's", "providers/gcp.md", 15, append(keys(t, "../providers/gcp/gcp.go"), keys(t, "../providers/gcp/define.go")...)},
		{"a key of static's", "providers/static.md", 1, keys(t, "../providers/static/static.go")},
		{"an error code", "wire.md", 15, constants(t, api, "Code")},
		{"an error code", "troubleshooting.md", 15, constants(t, api, "Code")},
		{"a path", "wire.md", 10, constants(t, api, "Path")},
		{"a reason of the policy", "troubleshooting.md", 12, slices.DeleteFunc(constants(t, "../broker/policy/policy.go", "Reason"), func(s string) bool { return s == "allowed" })},
		{"a reason of the verifier", "troubleshooting.md", 25, constants(t, errorsFile, "Reason")},
		{"a state", "leases.md", 10, states(t)},
		{"a metric", "operate.md", 5, metrics(t)},
		{"an event", "operate.md", 12, events(t)},
	} {
		if len(tt.names) < tt.least {
			t.Errorf("%s: %d found, want at least %d: this test looks in the wrong place", tt.what, len(tt.names), tt.least)
		}
		text := read(t, tt.document).text
		for _, name := range tt.names {
			if !regexp.MustCompile(`(^|[^A-Za-z0-9_])` + regexp.QuoteMeta(name) + `([^A-Za-z0-9_]|$)`).MatchString(text) {
				t.Errorf("docs/%s doesn't name %s: %s", tt.document, tt.what, name)
			}
		}
	}
}

// others are texts of the operating system and of Go's library.
var others = []string{"connection refused", "no such host", "certificate signed by unknown authority", "another timeout", "tls: ", "listening: "}

// TestMessagesExist: what a document's table quotes, a program says.
func TestMessagesExist(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for _, text := range sources(t, "broker", "client", "internal", "providers", "secret") {
		all.WriteString(text)
	}
	program := strings.ReplaceAll(all.String(), `\"`, `"`)
	row := regexp.MustCompile("(?m)^\\| (`[^|]*?) \\|")
	quoted := regexp.MustCompile("`([^`]+)`")
	// What a message holds of the case at hand.
	hole := regexp.MustCompile(`"[^"]*"|…|\b6\b|status [0-9]+|auth/jwt/login: |\b[A-Z]+:LINE:COLUMN: |variable Y|RUNENV_ID_TOKEN |\.runenv\.yaml`)
	seen := 0
	for _, path := range []string{"troubleshooting.md", "providers/vault.md", "providers/aws.md", "providers/gcp.md"} {
		text := read(t, path).text
		for _, m := range row.FindAllStringSubmatch(text, -1) {
			for _, q := range quoted.FindAllStringSubmatch(m[1], -1) {
				if !strings.Contains(q[1], " ") || slices.Contains(others, strings.TrimSuffix(q[1], "…")) {
					continue
				}
				for _, piece := range hole.Split(q[1], -1) {
					piece = strings.Trim(piece, " :")
					if len(piece) < 5 || piece == "lease" || piece == "field" {
						continue
					}
					seen++
					if !strings.Contains(program, piece) {
						t.Errorf("docs/%s quotes %q, and no program says %q", path, q[1], piece)
					}
				}
			}
		}
	}
	if seen < 40 {
		t.Errorf("%d messages found: this test looks in the wrong place", seen)
	}
}
