package broker_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/issuer"
)

// An endpoint is a call that only a session's holder may make.
type endpoint struct{ method, path, body string }

func endpoints(id string) []endpoint {
	return []endpoint{
		{http.MethodPost, api.PathLeases, leaseBody("npm")},
		{http.MethodPost, api.PathExplain, leaseBody("npm")},
		{http.MethodPost, api.PathLeases + "/" + id + "/renew", ""},
		{http.MethodDelete, api.PathLeases + "/" + id, ""},
		{http.MethodPost, api.PathHeartbeat, ""},
		{http.MethodGet, api.PathWatch, ""},
		{http.MethodPost, api.PathReport, `{"scan":"off"}`},
		{http.MethodDelete, api.PathSession, ""},
	}
}

// Every endpoint with every credential that isn't the right one (T12, T13,
// T17): an access token is nothing without its key, an end token ends its
// session and no more.
func TestT12T13T17Matrix(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	victim, thief, ended := r.open("prod"), r.open("prod"), r.open("prod")
	id := victim.lease("db")[0].ID
	if a := ended.call(http.MethodDelete, api.PathSession, ""); a.status != http.StatusOK {
		t.Fatal(a)
	}
	ciToken := r.jobToken()
	minted, err := r.own.Mint(t.Context(), issuer.Claims{Audience: "https://vault.example.com", Role: "prod", Session: victim.id}, "")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(victim.access))
	hashed := hex.EncodeToString(sum[:])

	// by gives a DPoP token with a good proof of that token by that key.
	by := func(k key, token string) func(e endpoint) []option {
		return func(e endpoint) []option {
			return []option{authorization("DPoP", token), dpop(r.proof(k, e.method, e.path, token))}
		}
	}
	as := func(scheme, token string, k key) func(e endpoint) []option {
		return func(e endpoint) []option {
			return []option{authorization(scheme, token), dpop(r.proof(k, e.method, e.path, token))}
		}
	}
	const token, gone, proof = api.CodeInvalidToken, api.CodeSessionEnded, api.CodeInvalidDPoP
	tests := []struct {
		name string
		by   func(e endpoint) []option
		code string
		ends bool // it may end a session, and an ended one may still report
	}{
		{"nothing", func(endpoint) []option { return nil }, token, false},
		{"a proof alone", func(e endpoint) []option { return []option{dpop(r.proof(victim.key, e.method, e.path, ""))} }, token, false},
		{"a token without a proof", func(endpoint) []option { return []option{authorization("DPoP", victim.access)} }, proof, false},
		{"a stolen token and the thief's key", by(thief.key, victim.access), token, false},
		{"a stolen token and a fresh key", by(newKey(t), victim.access), token, false},
		{"the victim's key and the thief's token", by(victim.key, thief.access), token, false},
		{"a stolen token and a proof of one's own", func(e endpoint) []option {
			return []option{authorization("DPoP", victim.access), dpop(r.proof(thief.key, e.method, e.path, thief.access))}
		}, proof, false},
		{"a stolen token and proof of another endpoint", func(e endpoint) []option {
			return []option{authorization("DPoP", victim.access), dpop(r.proof(victim.key, http.MethodGet, api.PathDiscovery, victim.access))}
		}, proof, false},
		{"an access token as Bearer", as("Bearer", victim.access, victim.key), token, false},
		{"an end token as DPoP", by(victim.key, victim.end), token, false},
		{"an end token as DPoP by the thief", by(thief.key, victim.end), token, false},
		{"an end token as access token's second half", by(victim.key, victim.id+"."+strings.TrimPrefix(victim.end, "e-")), token, false},
		{"a session's id", by(victim.key, victim.id), token, false},
		{"a session's id and a dot", by(victim.key, victim.id+"."), token, false},
		{"a session's id and garbage", by(victim.key, victim.id+"."+strings.Repeat("A", 43)), token, false},
		{"an access token with a tail", by(victim.key, victim.access+"A"), token, false},
		{"an access token cut short", by(victim.key, victim.access[:len(victim.access)-1]), token, false},
		{"an access token's hash", by(victim.key, victim.id+"."+hashed), token, false},
		{"a session that never was", by(victim.key, "s-"+strings.Repeat("a", 26)+"."+strings.Repeat("A", 43)), token, false},
		{"garbage", by(victim.key, "garbage"), token, false},
		{"garbage of 300 bytes", by(victim.key, strings.Repeat("x", 300)), token, false},
		{"garbage as Bearer", as("Bearer", "garbage", victim.key), token, false},
		{"an empty Bearer", as("Bearer", "", victim.key), token, false},
		{"an empty DPoP", as("DPoP", "", victim.key), token, false},
		{"Basic", as("Basic", victim.access, victim.key), token, false},
		{"a CI token", by(victim.key, ciToken), token, false},
		{"a CI token as Bearer", as("Bearer", ciToken, victim.key), token, false},
		{"the broker's own ID token", as("Bearer", minted, victim.key), token, false},
		{"two Authorization headers", func(e endpoint) []option {
			return append(victim.proved(e.method, e.path), header("Authorization", "DPoP "+victim.access, "DPoP "+thief.access))
		}, token, false},
		{"an ended session", by(ended.key, ended.access), gone, true},
		{"an ended session's token and the thief's key", by(thief.key, ended.access), token, false},
		// The one that may do one thing comes last.
		{"an end token as Bearer", func(endpoint) []option { return []option{authorization("Bearer", victim.end)} }, token, true},
	}
	before := victim.states()
	var body string
	for _, tt := range tests {
		for _, e := range endpoints(id) {
			if tt.ends && e.path == api.PathSession || tt.code == gone && tt.ends && e.path == api.PathReport {
				continue
			}
			a := r.send(e.method, e.path, e.body, tt.by(e)...)
			if !a.is(http.StatusUnauthorized, tt.code) {
				t.Errorf("%s: %s %s = %v, want 401 %s", tt.name, e.method, e.path, a, tt.code)
			}
			if a.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: %s %s: no WWW-Authenticate", tt.name, e.method, e.path)
			}
			// T20: who isn't known isn't told why.
			if tt.code == token {
				if body == "" {
					body = a.anonymous(t)
				}
				if diff := cmp.Diff(body, a.anonymous(t)); diff != "" {
					t.Errorf("%s: %s %s: another body:\n%s", tt.name, e.method, e.path, diff)
				}
			}
		}
	}
	for _, s := range []*session{victim, thief} {
		if !s.row().EndedAt.IsZero() {
			t.Errorf("a session was ended: %s", s.row().EndReason)
		}
	}
	if after := victim.states(); after != before || thief.states() != "" {
		t.Errorf("the victim's leases went from %s to %s, the thief has %q", before, after, thief.states())
	}
	// The near misses: the scheme's case, and what the two tokens are for.
	if a := victim.call(http.MethodPost, api.PathHeartbeat, "", authorization("dpop", victim.access)); a.status != http.StatusOK {
		t.Errorf("scheme in lower case: %v", a)
	}
	if a := ended.call(http.MethodDelete, api.PathSession, ""); a.status != http.StatusOK {
		t.Errorf("ending an ended session = %v", a)
	}
	if a := r.send(http.MethodDelete, api.PathSession, "", authorization("bearer", victim.end)); a.status != http.StatusOK {
		t.Errorf("ending by the end token = %v", a)
	}
	// It stays good for that and for nothing else after it was used.
	if a := r.exchange(newKey(t), minted, "prod"); !a.is(http.StatusBadRequest, api.CodeInvalidRequest) || a.refusal().Claims != nil {
		t.Errorf("exchange of the broker's own token = %v", a)
	}
}

