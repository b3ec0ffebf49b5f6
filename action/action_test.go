// Package action_test holds what README.md and docs/github.md say of the
// action's inputs and outputs against action.yml. The launcher's own tests are
// in test/: the e2e module runs them on each Node.
package action_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

var update = flag.Bool("update", false, "write the tables into README.md and docs/github.md")

type manifest struct {
	Name        string
	Description string
	Author      string
	Branding    map[string]string
	Inputs      yaml.MapSlice
	Outputs     yaml.MapSlice
	Runs        map[string]string
}

func read(t *testing.T) manifest {
	t.Helper()
	content, err := os.ReadFile("../action.yml")
	if err != nil {
		t.Fatal(err)
	}
	var m manifest
	if err := yaml.UnmarshalWithOptions(content, &m, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	return m
}

// table is the Markdown of the inputs or the outputs.
func table(t *testing.T, entries yaml.MapSlice, defaults bool) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(map[bool]string{true: "| input | default | what it is |\n|---|---|---|\n", false: "| output | what it is |\n|---|---|\n"}[defaults])
	for _, e := range entries {
		keys, ok := e.Value.(map[string]any)
		if !ok {
			t.Fatalf("action.yml: %v isn't a mapping", e.Key)
		}
		description, ok := keys["description"].(string)
		if !ok || description == "" {
			t.Errorf("action.yml: %v has no description", e.Key)
		}
		preset, ok := keys["default"].(string)
		if _, present := keys["default"]; present && !ok {
			t.Errorf("action.yml: the default of %v isn't a string; GitHub takes no other", e.Key)
		}
		if preset != "" {
			preset = "`" + preset + "`"
		}
		fmt.Fprintf(&b, "| `%v` |", e.Key)
		if defaults {
			fmt.Fprintf(&b, " %s |", preset)
		}
		fmt.Fprintf(&b, " %s |\n", strings.ReplaceAll(description, "|", `\|`))
	}
	return b.String()
}

func TestDocumentsHaveTheTables(t *testing.T) {
	t.Parallel()
	m := read(t)
	tables := map[string]string{"inputs": table(t, m.Inputs, true), "outputs": table(t, m.Outputs, false)}
	for path, names := range map[string][]string{"../README.md": {"inputs"}, "../docs/github.md": {"inputs", "outputs"}} {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text := string(content)
		for _, name := range names {
			text = withTable(t, path, text, name, tables[name])
		}
		if text == string(content) {
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// withTable returns the document's text with the table in its place; without
// -update it only complains if another one is there.
func withTable(t *testing.T, path, text, name, want string) string {
	t.Helper()
	begin := "<!-- " + name + ": from action.yml -->\n"
	before, rest, ok := strings.Cut(text, begin)
	got, after, closed := strings.Cut(rest, "<!-- end -->\n")
	switch {
	case !ok || !closed:
		t.Fatalf("%s has no lines %q and <!-- end -->", path, strings.TrimSpace(begin))
	case got != want && !*update:
		t.Errorf("%s has other %s than action.yml: go test ./action -update", path, name)
		return text
	}
	return before + begin + want + "<!-- end -->\n" + after
}

func TestRunsWhatIsThere(t *testing.T) {
	t.Parallel()
	runs := read(t).Runs
	for key, want := range map[string]string{"using": "node24", "main": "action/main.mjs", "post": "action/post.mjs", "post-if": "always()"} {
		if runs[key] != want {
			t.Errorf("runs.%s = %q, want %q", key, runs[key], want)
		}
	}
	for _, key := range []string{"main", "post"} {
		if _, err := os.Stat(filepath.Join("..", runs[key])); err != nil {
			t.Error(err)
		}
	}
	// What a job downloads needs no npm.
	for _, pattern := range []string{"package.json", "node_modules", "../package.json"} {
		if _, err := os.Stat(pattern); err == nil {
			t.Errorf("action/%s exists", pattern)
		}
	}
}
