package broker

import (
	"net/http"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/shape"
)

// explain says what leases would deliver, to whoever could take them, and takes
// none. It tells names that are in the broker's file, and nothing of where a
// back end keeps what.
func (b *Broker) explain(w http.ResponseWriter, r *http.Request, request string) error {
	s, proof, err := b.holder(r)
	if err != nil {
		return err
	}
	var in api.LeaseRequest
	if err := api.Decode(r.Body, api.MaxRequest, &in); err != nil {
		return badRequest("the body isn't a lease request", err)
	}
	if len(in.Replaces) > 0 {
		return badRequest("nothing is replaced by an explanation", nil)
	}
	asked, err := wanted(in)
	if err != nil {
		return err
	}
	if err := b.cfg.Store.UseProof(r.Context(), b.cfg.Now(), proof); err != nil {
		return err
	}
	g, err := b.authorise(s, asked)
	if err == nil {
		err = collision(g.definitions)
	}
	if err != nil {
		return b.refuseLeases(r, request, s, g, err)
	}
	answer := api.Explanation{Leases: []api.Explained{}}
	for _, def := range g.definitions {
		answer.Leases = append(answer.Leases, explained(def))
	}
	return writeJSON(w, http.StatusOK, answer)
}

func explained(def lease.Definition) api.Explained {
	out := api.Explained{
		Name: def.Name, Provider: def.ProviderName, Revocability: string(def.Provides.Revocability()),
		TTLSeconds: int64(def.TTL.Seconds()), Variables: []api.ExplainedVar{},
	}
	for _, v := range def.Env {
		name := v.Name
		if name == shape.All {
			name = v.Prefix + "*"
		}
		out.Variables = append(out.Variables, api.ExplainedVar{Name: name, Mask: v.Mask, File: v.FileName() != "", Optional: v.Optional})
	}
	return out
}
