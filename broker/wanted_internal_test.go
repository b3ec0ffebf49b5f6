package broker

import (
	"errors"
	"strings"
	"testing"

	"github.com/runenv/action/broker/api"
)

// What a caller writes is refused without being repeated, or becomes a
// credential whose name leads back to it: today's policy judges a lease by that
// name.
func FuzzWanted(f *testing.F) {
	f.Add("vault://secret/ci/npm#token?version=3", "NPM_TOKEN")
	f.Add("vault:secret/data/ci/npm#/token/x", "X_*")
	f.Add("arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/db:password::", "DB")
	f.Add("sm://project/name#3", "*")
	f.Add("hunter2", "LD_PRELOAD")
	f.Fuzz(func(t *testing.T, text, variable string) {
		in := api.LeaseRequest{References: []api.Reference{{Ref: text, Variable: variable}, {Ref: text, Variable: variable}}}
		w, err := wanted(in)
		if err != nil {
			r, ok := errors.AsType[*refusal](err)
			if !ok || r.answer.Status != 400 || len(text) > 40 && strings.Contains(err.Error(), text) {
				t.Errorf("wanted(%q, %q) = %v", text, variable, err)
			}
			return
		}
		if len(w.credentials) != 1 || len(w.credentials[0].vars) != 2 {
			t.Fatalf("one reference, twice, is %d credentials", len(w.credentials))
		}
		c := w.credentials[0]
		if again := wantedAgain(c.ref.String()); len(again.credentials) != 1 || again.credentials[0].ref != c.ref || c.ref.Field != "" {
			t.Errorf("%q leads to %+v, want %+v", c.ref.String(), again, c.ref)
		}
		if err := c.vars[0].Check(); err != nil {
			t.Errorf("variable %q: %v", variable, err)
		}
	})
}
