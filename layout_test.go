// Package runenv_test holds the rules of the repository that no compiler
// checks: which package may import which, what the client may link, and what
// no file may contain.
package runenv_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// module is this module's path.
const module = "github.com/runenv/action"

// maxLines bounds a Go file. A longer one holds two things.
const maxLines = 700

// maxMainLines bounds a main.go, whose work lies in internal/cli or
// internal/brokercli, where tests reach it.
const maxMainLines = 20

// arrows has a row for each package: what it may import besides the standard
// library and golang.org/x/sys. A path without a dot in its first part is a
// package of this module, any other a module of somebody else's.
//
// The order is the order of the layers: what stands further down may only
// import what stands further up. A new package needs a row; a new arrow needs
// a reason that a reviewer believes.
var arrows = []arrow{
	{"secret", nil},
	{"ref", nil},
	{"internal/backoff", nil},
	{"internal/roots", nil},
	{"broker/api", []string{"secret"}},
	{"broker/seal", nil},
	{"broker/store", nil},
	{"broker/store/storetest", []string{"broker/store", "github.com/google/go-cmp"}},
	{"broker/store/sqlite", []string{"broker/store", "github.com/pressly/goose/v3", "modernc.org/sqlite"}},
	{"broker/audit", []string{"broker/seal", "broker/store", "golang.org/x/mod"}},
	{"broker/issuer", []string{"broker/seal", "broker/store", "github.com/go-jose/go-jose/v4"}},
	{"broker/identity", []string{"secret", "github.com/coreos/go-oidc/v3", "github.com/go-jose/go-jose/v4", "golang.org/x/time"}},
	{"broker/identity/identitytest", []string{"broker/identity", "github.com/go-jose/go-jose/v4"}},
	{"broker/policy", []string{"broker/identity", "ref"}},
	{"broker/shape", []string{"broker/api", "ref", "secret"}},
	{"providers", []string{"ref", "secret"}},
	{"providers/providertest", []string{"providers", "ref", "secret"}},
	{"providers/endpoint", nil},
	{"providers/static", []string{"providers", "secret", "filippo.io/age"}},
	{"providers/vault/vaulttest", []string{"providers", "providers/providertest", "secret"}},
	{"providers/vault", []string{"internal/backoff", "providers", "providers/endpoint", "ref", "secret", "github.com/hashicorp/vault/api"}},
	{"providers/aws/awstest", []string{"providers", "providers/providertest", "secret", "github.com/aws/aws-sdk-go-v2", "github.com/aws/smithy-go", "github.com/go-jose/go-jose/v4"}},
	{"providers/aws", []string{"internal/backoff", "providers", "providers/endpoint", "ref", "secret", "github.com/aws/aws-sdk-go-v2", "github.com/aws/smithy-go"}},
	{"providers/gcp/gcptest", []string{"providers", "providers/providertest", "secret", "cloud.google.com/go", "google.golang.org", "github.com/go-jose/go-jose/v4"}},
	{"providers/gcp", []string{"internal/backoff", "providers", "providers/endpoint", "ref", "secret", "cloud.google.com/go", "google.golang.org", "github.com/googleapis/gax-go/v2", "golang.org/x/oauth2"}},
	{"broker/lease", []string{"broker/audit", "broker/seal", "broker/shape", "broker/store", "internal/backoff", "providers", "secret"}},
	{"broker/config", []string{"broker/api", "broker/identity", "broker/policy", "broker/shape", "secret", "github.com/goccy/go-yaml"}},
	{"broker", []string{
		"broker/api", "broker/audit", "broker/identity", "broker/issuer", "broker/lease", "broker/policy",
		"broker/seal", "broker/shape", "broker/store", "providers", "ref", "secret",
		"github.com/go-jose/go-jose/v4", "github.com/prometheus/client_golang", "golang.org/x/time",
	}},
	{"internal/ci", []string{"internal/backoff", "internal/roots", "secret"}},
	{"internal/needle", []string{"secret"}},
	{"internal/redact", []string{"internal/needle", "secret"}},
	{"internal/leakscan", []string{"internal/needle", "secret"}},
	{"internal/gha", []string{"internal/redact", "secret", "github.com/sethvargo/go-githubactions"}},
	{"internal/proc", []string{"github.com/creack/pty"}},
	{"internal/proc/proctest", nil},
	{"internal/ramdisk", nil},
	{"internal/filesecret", []string{"internal/ramdisk"}},
	{"internal/isolate", []string{"internal/filesecret"}},
	{"internal/inject", []string{"internal/proc", "internal/redact", "secret"}},
	{"internal/guardian", []string{"internal/backoff", "internal/filesecret", "internal/proc", "secret"}},
	{"internal/devissuer", []string{"github.com/go-jose/go-jose/v4"}},
	{"client", []string{"broker/api", "internal/backoff", "internal/ci", "internal/roots", "ref", "secret", "github.com/go-jose/go-jose/v4"}},
	{"client/clienttest", []string{"broker/api", "internal/ci", "ref", "secret", "github.com/go-jose/go-jose/v4"}},
	{"internal/endpoint", []string{"broker/api", "internal/backoff", "secret"}},
	{"internal/cli", []string{
		"broker/api", "client", "ref", "secret",
		"internal/backoff", "internal/ci", "internal/endpoint", "internal/filesecret", "internal/gha", "internal/guardian", "internal/inject", "internal/isolate",
		"internal/leakscan", "internal/needle", "internal/proc", "internal/redact", "internal/roots",
		"github.com/goccy/go-yaml", "github.com/spf13/cobra", "github.com/spf13/pflag",
	}},
	{"internal/brokercli", []string{
		"broker", "broker/api", "broker/audit", "broker/config", "broker/identity", "broker/issuer", "broker/lease", "broker/policy",
		"broker/seal", "broker/shape", "broker/store", "broker/store/sqlite", "providers", "providers/aws", "providers/gcp", "providers/static", "providers/vault",
		"client", "ref", "secret", "internal/ci", "internal/cli", "internal/devissuer", "internal/proc",
		"github.com/prometheus/client_golang", "github.com/spf13/cobra",
	}},
	{"cmd/runenv", []string{"internal/cli"}},
	{"cmd/runenv-broker", []string{"internal/brokercli", "internal/cli"}},
}

