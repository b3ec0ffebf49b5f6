package main

import (
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// runner: this script is a step of an action, with command files in its folder
// and a temp folder of its own.
func runnerCmd(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Setenv("GITHUB_ACTIONS", "true")
	for variable, name := range map[string]string{
		"GITHUB_OUTPUT": "output", "GITHUB_ENV": "env", "GITHUB_PATH": "path", "GITHUB_STATE": "state", "GITHUB_STEP_SUMMARY": "summary",
	} {
		ts.Check(os.WriteFile(ts.MkAbs(name), nil, 0o600))
		ts.Setenv(variable, ts.MkAbs(name))
	}
	ts.Check(os.MkdirAll(ts.MkAbs("temp"), 0o700))
	ts.Setenv("RUNNER_TEMP", ts.MkAbs("temp"))
}

// entries output|env|state: prints what a command file sets, sorted.
// entries state -to-env: sets STATE_… as the runner does for the post step.
func entriesCmd(ts *testscript.TestScript, _ bool, args []string) {
	set := map[string]string{}
	lines := strings.Split(ts.ReadFile(args[0]), "\n")
	for i := 0; i < len(lines); i++ {
		name, delimiter, ok := strings.Cut(lines[i], "<<")
		if !ok {
			continue
		}
		var value []string
		for i++; i < len(lines) && lines[i] != delimiter; i++ {
			value = append(value, lines[i])
		}
		set[name] = strings.Join(value, "\n")
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if len(args) > 1 {
			ts.Setenv("STATE_"+name, set[name])
			continue
		}
		_, err := ts.Stdout().Write([]byte(name + "=" + set[name] + "\n"))
		ts.Check(err)
	}
}
