package endpoint

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// idTokenFor has the form of an ID token, with n in its claims.
func idTokenFor(audience string, n int) string {
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	claims := map[string]any{"aud": audience, "iss": "https://accounts.google.com", "exp": time.Now().Add(time.Hour).Unix(), "n": n}
	return part(map[string]string{"alg": "RS256"}) + "." + part(claims) + "." + base64.RawURLEncoding.EncodeToString([]byte(canary))
}

// Each tool is one process that reads its environment once and asks again by
// itself, past the expiry of what it was given first.
func TestToolsRefreshPastAnExpiry(t *testing.T) {
	t.Parallel()
	tools := map[string]struct {
		lease string
		check func(t *testing.T, got said, n int)
	}{
		"aws": {"deploy", func(t *testing.T, got said, n int) {
			want := map[string]string{"id": valueOf(awsKeyID, n), "secret": valueOf(awsSecretKey, n), "token": valueOf(awsSessionToken, n), "account": valueOf(awsAccountID, n)}
			same(t, got, want)
		}},
		"vault": {"db", func(t *testing.T, got said, n int) {
			lease := got.Values["lease"]
			if !strings.HasPrefix(lease, "database/creds/shop-ro/") {
				t.Errorf("lease id %q", lease)
			}
			want := map[string]string{
				"username": valueOf("DB_USER", n), "password": valueOf("DB_PASSWORD", n), "lease": lease,
				"v1": valueOf("NPM_TOKEN", 0), "v2": valueOf("NPM_TOKEN", 0), "self": "runenv", "refused": "true",
			}
			same(t, got, want)
		}},
	}
	if runtime.GOOS == "linux" {
		tools["google"] = struct {
			lease string
			check func(t *testing.T, got said, n int)
		}{"google", func(t *testing.T, got said, n int) {
			id := got.Values["id"] // the library keeps it for its own life
			if !strings.HasPrefix(id, "eyJ") {
				t.Errorf("ID token %q", id)
			}
			want := map[string]string{
				"token": valueOf("CLOUDSDK_AUTH_ACCESS_TOKEN", n), "on": "true", "project": "shop", "universe": "googleapis.com",
				"email": "deploy@shop.iam.gserviceaccount.com", "scopes": cloudPlatformScope, "id": id,
			}
			same(t, got, want)
		}}
	}
	for mode, tool := range tools {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 4*time.Second, func(c *Config) {
				if mode != "google" {
					c.GCE = nil
				}
			})
			h := startHelper(t, mode, s.env(), nil)
			before := h.next(t)
			tool.check(t, before, 0)
			first := s.keeper.lease(tool.lease).now().ExpiresAt
			<-time.After(time.Until(first))
			n := s.number(t, tool.lease)
			got := h.next(t)
			if now := s.number(t, tool.lease); now != n {
				n = now // renewed meanwhile
				got = h.next(t)
			}
			if n == 0 {
				t.Fatal("nothing was renewed")
			}
			tool.check(t, got, n)
			if !got.Expires.After(before.Expires) {
				t.Errorf("expires at %v, no later than the first's %v", got.Expires, before.Expires)
			}
		})
	}
}

// number is that of the lease being served.
func (s *site) number(t *testing.T, name string) int {
	t.Helper()
	var n int
	if _, err := fmt.Sscanf(strings.TrimPrefix(s.keeper.lease(name).now().ID, name+"-"), "%d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func same(t *testing.T, got said, want map[string]string) {
	t.Helper()
	if got.Error != "" {
		t.Errorf("the tool fails: %s", got.Error)
	}
	for name, w := range want {
		if g := got.Values[name]; g != w {
			t.Errorf("%s = %q, want %q", name, g, w)
		}
	}
}

// A tool is told what is wrong when nothing good is left, and nothing else.
func TestToolsAreToldOfAnExpiredLease(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"aws", "vault"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 2*time.Second, func(c *Config) { c.GCE = nil })
			s.session.set(func(f *fakeSession) { f.fail = errDown })
			h := startHelper(t, mode, s.env(), nil)
			if got := h.next(t); got.Error != "" {
				t.Fatalf("before the expiry: %s", got.Error)
			}
			<-time.After(time.Until(s.keeper.lease("db").now().ExpiresAt))
			got := h.next(t)
			if !strings.Contains(got.Error, "couldn't be renewed") || strings.Contains(got.Error, canary) {
				t.Errorf("after it: %q, want the reason", got.Error)
			}
		})
	}
}
