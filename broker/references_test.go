package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

const dynamic = "vault://database/creds/shop-api-ro"

const creds, token = "vault://database/creds/app", "vault://secret/ci/npm"

// fields makes the odd provider issue them; kind and life are the credential's.
func (r *rig) fields(kind providers.Revocability, life time.Duration, fields map[string]string) {
	r.odd.set(func(context.Context, providers.Request) (*providers.Credential, error) {
		c := &providers.Credential{Fields: map[string]secret.Value{}, Handle: secret.FromString("h"), Expires: r.clock.Now().Add(life), Revocability: kind}
		for name, value := range fields {
			c.Fields[name] = secret.FromString(value)
		}
		return c, nil
	})
}

func ask(t *testing.T, in api.LeaseRequest) string {
	t.Helper()
	if in.Leases == nil {
		in.Leases = []string{}
	}
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func reference(text, variable string) api.Reference {
	return api.Reference{Ref: text, Variable: variable}
}

func env(leases []api.Lease) map[string]string {
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
	r := newRig(t)
	r.grants = map[string]error{creds: nil, token: nil}
	r.fields(providers.Revocable, time.Minute, map[string]string{"username": "c4n4ry-u", "password": "c4n4ry-p", "value": "c4n4ry-v"})
	s := r.open("odd")
	a := s.call(http.MethodPost, api.PathLeases, ask(t, api.LeaseRequest{Leases: []string{"odd"}, References: []api.Reference{
		reference(creds+"#username", "DB_USER"), reference("vault:secret/data/ci/npm#value", "TOKEN"),
		reference(creds+"#password", "DB_PASSWORD"), reference(creds, "ALL_*"), reference(creds, "DB"),
	}}))
	leases := s.leased(a)
	if got, want := names(leases), "odd "+creds+" "+token; got != want {
		t.Errorf("leases = %q, want %q: references to one dynamic path make one credential", got, want)
	}
	if r.odd.calls != 3 {
		t.Errorf("%d credentials issued, want 3", r.odd.calls)
	}
	want := map[string]string{
		"ODD": "odd c4n4ry-v", "DB_USER": creds + " c4n4ry-u", "DB_PASSWORD": creds + " c4n4ry-p", "TOKEN": token + " c4n4ry-v",
		"ALL_USERNAME": creds + " c4n4ry-u", "ALL_PASSWORD": creds + " c4n4ry-p", "ALL_VALUE": creds + " c4n4ry-v",
		"DB": creds + ` {"password":"c4n4ry-p","username":"c4n4ry-u","value":"c4n4ry-v"}`,
	}
	if diff := cmp.Diff(want, env(leases)); diff != "" {
		t.Error(diff)
	}
	for _, v := range leases[1].Env {
		if !v.Mask {
			t.Errorf("%s isn't masked", v.Name)
		}
	}
	if got := r.audited(leases[1].ID); got[0].LeaseName != creds || got[0].Revocability != "revocable" {
		t.Errorf("audit = %+v", got[0])
	}
	// References alone are not "all that the role has".
	if got := names(s.leased(s.call(http.MethodPost, api.PathLeases, ask(t, api.LeaseRequest{References: []api.Reference{reference(token+"#value", "T")}})))); got != token {
		t.Errorf("a reference alone = %q", got)
	}
}

func TestReferencesThatAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.grants = map[string]error{creds: nil, token: errors.New("no provider of this scheme")}
	r.fields(providers.Revocable, time.Minute, map[string]string{"value": "c4n4ry-v"})
	s := r.open("odd")
	var many []api.Reference
	for i := range api.MaxLeaseNames {
		many = append(many, reference(creds+"#value", fmt.Sprint("V", i)))
	}
	one := func(text, variable string) api.LeaseRequest {
		return api.LeaseRequest{References: []api.Reference{reference(text, variable)}}
	}
	const bad, no = api.CodeInvalidRequest, api.CodeAccessDenied
	tests := []struct {
		name   string
		in     api.LeaseRequest
		status int
		code   string
		says   string
	}{
		{"no reference", one("", "X"), 400, bad, "reference 1: "},
		{"not a reference", one("hunter2", "X"), 400, bad, "reference 1: "},
		{"a long one", one("vault://"+strings.Repeat("x", 2000), "X"), 400, bad, "reference 1: "},
		{"no variable", one(creds, ""), 400, bad, "reference 1: "},
		{"a variable that runs code", one(creds, "LD_PRELOAD"), 400, bad, "reference 1: "},
		{"a prefix that runs code", one(creds, "LD_*"), 400, bad, "reference 1: "},
		{"a star within", one(creds, "A*B"), 400, bad, "reference 1: "},
		{"a field and a prefix", one(creds+"#value", "X_*"), 400, bad, "all fields"},
		{"the second is bad", api.LeaseRequest{References: []api.Reference{reference(creds, "X"), reference("x", "Y")}}, 400, bad, "reference 2: "},
		{"one variable twice", api.LeaseRequest{References: []api.Reference{reference(creds, "X"), reference(creds+"#value", "X")}}, 400, bad, "named X"},
		{"a named lease's variable", api.LeaseRequest{Leases: []string{"odd"}, References: []api.Reference{reference(creds, "ODD")}}, 400, bad, "named ODD"},
		{"101 together", api.LeaseRequest{Leases: []string{"odd"}, References: many}, 400, bad, "too many"},
		{"not granted", one("vault://secret/other", "X"), 403, no, "doesn't grant"},
		{"another version", one(creds+"?version=3", "X"), 403, no, "doesn't grant"},
		{"one of two isn't granted", api.LeaseRequest{References: []api.Reference{reference(creds, "X"), reference("vault://secret/other", "Y")}}, 403, no, "doesn't grant"},
		{"unusable", one(token, "X"), 400, bad, "can't be used"},
		{"as a lease's name", api.LeaseRequest{Leases: []string{creds}}, 403, no, "doesn't have"},
		{"101 to replace", api.LeaseRequest{Leases: []string{"odd"}, Replaces: make([]string, 101)}, 400, bad, "too many"},
		{"one to replace twice", api.LeaseRequest{Leases: []string{"odd"}, Replaces: []string{"x", "x"}}, 400, bad, "twice"},
	}
	for _, tt := range tests {
		a := s.call(http.MethodPost, api.PathLeases, ask(t, tt.in))
		if !a.is(tt.status, tt.code) || !strings.Contains(a.refusal().Description, tt.says) || strings.Contains(string(a.body), "hunter2") {
			t.Errorf("%s = %v, want %d %s with %q", tt.name, a, tt.status, tt.code, tt.says)
		}
		r.clock.add(time.Second) // the session's limit of calls
	}
	if s.states() != "" || r.odd.calls != 0 {
		t.Errorf("states %q after %d calls to the back end, want none", s.states(), r.odd.calls)
	}
	// T12: another role, another project, another's grant.
	other := r.open("prod")
	if a := other.call(http.MethodPost, api.PathLeases, ask(t, one(creds, "X"))); !a.is(403, no) || events(r.audited(a.refusal().RequestID)) != "lease.refused(access_denied)" {
		t.Errorf("another role's reference = %v", a)
	}
}

