package client_test

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client/clienttest"
)

func TestReportGoesAlsoAfterTheEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	s, err := w.Exchange(t.Context(), "demo")
	if err != nil {
		t.Fatal(err)
	}
	first := api.Report{Files: api.FilesDisk, Scan: "scrub", ScanIgnore: []string{"*.tfplan"}}
	w.Next("POST "+api.PathReport, clienttest.Refuse(http.StatusServiceUnavailable, api.CodeTemporarily, ""))
	if err := s.Report(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if _, err := s.End(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := api.Report{ScanHits: 2}
	if err := s.Report(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]api.Report{first, second}, w.Sessions()[s.ID()].Reports); diff != "" {
		t.Errorf("the reports differ (-want +got):\n%s", diff)
	}
}

func TestReportThatSaysNothingIsntSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	s, err := w.Exchange(t.Context(), "demo")
	if err != nil {
		t.Fatal(err)
	}
	for _, report := range []api.Report{{}, {Files: "ram"}, {ScanIgnore: []string{"a\nb"}}} {
		if err := s.Report(t.Context(), report); err == nil {
			t.Errorf("Report(%+v): no error", report)
		}
	}
	if n := w.Count("POST " + api.PathReport); n != 0 {
		t.Errorf("%d reports were sent", n)
	}
}
