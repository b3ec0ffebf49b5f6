package broker

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/store"
)

// reportGrace is how long after a session's end its client may still report:
// the leak scan comes after the end, and a large workspace takes a while.
const reportGrace = time.Hour

// report records what a session's client says that it did.
func (b *Broker) report(w http.ResponseWriter, r *http.Request, request string) error {
	s, proof, err := b.authenticate(r)
	now := b.cfg.Now()
	over := s.Deadline
	if !s.EndedAt.IsZero() && s.EndedAt.Before(over) {
		over = s.EndedAt
	}
	switch {
	case errors.Is(err, store.ErrEnded) && now.Sub(over) < reportGrace:
	case err != nil:
		return err
	}
	if !b.byReport.allow(s.ID, now) {
		return errTooMany
	}
	var in api.Report
	if err := api.Decode(r.Body, api.MaxReport, &in); err != nil {
		return badRequest("the body isn't a report", err)
	}
	if err := in.Check(); err != nil {
		return badRequest(err.Error(), nil)
	}
	if err := b.cfg.Store.UseProof(r.Context(), now, proof); err != nil {
		return err
	}
	rec := audit.Record{Time: now, Event: "session.reported", Request: request, Session: s.ID, Role: s.Role, Project: s.Project, Issuer: s.Issuer}
	for _, said := range []struct{ what, how string }{{"files", in.Files}, {"scan", in.Scan}} {
		if said.how != "" {
			rec.Notes = append(rec.Notes, said.what+": "+said.how)
		}
	}
	if in.ScanHits > 0 {
		rec.Notes = append(rec.Notes, fmt.Sprintf("scan hits: %d", in.ScanHits))
	}
	for _, glob := range in.ScanIgnore {
		rec.Notes = append(rec.Notes, "scan ignores: "+glob)
	}
	if err := b.record(r.Context(), rec); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct{}{})
}
