package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/secret"
)

func fileOf(variable, name, kind, content string) api.File {
	return api.File{Variable: variable, Name: name, Kind: kind, Mask: true, Value: api.NewValue(secret.FromString(content))}
}

// linesOfPlan gives what is planned for files of one lease each, as lines.
func linesOfPlan(t *testing.T, a *app, files ...api.File) ([]string, error) {
	t.Helper()
	var leases []api.Lease
	for i, f := range files {
		leases = append(leases, api.Lease{Name: string(rune('a' + i)), Files: []api.File{f}})
	}
	plan, err := a.plan(leases)
	var out []string
	for _, f := range plan {
		out = append(out, f.lease+" "+f.variable+"="+f.path()+" "+f.name+" "+string(f.content.Reveal()))
		for _, l := range f.links {
			out = append(out, l.name+" -> "+l.target)
		}
	}
	return out, err
}

func TestPlanOfFiles(t *testing.T) {
	t.Parallel()
	docker := t.TempDir()
	for name, text := range map[string]string{"config.json": `{"auths":{"old":{"auth":"b2xk"}},"credsStore":"store","credHelpers":{"reg.example.com":"ecr"}}`, "daemon.json": "{}"} {
		if err := os.WriteFile(filepath.Join(docker, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name  string
		files []api.File
		want  []string
		fails string
	}{
		{"one name of three", []api.File{fileOf("A", "key.pem", "", "1"), fileOf("B", "KEY.pem", "", "2"), fileOf("C", "key.pem", "", "3")},
			[]string{"a A=key.pem key.pem 1", "b B=KEY-2.pem KEY-2.pem 2", "c C=key-3.pem key-3.pem 3"}, ""},
		{"profiles of one variable", []api.File{fileOf("P", "credentials", "aws-profile", "[x]\nk = 1\n"), fileOf("P", "credentials", "aws-profile", "[y]\nk = 2")},
			[]string{"a P=credentials credentials [x]\nk = 1\n[y]\nk = 2\n"}, ""},
		{"profiles of two variables", []api.File{fileOf("P", "credentials", "aws-profile", "[x]\n"), fileOf("Q", "credentials", "aws-profile", "[x]\n")},
			[]string{"a P=credentials credentials [x]\n", "b Q=credentials-2 credentials-2 [x]\n"}, ""},
		{"one profile twice", []api.File{fileOf("P", "c", "aws-profile", "[x]\n"), fileOf("P", "c", "aws-profile", "[x]\n")}, nil, `leases "a" and "b" both have the AWS profile [x]`},
		{"two profiles in one", []api.File{fileOf("P", "c", "aws-profile", "[x]\n [y]\n")}, nil, "not one profile"},
		{"no profile", []api.File{fileOf("P", "c", "aws-profile", "k = 1\n[x]\n")}, nil, "not one profile"},
		{"a login to Docker", []api.File{fileOf("DOCKER_CONFIG", "docker", "docker-config", `{"auths":{"https://reg.example.com/v1/":{"auth":"bmV3"}}}`)},
			[]string{`a DOCKER_CONFIG=docker docker/config.json {"auths":{"https://reg.example.com/v1/":{"auth":"bmV3"},"old":{"auth":"b2xk"}},"credHelpers":{"https://reg.example.com/v1/":"","reg.example.com":""},"credsStore":"store"}`, "docker/daemon.json -> " + docker + "/daemon.json"}, ""},
		{"a helper from a lease", []api.File{fileOf("DOCKER_CONFIG", "docker", "docker-config", `{"auths":{"r":{"auth":"bmV3"}},"credHelpers":{"r":"evil"}}`)}, nil, "not a login"},
		{"an unknown kind", []api.File{fileOf("A", "n", "from-the-future", "1")}, nil, "newer"},
		{"a path for a name", []api.File{fileOf("A", "../n", "", "1")}, nil, "name"},
		{"a name that runs code", []api.File{fileOf("LD_PRELOAD", "n", "", "1")}, nil, "begin with LD_"},
	}
	a := &app{env: Env{Environ: []string{"DOCKER_CONFIG=" + docker}}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := linesOfPlan(t, a, tt.files...)
			text := ""
			if err != nil {
				text = err.Error() + strings.Join(hintOf(err), "")
			}
			if (err != nil) != (tt.fails != "") || !strings.Contains(text, tt.fails) {
				t.Fatalf("plan() = %v, want %q", err, tt.fails)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("plan() -want +got:\n%s", diff)
			}
		})
	}
}

