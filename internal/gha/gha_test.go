package gha_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/internal/gha"
	"github.com/runenv/action/secret"
)

// libraryDelimiter is what go-githubactions itself puts around every value.
const libraryDelimiter = "_GitHubActionsFileCommandDelimeter_"

// files has the command files in a folder of the test's own.
func files(tb testing.TB) func(string) string {
	dir := tb.TempDir()
	return func(name string) string {
		switch name {
		case "GITHUB_OUTPUT", "GITHUB_STATE", "GITHUB_ENV", "GITHUB_PATH", "GITHUB_STEP_SUMMARY":
			return filepath.Join(dir, name)
		case "INPUT_IF-NO-TOKEN":
			return " skip\n"
		case "STATE_session":
			return "s-1"
		}
		return ""
	}
}

// entries reads a command file as GitHub's runner does.
func entries(tb testing.TB, path string) map[string]string {
	tb.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	got := map[string]string{}
	lines := strings.Split(string(content), "\n")
	for i := 0; i < len(lines); i++ {
		if lines[i] == "" {
			continue
		}
		name, delimiter, ok := strings.Cut(lines[i], "<<")
		if equals := strings.Index(lines[i], "="); equals >= 0 && (!ok || equals < len(name)) {
			got[lines[i][:equals]] = lines[i][equals+1:]
			continue
		}
		if !ok {
			tb.Fatalf("line %q of a command file", lines[i])
		}
		var value []string
		for i++; i < len(lines) && lines[i] != delimiter; i++ {
			value = append(value, lines[i])
		}
		got[name] = strings.Join(value, "\n")
	}
	return got
}

// T26: no value ends itself and sets something else.
func TestT26ValueCannotLeaveItsPlace(t *testing.T) {
	t.Parallel()
	getenv := files(t)
	r := gha.New(gha.Config{Getenv: getenv, Commands: &bytes.Buffer{}})
	evil := "x\n" + libraryDelimiter + "\nNODE_OPTIONS=--require=/evil\n" + "NODE_OPTIONS<<" + libraryDelimiter + "\ny"
	for _, tt := range []struct {
		file string
		put  func(name, value string) error
	}{
		{"GITHUB_OUTPUT", r.SetOutput}, {"GITHUB_STATE", r.SaveState}, {"GITHUB_ENV", r.SetEnv},
	} {
		want := map[string]string{"first": evil, "second": evil, "third": ""}
		for name, value := range want {
			if err := tt.put(name, value); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(want, entries(t, getenv(tt.file))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.file, diff)
		}
	}
}

