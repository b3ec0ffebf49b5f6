package client_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/client/clienttest"
	"github.com/runenv/action/secret"
)

const (
	exchangeRoute = "POST " + api.PathToken
	leaseRoute    = "POST " + api.PathLeases
	endRoute      = "DELETE " + api.PathSession
)

func TestExchangeAndLease(t *testing.T) {
	t.Parallel()
	key := api.Lease{Env: []api.Var{{Name: "key", Value: api.NewValue(secret.FromString("k3y"))}}}
	for name, tt := range map[string]struct {
		request api.LeaseRequest
		want    string
	}{
		"all":                     {api.LeaseRequest{}, "db npm"},
		"by name":                 {api.LeaseRequest{Leases: []string{"npm"}}, "npm"},
		"by reference":            {api.LeaseRequest{References: []api.Reference{{Ref: "vault://secret/tls#key", Variable: "TLS_KEY_FILE"}}}, "vault://secret/tls"},
		"by name and reference":   {api.LeaseRequest{Leases: []string{"db"}, References: []api.Reference{{Ref: "vault://secret/tls#key", Variable: "KEY"}}}, "db vault://secret/tls"},
		"by what has to be coded": {api.LeaseRequest{References: []api.Reference{{Ref: "vault://secret/a+b=c#key", Variable: "KEY"}}}, "vault://secret/a+b=c"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, clienttest.Config{TLS: true, References: map[string]api.Lease{"vault://secret/tls": key, "vault://secret/a+b=c": key}})
			s, leases, err := w.ExchangeAndLease(t.Context(), "demo", tt.request)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, l := range leases {
				got = append(got, l.Name)
				if len(l.Env)+len(l.Files) == 0 {
					t.Errorf("lease %s has no value", l.Name)
				}
			}
			if strings.Join(got, " ") != tt.want || w.Count(exchangeRoute) != 1 || w.Count(leaseRoute) != 0 {
				t.Errorf("leases %q by %v, want %q by one request", got, w.Calls(), tt.want)
			}
			// It is a session as any, which may lease more.
			if more, err := s.Lease(t.Context(), "npm"); err != nil || len(more) != 1 {
				t.Errorf("Lease = %v, %v", more, err)
			}
			ended, err := s.End(t.Context())
			if err != nil || len(ended.Leases) != len(leases)+1 || w.Sessions()[s.ID()].Ended != "client" {
				t.Errorf("End = %+v, %v", ended, err)
			}
		})
	}
}

func TestExchangeAndLeaseRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	s, leases, err := w.ExchangeAndLease(t.Context(), "demo", api.LeaseRequest{Leases: []string{"db", "nonesuch"}})
	const want = `exchanging the CI token for role "demo" and its leases: access_denied (lease nonesuch): `
	refused, ok := errors.AsType[*client.Error](err)
	if s != nil || leases != nil || !ok || refused.Refusal.Lease != "nonesuch" || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("ExchangeAndLease = %v, %v, %v, want %s", s, leases, err, want)
	}
	if len(w.Sessions()) != 0 || w.Count(exchangeRoute) != 1 {
		t.Errorf("%d sessions by %v", len(w.Sessions()), w.Calls())
	}
	_, _, err = w.ExchangeAndLease(t.Context(), "no role", api.LeaseRequest{})
	if err == nil || w.Count(exchangeRoute) != 1 {
		t.Errorf("a name that no role has: %v by %v", err, w.Calls())
	}
}

