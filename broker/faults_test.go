package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker"
	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// all are every path of the broker.
func all() []endpoint {
	return append(endpoints("l-x"),
		endpoint{http.MethodPost, api.PathToken, ""},
		endpoint{http.MethodGet, api.PathDiscovery, ""}, endpoint{http.MethodGet, api.PathOIDC, ""}, endpoint{http.MethodGet, api.PathJWKS, ""},
		endpoint{http.MethodGet, api.PathLive, ""}, endpoint{http.MethodGet, api.PathReady, ""}, endpoint{http.MethodGet, api.PathMetrics, ""},
		endpoint{http.MethodGet, "/nonesuch", ""}, endpoint{http.MethodOptions, api.PathToken, ""})
}

func TestT25Browser(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	for _, origin := range []string{"https://evil.example.com", r.url, "null", ""} {
		for _, e := range all() {
			a := s.call(e.method, e.path, e.body, header("Origin", origin))
			if !a.is(http.StatusForbidden, api.CodeAccessDenied) || a.header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s %s from origin %q = %v, want 403 access_denied", e.method, e.path, origin, a)
			}
		}
	}
	// A name that was bound to loopback (DNS rebinding).
	port := r.url[strings.LastIndex(r.url, ":"):]
	for _, name := range []string{"evil.example.com" + port, "localhost" + port, "127.0.0.1", "127.0.0.2" + port, "127.0.0.1" + port + "0"} {
		for _, e := range all() {
			if a := s.call(e.method, e.path, e.body, host(name)); !a.is(http.StatusForbidden, api.CodeAccessDenied) {
				t.Errorf("%s %s of host %s = %v, want 403 access_denied", e.method, e.path, name, a)
			}
		}
	}
	if !s.row().EndedAt.IsZero() {
		t.Error("the session was ended")
	}
}

// A provider that panics costs its own lease, and shows nothing.
func TestT18PanicOfAProvider(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.odd.set(func(context.Context, providers.Request) (*providers.Credential, error) {
		panic(canary + ": index out of range")
	})
	s := r.open("odd")
	a := s.call(http.MethodPost, api.PathLeases, leaseBody("npm", "odd"))
	if !a.is(http.StatusServiceUnavailable, api.CodeProviderUnavailable) || a.refusal().Lease != "odd" {
		t.Errorf("lease = %v, want 503 provider_unavailable of odd", a)
	}
	// It may have issued something.
	if got := s.states(); got != "npm=void odd=revoking" {
		t.Errorf("states = %q", got)
	}
	if !strings.Contains(r.log.String(), "a provider panicked") {
		t.Error("the log doesn't say that a provider panicked")
	}
	r.odd.set(func(_ context.Context, req providers.Request) (*providers.Credential, error) {
		return &providers.Credential{
			Fields: map[string]secret.Value{"value": secret.FromString("fine")}, Handle: secret.FromString("h"),
			Expires: r.clock.Now().Add(req.TTL), Revocability: providers.Revocable,
		}, nil
	})
	if got := names(s.lease("odd")); got != "odd" {
		t.Errorf("the next lease = %q", got)
	}
}

func TestT18PanicOfAHandler(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	r.store.fail("Heartbeat") // panics with the canary
	a := s.call(http.MethodPost, api.PathHeartbeat, "")
	if !a.is(http.StatusInternalServerError, api.CodeServerError) || a.refusal().RequestID == "" {
		t.Errorf("heartbeat = %v, want 500 server_error with a request id", a)
	}
	if log := r.log.String(); !strings.Contains(log, a.refusal().RequestID) || !strings.Contains(log, "a handler panicked") {
		t.Errorf("the log doesn't say that request %s panicked", a.refusal().RequestID)
	}
	if r.metric(`runenv_calls_total{outcome="server_error",route="POST `+api.PathHeartbeat+`"}`) != 1 {
		t.Error("the panic isn't counted")
	}
	r.store.fail()
	if a := s.call(http.MethodPost, api.PathHeartbeat, ""); a.status != http.StatusOK {
		t.Errorf("the next heartbeat = %v", a)
	}
}

// A provider's error text reaches the log at most, never the caller.
func TestT18ErrorOfAProvider(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.odd.set(func(context.Context, providers.Request) (*providers.Credential, error) {
		return nil, errors.New("host db-7.internal: no route")
	})
	s := r.open("odd")
	a := s.call(http.MethodPost, api.PathLeases, leaseBody("odd"))
	if !a.is(http.StatusServiceUnavailable, api.CodeProviderUnavailable) || strings.Contains(string(a.body), "db-7") {
		t.Errorf("lease = %v, want the class alone", a)
	}
	if !strings.Contains(r.log.String(), "db-7.internal") {
		t.Error("the log doesn't say why")
	}
	for _, e := range r.entries() {
		if strings.Contains(string(e.Body), "db-7") {
			t.Errorf("the audit log has the provider's text: %s", e.Body)
		}
	}
}

