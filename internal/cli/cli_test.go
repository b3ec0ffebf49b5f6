package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/goccy/go-yaml"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
)

// P11: no credential is called revoked that only expires.
func TestFateIsHonest(t *testing.T) {
	t.Parallel()
	expires := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		state string
		at    time.Time
		want  string
	}{
		{"revoked", expires, "is revoked"},
		{"expired", expires, "has expired"},
		{"expiring", expires, "can't be revoked: it expires at 2030-01-02T03:04:05Z"},
		{"expiring", time.Time{}, "can't be revoked: it expires by itself"},
		{"disclosed", time.Time{}, "was handed out: its value stays valid"},
		{"irrevocable", expires, "couldn't be revoked: it expires at 2030-01-02T03:04:05Z, unless the broker gets it revoked before"},
		{"revoking", expires, "is still being ended by the broker (revoking)"},
		{"active", expires, "is still being ended by the broker (active)"},
		{"void", expires, "was never issued"},
		{"from\nthe future", expires, "is still being ended by the broker (from the future)"},
	} {
		if got := fate(api.Lease{State: tt.state, ExpiresAt: tt.at}); got != tt.want {
			t.Errorf("fate(%q) = %q, want %q", tt.state, got, tt.want)
		}
	}
}

// What comes from outside can neither begin a line nor steer a terminal.
func TestPrinterKeepsLinesWhole(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := &printer{w: &out}
	p.failure(&client.Error{Refusal: &api.Error{
		Code: "invalid_target", RequestID: "r-1",
		Claims: map[string]any{"ref": "refs/heads/x\n::add-mask::y\x1b[2J", "groups": []any{"a", "b\r\nc"}, "long": strings.Repeat("é", 500)},
	}})
	p.warning("a\nb")
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, "runenv: ") || strings.ContainsFunc(strings.TrimSuffix(line, "\n"), unicode.IsControl) || len(line) > 300 {
			t.Errorf("line %q", line)
		}
	}
	for _, want := range []string{"runenv: error: invalid_target [request r-1]\n", "runenv: this job's own claims:\n", "runenv:   ref: refs/heads/x ::add-mask::y [2J\n", "runenv: hint: ", "runenv: warning: a b\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q isn't in:\n%s", want, &out)
		}
	}
}

func TestColoursOnlyOnATerminal(t *testing.T) {
	t.Parallel()
	file, err := os.Create(filepath.Join(t.TempDir(), "err"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	none := func(string) string { return "" }
	if newPrinter(file, none).colour {
		t.Error("a file gets colours")
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0) // a character device, as a terminal is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	for env, want := range map[string]bool{"": true, "NO_COLOR=1": false, "TERM=dumb": false, "TERM=xterm": true} {
		getenv := Env{Environ: []string{env}}.Getenv
		if got := newPrinter(null, getenv).colour; got != want {
			t.Errorf("with %q: colours %v, want %v", env, got, want)
		}
	}
	var out bytes.Buffer
	(&printer{w: &out, colour: true}).failure(errors.New("x"))
	if got, want := out.String(), "runenv: \x1b[31;1merror: \x1b[0mx\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestProjectName(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"acme/shop-api":                     "shop-api",
		"group/sub/Pay_API.v2":              "pay-api-v2",
		"acme/.github":                      "github",
		"acme/1password":                    "project-1password",
		"":                                  "project",
		"acme/---":                          "project",
		"acme/" + strings.Repeat("ab-", 40): strings.Repeat("ab-", 21)[:62],
	} {
		if got := projectName(path); got != want {
			t.Errorf("projectName(%q) = %q, want %q", path, got, want)
		}
	}
}

// Whatever a claim holds, the entry is YAML that says it and nothing else.
func FuzzEntryIsYAML(f *testing.F) {
	f.Add("acme/shop-api", "1001", "refs/heads/main", "production")
	f.Add("a/b: c", "1}", "yes", "\n# x: 'y'")
	f.Add("\u2028", "\x00", "0x1", `\"`)
	f.Fuzz(func(t *testing.T, name, id, ref, environment string) {
		raw, err := json.Marshal(map[string]any{"iss": environment, "sub": ref, "repository": name, "repository_id": id, "ref": ref, "environment": environment, "event_name": "push"})
		if err != nil {
			t.Fatal(err)
		}
		var claims map[string]any
		if err := json.Unmarshal(raw, &claims); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := writeEntry(&out, "fuzz", claims); err != nil {
			t.Fatal(err)
		}
		var got struct {
			Projects map[string]map[string]string `yaml:"projects"`
			Match    map[string]map[string]string `yaml:"match"`
		}
		if err := yaml.UnmarshalWithOptions(out.Bytes(), &got, yaml.Strict()); err != nil {
			t.Fatalf("%v in:\n%s", err, &out)
		}
		if len(got.Projects) != 1 || len(got.Match) != 1 {
			t.Fatalf("%+v of:\n%s", got, &out)
		}
		want := oneLine(claims["ref"].(string))
		if got.Match["github"]["ref"] != want || got.Match["github"]["event_name"] != "push" {
			t.Errorf("ref is %q, want %q, in:\n%s", got.Match["github"]["ref"], want, &out)
		}
	})
}

func TestSignalStatus(t *testing.T) {
	t.Parallel()
	for sig, want := range map[os.Signal]int{os.Interrupt: 130, syscall.SIGTERM: 143} {
		if got := (&signalError{sig}).Code(); got != want {
			t.Errorf("%v: status %d, want %d", sig, got, want)
		}
	}
	if !ends(os.Interrupt) || !ends(syscall.SIGHUP) || ends(syscall.SIGPIPE) {
		t.Error("ends is wrong about a signal")
	}
}

// Each signal goes to whoever has the say, and the second of a clean-up
// shortens it.
func TestSwitchboard(t *testing.T) {
	t.Parallel()
	var board switchboard
	signals, got := make(chan os.Signal), make(chan string, 1)
	go board.serve(signals)
	defer close(signals)
	signals <- os.Interrupt // nobody listens yet
	for _, who := range []string{"first", "second"} {
		board.connect(func(s os.Signal) { got <- fmt.Sprint(who, " ", s) })
		signals <- syscall.SIGTERM
		if s := <-got; s != who+" terminated" {
			t.Errorf("got %q", s)
		}
	}
}
