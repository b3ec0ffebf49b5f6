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
	return &prover{signer, now}, nil
}

// prove adds a fresh proof for this request, bound to the access token if
// there is one.
func (p *prover) prove(r *http.Request, access secret.Value) error {
	claims := map[string]any{
		"jti": rand.Text(),
		"htm": r.Method,
		"htu": r.URL.Scheme + "://" + r.URL.Host + r.URL.Path,
		"iat": p.now().Unix(),
	}
	if access.Len() > 0 {
		hash := sha256.Sum256(access.Reveal())
		claims["ath"] = base64.RawURLEncoding.EncodeToString(hash[:])
		r.Header.Set("Authorization", api.SchemeDPoP+" "+string(access.Reveal()))
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return fmt.Errorf("encoding a proof: %w", err)
	}
	jws, err := p.signer.Sign(payload)
	if err != nil {
		return fmt.Errorf("signing a proof: %w", err)
	}
	proof, err := jws.CompactSerialize()
	if err != nil {
		return fmt.Errorf("encoding a proof: %w", err)
	}
	r.Header.Set(api.HeaderDPoP, proof)
	return nil
}