// An end token and a tenant's end concern one session.
func TestT12EndEndsOneSession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	one, two := r.open("prod"), r.open("prod")
	two.lease("db")
	if a := r.send(http.MethodDelete, api.PathSession, "", authorization("Bearer", one.end)); a.status != http.StatusOK {
		t.Fatal(a)
	}
	if !two.row().EndedAt.IsZero() || two.states() != "login=active db=active" {
		t.Errorf("the neighbour: %q, %s", two.row().EndReason, two.states())
	}
}

// A lease id is not a capability: unknown, somebody else's, a login's and a
// malformed one give the same answer.
func TestT12SameNoForEveryLease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mine, other := r.open("prod"), r.open("prod")
	mine.lease("db")
	theirs := other.lease("db")[0].ID
	logins := map[string]string{}
	for _, s := range []*session{mine, other} {
		rows, err := r.sqlite.Leases(t.Context(), s.id)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			if row.IsLogin {
				logins[s.id] = row.ID
			}
		}
	}
	before := mine.states() + other.states()
	var want string
	for _, id := range []string{"l-aaaaaaaaaaaaaaaaaaaaaaaaaa", theirs, logins[mine.id], logins[other.id], mine.id, "x", strings.Repeat("x", 1<<10), "%00", "%27%20or%201=1"} {
		for _, e := range []endpoint{{http.MethodPost, api.PathLeases + "/" + id + "/renew", ""}, {http.MethodDelete, api.PathLeases + "/" + id, ""}} {
			a := mine.call(e.method, e.path, e.body)
			if !a.is(http.StatusNotFound, api.CodeNotFound) {
				t.Errorf("%s %.60s = %v, want 404 not_found", e.method, e.path, a)
				continue
			}
			got := a.anonymous(t)
			if want == "" {
				want = got
			}
			if got != want {
				t.Errorf("%s %.60s = %s, want %s", e.method, e.path, got, want)
			}
		}
	}
	if after := mine.states() + other.states(); after != before {
		t.Errorf("states went from %s to %s", before, after)
	}
	if n := len(r.vault.Requests("auth/token/revoke")) + len(r.vault.Requests("sys/leases")); n != 0 {
		t.Errorf("%d requests to the back end", n)
	}
}

