package broker_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/api"
)

func TestExchange(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	k := newKey(t)
	a := r.exchange(k, r.jobToken(), "prod")
	s := r.opened(k, a)
	got := s.token
	if got.TokenType != "DPoP" || got.IssuedTokenType != api.TokenTypeAccess || got.ExpiresIn != 7200 || got.HeartbeatSeconds != 30 {
		t.Errorf("answer = %+v", got)
	}
	if want := r.clock.Now().Add(2 * time.Hour); !got.HardEnd.Equal(want) {
		t.Errorf("hard_end = %v, want %v", got.HardEnd, want)
	}
	for name, want := range map[string]string{"Cache-Control": "no-store", "Content-Type": "application/json", "X-Content-Type-Options": "nosniff"} {
		if a.header.Get(name) != want {
			t.Errorf("header %s = %q, want %q", name, a.header.Get(name), want)
		}
	}
	var members map[string]any
	if err := json.Unmarshal(a.body, &members); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"access_token", "issued_token_type", "token_type", "expires_in", "session_id", "end_token", "hard_end", "heartbeat_seconds"} {
		if members[name] == nil {
			t.Errorf("the answer has no %s", name)
		}
		delete(members, name)
	}
	if len(members) > 0 {
		t.Errorf("the answer has more: %v", members)
	}
	records := r.audited(s.id)
	if events(records) != "session.created" || records[0].Claims["run_id"] == "" || records[0].Project != "shop-api" || records[0].Policy != r.file.Compiled.Digest() {
		t.Errorf("audit = %+v", records)
	}
}

