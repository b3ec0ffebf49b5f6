package cli

import (
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

func TestInputsAreThoseOfTheManifest(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../../action.yml")
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct{ Inputs map[string]any }
	if err := yaml.Unmarshal(content, &manifest); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(manifest.Inputs)), slices.Sorted(slices.Values(actionInputs[:]))); diff != "" {
		t.Errorf("inputs (-action.yml +here):\n%s", diff)
	}
}

func TestShells(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bash"), nil, 0o755); err != nil { // a program to be found, never run
		t.Fatal(err)
	}
	withBash, without := Env{Environ: []string{"PATH=/nowhere" + string(os.PathListSeparator) + dir}}, Env{Environ: []string{"PATH=/nowhere"}}
	for _, tt := range []struct {
		env  Env
		name string
		want []string // nil: refused
	}{
		{withBash, "bash", []string{"bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "{0}"}},
		{without, "sh", []string{"sh", "-e", "{0}"}},
		{without, "pwsh", []string{"pwsh", "-command", ". '{0}'"}},
		{without, "python", []string{"python", "{0}"}},
		{without, `perl  -x "a b" {0}`, []string{"perl", "-x", "a b", "{0}"}},
		{without, `deno "" --file={0}`, []string{"deno", "", "--file={0}"}},
		{without, "zsh", nil},
		{without, "{0}", nil},
		{without, "zsh -e", nil},
		{without, `zsh "{0}`, nil},
	} {
		got, err := shellFor(tt.env, tt.name)
		if (err != nil) != (tt.want == nil) {
			t.Errorf("shellFor(%q) = %v, %v", tt.name, got.args, err)
			continue
		}
		if diff := cmp.Diff(tt.want, got.args); diff != "" {
			t.Errorf("shellFor(%q) (-want +got):\n%s", tt.name, diff)
		}
	}
	if runtime.GOOS == "windows" {
		return
	}
	for _, tt := range []struct {
		env  Env
		want string
	}{{withBash, "bash -e {0}"}, {without, "sh -e {0}"}} {
		got, err := shellFor(tt.env, "")
		if err != nil || strings.Join(got.args, " ") != tt.want {
			t.Errorf("shellFor(%v, nothing) = %v, %v, want %s", tt.env.Environ, got.args, err, tt.want)
		}
	}
}

func TestScriptLiesWhereTheRunnerSweeps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	command, remove, err := writeScript(Env{Environ: []string{"RUNNER_TEMP=" + dir}}, "pwsh", "a\r\nb")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "runenv-*.ps1"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v, want one script", files, err)
	}
	if want := []string{"pwsh", "-command", ". '" + filepath.ToSlash(files[0]) + "'"}; !cmp.Equal(command, want) {
		t.Errorf("command %q, want %q", command, want)
	}
	content, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.ReplaceAll(string(content), "\r\n", "\n"); !strings.HasPrefix(text, "$ErrorActionPreference = 'stop'\na\nb\nif ") {
		t.Errorf("script %q", text)
	}
	fi, err := os.Stat(files[0])
	if err != nil || runtime.GOOS != "windows" && fi.Mode().Perm() != 0o600 {
		t.Errorf("the script's mode is %v, %v, want 0600", fi.Mode(), err)
	}
	remove()
	if _, err := os.Stat(files[0]); !os.IsNotExist(err) {
		t.Errorf("after remove: %v", err)
	}
}

// T29: an action gets more than a step of the runner's own; the script doesn't.
func TestT29ScriptHasAnOrdinaryStepsEnvironment(t *testing.T) {
	t.Parallel()
	given := []string{
		"PATH=/bin", "INPUT_RUN=x", "INPUT_IF-NO-TOKEN=fail", "GITHUB_STATE=/s", "GITHUB_OUTPUT=/o",
		"ACTIONS_RUNTIME_TOKEN=t", "ACTIONS_RUNTIME_URL=u", "ACTIONS_CACHE_URL=u", "ACTIONS_RESULTS_URL=u", "ACTIONS_STEP_DEBUG=true",
	}
	if diff := cmp.Diff([]string{"PATH=/bin", "GITHUB_OUTPUT=/o", "ACTIONS_STEP_DEBUG=true"}, stepEnvironment(given, false)); diff != "" {
		t.Errorf("stepEnvironment (-want +got):\n%s", diff)
	}
	want := slices.Concat([]string{"PATH=/bin", "GITHUB_OUTPUT=/o"}, given[5:])
	if diff := cmp.Diff(want, stepEnvironment(given, true)); diff != "" {
		t.Errorf("stepEnvironment with the CI's tokens (-want +got):\n%s", diff)
	}
}

// The broker's words can neither leave their cell nor be links.
func TestCellShowsTextOnly(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"db-readonly":            "db-readonly",
		"a|b\n| c":               `a\|b \| c`,
		"[x](https://e.example)": `\[x\](https://e.example)`,
		"<img src=x>`*&\\":       "&lt;img src=x&gt;\\`\\*&amp;\\\\",
	} {
		if got := cell(in); got != want {
			t.Errorf("cell(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzSplitCommand(f *testing.F) {
	f.Add(`a "b c" {0}`)
	f.Fuzz(func(t *testing.T, s string) {
		args, err := splitCommand(s)
		if (err != nil) != (strings.Count(s, `"`)%2 == 1) {
			t.Errorf("splitCommand(%q) = %q, %v", s, args, err)
		}
	})
}
