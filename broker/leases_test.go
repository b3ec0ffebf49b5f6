package broker_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/providers/vault/vaulttest"
)

func names(leases []api.Lease) string {
	var out []string
	for _, l := range leases {
		out = append(out, l.Name)
	}
	return strings.Join(out, " ")
}

func TestLease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	a := s.call(http.MethodPost, api.PathLeases, leaseBody("db", "npm"))
	leases := s.leased(a)
	if names(leases) != "db npm" {
		t.Fatalf("leases = %v", names(leases))
	}
	for name, want := range map[string]string{"Cache-Control": "no-store", "Content-Type": "application/json"} {
		if a.header.Get(name) != want {
			t.Errorf("header %s = %q, want %q", name, a.header.Get(name), want)
		}
	}
	db, npm := leases[0], leases[1]
	if db.State != "active" || db.Revocability != "revocable" || !db.Renewable || db.ExpiresAt.IsZero() || len(db.Env) != 2 ||
		db.Env[0].Name != "DB_USER" || !strings.HasPrefix(string(db.Env[0].Value.Reveal()), "v-") {
		t.Errorf("db = %+v", db)
	}
	if npm.State != "disclosed" || npm.Revocability != "static" || npm.Renewable || !npm.ExpiresAt.IsZero() || len(npm.Env) != 2 ||
		string(npm.Env[0].Value.Reveal()) != canary || !npm.Env[0].Mask || npm.Env[1].Mask {
		t.Errorf("npm = %+v", npm)
	}
	// P3: the record that says so is there.
	if got := events(r.audited(a.header.Get(api.HeaderRequestID))); got != "login.issued lease.issued lease.disclosed" {
		t.Errorf("audit = %q", got)
	}
	if got := names(s.lease()); got != "npm db" {
		t.Errorf("no names give %q, want all of the role", got)
	}
	if a := s.call(http.MethodPost, api.PathLeases, "{}"); names(s.leased(a)) != "npm db" {
		t.Errorf("no list gives %v", a)
	}
	// Clients are witnesses of the log.
	r.until("a checkpoint", func() bool {
		var out api.Leases
		a := s.call(http.MethodPost, api.PathLeases, leaseBody("npm"))
		return json.Unmarshal(a.body, &out) == nil && strings.HasPrefix(out.Checkpoint, "broker.test\n")
	})
}

func TestP6LeaseNotInRole(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	for _, name := range []string{"secret-lease", "nonesuch", "", "db ", "DB", "\x1b[2J\n", strings.Repeat("x", 1000)} {
		a := s.call(http.MethodPost, api.PathLeases, leaseBody("db", "npm", name))
		e := a.refusal()
		if !a.is(http.StatusForbidden, api.CodeAccessDenied) || e.Description != "the RunEnv role doesn't have this lease" {
			t.Errorf("%.20q = %v, want 403 access_denied", name, a)
		}
		if strings.ContainsAny(e.Lease, "\x1b\n") || len(e.Lease) > 63 {
			t.Errorf("%.20q: the refusal names %q", name, e.Lease)
		}
		if got := events(r.audited(e.RequestID)); got != "lease.refused(access_denied)" {
			t.Errorf("%.20q: audit = %q", name, got)
		}
	}
	if s.states() != "" || r.vault.Issued() != 0 || len(r.vault.Requests("")) != 0 {
		t.Errorf("states %q, %d issued, %d requests to Vault: want none", s.states(), r.vault.Issued(), len(r.vault.Requests("")))
	}
}

func TestLeaseRefusesRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	var many []string
	for i := range api.MaxLeaseNames + 1 {
		many = append(many, fmt.Sprint("l", i))
	}
	const bad = api.CodeInvalidRequest
	tests := []struct {
		name, body string
		status     int
		options    []option
	}{
		{"nothing", "", 400, nil},
		{"an unknown field", `{"leases":["npm"],"role":"prod"}`, 400, nil},
		{"a doubled key", `{"leases":["npm"],"leases":["db"]}`, 400, nil},
		{"a key in two cases", `{"leases":["npm"],"Leases":["db"]}`, 400, nil},
		{"data behind", `{"leases":["npm"]}{}`, 400, nil},
		{"a list", `["npm"]`, 400, nil},
		{"a number for a name", `{"leases":[7]}`, 400, nil},
		{"a name for a list", `{"leases":"npm"}`, 400, nil},
		{"a duplicate", leaseBody("npm", "db", "npm"), 400, nil},
		{"101 names", leaseBody(many...), 400, nil},
		{"nested deeply", `{"leases":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}`, 400, nil},
		{"64 KiB and 1", leaseBody(strings.Repeat("x", api.MaxRequest)), 413, nil},
		{"a long Idempotency-Key", leaseBody("npm"), 400, []option{header(api.HeaderIdempotency, strings.Repeat("x", 129))}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if a := s.call(http.MethodPost, api.PathLeases, tt.body, tt.options...); !a.is(tt.status, bad) {
				t.Errorf("lease = %v, want %d %s", a, tt.status, bad)
			}
		})
	}
	if s.states() != "" {
		t.Errorf("states = %q, want none", s.states())
	}
}

func TestLeaseLimit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod") // four leases
	var id string
	for range 4 {
		id = s.lease("db")[0].ID
	}
	over := func() {
		t.Helper()
		a := s.call(http.MethodPost, api.PathLeases, leaseBody("db"))
		if !a.is(http.StatusForbidden, api.CodeLimitExceeded) || events(r.audited(a.refusal().RequestID)) != "lease.refused(limit_exceeded)" {
			t.Errorf("fifth lease = %v", a)
		}
	}
	over()
	if r.vault.Issued() != 4 {
		t.Errorf("%d issued, want 4", r.vault.Issued())
	}
	if a := s.call(http.MethodDelete, api.PathLeases+"/"+id, ""); a.status != http.StatusOK {
		t.Fatal(a)
	}
	r.until("the lease is revoked", func() bool { return r.vault.Leases() == 3 })
	s.lease("db")
	over()
}

func TestLeaseIdempotency(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s, other := r.open("prod"), r.open("prod")
	ask := func(s *session, key, body string) api.Lease {
		t.Helper()
		return s.leased(s.call(http.MethodPost, api.PathLeases, body, header(api.HeaderIdempotency, key)))[0]
	}
	first := ask(s, "k1", leaseBody("db"))
	second := ask(s, "k1", leaseBody("db"))
	if second.ID == first.ID || string(second.Env[1].Value.Reveal()) == string(first.Env[1].Value.Reveal()) {
		t.Error("a repeat gave the first set again: values are kept somewhere")
	}
	state := func(l api.Lease) string {
		row, err := r.sqlite.Lease(t.Context(), l.ID)
		if err != nil {
			t.Fatal(err)
		}
		return string(row.State)
	}
	r.until("the first set is revoked", func() bool { return state(first) == "revoked" })
	for name, l := range map[string]api.Lease{
		"another body":    ask(s, "k1", leaseBody("db", "npm")),
		"another key":     ask(s, "k2", leaseBody("db")),
		"another session": ask(other, "k1", leaseBody("db")),
	} {
		if state(second) != "active" || state(l) != "active" {
			t.Errorf("%s: the sets are %s and %s, want both active", name, state(second), state(l))
		}
	}
	if r.vault.Leases() != 4 {
		t.Errorf("%d live at the back end, want 4", r.vault.Leases())
	}
}

func TestEndLease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	leases := s.lease()
	for i, want := range []string{"disclosed", "revoked"} { // P11: a static value stays valid
		for range 2 {
			a := s.call(http.MethodDelete, api.PathLeases+"/"+leases[i].ID, "")
			var ended api.Ended
			if err := json.Unmarshal(a.body, &ended); err != nil || a.status != http.StatusOK || ended.Leases[0].State != want || ended.Leases[0].Env != nil {
				t.Errorf("ending %s = %s, want %s", leases[i].Name, a.body, want)
			}
		}
	}
	if r.vault.Leases() != 0 || r.vault.Tokens() != 1 {
		t.Errorf("%d leases and %d tokens in Vault, want 0 and the session's", r.vault.Leases(), r.vault.Tokens())
	}
	a := s.call(http.MethodPost, api.PathLeases+"/"+leases[1].ID+"/renew", "")
	if !a.is(http.StatusConflict, api.CodeInvalidRequest) {
		t.Errorf("renewing an ended lease = %v, want 409", a)
	}
	a = s.call(http.MethodPost, api.PathLeases+"/"+leases[0].ID+"/renew", "")
	if !a.is(http.StatusConflict, api.CodeInvalidRequest) {
		t.Errorf("renewing a static value = %v, want 409", a)
	}
}

