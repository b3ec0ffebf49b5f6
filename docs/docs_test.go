// Package docs_test runs what README.md and docs/ tell to run, and holds what
// they say against the programs.
//
// A block marked sh is run by a shell, and one marked console besides shows
// what its commands print, with … for anything (a line of it: any lines). They run beside a broker that
// serves deploy/broker.yaml, with a fake Vault and an issuer of GitHub's kind,
// all on loopback. What needs more than that says so in a comment before the
// block: <!-- not run: REASON -->; its flags are checked all the same. Blocks
// of the broker's file pass `policy check` and their own tests, or are refused
// as a comment before them says: <!-- refused: MESSAGE -->. One that is for
// `runenv-broker run` says <!-- direct -->.
package docs_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/runenv/action/internal/brokercli"
	"github.com/runenv/action/internal/cli"
	"github.com/runenv/action/internal/guardian"
)

func TestMain(m *testing.M) {
	if guardian.IsGuardian(os.Args) {
		os.Exit(guardian.Main(context.Background()))
	}
	// The race detector else holds up each program's exit by a second.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		panic(err)
	}
	testscript.Main(m, map[string]func(){
		"runenv":        func() { os.Exit(cli.Main(cli.OSEnv())) },
		"runenv-broker": func() { os.Exit(brokercli.Run(os.Args[1:], brokercli.OSEnv())) },
		// Stand-ins for what a machine that tests may not have.
		"curl":  func() { standIn(curl) },
		"vault": func() { standIn(vault) },
		"make":  func() { standIn(makefile) },
	})
}

