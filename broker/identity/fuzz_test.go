package identity

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/runenv/action/broker/identity/identitytest"
	"github.com/runenv/action/secret"
)

// FuzzVerify signs whatever it is given with a key that the verifier trusts.
// Either we refuse it, or go-oidc by itself, a struct and a map, all of which
// read more laxly, agree with us.
func FuzzVerify(f *testing.F) {
	iss := identitytest.New(f)
	iss.Rotate("ES256")
	now := time.Date(2026, 11, 3, 12, 0, 0, 0, time.UTC)
	const issuerURL = "https://ci.example.com"
	v, err := NewVerifier(Config{
		Audience: brokerURL, Now: func() time.Time { return now },
		Issuers: []IssuerConfig{{Name: "ci", Profile: "github", URL: issuerURL, JWKS: iss.JWKS()}},
	})
	if err != nil {
		f.Fatal(err)
	}
	iss.SetNow(func() time.Time { return now })
	header := `{"alg":"ES256","kid":"` + iss.KeyID() + `","typ":"JWT"}`
	good, err := json.Marshal(iss.GitHub(brokerURL, object{"iss": issuerURL}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(header), good)
	for _, member := range []string{`"sub":"t",`, `"Sub":"t",`, `"\u0053ub":"t",`, `"nbf":null,`, `"nonce":1,`, `"a":{"a":[{}]},`} {
		f.Add([]byte(header), append([]byte("{"+member), good[1:]...))
	}
	f.Add([]byte(`{"alg":"none"}`), good)
	f.Add([]byte(`{"crit":["b64"],"b64":false,`+header[1:]), good)
	theirs := oidc.NewVerifier(issuerURL, &oidc.StaticKeySet{PublicKeys: []crypto.PublicKey{iss.PublicKey()}}, &oidc.Config{
		ClientID: brokerURL, SupportedSigningAlgs: []string{"RS256", "ES256"},
		Now: func() time.Time { return now.Add(-leeway) },
	})

	f.Fuzz(func(t *testing.T, header, payload []byte) {
		token := iss.SignRaw(header, payload)
		id, err := v.Verify(context.Background(), secret.FromString(token))
		if err != nil {
			if e, ok := errors.AsType[*Error](err); !ok || e.Reason == ReasonDisagreement && e.Identity() == nil {
				t.Errorf("Verify = %v, want an *Error, with the identity if it was a disagreement", err)
			}
			return
		}
		other, err := theirs.Verify(context.Background(), token)
		if err != nil {
			t.Fatalf("we accept what go-oidc refuses: %v", err)
		}
		var s struct {
			Sub, Jti string
			Project  string `json:"repository_id"`
			Exp, Iat int64
		}
		if err := json.Unmarshal(payload, &s); err != nil {
			t.Fatalf("we accept what a struct can't hold: %v", err)
		}
		if other.Subject != id.Subject || s.Sub != id.Subject || s.Jti != id.JTI || s.Project != id.ProjectID {
			t.Errorf("we read %q %q %q, go-oidc %q, a struct %+v", id.Subject, id.JTI, id.ProjectID, other.Subject, s)
		}
		if !other.Expiry.Equal(id.Expires) || s.Exp != id.Expires.Unix() || s.Iat != id.IssuedAt.Unix() {
			t.Errorf("we read %v to %v, go-oidc %v, a struct %+v", id.IssuedAt, id.Expires, other.Expiry, s)
		}
		if id.Expires.After(now.Add(10*time.Minute)) || id.Expires.Before(now.Add(-leeway)) {
			t.Errorf("a token that ends at %v was accepted at %v", id.Expires, now)
		}
		if id.Claims()["iss"] != issuerURL {
			t.Errorf("a token of %v was accepted", id.Claims()["iss"])
		}
	})
}

// FuzzParse gives raw bytes: nothing may panic, and what is accepted is within
// the limits and read alike by encoding/json.
func FuzzParse(f *testing.F) {
	f.Add([]byte(join(goodHeader, goodPayload)))
	f.Add([]byte(join(goodHeader, with(`"a":[[[[[[[1]]]]]]]`))))
	f.Add([]byte(strings.Repeat(".", 100)))
	f.Add([]byte("eyJ.eyJ.c2ln\n"))
	f.Fuzz(func(t *testing.T, token []byte) {
		p, e := parse(token)
		if e != nil {
			return
		}
		if len(token) > maxTokenBytes || bytes.ContainsAny(token, "\r\n =") || p.text != string(token) {
			t.Errorf("accepted %q", token)
		}
		var m map[string]any
		if err := json.Unmarshal(p.payload, &m); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		if len(m) != len(p.claims) || m["sub"] != p.subject || m["iss"] != p.issuer || m["jti"] != p.jti {
			t.Errorf("read %+v, encoding/json %v", p, m)
		}
	})
}

// FuzzParseKeys: what an issuer serves never panics, and every key taken is
// one that may verify.
func FuzzParseKeys(f *testing.F) {
	iss := identitytest.New(f)
	iss.Rotate("ES256")
	f.Add(iss.JWKS())
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA","kid":"a"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"a"}]}`))
	algorithms := []string{"RS256", "ES256", "EdDSA"}
	f.Fuzz(func(t *testing.T, doc []byte) {
		keys, err := parseKeys(doc, algorithms)
		if (err == nil) != (len(keys) > 0) || len(keys) > maxKeys {
			t.Errorf("parseKeys = %d keys, %v", len(keys), err)
		}
		for i, k := range keys {
			if algs := algorithmsOf(k.key); len(algs) == 0 || k.kid == "" {
				t.Errorf("key %q of type %T was taken", k.kid, k.key)
			}
			for _, o := range keys[:i] {
				if o.kid == k.kid && o.alg == k.alg {
					t.Errorf("key %q for %s was taken twice", k.kid, k.alg)
				}
			}
		}
	})
}

// FuzzDiscovery: whatever the document says, the keys are fetched at the
// issuer's own origin or not at all.
func FuzzDiscovery(f *testing.F) {
	u, err := checkIssuerURL("https://ci.example.com", false)
	if err != nil {
		f.Fatal(err)
	}
	fetch := newFetcher(u, nil, nil, nil, false)
	for _, uri := range []string{
		"https://ci.example.com/jwks", "https://ci.example.com:443/jwks", "https://ci.example.com@evil.com/",
		`https://ci.example.com\\@evil.com/`, "//ci.example.com/jwks", "https:ci.example.com", "https://CI.EXAMPLE.COM/%2e%2e/",
	} {
		f.Add([]byte(`{"issuer":"https://ci.example.com","jwks_uri":"` + uri + `"}`))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		keysURL, err := fetch.keysURL(doc)
		if err != nil {
			return
		}
		rest, ok := strings.CutPrefix(strings.ToLower(keysURL), "https://ci.example.com")
		if !ok || rest != "" && rest[0] != '/' && rest[0] != '?' {
			t.Errorf("keysURL = %q", keysURL)
		}
	})
}
