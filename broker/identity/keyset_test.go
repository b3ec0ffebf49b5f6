package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/secret"
)

func TestT02ForgedTokensCostOneFetchAWindow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	good := w.GitHub(brokerURL)
	w.wantReason(t, w.Sign(good), "")
	parts := strings.Split(w.Sign(good), ".")
	// 10,000 ids, spread over ten minutes and eight callers.
	for window := range 10 {
		w.clock.add(refreshWindow)
		before := w.Hits()
		var wg sync.WaitGroup
		for caller := range 8 {
			wg.Go(func() {
				for i := range 125 {
					header := fmt.Sprintf(`{"alg":"RS256","kid":"%d-%d-%d","typ":"JWT"}`, window, caller, i)
					if _, err := w.verify(b64(header) + "." + parts[1] + "." + parts[2]); err == nil {
						t.Error("Verify of a forged token = nil")
					}
				}
			})
		}
		wg.Wait()
		if got := w.Hits() - before; got != 2 {
			t.Fatalf("window %d: %d requests, want 2: one for discovery and one for keys", window, got)
		}
	}
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
}

func TestT02ForgedTokensOfAKnownKeyCostNoFetch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
	before := w.Hits()
	token := w.Sign(w.GitHub(brokerURL))
	for range 5 {
		w.clock.add(refreshWindow / 2)
		w.wantReason(t, token[:len(token)-8]+"AAAAAAAA", ReasonSignature)
	}
	if got := w.Hits() - before; got != 0 {
		t.Errorf("%d requests, want 0", got)
	}
}

func TestT02ARotatedKeyWorksInTheNextWindow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	old := w.GitHub(brokerURL)
	oldToken := w.Sign(old)
	w.wantReason(t, oldToken, "")
	w.clock.add(time.Second)
	w.Rotate("ES256")
	// Nobody can say yet whether the key exists: worth a retry, not a refusal.
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), ReasonKeyUnconfirmed)
	w.clock.add(refreshWindow - 2*time.Second)
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), ReasonKeyUnconfirmed)
	w.clock.add(time.Second)
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
	w.wantReason(t, oldToken, "")
	// And a key that the issuer withdrew is gone with the next fetch.
	w.Withdraw()
	w.clock.add(softTTL)
	w.wantReason(t, w.SignWith(object{"kid": "key-9"}, w.GitHub(brokerURL)), ReasonKeyUnknown)
	w.wantReason(t, w.SignWith(object{"kid": "key-1", "alg": "RS256"}, w.GitHub(brokerURL)), ReasonKeyUnconfirmed)
}

func TestT02AnUnknownIDIsAskedForEverMoreRarely(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
	fetches := func(minutes int) int {
		before := w.KeyHits()
		for range minutes {
			w.clock.add(refreshWindow)
			_, err := w.verify(w.SignWith(object{"kid": "nowhere"}, w.GitHub(brokerURL)))
			if got := reasonOf(t, err); got != ReasonKeyUnknown {
				t.Fatalf("Verify = %q, want %q", got, ReasonKeyUnknown)
			}
		}
		return w.KeyHits() - before
	}
	// After 1, 2, 4, 8 and then every 16 minutes.
	if got := fetches(14); got != 4 {
		t.Errorf("%d fetches in 14 minutes, want 4", got)
	}
	if got := fetches(64); got != 4 {
		t.Errorf("%d fetches in the next 64 minutes, want 4", got)
	}
}

func TestT02UnknownIDsFillNoMemory(t *testing.T) {
	t.Parallel()
	s := &keySet{now: newClock().now}
	for i := range 5 * maxMisses {
		s.missed(fmt.Sprint(i))
	}
	if got := len(s.misses); got > maxMisses {
		t.Errorf("%d ids are remembered, want at most %d", got, maxMisses)
	}
}

func TestT02OneFetchServesAllWhoWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	token := w.Sign(w.GitHub(brokerURL))
	arrived, release := w.Stall()
	results := make(chan error, 50)
	for range cap(results) {
		go func() {
			_, err := w.verify(token)
			results <- err
		}()
	}
	<-arrived
	// One who hangs up is let go, and the fetch goes on for the others.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := w.verifier.Verify(ctx, secret.FromString(token)); reasonOf(t, err) != ReasonCanceled {
		t.Errorf("Verify of one who hung up = %v, want reason %q", err, ReasonCanceled)
	}
	release()
	for range cap(results) {
		if err := <-results; err != nil {
			t.Errorf("Verify = %v", err)
		}
	}
	if got := w.Hits(); got != 2 {
		t.Errorf("%d requests, want 2", got)
	}
}

func TestT02OldKeysServeWhileTheIssuerIsDownUntilTheHardTTL(t *testing.T) {
	t.Parallel()
	faults := map[string]func(*world){
		"denies":     func(w *world) { w.Deny(http.StatusInternalServerError) },
		"hangs up":   func(w *world) { w.Fail(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }) },
		"no keys":    func(w *world) { w.SetJWKS([]byte(`{"keys":[]}`)) },
		"rubbish":    func(w *world) { w.SetJWKS([]byte(`<html>`)) },
		"other name": func(w *world) { w.SetDiscovery(w.Discovery(object{"issuer": "https://evil.example.com"})) },
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "github")
			w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
			fault(w)
			w.clock.add(softTTL)
			w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "") // refreshes behind the scenes, in vain
			settle(w)
			w.clock.add(hardTTL - softTTL - time.Second)
			w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
			settle(w)
			w.clock.add(time.Second)
			w.wantReason(t, w.Sign(w.GitHub(brokerURL)), ReasonKeysUnavailable)
			if err := w.verifier.Ready(context.Background()); err == nil {
				t.Error("Ready past the hard TTL = nil")
			}
			w.Fail(nil)
			w.SetJWKS(nil)
			w.SetDiscovery(nil)
			w.wantReason(t, w.Sign(w.GitHub(brokerURL)), ReasonKeysUnavailable) // the window holds
			w.clock.add(refreshWindow)
			w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
		})
	}
}

func TestT02KeysAreRefreshedInTheBackground(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
	w.clock.add(softTTL - time.Second)
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
	settle(w)
	if got := w.KeyHits(); got != 1 {
		t.Errorf("%d fetches before the soft TTL, want 1", got)
	}
	w.clock.add(time.Second)
	arrived, release := w.Stall()
	// Answered although the issuer isn't answering.
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
	<-arrived
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
	release()
	settle(w)
	if got := w.KeyHits(); got != 2 {
		t.Errorf("%d fetches after the soft TTL, want 2", got)
	}
}

func TestT24AClockSetBackDoesntHoldUpFetches(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	w.Deny(http.StatusServiceUnavailable)
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), ReasonKeysUnavailable)
	w.Fail(nil)
	w.clock.add(-time.Hour)
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
}

func TestT02AKeySetFromAFileNeedsNoNetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	w.verifier = newTestVerifier(t, w.clock, IssuerConfig{
		Name: "file", Profile: "github", URL: w.URL, Loopback: true, JWKS: w.JWKS(),
	})
	if err := w.verifier.Ready(context.Background()); err != nil {
		t.Errorf("Ready = %v", err)
	}
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
	w.clock.add(10 * hardTTL)
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
	w.Rotate("ES256")
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), ReasonKeyUnknown)
	if got := w.Hits(); got != 0 {
		t.Errorf("%d requests, want 0", got)
	}
}

func TestReadyFetchesWhatWasNeverFetched(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	if got := w.Hits(); got != 0 {
		t.Errorf("NewVerifier made %d requests, want 0", got)
	}
	for range 3 {
		if err := w.verifier.Ready(context.Background()); err != nil {
			t.Fatalf("Ready = %v", err)
		}
	}
	if got := w.Hits(); got != 2 {
		t.Errorf("Ready made %d requests, want 2", got)
	}
	w.Deny(http.StatusForbidden)
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), "")
}

func TestReadyNamesTheIssuerThatIsDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	w.Deny(http.StatusForbidden)
	err := w.verifier.Ready(context.Background())
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Issuer != "github" || e.Reason != ReasonKeysUnavailable || !strings.Contains(err.Error(), "status 403") {
		t.Errorf("Ready = %v, want keys_unavailable of github with status 403", err)
	}
}

