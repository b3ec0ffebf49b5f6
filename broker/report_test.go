package broker_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/audit"
)

// reports are the session's, as they stand in the audit log.
func (s *session) reports() []audit.Record {
	s.r.t.Helper()
	return slices.DeleteFunc(s.r.audited(s.id), func(rec audit.Record) bool { return rec.Event != "session.reported" })
}

func TestReportIsRecordedBeforeItIsAnswered(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	r.store.fail("Record")
	if a := s.call(http.MethodPost, api.PathReport, `{"files":"disk"}`); a.status != http.StatusInternalServerError {
		t.Errorf("a report that can't be recorded = %v, want 500", a)
	}
	r.store.fail()
	a := s.call(http.MethodPost, api.PathReport, `{"files":"disk","scan":"scrub","scan_ignore":["*.tfplan","out/**"],"scan_hits":3}`)
	if a.status != http.StatusOK {
		t.Fatal(a)
	}
	records := s.reports()
	if len(records) != 1 {
		t.Fatalf("%d records, want 1", len(records))
	}
	want := []string{"files: disk", "scan: scrub", "scan hits: 3", "scan ignores: *.tfplan", "scan ignores: out/**"}
	if got := records[0]; got.Session != s.id || got.Role != "prod" || got.Project != "shop-api" || cmp.Diff(want, got.Notes) != "" {
		t.Errorf("the record is %+v", got)
	}
}

func TestReportIsChecked(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	many, _ := json.Marshal(api.Report{ScanIgnore: make([]string, 33)})
	for _, body := range []string{
		"", "{}", "null", `{"files":"ram"}`, `{"scan":"sometimes"}`, `{"scan_hits":-1}`, `{"scan_hits":1048577}`, `{"scan_hits":1.5}`, `{"files":"disk","path":"/tmp"}`,
		`{"files":"disk","files":"memory"}`, `{"scan_ignore":[""]}`, `{"scan_ignore":["a\nb"]}`, `{"scan_ignore":["\u001b[2J"]}`, `{"scan_ignore":["` + strings.Repeat("x", 257) + `"]}`,
		string(many), `{"scan_ignore":["` + strings.Repeat("x", 17<<10) + `"]}`,
	} {
		s := r.open("odd")
		if a := s.call(http.MethodPost, api.PathReport, body); !a.is(http.StatusBadRequest, api.CodeInvalidRequest) {
			t.Errorf("%.60q = %v, want 400", body, a)
		}
		if n := len(s.reports()); n != 0 {
			t.Errorf("%.60q was recorded", body)
		}
		s.call(http.MethodDelete, api.PathSession, "")
	}
}

// T21: each report is on the disk for as long as the log is.
func TestT21ReportsAreFew(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	for i := range 20 {
		a := s.call(http.MethodPost, api.PathReport, fmt.Sprintf(`{"scan_hits":%d}`, i+1))
		if limited := a.is(http.StatusTooManyRequests, api.CodeRateLimited); limited != (i >= 8) {
			t.Errorf("report %d = %v", i+1, a)
		}
	}
	r.clock.add(time.Minute)
	if a := s.call(http.MethodPost, api.PathReport, `{"scan":"off"}`); a.status != http.StatusOK {
		t.Errorf("a minute later = %v", a)
	}
}

func TestReportAfterTheSessionsEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	if a := s.call(http.MethodDelete, api.PathSession, ""); a.status != http.StatusOK {
		t.Fatal(a)
	}
	r.clock.add(59 * time.Minute)
	if a := s.call(http.MethodPost, api.PathReport, `{"scan_hits":1}`); a.status != http.StatusOK {
		t.Errorf("59 minutes after the end = %v", a)
	}
	r.clock.add(time.Minute)
	if a := s.call(http.MethodPost, api.PathReport, `{"scan_hits":1}`); !a.is(http.StatusUnauthorized, api.CodeSessionEnded) {
		t.Errorf("an hour after the end = %v, want session_ended", a)
	}
}

// T17: a report gives nothing and keeps nothing alive.
func TestT17ReportIsNoHeartbeat(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	before := s.row().Deadline
	r.clock.add(time.Minute)
	a := s.call(http.MethodPost, api.PathReport, `{"files":"memory"}`)
	if a.status != http.StatusOK || strings.TrimSpace(string(a.body)) != "{}" {
		t.Errorf("the answer is %v", a)
	}
	if after := s.row().Deadline; !after.Equal(before) {
		t.Errorf("the deadline went from %v to %v", before, after)
	}
}
