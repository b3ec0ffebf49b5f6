package gcp

import (
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"

	"github.com/runenv/action/providers"
)

func coreOf(p providers.Provider) *core {
	if a, ok := p.(*Ambient); ok {
		return &a.core
	}
	return &p.(*Provider).core
}

// Hasten shortens the waits between attempts.
func Hasten(p providers.Provider) { coreOf(p).firstWait = time.Millisecond }

// FromFile lets application default credentials come from a file, whatever the
// environment says.
func FromFile(p providers.Provider, path string) {
	c := coreOf(p)
	c.ambient.detect = func() (*auth.Credentials, error) {
		return credentials.NewCredentialsFromFile(credentials.ExternalAccount, path,
			&credentials.DetectOptions{Scopes: []string{cloudPlatform}, Client: c.http.plain, Logger: silent()})
	}
}

// Claims reads what [claimsOf] does.
func Claims(token string) (subject string, ok bool) {
	c, ok := claimsOf(token)
	return c.Subject, ok
}

// Fields are the names and values of [fieldsOf].
func Fields(payload []byte) map[string]string {
	out := map[string]string{}
	for name, v := range fieldsOf(payload) {
		out[name] = string(v.Reveal())
	}
	return out
}
