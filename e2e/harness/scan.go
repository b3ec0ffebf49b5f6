package harness

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// minCanaryBytes is the length from which a find is no accident.
const minCanaryBytes = 8

// A Canary is a secret that must not show up somewhere. Name stands for it in
// messages, which never hold the value.
type Canary struct {
	Name  string
	Value string
}

// A needle is one way to write a canary.
type needle struct {
	name string
	text []byte
}

// A Scanner looks for canaries as they are and in the encodings that programs
// write values in: base64 in both alphabets at three alignments, hex,
// percent-encoding and JSON strings.
type Scanner struct{ needles []needle }

// NewScanner makes one. A canary must be long enough not to be found by
// accident.
func NewScanner(tb testing.TB, canaries ...Canary) *Scanner {
	tb.Helper()
	s := &Scanner{}
	for _, c := range canaries {
		if len(c.Value) < minCanaryBytes {
			tb.Fatalf("the canary %q has %d bytes: too few to look for", c.Name, len(c.Value))
		}
		s.add(c)
	}
	return s
}

func (s *Scanner) add(c Canary) {
	seen := map[string]bool{}
	add := func(encoding, text string) {
		if !seen[text] {
			seen[text] = true
			s.needles = append(s.needles, needle{c.Name + " " + encoding, []byte(text)})
		}
	}
	add("as it is", c.Value)
	for _, alphabet := range []struct {
		name string
		enc  *base64.Encoding
	}{{"base64", base64.RawStdEncoding}, {"base64url", base64.RawURLEncoding}} {
		for shift := range 3 {
			text := alphabet.enc.EncodeToString([]byte(strings.Repeat("\x00", shift) + c.Value))
			// Without the characters that hold bits of a neighbour.
			first, end := (8*shift+5)/6, 8*(shift+len(c.Value))/6
			add(fmt.Sprintf("in %s, shifted by %d", alphabet.name, shift), text[first:end])
		}
	}
	add("in hex", hex.EncodeToString([]byte(c.Value)))
	add("in upper-case hex", strings.ToUpper(hex.EncodeToString([]byte(c.Value))))
	add("percent-encoded", url.QueryEscape(c.Value))
	add("percent-encoded as a path", url.PathEscape(c.Value))
	var all strings.Builder
	for i := range len(c.Value) {
		fmt.Fprintf(&all, "%%%02X", c.Value[i])
	}
	add("percent-encoded byte by byte", all.String())
	if quoted, err := json.Marshal(c.Value); err == nil {
		add("as a JSON string", string(quoted[1:len(quoted)-1]))
	}
}

// Find names what text holds of the canaries.
func (s *Scanner) Find(text []byte) []string {
	var found []string
	for _, n := range s.needles {
		if bytes.Contains(text, n.text) {
			found = append(found, n.name)
		}
	}
	return found
}

// Check fails the test if text, known as what, holds a canary.
func (s *Scanner) Check(tb testing.TB, what string, text []byte) {
	tb.Helper()
	for _, name := range s.Find(text) {
		tb.Errorf("the %s holds the %s", what, name)
	}
}

// Tree names what the regular files under dir hold of the canaries, in their
// content or their name.
func (s *Scanner) Tree(tb testing.TB, dir string) []string {
	tb.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) { // gone since: a journal, say
				return nil
			}
			return err
		}
		for _, name := range s.Find([]byte(entry.Name())) {
			found = append(found, path+": its name: "+name)
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		for _, name := range s.Find(content) {
			found = append(found, path+": "+name)
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return found
}
