package config_test

import (
	"encoding/base64"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

var update = flag.Bool("update", false, "write the golden files anew")

// canary stands in every trap, as a value or beside one.
const canary = "canary7f3a"

var sealKey = base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))

func getenv(name string) (string, bool) {
	value, ok := map[string]string{"SEAL": sealKey, "SHORT": sealKey[4:], "EMPTY": "", "TOKEN": "t0ken"}[name]
	return value, ok
}

// readFile reads the test's own files, and the seal key where the example has it.
func readFile(path string) ([]byte, error) {
	switch path {
	case "/etc/runenv/seal.key":
		return []byte(sealKey + "\n"), nil
	case "/etc/runenv/locked":
		return nil, fs.ErrPermission
	}
	return os.ReadFile(path)
}

func options() config.Options {
	return config.Options{Getenv: getenv, ReadFile: readFile, ProviderTypes: []string{"static", "vault"}}
}

// What a provider decodes, like vault's.
type (
	providerKeys struct {
		Address string   `yaml:"address"`
		Mounts  string   `yaml:"mounts"`
		Retries int      `yaml:"retries"`
		Auth    authKeys `yaml:"auth"`
	}
	authKeys struct {
		Method string       `yaml:"method"`
		Token  secret.Value `yaml:"token"`
	}
	leaseKeys struct {
		Path   providers.Template `yaml:"path"`
		Params map[string]any     `yaml:"params,omitempty"`
	}
)

// load loads and decodes all there is, as the broker does, and returns the
// problems as one text.
func load(path string) string {
	file, err := config.Load(path, options())
	var texts []string
	if err != nil {
		texts = append(texts, err.Error())
	}
	if file != nil {
		for _, p := range file.Providers {
			if err := p.Decode(&providerKeys{}); err != nil {
				texts = append(texts, err.Error())
			}
		}
		for _, l := range file.Leases {
			if err := l.Decode(&leaseKeys{}); err != nil {
				texts = append(texts, err.Error())
			}
		}
	}
	return strings.Join(texts, "\n")
}

// TestTraps holds the message of each trap by a golden file beside it.
func TestTraps(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("testdata/traps/*.yaml")
	if err != nil || len(paths) < 90 {
		t.Fatalf("%d traps found (%v), want at least 90", len(paths), err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".yaml"), func(t *testing.T) {
			t.Parallel()
			got := filepath.ToSlash(load(path))
			if got == "" {
				t.Fatalf("%s loads, want a problem", path)
			}
			got += "\n"
			golden := strings.TrimSuffix(path, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s: problems differ (-want +got):\n%s", path, diff)
			}
		})
	}
}

// TestT18NoMessageHoldsAValue: each trap is tried with the canary that stands
// in it, and again with every value of the file made a canary in turn.
func TestT18NoMessageHoldsAValue(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("testdata/traps/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if got := load(path); strings.Contains(strings.ToLower(got), canary) {
			t.Errorf("%s: a message holds a value: %s", path, got)
		}
	}
	example, err := os.ReadFile("testdata/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i := range example {
		if !strings.ContainsRune(" [:{,\"", rune(example[i])) {
			continue
		}
		for _, planted := range []string{canary, canary + ": ", "\"" + canary, "{" + canary + "}"} {
			data := string(example[:i+1]) + planted + string(example[i+1:])
			_, err := config.Parse("testdata/example.yaml", []byte(data), options())
			if err == nil {
				continue
			}
			refused++
			if !name.MatchString(data) && strings.Contains(err.Error(), canary) {
				t.Errorf("planted %q at byte %d: a message holds it: %v", planted, i, err)
			}
		}
	}
	if refused < 100 {
		t.Errorf("%d files refused, want at least 100: nothing was tried", refused)
	}
}

// name finds the canary where a key stands: messages hold the names of entries
// and variables, to be of use.
var name = regexp.MustCompile(`[\w.-]*` + canary + `[\w.-]*"?\s*:(\s|$)`)

func TestProblems(t *testing.T) {
	t.Parallel()
	_, err := config.Load("testdata/traps/all-at-once.yaml", options())
	problems, ok := errors.AsType[config.Problems](err)
	if !ok || len(problems) < 5 {
		t.Fatalf("Load() = %v, want all problems at once", err)
	}
	for i, p := range problems {
		if p.Pos.File == "" || p.Pos.Line == 0 || p.Message == "" {
			t.Errorf("problem %d is %+v, want a place and a message", i, p)
		}
		if i > 0 && problems[i-1].Pos.Compare(p.Pos) > 0 {
			t.Errorf("problem %d stands before problem %d, want them sorted", i, i-1)
		}
	}
}
