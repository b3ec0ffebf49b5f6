package client_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client/clienttest"
	"github.com/runenv/action/secret"
)

func field(name, value string) api.Var {
	return api.Var{Name: name, Value: api.NewValue(secret.FromString(value))}
}

func variables(leases []api.Lease) map[string]string {
	out := map[string]string{}
	for _, l := range leases {
		for _, v := range l.Env {
			out[v.Name] = l.Name + " " + string(v.Value.Reveal())
		}
	}
	return out
}

func TestReferences(t *testing.T) {
	t.Parallel()
	const creds, token = "vault://database/creds/app", "vault://secret/ci/npm"
	w := newWorld(t, clienttest.Config{References: map[string]api.Lease{
		creds: {Provider: "vault", Revocability: "revocable", Env: []api.Var{field("username", "u"), field("password", "p")}},
		token: {Provider: "vault", Revocability: "static", Env: []api.Var{field("token", "t")}},
	}})
	s, err := w.Exchange(t.Context(), "demo")
	if err != nil {
		t.Fatal(err)
	}
	request := api.LeaseRequest{Leases: []string{"npm"}, References: []api.Reference{
		{Ref: creds + "#username", Variable: "DB_USER"}, {Ref: token, Variable: "TOKEN"}, {Ref: creds + "#password", Variable: "DB_PASSWORD"},
		{Ref: creds, Variable: "ALL_*"},
	}}
	leases, err := s.LeaseAll(t.Context(), request)
	if err != nil || len(leases) != 3 {
		t.Fatalf("LeaseAll = %d leases, %v, want 3: those of one secret are one", len(leases), err)
	}
	want := map[string]string{
		"NPM_TOKEN": "npm npm-value", "DB_USER": creds + " u", "DB_PASSWORD": creds + " p", "TOKEN": token + " t",
		"ALL_USERNAME": creds + " u", "ALL_PASSWORD": creds + " p",
	}
	if diff := cmp.Diff(want, variables(leases)); diff != "" {
		t.Error(diff)
	}
	again, err := s.Renew(t.Context(), leases[1], request.References...)
	if err != nil || again.ID == leases[1].ID || len(again.Env) != 4 || again.Name != creds {
		t.Errorf("Renew = %+v, %v, want it leased anew with its four variables", again, err)
	}
	if _, err := s.Renew(t.Context(), leases[2]); err == nil || !strings.Contains(err.Error(), "references aren't given") {
		t.Errorf("Renew without its references = %v", err)
	}
	_, err = s.LeaseAll(t.Context(), api.LeaseRequest{References: []api.Reference{{Ref: "vault://secret/other", Variable: "X"}}})
	if refusal, ok := errors.AsType[*api.Error](err); !ok || refusal.Code != api.CodeAccessDenied {
		t.Errorf("a reference that isn't granted = %v", err)
	}
	_, err = s.LeaseAll(t.Context(), api.LeaseRequest{Leases: []string{"npm"}, Replaces: []string{"l-unknown"}})
	if refusal, ok := errors.AsType[*api.Error](err); !ok || refusal.Status != http.StatusNotFound {
		t.Errorf("replacing what isn't there = %v", err)
	}
	if _, err := s.LeaseAll(t.Context(), api.LeaseRequest{References: make([]api.Reference, api.MaxLeaseNames+1)}); err == nil {
		t.Error("too many references were sent")
	}
}