type arrow struct {
	from string
	to   []string
}

// clientMustNotLink lists what no job should have to download with runenv, at
// any depth: databases, cloud SDKs, policy engines, the server's own parts.
var clientMustNotLink = []string{
	"cloud.google.com/", "github.com/aws/", "github.com/hashicorp/", "github.com/google/cel-go", "cel.dev/",
	"github.com/pressly/", "modernc.org/", "github.com/jackc/", "database/sql",
	"github.com/prometheus/", "google.golang.org/grpc",
	module + "/providers", module + "/broker/store", module + "/broker/config", module + "/internal/brokercli",
}

// listed is what this test reads of `go list -json`.
type listed struct {
	ImportPath string
	Name       string
	Doc        string
	Standard   bool
	GoFiles    []string
	Imports    []string
	Deps       []string
	Module     *struct{ Path string }
}

func goList(t *testing.T, env []string, args ...string) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Name,Doc,Standard,GoFiles,Imports,Deps,Module"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", args, err, stderr.Bytes())
	}
	var packages []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("go list %v: %v", args, err)
		}
		packages = append(packages, p)
	}
}

func TestImportsFollowTheTable(t *testing.T) {
	t.Parallel()
	rows := make(map[string][]string, len(arrows))
	for i, row := range arrows {
		if _, ok := rows[row.from]; ok {
			t.Errorf("arrows has two rows for %s", row.from)
		}
		rows[row.from] = row.to
		for _, to := range row.to {
			if own(to) && !slices.ContainsFunc(arrows[:i], func(a arrow) bool { return a.from == to }) {
				t.Errorf("arrows: %s imports %s, which has no row above it: no arrow points up", row.from, to)
			}
		}
	}
	seen := make(map[string]bool)
	for _, goos := range []string{"linux", "darwin", "windows"} {
		for _, p := range goList(t, []string{"GOOS=" + goos, "CGO_ENABLED=0"}, "-e", "./...") {
			if len(p.GoFiles) == 0 {
				continue // this test's own package
			}
			from := strings.TrimPrefix(p.ImportPath, module+"/")
			may, ok := rows[from]
			if !ok {
				if !seen[from] {
					t.Errorf("package %s has no row in arrows (layout_test.go): give it one, in its layer", from)
				}
				seen[from] = true
				continue
			}
			seen[from] = true
			for _, path := range p.Imports {
				if !strings.Contains(strings.Split(path, "/")[0], ".") || strings.HasPrefix(path, "golang.org/x/sys/") {
					continue // the standard library has no dot in its first part
				}
				to := strings.TrimPrefix(path, module+"/")
				allowed := slices.ContainsFunc(may, func(m string) bool {
					return to == m || !own(m) && strings.HasPrefix(to, m+"/")
				})
				if !allowed && !seen[from+" "+to] {
					t.Errorf("%s imports %s (GOOS=%s), which its row in arrows (layout_test.go) doesn't allow", from, to, goos)
					seen[from+" "+to] = true
				}
			}
		}
	}
	for from := range rows {
		if !seen[from] {
			t.Errorf("arrows has a row for %s, which doesn't exist", from)
		}
	}
}

