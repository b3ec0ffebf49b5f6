package inject

import (
	"bytes"
	"errors"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/secret"
)

func leased(name, value, lease string) Var {
	return Var{Name: name, Value: secret.FromString(value), Lease: lease}
}

func TestEnviron(t *testing.T) {
	t.Parallel()
	ci := []string{
		"ACTIONS_ID_TOKEN_REQUEST_URL=u", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=t",
		"RUNENV_ID_TOKEN=j", "RUNENV_ID_TOKEN_FILE=f", "RUNENV_ID_TOKEN_FOR_VAULT=v", "RUNENV_BROKER=b",
	}
	tests := []struct {
		name string
		base []string
		vars []Var
		opt  Options
		want []string
	}{
		{"nothing", nil, nil, Options{}, []string{}},
		{"inherited in order", []string{"B=2", "A=1"}, nil, Options{}, []string{"B=2", "A=1"}},
		{"leases follow", []string{"A=1"}, []Var{leased("DB", "x=y", "db")}, Options{}, []string{"A=1", "DB=x=y"}},
		{"a lease replaces", []string{"DB=old", "A=1", "DB=older"}, []Var{leased("DB", "new", "db")}, Options{}, []string{"A=1", "DB=new"}},
		{"the last double counts", []string{"A=1", "B=2", "A=3"}, nil, Options{}, []string{"B=2", "A=3"}},
		{"empty value", []string{"A="}, []Var{leased("E", "", "e")}, Options{}, []string{"A=", "E="}},
		{"no setting", []string{"junk", "", "=x", "A=1"}, nil, Options{}, []string{"A=1"}},
		{"a drive of Windows", []string{`=C:=C:\work`}, nil, Options{}, []string{`=C:=C:\work`}},
		{"the CI's token", append([]string{"A=1"}, ci...), nil, Options{}, []string{"A=1"}},
		{"the CI's token, asked for", ci, nil, Options{PassCIToken: true}, ci},
		{"a newer one of the kind goes", []string{"ACTIONS_ID_TOKEN_REQUEST_PROOF=1", "A=2"}, nil, Options{}, []string{"A=2"}},
		{"names near it stay", []string{"ACTIONS_ID_TOKEN=1", "ACTIONS_RUNTIME_TOKEN=2", "RUNENV_ROLE=3", "runenv_broker=4"}, nil, Options{},
			[]string{"ACTIONS_ID_TOKEN=1", "ACTIONS_RUNTIME_TOKEN=2", "RUNENV_ROLE=3", "runenv_broker=4"}},
		{"inherited names aren't judged", []string{"PATH=/bin", "LD_PRELOAD=x"}, nil, Options{}, []string{"PATH=/bin", "LD_PRELOAD=x"}},
		{"pristine", []string{"PATH=/bin", "LC_ALL=C", "AWS_PROFILE=x", "SECRET=y", "PATHS=z"}, []Var{leased("DB", "pw", "db")}, Options{Pristine: true},
			[]string{"PATH=/bin", "LC_ALL=C", "DB=pw"}},
		{"pristine and more", []string{"PATH=/bin", "AWS_PROFILE=x", "AWS_REGION=r", "B=1"}, nil, Options{Pristine: true, Only: []string{"AWS_*"}, Deny: []string{"AWS_PROFILE"}},
			[]string{"PATH=/bin", "AWS_REGION=r"}},
		{"only", []string{"PATH=/bin", "A_B=1", "AB=2", "B=3"}, []Var{leased("DB", "pw", "db")}, Options{Only: []string{"A_*", "B"}}, []string{"A_B=1", "B=3", "DB=pw"}},
		{"deny", []string{"PATH=/bin", "NPM_TOKEN=1", "TOKEN=2"}, nil, Options{Deny: []string{"*_TOKEN"}}, []string{"PATH=/bin", "TOKEN=2"}},
		{"deny isn't for leases", []string{"DB=old"}, []Var{leased("DB", "pw", "db")}, Options{Deny: []string{"DB"}}, []string{"DB=pw"}},
		{"only brings no token back", []string{"RUNENV_ID_TOKEN=j", "A=1"}, nil, Options{Only: []string{"RUNENV_*"}}, []string{}},
		{"kept", []string{"DB=mine", "A=1"}, []Var{leased("DB", "pw", "db")}, Options{Keep: []string{"DB"}}, []string{"DB=mine", "A=1"}},
		{"kept though not asked for", []string{"DB=mine", "A=1"}, []Var{leased("DB", "pw", "db")}, Options{Pristine: true, Keep: []string{"DB"}}, []string{"DB=mine"}},
		{"nothing to keep", []string{"A=1"}, []Var{leased("DB", "pw", "db")}, Options{Keep: []string{"DB"}}, []string{"A=1", "DB=pw"}},
		{"several lines, quotes, percent", nil, []Var{leased("K", "a\nb'\"%\xff", "k")}, Options{}, []string{"K=a\nb'\"%\xff"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			before := slices.Clone(tt.base)
			got, err := Environ(tt.base, tt.vars, tt.opt)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Environ (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, tt.base); diff != "" {
				t.Errorf("Environ changed its argument (-want +got):\n%s", diff)
			}
		})
	}
}