// Today's policy judges; ending is always allowed.
func TestT16PolicyTakesARoleAway(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		policy string
		reason string // that the audit log has for a new lease
	}{
		{"the role is gone", strings.Replace(brokerFile, "  prod:\n", "  prod2:\n", 1), "role_unknown"},
		{"the project left the role", strings.Replace(brokerFile, "projects: [shop-api, shop-web, pay-api]", "projects: [pay-api, shop-web]", 1), "project_not_in_role"},
		{"the match is tighter", strings.Replace(brokerFile, "environment: production, event_name", "environment: staging, event_name", 1), "claim_mismatch"},
		{"a deny rule", brokerFile + "deny: [{github: {actor: octocat}}]\n", "deny_rule"},
		{"the lease left the role", strings.Replace(brokerFile, "leases: [npm, db]", "leases: [npm]", 1), api.CodeAccessDenied},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			s := r.open("prod")
			id := s.lease("db")[0].ID
			issued, renewals := r.vault.Issued(), len(r.vault.Requests("sys/leases/renew"))
			r.swap(tt.policy)
			for _, e := range []endpoint{{http.MethodPost, api.PathLeases, leaseBody("db")}, {http.MethodPost, api.PathLeases + "/" + id + "/renew", ""}} {
				a := s.call(e.method, e.path, e.body)
				if !a.is(http.StatusForbidden, api.CodeAccessDenied) {
					t.Errorf("%s %s = %v, want 403 access_denied", e.method, e.path, a)
				}
				records := r.audited(a.refusal().RequestID)
				if events(records) != "lease.refused("+tt.reason+")" || records[0].Policy != r.file.Compiled.Digest() {
					t.Errorf("audit = %+v, want reason %s by today's policy", records, tt.reason)
				}
			}
			if r.vault.Issued() != issued || len(r.vault.Requests("sys/leases/renew")) != renewals {
				t.Error("the back end was asked all the same")
			}
			if a := s.call(http.MethodPost, api.PathHeartbeat, ""); a.status != http.StatusOK {
				t.Errorf("heartbeat = %v", a)
			}
			if a := s.call(http.MethodDelete, api.PathLeases+"/"+id, ""); a.status != http.StatusOK {
				t.Errorf("ending the lease = %v", a)
			}
			if a := s.call(http.MethodDelete, api.PathSession, ""); a.status != http.StatusOK || r.vault.Leases() != 0 {
				t.Errorf("end = %v, %d leases live", a, r.vault.Leases())
			}
		})
	}
}

// What is recorded names the policy that judged, from before and after.
func TestT16DigestOfThePolicyThatJudged(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	old := r.file.Compiled.Digest()
	r.swap(strings.Replace(brokerFile, "sessions: 2", "sessions: 3", 1))
	id := s.lease("db")[0].ID
	if got := r.audited(s.id)[0].Policy; got != old {
		t.Errorf("session.created by %s, want %s", got, old)
	}
	row, err := r.sqlite.Lease(t.Context(), id)
	if err != nil || row.PolicyDigest != r.file.Compiled.Digest() || row.PolicyDigest == old {
		t.Errorf("lease by %s (%v), want today's %s", row.PolicyDigest, err, r.file.Compiled.Digest())
	}
	if got := r.entries(); got[len(got)-1].Event == "" || !strings.Contains(string(got[1].Body), "policy.loaded") {
		t.Errorf("the log doesn't say that another policy was loaded: %s", got[1].Body)
	}
}
