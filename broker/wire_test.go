package broker_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/runenv/action/broker/api"
)

// An answer is a response, read.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// refusal decodes an error's body.
func (a answer) refusal() api.Error {
	var e api.Error
	_ = json.Unmarshal(a.body, &e)
	e.Status = a.status
	return e
}

// is says whether the answer has this status and error code ("" for none).
func (a answer) is(status int, code string) bool {
	return a.status == status && a.refusal().Code == code
}

func (a answer) String() string {
	if a.status >= 400 {
		return fmt.Sprintf("%d %s", a.status, a.body)
	}
	return fmt.Sprint(a.status)
}

// anonymous is the body without the request's id.
func (a answer) anonymous(t testing.TB) string {
	t.Helper()
	id := a.refusal().RequestID
	if id == "" || a.header.Get(api.HeaderRequestID) != id {
		t.Errorf("request_id %q, header %q: want one id in both", id, a.header.Get(api.HeaderRequestID))
	}
	return strings.ReplaceAll(string(a.body), id, "ID")
}

type option func(*http.Request)

func header(name string, values ...string) option {
	return func(r *http.Request) {
		r.Header.Del(name)
		for _, v := range values {
			r.Header.Add(name, v)
		}
	}
}

func authorization(scheme, token string) option {
	return header("Authorization", scheme+" "+token)
}

func host(name string) option { return func(r *http.Request) { r.Host = name } }

