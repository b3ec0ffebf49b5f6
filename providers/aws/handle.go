package aws

import (
	"bytes"
	"encoding/json"
	"io"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// maxHandleBytes bounds a handle: a session token has up to a few KiB, with
// many tags and a long policy.
const maxHandleBytes = 64 << 10

// A leaseHandle says what must be told to cut a credential off; a login's
// handle is a [grant], which says it too.
type leaseHandle struct {
	RoleARN string `json:"role_arn"`
}

func seal(handle any) (secret.Value, error) {
	b, err := json.Marshal(handle)
	return secret.New(b), err
}

func openGrant(h secret.Value) (*grant, error) {
	var g grant
	if _, ok := parseRole(roleIn(h, &g, &g.RoleARN)); !ok || !g.usable() || g.Expires <= 0 {
		return nil, invalid("a login's handle that isn't one of this provider's")
	}
	return &g, nil
}

// handleRole is the role of a lease's or a login's handle.
func handleRole(h secret.Value) (arn, error) {
	var l leaseHandle
	if role, ok := parseRole(roleIn(h, &l, &l.RoleARN)); ok {
		return role, nil
	}
	g, err := openGrant(h)
	if err != nil {
		return arn{}, hinted("a handle that isn't one of this provider's: "+providers.ErrInvalid.Error(), "", providers.ErrInvalid)
	}
	role, _ := parseRole(g.RoleARN)
	return role, nil
}

// roleIn reads a handle strictly and gives what then stands in role.
func roleIn(h secret.Value, into any, role *string) string {
	b := h.Reveal()
	if len(b) == 0 || len(b) > maxHandleBytes {
		return ""
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if dec.Decode(into) != nil {
		return ""
	}
	if _, err := dec.Token(); err != io.EOF {
		return ""
	}
	return *role
}