// T26: whoever has seen one write can't foresee the delimiter of the next.
func TestT26DelimitersAreFresh(t *testing.T) {
	t.Parallel()
	getenv := files(t)
	r := gha.New(gha.Config{Getenv: getenv, Commands: &bytes.Buffer{}})
	seen := map[string]bool{}
	const writes = 50
	for range writes {
		if err := r.SetEnv("A", "b"); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(getenv("GITHUB_ENV"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if delimiter, ok := strings.CutPrefix(line, "A<<"); ok {
			seen[delimiter] = true
			if len(delimiter) < 20 {
				t.Errorf("delimiter %q can be guessed", delimiter)
			}
		}
	}
	if len(seen) != writes {
		t.Errorf("%d delimiters in %d writes", len(seen), writes)
	}
}

func TestT26NamesAndFoldersAreChecked(t *testing.T) {
	t.Parallel()
	getenv := files(t)
	r := gha.New(gha.Config{Getenv: getenv, Commands: &bytes.Buffer{}})
	for _, name := range []string{"", "A=B", "A<<B", "A\nB", "A B", strings.Repeat("A", 129)} {
		if err := r.SetEnv(name, "x"); err == nil {
			t.Errorf("SetEnv(%q) = nil, want an error", name)
		}
	}
	if err := r.AddPath("/a\n/evil"); err == nil {
		t.Error("AddPath(two lines) = nil, want an error")
	}
	for _, name := range []string{"GITHUB_ENV", "GITHUB_PATH"} {
		if _, err := os.Stat(getenv(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was written", name)
		}
	}
}

// T27: each line of a value is masked besides the whole, so that no runner's
// way to look at logs finds one bare, and nothing in it is a command.
func TestT27MasksHoldWholeAndLines(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	r := gha.New(gha.Config{Getenv: files(t), Commands: &out})
	err := r.Mask(
		secret.FromString("plain-value"),
		secret.FromString("first line\r\n  ::stop-commands::x  \n{\n100%0Aworth\n"),
		secret.FromString("1234"),
		secret.FromString("::set-env name=A::b"),
		secret.FromString(""),
	)
	if err != nil {
		t.Fatal(err)
	}
	want := `::add-mask::plain-value
::add-mask::first line%0D%0A  ::stop-commands::x  %0A{%0A100%250Aworth%0A
::add-mask::first line
::add-mask::::stop-commands::x
::add-mask::100%250Aworth
::add-mask::::set-env name=A::b
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("masks (-want +got):\n%s", diff)
	}
}

// T27: act prints a mask that has a "::" in it as it is.
func TestT27NoMaskThatActWouldPrint(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	getenv := func(name string) string { return map[string]string{"ACT": "true"}[name] }
	r := gha.New(gha.Config{Getenv: getenv, Commands: &out})
	if err := r.Mask(secret.FromString("one::line of it\nanother line\n"), secret.FromString("plain:value")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("::add-mask::another line\n::add-mask::plain:value\n", out.String()); diff != "" {
		t.Errorf("masks (-want +got):\n%s", diff)
	}
}

func TestAnnotationsAreOneCommand(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	r := gha.New(gha.Config{Getenv: files(t), Commands: &out})
	for _, annotate := range []func(string) error{r.Error, r.Warning, r.Notice} {
		if err := annotate("50%\n::add-mask::a"); err != nil {
			t.Fatal(err)
		}
	}
	want := `::error title=RunEnv::50%25%0A::add-mask::a
::warning title=RunEnv::50%25%0A::add-mask::a
::notice title=RunEnv::50%25%0A::add-mask::a
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
}

func TestRunnerGivesAndTakes(t *testing.T) {
	t.Parallel()
	getenv := files(t)
	r := gha.New(gha.Config{Getenv: getenv, Commands: &bytes.Buffer{}})
	if got := r.Input("if-no-token"); got != "skip" {
		t.Errorf("Input = %q, want skip", got)
	}
	if got := r.State("session"); got != "s-1" {
		t.Errorf("State = %q, want s-1", got)
	}
	if err := errors.Join(r.AddPath("/opt/a"), r.AddPath("/opt/b"), r.AddSummary("# one"), r.AddSummary("two")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"GITHUB_PATH": "/opt/a\n/opt/b\n", "GITHUB_STEP_SUMMARY": "# one\ntwo\n"} {
		if got, err := os.ReadFile(getenv(name)); err != nil || string(got) != want {
			t.Errorf("%s = %q, %v, want %q", name, got, err, want)
		}
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestRunnerThatIsGoneIsAnError(t *testing.T) {
	t.Parallel()
	r := gha.New(gha.Config{Getenv: func(string) string { return "" }, Commands: brokenWriter{}})
	for what, err := range map[string]error{
		"a mask":        r.Mask(secret.FromString("plain-value")),
		"an annotation": r.Error("x"),
	} {
		if !errors.Is(err, os.ErrClosed) || strings.Contains(err.Error(), "plain-value") {
			t.Errorf("%s on a closed stream: %v, want os.ErrClosed and no value", what, err)
		}
	}
	if err := r.SetOutput("a", "b"); err == nil || !strings.Contains(err.Error(), "GITHUB_OUTPUT isn't set") {
		t.Errorf("SetOutput without a file = %v", err)
	}
	dir := t.TempDir()
	r = gha.New(gha.Config{Getenv: func(string) string { return dir }, Commands: brokenWriter{}})
	if err := r.SetEnv("a", "b"); err == nil {
		t.Error("SetEnv in a folder = nil, want an error")
	}
}

// T26, T27: whatever a value holds, files and masks keep it in its place.
func FuzzT26T27ValuesStayValues(f *testing.F) {
	f.Add("x\n" + libraryDelimiter + "\nA=b")
	f.Add("a\r\n::stop-commands::t\n%0A%25\x00")
	f.Fuzz(func(t *testing.T, value string) {
		getenv := files(t)
		var out bytes.Buffer
		r := gha.New(gha.Config{Getenv: getenv, Commands: &out})
		if err := errors.Join(r.SetOutput("a", value), r.SetOutput("b", "after"), r.Mask(secret.FromString(value))); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]string{"a": value, "b": "after"}, entries(t, getenv("GITHUB_OUTPUT"))); diff != "" {
			t.Errorf("outputs (-want +got):\n%s", diff)
		}
		for line := range strings.Lines(out.String()) {
			if !strings.HasPrefix(line, "::add-mask::") || strings.Contains(line, "\r") {
				t.Errorf("a line that isn't a mask: %q", line)
			}
		}
	})
}
