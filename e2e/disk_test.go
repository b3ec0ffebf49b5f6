package e2e_test

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// P1: no process of RunEnv's writes a value, or an encoding of one, to a file.
func TestNoFileHoldsTheValue(t *testing.T) {
	t.Parallel()
	s := newComponents(t).newSite(t, plan{})
	for _, c := range []struct {
		name   string
		script string
		end    func(t *testing.T, r *run)
	}{
		{"success", tell + hold + `; echo "$DB_PASSWORD"`, func(t *testing.T, r *run) {
			r.release()
			if got := r.status(t, 10*time.Second); got != 0 {
				t.Errorf("runenv run ends with %d, want 0", got)
			}
		}},
		{"failure", tell + hold + `; echo "$DB_PASSWORD" | base64 >&2; exit 3`, func(t *testing.T, r *run) {
			r.release()
			if got := r.status(t, 10*time.Second); got != 3 {
				t.Errorf("runenv run ends with %d, want 3", got)
			}
		}},
		{"not started", tell + hold, func(t *testing.T, r *run) {
			r.release()
			r.status(t, 10*time.Second)
			again := s.launch(t, order{args: []string{"/nowhere/command"}})
			if got := again.status(t, 20*time.Second); got != 127 {
				t.Errorf("runenv run of no command ends with %d, want 127", got)
			}
		}},
		{"cancelled", tell + hold, func(t *testing.T, r *run) {
			r.signal(t, syscall.SIGINT)
			r.status(t, 10*time.Second)
		}},
		{"killed", tell + hold, func(t *testing.T, r *run) {
			r.signal(t, syscall.SIGKILL)
			s.gone(t, r, 5*time.Second, "the kill")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := s.start(t, order{script: c.script, flags: []string{"--debug", "-v"}})
			scanner := harness.NewScanner(t, harness.Canary{Name: "leased password", Value: r.password})
			look := func(when string) {
				t.Helper()
				for _, dir := range []string{r.dir, s.broker.Dir} {
					for _, found := range scanner.Tree(t, dir) {
						t.Errorf("%s, a file holds the value: %s", when, found)
					}
				}
			}
			look("while the command runs")
			c.end(t, r)
			look("after the command")
		})
	}
}

// The search itself must find what it looks for.
func TestScannerFindsEachEncoding(t *testing.T) {
	t.Parallel()
	const value = `p4ss "w\rd"/+%ü-0123456789`
	scanner := harness.NewScanner(t, harness.Canary{Name: "canary", Value: value})
	texts := map[string]string{
		"plain":   "before" + value + "after",
		"hex":     hex.EncodeToString([]byte(value)),
		"HEX":     strings.ToUpper(hex.EncodeToString([]byte(value))),
		"query":   url.QueryEscape(value),
		"path":    url.PathEscape(value),
		"base64":  base64.StdEncoding.EncodeToString([]byte(value)),
		"shift 1": base64.StdEncoding.EncodeToString([]byte("x" + value + "yy")),
		"shift 2": base64.URLEncoding.EncodeToString([]byte("xx" + value + "y")),
		"basic":   base64.StdEncoding.EncodeToString([]byte("user:" + value)),
		"json":    `{"a":"p4ss \"w\\rd\"/+%ü-0123456789"}`,
	}
	dir := t.TempDir()
	for name, text := range texts {
		if len(scanner.Find([]byte(text))) == 0 {
			t.Errorf("Find doesn't see the canary in %s", name)
		}
		sub := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if err := os.Mkdir(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, "file"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if len(scanner.Tree(t, sub)) == 0 {
			t.Errorf("Tree doesn't see the canary in a file with %s", name)
		}
	}
	if got := scanner.Find([]byte("p4ss " + base64.StdEncoding.EncodeToString([]byte("another")))); len(got) != 0 {
		t.Errorf("Find in a text without the canary = %q", got)
	}
}