func standIn(run func(args []string) error) {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "stand-in:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// curl knows -fsS URL.
func curl(args []string) error {
	if len(args) != 2 || args[0] != "-fsS" {
		return fmt.Errorf("curl %q", args)
	}
	ca, err := os.ReadFile(os.Getenv("SSL_CERT_FILE"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, args[1], http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return errors.New(resp.Status)
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

// vault knows the forms of command that the documents use; the e2e module
// gives them to a real Vault.
func vault(args []string) error {
	line := strings.Join(args, " ")
	switch {
	case regexp.MustCompile(`^auth enable [a-z]+$`).MatchString(line):
	case regexp.MustCompile(`^policy write [a-z-]+ -$`).MatchString(line):
		policy, err := io.ReadAll(os.Stdin)
		if err != nil || !bytes.Contains(policy, []byte("capabilities")) {
			return fmt.Errorf("vault %s: no policy on standard input (%w)", line, err)
		}
	case regexp.MustCompile(`^write [A-Za-z0-9/-]+ -$`).MatchString(line):
		return json.NewDecoder(os.Stdin).Decode(&map[string]any{})
	case regexp.MustCompile(`^write [A-Za-z0-9/-]+( [a-z_]+=[^ ]+)+$`).MatchString(line):
	default:
		return fmt.Errorf("vault %s", line)
	}
	return nil
}

// makefile runs the demo and checks that the other targets exist.
func makefile(args []string) error {
	root := os.Getenv("DOCS_ROOT")
	text, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		return err
	}
	for _, target := range args {
		if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(target) + `:`).Match(text) {
			return fmt.Errorf("the Makefile has no target %q", target)
		}
		if target == "demo" {
			demo := exec.CommandContext(context.Background(), "sh", filepath.Join(root, "scripts/demo.sh"))
			demo.Stdout, demo.Stderr = os.Stdout, os.Stderr
			if err := demo.Run(); err != nil {
				return fmt.Errorf("the demo: %w", err)
			}
		}
	}
	return nil
}

// A document is a file of Markdown with its fenced blocks.
type document struct {
	path   string // from the repository's root
	text   string
	blocks []block
}

type block struct {
	line int    // of the opening fence
	kind string // the word behind it
	text string
	note string // of the comment before it, whole
}

func (d *document) at(b block) string { return fmt.Sprintf("%s:%d", d.path, b.line) }

func documents(t *testing.T) []*document {
	t.Helper()
	paths := []string{"../README.md"}
	for _, pattern := range []string{"*.md", "*/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	if len(paths) < 12 {
		t.Fatalf("documents: %q, want more", paths)
	}
	var out []*document
	for _, path := range paths {
		out = append(out, read(t, path))
	}
	return out
}

func read(t *testing.T, path string) *document {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &document{path: filepath.ToSlash(filepath.Join("docs", path)), text: string(text)}
	note, indent, open := "", "", false
	for i, line := range strings.Split(d.text, "\n") {
		fence, isFence := strings.CutPrefix(strings.TrimLeft(line, " "), "```")
		switch {
		case isFence && !open:
			open, indent = true, line[:strings.IndexByte(line, '`')]
			d.blocks = append(d.blocks, block{line: i + 1, kind: fence, note: note})
		case isFence:
			open, note = false, ""
		case open:
			d.blocks[len(d.blocks)-1].text += strings.TrimPrefix(line, indent) + "\n"
		case strings.HasPrefix(line, "<!-- "):
			note = strings.TrimSuffix(strings.TrimPrefix(line, "<!-- "), " -->")
		case line != "":
			note = ""
		}
	}
	if open {
		t.Fatalf("%s: a block that isn't closed", d.path)
	}
	return d
}

func TestCommandsRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serve(t)
	for _, d := range documents(t) {
		t.Run(d.path, func(t *testing.T) {
			w.dir = t.TempDir()
			for _, b := range d.blocks {
				if strings.HasPrefix(b.note, "not run: ") {
					continue
				}
				switch b.kind {
				case "sh":
					if out, err := w.shell(t, b.text); err != nil {
						t.Errorf("%s: %v\n%s", d.at(b), err, out)
					}
				case "console":
					for _, c := range transcript(t, d, b) {
						out, err := w.shell(t, c.command)
						if err != nil || !c.prints.MatchString(out) {
							t.Errorf("%s: $ %s: %v, prints:\n%s\nwant:\n%s", d.at(b), c.command, err, out, c.shown)
						}
					}
				}
			}
			// What was done to the broker's files leaves them good.
			if out, err := w.shell(t, "runenv-broker policy check /etc/runenv/broker.yaml"); err != nil {
				t.Errorf("after %s: %v\n%s", d.path, err, out)
			}
		})
	}
}

// A call is a command of a console block and what is shown of its output.
type call struct {
	command, shown string
	prints         *regexp.Regexp
}

func transcript(t *testing.T, d *document, b block) []call {
	t.Helper()
	var calls []call
	for line := range strings.Lines(b.text) {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			calls = append(calls, call{command: command})
			continue
		}
		if len(calls) == 0 {
			t.Fatalf("%s: output before the first $", d.at(b))
		}
		calls[len(calls)-1].shown += line
	}
	for i := range calls {
		pattern := strings.ReplaceAll(regexp.QuoteMeta(calls[i].shown), "\n…\n", "\n(?:.*\n)*")
		pattern = strings.ReplaceAll(pattern, "…", ".*")
		calls[i].prints = regexp.MustCompile(`^` + pattern + `$`)
	}
	return calls
}

func TestBrokerFilesLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	checked := 0
	for _, d := range documents(t) {
		dir := t.TempDir()
		base := w.sections(t)
		for _, b := range d.blocks { // what others include, first
			if name, ok := strings.CutPrefix(firstLine(b), "# "); b.kind == "yaml" && ok && strings.Contains(name, "/") {
				path := filepath.Join(dir, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(w.local(b.text)), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
		}
		for i, b := range d.blocks {
			own := sections(b.text)
			if b.kind != "yaml" || !isBrokerFile(own) || strings.Contains(firstLine(b), "/") {
				continue
			}
			if own["url"] != "" && strings.HasPrefix(b.text, "# broker.yaml") {
				base = own
			}
			path := filepath.Join(dir, fmt.Sprintf("%d.yaml", i))
			if err := os.WriteFile(path, []byte(w.local(merge(base, own))), 0o600); err != nil {
				t.Fatal(err)
			}
			checked++
			flags := ""
			if b.note == "direct" {
				flags = "--direct "
			}
			out, err := w.shell(t, "runenv-broker policy check "+flags+path)
			refusal, refused := strings.CutPrefix(b.note, "refused: ")
			switch {
			case refused && (err == nil || !strings.Contains(out, refusal)):
				t.Errorf("%s: check = %v, %s\nwant it refused: %s", d.at(b), err, out, refusal)
			case !refused && err != nil:
				t.Errorf("%s: check = %v\n%s", d.at(b), err, out)
			case own["tests"] != "":
				if out, err := w.shell(t, "runenv-broker policy test "+flags+path); err != nil {
					t.Errorf("%s: test = %v\n%s", d.at(b), err, out)
				}
			}
		}
	}
	if checked < 10 {
		t.Errorf("%d blocks of the broker's file checked: this test looks in the wrong place", checked)
	}
}

func firstLine(b block) string {
	line, _, _ := strings.Cut(b.text, "\n")
	return line
}

// sections divides a YAML text at its top-level keys.
func sections(text string) map[string]string {
	out := map[string]string{}
	key := ""
	for line := range strings.Lines(text) {
		if m := regexp.MustCompile(`^([A-Za-z_.-]+):`).FindStringSubmatch(line); m != nil {
			key = m[1]
		} else if line[0] == '#' {
			continue
		}
		out[key] += line
	}
	return out
}

func isBrokerFile(own map[string]string) bool {
	for _, key := range []string{"issuers", "providers", "projects", "leases", "roles", "deny", "tests"} {
		if own[key] != "" {
			return true
		}
	}
	return false
}

// merge lays a fragment over a whole file, without those of its parts that the
// fragment leaves in the air.
func merge(base, own map[string]string) string {
	var b strings.Builder
	for _, key := range []string{"url", "issuer_url", "listen", "tls", "store", "seal", "include", "issuers", "providers", "projects", "leases", "roles", "deny", "tests"} {
		switch text, ok := own[key]; {
		case ok:
			b.WriteString(text)
		case own["url"] != "" || key == "tests" || key == "include" && (own["roles"] != "" || own["projects"] != ""):
		default:
			b.WriteString(base[key])
		}
	}
	return b.String()
}

// A job is what the documents' workflows have of one.
type job struct {
	Permissions map[string]string `yaml:"permissions"`
	IDTokens    map[string]struct {
		Aud string `yaml:"aud"`
	} `yaml:"id_tokens"`
	Variables map[string]string `yaml:"variables"`
	Env       map[string]string `yaml:"env"`
	Script    []string          `yaml:"script"`
	Steps     []struct {
		Uses string         `yaml:"uses"`
		With map[string]any `yaml:"with"`
		Run  string         `yaml:"run"`
	} `yaml:"steps"`
}

func TestWorkflowsGetAToken(t *testing.T) {
	t.Parallel()
	pinned := regexp.MustCompile(`^[a-z-]+/[a-z-]+@[0-9a-f]{40}$`)
	github, gitlab := 0, 0
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			if b.kind != "yaml" || isBrokerFile(sections(b.text)) {
				continue
			}
			var workflow struct {
				Permissions map[string]string `yaml:"permissions"`
				Jobs        map[string]job    `yaml:"jobs"`
			}
			if err := yaml.Unmarshal([]byte(b.text), &workflow); err != nil {
				t.Errorf("%s: %v", d.at(b), err)
				continue
			}
			for name, j := range workflow.Jobs {
				github++
				if workflow.Permissions["id-token"] != "write" && j.Permissions["id-token"] != "write" {
					t.Errorf("%s: job %s may not ask for a token", d.at(b), name)
				}
				for _, step := range j.Steps {
					if step.Uses != "" && !pinned.MatchString(step.Uses) {
						t.Errorf("%s: %s isn't pinned by a commit", d.at(b), step.Uses)
					}
				}
			}
			if len(workflow.Jobs) > 0 {
				continue
			}
			if strings.HasPrefix(b.text, "include:") {
				gitlab++
				includesComponent(t, d, b)
				continue
			}
			var jobs map[string]job
			if err := yaml.Unmarshal([]byte(b.text), &jobs); err != nil {
				continue // a file of another kind, like .runenv.yaml
			}
			for name, j := range jobs {
				if len(j.Script) == 0 {
					continue
				}
				gitlab++
				if token := j.IDTokens["RUNENV_ID_TOKEN"]; token.Aud == "" || token.Aud != j.Variables["RUNENV_BROKER"] {
					t.Errorf("%s: job %s has a token for %q, and the broker %q", d.at(b), name, token.Aud, j.Variables["RUNENV_BROKER"])
				}
			}
		}
	}
	if github == 0 || gitlab == 0 {
		t.Errorf("%d jobs of GitHub and %d of GitLab found, want both", github, gitlab)
	}
}