// own reports whether an entry of arrows is a package of this module.
func own(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

func TestClientLinksNoServer(t *testing.T) {
	t.Parallel()
	for _, goos := range []string{"linux", "darwin", "windows"} {
		for _, p := range goList(t, []string{"GOOS=" + goos, "CGO_ENABLED=0"}, "./cmd/runenv") {
			for _, bad := range clientMustNotLink {
				if i := slices.IndexFunc(p.Deps, func(dep string) bool { return strings.HasPrefix(dep, bad) }); i >= 0 {
					t.Errorf("cmd/runenv links %s (GOOS=%s): every job would download it", p.Deps[i], goos)
				}
			}
		}
	}
}

func TestPackagesAreDescribedAndNamedForWhatTheyHold(t *testing.T) {
	t.Parallel()
	for _, p := range goList(t, nil, "-e", "./...") {
		if len(p.GoFiles) == 0 {
			continue
		}
		if p.Doc == "" {
			t.Errorf("package %s has no doc comment", p.ImportPath)
		}
		switch p.Name {
		case "util", "utils", "common", "types", "helpers", "misc", "shared", "base":
			t.Errorf("package %s is named for its kind, not for what it holds", p.ImportPath)
		}
	}
}

// files gives every file of the repository that is not built, cached or git's own.
func files(t *testing.T) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch path {
			case ".git", "bin", "dist", ".cache":
				return fs.SkipDir
			}
			if d.Name() == "node_modules" {
				return fs.SkipDir
			}
			return nil
		}
		if d.Type().IsRegular() {
			paths = append(paths, filepath.ToSlash(path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFilesStaySmall(t *testing.T) {
	t.Parallel()
	for _, path := range files(t) {
		if !strings.HasSuffix(path, ".go") {
			continue
		}
		lines := bytes.Count(read(t, path), []byte("\n"))
		if lines > maxLines {
			t.Errorf("%s has %d lines, more than %d: it holds two things", path, lines, maxLines)
		}
		if strings.HasPrefix(path, "cmd/") && strings.HasSuffix(path, "/main.go") && lines > maxMainLines {
			t.Errorf("%s has %d lines, more than %d: a main only owns the process", path, lines, maxMainLines)
		}
	}
}

func TestNothingIsLeftForLater(t *testing.T) {
	t.Parallel()
	// In two parts, so that this file passes its own test.
	later := regexp.MustCompile(`\b(` + "TO" + `DO|` + "FIX" + `ME|` + "XX" + `X)\b`)
	skip := regexp.MustCompile(`(?m)^\s*(\[[^\]]*\]\s*)*skip\b`)
	for _, path := range files(t) {
		if strings.HasSuffix(path, "go.sum") || path == "LICENSE" {
			continue
		}
		text := read(t, path)
		if at := later.FindIndex(text); at != nil {
			t.Errorf("%s:%d: %s: do it, or file it", path, 1+bytes.Count(text[:at[0]], []byte("\n")), text[at[0]:at[1]])
		}
		if strings.HasSuffix(path, ".txtar") && skip.Match(text) {
			t.Errorf("%s: a script skips: a test that can't run is no test", path)
		}
	}
}

// forbiddenInTests is what no test may call: one that skips is no test, and one
// that sleeps guesses.
var forbiddenInTests = map[string]string{
	"t.Skip": "skips", "t.Skipf": "skips", "t.SkipNow": "skips",
	"tb.Skip": "skips", "tb.Skipf": "skips", "tb.SkipNow": "skips",
	"b.Skip": "skips", "b.Skipf": "skips", "b.SkipNow": "skips",
	"f.Skip": "skips", "f.Skipf": "skips", "f.SkipNow": "skips",
	"testing.Short": "skips",
	"time.Sleep":    "sleeps: wait for what you wait for",
}

func TestTestsNeitherSkipNorSleep(t *testing.T) {
	t.Parallel()
	for _, path := range files(t) {
		if !strings.HasSuffix(path, "_test.go") {
			continue
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok {
				call := x.Name + "." + sel.Sel.Name
				if why, ok := forbiddenInTests[call]; ok {
					t.Errorf("%s: %s: a test that %s", fset.Position(sel.Pos()), call, why)
				}
			}
			return true
		})
	}
}

func TestT33ActionsArePinnedByCommit(t *testing.T) {
	t.Parallel()
	uses := regexp.MustCompile(`(?m)^\s*(?:-\s+)?uses:\s*["']?([^\s"'#]+)`)
	pinned := regexp.MustCompile(`^[^@]+@[0-9a-f]{40}$`)
	found := 0
	for _, path := range files(t) {
		ext := filepath.Ext(path)
		if ext != ".yml" && ext != ".yaml" || strings.Contains(path, "/testdata/") {
			continue
		}
		for _, m := range uses.FindAllSubmatch(read(t, path), -1) {
			found++
			if ref := string(m[1]); !strings.HasPrefix(ref, "./") && !pinned.MatchString(ref) {
				t.Errorf("%s: uses: %s: pin it by the 40 hex digits of its commit", path, ref)
			}
		}
	}
	if found == 0 {
		t.Error("no uses: line found: this test looks in the wrong place")
	}
}

func TestRootModuleHoldsNoTools(t *testing.T) {
	t.Parallel()
	if bytes.Contains(read(t, "go.mod"), []byte("\ntool ")) {
		t.Error("go.mod has a tool line: tools are of the module in tools/, so that nobody who imports this one pulls them")
	}
}
