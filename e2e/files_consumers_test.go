//go:build linux

package e2e_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/runenv/action/broker/api"
)

// A consumer is a program that reads a file secret.
type consumer struct {
	name    string
	program string // that has to be there
	file    api.File
	script  string // for sh; prints want
	want    string
}

// consumers are programs that open, read, seek, map and hand on files in ways
// of their own.
func consumers(t *testing.T) []consumer {
	t.Helper()
	canary := fileOf("A_FILE", "token", "", []byte(fileCanary))
	key, ssh, store := keyMaterial(t)
	return []consumer{
		{"coreutils", "sort", canary, `set -e; cp "$A_FILE" /dev/null; tail -c 4 "$A_FILE"; sort "$A_FILE" | wc -c; dd if="$A_FILE" bs=1 skip=10 count=2 2>/dev/null; cmp "$A_FILE" "$A_FILE"; sha256sum <"$A_FILE" | wc -w`, "678935\na-2\n"},
		{"python, mapped, and a grandchild without descriptors", "/usr/bin/python3", canary, `/usr/bin/python3 - <<'EOF'
import mmap, os, subprocess, sys
with open(os.environ["A_FILE"], "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
    print(len(m))
child = "import os, subprocess, sys; os.closerange(3, 256); sys.exit(subprocess.call([sys.executable, '-c', 'import os; print(len(open(os.environ[\"A_FILE\"]).read()))'], close_fds=True))"
sys.exit(subprocess.call([sys.executable, "-c", child], close_fds=True))
EOF`, "34\n34\n"},
		{"node, and a grandchild without descriptors", "node", canary, `node -e '
const {execFileSync} = require("child_process"), fs = require("fs");
console.log(fs.readFileSync(process.env.A_FILE).length);
const inner = "console.log(require(\"fs\").readFileSync(process.env.A_FILE).length)";
const outer = "process.stdout.write(require(\"child_process\").execFileSync(process.execPath, [\"-e\", process.argv[1]]))";
process.stdout.write(execFileSync(process.execPath, ["-e", outer, inner], {stdio: ["ignore", "pipe", "inherit"]}))'`, "34\n34\n"},
		{"openssl", "openssl", fileOf("A_FILE", "key.pem", "", key), `openssl pkey -in "$A_FILE" -check -noout 2>&1; echo hello | openssl dgst -sha256 -sign "$A_FILE" | wc -c | grep -qE '^(69|7[0-2])$' && echo signed`, "Key is valid\nsigned\n"},
		{"ssh-keygen", "ssh-keygen", fileOf("A_FILE", "id_ed25519", "", ssh), `ssh-keygen -y -P '' -f "$A_FILE" | cut -d' ' -f1`, "ssh-ed25519\n"},
		{"a JDK keystore", "keytool", fileOf("A_FILE", "store.p12", "", store), `keytool -J-Xshare:auto -list -keystore "$A_FILE" -storepass changeit 2>/dev/null | grep -c PrivateKeyEntry`, "1\n"},
		{"kubectl", "kubectl", fileOf("KUBECONFIG", "kubeconfig", "", []byte(`{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:1"}}],"users":[{"name":"c","user":{"token":"`+fileCanary+`"}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"c"}}]}`)), `kubectl config current-context; kubectl config view --raw -o 'jsonpath={.users[0].user.token}' | wc -c`, "c\n34\n"},
	}
}

// keyMaterial is a private key in PEM, one of OpenSSH's and a Java keystore.
func keyMaterial(t *testing.T) (key, ssh, store []byte) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "runenv-material-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, "key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "id"},
		{"openssl", "req", "-x509", "-new", "-key", "key", "-subj", "/CN=test", "-days", "2", "-out", "crt"},
		{"openssl", "pkcs12", "-export", "-inkey", "key", "-in", "crt", "-passout", "pass:changeit", "-out", "p12"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	if ssh, err = os.ReadFile(filepath.Join(dir, "id")); err != nil {
		t.Fatal(err)
	}
	if store, err = os.ReadFile(filepath.Join(dir, "p12")); err != nil {
		t.Fatal(err)
	}
	return key, ssh, store
}

// needs ends a test where one of the programs that make installs isn't there.
func needs(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatalf("%v: run `make e2e`, which installs it or says how", err)
	}
}

