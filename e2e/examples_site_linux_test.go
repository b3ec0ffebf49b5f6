package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// placeholder is the commit that examples and documents pin until there is a
// release.
const placeholder = "0000000000000000000000000000000000000000"

// A gallery is where the examples run: one broker with their roles, a real
// Vault and PostgreSQL, one CI for each kind of job, and a mirror that gives
// runenv to the action and the component, which verify it.
type gallery struct {
	broker   *harness.BrokerServer
	postgres *harness.PostgresServer
	watch    *harness.RoleWatch
	cis      map[string]*harness.CI // by issuer
	values   map[string]string      // of the static leases
	scanner  *harness.Scanner       // for them
	mirror   string
	sha256   string // of runenv
	action   string // a folder with the action, as a release has it
}

// kinds are the issuers of GitHub's jobs here, and what is special about them.
var kinds = map[string]map[string]any{
	"push":       nil,
	"release":    {"event_name": "release", "ref": "refs/tags/v1", "ref_type": "tag"},
	"pulls":      {"event_name": "pull_request", "ref": "refs/pull/1/merge"},
	"production": {"environment": "production"},
	"gitlab":     nil,
}

const galleryFile = `
providers:
  vault: {type: vault, address: "%[1]s"}
  local: {type: static}
projects:
  shop-api: {push: acme/shop-api@1001, release: acme/shop-api@1001, pulls: acme/shop-api@1001, production: acme/shop-api@1001, gitlab: pay/api@88}
leases:
  db: {provider: vault, path: database/creds/shop-ro, env: {DB_USER: username, DB_PASSWORD: password}, ttl: 1m, max_ttl: 10m}
  npm: {provider: local, values: {token: "${file:%[2]s/npm}"}, env: {NPM_TOKEN: token}}
  state-read: {provider: local, values: {password: "${file:%[2]s/state-read}"}, env: {TF_HTTP_PASSWORD: password}}
  state-write: {provider: local, values: {password: "${file:%[2]s/state-write}"}, env: {TF_HTTP_PASSWORD: password}}
  deploy-key: {provider: local, values: {key: "${file:%[2]s/deploy}"}, env: {DEPLOY_KEY: key}}
roles:
`

// galleryRole is the entry of a role.
func galleryRole(name, lease, match string) string {
	return fmt.Sprintf("  %s: {projects: [shop-api], leases: [%s], limits: {sessions: 100, leases: 100}, match: {%s}}\n", name, lease, match)
}

// galleryRoles are the roles of the examples.
func galleryRoles() string {
	const main = "push: {ref: refs/heads/main, event_name: push}, gitlab: {ref_path: refs/heads/main, pipeline_source: push}"
	return galleryRole("test", "db", main) + galleryRole("migrate", "db", main) + galleryRole("image", "npm", main) +
		galleryRole("infra-plan", "state-read", main) + galleryRole("infra-apply", "state-write", main) +
		galleryRole("deploy", "deploy-key", "production: {ref: refs/heads/main, environment: production}, gitlab: {ref_path: refs/heads/main, environment: production}") +
		galleryRole("publish", "npm", "release: {event_name: release}, gitlab: {ref_path: {glob: \"refs/tags/*\"}, pipeline_source: push}") +
		galleryRole("review", "db", "pulls: {event_name: pull_request}, gitlab: {pipeline_source: merge_request_event}}, allow_events: {merge_request_event: who may open one here is known")
}