// What a workflow runs is what was read: every action and reusable workflow of
// others in the repository is named by a commit.
func TestT33EveryUsesIsPinned(t *testing.T) {
	t.Parallel()
	uses := regexp.MustCompile(`(?m)^[ -]*uses: *(\S+)`)
	pinned := regexp.MustCompile(`^\./|@[0-9a-f]{40}$`)
	seen := 0
	for _, pattern := range []string{"../.github/workflows/*.yml", "../examples/github/*.yml", "../action.yml", "../*.md", "*.md", "*/*.md"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(paths), err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range uses.FindAllStringSubmatch(string(text), -1) {
				seen++
				if !pinned.MatchString(m[1]) {
					t.Errorf("%s: %s isn't pinned by a commit", path, m[1])
				}
			}
		}
	}
	if seen < 20 {
		t.Errorf("%d uses found: this test looks in the wrong place", seen)
	}
}

// includesComponent holds a block against the component's own inputs.
func includesComponent(t *testing.T, d *document, b block) {
	t.Helper()
	text, err := os.ReadFile("../templates/runenv.yml")
	if err != nil {
		t.Fatal(err)
	}
	var component struct {
		Spec struct {
			Inputs map[string]struct {
				Description string
				Default     *string
				Regex       string
			}
		}
	}
	if err := yaml.NewDecoder(bytes.NewReader(text)).Decode(&component); err != nil {
		t.Fatal(err)
	}
	var pipeline struct {
		Include []struct {
			Component string
			Inputs    map[string]string
		}
	}
	if err := yaml.Unmarshal([]byte(b.text), &pipeline); err != nil {
		t.Fatalf("%s: %v", d.at(b), err)
	}
	for _, include := range pipeline.Include {
		if !regexp.MustCompile(`^\$CI_SERVER_FQDN/[a-z/]+/runenv@[0-9a-f]{40}$`).MatchString(include.Component) {
			t.Errorf("%s: %s isn't the component by a commit", d.at(b), include.Component)
		}
		for name, value := range include.Inputs {
			if input, ok := component.Spec.Inputs[name]; !ok || !regexp.MustCompile(input.Regex).MatchString(value) {
				t.Errorf("%s: the component has no input %s that is %q", d.at(b), name, value)
			}
		}
		for name, input := range component.Spec.Inputs {
			if _, ok := include.Inputs[name]; !ok && input.Default == nil {
				t.Errorf("%s: the component's input %s is missing", d.at(b), name)
			}
			if row := fmt.Sprintf("\n| `%s` | ", name); d.path == "docs/gitlab.md" && (!strings.Contains(d.text, row) || input.Description == "") {
				t.Errorf("%s: the input %s isn't described", d.path, name)
			}
		}
	}
}

func TestJSONIsJSON(t *testing.T) {
	t.Parallel()
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			switch b.kind {
			case "json":
				for dec := json.NewDecoder(strings.NewReader(b.text)); ; {
					var v any
					if err := dec.Decode(&v); errors.Is(err, io.EOF) {
						break
					} else if err != nil {
						t.Errorf("%s: %v", d.at(b), err)
						break
					}
				}
			case "", "sh", "console", "yaml", "hcl":
			default:
				t.Errorf("%s: a block of kind %q, which no test knows", d.at(b), b.kind)
			}
		}
	}
}

