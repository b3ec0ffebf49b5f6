package static

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/runenv/action/secret"
)

const (
	// maxAgeBytes bounds one encrypted value as it stands in the file: 64 KiB
	// in base64, with the lines of a few dozen recipients.
	maxAgeBytes = 128 << 10
	// maxPlainBytes bounds what is inside: as much as ${file:} stands for.
	maxPlainBytes = 64 << 10
	// maxAgeValues bounds `age:` of one lease.
	maxAgeValues = 256
)

// ciphertext is one value, encrypted. It is no secret and may stand in any file.
type ciphertext struct{ binary []byte }

// UnmarshalText reads age's armor. The error never repeats what it read:
// somebody may have put the value itself there.
func (c *ciphertext) UnmarshalText(text []byte) error {
	if len(text) > maxAgeBytes {
		return fmt.Errorf("an age-encrypted value of over %d KiB", maxAgeBytes>>10)
	}
	if !strings.HasPrefix(string(text), armor.Header) {
		return fmt.Errorf("not age-encrypted: it must begin with %s (age --armor)", armor.Header)
	}
	binary, err := io.ReadAll(armor.NewReader(bytes.NewReader(text)))
	if err != nil {
		return errors.New("age-encrypted, and broken: its armor isn't whole")
	}
	c.binary = binary
	return nil
}

// A decrypter opens one value; nil where there is no identity. The identities
// sit behind a func so that nothing prints them.
type decrypter func(ciphertext) (secret.Value, error)

// newDecrypter reads the identities: one AGE-SECRET-KEY-1… a line, with comments
// and blank lines between, as age-keygen writes them.
func newDecrypter(identity secret.Value) (decrypter, error) {
	if identity.Len() == 0 {
		return nil, nil
	}
	identities, err := age.ParseIdentities(bytes.NewReader(identity.Reveal()))
	if err != nil { // its text may hold a piece of the key
		return nil, errors.New("`identity` holds no age identity: give what age-keygen wrote, such as ${file:/etc/runenv/age.key}")
	}
	return func(c ciphertext) (secret.Value, error) { return decrypt(c, identities) }, nil
}

func decrypt(c ciphertext, identities []age.Identity) (secret.Value, error) {
	r, err := age.Decrypt(bytes.NewReader(c.binary), identities...)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return secret.Value{}, errors.New("isn't encrypted to the `identity` of its provider: encrypt it again with that one's public key (age-keygen -y)")
	}
	if err != nil {
		return secret.Value{}, errors.New("can't be decrypted: it isn't whole age text")
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxPlainBytes+2))
	if err != nil {
		clear(plain)
		return secret.Value{}, errors.New("can't be decrypted: it was changed or cut off")
	}
	// As ${file:} does: whoever pipes a line to age means the line.
	plain = bytes.TrimSuffix(plain, []byte("\n"))
	switch {
	case len(plain) > maxPlainBytes:
		clear(plain)
		return secret.Value{}, fmt.Errorf("holds over %d KiB", maxPlainBytes>>10)
	case len(plain) == 0:
		return secret.Value{}, errors.New("is empty")
	}
	return secret.New(plain), nil
}
