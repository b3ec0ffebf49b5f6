package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/store"
)

// rsaBits is the size of an RSA key: what every cloud takes.
const rsaBits = 2048

// kinds are the keys that an issuer has, in the order of its key set.
var kinds = [...]kind{
	{"oidc-es256", jose.ES256, func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }},
	{"oidc-rs256", jose.RS256, func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, rsaBits) }},
}

type kind struct {
	purpose   string // store.Key.Purpose
	algorithm jose.SignatureAlgorithm
	generate  func() (crypto.Signer, error)
}

// field is where a private key lies. Its purpose is bound in beside its id, so
// that a key of the broker's that serves another purpose can't be made to sign
// tokens by who can write to the store.
func (k kind) field(id string) seal.Field {
	return seal.Field{Table: "keys", Row: k.purpose + "/" + id, Column: "sealed"}
}

// A key is a signing key, ready for use.
type key struct {
	private crypto.Signer
	public  jose.JSONWebKey
}

// loadKeys returns one key of each kind, in their order, after making and
// storing those that are missing.
func loadKeys(ctx context.Context, ks KeyStore, sealer seal.Sealer, now time.Time) ([]key, error) {
	stored, err := ks.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading keys: %w", err)
	}
	var made []store.Key
	for _, k := range kinds {
		if _, err := find(stored, k.purpose); errors.Is(err, errNoKey) {
			fresh, err := k.make(ctx, sealer, now)
			if err != nil {
				return nil, fmt.Errorf("making the key %s: %w", k.purpose, err)
			}
			made = append(made, fresh)
		}
	}
	if len(made) > 0 {
		// Another broker may have been quicker: its keys count then.
		ensured, err := ks.EnsureKeys(ctx, now, made)
		if err != nil {
			return nil, fmt.Errorf("storing keys: %w", err)
		}
		stored = append(stored, ensured...)
	}
	keys := make([]key, 0, len(kinds))
	for _, k := range kinds {
		row, err := find(stored, k.purpose)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", k.purpose, err)
		}
		loaded, err := k.load(ctx, sealer, row)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", k.purpose, err)
		}
		keys = append(keys, loaded)
	}
	return keys, nil
}

var errNoKey = errors.New("the store has none")

// find returns the only key of a purpose.
func find(keys []store.Key, purpose string) (store.Key, error) {
	var found []store.Key
	for _, k := range keys {
		if k.Purpose == purpose {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 0:
		return store.Key{}, errNoKey
	case 1:
		return found[0], nil
	}
	return store.Key{}, fmt.Errorf("the store has %d where one is meant to be", len(found))
}

func (k kind) make(ctx context.Context, sealer seal.Sealer, now time.Time) (store.Key, error) {
	private, err := k.generate()
	if err != nil {
		return store.Key{}, err
	}
	public, err := k.jwk(private)
	if err != nil {
		return store.Key{}, err
	}
	publicJSON, err := json.Marshal(public)
	if err != nil {
		return store.Key{}, fmt.Errorf("encoding its public half: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return store.Key{}, fmt.Errorf("encoding its private half: %w", err)
	}
	defer clear(der)
	sealed, err := seal.Seal(ctx, sealer, k.field(public.KeyID), der)
	if err != nil {
		return store.Key{}, err
	}
	return store.Key{
		Purpose:   k.purpose,
		ID:        public.KeyID,
		Algorithm: string(k.algorithm),
		Public:    publicJSON,
		Sealed:    sealed,
		CreatedAt: now,
	}, nil
}

// load opens a stored key. Its public half is made from the private one: the
// stored one is for people, and who can write to the store could replace it.
func (k kind) load(ctx context.Context, sealer seal.Sealer, row store.Key) (key, error) {
	der, err := seal.Open(ctx, sealer, k.field(row.ID), row.Sealed)
	if err != nil {
		return key{}, err
	}
	defer clear(der)
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return key{}, errors.New("its private half isn't PKCS #8") // the cause may quote key bytes
	}
	private, ok := parsed.(crypto.Signer)
	if !ok {
		return key{}, fmt.Errorf("a %T can't sign", parsed)
	}
	public, err := k.jwk(private)
	if err != nil {
		return key{}, err
	}
	if public.KeyID != row.ID {
		return key{}, errors.New("its id isn't its thumbprint")
	}
	return key{private, public}, nil
}

// jwk is the public half as it is published, named by its RFC 7638 thumbprint.
func (k kind) jwk(private crypto.Signer) (jose.JSONWebKey, error) {
	switch public := private.Public().(type) {
	case *ecdsa.PublicKey:
		if k.algorithm != jose.ES256 || public.Curve != elliptic.P256() {
			return jose.JSONWebKey{}, fmt.Errorf("an elliptic key of %s isn't one for %s", public.Params().Name, k.algorithm)
		}
	case *rsa.PublicKey:
		if k.algorithm != jose.RS256 || public.N.BitLen() < rsaBits {
			return jose.JSONWebKey{}, fmt.Errorf("an RSA key of %d bits isn't one for %s", public.N.BitLen(), k.algorithm)
		}
	default:
		return jose.JSONWebKey{}, fmt.Errorf("a %T isn't a key for %s", public, k.algorithm)
	}
	jwk := jose.JSONWebKey{Key: private.Public(), Algorithm: string(k.algorithm), Use: "sig"}
	thumbprint, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return jose.JSONWebKey{}, fmt.Errorf("naming it: %w", err)
	}
	jwk.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	return jwk, nil
}

func (k key) signer() (jose.Signer, error) {
	signer, err := jose.NewSigner(jose.SigningKey{
		Algorithm: jose.SignatureAlgorithm(k.public.Algorithm),
		Key:       jose.JSONWebKey{Key: k.private, KeyID: k.public.KeyID},
	}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("preparing the key %s: %w", k.public.KeyID, err)
	}
	return signer, nil
}