// TestFlagsExist: each flag that a document names is one of its command's.
func TestFlagsExist(t *testing.T) {
	t.Parallel()
	help := map[string]string{}
	for _, command := range []string{
		"runenv", "runenv run", "runenv scan", "runenv whoami", "runenv version",
		"runenv-broker", "runenv-broker serve", "runenv-broker dev", "runenv-broker run", "runenv-broker version",
		"runenv-broker policy", "runenv-broker policy check", "runenv-broker policy test",
		"runenv-broker providers", "runenv-broker providers list", "runenv-broker providers check",
		"runenv-broker leases", "runenv-broker leases list", "runenv-broker leases contain", "runenv-broker keys", "runenv-broker keys export",
		"runenv-broker audit", "runenv-broker audit show", "runenv-broker audit export", "runenv-broker audit verify",
	} {
		words := strings.Fields(command)
		out, err := exec.CommandContext(t.Context(), words[0], append(words[1:], "--help")...).Output()
		if err != nil {
			t.Fatalf("%s --help: %v", command, err)
		}
		help[command] = string(out)
	}
	all := strings.Join(slices.Collect(func(yield func(string) bool) {
		for _, text := range help {
			if !yield(text) {
				return
			}
		}
	}), "\n")
	has := func(text, flag string) bool {
		return regexp.MustCompile(`(^|[\s,])` + regexp.QuoteMeta(flag) + `([\s,=]|$)`).MatchString(text)
	}
	// Where a command stands: at the beginning, and behind `, $, --, exec or run:.
	invocation := regexp.MustCompile("(?m)(?:^ *|[`$-] ?|exec |run: )(runenv(?:-broker)?)((?: [^|;&`)\\n]+)?)")
	flag := regexp.MustCompile(`^(--?[a-z][a-z-]*)(=.*)?$`)
	seen := 0
	for _, d := range documents(t) {
		for _, m := range invocation.FindAllStringSubmatch(d.text, -1) {
			command, rest := m[1], strings.Fields(m[2])
			for len(rest) > 0 && help[command+" "+rest[0]] != "" {
				command, rest = command+" "+rest[0], rest[1:]
			}
			for _, word := range rest {
				if word == "--" {
					break
				}
				if f := flag.FindStringSubmatch(word); f != nil {
					seen++
					if !has(help[command], f[1]) {
						t.Errorf("%s: `%s` has no flag %s", d.path, command, f[1])
					}
				}
			}
		}
		for _, m := range regexp.MustCompile("`(--[a-z][a-z-]*)[ =`]").FindAllStringSubmatch(d.text, -1) {
			seen++
			if !has(all, m[1]) {
				t.Errorf("%s: no command has the flag %s", d.path, m[1])
			}
		}
	}
	if seen < 25 {
		t.Errorf("%d flags found: this test looks in the wrong place", seen)
	}
}

func TestLinksLead(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, d := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(d.text, -1) {
			if strings.HasPrefix(m[1], "https://") {
				continue
			}
			path, anchor, _ := strings.Cut(m[1], "#")
			target := filepath.Join("..", d.path)
			if path != "" {
				target = filepath.Join("..", filepath.Dir(d.path), path)
			}
			if info, err := os.Stat(target); err != nil {
				t.Errorf("%s: the link %s leads nowhere: %v", d.path, m[1], err)
				continue
			} else if anchor == "" || info.IsDir() {
				continue
			}
			text, err := os.ReadFile(target)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(anchors(string(text)), anchor) {
				t.Errorf("%s: the link %s names no heading there", d.path, m[1])
			}
		}
	}
}

// anchors are the headings' names as GitHub makes them.
func anchors(text string) []string {
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		out = append(out, strings.ReplaceAll(name, " ", "-"))
	}
	return out
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
