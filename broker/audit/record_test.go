package audit_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/audit"
)

func entryOf(t *testing.T, r audit.Record) (string, audit.Record) {
	t.Helper()
	e, err := r.Entry()
	if err != nil {
		t.Fatalf("Entry() = %v", err)
	}
	if e.Event != r.Event || e.Request != r.Request || e.Session != r.Session || e.Lease != r.Lease {
		t.Errorf("the entry is filed as %+v, want what the record says", e)
	}
	var back audit.Record
	if err := json.Unmarshal(e.Body, &back); err != nil {
		t.Fatalf("reading %s: %v", e.Body, err)
	}
	return string(e.Body), back
}

func TestRecordComesBack(t *testing.T) {
	t.Parallel()
	micro := t0.Truncate(time.Microsecond)
	want := audit.Record{
		Time: micro, Event: "lease.issued", Request: "r", Session: "s", Lease: "l", LeaseName: "db", Provider: "vault", Marker: "m",
		Role: "prod", Project: "shop", Issuer: "github", Claims: map[string]string{"sub": "repo:o@1/r@2:ref", "ref": "<x>&"}, Reason: "allowed",
		Detail: "two\nlines, \"quotes\" and \u2028", Notes: []string{"renamed"}, Policy: "sha256:x", ExpiresAt: micro.Add(time.Hour), DiesBy: micro.Add(2 * time.Hour),
	}
	given := want
	given.Time = t0.In(time.FixedZone("elsewhere", 3600))
	body, got := entryOf(t, given)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the record differs (-want +got):\n%s", diff)
	}
	if strings.ContainsAny(body, "\r\n\u2028") {
		t.Errorf("more than one line: %q", body)
	}
	body, _ = entryOf(t, audit.Record{Time: t0.Truncate(time.Second), Event: "broker.started"})
	if !strings.HasPrefix(body, `{"time":"2026-11-23T12:00:00.000000Z","id":"`) || !strings.HasSuffix(body, `","event":"broker.started"}`) {
		t.Errorf("the smallest record is %s", body)
	}
}

// Equal events give different leaves: a hash in a tile or an export can't be
// matched to a guess.
func TestT19EqualRecordsDiffer(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 100 {
		body, _ := entryOf(t, audit.Record{Time: t0, Event: "e"})
		seen[body] = true
	}
	if len(seen) != 100 {
		t.Errorf("%d different entries of 100", len(seen))
	}
}

func TestLongRecordsAreCutVisibly(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", 5000)
	_, got := entryOf(t, audit.Record{Time: t0, Event: "e", Role: long, Reason: "short"})
	if !strings.HasSuffix(got.Role, "ä…[cut, 10000 bytes]") || !utf8.ValidString(got.Role) || strings.Contains(got.Role, "\ufffd") || len(got.Role) > 1100 {
		t.Errorf("the role is %q", got.Role)
	}
	if got.Reason != "short" {
		t.Errorf("the reason is %q", got.Reason)
	}
	worst := audit.Record{
		Time: t0, Event: "e", Session: "s-1", LeaseName: long, Provider: long, Marker: long, Role: long, Project: long, Issuer: long,
		Reason: strings.Repeat("\x00", 5000), Detail: strings.Repeat("\xff", 5000), Policy: long, Claims: map[string]string{},
	}
	for i := range 1000 {
		worst.Claims[fmt.Sprintf("%03d%s", i, strings.Repeat("\x01", 500))] = strings.Repeat("\x02", 500)
		worst.Notes = append(worst.Notes, strings.Repeat("\x03", 500))
	}
	body, got := entryOf(t, worst)
	if len(body) > 16<<10 || !utf8.ValidString(body) {
		t.Errorf("the entry has %d bytes, want at most 16 KiB of valid UTF-8", len(body))
	}
	if got.Claims["…"] != "936 more" || got.Notes[40] != "960 more" {
		t.Errorf("what is missing isn't said: %q, %q", got.Claims["…"], got.Notes[len(got.Notes)-1])
	}
}

func TestRecordsThatCantBeFoundAreRefused(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 129)
	for name, r := range map[string]audit.Record{
		"no time":      {Event: "e"},
		"no event":     {Time: t0},
		"long event":   {Time: t0, Event: long},
		"long request": {Time: t0, Event: "e", Request: long},
		"long session": {Time: t0, Event: "e", Session: long},
		"long lease":   {Time: t0, Event: "e", Lease: long},
		"no text":      {Time: t0, Event: "e", Session: "\xff"},
	} {
		if _, err := r.Entry(); err == nil {
			t.Errorf("%s: Entry() = nil, want an error", name)
		}
	}
	var r audit.Record
	for _, body := range []string{`{"time":"2026-11-23"}`, `{"time":1}`, `[]`, `{"expires_at":"soon"}`} {
		if err := json.Unmarshal([]byte(body), &r); err == nil {
			t.Errorf("reading %s = nil, want an error", body)
		}
	}
}
