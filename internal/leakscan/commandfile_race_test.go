package leakscan

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/runenv/action/internal/needle"
	"github.com/runenv/action/secret"
)

// What others append while an entry is cut out stays, and stays whole.
func TestT26OthersMayAppend(t *testing.T) {
	t.Parallel()
	const value = "secret-value"
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("A=1\nB="+value+"\nC=3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	add := func(text string) *os.File {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		return f
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	others := []string{"D<<E\n" + value + "\nE\nF=6\n", "G=7\n", ""}
	set := needle.New([]needle.Secret{{Lease: "db", Value: secret.FromString(value)}})
	hits, err := scrubCommands(f, func() (*os.File, error) {
		text := others[0]
		others = others[1:]
		return add(text), nil
	}, Entries, set)
	if err != nil || len(hits) != 1 || len(others) != 1 {
		t.Errorf("scrubCommands = %v, %v, with %d appends to come, want one hit and 1", hits, err, len(others))
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "A=1\nG=7\nF=6\nC=3\n" {
		t.Errorf("left %q, %v", text, err)
	}

	// And what came between reading and cutting.
	if err := os.WriteFile(path, []byte("A=1\nB="+value+"\nC=3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	late := add("L=1\n")
	if err := replace(f, func() (*os.File, error) { return late, nil }, []span{{4, 19}}, []byte("C=3\n"), 23); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "A=1\nC=3\nL=1\n" {
		t.Errorf("left %q, %v", text, err)
	}
}