// What can't be sent isn't, and no token is taken for it where that is known.
func TestExchangeAndLeaseTooLarge(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	for name, request := range map[string]api.LeaseRequest{
		"101 leases":        {Leases: make([]string, api.MaxLeaseNames), References: make([]api.Reference, 1)},
		"64 KiB and more":   {Leases: []string{strings.Repeat("x", api.MaxRequest)}},
		"128 KiB as a form": {Leases: []string{strings.Repeat("%", api.MaxRequest-100)}},
	} {
		if _, _, err := w.ExchangeAndLease(t.Context(), "demo", request); err == nil || !strings.Contains(err.Error(), "the most are") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if w.Count(exchangeRoute) != 0 {
		t.Errorf("calls = %v", w.Calls())
	}
}

// A session whose leases can't be used isn't left to live on.
func TestExchangeAndLeaseUnusable(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{Roles: map[string][]api.Lease{"demo": {{Name: "demo", Files: []api.File{file("A", "../a", "", 9)}}}}})
	s, leases, err := w.ExchangeAndLease(t.Context(), "demo", api.LeaseRequest{})
	if s != nil || leases != nil || err == nil || strings.Contains(err.Error(), canary) {
		t.Errorf("ExchangeAndLease = %v, %v, %v", s, leases, err)
	}
	for id, s := range w.Sessions() {
		if s.Ended != "client" {
			t.Errorf("session %s has ended by %q, want client", id, s.Ended)
		}
	}
	const session = `{"access_token":"a","token_type":"DPoP","end_token":"e","hard_end":"2126-01-01T00:00:00Z"`
	for name, body := range map[string]string{
		"no leases":    session + `}`,
		"null":         session + `,"leases":null}`,
		"none":         session + `,"leases":[]}`,
		"a checkpoint": session + `,"checkpoint":"x"}`,
	} {
		ends := w.Count(endRoute)
		w.Next(exchangeRoute, clienttest.Answer(http.StatusOK, nil, body))
		if _, _, err := w.ExchangeAndLease(t.Context(), "demo", api.LeaseRequest{}); err == nil || !strings.Contains(err.Error(), "has no leases") {
			t.Errorf("%s: %v", name, err)
		}
		if w.Count(endRoute) == ends {
			t.Errorf("%s: nobody ended the session", name)
		}
	}
	// Who asks for none gets none.
	w.Next(exchangeRoute, clienttest.Answer(http.StatusOK, nil, session+`}`))
	if _, err := w.Exchange(t.Context(), "demo"); err != nil {
		t.Errorf("Exchange = %v", err)
	}
}

// Each try has the same key and body, so that a broker takes it for what it is.
func TestExchangeAndLeaseRetries(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	w.Next(exchangeRoute, clienttest.Lose, clienttest.Refuse(http.StatusServiceUnavailable, api.CodeProviderUnavailable, ""), clienttest.Lose)
	s, leases, err := w.ExchangeAndLease(t.Context(), "demo", api.LeaseRequest{})
	if err != nil || len(leases) != 2 {
		t.Fatalf("ExchangeAndLease = %v, %v", leases, err)
	}
	for id, other := range w.Sessions() {
		if (id == s.ID()) != (other.Ended == "") {
			t.Errorf("session %s has ended by %q", id, other.Ended)
		}
	}
	if len(w.Sessions()) != 3 {
		t.Errorf("%d sessions, want 3", len(w.Sessions()))
	}

	w.Next(exchangeRoute, clienttest.Refuse(http.StatusBadGateway, api.CodeProviderDenied, ""))
	before := w.Count(exchangeRoute)
	if _, _, err := w.ExchangeAndLease(t.Context(), "demo", api.LeaseRequest{}); err == nil || w.Count(exchangeRoute) != before+1 {
		t.Errorf("a back end's refusal: %v after %d calls", err, w.Count(exchangeRoute)-before)
	}
}

func TestExchangeAndLeaseStopsWithTheContext(t *testing.T) {
	t.Parallel()
	w := newWorld(t, clienttest.Config{})
	reached := make(chan struct{})
	w.Next(exchangeRoute, clienttest.Stall(reached))
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	go func() {
		<-reached
		cancel(enough)
	}()
	_, _, err := w.ExchangeAndLease(ctx, "demo", api.LeaseRequest{})
	if !errors.Is(err, enough) || w.Count(exchangeRoute) != 1 {
		t.Errorf("ExchangeAndLease = %v after %v", err, w.Calls())
	}
}
