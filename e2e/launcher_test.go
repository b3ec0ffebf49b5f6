package e2e_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// The action's launcher passes its own tests on each Node that a runner may
// have: with process.execve and without.
func TestLauncher(t *testing.T) {
	t.Parallel()
	tests, err := filepath.Glob("../action/test/*.test.mjs")
	if err != nil || len(tests) == 0 {
		t.Fatalf("no tests of the launcher: %v", err)
	}
	certificates := serverFiles(t)
	for _, major := range []int{20, 22, 24} {
		t.Run(fmt.Sprintf("node %d", major), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, harness.Node(t, major), append([]string{"--test", "--test-force-exit", "--test-reporter=tap"}, tests...)...)
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + t.TempDir(), "RUNENV_TEST_TLS=" + certificates}
			cmd.WaitDelay = time.Second
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("the launcher's tests on Node %d: %v\n%s", major, err, out)
			}
		})
	}
}

// serverFiles leaves what an https server of 127.0.0.1 needs in a folder:
// cert.pem, key.pem, and ca.pem for its clients.
func serverFiles(t *testing.T) string {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	key, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certificate := &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}
	for name, block := range map[string]*pem.Block{"cert.pem": certificate, "ca.pem": certificate, "key.pem": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