// What a caller puts into paths, headers and names isn't copied to the log as
// it is, since it may be a token put in the wrong place.
func TestT18TokenInTheWrongPlace(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	token := r.jobToken()
	s.call(http.MethodDelete, api.PathLeases+"/"+token[:900], "")
	r.hide(token[:900])
	s.call(http.MethodPost, api.PathLeases, leaseBody("npm"), header(api.HeaderIdempotency, token))
	r.send(http.MethodPost, api.PathToken+"?subject_token="+token, form("x", "prod").Encode(), header("Content-Type", formType), dpop(r.proof(s.key, http.MethodPost, api.PathToken, "")))
	r.send(http.MethodPost, api.PathHeartbeat, "", authorization(token, token), header(api.HeaderDPoP, token))
	r.send(http.MethodPost, api.PathToken, "subject_token="+token+"&%zz", header("Content-Type", formType))
	r.exchange(s.key, "x", "prod", header(api.HeaderDPoP, token))
}

func TestP3P9StoreGone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	id := s.lease("db")[0].ID
	token := r.jobToken()
	r.stop()
	if err := r.sqlite.Close(); err != nil {
		t.Fatal(err)
	}
	if a := r.exchange(newKey(t), token, "prod"); !a.is(http.StatusInternalServerError, api.CodeServerError) || a.refusal().Claims != nil {
		t.Errorf("exchange = %v, want 500 and no claims", a)
	}
	for _, e := range endpoints(id) {
		for _, options := range [][]option{s.proved(e.method, e.path), {authorization("Bearer", s.end)}} {
			a := r.send(e.method, e.path, e.body, options...)
			if a.status < 500 && !a.is(http.StatusUnauthorized, api.CodeInvalidToken) {
				t.Errorf("%s %s = %v, want a refusal", e.method, e.path, a)
			}
		}
	}
	r.clock.add(2 * time.Second)
	if a := r.send(http.MethodGet, api.PathReady, ""); !a.is(http.StatusServiceUnavailable, api.CodeTemporarily) {
		t.Errorf("ready = %v, want 503", a)
	}
	if a := r.send(http.MethodGet, api.PathLive, ""); a.status != http.StatusNoContent {
		t.Errorf("live = %v", a)
	}
	if r.metric(`runenv_leases_issued_total{provider="vault"}`) != 1 {
		t.Error("the other metrics went with the store")
	}
	if !strings.Contains(r.log.String(), `"level":"ERROR"`) {
		t.Error("the log doesn't call it an error")
	}
}

// P3, verb by verb: what can't be recorded doesn't leave.
func TestP3StoreUnwritable(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"CreateSession", "Intend", "Advance"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			s := r.open("prod")
			s.lease("db") // the login is there
			r.store.fail(verb)
			if verb == "CreateSession" {
				if a := r.exchange(newKey(t), r.jobToken(), "prod"); !a.is(http.StatusInternalServerError, api.CodeServerError) {
					t.Errorf("exchange = %v, want 500", a)
				}
				return
			}
			asked := []string{leaseBody("npm", "db"), leaseBody("db")}
			if verb == "Intend" {
				asked = append(asked, leaseBody("npm")) // which needs no other
			}
			for _, body := range asked {
				a := s.call(http.MethodPost, api.PathLeases, body)
				if !a.is(http.StatusInternalServerError, api.CodeServerError) || strings.Contains(string(a.body), "value") {
					t.Errorf("lease %s = %v, want 500 and no value", body, a)
				}
			}
			r.store.fail()
			if strings.Contains(s.states(), "disclosed") {
				t.Errorf("states = %q", s.states())
			}
		})
	}
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ready := func(want int) {
		t.Helper()
		a := r.send(http.MethodGet, api.PathReady, "")
		if a.status != want || (want != http.StatusNoContent && a.refusal().Code != api.CodeTemporarily) {
			t.Errorf("ready = %v, want %d", a, want)
		}
	}
	r.github.Deny(http.StatusInternalServerError)
	ready(http.StatusServiceUnavailable)
	if !strings.Contains(r.log.String(), "keys_unavailable") {
		t.Error("the log doesn't say why")
	}
	r.github.Fail(nil)
	r.clock.add(61 * time.Second) // the pace of fetches
	ready(http.StatusNoContent)
	r.clock.add(time.Second)
	r.store.fail("Ready")
	ready(http.StatusServiceUnavailable)
	r.store.fail()
	ready(http.StatusServiceUnavailable) // it looks once a second
	r.clock.add(time.Second)
	ready(http.StatusNoContent)
}

