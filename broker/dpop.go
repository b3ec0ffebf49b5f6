package broker

import (
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/store"
)

const (
	maxProofBytes = 4 << 10
	maxProofJTI   = 128
	// A proof counts from proofPast before to proofFuture after the broker's
	// time, and its jti is remembered for as long.
	proofPast   = 60 * time.Second
	proofFuture = 30 * time.Second
)

// errProof says what is wrong with a proof; its text holds nothing of it.
func errProof(what string) error { return errors.New("dpop: " + what) }

// proof verifies the request's DPoP proof (RFC 9449 section 4.3) for the
// given access token ("" at the token endpoint). htu is built from the
// broker's configured url, never from the Host header.
func (b *Broker) proof(r *http.Request, accessToken string) (store.Proof, error) {
	headers := r.Header.Values(api.HeaderDPoP)
	if len(headers) != 1 {
		return store.Proof{}, errProof("not exactly one proof")
	}
	if len(headers[0]) > maxProofBytes || strings.Count(headers[0], ".") != 2 {
		return store.Proof{}, errProof("not a compact JWS of sane size")
	}
	if err := plainHeader(headers[0]); err != nil {
		return store.Proof{}, err
	}
	jws, err := jose.ParseSignedCompact(headers[0], []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return store.Proof{}, errProof("not an ES256 JWS")
	}
	jwk := jws.Signatures[0].Protected.JSONWebKey
	if jwk == nil || !jwk.Valid() || !jwk.IsPublic() {
		return store.Proof{}, errProof("no public key")
	}
	payload, err := jws.Verify(jwk)
	if err != nil {
		return store.Proof{}, errProof("a bad signature")
	}
	var claims struct {
		JTI string      `json:"jti"`
		HTM string      `json:"htm"`
		HTU string      `json:"htu"`
		IAT json.Number `json:"iat"`
		ATH string      `json:"ath"`
	}
	if err := api.Decode(strings.NewReader(string(payload)), maxProofBytes, &claims); err != nil {
		return store.Proof{}, errProof("claims of another shape")
	}
	iat, err := claims.IAT.Int64()
	if err != nil {
		return store.Proof{}, errProof("iat isn't in whole seconds")
	}
	now, at := b.cfg.Now(), time.Unix(iat, 0)
	ath := ""
	if accessToken != "" {
		sum := sha256.Sum256([]byte(accessToken))
		ath = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	switch {
	case claims.JTI == "" || len(claims.JTI) > maxProofJTI:
		return store.Proof{}, errProof("no jti of sane length")
	case claims.HTM != r.Method:
		return store.Proof{}, errProof("made for another method")
	case claims.HTU != b.cfg.URL+r.URL.EscapedPath():
		return store.Proof{}, errProof("made for another URL")
	case at.Before(now.Add(-proofPast)), at.After(now.Add(proofFuture)):
		return store.Proof{}, errProof("made at another time")
	case claims.ATH != ath:
		return store.Proof{}, errProof("made for another token")
	}
	thumb, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return store.Proof{}, errProof("a key without a thumbprint")
	}
	return store.Proof{
		Thumbprint: base64.RawURLEncoding.EncodeToString(thumb), JTI: claims.JTI,
		Expires: at.Add(proofPast + proofFuture),
	}, nil
}

// plainHeader refuses any header parameter but those of RFC 9449, so that
// nothing in it can steer the library.
func plainHeader(proof string) error {
	head, _, _ := strings.Cut(proof, ".")
	raw, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return errProof("not base64url")
	}
	var header struct {
		Typ string          `json:"typ"`
		Alg string          `json:"alg"`
		JWK json.RawMessage `json:"jwk"`
	}
	if err := api.Decode(strings.NewReader(string(raw)), maxProofBytes, &header); err != nil {
		return errProof("a header of another shape")
	}
	if header.Typ != "dpop+jwt" || header.Alg != string(jose.ES256) {
		return errProof("not a dpop+jwt by ES256")
	}
	var jwk struct {
		Kty string `json:"kty"`
		Crv string `json:"crv"`
		X   string `json:"x"`
		Y   string `json:"y"`
	}
	if err := api.Decode(strings.NewReader(string(header.JWK)), maxProofBytes, &jwk); err != nil {
		return errProof("a key of another shape")
	}
	return nil
}