// What a rogue dependency looks for first.
func TestT29TokenRequestIsWithheld(t *testing.T) {
	t.Parallel()
	base := []string{"ACTIONS_ID_TOKEN_REQUEST_TOKEN=first", "X=1", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=second", "ACTIONS_ID_TOKEN_REQUEST_URL=u", "RUNENV_ID_TOKEN=j"}
	got, err := Environ(base, []Var{leased("DB", "pw", "db")}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"X=1", "DB=pw"}, got); diff != "" {
		t.Errorf("Environ (-want +got):\n%s", diff)
	}
}

func TestEnvironRefuses(t *testing.T) {
	t.Parallel()
	const canary = "c4n4ry"
	tests := []struct {
		name string
		base []string
		vars []Var
		bad  string // the variable that the error names
	}{
		{"two leases, one variable", nil, []Var{leased("DB", canary, "one"), leased("DB", canary, "two")}, "DB"},
		{"NUL", nil, []Var{leased("DB", canary+"\x00", "two")}, "DB"},
		{"runs code", nil, []Var{leased("LD_PRELOAD", canary, "two")}, "LD_PRELOAD"},
		{"no name", nil, []Var{leased("", canary, "two")}, ""},
		{"too long", nil, []Var{leased("DB", strings.Repeat(canary, MaxStringBytes), "two")}, "DB"},
		{"one byte too long", nil, []Var{leased("DB", strings.Repeat("x", MaxStringBytes-2), "two")}, "DB"},
		{"too much together", []string{"A=1"}, manyVars(8, canary), "V7"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := Environ(tt.base, tt.vars, Options{})
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("Environ = %v, want an *Error", err)
			}
			if e.Name != tt.bad || e.Lease != "two" {
				t.Errorf("it names %q of %q, want %q of two", e.Name, e.Lease, tt.bad)
			}
			if e.Hint() == "" {
				t.Error("no hint")
			}
			if strings.Contains(e.Error()+e.Hint(), canary) {
				t.Errorf("the error holds the value: %.100s", e.Error())
			}
		})
	}
}

func TestOptionsThatMeanNothing(t *testing.T) {
	t.Parallel()
	for _, opt := range []Options{
		{Only: []string{""}}, {Only: []string{"A=B"}}, {Deny: []string{"[A-Z]"}}, {Deny: []string{"A/B"}}, {Deny: []string{`\*`}}, {Keep: []string{"OTHER"}},
	} {
		_, err := Environ([]string{"OTHER=1"}, []Var{leased("DB", "pw", "db")}, opt)
		if e, ok := errors.AsType[*Error](err); !ok || e.Hint() == "" {
			t.Errorf("Environ with %+v = %v, want an *Error with a hint", opt, err)
		}
	}
}

func manyVars(n int, value string) []Var {
	var vars []Var
	for i := range n {
		vars = append(vars, leased("V"+string(rune('0'+i)), strings.Repeat(value, 120_000/len(value)), "two"))
	}
	return vars
}

// The bounds are those of a real system, not of this package alone.
func TestLargestEnvironmentStarts(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		return // its bound is another, and smaller
	}
	vars := append(manyVars(6, "x"), leased("LONGEST", strings.Repeat("y", MaxStringBytes-len("LONGEST=")), "two"))
	env, err := Environ(nil, vars, Options{})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `printf %s "${#LONGEST}"`)
	cmd.Env = env
	out, err := cmd.Output()
	if err != nil || string(out) != "131063" {
		t.Errorf("the command says %q, %v, want 131063", out, err)
	}
}

// A base that is already too large is the caller's own business.
func TestLargeBaseAlone(t *testing.T) {
	t.Parallel()
	base := []string{"A=" + strings.Repeat("x", MaxTotalBytes)}
	if _, err := Environ(base, []Var{leased("DB", "pw", "db")}, Options{}); err != nil {
		t.Errorf("Environ = %v, want no error: the system decides", err)
	}
}