func newGallery(t *testing.T, values map[string]string) *gallery {
	t.Helper()
	g := &gallery{broker: harness.NewBroker(t), postgres: harness.Postgres(t), cis: map[string]*harness.CI{}, values: values}
	vault := harness.Vault(t)
	vault.MountDatabase(t, g.postgres, "shop-ro", time.Minute, time.Hour)
	g.watch = g.postgres.Watch(t)
	issuers := "issuers:\n"
	for name, claims := range kinds {
		profile := "github"
		if name == "gitlab" {
			profile = "gitlab"
		}
		g.cis[name] = harness.NewCI(t, claims)
		issuers += fmt.Sprintf("  %s: {profile: %s, url: %q, ca_file: %q, allow_networks: [\"127.0.0.0/8\"]}\n", name, profile, g.cis[name].URL, g.broker.CAFile)
	}
	var canaries []harness.Canary
	for name, value := range values {
		canaries = append(canaries, harness.Canary{Name: "value of " + name, Value: value})
		if err := os.WriteFile(filepath.Join(g.broker.Dir, name), []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g.scanner = harness.NewScanner(t, canaries...)
	g.broker.Start(t, issuers+fmt.Sprintf(galleryFile, vault.Address, g.broker.Dir)+galleryRoles())
	vault.TrustIssuer(t, g.broker.URL, harness.CA(t))
	for _, role := range []string{"test", "migrate", "review"} {
		vault.TrustRole(t, role, `path "database/creds/shop-ro" { capabilities = ["read"] }`)
	}
	g.serveRunenv(t)
	return g
}

// serveRunenv stands for a release: the program on a mirror, and an action
// that knows its checksum.
func (g *gallery) serveRunenv(t *testing.T) {
	t.Helper()
	program, err := os.ReadFile(harness.Binaries(t).Runenv)
	if err != nil {
		t.Fatal(err)
	}
	g.sha256 = fmt.Sprintf("%x", sha256.Sum256(program))
	platform := "linux-" + runtime.GOARCH
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v9.9.9/runenv-"+platform, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(program) })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	g.mirror = server.URL
	table, err := json.Marshal(map[string]any{"default": "9.9.9", "versions": map[string]any{"9.9.9": map[string]any{platform: g.sha256}}})
	if err != nil {
		t.Fatal(err)
	}
	g.action = filepath.Join(t.TempDir(), "action")
	if err := os.CopyFS(g.action, os.DirFS(harness.ActionDir(t))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(g.action, "action", "checksums.json"), table, 0o644); err != nil {
		t.Fatal(err)
	}
}

// A showing is one run of an example.
type showing struct {
	*gallery
	dir        string
	told, gate *os.File
	lines      *bufio.Reader
	cmd        *exec.Cmd
	stdout     *output
	done       chan struct{}
}

// A scene says what surrounds an example.
type scene struct {
	kind      string            // of GitHub's job: one of kinds
	noToken   bool              // as on a fork
	event     string            // of act; default push
	eventFile string            // its content
	files     map[string]string // of the repository, beside the examples
	actions   map[string]string // beside RunEnv's own
	env       []string
	path      []string
	variables []string                 // of GitLab's pipeline
	claims    map[string]any           // of GitLab's token
	job       string                   // of GitLab's pipeline; "" is all
	edit      func(text string) string // of an example for GitLab
}

// makefile is that of the examples' repository. What needs a database tells its
// user and waits at the gate.
const makefile = `
build:
	@echo 'built with the database user "$(DB_USER)"'
integration-test migrate:
	@printf '%s %s\n' "$$DB_USER" "$$DB_PASSWORD" >"$$TOLD"; read -r line <"$$GATE"; echo "passed $$SHARD with $$DB_PASSWORD"
deploy:
	@test "$$(printf %s "$$DEPLOY_KEY" | sha256sum | cut -c1-64)" = "$$WANT" && echo "deployed with $$DEPLOY_KEY"
`

func (g *gallery) open(t *testing.T, s scene) (*showing, harness.Job) {
	t.Helper()
	v := &showing{gallery: g, dir: jobDir(t, nil), stdout: new(output), done: make(chan struct{})}
	v.told, v.gate = pipe(t, nil, filepath.Join(v.dir, "told")), pipe(t, nil, filepath.Join(v.dir, "gate"))
	v.lines = bufio.NewReader(v.told)
	job := harness.Job{
		Dir: v.dir, Files: map[string]string{"Makefile": makefile}, Path: s.path,
		Env: append([]string{
			"TOLD=" + v.told.Name(), "GATE=" + v.gate.Name(), "RUNENV_DOWNLOAD_BASE=" + g.mirror,
			"RUNENV_CA_FILE=" + g.broker.CAFile, "SSL_CERT_FILE=" + g.broker.CAFile,
		}, s.env...),
	}
	maps.Copy(job.Files, s.files)
	return v, job
}

// begin starts the showing's command.
func (v *showing) begin(t *testing.T, what string) {
	t.Helper()
	scripts, err := filepath.Glob(filepath.Join(v.dir, "work", "*.sh"))
	if err != nil {
		t.Fatal(err)
	}
	for _, script := range scripts {
		if err := os.Chmod(script, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	v.cmd.Stdout, v.cmd.Stderr = v.stdout, v.stdout
	v.cmd.Cancel = func() error { return nil } // the clean-up below ends it
	v.cmd.WaitDelay = 5 * time.Second
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = v.cmd.Wait()
		close(v.done)
	}()
	t.Cleanup(func() {
		for _, pid := range append(descendants(t, v.cmd.Process.Pid), v.cmd.Process.Pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		<-v.done
		_, _ = v.gate.Close(), v.told.Close()
		v.scanner.Check(t, what+"'s output", []byte(v.stdout.String()))
		if t.Failed() {
			t.Logf("%s printed:\n%.32768s", what, v.stdout)
		}
	})
}

// github runs an example's workflows under act.
func (g *gallery) github(t *testing.T, s scene, examples ...string) *showing {
	t.Helper()
	v, job := g.open(t, s)
	for _, name := range examples {
		job.Files[".github/workflows/"+name] = example(t, "github", name)
	}
	job.Files[".vars"] = "RUNENV_BROKER=" + g.broker.URL + "\n" // the repository's variables, for act
	job.Event, job.Actions = s.event, map[string]string{"runenv/action@" + placeholder: g.action}
	maps.Copy(job.Actions, s.actions)
	if s.eventFile != "" {
		job.EventFile = filepath.Join(v.dir, "event.json")
		if err := os.WriteFile(job.EventFile, []byte(s.eventFile), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if !s.noToken {
		job.Env = append(job.Env, g.cis[s.kind].Environ...)
	}
	v.cmd = harness.Act(t, job)
	v.cmd.Args = append(v.cmd.Args, "-P", "ubuntu-24.04=-self-hosted")
	v.begin(t, "act")
	return v
}

// gitlab runs an example's pipeline under gitlab-ci-local.
func (g *gallery) gitlab(t *testing.T, s scene, examples ...string) *showing {
	t.Helper()
	v, job := g.open(t, s)
	component, err := os.ReadFile("../templates/runenv.yml")
	if err != nil {
		t.Fatal(err)
	}
	job.Files["templates/runenv.yml"] = string(component)
	for i, name := range examples {
		text := strings.Replace(g.local(example(t, "gitlab", name)), "    inputs:\n", fmt.Sprintf(
			"    inputs:\n      url: $MIRROR/v9.9.9/runenv-linux-%s\n      sha256: %q\n", runtime.GOARCH, g.sha256), 1)
		if s.edit != nil {
			text = s.edit(text)
		}
		path := ".gitlab-ci.yml"
		if i > 0 {
			path = "ci/" + name
		}
		job.Files[path] = text
	}
	token, err := g.cis["gitlab"].Issuer.GitLabToken(g.broker.URL, s.claims)
	if err != nil {
		t.Fatal(err)
	}
	job.Name = s.job
	job.Env = append(job.Env, "MIRROR="+g.mirror)
	job.Variables = append([]string{"RUNENV_ID_TOKEN=" + token, "MIRROR=" + g.mirror}, s.variables...)
	v.cmd = harness.GitLab(t, job)
	if s.job == "" {
		v.cmd.Args = v.cmd.Args[:len(v.cmd.Args)-1]
	}
	v.begin(t, "gitlab-ci-local")
	return v
}

// component matches how documents and examples include it.
var component = regexp.MustCompile(`component: \$CI_SERVER_FQDN/\S+( #[^\n]*)?`)

// local leads a text to this gallery's broker, and to the component that lies
// beside it.
func (g *gallery) local(text string) string {
	return component.ReplaceAllString(strings.ReplaceAll(text, "https://runenv.example.com", g.broker.URL), "local: templates/runenv.yml")
}

func example(t *testing.T, ci, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../examples", ci, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// ends waits for the end of the runner and checks its status and what it
// printed.
func (v *showing) ends(t *testing.T, success bool, prints ...string) {
	t.Helper()
	select {
	case <-v.done:
	case <-time.After(time.Minute):
		t.Fatal("it still runs after a minute")
	}
	if got := v.cmd.ProcessState.ExitCode(); (got == 0) != success {
		t.Errorf("it ends with %d, want success %t", got, success)
	}
	for _, text := range prints {
		if !strings.Contains(v.stdout.String(), text) {
			t.Errorf("its output lacks %q", text)
		}
	}
}

// database lets n commands have their database users, each another one that
// works, until it lets them go on; then no user is left.
func (v *showing) database(t *testing.T, n int, prints ...string) {
	t.Helper()
	if err := v.told.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	users := map[string]string{}
	for range n {
		line, err := v.lines.ReadString('\n')
		if err != nil {
			t.Fatalf("no command with a database after %d: %v", len(users), err)
		}
		user, password, _ := strings.Cut(strings.TrimSpace(line), " ")
		users[user] = password
	}
	for user, password := range users {
		if orders, err := v.postgres.Login(t.Context(), user, password); err != nil || orders != 1 {
			t.Errorf("Login as the command's user = %d orders, %v, want 1", orders, err)
		}
	}
	if len(users) != n {
		t.Errorf("%d database users for %d jobs", len(users), n)
	}
	if _, err := v.gate.Write(bytes.Repeat([]byte("\n"), n)); err != nil {
		t.Fatal(err)
	}
	v.ends(t, true, prints...)
	for user, password := range users {
		harness.Eventually(t, 2*time.Second, "the user is gone", func() bool { return len(v.watch.Users(t, user)) == 0 })
		if strings.Contains(v.stdout.String(), password) {
			t.Error("the output holds a password")
		}
	}
}

// word is a made-up value of a lease.
func word() string { return rand.Text() + rand.Text()[:6] }