func TestDockersConfigIsReadStrictly(t *testing.T) {
	t.Parallel()
	login := []section{{"a", "docker", []byte(`{"auths":{"r":{"auth":"bmV3"}}}`)}}
	for _, own := range []string{
		`[]`, `"x"`, `{"auths":[]}`, `{"auths":{},"auths":{}}`, `{"HttpHeaders":{"a":"1","a":"2"}}`, `{} {}`, `{"a":}`, `{`, `{"Auths":{}}`,
		`{"credHelpers":{"r":1}}`, `{"credsStore":{}}`, strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40), "\xff",
	} {
		if merged, err := mergeDocker([]byte(own), login); err == nil {
			t.Errorf("mergeDocker(%s) = %s, want an error", own, merged.Reveal())
		} else if strings.Contains(err.Error(), "HttpHeaders") {
			t.Errorf("mergeDocker(%s): the error holds a part of it: %v", own, err)
		}
	}
	for _, own := range []string{"", "\n", "{}", `{"auths":null}`, `{"psFormat":"table","plugins":{"x":{"y":"z"},"w":[1,[2,{"a":1}],{"a":2}]}}`} {
		if _, err := mergeDocker([]byte(own), login); err != nil {
			t.Errorf("mergeDocker(%q) = %v", own, err)
		}
	}
	if _, err := mergeDocker(nil, append(login, login...)); err == nil {
		t.Error("two logins to one registry are merged")
	}
}

func FuzzDockersConfig(f *testing.F) {
	f.Add([]byte(`{"auths":{"old":{"auth":"b2xk"}},"credsStore":"s","credHelpers":{"r":"h"}}`), []byte(`{"auths":{"r":{"auth":"bmV3"}}}`))
	f.Add([]byte(`{"auths":{},"auths":{}}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, own, login []byte) {
		merged, err := mergeDocker(own, []section{{"a", "docker", login}})
		if err != nil {
			return
		}
		var before, lease, after map[string]json.RawMessage
		if json.Unmarshal(merged.Reveal(), &after) != nil || json.Unmarshal(login, &lease) != nil || len(lease) != 1 {
			t.Fatalf("merged %q and %q to %q", own, login, merged.Reveal())
		}
		_ = json.Unmarshal(own, &before) // an empty one is none
		for name := range before {
			if _, ok := after[name]; !ok && name != "credHelpers" {
				t.Errorf("%q is lost of %q", name, own)
			}
		}
	})
}

func TestFileFlagsThatCannotBeMeant(t *testing.T) {
	t.Parallel()
	usual := good()
	if err := usual.check("runenv run"); err != nil {
		t.Error(err)
	}
	for _, o := range []fileOptions{
		{files: "ram", isolate: isolateOff}, {files: filesMemory, isolate: "yes"}, {files: filesMemory, isolate: isolateOff, maxReads: -1},
		{files: filesMemory, isolate: isolateOff, maxReads: maxMaxReads + 1}, {files: filesMemory, isolate: isolateAuto, maxReads: 1},
	} {
		if err := o.check("runenv run"); err == nil {
			t.Errorf("check(%+v) succeeds", o)
		}
	}
}

func TestRootAsTheWorkingFolderLeavesMemory(t *testing.T) {
	t.Parallel()
	a := &app{env: Env{Dir: "/", Environ: []string{"GITHUB_WORKSPACE=/w", "XDG_CACHE_HOME=relative"}}}
	got := a.fileFolders(&process{dir: "/w/sub"}, good()).Outside
	if diff := cmp.Diff([]string{"/w/sub", "/w"}, got); diff != "" {
		t.Errorf("Outside -want +got:\n%s", diff)
	}
}

func good() fileOptions { return fileOptions{files: filesMemory, isolate: isolateOff} }
