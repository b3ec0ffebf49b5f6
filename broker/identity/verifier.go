package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/runenv/action/secret"
)

const (
	// leeway is how far the clocks of broker and issuer may differ.
	leeway = 30 * time.Second

	// maxWaiting bounds the verifications that wait for a processor.
	maxWaiting = 512
)

// IssuerConfig is one line of the table of issuers.
type IssuerConfig struct {
	Name    string // for policy, log and audit
	Profile string // see [ProfileNames]
	URL     string // exactly as tokens name it in iss

	// Audience is what tokens must be for; "" means [Config.Audience].
	Audience string

	// AllowNetworks are the networks, beside the public internet, where the
	// issuer may live. (Private, link-local and loopback addresses are refused.)
	AllowNetworks []netip.Prefix

	// RootCAs are whom to trust for its TLS certificate; nil means the system's.
	RootCAs *x509.CertPool

	// JWKS is a JWK set. If there is one it is the whole set, and the network
	// is never asked.
	JWKS []byte

	// Reuse overrides the profile's; "" doesn't.
	Reuse Reuse

	// Loopback makes this an issuer for development: its URL is http on a
	// literal loopback address, and it may live there and nowhere else.
	Loopback bool
}

// Config is what [NewVerifier] needs.
type Config struct {
	// Audience is the broker's own URL.
	Audience string

	Issuers []IssuerConfig // at least one; names and URLs differ

	Now func() time.Time // nil means time.Now
	Log *slog.Logger     // nil means none; told of keys that can't be fetched
}

// A Verifier turns tokens into identities. It is safe for concurrent use.
type Verifier struct {
	issuers map[string]*issuer // by exact URL
	now     func() time.Time
	slots   chan struct{} // one for each verification that runs
	waiting atomic.Int64
}

type issuer struct {
	name, url, audience string
	profile             *Profile
	reuse               Reuse
	keys                *keySet
}

// NewVerifier checks the table of issuers. It makes no network call.
func NewVerifier(cfg Config) (*Verifier, error) {
	if len(cfg.Issuers) == 0 {
		return nil, errors.New("no issuers: nobody could be identified")
	}
	v := &Verifier{
		issuers: make(map[string]*issuer, len(cfg.Issuers)),
		now:     cfg.Now,
		// Whatever the flood, one processor is left for those already in.
		slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1)),
	}
	if v.now == nil {
		v.now = time.Now
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	names := map[string]bool{}
	for _, c := range cfg.Issuers {
		iss, err := newIssuer(c, cfg.Audience, v.now, log)
		if err != nil {
			return nil, fmt.Errorf("issuer %q: %w", c.Name, err)
		}
		if names[c.Name] || c.Name == "" {
			return nil, fmt.Errorf("issuer %q: the name is empty or stands twice", c.Name)
		}
		names[c.Name] = true
		if v.issuers[c.URL] != nil {
			return nil, fmt.Errorf("issuer %q: another one has the same url %s", c.Name, c.URL)
		}
		v.issuers[c.URL] = iss
	}
	return v, nil
}

func newIssuer(c IssuerConfig, audience string, now func() time.Time, log *slog.Logger) (*issuer, error) {
	profile, ok := ProfileByName(c.Profile)
	if !ok {
		return nil, fmt.Errorf("no profile %q, only %q", c.Profile, ProfileNames())
	}
	u, err := checkIssuerURL(c.URL, c.Loopback)
	if err != nil {
		return nil, fmt.Errorf("url %q: %w", c.URL, err)
	}
	iss := &issuer{name: c.Name, url: c.URL, audience: c.Audience, profile: profile, reuse: c.Reuse}
	if iss.audience == "" {
		iss.audience = audience
	}
	if _, ok := boundedText(iss.audience, maxAudienceBytes); !ok {
		return nil, fmt.Errorf("no audience of 1 to %d bytes", maxAudienceBytes)
	}
	switch iss.reuse {
	case "":
		iss.reuse = profile.Reuse
	case ReuseNever, ReuseSameJob:
	default:
		return nil, fmt.Errorf("reuse %q is neither %q nor %q", c.Reuse, ReuseNever, ReuseSameJob)
	}
	if c.JWKS != nil {
		if len(c.JWKS) > maxKeySetBytes {
			return nil, fmt.Errorf("key set: over %d bytes", maxKeySetBytes)
		}
		keys, err := parseKeys(c.JWKS, profile.Algorithms)
		if err != nil {
			return nil, err
		}
		iss.keys = newStaticKeySet(keys)
		return iss, nil
	}
	for _, p := range c.AllowNetworks {
		if !p.IsValid() {
			return nil, errors.New("an invalid network is allowed")
		}
	}
	f := newFetcher(u, profile.Algorithms, slices.Clone(c.AllowNetworks), c.RootCAs, c.Loopback)
	iss.keys = &keySet{issuer: c.Name, fetch: f.keys, now: now, log: log}
	return iss, nil
}

// Verify returns whose token it is. Every error is an [*Error].
//
// It doesn't ask whether the token was used before.
func (v *Verifier) Verify(ctx context.Context, token secret.Value) (*Identity, error) {
	id, e := v.verify(ctx, token.Reveal())
	if e != nil {
		return nil, e
	}
	return id, nil
}

func (v *Verifier) verify(ctx context.Context, token []byte) (*Identity, *Error) {
	t, e := parse(token)
	if e != nil {
		return nil, e
	}
	// Before anything else that the token could choose.
	iss := v.issuers[t.issuer]
	if iss == nil {
		return nil, invalidToken(ReasonIssuerUnknown)
	}
	id, e := v.verifyFrom(ctx, iss, t)
	if e != nil {
		e.Issuer = iss.name
		return nil, e
	}
	return id, nil
}