// send makes one request. An error's body is searched for secrets.
func (r *rig) send(method, path, body string, options ...option) answer {
	r.t.Helper()
	a, err := r.try(r.t.Context(), method, path, body, options...)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

func (r *rig) try(ctx context.Context, method, path, body string, options ...option) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, r.base+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for _, o := range options {
		o(req)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	if resp.StatusCode >= 400 {
		if s := r.shown(string(got)); s != "" {
			r.t.Errorf("%s %s: the error's body shows %q", method, path, s)
		}
	}
	return answer{resp.StatusCode, resp.Header, got}, nil
}

// A key is a client's.
type key struct{ *ecdsa.PrivateKey }

func newKey(t testing.TB) key {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key{k}
}

func (k key) jwk() map[string]any {
	b, err := (&jose.JSONWebKey{Key: &k.PublicKey}).MarshalJSON()
	if err != nil {
		panic(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		panic(err)
	}
	return m
}

// A proof is a DPoP proof before it is signed. Maps of changes are put over
// it; nil takes a member away.
type proof struct {
	key            key
	header, claims map[string]any
}

// proof is a good one.
func (r *rig) proof(k key, method, path, access string) proof {
	claims := map[string]any{"jti": rand.Text(), "htm": method, "htu": r.url + path, "iat": r.clock.Now().Unix()}
	if access != "" {
		claims["ath"] = ath(access)
	}
	return proof{k, map[string]any{"typ": "dpop+jwt", "alg": "ES256", "jwk": k.jwk()}, claims}
}

func ath(access string) string {
	sum := sha256.Sum256([]byte(access))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (p proof) with(claims map[string]any) proof {
	p.claims = put(p.claims, claims)
	return p
}

func (p proof) withHeader(header map[string]any) proof {
	p.header = put(p.header, header)
	return p
}

func put(base, changes map[string]any) map[string]any {
	out := maps.Clone(base)
	maps.Copy(out, changes)
	maps.DeleteFunc(out, func(_ string, v any) bool { return v == nil })
	return out
}

func (p proof) String() string {
	h, err := json.Marshal(p.header)
	if err != nil {
		panic(err)
	}
	c, err := json.Marshal(p.claims)
	if err != nil {
		panic(err)
	}
	return p.key.sign(string(h), string(c))
}

// sign makes a compact JWS by ES256 of any header and payload.
func (k key) sign(header, payload string) string {
	enc := base64.RawURLEncoding.EncodeToString
	input := enc([]byte(header)) + "." + enc([]byte(payload))
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, k.PrivateKey, sum[:])
	if err != nil {
		panic(err)
	}
	return input + "." + enc(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

func dpop(proofs ...proof) option {
	var values []string
	for _, p := range proofs {
		values = append(values, p.String())
	}
	return header(api.HeaderDPoP, values...)
}

// form is the body of an exchange.
func form(token, role string) url.Values {
	return url.Values{
		"grant_type": {api.GrantTokenExchange}, "subject_token": {token},
		"subject_token_type": {api.TokenTypeID}, "audience": {role},
	}
}

const formType = "application/x-www-form-urlencoded"

// exchange sends a token with a good proof by k.
func (r *rig) exchange(k key, token, role string, options ...option) answer {
	r.t.Helper()
	return r.exchangeForm(k, form(token, role).Encode(), options...)
}

func (r *rig) exchangeForm(k key, body string, options ...option) answer {
	r.t.Helper()
	options = append([]option{header("Content-Type", formType), dpop(r.proof(k, http.MethodPost, api.PathToken, ""))}, options...)
	return r.send(http.MethodPost, api.PathToken, body, options...)
}

// A session is one that was opened.
type session struct {
	r           *rig
	key         key
	id          string
	access, end string
	token       api.Token
}

// jobToken is the token of a job on the default branch of shop-api; each call is
// another job.
func (r *rig) jobToken(changes ...map[string]any) string {
	changes = append([]map[string]any{{"run_id": fmt.Sprint(time.Now().UnixNano())}}, changes...)
	token := r.github.Sign(r.github.GitHub(r.url, changes...))
	r.hide(token)
	return token
}

func (r *rig) gitlabToken(changes ...map[string]any) string {
	token := r.gitlab.Sign(r.gitlab.GitLab(r.url, changes...))
	r.hide(token)
	return token
}

// open makes a session of a new job.
func (r *rig) open(role string) *session {
	r.t.Helper()
	k := newKey(r.t)
	return r.opened(k, r.exchange(k, r.jobToken(), role))
}

func (r *rig) opened(k key, a answer) *session {
	r.t.Helper()
	if a.status != http.StatusOK {
		r.t.Fatalf("exchange = %v, want 200", a)
	}
	s := &session{r: r, key: k}
	if err := json.Unmarshal(a.body, &s.token); err != nil {
		r.t.Fatal(err)
	}
	s.id, s.access, s.end = s.token.SessionID, string(s.token.AccessToken.Reveal()), string(s.token.EndToken.Reveal())
	r.hide(s.access, s.end)
	return s
}

// call makes a request of the session with a good proof; options come after.
func (s *session) call(method, path, body string, options ...option) answer {
	s.r.t.Helper()
	return s.r.send(method, path, body, append(s.proved(method, path), options...)...)
}

func (s *session) proved(method, path string) []option {
	return []option{authorization(api.SchemeDPoP, s.access), dpop(s.r.proof(s.key, method, path, s.access))}
}

// lease asks for leases that must be given.
func (s *session) lease(names ...string) []api.Lease {
	s.r.t.Helper()
	return s.leased(s.call(http.MethodPost, api.PathLeases, leaseBody(names...)))
}

func (s *session) leased(a answer) []api.Lease {
	s.r.t.Helper()
	var out api.Leases
	if err := json.Unmarshal(a.body, &out); err != nil || a.status != http.StatusOK {
		s.r.t.Fatalf("leasing = %v (%v), want 200", a, err)
	}
	for _, l := range out.Leases {
		for _, v := range l.Env {
			if v.Mask {
				s.r.hide(string(v.Value.Reveal()))
			}
		}
	}
	return out.Leases
}

func leaseBody(names ...string) string {
	b, err := json.Marshal(api.LeaseRequest{Leases: append([]string{}, names...)})
	if err != nil {
		panic(err)
	}
	return string(b)
}
