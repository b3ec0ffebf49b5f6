package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

const (
	// maxKeys bounds a key set, in keys. CIs publish 1 to 10.
	maxKeys = 100

	// maxKeyMembers bounds the members of all objects in a key set.
	maxKeyMembers = 32 * maxKeys

	// go-jose reads no RSA key over 4096 bits either: verifying costs the
	// square of its length.
	minRSABits = 2048
	maxRSABits = 4096
)

// A publicKey verifies signatures of one algorithm.
type publicKey struct {
	kid, alg string
	key      crypto.PublicKey // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

// parseKeys reads a JWK set (RFC 7517) and returns the keys that can verify one
// of the algorithms. Keys for anything else are left out, as are those without
// an id, those that came with their private half, and those of one id and
// algorithm that differ: which is meant can't be known. It is an error if none
// remain.
func parseKeys(doc []byte, algorithms []string) ([]publicKey, error) {
	if _, err := strictObject(doc, maxKeyMembers); err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(doc, &set); err != nil {
		// The error of encoding/json may quote the document.
		return nil, errors.New("key set: keys isn't a list")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("key set: %d keys, at most %d are read", len(set.Keys), maxKeys)
	}
	type name struct{ kid, alg string }
	var keys []publicKey
	ambiguous := map[name]bool{}
	for _, raw := range set.Keys {
		k, ok := parseKey(raw, algorithms)
		if !ok {
			continue
		}
		i := slices.IndexFunc(keys, func(o publicKey) bool { return o.kid == k.kid && o.alg == k.alg })
		switch {
		case i < 0:
			keys = append(keys, k)
		case !keys[i].equal(k):
			ambiguous[name{k.kid, k.alg}] = true
		}
	}
	keys = slices.DeleteFunc(keys, func(k publicKey) bool { return ambiguous[name{k.kid, k.alg}] })
	if len(keys) == 0 {
		return nil, errors.New("key set: no key that can be used")
	}
	return keys, nil
}

func parseKey(raw json.RawMessage, algorithms []string) (publicKey, bool) {
	var members struct {
		Use string   `json:"use"`
		Ops []string `json:"key_ops"`
	}
	if json.Unmarshal(raw, &members) != nil {
		return publicKey{}, false
	}
	if members.Use != "" && members.Use != "sig" {
		return publicKey{}, false
	}
	if members.Ops != nil && !slices.Contains(members.Ops, "verify") {
		return publicKey{}, false
	}
	var jwk jose.JSONWebKey
	if jwk.UnmarshalJSON(raw) != nil {
		return publicKey{}, false
	}
	if _, ok := boundedText(jwk.KeyID, maxKeyIDBytes); !ok {
		return publicKey{}, false
	}
	for _, alg := range algorithmsOf(jwk.Key) {
		if (jwk.Algorithm == "" || jwk.Algorithm == alg) && slices.Contains(algorithms, alg) {
			return publicKey{jwk.KeyID, alg, jwk.Key}, true
		}
	}
	return publicKey{}, false
}

// algorithmsOf returns what the key can verify, what to take it for first.
// None, if it is symmetric, private, or weak.
func algorithmsOf(key any) []string {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits || k.E < 3 || k.E%2 == 0 {
			return nil
		}
		return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
	case *ecdsa.PublicKey:
		switch k.Curve.Params().BitSize {
		case 256:
			return []string{"ES256"}
		case 384:
			return []string{"ES384"}
		case 521:
			return []string{"ES512"}
		}
	case ed25519.PublicKey:
		return []string{"EdDSA"}
	}
	return nil
}

func (k publicKey) equal(o publicKey) bool {
	e, ok := k.key.(interface{ Equal(crypto.PublicKey) bool })
	return ok && e.Equal(o.key)
}