func (v *Verifier) verifyFrom(ctx context.Context, iss *issuer, t *parsed) (*Identity, *Error) {
	if !slices.Contains(iss.profile.Algorithms, t.alg) {
		return nil, invalidToken(ReasonAlgorithm)
	}
	// Waits for the network hold no slot.
	key, e := iss.keys.lookup(ctx, t.kid, t.alg)
	if e != nil {
		return nil, e
	}
	if e := v.enter(ctx); e != nil {
		return nil, e
	}
	defer v.leave()

	now := v.now()
	one := &oneKey{alg: jose.SignatureAlgorithm(t.alg), key: key, payload: t.payload}
	theirs, err := oidc.NewVerifier(iss.url, one, &oidc.Config{
		ClientID:             iss.audience,
		SupportedSigningAlgs: []string{t.alg},
		// go-oidc has no leeway for exp. Its five minutes for nbf are more
		// than ours even so.
		Now: func() time.Time { return now.Add(-leeway) },
	}).Verify(ctx, t.text)
	if !one.verified {
		return nil, invalidToken(ReasonSignature)
	}
	// From here on the issuer did say this, and refusals are for the record.
	id, newErr := New(iss.profile, iss.name, t.claims)
	reason := t.judge(iss, now)
	switch {
	case newErr != nil:
		id, reason = nil, ReasonIdentity
	case reason != "":
	case err != nil || !t.agrees(theirs) || !t.agreesWith(id):
		reason = ReasonDisagreement
	case id.ProjectID == "" || id.SourceProjectID == "" || id.Job == "":
		reason = ReasonIdentity
	}
	if id != nil {
		id.Reuse = iss.reuse
	}
	if reason != "" {
		e := invalidToken(reason)
		e.SignatureVerified, e.identity = true, id
		return nil, e
	}
	return id, nil
}

// judge applies our rules for audience and time, and returns the reason for a
// refusal or "".
func (t *parsed) judge(iss *issuer, now time.Time) string {
	if len(t.audiences) != 1 || t.audiences[0] != iss.audience {
		return ReasonAudience
	}
	issued, expires := time.Unix(t.issued, 0), time.Unix(t.expires, 0)
	life := expires.Sub(issued)
	switch {
	case life <= 0 || life > iss.profile.MaxLife:
		return ReasonLifetime
	case issued.After(now.Add(leeway)):
		return ReasonIssuedInFuture
	case t.notBefore != 0 && time.Unix(t.notBefore, 0).After(now.Add(leeway)):
		return ReasonNotYetValid
	case expires.Before(now.Add(-leeway)):
		return ReasonExpired
	case now.Sub(issued) > iss.profile.MaxAge+leeway:
		return ReasonTooOld
	}
	return ""
}

// agrees reports whether go-oidc read the token as we did.
func (t *parsed) agrees(theirs *oidc.IDToken) bool {
	return theirs.Issuer == t.issuer && theirs.Subject == t.subject &&
		slices.Equal(theirs.Audience, t.audiences) &&
		theirs.Expiry.Unix() == t.expires && theirs.IssuedAt.Unix() == t.issued
}

// agreesWith reports whether the identity is of this very token.
func (t *parsed) agreesWith(id *Identity) bool {
	return id.IssuerURL == t.issuer && id.Subject == t.subject && id.JTI == t.jti &&
		id.Expires.Unix() == t.expires && id.IssuedAt.Unix() == t.issued
}

// Ready returns nil when the keys of every issuer are at hand. It fetches
// those that aren't, at the pace that holds for all fetches. The error joins
// an [*Error] for each issuer without keys.
func (v *Verifier) Ready(ctx context.Context) error {
	results := make(chan error, len(v.issuers))
	for _, iss := range v.issuers {
		go func() {
			if e := iss.keys.ready(ctx); e != nil {
				e.Issuer = iss.name
				results <- e
				return
			}
			results <- nil
		}()
	}
	var errs []error
	for range v.issuers {
		errs = append(errs, <-results)
	}
	return errors.Join(errs...)
}

// Close ends fetches under way. After it only keys at hand are used.
func (v *Verifier) Close() {
	for _, iss := range v.issuers {
		iss.keys.close()
	}
}

// enter waits for a slot to spend processor time in.
func (v *Verifier) enter(ctx context.Context) *Error {
	select {
	case v.slots <- struct{}{}:
		return nil
	default:
	}
	if v.waiting.Add(1) > maxWaiting {
		v.waiting.Add(-1)
		return unavailable(ReasonBusy, nil)
	}
	defer v.waiting.Add(-1)
	select {
	case v.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return unavailable(ReasonCanceled, ctx.Err())
	}
}

func (v *Verifier) leave() { <-v.slots }

// oneKey is the [oidc.KeySet] for one verification: the key that was looked up,
// for the algorithm that it is pinned to.
type oneKey struct {
	alg      jose.SignatureAlgorithm
	key      crypto.PublicKey
	payload  []byte // as we read it
	verified bool
}

var errSignature = errors.New("the signature doesn't verify")

// VerifySignature returns the payload if the key signed it and it is the one
// that we parsed.
func (k *oneKey) VerifySignature(_ context.Context, token string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{k.alg})
	if err != nil {
		return nil, errSignature
	}
	payload, err := jws.Verify(k.key)
	if err != nil || !bytes.Equal(payload, k.payload) {
		return nil, errSignature
	}
	k.verified = true
	return payload, nil
}