// P9: a role that only grants references has nothing to give to whoever names
// none. That is said, and no command runs without what it was to get.
func TestP9ARoleOfReferencesAloneIsAskedForOne(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *settings) {
		s.file = strings.Replace(brokerFile, "    leases: [odd, npm]\n", "    references: [\""+creds+"\"]\n", 1)
	})
	r.grants = map[string]error{creds: nil}
	r.fields(providers.Revocable, time.Minute, map[string]string{"value": "c4n4ry-v"})
	s := r.open("odd")
	for _, body := range []string{`{"leases":[]}`, `{}`} {
		a := s.call(http.MethodPost, api.PathLeases, body)
		if !a.is(http.StatusBadRequest, api.CodeInvalidRequest) || !strings.Contains(a.refusal().Description, "references") {
			t.Errorf("%s = %v, want 400 about references", body, a)
		}
	}
	if got := names(s.leased(s.call(http.MethodPost, api.PathLeases, ask(t, api.LeaseRequest{References: []api.Reference{reference(creds, "X")}})))); got != creds {
		t.Errorf("its reference = %q", got)
	}
}

// A whole map may come to a variable that another lease sets: nothing is
// delivered, and what was issued is revoked.
func TestReferencesThatCollideWithWhatCame(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.grants = map[string]error{creds: nil}
	r.fields(providers.Revocable, time.Minute, map[string]string{"value": "c4n4ry-v", "odd": "c4n4ry-o"})
	s := r.open("odd")
	a := s.call(http.MethodPost, api.PathLeases, ask(t, api.LeaseRequest{Leases: []string{"odd"}, References: []api.Reference{reference(creds, "*")}}))
	if !a.is(http.StatusBadRequest, api.CodeInvalidRequest) || !strings.Contains(a.refusal().Description, "named ODD") {
		t.Errorf("lease = %v, want 400 about ODD", a)
	}
	r.until("both are revoked", func() bool { return s.states() == "odd=revoked "+creds+"=revoked" })
}

