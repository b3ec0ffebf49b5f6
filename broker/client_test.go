package broker_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/secret"
)

type source func(audience string) string

func (s source) Token(_ context.Context, audience string) (secret.Value, error) {
	return secret.FromString(s(audience)), nil
}

// The client and the broker understand each other.
func TestClient(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c, err := client.New(client.Config{URL: r.url, Now: r.clock.Now, Source: source(func(audience string) string {
		return r.github.Sign(r.github.GitHub(audience))
	})})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	s, err := c.Exchange(ctx, "prod")
	if err != nil {
		t.Fatal(err)
	}
	leases, err := s.Lease(ctx)
	if err != nil || names(leases) != "npm db" || string(leases[0].Env[0].Value.Reveal()) != canary {
		t.Fatalf("leases = %v, %v", names(leases), err)
	}
	kept := make(chan error, 1)
	renewed := make(chan api.Event, 1)
	go func() {
		kept <- s.KeepAlive(ctx, func(ev api.Event) {
			select {
			case renewed <- ev:
			default: // one is enough
			}
		})
	}()
	r.until("the client is told of a renewal", func() bool {
		r.clock.add(100 * time.Millisecond) // within the session's limits
		if _, err := s.Renew(ctx, leases[1]); err != nil {
			t.Errorf("renew: %v", err)
		}
		return len(renewed) > 0
	})
	if ev := <-renewed; ev.Event != api.EventRenewed || ev.Lease.ID != leases[1].ID {
		t.Errorf("event = %+v", ev)
	}
	ended, err := s.End(ctx)
	if err != nil || len(ended.Leases) != 2 || ended.Leases[1].State != "revoked" {
		t.Errorf("end = %+v, %v", ended, err)
	}
	if e, ok := errors.AsType[*client.EndedError](<-kept); !ok || e.Reason != "client" {
		t.Errorf("KeepAlive = %v, want the session's end", e)
	}
	if r.vault.Leases() != 0 || r.vault.Tokens() != 0 {
		t.Errorf("%d leases and %d tokens live on in Vault", r.vault.Leases(), r.vault.Tokens())
	}
}

// So do they where session and leases are one request.
func TestClientExchangeAndLease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c, err := client.New(client.Config{URL: r.url, Now: r.clock.Now, Source: source(func(audience string) string {
		return r.github.Sign(r.github.GitHub(audience))
	})})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	s, leases, err := c.ExchangeAndLease(ctx, "prod", api.LeaseRequest{})
	if err != nil || names(leases) != "npm db" || string(leases[0].Env[0].Value.Reveal()) != canary {
		t.Fatalf("leases = %v, %v", names(leases), err)
	}
	more, err := s.Lease(ctx, "db")
	if err != nil || names(more) != "db" {
		t.Errorf("more leases = %v, %v", names(more), err)
	}
	ended, err := s.End(ctx)
	if err != nil || len(ended.Leases) != 3 || r.vault.Leases() != 0 || r.vault.Tokens() != 0 {
		t.Errorf("end = %+v, %v; %d leases and %d tokens live on in Vault", ended, err, r.vault.Leases(), r.vault.Tokens())
	}
	_, _, err = c.ExchangeAndLease(ctx, "prod", api.LeaseRequest{Leases: []string{"db", "secret-lease"}})
	refused, ok := errors.AsType[*client.Error](err)
	if !ok || refused.Refusal.Code != api.CodeAccessDenied || refused.Refusal.Lease != "secret-lease" || refused.Refusal.Claims["run_id"] == nil {
		t.Errorf("another role's lease = %v", err)
	}
}
