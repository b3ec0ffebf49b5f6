package vault

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// maxHandleBytes bounds a handle. Vault's tokens have up to a few hundred
// bytes, a lease's id its path and 24 more.
const maxHandleBytes = 8 << 10

// loginHandle and leaseHandle are what the broker keeps sealed, as JSON.
type loginHandle struct {
	Token string `json:"token"`
	At    string `json:"at"` // see [Provider.at]
}

type leaseHandle struct {
	LeaseID string `json:"lease_id,omitempty"`
	Wrapped bool   `json:"wrapped,omitempty"` // the id is inside, where only its reader sees it
}

func seal(handle any) (secret.Value, error) {
	b, err := json.Marshal(handle)
	return secret.New(b), err
}

func openLogin(h secret.Value) (loginHandle, error) {
	var l loginHandle
	if !unmarshalStrict(h.Reveal(), &l) || !isToken([]byte(l.Token)) {
		return loginHandle{}, invalid("a login's handle that isn't one of this provider's")
	}
	return l, nil
}

// token is that of a login made here. Another Vault, to which the entry was
// turned since, isn't shown it; its word that it doesn't know the token would
// be taken for the token's end.
func (p *Provider) token(login secret.Value) (string, error) {
	l, err := openLogin(login)
	if err == nil && l.At != p.at() {
		err = hinted(fmt.Sprintf("a login that was made at another address or namespace than this provider has now: %v", providers.ErrUnavailable),
			"it ends there by its own time; to end it at once, put the old address back",
			providers.ErrUnavailable, providers.ErrNotIssued)
	}
	return l.Token, err
}

// at names the Vault and its namespace.
func (p *Provider) at() string { return p.client.Address() + "/" + p.namespace }

func openLease(h secret.Value) (leaseHandle, error) {
	var l leaseHandle
	if !unmarshalStrict(h.Reveal(), &l) || l.Wrapped == (l.LeaseID != "") || !l.Wrapped && !isLeaseID(l.LeaseID) {
		return leaseHandle{}, invalid("a lease's handle that isn't one of this provider's")
	}
	return l, nil
}

func unmarshalStrict(b []byte, into any) bool {
	if len(b) == 0 || len(b) > maxHandleBytes {
		return false
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if dec.Decode(into) != nil {
		return false
	}
	_, err := dec.Token()
	return err == io.EOF
}

// isToken: what may stand in a header, of 4 KiB at most.
func isToken(b []byte) bool {
	return len(b) > 0 && len(b) <= 4<<10 && !bytes.ContainsFunc(b, func(r rune) bool { return r <= ' ' || r > '~' })
}

func isLeaseID(s string) bool {
	return len(s) > 0 && len(s) <= 4<<10 && !bytes.ContainsFunc([]byte(s), func(r rune) bool { return r < ' ' || r == 0x7f || r == '�' })
}
