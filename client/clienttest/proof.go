package clienttest

import (
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/runenv/action/broker/api"
)

// leeway is how far a proof's time may lie from the fake's.
const leeway = 30 * time.Second

type proof struct{ thumbprint, jti string }

// proof verifies what RFC 9449 section 4.3 lists. access is "" at the token
// endpoint.
func (b *Broker) proof(r *http.Request, access string) (proof, error) {
	headers := r.Header.Values(api.HeaderDPoP)
	if len(headers) != 1 {
		return proof{}, errors.New("not one proof")
	}
	jws, err := jose.ParseSignedCompact(headers[0], []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return proof{}, errors.New("not an ES256 JWS")
	}
	header := jws.Signatures[0].Protected
	if header.ExtraHeaders[jose.HeaderType] != "dpop+jwt" || header.JSONWebKey == nil || !header.JSONWebKey.IsPublic() || header.KeyID != "" {
		return proof{}, errors.New("not the header of a proof")
	}
	payload, err := jws.Verify(header.JSONWebKey)
	if err != nil {
		return proof{}, errors.New("a bad signature")
	}
	var claims struct {
		JTI string `json:"jti"`
		HTM string `json:"htm"`
		HTU string `json:"htu"`
		IAT int64  `json:"iat"`
		ATH string `json:"ath"`
	}
	if json.Unmarshal(payload, &claims) != nil {
		return proof{}, errors.New("claims of another shape")
	}
	ath := ""
	if access != "" {
		sum := sha256.Sum256([]byte(access))
		ath = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	age := b.cfg.Now().Sub(time.Unix(claims.IAT, 0))
	switch {
	case len(claims.JTI) < 16:
		return proof{}, errors.New("no jti")
	case claims.HTM != r.Method:
		return proof{}, errors.New("made for another method")
	case claims.HTU != b.URL+r.URL.Path:
		return proof{}, errors.New("made for another URL")
	case age > leeway || age < -leeway:
		return proof{}, errors.New("made at another time")
	case claims.ATH != ath:
		return proof{}, errors.New("made for another token")
	}
	thumbprint, err := header.JSONWebKey.Thumbprint(crypto.SHA256)
	if err != nil {
		return proof{}, errors.New("a key without a thumbprint")
	}
	return proof{string(thumbprint), claims.JTI}, nil
}

// count is true the first time that a proof is used. The caller holds b.mu.
func (b *Broker) count(p proof) bool {
	key := p.thumbprint + p.jti
	if b.proofs[key] {
		return false
	}
	b.proofs[key] = true
	return true
}
