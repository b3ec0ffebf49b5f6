// Package seal keeps single database fields unreadable, and unmovable, to
// whoever holds the database without the broker's seal key.
//
// A field is sealed under AES-256-GCM with its table, row and column bound in
// as associated data: a ciphertext copied to another place doesn't open there.
// What seals is a [Sealer] of one method, so that a key service can stand
// behind it.
//
// It doesn't hide a field's length, doesn't notice that a whole row was put
// back to an older state, and refuses fields over 64 KiB. The package imports
// the standard library alone and has no state.
package seal

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// KeyBytes is the length of a seal key, in bytes.
	KeyBytes = 32

	// maxPlainBytes bounds one field, in bytes. The largest that the broker
	// keeps, an RSA key in PKCS #8, has about 1,200.
	maxPlainBytes = 64 << 10

	// version is the first byte of everything sealed. It is bound in too, so
	// that a later form can't be passed off as this one.
	version = 1

	// overheadBytes is what sealing adds: the version, a 96-bit nonce and a
	// 128-bit tag.
	overheadBytes = 1 + 12 + 16

	// domain sets these seals apart from any other use of the same key.
	domain = "runenv broker field"
)

// ErrOpen is every failure to open sealed bytes: another key, another field,
// and altered bytes can't be told apart. Its Hint method names the cure.
var ErrOpen error = &hinted{
	"the sealed field doesn't open",
	"set `seal` to the key that this store was written with; if it is that key, the row was altered or moved: restore the store from a backup",
}

// errKey says nothing about the key that it refuses, which is a secret even
// when it is a wrong one.
var errKey error = &hinted{
	fmt.Sprintf("the seal key isn't %d bytes in standard base64", KeyBytes),
	"make one with `openssl rand -base64 32` and keep it apart from the store's backups",
}

// hinted is an error whose cure is known.
type hinted struct{ text, hint string }

func (e *hinted) Error() string { return e.text }

// Hint is one line for people that names the cure.
func (e *hinted) Hint() string { return e.hint }

// A Sealer gives the cipher under which this broker's fields are sealed. The
// cipher picks its own nonces (its NonceSize is 0), as that of
// [cipher.NewGCMWithRandomNonce] does; one key is good for 2^32 of them. A
// Sealer is safe for concurrent use.
type Sealer interface {
	Cipher(ctx context.Context) (cipher.AEAD, error)
}

// A Field names the place of a sealed value. No part may be empty.
type Field struct{ Table, Row, Column string }

// key is a Sealer whose AES key is in this process. It is a func so that no
// way of printing it shows the key.
type key func() cipher.AEAD

func (k key) Cipher(context.Context) (cipher.AEAD, error) { return k(), nil }

// NewKey returns a Sealer under an AES-256 key of exactly [KeyBytes] bytes. It
// keeps no reference to the slice: the caller may wipe it.
func NewKey(aesKey []byte) (Sealer, error) {
	if len(aesKey) != KeyBytes {
		return nil, errKey
	}
	block, err := aes.NewCipher(aesKey)
	if err != nil {
		return nil, fmt.Errorf("preparing the seal key: %w", err)
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("preparing the seal key: %w", err)
	}
	return key(func() cipher.AEAD { return gcm }), nil
}

// ParseKey returns a Sealer under a key of [KeyBytes] bytes given in standard
// base64 with padding and nothing around it. Errors don't hold the text.
func ParseKey(text string) (Sealer, error) {
	// The decoder skips line breaks; the exact length leaves no room for one.
	if len(text) != base64.StdEncoding.EncodedLen(KeyBytes) {
		return nil, errKey
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, errKey
	}
	defer clear(b)
	return NewKey(b)
}

// Ephemeral returns a Sealer under a random key that dies with the process.
// What it sealed nobody opens afterwards: it is for stores in memory.
func Ephemeral() Sealer {
	b := make([]byte, KeyBytes)
	defer clear(b)
	_, _ = rand.Read(b) // never fails: the runtime ends the process instead
	s, err := NewKey(b)
	if err != nil {
		panic(err) // KeyBytes is the length that NewKey asks for
	}
	return s
}

// Seal returns plain sealed for the field f: two calls give two different
// results. It doesn't keep or change plain.
func Seal(ctx context.Context, s Sealer, f Field, plain []byte) ([]byte, error) {
	if len(plain) > maxPlainBytes {
		return nil, fmt.Errorf("sealing %s.%s: %d bytes are over the limit of %d", f.Table, f.Column, len(plain), maxPlainBytes)
	}
	aead, bound, err := prepare(ctx, s, f)
	if err != nil {
		return nil, fmt.Errorf("sealing %s.%s: %w", f.Table, f.Column, err)
	}
	out := make([]byte, 1, len(plain)+overheadBytes)
	out[0] = version
	return aead.Seal(out, nil, plain, bound), nil
}

// Open returns what was sealed for the field f, as a new slice. The error is
// [ErrOpen] unless the cipher itself couldn't be had.
func Open(ctx context.Context, s Sealer, f Field, sealed []byte) ([]byte, error) {
	aead, bound, err := prepare(ctx, s, f)
	if err != nil {
		return nil, fmt.Errorf("opening %s.%s: %w", f.Table, f.Column, err)
	}
	if len(sealed) > 0 && len(sealed) <= maxPlainBytes+overheadBytes && sealed[0] == version {
		if plain, err := aead.Open(nil, nil, sealed[1:], bound); err == nil {
			return plain, nil
		}
	}
	return nil, fmt.Errorf("opening %s.%s: %w", f.Table, f.Column, ErrOpen)
}

// prepare returns the cipher and the associated data for f.
func prepare(ctx context.Context, s Sealer, f Field) (cipher.AEAD, []byte, error) {
	if s == nil {
		return nil, nil, errors.New("no seal key")
	}
	if f.Table == "" || f.Row == "" || f.Column == "" {
		return nil, nil, errors.New("a sealed field needs a table, a row and a column")
	}
	aead, err := s.Cipher(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("getting the seal key: %w", err)
	}
	if aead.NonceSize() != 0 {
		return nil, nil, errors.New("the sealer's cipher doesn't pick its own nonces")
	}
	return aead, bind(f), nil
}

// bind encodes where a field stands. Each part is preceded by its length, so
// that no two fields share an encoding.
func bind(f Field) []byte {
	out := []byte{version}
	for _, part := range [...]string{domain, f.Table, f.Row, f.Column} {
		out = binary.BigEndian.AppendUint64(out, uint64(len(part)))
		out = append(out, part...)
	}
	return out
}
