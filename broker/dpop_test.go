package broker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/runenv/action/broker/api"
)

// badProofs are the ways in which a proof for a call can be wrong. access is
// "" at the exchange.
func badProofs(t *testing.T, r *rig, k key, method, path, access string) map[string][]string {
	t.Helper()
	type m = map[string]any
	good := func() proof { return r.proof(k, method, path, access) }
	claims := func(c m) []string { return []string{good().with(c).String()} }
	head := func(h m) []string { return []string{good().withHeader(h).String()} }
	at := func(d time.Duration) int64 { return r.clock.Now().Add(d).Unix() }
	text := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	other := newKey(t)
	private := k.jwk()
	d, err := k.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	private["d"] = encode(string(d))
	h, p, sig := parts(good().String())
	raw := func(header, claims string) []string { return []string{k.sign(header, claims)} }

	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(alg jose.SignatureAlgorithm, signer any) []string {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: signer}, (&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt"))
		if err != nil {
			t.Fatal(err)
		}
		jws, err := s.Sign([]byte(text(good().claims)))
		if err != nil {
			t.Fatal(err)
		}
		out, err := jws.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return []string{out}
	}

	bad := map[string][]string{
		"no proof":                     nil,
		"an empty proof":               {""},
		"two proofs":                   {good().String(), good().String()},
		"two proofs in one header":     {good().String() + ", " + good().String()},
		"garbage":                      {"garbage"},
		"two parts":                    {h + "." + p},
		"four parts":                   {h + "." + p + "." + sig + "." + sig},
		"no signature":                 {h + "." + p + "."},
		"another signature":            {h + "." + p + "." + encode(strings.Repeat("x", 64))},
		"signed by another key":        {proof{other, good().header, good().claims}.String()},
		"over 4 KiB":                   claims(m{"jti": strings.Repeat("x", 4<<10)}),
		"another method":               claims(m{"htm": "PUT"}),
		"the method in lower case":     claims(m{"htm": strings.ToLower(method)}),
		"no method":                    claims(m{"htm": nil}),
		"another path":                 claims(m{"htu": r.url + "/v1/other"}),
		"the path with a slash":        claims(m{"htu": r.url + path + "/"}),
		"the URL with a query":         claims(m{"htu": r.url + path + "?a=b"}),
		"the URL with a fragment":      claims(m{"htu": r.url + path + "#a"}),
		"another host":                 claims(m{"htu": "https://evil.example.com" + path}),
		"https":                        claims(m{"htu": strings.Replace(r.url, "http:", "https:", 1) + path}),
		"the path alone":               claims(m{"htu": path}),
		"no URL":                       claims(m{"htu": nil}),
		"61 seconds old":               claims(m{"iat": at(-61 * time.Second)}),
		"31 seconds ahead":             claims(m{"iat": at(31 * time.Second)}),
		"the year 1970":                claims(m{"iat": 0}),
		"a negative time":              claims(m{"iat": -1}),
		"the end of all integers":      claims(m{"iat": int64(1<<63 - 1)}),
		"a time beyond integers":       raw(text(good().header), strings.Replace(text(good().claims), `"iat":`, `"iat":9999999999999999999999,"x":`, 1)),
		"a fractional time":            claims(m{"iat": float64(at(0)) + 0.5}),
		"no time":                      claims(m{"iat": nil}),
		"a time in words":              claims(m{"iat": "now"}),
		"no id":                        claims(m{"jti": nil}),
		"an empty id":                  claims(m{"jti": ""}),
		"an id of 129 bytes":           claims(m{"jti": strings.Repeat("x", 129)}),
		"an id that is a number":       claims(m{"jti": 7}),
		"an unknown claim":             claims(m{"nonce": "x"}),
		"a doubled claim":              raw(text(good().header), strings.Replace(text(good().claims), "{", `{"htm":"`+method+`",`, 1)),
		"a claim in two cases":         raw(text(good().header), strings.Replace(text(good().claims), "{", `{"HTM":"`+method+`",`, 1)),
		"claims with a tail":           raw(text(good().header), text(good().claims)+"{}"),
		"claims that are a list":       raw(text(good().header), "["+text(good().claims)+"]"),
		"a typ of JWT":                 head(m{"typ": "JWT"}),
		"a typ in another case":        head(m{"typ": "DPOP+JWT"}),
		"no typ":                       head(m{"typ": nil}),
		"alg none":                     head(m{"alg": "none"}),
		"alg none without a signature": {encode(strings.Replace(text(good().header), "ES256", "none", 1)) + "." + p + "."},
		"alg HS256":                    head(m{"alg": "HS256"}),
		"alg ES384 in name":            head(m{"alg": "ES384"}),
		"alg RS256":                    signed(jose.RS256, rsaKey),
		"alg ES384":                    signed(jose.ES384, p384),
		"no key":                       head(m{"jwk": nil}),
		"a null key":                   raw(strings.Replace(text(good().header), `"jwk":`, `"jwk":null,"x":`, 1), text(good().claims)),
		"a private key":                head(m{"jwk": private}),
		"a symmetric key":              head(m{"jwk": m{"kty": "oct", "k": "AAAA"}}),
		"a key off the curve":          head(m{"jwk": m{"kty": "EC", "crv": "P-256", "x": encode(strings.Repeat("\x01", 32)), "y": encode(strings.Repeat("\x02", 32))}}),
		"a key with a certificate":     head(m{"jwk": put(k.jwk(), m{"x5u": "https://evil.example.com"})}),
		"a key id":                     head(m{"kid": "x"}),
		"a jku":                        head(m{"jku": "https://evil.example.com"}),
		"crit":                         head(m{"crit": []string{"b64"}, "b64": false}),
		"zip":                          head(m{"zip": "DEF"}),
		"a header with a tail":         raw(text(good().header)+"{}", text(good().claims)),
		"a doubled alg":                raw(strings.Replace(text(good().header), "{", `{"alg":"ES256",`, 1), text(good().claims)),
		"JSON instead of compact":      {`{"payload":"` + p + `","protected":"` + h + `","signature":"` + sig + `"}`},
	}
	if access == "" {
		bad["a token's hash at the exchange"] = claims(m{"ath": ath("x")})
	} else {
		bad["no token's hash"] = claims(m{"ath": nil})
		bad["another token's hash"] = claims(m{"ath": ath(access + "x")})
		bad["the token itself as hash"] = claims(m{"ath": access})
	}
	return bad
}

