package issuer_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/issuer"
	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/store"
)

const brokerURL = "https://runenv.example.com"

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// keys is a key store in memory that can be made to fail.
type keys struct {
	mu                sync.Mutex
	rows              []store.Key
	ensured           int // how many keys EnsureKeys was given
	errKeys, errWrite error
	// blind makes Keys see nothing, as in a race with another broker.
	blind bool
}

func (k *keys) Keys(ctx context.Context) ([]store.Key, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.blind {
		return nil, k.errKeys
	}
	return slices.Clone(k.rows), errors.Join(k.errKeys, ctx.Err())
}

func (k *keys) EnsureKeys(_ context.Context, _ time.Time, given []store.Key) ([]store.Key, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.errWrite != nil {
		return nil, k.errWrite
	}
	var out []store.Key
	for _, g := range given {
		k.ensured++
		i := slices.IndexFunc(k.rows, func(r store.Key) bool { return r.Purpose == g.Purpose })
		if i < 0 {
			k.rows, i = append(k.rows, g), len(k.rows)
		}
		out = append(out, k.rows[i])
	}
	return out, nil
}

// open opens an issuer that is served on a server of its own.
func open(t *testing.T, ks *keys, sealer seal.Sealer) (*issuer.Issuer, string) {
	t.Helper()
	var handler http.Handler
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	t.Cleanup(srv.Close)
	iss, err := issuer.Open(t.Context(), issuer.Config{
		URL: srv.URL, BrokerURL: brokerURL, Keys: ks, Sealer: sealer, Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	handler = iss.Handler()
	return iss, srv.URL
}

func reopen(t *testing.T, ks *keys, sealer seal.Sealer) (*issuer.Issuer, error) {
	t.Helper()
	return issuer.Open(t.Context(), issuer.Config{URL: "https://oidc.example.com", BrokerURL: brokerURL, Keys: ks, Sealer: sealer})
}

// verify reads a token as a back end does: discovery, key set, signature.
func verify(t *testing.T, issuerURL, audience, token string, at time.Time) (map[string]any, error) {
	t.Helper()
	provider, err := oidc.NewProvider(t.Context(), issuerURL)
	if err != nil {
		t.Fatal(err)
	}
	verified, err := provider.Verifier(&oidc.Config{ClientID: audience, Now: func() time.Time { return at }}).Verify(t.Context(), token)
	if err != nil {
		return nil, err
	}
	claims := map[string]any{}
	if err := verified.Claims(&claims); err != nil {
		t.Fatal(err)
	}
	return claims, nil
}

func valid() issuer.Claims {
	return issuer.Claims{
		Audience: "https://vault.example.com:8200", Role: "prod", Session: "s-7Qx",
		Extra: map[string]string{
			"project": "shop-api", "project_id": "1001", "repository": "acme/shop-api",
			"run_id": "20000000001", "environment": "", "ref": "refs/heads/fix#7 é",
		},
	}
}

// set returns the published keys by algorithm.
func set(t *testing.T, iss *issuer.Issuer) map[string]jose.JSONWebKey {
	t.Helper()
	var s jose.JSONWebKeySet
	if err := json.Unmarshal(iss.JWKS(), &s); err != nil {
		t.Fatal(err)
	}
	out := map[string]jose.JSONWebKey{}
	for _, k := range s.Keys {
		out[k.Algorithm] = k
	}
	return out
}

func TestT34TokenSaysForWhomToWhomAndNoMore(t *testing.T) {
	t.Parallel()
	iss, issuerURL := open(t, &keys{}, seal.Ephemeral())
	for _, alg := range []string{"", issuer.ES256, issuer.RS256} {
		t.Run("alg="+alg, func(t *testing.T) {
			t.Parallel()
			c := valid()
			token, err := iss.Mint(t.Context(), c, alg)
			if err != nil {
				t.Fatal(err)
			}
			got, err := verify(t, issuerURL, c.Audience, token, now)
			if err != nil {
				t.Fatalf("Verify = %v", err)
			}
			if jti, _ := got["jti"].(string); len(jti) < 22 {
				t.Errorf("jti = %q, want 128 random bits", jti)
			}
			delete(got, "jti")
			at := float64(now.Unix())
			want := map[string]any{
				"iss": issuerURL, "sub": "runenv:role:prod", "aud": "https://vault.example.com:8200",
				"iat": at, "nbf": at - 60, "exp": at + 300,
				"role": "prod", "session_id": "s-7Qx",
				"project": "shop-api", "project_id": "1001", "repository": "acme/shop-api", "run_id": "20000000001",
				"ref":                                    "refs/heads/fix#7 é",
				"https://aws.amazon.com/source_identity": "s-7Qx",
				"https://aws.amazon.com/tags": map[string]any{"principal_tags": map[string]any{
					"role": []any{"prod"}, "session_id": []any{"s-7Qx"},
					"project": []any{"shop-api"}, "project_id": []any{"1001"}, "repository": []any{"acme/shop-api"},
					"run_id": []any{"20000000001"}, "ref": []any{"refs/heads/fix=237=20=C3=A9"},
				}},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("claims differ (-want +got):\n%s", diff)
			}

			wantAlg := alg
			if alg == "" {
				wantAlg = "ES256"
			}
			header, err := base64.RawURLEncoding.DecodeString(token[:strings.IndexByte(token, '.')])
			if err != nil {
				t.Fatal(err)
			}
			var h map[string]string
			if err := json.Unmarshal(header, &h); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string]string{"alg": wantAlg, "typ": "JWT", "kid": set(t, iss)[wantAlg].KeyID}, h); diff != "" {
				t.Errorf("header differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestT34TokenIsGoodForOneAudienceAndFiveMinutes(t *testing.T) {
	t.Parallel()
	iss, issuerURL := open(t, &keys{}, seal.Ephemeral())
	token, err := iss.Mint(t.Context(), valid(), "")
	if err != nil {
		t.Fatal(err)
	}
	aud := valid().Audience
	for name, tt := range map[string]struct {
		audience string
		at       time.Time
		want     bool
	}{
		"at once":                {aud, now, true},
		"last second":            {aud, now.Add(5*time.Minute - time.Second), true},
		"after its life":         {aud, now.Add(5*time.Minute + time.Second), false},
		"at another back end":    {"sts.amazonaws.com", now, false},
		"at the broker":          {brokerURL, now, false},
		"at a prefix of its own": {aud[:len(aud)-1], now, false},
	} {
		if _, err := verify(t, issuerURL, tt.audience, token, tt.at); (err == nil) != tt.want {
			t.Errorf("%s: Verify = %v, want good = %v", name, err, tt.want)
		}
	}
	other, otherURL := open(t, &keys{}, seal.Ephemeral())
	foreign, err := other.Mint(t.Context(), valid(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verify(t, issuerURL, aud, foreign, now); err == nil {
		t.Errorf("a token of %s was good at %s", otherURL, issuerURL)
	}
}

func TestT34MintRefuses(t *testing.T) {
	t.Parallel()
	iss, issuerURL := open(t, &keys{}, seal.Ephemeral())
	extra := func(name, value string) func(*issuer.Claims) {
		return func(c *issuer.Claims) { c.Extra = map[string]string{name: value} }
	}
	many := func(n, bytes int) func(*issuer.Claims) {
		return func(c *issuer.Claims) {
			c.Extra = map[string]string{}
			for i := range n {
				c.Extra["c"+strings.Repeat("x", i)] = strings.Repeat("v", bytes)
			}
		}
	}
	tests := []struct {
		name string
		edit func(*issuer.Claims)
		ok   bool
	}{
		{"nothing wrong", func(*issuer.Claims) {}, true},
		{"no extra claims", func(c *issuer.Claims) { c.Extra = nil }, true},
		{"no audience", func(c *issuer.Claims) { c.Audience = "" }, false},
		{"the broker", func(c *issuer.Claims) { c.Audience = brokerURL }, false},
		{"the broker with a slash", func(c *issuer.Claims) { c.Audience = brokerURL + "/" }, false},
		{"the broker in capitals", func(c *issuer.Claims) { c.Audience = strings.ToUpper(brokerURL) }, false},
		{"the issuer", func(c *issuer.Claims) { c.Audience = issuerURL }, false},
		{"below the broker", func(c *issuer.Claims) { c.Audience = brokerURL + "/vault" }, true},
		{"an audience of GCP", func(c *issuer.Claims) {
			c.Audience = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ci/providers/runenv"
		}, true},
		{"longest audience", func(c *issuer.Claims) { c.Audience = strings.Repeat("a", 1024) }, true},
		{"longer audience", func(c *issuer.Claims) { c.Audience = strings.Repeat("a", 1025) }, false},
		{"a newline in the audience", func(c *issuer.Claims) { c.Audience = "a\nb" }, false},
		{"an audience that isn't UTF-8", func(c *issuer.Claims) { c.Audience = "a\xff" }, false},
		{"no role", func(c *issuer.Claims) { c.Role = "" }, false},
		{"a role in capitals", func(c *issuer.Claims) { c.Role = "Prod" }, false},
		{"a role with a colon", func(c *issuer.Claims) { c.Role = "prod:admin" }, false},
		{"a role with a newline", func(c *issuer.Claims) { c.Role = "prod\n" }, false},
		{"a role with a star", func(c *issuer.Claims) { c.Role = "*" }, false},
		{"a role with an underscore", func(c *issuer.Claims) { c.Role = "a_b" }, false},
		{"longest role", func(c *issuer.Claims) { c.Role = strings.Repeat("r", 63) }, true},
		{"longer role", func(c *issuer.Claims) { c.Role = strings.Repeat("r", 64) }, false},
		{"no session", func(c *issuer.Claims) { c.Session = "" }, false},
		{"a session that AWS can't take", func(c *issuer.Claims) { c.Session = "a/b" }, false},
		{"longer session", func(c *issuer.Claims) { c.Session = strings.Repeat("s", 65) }, false},
		{"a claim named sub", extra("sub", "runenv:role:admin"), false},
		{"a claim named aud", extra("aud", "x"), false},
		{"a claim named role", extra("role", "admin"), false},
		{"a claim named session_id", extra("session_id", "x"), false},
		{"a claim named as AWS's", extra("https://aws.amazon.com/tags", "x"), false},
		{"a claim in capitals", extra("Sub", "x"), false},
		{"a claim without a name", extra("", "x"), false},
		{"longest value", extra("ref", strings.Repeat("v", 512)), true},
		{"longer value", extra("ref", strings.Repeat("v", 513)), false},
		{"a NUL in a value", extra("ref", "a\x00b"), false},
		{"a value that isn't UTF-8", extra("ref", "\xc3"), false},
		{"markup in a value", extra("ref", `<a>&"\`), true},
		{"most claims", many(40, 20), true},
		{"more claims", many(41, 20), false},
		{"too much in all", many(12, 512), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := valid()
			tt.edit(&c)
			for _, alg := range []string{issuer.ES256, issuer.RS256} {
				token, err := iss.Mint(t.Context(), c, alg)
				if (err == nil) != tt.ok || (token != "") != tt.ok {
					t.Fatalf("Mint = %d bytes, %v, want ok = %v", len(token), err, tt.ok)
				}
				if len(token) > 8192 {
					t.Errorf("Mint gave %d bytes", len(token))
				}
				if tt.ok {
					if _, err := verify(t, issuerURL, c.Audience, token, now); err != nil {
						t.Errorf("Verify = %v", err)
					}
				}
			}
		})
	}
	for _, alg := range []string{"none", "HS256", "es256", "ES384", "PS256"} {
		if token, err := iss.Mint(t.Context(), valid(), alg); err == nil || token != "" {
			t.Errorf("Mint signed with %q", alg)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := iss.Mint(ctx, valid(), ""); !errors.Is(err, context.Canceled) {
		t.Errorf("Mint after cancel = %v, want context.Canceled", err)
	}
}

func TestMintLeavesItsArgumentAlone(t *testing.T) {
	t.Parallel()
	iss, _ := open(t, &keys{}, seal.Ephemeral())
	c := valid()
	var group sync.WaitGroup
	ids := make([]string, 16)
	for i := range ids {
		group.Go(func() {
			token, err := iss.Mint(t.Context(), c, []string{issuer.ES256, issuer.RS256}[i%2])
			if err != nil {
				t.Error(err)
			}
			ids[i] = token
		})
	}
	group.Wait()
	if diff := cmp.Diff(valid(), c); diff != "" {
		t.Errorf("Mint changed its claims (-before +after):\n%s", diff)
	}
	slices.Sort(ids)
	if n := len(slices.Compact(ids)); n != 16 {
		t.Errorf("16 calls gave %d tokens", n)
	}
}

func TestKeysOutliveTheProcess(t *testing.T) {
	t.Parallel()
	ks, sealer := &keys{}, seal.Ephemeral()
	first, _ := open(t, ks, sealer)
	second, err := reopen(t, ks, sealer)
	if err != nil {
		t.Fatal(err)
	}
	if string(first.JWKS()) != string(second.JWKS()) {
		t.Error("the key set changed with a restart")
	}
	if ks.ensured != 2 {
		t.Errorf("%d keys were made, want 2 in all", ks.ensured)
	}
	for _, row := range ks.rows {
		if !row.CreatedAt.Equal(now) || row.ID == "" || row.Algorithm == "" || !json.Valid(row.Public) {
			t.Errorf("stored key %s isn't whole", row.Purpose)
		}
		if strings.Contains(string(row.Public), `"d"`) {
			t.Errorf("the public half of %s holds a private one", row.Purpose)
		}
	}
}

func TestFirstWriterWins(t *testing.T) {
	t.Parallel()
	ks, sealer := &keys{}, seal.Ephemeral()
	first, _ := open(t, ks, sealer)
	ks.blind = true // the second one looked before the first one wrote
	second, err := reopen(t, ks, sealer)
	if err != nil {
		t.Fatal(err)
	}
	if ks.ensured != 4 || string(first.JWKS()) != string(second.JWKS()) {
		t.Errorf("two brokers that start at once have different keys (%d made)", ks.ensured)
	}
}

func TestOnlyTheMissingKeyIsMade(t *testing.T) {
	t.Parallel()
	ks, sealer := &keys{}, seal.Ephemeral()
	first, _ := open(t, ks, sealer)
	ks.rows = slices.DeleteFunc(ks.rows, func(k store.Key) bool { return k.Algorithm == issuer.RS256 })
	ks.rows = append(ks.rows, store.Key{Purpose: "audit", ID: "a"})
	second, err := reopen(t, ks, sealer)
	if err != nil {
		t.Fatal(err)
	}
	if ks.ensured != 3 || set(t, first)["ES256"].KeyID != set(t, second)["ES256"].KeyID || len(set(t, second)) != 2 {
		t.Errorf("%d keys were made in all, want 3, and the other kept", ks.ensured)
	}
}

func TestWrongSealKeyNamesTheCure(t *testing.T) {
	t.Parallel()
	ks := &keys{}
	open(t, ks, seal.Ephemeral())
	_, err := reopen(t, ks, seal.Ephemeral())
	var hint interface{ Hint() string }
	if !errors.Is(err, seal.ErrOpen) || !errors.As(err, &hint) || !strings.Contains(hint.Hint(), "`seal`") {
		t.Fatalf("Open = %v, want ErrOpen with a hint that names the setting", err)
	}
	if !strings.Contains(err.Error(), "oidc-es256") {
		t.Errorf("Open = %v, want the key's purpose in it", err)
	}
	if len(ks.rows) != 2 || ks.ensured != 2 {
		t.Error("keys were made beside those that don't open")
	}
}

// Who can write to the store but lacks the seal key must not get a key into
// the published set, nor another key of the broker's into this one's place.
func TestT34StoreCantSlipInAKey(t *testing.T) {
	t.Parallel()
	sealer := seal.Ephemeral()
	intruder, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa1024, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	theirJSON, err := json.Marshal(jose.JSONWebKey{Key: intruder.Public(), KeyID: kid(t, intruder), Algorithm: "ES256", Use: "sig"})
	if err != nil {
		t.Fatal(err)
	}

	t.Run("public half replaced", func(t *testing.T) {
		t.Parallel()
		ks := &keys{}
		first, _ := open(t, ks, sealer)
		for i := range ks.rows {
			ks.rows[i].Public = theirJSON
		}
		second, err := reopen(t, ks, sealer)
		if err != nil {
			t.Fatal(err)
		}
		if string(first.JWKS()) != string(second.JWKS()) {
			t.Error("the key set follows what stands in the store unsealed")
		}
	})
	t.Run("a rightly sealed key opens", func(t *testing.T) {
		t.Parallel() // or the refusals below might have another cause
		ks := &keys{}
		open(t, ks, sealer)
		ks.rows[0].ID = kid(t, intruder)
		reseal(t, sealer, ks.rows, 0, ks.rows[0].Purpose+"/"+ks.rows[0].ID, intruder)
		iss, err := reopen(t, ks, sealer)
		if err != nil || set(t, iss)["ES256"].KeyID != kid(t, intruder) {
			t.Errorf("Open = %v, want the key", err)
		}
	})
	for name, edit := range map[string]func(rows []store.Key) []store.Key{
		"private half in the clear": func(rows []store.Key) []store.Key { rows[0].Sealed = pkcs8(t, intruder); return rows },
		"private half gone":         func(rows []store.Key) []store.Key { rows[0].Sealed = nil; return rows },
		"id changed":                func(rows []store.Key) []store.Key { rows[0].ID = "other"; return rows },
		"kinds swapped": func(rows []store.Key) []store.Key {
			rows[0].Purpose, rows[1].Purpose = rows[1].Purpose, rows[0].Purpose
			return rows
		},
		"sealed halves swapped": func(rows []store.Key) []store.Key {
			rows[0].Sealed, rows[1].Sealed = rows[1].Sealed, rows[0].Sealed
			return rows
		},
		"a second one beside it": func(rows []store.Key) []store.Key { return append(rows, rows[0]) },
		"the audit key": func(rows []store.Key) []store.Key {
			rows[0].ID = kid(t, intruder)
			return reseal(t, sealer, rows, 0, "audit/"+rows[0].ID, intruder)
		},
		"a key bound to its id alone": func(rows []store.Key) []store.Key {
			rows[0].ID = kid(t, intruder)
			return reseal(t, sealer, rows, 0, rows[0].ID, intruder)
		},
		// The rest has the seal key's blessing, and is refused all the same.
		"another key's id": func(rows []store.Key) []store.Key {
			return reseal(t, sealer, rows, 0, rows[0].Purpose+"/"+rows[0].ID, intruder)
		},
		"an elliptic key for RS256": func(rows []store.Key) []store.Key {
			rows[1].ID = kid(t, intruder)
			return reseal(t, sealer, rows, 1, rows[1].Purpose+"/"+rows[1].ID, intruder)
		},
		"another curve": func(rows []store.Key) []store.Key {
			rows[0].ID = kid(t, p384)
			return reseal(t, sealer, rows, 0, rows[0].Purpose+"/"+rows[0].ID, p384)
		},
		"a short RSA key": func(rows []store.Key) []store.Key {
			rows[1].ID = kid(t, rsa1024)
			return reseal(t, sealer, rows, 1, rows[1].Purpose+"/"+rows[1].ID, rsa1024)
		},
		"an Ed25519 key": func(rows []store.Key) []store.Key {
			rows[0].ID = kid(t, ed)
			return reseal(t, sealer, rows, 0, rows[0].Purpose+"/"+rows[0].ID, ed)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ks := &keys{}
			open(t, ks, sealer)
			ks.rows = edit(ks.rows)
			if iss, err := reopen(t, ks, sealer); err == nil || iss != nil {
				t.Errorf("Open = %v, want a refusal", err)
			}
		})
	}
}

func reseal(t *testing.T, s seal.Sealer, rows []store.Key, i int, at string, private crypto.Signer) []store.Key {
	t.Helper()
	sealed, err := seal.Seal(t.Context(), s, seal.Field{Table: "keys", Row: at, Column: "sealed"}, pkcs8(t, private))
	if err != nil {
		t.Fatal(err)
	}
	rows[i].Sealed = sealed
	return rows
}

func pkcs8(t *testing.T, private crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// kid is the id under which a key would be published.
func kid(t *testing.T, private crypto.Signer) string {
	t.Helper()
	sum, err := (&jose.JSONWebKey{Key: private.Public()}).Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

func TestStoreInTrouble(t *testing.T) {
	t.Parallel()
	broken := errors.New("disk gone")
	for name, ks := range map[string]*keys{"reading": {errKeys: broken}, "writing": {errWrite: broken}} {
		if _, err := reopen(t, ks, seal.Ephemeral()); !errors.Is(err, broken) {
			t.Errorf("%s: Open = %v, want %v", name, err, broken)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	good := issuer.Config{URL: "https://oidc.example.com/x", BrokerURL: brokerURL, Keys: &keys{}, Sealer: seal.Ephemeral()}
	if _, err := issuer.Open(t.Context(), good); err != nil {
		t.Fatalf("Open = %v", err)
	}
	edit := func(f func(*issuer.Config)) issuer.Config {
		c := good
		f(&c)
		return c
	}
	for name, cfg := range map[string]issuer.Config{
		"no broker": edit(func(c *issuer.Config) { c.BrokerURL = "" }),
		"no store":  edit(func(c *issuer.Config) { c.Keys = nil }),
		"no seal":   edit(func(c *issuer.Config) { c.Sealer = nil }),
	} {
		if _, err := issuer.Open(t.Context(), cfg); err == nil {
			t.Errorf("%s: Open accepted it", name)
		}
	}
	for _, u := range []string{
		"", "oidc.example.com", "ftp://a.example.com", "https://", "https:///x", "http://oidc.example.com", "http://localhost:1", "http://10.0.0.1",
		"https://oidc.example.com/", "https://oidc.example.com?x", "https://oidc.example.com?", "https://oidc.example.com#", "https://a:b@oidc.example.com", "https://\x7f",
	} {
		if _, err := issuer.Open(t.Context(), edit(func(c *issuer.Config) { c.URL = u })); err == nil {
			t.Errorf("Open accepted the URL %q", u)
		}
	}
}

func TestDocuments(t *testing.T) {
	t.Parallel()
	iss, issuerURL := open(t, &keys{}, seal.Ephemeral())
	for path, want := range map[string][]byte{"/.well-known/openid-configuration": iss.Discovery(), "/jwks": iss.JWKS()} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, issuerURL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || string(body) != string(want) {
			t.Errorf("GET %s = %d, %v, want the document", path, resp.StatusCode, err)
		}
		if got := resp.Header.Get("Cache-Control"); got != "public, max-age=300" {
			t.Errorf("GET %s: Cache-Control = %q", path, got)
		}
		if got := resp.Header.Get("Content-Type"); got != "application/json" {
			t.Errorf("GET %s: Content-Type = %q", path, got)
		}
	}

	var discovery map[string]any
	if err := json.Unmarshal(iss.Discovery(), &discovery); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"issuer": issuerURL, "jwks_uri": issuerURL + "/jwks",
		"claims_supported": []any{
			"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "role", "session_id",
			"https://aws.amazon.com/tags", "https://aws.amazon.com/source_identity",
		},
		"id_token_signing_alg_values_supported": []any{"ES256", "RS256"},
		"response_types_supported":              []any{"id_token"},
		"scopes_supported":                      []any{"openid"},
		"subject_types_supported":               []any{"public"},
	}
	if diff := cmp.Diff(want, discovery); diff != "" {
		t.Errorf("discovery differs (-want +got):\n%s", diff)
	}
}

func TestKeySetIsPublicAndNamedByThumbprint(t *testing.T) {
	t.Parallel()
	iss, _ := open(t, &keys{}, seal.Ephemeral())
	var raw struct{ Keys []map[string]string }
	if err := json.Unmarshal(iss.JWKS(), &raw); err != nil {
		t.Fatal(err)
	}
	allowed := map[string][]string{
		"EC":  {"alg", "crv", "kid", "kty", "use", "x", "y"},
		"RSA": {"alg", "e", "kid", "kty", "n", "use"},
	}
	if len(raw.Keys) != 2 {
		t.Fatalf("the key set has %d keys, want 2", len(raw.Keys))
	}
	for _, k := range raw.Keys {
		var names []string
		for name := range k {
			names = append(names, name)
		}
		slices.Sort(names)
		if diff := cmp.Diff(allowed[k["kty"]], names); diff != "" {
			t.Errorf("a %s key's members differ (-want +got):\n%s", k["kty"], diff)
		}
		// RFC 7638: SHA-256 over the required members alone, in their order.
		required := `{"crv":"P-256","kty":"EC","x":"` + k["x"] + `","y":"` + k["y"] + `"}`
		if k["kty"] == "RSA" {
			required = `{"e":"` + k["e"] + `","kty":"RSA","n":"` + k["n"] + `"}`
		}
		if got, want := k["kid"], thumbprint(required); got != want {
			t.Errorf("kid = %q, want %q", got, want)
		}
	}
}

func thumbprint(required string) string {
	sum := sha256.Sum256([]byte(required))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