func TestCloseEndsAFetch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "github")
	arrived, _ := w.Stall()
	ready := make(chan error)
	go func() { ready <- w.verifier.Ready(context.Background()) }()
	<-arrived
	w.verifier.Close()
	if err := <-ready; !errors.Is(err, errClosed) {
		t.Errorf("Ready = %v, want %v", err, errClosed)
	}
	w.clock.add(refreshWindow)
	w.wantReason(t, w.Sign(w.GitHub(brokerURL)), ReasonKeysUnavailable)
	if got := w.Hits(); got != 1 {
		t.Errorf("%d requests, want no other after Close", got)
	}
}

func TestT03WhichKeysAreTaken(t *testing.T) {
	t.Parallel()
	all := []string{"RS256", "RS384", "PS256", "ES256", "ES384", "ES512", "EdDSA"}
	jwk := func(key any, kid, alg, use string) json.RawMessage {
		b, err := json.Marshal(jose.JSONWebKey{Key: key, KeyID: kid, Algorithm: alg, Use: use})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ec := func(c elliptic.Curve) *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	rsaKey := func(bits int) *rsa.PublicKey {
		// Only its size is looked at.
		n := make([]byte, bits/8)
		n[0], n[len(n)-1] = 0x80, 1
		key := &rsa.PublicKey{E: 65537}
		key.N = bigInt(n)
		return key
	}
	edPublic, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, other := ec(elliptic.P256()), ec(elliptic.P256())
	edit := func(raw json.RawMessage, name string, value any) json.RawMessage {
		var m object
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		m[name] = value
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	plain := jwk(p256.Public(), "k", "", "")
	even := rsaKey(2048)
	even.E = 65536
	tests := []struct {
		name string
		keys []json.RawMessage
		algs []string // nil means all
		want string   // kid:alg of those taken; "" means an error
	}{
		{"P-256", []json.RawMessage{plain}, nil, "k:ES256"},
		{"P-384", []json.RawMessage{jwk(ec(elliptic.P384()).Public(), "k", "", "")}, nil, "k:ES384"},
		{"P-521", []json.RawMessage{jwk(ec(elliptic.P521()).Public(), "k", "", "")}, nil, "k:ES512"},
		{"Ed25519", []json.RawMessage{jwk(edPublic, "k", "", "")}, nil, "k:EdDSA"},
		{"RSA without alg", []json.RawMessage{jwk(rsaKey(2048), "k", "", "sig")}, nil, "k:RS256"},
		{"RSA with alg", []json.RawMessage{jwk(rsaKey(2048), "k", "PS256", "sig")}, nil, "k:PS256"},
		{"RSA of 4096 bits", []json.RawMessage{jwk(rsaKey(4096), "k", "", "")}, nil, "k:RS256"},
		{"RSA of 1024 bits", []json.RawMessage{jwk(rsaKey(1024), "k", "", "")}, nil, ""},
		{"RSA of 2040 bits", []json.RawMessage{jwk(rsaKey(2040), "k", "", "")}, nil, ""},
		{"RSA of 4104 bits", []json.RawMessage{jwk(rsaKey(4104), "k", "", "")}, nil, ""},
		{"RSA with an even exponent", []json.RawMessage{jwk(even, "k", "", "")}, nil, ""},
		{"RSA that says ES256", []json.RawMessage{jwk(rsaKey(2048), "k", "ES256", "")}, nil, ""},
		{"EC that says RS256", []json.RawMessage{jwk(p256.Public(), "k", "RS256", "")}, nil, ""},
		{"P-384 that says ES256", []json.RawMessage{jwk(ec(elliptic.P384()).Public(), "k", "ES256", "")}, nil, ""},
		{"EC that says HS256", []json.RawMessage{jwk(p256.Public(), "k", "HS256", "")}, nil, ""},
		{"symmetric", []json.RawMessage{jwk([]byte("0123456789abcdef0123456789abcdef"), "k", "HS256", "sig")}, nil, ""},
		{"for encryption", []json.RawMessage{jwk(p256.Public(), "k", "", "enc")}, nil, ""},
		{"to wrap keys", []json.RawMessage{edit(plain, "key_ops", []string{"wrapKey"})}, nil, ""},
		{"to verify", []json.RawMessage{edit(plain, "key_ops", []string{"verify"})}, nil, "k:ES256"},
		{"private", []json.RawMessage{jwk(p256, "k", "", "")}, nil, ""},
		{"no id", []json.RawMessage{jwk(p256.Public(), "", "", "")}, nil, ""},
		{"not on its curve", []json.RawMessage{edit(plain, "x", strings.Repeat("A", 43))}, nil, ""},
		{"not an object", []json.RawMessage{[]byte(`"k"`)}, nil, ""},
		{"unknown kind beside a good one", []json.RawMessage{[]byte(`{"kty":"ML","kid":"m"}`), plain}, nil, "k:ES256"},
		{"algorithm that the issuer doesn't use", []json.RawMessage{plain}, []string{"RS256"}, ""},
		{"the same twice", []json.RawMessage{plain, plain}, nil, "k:ES256"},
		{"one id, two keys", []json.RawMessage{plain, jwk(other.Public(), "k", "", "")}, nil, ""},
		{"one id, two keys, and one more", []json.RawMessage{plain, jwk(other.Public(), "k", "", ""), jwk(other.Public(), "l", "", "")}, nil, "l:ES256"},
		{"one id, two algorithms", []json.RawMessage{plain, jwk(rsaKey(2048), "k", "", "")}, nil, "k:ES256 k:RS256"},
		{"100 keys", slices.Repeat([]json.RawMessage{plain}, 100), nil, "k:ES256"},
		{"101 keys", slices.Repeat([]json.RawMessage{plain}, 101), nil, ""},
		{"none", nil, nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			algs := tt.algs
			if algs == nil {
				algs = all
			}
			doc, err := json.Marshal(object{"keys": tt.keys})
			if err != nil {
				t.Fatal(err)
			}
			keys, err := parseKeys(doc, algs)
			var got []string
			for _, k := range keys {
				got = append(got, k.kid+":"+k.alg)
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" || (err == nil) != (tt.want != "") {
				t.Errorf("parseKeys = %v, %v, want %q", got, err, tt.want)
			}
		})
	}
	for name, doc := range map[string]string{
		"doubled keys":  `{"keys":[],"keys":[` + string(plain) + `]}`,
		"case variants": `{"Keys":[],"keys":[` + string(plain) + `]}`,
		"an object":     `{"keys":{}}`,
		"trailing data": `{"keys":[` + string(plain) + `]}{}`,
		"null":          `null`,
		"empty":         ``,
	} {
		if _, err := parseKeys([]byte(doc), all); err == nil {
			t.Errorf("parseKeys of %s = nil, want an error", name)
		}
	}
}

func TestKeysOfEveryKindVerify(t *testing.T) {
	t.Parallel()
	edPublic, edPrivate, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		alg     jose.SignatureAlgorithm
		private any
		public  crypto.PublicKey
	}{{jose.EdDSA, edPrivate, edPublic}, {jose.ES384, p384, p384.Public()}} {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: tt.alg, Key: tt.private}, nil)
		if err != nil {
			t.Fatal(err)
		}
		jws, err := signer.Sign([]byte("payload"))
		if err != nil {
			t.Fatal(err)
		}
		token, err := jws.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		one := &oneKey{alg: tt.alg, key: tt.public, payload: []byte("payload")}
		if _, err := one.VerifySignature(context.Background(), token); err != nil || !one.verified {
			t.Errorf("%s: VerifySignature = %v", tt.alg, err)
		}
		one = &oneKey{alg: tt.alg, key: tt.public, payload: []byte("another")}
		if _, err := one.VerifySignature(context.Background(), token); err == nil || one.verified {
			t.Errorf("%s: VerifySignature of another payload = nil", tt.alg)
		}
	}
}

// keysOf returns the key set of a world's only issuer.
func keysOf(w *world) *keySet { return w.verifier.issuers[w.URL].keys }

// settle waits for the fetch under way, if any.
func settle(w *world) {
	s := keysOf(w)
	s.mu.Lock()
	f := s.flight
	s.mu.Unlock()
	if f != nil {
		<-f.done
	}
}
