package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func envWith(t *testing.T, file string, environ ...string) Env {
	t.Helper()
	dir := t.TempDir()
	if file != "" {
		if err := os.WriteFile(filepath.Join(dir, fileName), []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Env{Environ: environ, Dir: dir}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	const file = "broker: https://file.example.com\nrole: file\nleases:\n  - a\n  - \"b\"\n"
	for _, tt := range []struct {
		name    string
		flags   settings
		environ []string
		want    settings
	}{
		{"the file alone", settings{}, nil, settings{broker: "https://file.example.com", role: "file", leases: []string{"a", "b"}}},
		{"variables before it", settings{}, []string{"RUNENV_BROKER=https://var.example.com", "RUNENV_ROLE=var", "RUNENV_LEASES=x,y\tz\r\n,w ,", "RUNENV_CA_FILE=ca"},
			settings{broker: "https://var.example.com", role: "var", leases: []string{"x", "y", "z", "w"}, caFile: "ca"}},
		{"flags before both", settings{broker: "https://flag.example.com", role: "flag", leases: []string{"a,b"}, caFile: "flag.pem"},
			[]string{"RUNENV_BROKER=x", "RUNENV_ROLE=var", "RUNENV_LEASES=x", "RUNENV_CA_FILE=ca"},
			settings{broker: "https://flag.example.com", role: "flag", leases: []string{"a,b"}, caFile: "flag.pem"}},
		{"empty variables are none", settings{}, []string{"RUNENV_BROKER=", "RUNENV_ROLE=", "RUNENV_LEASES= ,"},
			settings{broker: "https://file.example.com", role: "file", leases: []string{"a", "b"}}},
		{"the last of doubled variables", settings{}, []string{"RUNENV_ROLE=one", "RUNENV_ROLE=two"},
			settings{broker: "https://file.example.com", role: "two", leases: []string{"a", "b"}}},
	} {
		got := tt.flags
		if err := got.resolve(envWith(t, file, tt.environ...)); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(settings{})); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

// T28: whatever says that this is CI, the file's broker doesn't count there,
// and its role and leases do: the broker decides about those.
func TestT28FileCantSetTheBrokerInCI(t *testing.T) {
	t.Parallel()
	const file = "broker: https://evil.example.com\nrole: demo\nleases: [db]\n"
	for _, marker := range []string{
		"CI=true", "CI=1", "CI=woodpecker", "GITHUB_ACTIONS=true", "GITLAB_CI=true", "JENKINS_URL=https://x", "BUILDKITE=true", "TF_BUILD=True",
		"ACTIONS_ID_TOKEN_REQUEST_URL=https://x", "RUNENV_ID_TOKEN=x", "RUNENV_ID_TOKEN_FILE=/x",
	} {
		var s settings
		if err := s.resolve(envWith(t, file, marker)); err != nil {
			t.Fatal(err)
		}
		if s.broker != "" || s.role != "demo" || len(s.leases) != 1 {
			t.Errorf("%s: settings %+v", marker, s)
		}
		if err := s.complete(); err == nil || !strings.Contains(err.Error(), "can't set the broker in CI") {
			t.Errorf("%s: %v", marker, err)
		}
		s = settings{}
		if err := s.resolve(envWith(t, file, marker, "RUNENV_BROKER=https://mine.example.com")); err != nil || s.broker != "https://mine.example.com" || s.complete() != nil {
			t.Errorf("%s: settings %+v, %v", marker, s, err)
		}
	}
	for _, marker := range []string{"CI=false", "CI=", "CI=0"} {
		var s settings
		if err := s.resolve(envWith(t, file, marker)); err != nil || s.broker != "https://evil.example.com" {
			t.Errorf("%s: settings %+v, %v", marker, s, err)
		}
	}
}

func TestParseFile(t *testing.T) {
	t.Parallel()
	for _, ok := range []string{"", "---\n", "# nothing\n", "role: demo", "role: 'demo'\n", "{role: demo, leases: [a, b]}", "leases: []\n"} {
		if _, err := parseFile([]byte(ok)); err != nil {
			t.Errorf("parseFile(%q): %v", ok, err)
		}
	}
	const value = "canary4711"
	for _, bad := range []string{
		"ca_file: " + value, "command: [" + value + "]", "Role: " + value, "role: {a: " + value + "}", "role: [" + value + "]",
		"role: 1" + "\n", "role: true", "role: null", "role:", "role: ~", "role: 1.10", "role: 0123", "role: ''",
		"role: !!str " + value, "role: &a " + value, "role: demo\nbroker: *a", "role: |\n  " + value, "<<: {role: " + value + "}",
		"role: a\nrole: " + value, "leases: " + value, "leases: {a: " + value + "}", "leases: [[" + value + "]]", "leases: [1]", "leases: ['']",
		"role: a\n---\nrole: " + value, "- " + value, value, "role: \"" + value, "\t" + value + ": [", "role: a\n" + value + "\n  x: y", "? role\n: " + value + "\n? [x]\n: y",
		"role: \x00" + value,
	} {
		s, err := parseFile([]byte(bad))
		if err == nil {
			t.Errorf("parseFile(%q) = %+v", bad, s)
		} else if strings.Contains(err.Error(), value) || !strings.HasPrefix(err.Error(), fileName+" line ") {
			t.Errorf("parseFile(%q): %v", bad, err)
		}
	}
}

func TestFileIsBounded(t *testing.T) {
	t.Parallel()
	var s settings
	if err := s.resolve(envWith(t, "role: demo\n"+strings.Repeat("#", maxFileBytes))); err == nil || !strings.Contains(err.Error(), "over 65536 bytes") {
		t.Errorf("a large file: %v", err)
	}
}

// Whatever the file holds, an error shows none of it, and what is taken from
// it are strings.
func FuzzParseFile(f *testing.F) {
	f.Add("role: demo\nleases: [a, b]\n")
	f.Add("broker: https://x\n---\nrole: &a b")
	f.Add("{a: [*x, !!y z]}")
	f.Fuzz(func(t *testing.T, content string) {
		if len(content) > maxFileBytes {
			return
		}
		s, err := parseFile([]byte(content))
		if err != nil && len(err.Error()) > 100 {
			t.Errorf("a long error: %v", err)
		}
		if err == nil {
			for _, name := range append(s.leases, s.broker+s.role+"x") {
				if name == "" {
					t.Errorf("an empty name in %+v", s)
				}
			}
		}
	})
}