func TestT29NamesThatRunCode(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "NODE_OPTIONS", "NODE_PATH",
		"BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "PROMPT_COMMAND", "IFS", "PS4", "BASH_FUNC_ls",
		"PYTHONPATH", "PYTHONSTARTUP", "PYTHONSAFEPATH", "PYTHON_HISTORY", "PYTHONHOME", "PYTHONWARNINGS", "PYTHONBREAKPOINT",
		"PERL5LIB", "PERL5OPT", "BUN_OPTIONS", "GOCACHEPROG", "RIPGREP_CONFIG_PATH", "RSYNC_RSH", "RUSTC_WORKSPACE_WRAPPER", "TAR_OPTIONS", "VIMINIT", "RUBYOPT", "RUBYLIB", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "MAVEN_OPTS",
		"GIT_SSH_COMMAND", "GIT_SSH", "GIT_EXTERNAL_DIFF", "GIT_EXEC_PATH", "GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_0", "GIT_ASKPASS", "GIT_PAGER",
		"GITHUB_ENV", "GITHUB_PATH", "GITHUB_OUTPUT", "GITHUB_WORKSPACE", "RUNNER_TEMP", "RUNNER_TRACKING_ID",
		"ACTIONS_ID_TOKEN_REQUEST_URL", "RUNENV_BROKER", "EDITOR", "PAGER", "HOME", "GOFLAGS", "npm_config_node_options", "path", "Ld_Preload",
		"CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "RUSTC_WRAPPER", "DOTNET_STARTUP_HOOKS", "OPENSSL_CONF",
		"", "1A", "A-B", "A B", "A=B", "Ä", "A\x00", "A\n",
	} {
		err := CheckName(name)
		var e *Error
		if !errors.As(err, &e) || e.Lease != "" || e.Hint() == "" {
			t.Errorf("CheckName(%q) = %v, want an *Error with a hint and no lease", name, err)
		}
	}
	for _, name := range []string{
		"DB_PASSWORD", "NPM_TOKEN", "NODE_AUTH_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD", "VAULT_TOKEN",
		"GITHUB_TOKEN", "GH_TOKEN", "GITLAB_TOKEN", "PIP_INDEX_URL", "COMPOSER_AUTH", "BUNDLE_GITHUB__COM", "YARN_NPM_AUTH_TOKEN", "GIT_TOKEN", "GOPROXY", "_", "a", "A1", "KUBECONFIG", "TF_VAR_password", "CARGO_REGISTRY_TOKEN",
		"PATHS", "MY_PATH", "LDAP_PASSWORD", "ENVIRONMENT", "DOCKER_PASSWORD", "TWINE_PASSWORD", "GOOGLE_OAUTH_ACCESS_TOKEN",
	} {
		if err := CheckName(name); err != nil {
			t.Errorf("CheckName(%q) = %v, want nil", name, err)
		}
	}
}

// T29: what is served stands in no variable, be it inherited, leased or kept.
func TestT29WithheldFromEverybody(t *testing.T) {
	t.Parallel()
	v := func(name, value string) Var { return Var{Name: name, Value: secret.FromString(value), Lease: "l"} }
	got, err := Environ(
		[]string{"KEY=old", "PROFILE=mine", "ADDR=elsewhere", "HOST=kept", "A=1"},
		[]Var{v("KEY", "leased"), v("TOKEN", "leased"), v("HOST", "leased"), v("B", "2")},
		Options{
			Keep: []string{"KEY", "HOST"}, Only: []string{"*"}, Deny: []string{"ADDR"},
			Withhold: []string{"KEY", "PROFILE"}, Set: []Var{v("ADDR", "here"), v("TOKEN", "bearer")},
		})
	if want := []string{"HOST=kept", "A=1", "B=2", "ADDR=here", "TOKEN=bearer"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Environ = %q, %v, want %q", got, err, want)
	}
	if _, err := Environ(nil, nil, Options{Set: []Var{v("PATH", "/x")}}); err == nil {
		t.Error("a variable that runs code is set")
	}
}

func TestListsAreSorted(t *testing.T) {
	t.Parallel()
	for _, list := range [][]string{allowedNames, refusedNames} {
		if !slices.IsSorted(list) {
			s := slices.Sorted(slices.Values(list))
			t.Errorf("not sorted; want\n%q", s)
		}
	}
}

func FuzzEnviron(f *testing.F) {
	f.Add("A=1\nB=2\nA=3", "DB", []byte("value"))
	f.Add("ACTIONS_ID_TOKEN_REQUEST_URL=x\n=C:=y\njunk", "ACTIONS_X", []byte{0})
	f.Fuzz(func(t *testing.T, lines, name string, value []byte) {
		base := strings.Split(lines, "\n")
		got, err := Environ(base, []Var{{Name: name, Value: secret.New(value), Lease: "l"}}, Options{})
		if err != nil {
			if len(value) > 8 && !strings.Contains(name, string(value)) && strings.Contains(err.Error(), string(value)) {
				t.Errorf("the error holds the value: %v", err)
			}
			return
		}
		seen := map[string]bool{}
		for _, kv := range got {
			n := nameOf(kv)
			if n == "" || seen[n] {
				t.Errorf("%q is doubled or has no name in %q", kv, got)
			}
			seen[n] = true
			if slices.Contains(withheld, n) {
				t.Errorf("%q got through", kv)
			}
		}
		if last := got[len(got)-1]; last != name+"="+string(value) || bytes.IndexByte(value, 0) >= 0 {
			t.Errorf("the last is %q, want the lease", last)
		}
	})
}
