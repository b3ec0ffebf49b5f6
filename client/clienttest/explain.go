package clienttest

import (
	"net/http"
	"slices"

	"github.com/runenv/action/broker/api"
)

// explain says what the leases of a session's role have in [Config].
func (b *Broker) explain(w http.ResponseWriter, r *http.Request, s *Session, p proof) {
	var in api.LeaseRequest
	if api.Decode(r.Body, api.MaxRequest, &in) != nil || in.Leases == nil {
		refuse(w, http.StatusBadRequest, api.CodeInvalidRequest, "the body isn't a lease request")
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.count(p) {
		refuse(w, http.StatusUnauthorized, api.CodeInvalidDPoP, "the proof was used before")
		return
	}
	named, refusal := b.named(in.References)
	if refusal != nil {
		answerError(w, refusal.Status, refusal)
		return
	}
	var out []api.Lease
	for _, lease := range b.cfg.Roles[s.Role] {
		if len(in.Leases)+len(in.References) == 0 || slices.Contains(in.Leases, lease.Name) {
			out = append(out, lease)
		}
	}
	explanation := api.Explanation{Leases: []api.Explained{}}
	for _, lease := range append(out, named...) {
		e := api.Explained{Name: lease.Name, Provider: lease.Provider, Revocability: lease.Revocability, Variables: []api.ExplainedVar{}}
		for _, v := range lease.Env {
			e.Variables = append(e.Variables, api.ExplainedVar{Name: v.Name, Mask: v.Mask})
		}
		for _, f := range lease.Files {
			e.Variables = append(e.Variables, api.ExplainedVar{Name: f.Variable, Mask: f.Mask, File: true})
		}
		explanation.Leases = append(explanation.Leases, e)
	}
	answer(w, explanation)
}