// P5: a lease doesn't outlive its definition's cap, nor its session.
func TestP5RenewalsEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	opened := r.clock.Now()
	db := s.lease("db")[0]
	last := db.ExpiresAt
	for range 29 {
		r.clock.add(2 * time.Minute)
		if a := s.call(http.MethodPost, api.PathHeartbeat, ""); a.status != http.StatusOK {
			t.Fatal(a)
		}
		a := s.call(http.MethodPost, api.PathLeases+"/"+db.ID+"/renew", "")
		var l api.Lease
		if !last.Before(opened.Add(time.Hour)) && a.is(http.StatusConflict, api.CodeInvalidRequest) {
			continue // the cap is its end: only another lease lives longer
		}
		if a.status != http.StatusOK || json.Unmarshal(a.body, &l) != nil {
			t.Fatalf("renew at %v = %v", r.clock.Now().Sub(opened), a)
		}
		last = l.ExpiresAt
		// Time jumps here: the engine gets its turn to renew the login.
		r.until("the login outlives the next step", func() bool {
			rows, err := r.sqlite.Leases(t.Context(), s.id)
			return err == nil && rows[0].IsLogin && rows[0].ExpiresAt.After(r.clock.Now().Add(2*time.Minute))
		})
	}
	if last.After(opened.Add(time.Hour)) {
		t.Errorf("renewed to %v, want at most the cap of 1h", last.Sub(opened))
	}
	r.clock.add(2 * time.Minute)
	if a := s.call(http.MethodPost, api.PathLeases+"/"+db.ID+"/renew", ""); a.status == http.StatusOK {
		t.Errorf("renew at the cap = %v", a)
	}
}

// A back end's failure is told as a class, with the lease's name; all or none.
func TestLeaseWithVaultFailing(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		break_ func(r *rig)
		status int
		code   string
	}{
		{"sealed", func(r *rig) { r.vault.Inject(vaulttest.Sealed()) }, 503, api.CodeProviderUnavailable},
		{"gone", func(r *rig) { r.vault.Inject(vaulttest.Cut()) }, 503, api.CodeProviderUnavailable},
		{"answers 500", func(r *rig) {
			r.vault.Inject(vaulttest.On("database", vaulttest.Status(500, "internal "+vaulttest.Echo)))
		}, 503, api.CodeProviderUnavailable},
		{"answers 403", func(r *rig) {
			r.vault.Inject(vaulttest.On("database", vaulttest.Status(403, "denied "+vaulttest.Echo)))
		}, 502, api.CodeProviderDenied},
		{"answers 404", func(r *rig) { r.vault.Inject(vaulttest.On("database", vaulttest.Status(404))) }, 502, api.CodeProviderNotFound},
		{"has no such role", func(r *rig) { delete(r.vault.Roles, "runenv-prod") }, 502, api.CodeProviderNotFound},
		{"answers in another shape", func(r *rig) {
			r.vault.Inject(vaulttest.On("database", vaulttest.Raw(200, "<html>"+vaulttest.Echo)))
		}, 502, api.CodeProviderFailed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			s := r.open("prod")
			tt.break_(r)
			a := s.call(http.MethodPost, api.PathLeases, leaseBody("npm", "db"))
			if !a.is(tt.status, tt.code) || a.refusal().Lease != "db" {
				t.Errorf("lease = %v, want %d %s of db", a, tt.status, tt.code)
			}
			if got := events(r.audited(a.refusal().RequestID)); !strings.HasSuffix(got, "lease.refused("+tt.code+")") {
				t.Errorf("audit = %q", got)
			}
			if strings.Contains(s.states(), "disclosed") || strings.Contains(s.states(), "db=active") {
				t.Errorf("states = %q after all or none", s.states())
			}
		})
	}
}
