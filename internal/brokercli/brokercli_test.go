package brokercli

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/runenv/action/broker/config"
)

func TestReport(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"an error", errors.New("doing it: it failed"), "runenv-broker: error: doing it: it failed\n"},
		{"with a hint", fmt.Errorf("outside: %w", hinted{errors.New("inside"), "do that"}), "runenv-broker: error: outside: inside\nrunenv-broker: hint: do that\n"},
		{"with an empty hint", hinted{errors.New("inside"), ""}, "runenv-broker: error: inside\n"},
		{
			"problems, one a line", fmt.Errorf("reading: %w", config.Problems{
				{Pos: config.Pos{File: "a.yaml", Line: 1, Column: 2}, Path: "url", Message: "missing", Hint: "write it"},
				{Path: "issuers", Message: "none"},
			}),
			"runenv-broker: error: a.yaml:1:2: url: missing\nrunenv-broker: hint: write it\nrunenv-broker: error: issuers: none\n",
		},
		{"a text that would begin a line", errors.New("no file \"a\n::error::x\x1b[2J\u009b\""), "runenv-broker: error: no file \"a ::error::x [2J \"\n"},
		{"several errors", errors.Join(errors.New("one"), errors.New("two")), "runenv-broker: error: one two\n"},
	}
	for _, tt := range tests {
		if got := told(tt.err); got != tt.want {
			t.Errorf("%s: report prints\n%s\nwant\n%s", tt.name, got, tt.want)
		}
	}
}

// A mistake in the call is status 2 with a hint; nothing goes to stdout.
func TestUsageErrors(t *testing.T) {
	t.Parallel()
	tests := []struct{ args, wantError, wantHint string }{
		{"serv", `there is no command "serv"`, "did you mean `runenv-broker serve`?"},
		{"nothing-like-it", `there is no command "nothing-like-it"`, "see `runenv-broker --help`"},
		{"policy chekc", `there is no command "chekc"`, "did you mean `runenv-broker policy check`?"},
		{"audit xyzzy", `there is no command "xyzzy"`, "see `runenv-broker audit --help`"},
		{"--nope", "unknown flag: --nope", "see `runenv-broker --help`"},
		{"serve --nope", "unknown flag: --nope", "see `runenv-broker serve --help`"},
		{"serve", "--config is missing", "runenv-broker serve --config "},
		{"serve --config a.yaml b", `it takes no arguments, but got "b"`, "see `runenv-broker serve --help`"},
		{"serve --config a.yaml --log-level loud", `--log-level is "loud"`, "see `runenv-broker serve --help`"},
		{"serve --config a.yaml --log-format xml", `--log-format is "xml"`, "see `runenv-broker serve --help`"},
		{"dev true", `"true" stands before --`, "runenv-broker dev -- COMMAND"},
		{"dev true -- true", `"true" stands before --`, "runenv-broker dev -- COMMAND"},
		{"dev --", "no command stands behind --", "runenv-broker dev -- COMMAND"},
		{"run --role a -- true", "--config is missing", "runenv-broker run --config "},
		{"run --config a.yaml", "no command to run was given", "runenv-broker run --config FILE"},
		{"run --config a.yaml --ca-file b -- true", "unknown flag: --ca-file", "see `runenv-broker run --help`"},
		{"keys exprot", `there is no command "exprot"`, "did you mean `runenv-broker keys export`?"},
		{"keys export --jwks", "--config is missing", "runenv-broker keys export --config "},
		{"keys export --config a", "one of --out, --discovery and --jwks is wanted", "see `runenv-broker keys export --help`"},
		{"providers check", "--config is missing", "runenv-broker providers check --config "},
		{"providers list a", `it takes no arguments, but got "a"`, "see `runenv-broker providers list --help`"},
		{"leases list", "--config is missing", "runenv-broker leases list --config "},
		{"leases contain --config a", "--session is missing", "s-…"},
		{"policy check", "one file is wanted, and 0 are given", "runenv-broker policy check /etc"},
		{"policy test a b", "one file is wanted, and 2 are given", "runenv-broker policy test /etc"},
		{"audit show --config a.yaml", "one id is wanted, and 0 are given", "r-…"},
		{"audit show r-a", "--config is missing", "runenv-broker audit show --config "},
		{"audit export", "--config is missing", "runenv-broker audit export --config "},
		{"audit verify", "one of --config and --file is wanted", "see `runenv-broker audit verify --help`"},
		{"audit verify --config a --file b", "one of --config and --file is wanted", "see `runenv-broker audit verify --help`"},
		{"audit verify --file b", "--file wants --key", "audit_key"},
		{"version please", `it takes no arguments, but got "please"`, "see `runenv-broker version --help`"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			t.Parallel()
			env := testEnv()
			code := Run(strings.Fields(tt.args), env)
			lines := strings.Split(env.Stderr.(*bytes.Buffer).String(), "\n")
			if code != 2 || len(lines) != 3 || !strings.HasPrefix(lines[0], "runenv-broker: error: "+tt.wantError) ||
				!strings.HasPrefix(lines[1], "runenv-broker: hint: ") || !strings.Contains(lines[1], tt.wantHint) {
				t.Errorf("status %d and\n%s\nwant 2, %q and the hint %q", code, strings.Join(lines, "\n"), tt.wantError, tt.wantHint)
			}
			if out := env.Stdout.(*bytes.Buffer).String(); out != "" {
				t.Errorf("stdout got %q", out)
			}
		})
	}
}

func TestHelpIsNoError(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"", "--help", "help", "policy", "audit", "providers", "leases", "keys", "run --help", "serve --help", "audit verify --help"} {
		env := testEnv()
		code := Run(strings.Fields(args), env)
		if out := env.Stdout.(*bytes.Buffer).String(); code != 0 || !strings.Contains(out, "Usage:") || env.Stderr.(*bytes.Buffer).Len() > 0 {
			t.Errorf("runenv-broker %s = %d, %q", args, code, out)
		}
	}
}
