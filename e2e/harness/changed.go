package harness

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A Change is something that one private build has and the module hasn't, so
// that a test sees what becomes of a run in which the product itself breaks.
type Change struct {
	File   string // by its path from the module's root
	Before string // a text that stands in it once; with "" the file is a new one
	Insert string // Go, which goes before that text
}

// Changed builds runenv with changes and returns its path. The module's files
// stay as they are: the compiler is given others in their stead. A change that
// has no place any more fails the test.
func Changed(tb testing.TB, changes ...Change) string {
	tb.Helper()
	root, err := moduleRoot()
	if err != nil {
		tb.Fatal(err)
	}
	dir := publicDir(tb, "runenv-changed-")
	var overlay struct{ Replace map[string]string }
	overlay.Replace = map[string]string{}
	for _, c := range changes {
		path, text := filepath.Join(root, c.File), c.Insert
		if c.Before != "" {
			whole, err := os.ReadFile(path)
			if err != nil {
				tb.Fatal(err)
			}
			if n := strings.Count(string(whole), c.Before); n != 1 {
				tb.Fatalf("%s has %d places that read %q, want one: the product changed, so the test has to", c.File, n, c.Before)
			}
			text = strings.Replace(string(whole), c.Before, c.Insert+c.Before, 1)
		} else if _, err := os.Stat(path); err == nil {
			tb.Fatalf("%s is there already: the test's file needs another name", c.File)
		}
		changed := filepath.Join(dir, filepath.Base(c.File))
		writeFile(tb, changed, []byte(text))
		overlay.Replace[path] = changed
	}
	list, err := json.Marshal(overlay)
	if err != nil {
		tb.Fatal(err)
	}
	writeFile(tb, filepath.Join(dir, "overlay.json"), list)
	program := filepath.Join(dir, "runenv")
	cmd := exec.CommandContext(tb.Context(), "go", "build", "-trimpath", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program, "./cmd/runenv")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("building a changed runenv: %v\n%s", err, out)
	}
	return program
}
