package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// A registry is a real registry of npm packages: verdaccio, with one user.
type registry struct{ url, token string }

func newRegistry(t *testing.T) *registry {
	t.Helper()
	dir := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	config := filepath.Join(dir, "config.yaml")
	err = os.WriteFile(config, []byte(`storage: ./storage
auth: {htpasswd: {file: ./htpasswd}}
packages: {'**': {access: $all, publish: $authenticated}}
log: {type: stdout, format: pretty, level: warn}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(harness.Node(t, 0), filepath.Join(harness.NPM(t), "verdaccio", "bin", "verdaccio"), "--config", config, "--listen", address)
	cmd.Dir, cmd.Env = dir, []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var printed output
	cmd.Stdout, cmd.Stderr = &printed, &printed
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("verdaccio printed:\n%s", &printed)
		}
	})
	r := &registry{url: "http://" + address}
	harness.Eventually(t, time.Minute, "verdaccio is ready", func() bool {
		status, _ := r.ask(t, http.MethodGet, "/-/ping", nil)
		return status == http.StatusOK
	})
	status, body := r.ask(t, http.MethodPut, "/-/user/org.couchdb.user:sam", map[string]string{"name": "sam", "password": word()})
	var answer struct{ Token string }
	if err := json.Unmarshal(body, &answer); err != nil || status != http.StatusCreated || answer.Token == "" {
		t.Fatalf("making a user of verdaccio = %d, %v", status, err)
	}
	r.token = answer.Token
	return r
}

func (r *registry) ask(t *testing.T, method, path string, body any) (int, []byte) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return 0, nil
	}
	return resp.StatusCode, answer
}

// files are those of a package that is published there.
func (r *registry) files(name string) map[string]string {
	return map[string]string{
		"package.json": fmt.Sprintf(`{"name": %q, "version": "1.0.0", "files": ["index.js"], "scripts": {"test": "test -z \"$NPM_TOKEN\" && echo tested without a token"}}`, name),
		"index.js":     "module.exports = 1\n",
		".npmrc":       fmt.Sprintf("registry=%s/\n%s/:_authToken=${NPM_TOKEN}\n", r.url, strings.TrimPrefix(r.url, "http:")),
	}
}

// has fails the test unless the package was published.
func (r *registry) has(t *testing.T, name string) {
	t.Helper()
	status, body := r.ask(t, http.MethodGet, "/"+name, nil)
	var answer struct {
		Versions map[string]struct{ Name string }
	}
	if err := json.Unmarshal(body, &answer); err != nil || status != http.StatusOK || answer.Versions["1.0.0"].Name != name {
		t.Errorf("the registry's answer for %s = %d, %v, want version 1.0.0 of it", name, status, err)
	}
}

// A docker is a stand-in for Docker's program, whose daemon can't be had here:
// it builds by the real buildah.
type docker struct {
	*buildah
	path  []string
	value string
}

func (g *gallery) newDocker(t *testing.T) *docker {
	t.Helper()
	d := &docker{buildah: newBuildah(t), value: g.values["npm"]}
	bin := t.TempDir()
	d.path = []string{bin}
	script := fmt.Sprintf(`#!/bin/sh
# A stand-in: docker build, by buildah.
test "$1" = build || { echo "docker $1: this stand-in only builds" >&2; exit 64; }
shift
exec %s bud --isolation chroot --pull-never --tag localhost/example "$@"
`, strings.Join(d.command().Args, " "))
	if err := os.WriteFile(filepath.Join(bin, "docker"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *docker) files(t *testing.T) map[string]string {
	t.Helper()
	program, err := os.ReadFile(harness.Program(t, "tools/digest"))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"digest": string(program),
		"Dockerfile": `FROM scratch
COPY --chmod=755 digest /digest
RUN --mount=type=secret,id=npm,target=/secret ["/digest", "/secret", "/sum"]
`,
	}
}

// built fails the test unless the build had the secret and the image hasn't.
func (d *docker) built(t *testing.T) {
	t.Helper()
	var sum []byte
	layers, err := filepath.Glob(filepath.Join(d.store, "root", "vfs", "dir", "*", "sum"))
	if err == nil && len(layers) > 0 {
		sum, err = os.ReadFile(layers[0])
	}
	if want := fmt.Sprintf("%x", sha256.Sum256([]byte(d.value))); err != nil || string(sum) != want {
		t.Errorf("the build saw a secret with the sum %q, %v, want %s", sum, err, want)
	}
	for _, found := range harness.NewScanner(t, harness.Canary{Name: "npm token", Value: d.value}).Tree(t, d.store) {
		t.Errorf("after the build: %s", found)
	}
}

// A backend keeps Terraform's state, as its "http" backend wants it: one
// password reads, another one writes.
type backend struct {
	url, read, write string

	mu    sync.Mutex
	state []byte
	reads int
}

func (g *gallery) newBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{read: g.values["state-read"], write: g.values["state-write"]}
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	b.url = server.URL
	return b
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, password, _ := r.BasicAuth()
	switch {
	case r.Method == http.MethodGet && (password == b.read || password == b.write):
		b.reads++
		if b.state == nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = w.Write(b.state)
	case r.Method == http.MethodPost && password == b.write:
		b.state, _ = io.ReadAll(io.LimitReader(r.Body, 1<<20))
	default:
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// terraformStandIn does of Terraform's what the example needs: it reads the
// state at init and plan, and writes it at apply.
const terraformStandIn = `#!/bin/sh
url=$(sed -n 's/.*address = "\(.*\)"/\1/p' main.tf)
auth() { printf 'user = "%s:%s"\n' "$TF_HTTP_USERNAME" "$TF_HTTP_PASSWORD"; }
case $1 in
init) auth | curl -sS -K - -o /dev/null "$url" ;;
plan) auth | curl -sS -K - -o /dev/null "$url" && echo plan >plan.bin ;;
apply) test "$(cat plan.bin)" = plan && auth | curl -fsS -K - -X POST -d '{"resources": [{"type": "terraform_data"}]}' "$url" ;;
esac
`

// scene adds a repository of Terraform's to a scene. Where there is no
// terraform on the PATH, which can't be had from a package registry, a stand-in is put there.
func (b *backend) scene(t *testing.T, s scene) scene {
	t.Helper()
	s.env = append(s.env, "TF_HTTP_USERNAME=ci", "CHECKPOINT_DISABLE=1")
	s.files = map[string]string{"main.tf": fmt.Sprintf(`terraform {
  backend "http" {
    address = "%s"
  }
}
resource "terraform_data" "shop" {
  input = "open"
}
`, b.url)}
	program, err := exec.LookPath("terraform")
	if err != nil {
		bin := t.TempDir()
		program = filepath.Join(bin, "terraform")
		if err := os.WriteFile(program, []byte(terraformStandIn), 0o755); err != nil {
			t.Fatal(err)
		}
		s.path = append(s.path, bin)
		t.Log("terraform: a stand-in, since there is none on the PATH")
		return s
	}
	out, err := exec.CommandContext(t.Context(), program, "version").Output()
	if err != nil {
		t.Fatalf("terraform version: %v", err)
	}
	t.Logf("real component: %.20s", bytes.TrimSpace(out))
	return s
}

// applied fails the test unless the state was read and then written, and
// neither password is in a file of the job.
func (b *backend) applied(t *testing.T, v *showing) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reads < 2 || !bytes.Contains(b.state, []byte("terraform_data")) {
		t.Errorf("the state was read %d times and is %.200q, want it read twice and written", b.reads, b.state)
	}
	for _, found := range v.scanner.Tree(t, v.dir) {
		t.Errorf("after the job: %s", found)
	}
}