func TestT13ProofAtExchange(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	k := newKey(t)
	token := r.jobToken()
	for name, proofs := range badProofs(t, r, k, http.MethodPost, api.PathToken, "") {
		t.Run(name, func(t *testing.T) {
			a := r.exchange(k, token, "prod", header(api.HeaderDPoP, proofs...))
			if !a.is(http.StatusBadRequest, api.CodeInvalidDPoP) || a.refusal().Claims != nil {
				t.Errorf("exchange = %v, want 400 invalid_dpop_proof", a)
			}
		})
	}
	if len(r.entries()) != 0 {
		t.Errorf("%d audit entries of calls that proved nothing", len(r.entries()))
	}
	// The token is as good as new.
	r.opened(k, r.exchange(k, token, "prod"))
}

func TestT13ProofInSession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	for name, proofs := range badProofs(t, r, s.key, http.MethodPost, api.PathHeartbeat, s.access) {
		t.Run(name, func(t *testing.T) {
			a := s.call(http.MethodPost, api.PathHeartbeat, "", header(api.HeaderDPoP, proofs...))
			if !a.is(http.StatusUnauthorized, api.CodeInvalidDPoP) {
				t.Errorf("heartbeat = %v, want 401 invalid_dpop_proof", a)
			}
			if want := `DPoP algs="ES256", error="invalid_dpop_proof"`; a.header.Get("WWW-Authenticate") != want {
				t.Errorf("WWW-Authenticate = %q, want %q", a.header.Get("WWW-Authenticate"), want)
			}
		})
	}
}

func TestT13ProofNearMisses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	type m = map[string]any
	for name, c := range map[string]m{
		"60 seconds old":   {"iat": r.clock.Now().Add(-60 * time.Second).Unix()},
		"30 seconds ahead": {"iat": r.clock.Now().Add(30 * time.Second).Unix()},
		"a long id":        {"jti": strings.Repeat("x", 128)},
	} {
		p := r.proof(s.key, http.MethodPost, api.PathHeartbeat, s.access).with(c)
		if a := s.call(http.MethodPost, api.PathHeartbeat, "", dpop(p)); a.status != http.StatusOK {
			t.Errorf("%s: heartbeat = %v, want 200", name, a)
		}
	}
	// The query isn't part of what is proved.
	if a := s.call(http.MethodPost, api.PathHeartbeat, "", func(q *http.Request) { q.URL.RawQuery = "a=b" }); a.status != http.StatusOK {
		t.Errorf("with a query: heartbeat = %v, want 200", a)
	}
}

