package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// TestImageRunsTheBroker builds the Dockerfile as it stands. Since no base
// image can be had everywhere, the builder is one made here: an authority's
// certificate, with this machine's Go and its caches mounted.
func TestImageRunsTheBroker(t *testing.T) {
	t.Parallel()
	b := newBuildah(t)

	base := t.TempDir()
	b.write(filepath.Join(base, "ca-certificates.crt"), string(harness.CA(t)))
	b.write(filepath.Join(base, "Dockerfile"), `FROM scratch
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV GOPROXY=off GOFLAGS=-buildvcs=false GOMODCACHE=/cache/mod GOCACHE=/cache/build
`)
	b.run("bud", "--tag", "localhost/builder", base)

	download := exec.CommandContext(t.Context(), "go", "mod", "download")
	download.Dir = ".."
	if out, err := download.CombinedOutput(); err != nil {
		t.Fatalf("go mod download: %v\n%s", err, out)
	}

	cache := b.goenv("GOCACHE")
	if err := os.MkdirAll(cache, 0o700); err != nil { // nobody may have built here yet
		t.Fatal(err)
	}
	b.run("bud", "--pull-never", "--tag", "localhost/runenv-broker", "--build-arg", "BUILDER=localhost/builder",
		"--volume", b.goenv("GOROOT")+":/usr/local/go:ro",
		"--volume", b.goenv("GOMODCACHE")+":/cache/mod",
		"--volume", cache+":/cache/build",
		"--volume", t.TempDir()+":/tmp", "..")
	config := b.run("inspect", "--type", "image", "--format", "{{.OCIv1.Config.User}} {{.OCIv1.Config.Entrypoint}}", "localhost/runenv-broker")
	if got, want := strings.TrimSpace(config), "65532:65532 [/runenv-broker]"; got != want {
		t.Errorf("the image's user and entry point are %q, want %q", got, want)
	}

	container := strings.TrimSpace(b.run("from", "--pull-never", "localhost/runenv-broker"))
	if out := b.run("run", container, "/runenv-broker", "version"); !strings.HasPrefix(out, "runenv-broker ") {
		t.Errorf("runenv-broker version in the image prints %q", out)
	}
	if out := b.run("run", container, "/runenv-broker", "--help"); !strings.Contains(out, "serve") {
		t.Errorf("runenv-broker --help in the image prints %q, without serve", out)
	}
	b.serve(container)
}

// serve shows that the image's user can read its file and keep its store.
func (b *buildah) serve(container string) {
	b.t.Helper()
	t, ci, broker := b.t, harness.NewCI(b.t, nil), harness.NewBroker(b.t)
	broker.WriteConfig(t, fmt.Sprintf(`
issuers:
  github: {profile: github, url: "%s", ca_file: /etc/runenv/ca.crt, allow_networks: ["127.0.0.0/8"]}
`, ci.URL))
	config, err := os.ReadFile(broker.Config)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(config), "sqlite:"+broker.Dir, "sqlite:/var/lib/runenv")
	b.write(broker.Config, strings.ReplaceAll(text, broker.Dir, "/etc/runenv"))
	// The image's user is none of this machine's: these throwaway files are open to all.
	if out, err := exec.Command("chmod", "-R", "a+rX", broker.Dir).CombinedOutput(); err != nil {
		t.Fatalf("chmod: %v: %s", err, out)
	}

	cmd := b.command("run", "--volume", broker.Dir+":/etc/runenv:ro", container,
		"/runenv-broker", "serve", "--config", "/etc/runenv/broker.yaml")
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Wait() // buildah kills what it runs
		if printed, err := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("the image's broker printed %v:\n%s", err, printed)
		}
	})
	defer func() { _ = cmd.Process.Signal(syscall.SIGTERM) }()
	harness.Eventually(t, 30*time.Second, "the image's broker is ready", func() bool { return broker.Ready(t.Context()) == nil })
}

// buildah runs the real buildah, without an engine, on a store of its own.
type buildah struct {
	t       *testing.T
	program string
	store   string
}

func newBuildah(t *testing.T) *buildah {
	t.Helper()
	program := os.Getenv("RUNENV_E2E_BUILDAH")
	if program == "" {
		t.Fatal("RUNENV_E2E_BUILDAH isn't set: run `make e2e`, which finds or installs buildah")
	}
	// Containers go before their folder does, so the folder is not t.TempDir's.
	store, err := os.MkdirTemp("", "runenv-buildah-")
	if err != nil {
		t.Fatal(err)
	}
	b := &buildah{t, program, store}
	t.Cleanup(func() {
		for _, args := range [][]string{{"rm", "--all"}, {"rmi", "--all", "--force"}} {
			if out, err := b.command(args...).CombinedOutput(); err != nil {
				t.Errorf("buildah %v: %v\n%s", args, err, out)
			}
		}
		if err := os.RemoveAll(store); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *buildah) command(args ...string) *exec.Cmd {
	cmd := exec.Command(b.program, append([]string{
		"--storage-driver", "vfs", "--root", filepath.Join(b.store, "root"), "--runroot", filepath.Join(b.store, "run"),
	}, args...)...)
	cmd.Env = append(os.Environ(), "BUILDAH_ISOLATION=chroot")
	return cmd
}

func (b *buildah) run(args ...string) string {
	b.t.Helper()
	var stderr strings.Builder
	cmd := b.command(args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("buildah %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

func (b *buildah) goenv(name string) string {
	b.t.Helper()
	out, err := exec.Command("go", "env", name).Output()
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func (b *buildah) write(path, text string) {
	b.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}