func TestFilesAreReadByEveryConsumer(t *testing.T) {
	t.Parallel()
	all := consumers(t)
	for _, u := range jobUsers(t) {
		for mode, flags := range fileModes {
			for _, c := range all {
				t.Run(u.name+", "+mode+", "+c.name, func(t *testing.T) {
					t.Parallel()
					needs(t, c.program)
					s := newFileSite(t, u, fileLeaseOf("one", c.file))
					out, errs, status := s.run(t, append([]string{"--no-redact"}, flags...), "sh", "-c", c.script)
					if out != c.want || status != 0 {
						t.Errorf("it printed %q with status %d, want %q\n%s", out, status, c.want, errs)
					}
				})
			}
		}
	}
}

func awsProfile(name, id string) []byte {
	return []byte("[" + name + "]\naws_access_key_id = " + id + "\naws_secret_access_key = secret-of-" + name + "\naws_session_token = token-of-" + name + "\nregion = eu-west-" + id[len(id)-1:] + "\n")
}

func TestSeveralAWSAccountsInOneCommand(t *testing.T) {
	t.Parallel()
	const variable, name = "AWS_SHARED_CREDENTIALS_FILE", "credentials"
	s := newFileSite(t, jobUser{},
		fileLeaseOf("shop", fileOf(variable, name, api.KindAWSProfile, awsProfile("shop", "AKIAEXAMPLESHOP1"))),
		fileLeaseOf("pay", fileOf(variable, name, api.KindAWSProfile, awsProfile("pay", "AKIAEXAMPLEPAY02"))))
	out, errs, status := s.run(t, []string{"--no-redact"}, "sh", "-c", `cat "$AWS_SHARED_CREDENTIALS_FILE"`)
	if status != 0 {
		t.Fatalf("status %d\n%s", status, errs)
	}
	// AWS's own library reads what the command would.
	path := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(path, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	for profile, want := range map[string][2]string{"shop": {"AKIAEXAMPLESHOP1", "eu-west-1"}, "pay": {"AKIAEXAMPLEPAY02", "eu-west-2"}} {
		got, err := config.LoadSharedConfigProfile(context.Background(), profile, func(o *config.LoadSharedConfigOptions) {
			o.CredentialsFiles, o.ConfigFiles = []string{path}, []string{}
		})
		if err != nil || got.Credentials.AccessKeyID != want[0] || got.Region != want[1] || got.Credentials.SessionToken != "token-of-"+profile {
			t.Errorf("profile %s is %s in %s, %v", profile, got.Credentials.AccessKeyID, got.Region, err)
		}
	}

	s = newFileSite(t, jobUser{},
		fileLeaseOf("shop", fileOf(variable, name, api.KindAWSProfile, awsProfile("shop", "AKIAEXAMPLESHOP1"))),
		fileLeaseOf("again", fileOf(variable, name, api.KindAWSProfile, awsProfile("shop", "AKIAEXAMPLEPAY02"))))
	if out, errs, status := s.run(t, nil, "echo", "it runs"); status != 125 || out != "" || !strings.Contains(errs, `leases "shop" and "again" both have the AWS profile [shop]`) {
		t.Errorf("two leases of one profile = %d, %q\n%s", status, out, errs)
	}
}

// An askedRegistry keeps the authorizations that it was asked with.
type askedRegistry struct {
	*httptest.Server
	mu   sync.Mutex
	with []string
}

func newAskedRegistry(t *testing.T) *askedRegistry {
	t.Helper()
	r := &askedRegistry{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if user, password, ok := req.BasicAuth(); ok {
			r.mu.Lock()
			r.with = append(r.with, user+":"+password)
			r.mu.Unlock()
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0") // Debian's docker 20.10 asks for it
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *askedRegistry) asked() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.with) == 0 {
		return ""
	}
	return r.with[0]
}

func TestDockersOwnSettingsStay(t *testing.T) {
	t.Parallel()
	needs(t, "docker")
	leased, other := newAskedRegistry(t), newAskedRegistry(t)
	host := func(r *askedRegistry) string { return strings.TrimPrefix(r.URL, "http://") }
	config := []byte(`{"auths":{"` + host(leased) + `":{"auth":"bGVhc2VkOnBhc3N3b3JkLW9uZQ=="}}}`) // leased:password-one
	for _, u := range jobUsers(t) {
		for mode, flags := range fileModes {
			t.Run(u.name+", "+mode, func(t *testing.T) {
				s := newFileSite(t, u, fileLeaseOf("one", fileOf("DOCKER_CONFIG", "docker", api.KindDockerConfig, config)))
				own := filepath.Join(s.dir, ".docker")
				for _, dir := range []string{own, own + "/contexts", own + "/cli-plugins", own + "/buildx"} {
					if err := os.Mkdir(dir, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				text := `{"auths":{"` + host(leased) + `":{"auth":"b3duOnN0YWxl"},"` + host(other) + `":{"auth":"b3duOnBhc3N3b3JkLXR3bw=="}},"credHelpers":{"` + host(leased) + `":"nonexistent"},"HttpHeaders":{"X-Of":"mine"}}`
				if err := os.WriteFile(own+"/config.json", []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
				s.give(t, own)
				script := `ls "$DOCKER_CONFIG"; stat -c %a "$DOCKER_CONFIG/config.json"; touch "$DOCKER_CONFIG/buildx/" && cat "$DOCKER_CONFIG/config.json"`
				out, errs, status := s.run(t, append([]string{"--no-redact", "--scan=off"}, flags...), "sh", "-c", script)
				listed, config, ok := strings.Cut(out, "400\n")
				if status != 0 || listed != "buildx\ncli-plugins\nconfig.json\ncontexts\n" || !ok {
					t.Fatalf("status %d: %s\n%s", status, out, errs)
				}
				var got struct {
					Auths       map[string]struct{ Auth string }
					CredHelpers map[string]string
					HTTPHeaders map[string]string `json:"HttpHeaders"`
				}
				if err := json.Unmarshal([]byte(config), &got); err != nil {
					t.Fatal(err)
				}
				if got.Auths[host(leased)].Auth != "bGVhc2VkOnBhc3N3b3JkLW9uZQ==" || got.Auths[host(other)].Auth != "b3duOnBhc3N3b3JkLXR3bw==" || len(got.CredHelpers) != 0 || got.HTTPHeaders["X-Of"] != "mine" {
					t.Errorf("the merged configuration is %+v", got)
				}
				for r, want := range map[*askedRegistry]string{leased: "leased:password-one", other: "own:password-two"} {
					r.mu.Lock()
					r.with = nil
					r.mu.Unlock()
					_, errs, _ := s.run(t, append([]string{"--scan=off"}, flags...), "docker", "manifest", "inspect", "--insecure", host(r)+"/app:1")
					if got := r.asked(); got != want {
						t.Errorf("docker asked with %q, want %q\n%s", got, want, errs)
					}
				}
			})
		}
	}
}

// A credential store of the job's own would be asked for the leased registry
// too, and the login in the file be passed over.
func TestDockersCredentialStoreYields(t *testing.T) {
	t.Parallel()
	needs(t, "docker")
	r := newAskedRegistry(t)
	host := strings.TrimPrefix(r.URL, "http://")
	s := newFileSite(t, jobUser{}, fileLeaseOf("one", fileOf("DOCKER_CONFIG", "docker", api.KindDockerConfig, []byte(`{"auths":{"`+host+`":{"auth":"bGVhc2VkOnBhc3N3b3JkLW9uZQ=="}}}`))))
	own := filepath.Join(s.dir, ".docker")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own+"/config.json", []byte(`{"credsStore":"nonexistent"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, status := s.run(t, []string{"--no-redact"}, "sh", "-c", `cat "$DOCKER_CONFIG/config.json"`)
	if want := `{"auths":{"` + host + `":{"auth":"bGVhc2VkOnBhc3N3b3JkLW9uZQ=="}},"credHelpers":{"` + host + `":""},"credsStore":"nonexistent"}`; out != want || status != 0 {
		t.Errorf("the merged configuration is %s, want %s\n%s", out, want, errs)
	}
	_, errs, _ = s.run(t, nil, "docker", "manifest", "inspect", "--insecure", host+"/app:1")
	if got := r.asked(); got != "leased:password-one" {
		t.Errorf("docker asked with %q\n%s", got, errs)
	}
}
