package harness

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A BrokerServer is the real broker: `runenv-broker serve` with TLS by [CA], a
// store on disk and a seal of its own. It keeps its
// URL, its store and its log over restarts.
type BrokerServer struct {
	URL    string // https://127.0.0.1:…
	CAFile string // the authority of its certificate
	Config string // the path of its file
	Dir    string // its folder: broker.db, the certificate and the seal
	HTTP   *http.Client

	// Program is what runs; it may be changed before Start, to one with build tags.
	Program string
	// LogLevel is debug unless a test changes it before Start.
	LogLevel string
	// Env is added to its environment, which else has only a PATH and a HOME.
	Env []string

	log     *log
	process *process
}

// NewBroker makes one that doesn't run yet, so that a test knows its URL while
// it writes the broker's file.
func NewBroker(tb testing.TB) *BrokerServer {
	tb.Helper()
	c := authority(tb)
	dir := tb.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil { // the broker refuses a store that others can get at
		tb.Fatal(err)
	}
	b := &BrokerServer{
		URL:      fmt.Sprintf("https://127.0.0.1:%d", freePort(tb)),
		CAFile:   filepath.Join(dir, "ca.crt"),
		Config:   filepath.Join(dir, "broker.yaml"),
		Dir:      dir,
		Program:  Binaries(tb).Broker,
		LogLevel: "debug",
		HTTP: &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: c.pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
		}},
		log: new(log),
	}
	seal := make([]byte, 32)
	_, _ = rand.Read(seal)
	writeFile(tb, b.CAFile, c.caPEM)
	writeFile(tb, filepath.Join(dir, "tls.crt"), c.certPEM)
	writeFile(tb, filepath.Join(dir, "tls.key"), c.keyPEM)
	writeFile(tb, filepath.Join(dir, "seal.key"), []byte(base64.StdEncoding.EncodeToString(seal)+"\n"))
	tb.Cleanup(func() {
		b.HTTP.CloseIdleConnections()
		if tb.Failed() {
			tb.Logf("the broker printed:\n%s", tail(b.Log(), 64<<10))
		}
	})
	return b
}

// Broker makes one and starts it with the file that config gives for it.
func Broker(tb testing.TB, config func(b *BrokerServer) string) *BrokerServer {
	tb.Helper()
	b := NewBroker(tb)
	b.Start(tb, config(b))
	return b
}

// WriteConfig writes the broker's file: its own part (url, listen, tls, store,
// seal) and then the test's.
func (b *BrokerServer) WriteConfig(tb testing.TB, config string) {
	tb.Helper()
	head := fmt.Sprintf(`url: %s
listen: %s
tls: {cert: %[3]s/tls.crt, key: %[3]s/tls.key}
store: sqlite:%[3]s/broker.db
seal: ${file:%[3]s/seal.key}
`, b.URL, strings.TrimPrefix(b.URL, "https://"), b.Dir)
	writeFile(tb, b.Config, []byte(head+config))
}

// Start writes the file and starts the broker; it returns when that is ready.
func (b *BrokerServer) Start(tb testing.TB, config string) {
	tb.Helper()
	b.WriteConfig(tb, config)
	b.Restart(tb)
}

// Restart starts a broker that isn't running with the file that it has.
func (b *BrokerServer) Restart(tb testing.TB) {
	tb.Helper()
	b.Launch(tb)
	b.process.await(tb, "the broker", b.Ready)
}

// Ready asks the broker whether it could serve a job now.
func (b *BrokerServer) Ready(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.URL+"/healthz/ready", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := b.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)); resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	return nil
}

// Launch starts a broker that isn't running and waits for nothing.
func (b *BrokerServer) Launch(tb testing.TB) {
	tb.Helper()
	cmd := exec.Command(b.Program, "serve", "--config", b.Config, "--log-level", b.LogLevel)
	cmd.Dir = b.Dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.Dir}, b.Env...)
	b.process = start(tb, cmd, b.log)
}

// Kill ends the broker by SIGKILL.
func (b *BrokerServer) Kill() { b.process.stop(syscall.SIGKILL) }

// Stop ends the broker by SIGTERM, as an operator does.
func (b *BrokerServer) Stop() { b.process.stop(syscall.SIGTERM) }

// Signal sends a signal: SIGHUP to reload, SIGSTOP and SIGCONT for a freeze.
func (b *BrokerServer) Signal(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	b.process.signal(tb, sig)
}

// Ended is closed when the broker that was last started has ended.
func (b *BrokerServer) Ended() <-chan struct{} { return b.process.done }

// Log is what the broker printed so far, in all its runs.
func (b *BrokerServer) Log() string { return b.log.String() }

// Command makes a command of the broker's program, with its environment.
func (b *BrokerServer) Command(tb testing.TB, args ...string) *exec.Cmd {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), b.Program, args...)
	cmd.Dir = b.Dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.Dir}, b.Env...)
	return cmd
}

// Runenv makes a command of the client under a CI's job: its environment has a
// PATH, a HOME of its own, the job's two variables and the broker's address.
// Standard output and error are the caller's to set.
func (b *BrokerServer) Runenv(tb testing.TB, ci *CI, args ...string) *exec.Cmd {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), Binaries(tb).Runenv, args...)
	cmd.Dir = tb.TempDir()
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + tb.TempDir(),
		"TMPDIR=" + tb.TempDir(),
		"RUNENV_BROKER=" + b.URL,
		"RUNENV_CA_FILE=" + b.CAFile,
		// The token endpoint's certificate is of the same authority.
		"SSL_CERT_FILE=" + b.CAFile,
	}, ci.Environ...)
	return cmd
}
