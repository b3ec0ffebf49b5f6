package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/secret"
)

// A prover proves the possession of a key that never leaves it (RFC 9449).
// It is safe for concurrent use.
type prover struct {
	signer jose.Signer
	now    func() time.Time

	mu    sync.Mutex
	ahead *proof // made before its request, which takes it
}

// maxAhead is how old a proof may be when its request is made. Brokers take
// those of the last minute.
const maxAhead = 20 * time.Second

// A proof is for one request to this method and URL with this token.
type proof struct {
	method, url, token string
	at                 time.Time
	jws                string
}

func newProver(now func() time.Time) (*prover, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the session's key: %w", err)
	}
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: key},
		(&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt"))
	if err != nil {
		return nil, fmt.Errorf("preparing the session's key: %w", err)
	}
	return &prover{signer: signer, now: now}, nil
}

// prepare makes the proof of a request that will soon be made, while this
// process waits for something else.
func (p *prover) prepare(method, url string, access secret.Value) error {
	made, err := p.make(method, url, hashOf(access))
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ahead = made
	return nil
}

// prove adds a proof to this request, which no other has had, bound to the
// access token if there is one.
func (p *prover) prove(r *http.Request, access secret.Value) error {
	url, token := r.URL.Scheme+"://"+r.URL.Host+r.URL.Path, hashOf(access)
	made := p.take(r.Method, url, token)
	if made == nil {
		var err error
		if made, err = p.make(r.Method, url, token); err != nil {
			return err
		}
	}
	if access.Len() > 0 {
		r.Header.Set("Authorization", api.SchemeDPoP+" "+string(access.Reveal()))
	}
	r.Header.Set(api.HeaderDPoP, made.jws)
	return nil
}

// take is the proof that was prepared for such a request, once, if it isn't old.
func (p *prover) take(method, url, token string) *proof {
	p.mu.Lock()
	defer p.mu.Unlock()
	made := p.ahead
	if made == nil || made.method != method || made.url != url || made.token != token {
		return nil
	}
	p.ahead = nil
	if age := p.now().Sub(made.at); age < 0 || age > maxAhead {
		return nil
	}
	return made
}

func hashOf(access secret.Value) string {
	if access.Len() == 0 {
		return ""
	}
	hash := sha256.Sum256(access.Reveal())
	return base64.RawURLEncoding.EncodeToString(hash[:])
}

// make signs a proof that counts once.
func (p *prover) make(method, url, token string) (*proof, error) {
	now := p.now().Round(0) // by the calendar: a machine may sleep until it is used
	claims := map[string]any{
		"jti": rand.Text(),
		"htm": method,
		"htu": url,
		"iat": now.Unix(),
	}
	if token != "" {
		claims["ath"] = token
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return nil, fmt.Errorf("encoding a proof: %w", err)
	}
	jws, err := p.signer.Sign(payload)
	if err != nil {
		return nil, fmt.Errorf("signing a proof: %w", err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		return nil, fmt.Errorf("encoding a proof: %w", err)
	}
	return &proof{method, url, token, now, text}, nil
}