// RFC 8693 section 2.2.2 and RFC 6749 section 5.2 give the codes.
func TestExchangeRefusesForms(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.jobToken()
	set := func(name string, values ...string) string {
		f := form(token, "prod")
		delete(f, name)
		if len(values) > 0 {
			f[name] = values
		}
		return f.Encode()
	}
	const bad = api.CodeInvalidRequest
	tests := []struct {
		name, body string
		status     int
		code       string
		options    []option
	}{
		{"an unknown grant", set("grant_type", "client_credentials"), 400, api.CodeUnsupportedGrantType, nil},
		{"no grant", set("grant_type"), 400, bad, nil},
		{"an empty grant", set("grant_type", ""), 400, bad, nil},
		{"no subject_token", set("subject_token"), 400, bad, nil},
		{"an empty subject_token", set("subject_token", ""), 400, bad, nil},
		{"two subject_tokens", set("subject_token", token, token), 400, bad, nil},
		{"no subject_token_type", set("subject_token_type"), 400, bad, nil},
		{"a subject_token_type of jwt", set("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"), 400, bad, nil},
		{"no audience", set("audience"), 400, bad, nil},
		{"an empty audience", set("audience", ""), 400, bad, nil},
		{"two audiences", set("audience", "prod", "odd"), 400, bad, nil},
		{"two grants that agree", set("grant_type", api.GrantTokenExchange, api.GrantTokenExchange), 400, bad, nil},
		{"a requested_token_type of refresh_token", set("requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), 400, bad, nil},
		{"an unknown parameter", set("resource", "https://example.com"), 400, bad, nil},
		{"a parameter in another case", set("Audience", "prod"), 400, bad, nil},
		{"an actor_token", set("actor_token", token), 400, bad, nil},
		{"a broken escape", "grant_type=%zz", 400, bad, nil},
		{"a semicolon", form(token, "prod").Encode() + ";a=b", 400, bad, nil},
		{"nothing", "", 400, bad, nil},
		{"JSON", `{"grant_type":"x"}`, 400, bad, []option{header("Content-Type", "application/json")}},
		{"a form in JSON's clothes", form(token, "prod").Encode(), 400, bad, []option{header("Content-Type", "application/json")}},
		{"no content type", form(token, "prod").Encode(), 400, bad, []option{header("Content-Type")}},
		{"multipart", form(token, "prod").Encode(), 400, bad, []option{header("Content-Type", "multipart/form-data; boundary=x")}},
		{"a body of 32 KiB and 1", strings.Repeat("a", api.MaxTokenRequest+1), 413, bad, nil},
		{"a token of 1 MiB", form(strings.Repeat("a", 1<<20), "prod").Encode(), 413, bad, nil},
		{"a body of exactly 32 KiB", strings.Repeat("a", api.MaxTokenRequest), 400, bad, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := r.exchangeForm(newKey(t), tt.body, tt.options...)
			if !a.is(tt.status, tt.code) {
				t.Errorf("exchange = %v, want %d %s", a, tt.status, tt.code)
			}
			if e := a.refusal(); e.Claims != nil || e.RequestID == "" || a.header.Get("Cache-Control") != "no-store" {
				t.Errorf("exchange = %v %v, want a request_id, no claims and no-store", a, a.header)
			}
		})
	}
	if n := len(r.entries()); n != 0 {
		t.Errorf("%d audit entries of requests that never held a token", n)
	}
	// The near miss: what is said twice over is fine where it says the same.
	k := newKey(t)
	f := form(token, "prod")
	f.Set("requested_token_type", api.TokenTypeAccess)
	r.opened(k, r.exchangeForm(k, f.Encode(), header("Content-Type", formType+"; charset=utf-8")))
}

// parts of a token, so that a forger can put others in their place.
func parts(token string) (header, payload, signature string) {
	p := strings.Split(token, ".")
	return p[0], p[1], p[2]
}

func encode(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// What a token must be, over the wire: which refusals are recorded and tell the
// caller its claims, and which are only counted.
func TestT04T05T07Tokens(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	claims := func(changes ...map[string]any) map[string]any { return r.github.GitHub(r.url, changes...) }
	now := r.clock.Now()
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	type m = map[string]any
	_, payload, signature := parts(r.github.Sign(claims()))
	goodHeader, _, _ := parts(r.github.Sign(claims()))

	hs256 := func() string {
		input := encode(`{"alg":"HS256","typ":"JWT","kid":"`+r.github.KeyID()+`"}`) + "." + payload
		mac := hmac.New(sha256.New, r.github.JWKS())
		mac.Write([]byte(input))
		return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	}
	raw := func(change func(string) string) string {
		b, err := json.Marshal(claims())
		if err != nil {
			t.Fatal(err)
		}
		h, err := base64.RawURLEncoding.DecodeString(goodHeader)
		if err != nil {
			t.Fatal(err)
		}
		return r.github.SignRaw(h, []byte(change(string(b))))
	}
	tests := []struct {
		name     string
		token    string
		reason   string
		recorded bool // the signature was good
	}{
		{"another audience", r.github.Sign(claims(m{"aud": "https://other.example.com"})), "audience", true},
		{"the audience with a slash", r.github.Sign(claims(m{"aud": r.url + "/"})), "audience", true},
		{"two audiences", r.github.Sign(claims(m{"aud": []string{r.url, "x"}})), "audience", true},
		{"expired", r.github.Sign(claims(m{"iat": at(-10 * time.Minute), "exp": at(-31 * time.Second)})), "expired", true},
		{"issued in the future", r.github.Sign(claims(m{"iat": at(31 * time.Second)})), "issued_in_future", true},
		{"not yet valid", r.github.Sign(claims(m{"nbf": at(31 * time.Second)})), "not_yet_valid", true},
		{"valid for an hour", r.github.Sign(claims(m{"exp": at(time.Hour)})), "lifetime", true},
		{"without a run", r.github.Sign(claims(m{"run_id": nil})), "identity", true},
		{"without an expiry", r.github.Sign(claims(m{"exp": nil})), "claim", false},
		{"without an id", r.github.Sign(claims(m{"jti": nil})), "claim", false},
		{"alg none", encode(`{"alg":"none","typ":"JWT","kid":"`+r.github.KeyID()+`"}`) + "." + payload + ".", "", false},
		{"alg none with a signature", encode(`{"alg":"none","typ":"JWT","kid":"`+r.github.KeyID()+`"}`) + "." + payload + "." + signature, "algorithm", false},
		{"HS256 by the public keys", hs256(), "algorithm", false},
		{"another's payload", goodHeader + "." + payload + "." + encode("forged-signature"), "signature", false},
		{"an unknown issuer", r.github.Sign(claims(m{"iss": "https://evil.example.com"})), "issuer_unknown", false},
		{"the issuer with a slash", r.github.Sign(claims(m{"iss": r.github.URL + "/"})), "issuer_unknown", false},
		{"a doubled claim", raw(func(s string) string { return strings.Replace(s, "{", `{"ref":"refs/heads/main",`, 1) }), "doubled_key", false},
		{"a claim in two cases", raw(func(s string) string { return strings.Replace(s, "{", `{"Ref":"refs/heads/main",`, 1) }), "doubled_key", false},
		{"an audience in two cases", raw(func(s string) string { return strings.Replace(s, "{", `{"AUD":"x",`, 1) }), "doubled_key", false},
		{"over 16 KiB", r.github.Sign(claims(m{"x": strings.Repeat("x", 16<<10)})), "too_large", false},
		{"four parts", r.jobToken() + ".x", "malformed", false},
		{"no token", "x", "malformed", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := len(r.entries())
			counted := r.metric(`runenv_tokens_rejected_total{reason="` + tt.reason + `"}`)
			a := r.exchange(newKey(t), tt.token, "prod")
			if !a.is(http.StatusBadRequest, api.CodeInvalidRequest) {
				t.Fatalf("exchange = %v, want 400 invalid_request", a)
			}
			e := a.refusal()
			if e.Description != "the subject token isn't accepted" {
				t.Errorf("description = %q: it may not say why", e.Description)
			}
			records := r.audited(e.RequestID)
			if tt.recorded {
				if want := "session.refused(" + tt.reason + ")"; events(records) != want {
					t.Errorf("audit = %q, want %q", events(records), want)
				}
				if tt.reason != "identity" && e.Claims["repository"] != "acme/shop-api" {
					t.Errorf("claims = %v, want the caller's own", e.Claims)
				}
			} else if e.Claims != nil || len(records) > 0 || len(r.entries()) != before {
				t.Errorf("claims %v and %d new entries after a token that nobody signed", e.Claims, len(r.entries())-before)
			}
			if tt.reason != "" && r.metric(`runenv_tokens_rejected_total{reason="`+tt.reason+`"}`) != counted+1 {
				t.Errorf("reason %s wasn't counted", tt.reason)
			}
		})
	}
	// Near misses, each with thirty seconds of leeway.
	for name, changes := range map[string]m{
		"just expired":           {"iat": at(-5 * time.Minute), "exp": at(-30 * time.Second)},
		"just ahead":             {"iat": at(30 * time.Second)},
		"just not yet valid":     {"nbf": at(30 * time.Second)},
		"a list of one audience": {"aud": []string{r.url}},
	} {
		if a := r.exchange(newKey(t), r.jobToken(changes), "prod"); a.status != http.StatusOK {
			t.Errorf("%s: exchange = %v, want 200", name, a)
		}
	}
}

func TestT01UnknownIssuerCostsNoCall(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var hits atomic.Int64
	trap := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	t.Cleanup(trap.Close)
	for _, iss := range []string{trap.URL, trap.URL + "/", strings.Replace(trap.URL, "http://", "https://", 1), strings.Replace(trap.URL, "http://", "http://u@", 1), r.github.URL + "@" + strings.TrimPrefix(trap.URL, "http://")} {
		token := r.github.SignWith(map[string]any{"jku": nil}, r.github.GitHub(r.url, map[string]any{"iss": iss}))
		if a := r.exchange(newKey(t), token, "prod"); !a.is(http.StatusBadRequest, api.CodeInvalidRequest) {
			t.Errorf("issuer %s: exchange = %v", iss, a)
		}
	}
	for _, name := range []string{"jku", "x5u"} {
		token := r.github.SignWith(map[string]any{name: trap.URL}, r.github.GitHub(r.url))
		if a := r.exchange(newKey(t), token, "prod"); !a.is(http.StatusBadRequest, api.CodeInvalidRequest) {
			t.Errorf("header %s: exchange = %v", name, a)
		}
	}
	if hits.Load() != 0 || r.github.Hits() != 0 {
		t.Errorf("%d calls to a stranger, %d to the issuer: want none", hits.Load(), r.github.Hits())
	}
}

// A role that isn't there and one that isn't the caller's look alike, and so
// do the claims that keep a job out of a role.
func TestT20SameNoForEveryRole(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	now := r.clock.Now()
	ask := func(role string, changes map[string]any) answer {
		t.Helper()
		// All claims are the same but those under test.
		same := map[string]any{"jti": "same", "run_id": "7", "iat": now.Unix(), "exp": now.Add(time.Minute).Unix()}
		return r.exchange(newKey(t), r.github.Sign(r.github.GitHub(r.url, same, changes)), role)
	}
	var bodies []string
	for _, role := range []string{"nonesuch", "elsewhere", "PROD", "prod ", strings.Repeat("x", 8<<10), "\x00\x1b[2J"} {
		a := ask(role, nil)
		if !a.is(http.StatusBadRequest, api.CodeInvalidTarget) {
			t.Errorf("role %.20q: exchange = %v, want 400 invalid_target", role, a)
		}
		bodies = append(bodies, a.anonymous(t))
		if reason := r.audited(a.refusal().RequestID)[0].Reason; (reason == "role_unknown") != (role != "elsewhere") {
			t.Errorf("role %.20q: audit reason %q", role, reason)
		}
	}
	for i, b := range bodies {
		if diff := cmp.Diff(bodies[0], b); diff != "" {
			t.Errorf("body %d differs:\n%s", i, diff)
		}
	}
	for reason, changes := range map[string]map[string]any{
		"claim_mismatch":       {"ref": "refs/heads/main2"},
		"event_denied":         {"event_name": "pull_request_target"},
		"project_unknown":      {"repository_id": "1009", "repository": "mallory/api"},
		"project_reregistered": {"repository_id": "1009"},
		"claim_absent":         {"environment": nil},
	} {
		a := ask("prod", changes)
		e := a.refusal()
		if !a.is(http.StatusBadRequest, api.CodeInvalidTarget) || e.Description != "this job may not have this RunEnv role" {
			t.Errorf("%s: exchange = %v", reason, a)
		}
		if records := r.audited(e.RequestID); events(records) != "session.refused("+reason+")" || records[0].Claims["run_id"] != "7" {
			t.Errorf("%s: audit = %+v", reason, records)
		}
		if strings.Contains(string(a.body), reason) {
			t.Errorf("%s: the body says why: %s", reason, a.body)
		}
		if e.Claims["jti"] != "same" || e.Claims["run_id"] != "7" {
			t.Errorf("%s: claims = %v, want the caller's own", reason, e.Claims)
		}
	}
	// A renamed project is let in, and that is noted.
	k := newKey(t)
	s := r.opened(k, r.exchange(k, r.jobToken(map[string]any{"repository": "acme/new-name"}), "prod"))
	if got := r.audited(s.id); len(got) != 1 || !cmp.Equal(got[0].Notes, []string{"project_renamed"}) {
		t.Errorf("audit = %+v", got)
	}
}

func TestT19ForgedTokensLeaveTheDiskAlone(t *testing.T) {
	t.Parallel()
	path := closedFolder(t) + "/broker.db"
	r := newRig(t, func(s *settings) { s.path = path })
	size := func() (n int64) {
		for _, suffix := range []string{"", "-wal"} {
			if fi, err := os.Stat(path + suffix); err == nil {
				n += fi.Size()
			}
		}
		return n
	}
	h, p, _ := parts(r.github.Sign(r.github.GitHub(r.url)))
	k := newKey(t)
	before, entries := size(), len(r.entries())
	const n = 2000
	for i := range n {
		if a := r.exchange(k, fmt.Sprintf("%s.%s.%s", h, p, encode(fmt.Sprintf("forged %d", i))), "prod"); !a.is(http.StatusBadRequest, api.CodeInvalidRequest) {
			t.Fatalf("exchange %d = %v", i, a)
		}
	}
	if got := size(); got != before || len(r.entries()) != entries {
		t.Errorf("the store grew from %d to %d bytes and by %d entries", before, got, len(r.entries())-entries)
	}
	if got := r.metric(`runenv_tokens_rejected_total{reason="signature"}`); got != n {
		t.Errorf("counted %v forged tokens, want %d", got, n)
	}
	if r.github.KeyHits() > 1 {
		t.Errorf("%d fetches of the keys", r.github.KeyHits())
	}
}

// A genuine token that is good for nothing here can be had by anybody and sent
// for ever. It writes a bounded amount, and each that is told no is recorded.
func TestT19GenuineTokensWriteABoundedAmount(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	k := newKey(t)
	expired := r.github.Sign(r.github.GitHub(r.url, map[string]any{
		"iat": r.clock.Now().Add(-10 * time.Minute).Unix(), "exp": r.clock.Now().Add(-5 * time.Minute).Unix(),
	}))
	stranger := r.github.Sign(r.github.GitHub(r.url, map[string]any{"repository_id": "666", "repository": "mallory/x"}))
	for _, token := range []string{expired, stranger} {
		told, limited, before := 0, 0, len(r.entries())
		for range 510 {
			switch a := r.exchange(k, token, "prod"); {
			case a.status == http.StatusBadRequest:
				told++
			case a.is(http.StatusTooManyRequests, api.CodeRateLimited) && a.header.Get("Retry-After") != "" && a.refusal().Claims == nil:
				limited++
			default:
				t.Fatalf("exchange = %v", a)
			}
		}
		if recorded := len(r.entries()) - before; recorded != told || told > 501 || limited == 0 {
			t.Errorf("%d told no, %d recorded, %d limited: want as many recorded as told, at most 501", told, recorded, limited)
		}
	}
	// The neighbour's project isn't held up.
	if a := r.exchange(k, r.jobToken(map[string]any{"repository_id": "1002", "repository": "acme/shop-web"}), "prod"); a.status != http.StatusOK {
		t.Errorf("another project: exchange = %v", a)
	}
}

// P3: where the record can't be written, the caller isn't told even no.
func TestT19NoAnswerWithoutRecord(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	refused := map[string]func() answer{
		"a token for another": func() answer {
			return r.exchange(newKey(t), r.github.Sign(r.github.GitHub("https://other.example.com")), "prod")
		},
		"a role that isn't there": func() answer { return r.exchange(newKey(t), r.jobToken(), "nonesuch") },
		"a lease that isn't in the role": func() answer {
			return s.call(http.MethodPost, api.PathLeases, leaseBody("secret-lease"))
		},
	}
	for name, ask := range refused {
		if a := ask(); a.status >= 500 {
			t.Fatalf("%s = %v", name, a)
		}
		r.store.fail("Record")
		if a := ask(); !a.is(http.StatusInternalServerError, api.CodeServerError) || a.refusal().Claims != nil || a.refusal().Lease != "" {
			t.Errorf("%s, with an unwritable audit log = %v, want 500 and nothing else", name, a)
		}
		r.store.fail()
	}
}

func TestExchangeByGitLab(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	k := newKey(t)
	s := r.opened(k, r.exchange(k, r.gitlabToken(), "prod"))
	if got := r.audited(s.id); got[0].Project != "pay-api" || got[0].Issuer != "gitlab" || got[0].Claims["user_email"] != "" {
		t.Errorf("audit = %+v", got)
	}
	for _, e := range r.entries() {
		if strings.Contains(string(e.Body), "@example.com") {
			t.Errorf("the audit log holds an e-mail address: %s", e.Body)
		}
	}
	// A token of one issuer that names the other.
	r.gitlab.Rotate("ES256")
	forged := r.gitlab.Sign(r.gitlab.GitHub(r.url, map[string]any{"iss": r.github.URL}))
	if a := r.exchange(k, forged, "prod"); !a.is(http.StatusBadRequest, api.CodeInvalidRequest) || a.refusal().Claims != nil {
		t.Errorf("a token signed by the other issuer: %v", a)
	}
}

func TestExchangeWithIssuerDown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.github.Deny(http.StatusBadGateway)
	a := r.exchange(newKey(t), r.jobToken(), "prod")
	if !a.is(http.StatusServiceUnavailable, api.CodeTemporarily) || len(r.entries()) != 0 {
		t.Errorf("exchange = %v, %d entries: want 503 temporarily_unavailable and none", a, len(r.entries()))
	}
	// The other issuer's jobs don't notice.
	if a := r.exchange(newKey(t), r.gitlabToken(), "prod"); a.status != http.StatusOK {
		t.Errorf("exchange at the other issuer = %v", a)
	}
}
