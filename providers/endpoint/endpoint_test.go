package endpoint_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/providers/endpoint"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"https://vault.example.com", "https://vault.example.com:8200", "http://127.0.0.1:8200", "http://[::1]:80"} {
		if err := endpoint.Check(good, "x"); err != nil {
			t.Errorf("Check(%q) = %v", good, err)
		}
	}
	for bad, text := range map[string]string{
		"": "isn't an origin, such as https://x.example", "vault.example.com": "isn't an origin", "https://": "isn't an origin", "https://:8200": "isn't an origin",
		"https://u:c4n4ry@h": "isn't an origin", "https://h/": "isn't an origin", "https://h/p": "isn't an origin", "https://h?": "isn't an origin", "https://h?a=b": "isn't an origin",
		"https://h#": "isn't an origin", "https:h": "isn't an origin", "http://vault.example.com": "plain http", "http://localhost": "plain http", "http://127.0.0.1.example.com": "plain http",
		"ftp://h": "neither https nor http",
	} {
		if err := endpoint.Check(bad, "https://x.example"); err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "c4n4ry") {
			t.Errorf("Check(%q) = %v, want %q", bad, err, text)
		}
	}
}

func TestRoots(t *testing.T) {
	t.Parallel()
	if pool, err := endpoint.Roots(""); pool != nil || err != nil {
		t.Errorf("Roots without a file = %v, %v, want the system's", pool, err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	for _, content := range []string{"c4n4ry", strings.Repeat("x", 1<<20+1)} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := endpoint.Roots(file); err == nil || !strings.Contains(err.Error(), "`ca_file` "+file) || strings.Contains(err.Error(), "c4n4ry") {
			t.Errorf("Roots = %v, want an error about %s", err, file)
		}
	}
	if _, err := endpoint.Roots(file + ".none"); err == nil {
		t.Error("Roots of no file = nil")
	}
}

// A proxy of the environment sees nothing; net/http never asks one for
// loopback addresses, so that the providers' tests couldn't tell.
func TestTransportKnowsNoProxy(t *testing.T) {
	t.Parallel()
	if endpoint.Transport(nil, time.Minute).Proxy != nil {
		t.Error("the transport asks for a proxy")
	}
}
