package docs_test

import (
	"bufio"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/internal/devissuer"
	"github.com/runenv/action/providers/vault/vaulttest"
)

// A world is what the documents' commands run beside: a broker that serves
// deploy/broker.yaml, with the names in it led to this machine.
type world struct {
	dir    string // of the commands
	etc    string // for /etc/runenv
	url    string // the broker's
	env    []string
	issuer *devissuer.Issuer

	here, there *strings.Replacer // from the documents' names, and back
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{dir: dir, etc: filepath.Join(dir, "etc")}
	state := filepath.Join(dir, "state")
	for _, d := range []string{w.etc, state} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}

	// The issuer, whose certificate serves the broker too.
	ci := httptest.NewUnstartedServer(nil)
	issuer, err := devissuer.New(devissuer.Config{URL: "https://" + ci.Listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	w.issuer, ci.Config.Handler = issuer, issuer
	ci.StartTLS()
	t.Cleanup(ci.Close)
	key, err := x509.MarshalPKCS8PrivateKey(ci.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(w.etc, "ca.crt")
	writePEM(t, ca, "CERTIFICATE", ci.Certificate().Raw)
	writePEM(t, filepath.Join(w.etc, "tls.crt"), "CERTIFICATE", ci.Certificate().Raw)
	writePEM(t, filepath.Join(w.etc, "tls.key"), "PRIVATE KEY", key)
	seal := make([]byte, 32)
	_, _ = rand.Read(seal)
	w.write(t, "seal.key", base64.StdEncoding.EncodeToString(seal)+"\n")
	w.write(t, "npm-token", "npm_8Qv2rLx9Tk\n")
	// It opens what providers/static.md shows, and nothing else anywhere.
	w.write(t, "age.key", "AGE-SECRET-KEY-190NCJ4JPVWAXUA4UUK4MXNJSCDXVASZG3DR09ZTJ07Q6PF7YN2JQNSHFY5\n")
	w.write(t, "jwks.json", string(issuer.JWKS()))

	address := freeAddress(t)
	w.url = "https://" + address
	back := vaulttest.New(t)
	back.Roles = map[string]vaulttest.Role{"runenv-migrate": {Subject: "runenv:role:migrate", Audience: back.URL}}
	back.Mount("database", "database", vaulttest.Database(15*time.Minute))
	back.KV("secret", 2)
	back.Put("secret", "ci/npm", map[string]any{"token": "npm_8Qv2rLx9Tk"})
	back.Put("secret", "ci/app", map[string]any{"config": `{"db":{"host":"db.example.com"}}`, "api-key": "k-5mZp7cXw2a"})
	w.here = strings.NewReplacer(
		"https://runenv.example.com", w.url, "https://vault.example.com:8200", back.URL,
		"/etc/runenv", w.etc, "/var/lib/runenv", state,
	)
	w.there = strings.NewReplacer(
		w.url, "https://runenv.example.com", "https://"+ci.Listener.Addr().String(), "https://token.actions.githubusercontent.com", back.URL, "https://vault.example.com:8200",
		w.etc, "/etc/runenv", state, "/var/lib/runenv",
	)
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	w.env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "DOCS_ROOT=" + root, "GORACE=" + os.Getenv("GORACE"),
		"SSL_CERT_FILE=" + ca, "RUNENV_CA_FILE=" + ca, "RUNENV_BROKER=" + w.url, "RUNENV_ROLE=migrate",
	}, issuer.Environ()...)

	w.write(t, "broker.yaml", strings.NewReplacer(
		"listen: :8443", "listen: "+address,
		"    leases: [db-migrate]\n", "    leases: [db-migrate]\n    references: [\"vault://secret/ci/**\", \"vault://database/creds/{{project.name}}-*\"]\n",
		"url: https://token.actions.githubusercontent.com", `url: "https://`+ci.Listener.Addr().String()+`", jwks_file: jwks.json`,
	).Replace(w.local(deployed(t))))
	return w
}

func deployed(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../deploy/broker.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// sections are those of deploy/broker.yaml.
func (w *world) sections(t *testing.T) map[string]string { return sections(deployed(t)) }

func (w *world) local(text string) string { return w.here.Replace(text) }

func (w *world) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.etc, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// serve starts the broker, waits until it listens, and leaves the id of a
// request that was refused as REQUEST.
func (w *world) serve(t *testing.T) {
	t.Helper()
	cmd := exec.Command("runenv-broker", "serve", "--config", filepath.Join(w.etc, "broker.yaml"))
	cmd.Env = w.env
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	serving, ended := make(chan struct{}), make(chan struct{})
	var printed strings.Builder
	go func() {
		defer close(ended)
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			printed.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), `"msg":"serving"`) {
				close(serving)
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		<-ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the broker logged:\n%s", printed.String())
		}
	})
	select {
	case <-serving:
	case <-ended:
		t.Fatalf("the broker doesn't serve:\n%s", printed.String())
	}
	w.env = append(w.env, "REQUEST="+w.refusal(t))
}

// refusal gets a job of another branch refused, and returns the request's id.
func (w *world) refusal(t *testing.T) string {
	t.Helper()
	token, err := w.issuer.GitHubToken(w.url, map[string]any{"ref": "refs/heads/dev"})
	if err != nil {
		t.Fatal(err)
	}
	out, err := w.shell(t, "RUNENV_ID_TOKEN="+token+" runenv run --role migrate -- true")
	id := regexp.MustCompile(`\[request (r-[0-9a-v]+)\]`).FindStringSubmatch(out)
	if err == nil || id == nil {
		t.Fatalf("a job of another branch = %v, want it refused:\n%s", err, out)
	}
	return id[1]
}

// shell runs a script and returns what it prints, in the documents' names.
func (w *world) shell(t *testing.T, script string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", w.local(script))
	cmd.Dir, cmd.Env = w.dir, w.env
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ProcessState != nil {
		err = errors.New(exit.String())
	}
	return w.there.Replace(string(out)), err
}
