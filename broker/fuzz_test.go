package broker_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/runenv/action/broker/api"
)

// maxRefusal bounds an answer to what nobody signed, in bytes.
const maxRefusal = 512

// serve calls the handler without a network, and says what each refusal must
// be: JSON with a code and a request id, short, and never a success.
func (r *rig) serve(t *testing.T, req *http.Request) *httptest.ResponseRecorder {
	t.Helper()
	rec := httptest.NewRecorder()
	r.broker.Handler().ServeHTTP(rec, req)
	var e api.Error
	if rec.Code < 400 || rec.Code >= 500 || rec.Body.Len() > maxRefusal || json.Unmarshal(rec.Body.Bytes(), &e) != nil || e.Code == "" || e.RequestID == "" {
		t.Fatalf("answer = %d %q, want a refusal", rec.Code, rec.Body)
	}
	return rec
}

// FuzzTokenForm sends any body to the token endpoint. Nobody signed it, so no
// session comes of it, nothing is recorded, and no part of it comes back.
func FuzzTokenForm(f *testing.F) {
	f.Add("grant_type=x&subject_token=a.b.c", formType)
	f.Add(form("e30.e30.", "prod").Encode(), formType)
	f.Add(form("a", "prod").Encode()+"&audience=odd", formType)
	f.Add(formWith("e30.e30.", "prod", "{}")+"&leases=", formType)
	f.Add(strings.Repeat("&", api.MaxTokenRequest+1), formType)
	f.Add("%zz;=", formType+"; charset=\"x")
	f.Add("{}", "application/json")
	r := newRig(f)
	k := newKey(f)
	f.Fuzz(func(t *testing.T, body, contentType string) {
		r.clock.add(1e9) // no limit is under test
		req := httptest.NewRequest(http.MethodPost, r.url+api.PathToken, strings.NewReader(body))
		req.Header.Set("Content-Type", contentType)
		req.Header.Set(api.HeaderDPoP, r.proof(k, http.MethodPost, api.PathToken, "").String())
		rec := r.serve(t, req)
		if len(body) > 64 && strings.Contains(rec.Body.String(), body[:64]) {
			t.Errorf("the body comes back: %s", rec.Body)
		}
		if n := len(r.entries()); n != 0 {
			t.Fatalf("%d entries of what nobody signed", n)
		}
	})
}

// FuzzLeasesParameter sends any leases with a genuine exchange. Either a session
// comes of it that holds nothing but the role's, or a refusal and no session,
// of which at most one record tells.
func FuzzLeasesParameter(f *testing.F) {
	f.Add(`{}`)
	f.Add(`{"leases":["npm"],"references":[{"ref":"vault://secret/x#y","variable":"X"}],"replaces":["l-x"]}`)
	f.Add(`{"leases":["secret-lease"]}`)
	f.Add(`{"leases":["npm"],"references":[{"ref":"vault://secret/x","variable":"X_*"},{"ref":"aws-sm://x#","variable":"_FILE"}]}`)
	r := newRig(f)
	k := newKey(f)
	f.Fuzz(func(t *testing.T, leases string) {
		r.clock.add(1e9) // no limit is under test
		req := httptest.NewRequest(http.MethodPost, r.url+api.PathToken, strings.NewReader(formWith(r.jobToken(), "prod", leases)))
		req.Header.Set("Content-Type", formType)
		req.Header.Set(api.HeaderDPoP, r.proof(k, http.MethodPost, api.PathToken, "").String())
		rec := httptest.NewRecorder()
		r.broker.Handler().ServeHTTP(rec, req)
		var got api.Token
		if rec.Code == http.StatusOK {
			if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil || got.Leases == nil || len(got.Leases.Leases) == 0 {
				t.Fatalf("answer without leases: %v", err)
			}
			for _, l := range got.Leases.Leases {
				if l.Name != "npm" && l.Name != "db" {
					t.Errorf("a lease %q", l.Name)
				}
			}
			return
		}
		var refused api.Error
		if rec.Code < 400 || rec.Code > 413 || rec.Body.Len() > 4<<10 || json.Unmarshal(rec.Body.Bytes(), &refused) != nil {
			t.Fatalf("answer = %d %s, want a refusal", rec.Code, rec.Body)
		}
		told, err := r.sqlite.EntriesAbout(t.Context(), refused.RequestID, 10)
		if err != nil || len(told) > 1 || (len(told) == 1 && told[0].Event != "session.refused") {
			t.Errorf("the audit log tells of the refusal %v, %v", told, err)
		}
	})
}

// FuzzProof sends any proof with a genuine access token: as it is, and as
// header and claims that the session's own key signs. Only the one good header
// with good claims would do, and the fuzzer can't know the token's hash.
func FuzzProof(f *testing.F) {
	r := newRig(f)
	s := r.open("prod")
	good := r.proof(s.key, http.MethodPost, api.PathHeartbeat, s.access)
	head, err := json.Marshal(good.header)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a.b.c", `{"typ":"dpop+jwt","alg":"ES256","jwk":null}`, `{}`)
	f.Add("", string(head), `{"jti":"a","htm":"POST","htu":"x","iat":1,"ath":""}`)
	f.Add("..", `{"typ":"dpop+jwt","alg":"none","jwk":{"kty":"EC","crv":"P-256","x":"","y":""}}`, `{"iat":1e400}`)
	f.Add(good.with(map[string]any{"ath": nil}).String(), strings.ToUpper(string(head)), `[]`)
	f.Fuzz(func(t *testing.T, proof, head, claims string) {
		if strings.Contains(claims, ath(s.access)) || !utf8.ValidString(proof) {
			return
		}
		for _, p := range []string{proof, s.key.sign(head, claims)} {
			req := httptest.NewRequest(http.MethodPost, r.url+api.PathHeartbeat, nil)
			req.Header.Set("Authorization", "DPoP "+s.access)
			req.Header.Set(api.HeaderDPoP, p)
			if rec := r.serve(t, req); rec.Code != http.StatusUnauthorized {
				t.Errorf("proof %q = %d %s, want 401", p, rec.Code, rec.Body)
			}
		}
	})
}