// A proof counts once where it gets something, and its refusal gives nothing.
func TestT13ProofReplayed(t *testing.T) {
	t.Parallel()
	r := newRig(t)

	k := newKey(t)
	p := r.proof(k, http.MethodPost, api.PathToken, "")
	r.opened(k, r.exchange(k, r.jobToken(), "prod", dpop(p)))
	a := r.exchange(k, r.jobToken(), "prod", dpop(p))
	if !a.is(http.StatusBadRequest, api.CodeInvalidDPoP) || events(r.audited(a.refusal().RequestID)) != "session.refused(replayed)" {
		t.Errorf("exchange with a used proof = %v, %v", a, events(r.audited(a.refusal().RequestID)))
	}
	// The same id with a new signature and time is used as well.
	again := p.with(map[string]any{"iat": r.clock.Now().Add(time.Second).Unix()})
	if a := r.exchange(k, r.jobToken(), "prod", dpop(again)); a.status == http.StatusOK {
		t.Errorf("exchange with a used proof's id = %v", a)
	}
	// Another key may have the same id.
	k2 := newKey(t)
	r.opened(k2, r.exchange(k2, r.jobToken(), "prod", dpop(r.proof(k2, http.MethodPost, api.PathToken, "").with(map[string]any{"jti": p.claims["jti"]}))))

	s := r.open("prod")
	once := func(path, body string) {
		t.Helper()
		p := dpop(r.proof(s.key, http.MethodPost, path, s.access))
		if a := s.call(http.MethodPost, path, body, p); a.status != http.StatusOK {
			t.Errorf("POST %s = %v, want 200", path, a)
		}
		before := s.states()
		if a := s.call(http.MethodPost, path, body, p); !a.is(http.StatusUnauthorized, api.CodeInvalidDPoP) {
			t.Errorf("POST %s with a used proof = %v, want 401 invalid_dpop_proof", path, a)
		}
		if after := s.states(); after != before {
			t.Errorf("a used proof changed %s to %s", before, after)
		}
	}
	id := s.lease("db")[0].ID
	once(api.PathLeases, leaseBody("db"))
	once(api.PathLeases+"/"+id+"/renew", "")
	once(api.PathExplain, leaseBody("db"))
	once(api.PathReport, `{"scan":"off"}`)

	// What is idempotent may come twice.
	for _, c := range []struct{ method, path string }{
		{http.MethodPost, api.PathHeartbeat}, {http.MethodDelete, api.PathLeases + "/" + id}, {http.MethodDelete, api.PathSession},
	} {
		p := dpop(r.proof(s.key, c.method, c.path, s.access))
		for range 2 {
			if a := s.call(c.method, c.path, "", p); a.status != http.StatusOK {
				t.Errorf("%s %s = %v, want 200", c.method, c.path, a)
			}
		}
	}
}

// A used proof is remembered for as long as it would count.
func TestT13ProofRememberedToItsEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.open("prod")
	p := dpop(r.proof(s.key, http.MethodPost, api.PathLeases, s.access).with(map[string]any{"iat": r.clock.Now().Add(30 * time.Second).Unix()}))
	if a := s.call(http.MethodPost, api.PathLeases, leaseBody("npm"), p); a.status != http.StatusOK {
		t.Fatal(a)
	}
	for range 3 {
		r.clock.add(30 * time.Second)
		if err := r.sqlite.Forget(t.Context(), r.clock.Now(), r.clock.Now(), 100); err != nil {
			t.Fatal(err)
		}
		if a := s.call(http.MethodPost, api.PathLeases, leaseBody("npm"), p); !a.is(http.StatusUnauthorized, api.CodeInvalidDPoP) {
			t.Errorf("a used proof = %v, want 401 invalid_dpop_proof", a)
		}
	}
}

// htu comes from the configured url alone: behind a proxy that ends TLS the
// Host may be any, and a proof for that host is for another.
func TestT13HostDoesNotMatter(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *settings) { s.url = "https://runenv.example.com" })
	s := r.open("prod")
	for _, name := range []string{"runenv.example.com", "internal-7.example.net", "127.0.0.1"} {
		if a := s.call(http.MethodPost, api.PathHeartbeat, "", host(name)); a.status != http.StatusOK {
			t.Errorf("Host %s: heartbeat = %v, want 200", name, a)
		}
		for _, htu := range []string{"https://evil.example.com", "http://runenv.example.com", r.base} {
			p := r.proof(s.key, http.MethodPost, api.PathHeartbeat, s.access).with(map[string]any{"htu": htu + api.PathHeartbeat})
			a := s.call(http.MethodPost, api.PathHeartbeat, "", dpop(p), host(strings.TrimPrefix(strings.TrimPrefix(htu, "https://"), "http://")))
			if !a.is(http.StatusUnauthorized, api.CodeInvalidDPoP) {
				t.Errorf("a proof for %s and its Host: heartbeat = %v, want 401 invalid_dpop_proof", htu, a)
			}
		}
	}
}