func TestDiscovery(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var d api.Discovery
	a := r.send(http.MethodGet, api.PathDiscovery, "")
	if err := json.Unmarshal(a.body, &d); err != nil || a.status != http.StatusOK {
		t.Fatalf("discovery = %v (%v)", a, err)
	}
	want := api.Discovery{Issuer: r.url, TokenEndpoint: r.url + api.PathToken, Version: "test", Features: []string{"dpop", "heartbeat", "watch", "renew", "references", "replaces", "files", "report", "explain", "leases-at-exchange"}, AuditKey: d.AuditKey}
	if diff := cmp.Diff(want, d); diff != "" || !strings.HasPrefix(d.AuditKey, "broker.test+") {
		t.Errorf("discovery: %s, audit key %q", diff, d.AuditKey)
	}
	for path, want := range map[string]string{api.PathOIDC: `"issuer":"` + r.url + `"`, api.PathJWKS: `"keys":[`} {
		a := r.send(http.MethodGet, path, "")
		if a.status != http.StatusOK || !strings.Contains(string(a.body), want) || a.header.Get("Content-Type") != "application/json" || strings.Contains(string(a.body), `"d":`) {
			t.Errorf("%s = %v %s", path, a, a.body)
		}
	}
	for _, e := range []endpoint{{http.MethodGet, api.PathToken, ""}, {http.MethodPut, api.PathLeases, ""}, {http.MethodPost, api.PathDiscovery, ""}, {http.MethodGet, "/", ""}} {
		if a := r.send(e.method, e.path, e.body); a.status != http.StatusNotFound && a.status != http.StatusMethodNotAllowed {
			t.Errorf("%s %s = %v", e.method, e.path, a)
		}
	}
}

func TestT21FloodFromOneAddress(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	limited := 0
	for range 4010 {
		a := r.send(http.MethodPost, api.PathToken, "")
		switch {
		case a.is(http.StatusBadRequest, api.CodeInvalidRequest):
		case a.is(http.StatusTooManyRequests, api.CodeRateLimited) && a.header.Get("Retry-After") == "1":
			limited++
		default:
			t.Fatalf("exchange = %v", a)
		}
	}
	if limited != 10 {
		t.Errorf("%d of 4010 exchanges at one moment were limited, want 10", limited)
	}
	r.clock.add(time.Second)
	if a := r.exchange(newKey(t), r.jobToken(), "prod"); a.status != http.StatusOK {
		t.Errorf("a second later: exchange = %v", a)
	}
}

// A session that floods is slowed, and can be ended all the same.
func TestT21FloodFromOneSession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s, other := r.open("prod"), r.open("prod")
	limited := 0
	for range 205 {
		switch a := s.call(http.MethodPost, api.PathHeartbeat, ""); {
		case a.status == http.StatusOK:
		case a.is(http.StatusTooManyRequests, api.CodeRateLimited):
			limited++
		default:
			t.Fatalf("heartbeat = %v", a)
		}
	}
	if limited != 5 {
		t.Errorf("%d of 205 heartbeats at one moment were limited, want 5", limited)
	}
	if a := s.call(http.MethodPost, api.PathLeases, leaseBody("db")); !a.is(http.StatusTooManyRequests, api.CodeRateLimited) || r.vault.Issued() != 0 {
		t.Errorf("lease = %v", a)
	}
	if a := other.call(http.MethodPost, api.PathHeartbeat, ""); a.status != http.StatusOK {
		t.Errorf("the neighbour's heartbeat = %v", a)
	}
	if a := s.call(http.MethodDelete, api.PathSession, ""); a.status != http.StatusOK {
		t.Errorf("end = %v", a)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	if _, err := broker.New(broker.Config{}); err == nil {
		t.Error("New without anything = nil, want an error")
	}
	r := newRig(t)
	if err := r.broker.Swap(t.Context(), &broker.Rules{}); err == nil {
		t.Error("Swap to no rules = nil, want an error")
	}
	r.store.fail("Record")
	old := r.file.Compiled.Digest()
	err := r.broker.Swap(t.Context(), &broker.Rules{Policy: r.parse(strings.Replace(brokerFile, "sessions: 2", "sessions: 9", 1)).Compiled, Verifier: r.verifier(r.clock.Now, nil)})
	r.store.fail()
	if err == nil {
		t.Error("Swap with an unwritable audit log = nil, want an error")
	}
	if s := r.open("prod"); r.audited(s.id)[0].Policy != old {
		t.Error("a policy that couldn't be recorded is in force")
	}
}
