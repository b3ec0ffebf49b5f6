package vault

import (
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// Whatever Vault answers, a credential is bounded and its parts agree.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"request_id":"r","lease_id":"database/creds/ro/x","lease_duration":600,"renewable":true,"data":{"username":"u","password":"p"}}`,
		`{"request_id":"r","data":{"data":{"a":"b"},"metadata":{"version":1}}}`,
		`{"request_id":"r","data":{"a":1.50,"b":null,"c":[1,{"d":"<"}],"ttl":900}}`,
		`{"request_id":"r","data":{"expiration":99999999999},"lease_duration":-1}`,
		`{"request_id":"r","auth":{"client_token":"t","token_type":"batch"}}`,
		`{"request_id":"r"} x`, `{"errors":[]}`, ``, `null`,
	} {
		f.Add([]byte(seed))
	}
	p := &Provider{now: time.Now}
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := parse(body)
		if err != nil || a == nil {
			return
		}
		cred, err := p.credential(a, "x/y", true)
		if err != nil {
			if cred != nil || strings.Contains(err.Error(), "canary") {
				t.Fatalf("credential = %v, %v", cred, err)
			}
			return
		}
		size := 0
		for name, v := range cred.Fields {
			size += len(name) + v.Len()
		}
		if size > providers.MaxCredentialBytes || len(cred.Fields) == 0 {
			t.Errorf("%d fields of %d bytes", len(cred.Fields), size)
		}
		if (cred.Revocability == providers.Revocable) != (cred.Handle.Len() > 0) {
			t.Errorf("%s with a handle of %d bytes", cred.Revocability, cred.Handle.Len())
		}
		if cred.Revocability == providers.Static && !cred.Expires.IsZero() {
			t.Errorf("static, and ends %v", cred.Expires)
		}
		if cred.Handle.Len() > 0 {
			if h, err := openLease(cred.Handle); err != nil || h.LeaseID != a.LeaseID {
				t.Errorf("its handle opens as %q, %v, want %q", h.LeaseID, err, a.LeaseID)
			}
		}
	})
}

// A handle that opens holds what may be sent, and nothing besides.
func FuzzHandle(f *testing.F) {
	for _, seed := range []string{`{"token":"hvs.x"}`, `{"lease_id":"a/b/c"}`, `{"wrapped":true}`, `{"wrapped":true,"lease_id":"a/b"}`, `{"wrapped":false}`, `{"token":"a","token":"b"}`, `{"TOKEN":"a"}`, "{\"token\":\"a\\nb\"}", `{}`, ``} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h := secret.New(b)
		if l, err := openLogin(h); err == nil && strings.ContainsAny(l.Token, "\r\n \x00") {
			t.Errorf("a token that can't stand in a header: %q", l.Token)
		}
		if l, err := openLease(h); err == nil && (strings.ContainsAny(l.LeaseID, "\r\n\x00") || l.Wrapped == (l.LeaseID != "")) {
			t.Errorf("a handle that opens as %+v", l)
		}
	})
}
