package brokercli

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/broker/audit"
)

// Anybody with a genuine token chooses the role that is asked for, and with it
// what stands in the log: it can neither begin a line, nor pass for another
// field, nor steer a terminal.
func TestT19CallersCantForgeWhatAuditShowPrints(t *testing.T) {
	t.Parallel()
	const evil = "x\n2026-11-01 12:00:00.000  session.created role=prod\r\x1b[2J\u009b31m\u202e session=s-1 \"end"
	entry, err := audit.Record{
		Time: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC), Event: "session.refused", Request: "r-1",
		Role: evil, Reason: "role_unknown", Claims: map[string]string{"ref": evil, "event_name": "push"},
	}.Entry()
	if err != nil {
		t.Fatal(err)
	}
	text := line(entry.Body)
	want := `2026-11-01 12:00:00.000  session.refused    role="x\n2026-11-01 12:00:00.000  session.created role=prod\r\x1b[2J\u009b31m\u202e session=s-1 \"end" reason=role_unknown request=r-1` + "\n" +
		`    event_name=push ref="x\n2026-11-01 12:00:00.000  session.created role=prod\r\x1b[2J\u009b31m\u202e session=s-1 \"end"`
	if text != want {
		t.Errorf("line =\n%s\nwant\n%s", text, want)
	}
	raw := escaped(entry.Body)
	if strings.ContainsAny(raw, "\n\r\x1b\u009b\u202e\x7f") {
		t.Errorf("escaped = %q", raw)
	}
	var before, after audit.Record
	if json.Unmarshal(entry.Body, &before) != nil || json.Unmarshal([]byte(raw), &after) != nil || after.Role != before.Role || after.Role != evil {
		t.Errorf("escaped JSON says another role: %q", after.Role)
	}
}

func TestEscapedKeepsItsMeaning(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"plain", "Grüße 世界 🙂", "a\u00a0b", "\U000e0001tag", "\x7f", `back\slash "quote"`} {
		in, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var out string
		if err := json.Unmarshal([]byte(escaped(in)), &out); err != nil || out != s {
			t.Errorf("escaped(%q) means %q, %v", s, out, err)
		}
	}
}

func TestLineOfWhatIsNoRecord(t *testing.T) {
	t.Parallel()
	if got := line([]byte("\x1b[2J not JSON")); got != `"\x1b[2J not JSON"` {
		t.Errorf("line = %s", got)
	}
}

// An export is whole or isn't there, is closed to others, and overwrites
// nothing.
func TestWriteNew(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "audit.jsonl")
	broken := errors.New("the log was altered")
	err := writeNew(name, func(w io.Writer) error {
		_, err := io.WriteString(w, "half")
		return errors.Join(err, broken)
	})
	if _, serr := os.Stat(name); !errors.Is(err, broken) || !errors.Is(serr, os.ErrNotExist) {
		t.Errorf("writeNew = %v and leaves the file (%v)", err, serr)
	}
	whole := func(w io.Writer) error { _, err := io.WriteString(w, "whole"); return err }
	if err := writeNew(name, whole); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 && runtime.GOOS != "windows" {
		t.Errorf("its mode is %v", info.Mode())
	}
	if err := writeNew(name, whole); !errors.Is(err, os.ErrExist) || hintOf(err) == "" {
		t.Errorf("writeNew over a file = %v, want a refusal with a hint", err)
	}
}