// What is missing is told by the names that operator and caller gave, of all
// leases at once.
func TestAllThatIsMissingIsTold(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.grants = map[string]error{creds: nil}
	r.fields(providers.Revocable, time.Minute, map[string]string{"other": "c4n4ry-v"})
	s := r.open("odd")
	a := s.call(http.MethodPost, api.PathLeases, ask(t, api.LeaseRequest{Leases: []string{"odd"}, References: []api.Reference{reference(creds+"#username", "U"), reference(creds+"#password", "P")}}))
	e := a.refusal()
	if !a.is(http.StatusBadGateway, api.CodeProviderNotFound) || e.Lease != "odd" ||
		!strings.HasSuffix(e.Description, `lease "odd" has no value; lease "`+creds+`" has no username, password`) {
		t.Errorf("lease = %v", a)
	}
}

// T16: a lease by reference is judged by today's policy, as a named one is.
func TestT16AReferenceIsJudgedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.grants = map[string]error{creds: nil}
	r.fields(providers.Revocable, time.Hour, map[string]string{"value": "c4n4ry-v"})
	s := r.open("odd")
	id := s.leased(s.call(http.MethodPost, api.PathLeases, ask(t, api.LeaseRequest{References: []api.Reference{reference(creds, "X")}})))[0].ID
	renew := func() answer { return s.call(http.MethodPost, api.PathLeases+"/"+id+"/renew", "") }
	if a := renew(); !a.is(http.StatusConflict, api.CodeInvalidRequest) || !strings.Contains(a.refusal().Description, "replaces") {
		t.Errorf("renewing what can't be = %v", a)
	}
	delete(r.grants, creds)
	if a := renew(); !a.is(http.StatusForbidden, api.CodeAccessDenied) || a.refusal().Lease != creds {
		t.Errorf("renewing what is no longer granted = %v", a)
	}
	if a := s.call(http.MethodDelete, api.PathLeases+"/"+id, ""); a.status != http.StatusOK {
		t.Errorf("ending it = %v", a)
	}
}

// T16: the engine asks by the reference when it renews.
func TestT16AReferenceIsRenewedByTodaysPolicy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.grants = map[string]error{dynamic: nil}
	s := r.open("prod")
	l := s.leased(s.call(http.MethodPost, api.PathLeases, ask(t, api.LeaseRequest{References: []api.Reference{reference(dynamic+"#password", "X")}})))[0]
	if l.Name != dynamic || len(l.Env) != 1 || !l.Renewable {
		t.Fatalf("lease = %+v", l)
	}
	r.clock.add(time.Minute)
	if a := s.call(http.MethodPost, api.PathLeases+"/"+l.ID+"/renew", ""); a.status != http.StatusOK {
		t.Errorf("renew = %v", a)
	}
	r.grants[dynamic] = broker.ErrNotGranted
	if a := s.call(http.MethodPost, api.PathLeases+"/"+l.ID+"/renew", ""); !a.is(http.StatusForbidden, api.CodeAccessDenied) {
		t.Errorf("renew of what is no longer granted = %v", a)
	}
}

// T12, T17: what a session may replace is its own, and once.
func TestT12T17Replaces(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.grants = map[string]error{creds: nil}
	r.fields(providers.Expires, 10*time.Minute, map[string]string{"value": "c4n4ry-v"})
	s, other, vaulted := r.open("odd"), r.open("odd"), r.open("prod")
	old := s.lease("odd")[0].ID
	theirs := other.lease("odd")[0].ID
	vaulted.lease("db")
	rows, err := r.sqlite.Leases(t.Context(), vaulted.id)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(ids ...string) answer {
		return s.call(http.MethodPost, api.PathLeases, ask(t, api.LeaseRequest{Leases: []string{"odd"}, Replaces: ids}))
	}
	before := s.states() + other.states()
	if a := replace(old); !a.is(http.StatusConflict, api.CodeInvalidRequest) || !strings.Contains(a.refusal().Description, "half") {
		t.Errorf("too soon = %v", a)
	}
	r.clock.add(100 * time.Second)
	for range 3 {
		for _, one := range []*session{s, other} {
			if a := one.call(http.MethodPost, api.PathHeartbeat, ""); a.status != http.StatusOK {
				t.Fatal(a)
			}
		}
		r.clock.add(100 * time.Second)
	}
	var want string
	for _, id := range []string{"l-aaaaaaaaaaaaaaaaaaaaaaaaaa", theirs, rows[0].ID, rows[1].ID, s.id, "", "x", strings.Repeat("x", 1<<10), "' or 1=1"} {
		for _, ids := range [][]string{{id}, {old, id}} {
			a := replace(ids...)
			if !a.is(http.StatusNotFound, api.CodeNotFound) {
				t.Errorf("replacing %.40q = %v, want 404", ids, a)
				continue
			}
			if want == "" {
				want = a.anonymous(t)
			}
			if got := a.anonymous(t); got != want {
				t.Errorf("replacing %.40q = %s, want %s", ids, got, want)
			}
		}
	}
	if after := s.states() + other.states(); after != before {
		t.Fatalf("states went from %s to %s", before, after)
	}
	fresh := s.leased(replace(old))[0]
	if a := replace(old); !a.is(http.StatusConflict, api.CodeInvalidRequest) {
		t.Errorf("replacing twice = %v, want 409", a)
	}
	if a := s.call(http.MethodPost, api.PathLeases+"/"+old+"/renew", ""); !a.is(http.StatusConflict, api.CodeInvalidRequest) {
		t.Errorf("renewing what is replaced = %v, want 409", a)
	}
	if got := events(r.audited(old)); got != "lease.issued lease.replaced" {
		t.Errorf("audit of the old one = %q", got)
	}
	if got := r.audited(fresh.ID)[0]; got.Revocability != "expires" || got.DiesBy.IsZero() {
		t.Errorf("audit of the new one = %+v", got)
	}
	// T17: replacing gives nothing that asking doesn't.
	if a := s.call(http.MethodPost, api.PathLeases, ask(t, api.LeaseRequest{Leases: []string{"db"}, Replaces: []string{fresh.ID}})); !a.is(http.StatusForbidden, api.CodeAccessDenied) {
		t.Errorf("a lease that isn't the role's, by replacing = %v", a)
	}
}

// The stream tells of a lease that nears its end.
func TestWatchTellsOfWhatExpires(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fields(providers.Expires, 3*time.Minute, map[string]string{"value": "c4n4ry-v"})
	s := r.open("odd")
	id := s.lease("odd")[0].ID
	stream := s.watch(t.Context())
	stream.want(api.EventHello, "")
	r.clock.add(2 * time.Minute)
	s.call(http.MethodPost, api.PathHeartbeat, "")
	r.open("prod") // whose exchange makes the engine look
	if ev := stream.want(api.EventExpiring, ""); ev.Lease.ID != id || ev.Lease.Env != nil {
		t.Errorf("event = %+v, want that %s expires", ev, id)
	}
}
