package vault_test

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/vault/vaulttest"
	"github.com/runenv/action/ref"
)

func TestListing(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		keys keys
		want []string // fields
		err  error
		text string
	}{
		{"right under the path", keys{"path": "secret/app", "list": true}, []string{"a/x", "a/y", "b/x"}, nil, ""},
		{"all below it", keys{"path": "secret/app", "recursive": true}, []string{"a/x", "a/y", "b/x", "deep/d/x", "deep/er/c/x"}, nil, ""},
		{"a template", keys{"path": "secret/{{project.name}}", "list": true}, []string{"a/x"}, nil, ""},
		{"of KV 1", keys{"path": "kv/app", "recursive": true}, []string{"a/x", "sub/b/y"}, nil, ""},
		{"nothing there", keys{"path": "secret/none", "list": true}, nil, providers.ErrNotFound, "nothing lies under secret/none"},
		{"only what was deleted", keys{"path": "secret/gone", "list": true}, nil, providers.ErrNotFound, "nothing lies"},
		{"of another engine", keys{"path": "database/creds", "list": true}, nil, providers.ErrInvalid, "can't be listed"},
		{"names that collide", keys{"path": "secret/clash", "recursive": true}, nil, providers.ErrMalformed, "two fields of one name"},
		{"too many", keys{"path": "secret/many", "list": true}, nil, providers.ErrMalformed, "more than 256"},
		{"too deep", keys{"path": "secret/deep", "recursive": true}, nil, providers.ErrMalformed, "deeper than 16"},
		{"too big", keys{"path": "secret/big", "list": true}, nil, providers.ErrMalformed, "bytes"},
		{"a name that climbs", keys{"path": "secret/climb", "list": true}, nil, providers.ErrMalformed, "name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := newServer(t)
			put := func(path string, data keys) { srv.Put("secret", path, data) }
			put("app/a", keys{"x": "c4n4ry", "y": "2"})
			put("app/b", keys{"x": "3"})
			put("app/deep/er/c", keys{"x": "4"})
			put("app/deep/d", keys{"x": "5"})
			put("app/gone", keys{"x": "6"})
			put("app/gone", nil)
			put("apple/no", keys{"x": "7"})
			put("gone/a", nil)
			put("shop/a", keys{"x": "1"})
			put("clash/a", keys{"b/c": "1"})
			put("clash/a/b", keys{"c": "2"})
			for i := range 257 {
				put(fmt.Sprintf("many/%d", i), keys{"x": "1"})
			}
			put("deep/"+strings.Repeat("d/", 17)+"a", keys{"x": "1"})
			for i := range 5 {
				put(fmt.Sprintf("big/%d", i), keys{"x": strings.Repeat("c4n4ry", 150<<10)})
			}
			put("climb/..", keys{"x": "1"})
			srv.Put("kv", "app/a", keys{"x": "1"})
			srv.Put("kv", "app/sub/b", keys{"y": "2"})
			cred, err := newSession(t, srv).issue(t, tt.keys)
			if tt.err != nil {
				if cred != nil || !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "c4n4ry") || srv.Issued() != 0 {
					t.Errorf("Issue = %v, %v, want %v with %q", cred, err, tt.err, tt.text)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := slices.Sorted(maps.Keys(cred.Fields)); !slices.Equal(got, tt.want) || cred.Revocability != providers.Static {
				t.Errorf("fields = %q, %s, want %q", got, cred.Revocability, tt.want)
			}
		})
	}
}

// One secret that can't be read fails the whole listing: half of what a job
// asked for is worse than nothing.
func TestListingIsWhole(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]vaulttest.Fault{
		"denied":                vaulttest.On("secret/data/app/b", vaulttest.Status(http.StatusForbidden, "permission denied")),
		"failed":                vaulttest.On("secret/data/app/b", vaulttest.Status(http.StatusInternalServerError)),
		"the listing is denied": vaulttest.On("secret/metadata/", vaulttest.Status(http.StatusForbidden, "permission denied")),
	} {
		srv := newServer(t)
		for _, n := range []string{"a", "b", "c"} {
			srv.Put("secret", "app/"+n, keys{"x": "1"})
		}
		s := newSession(t, srv)
		srv.Inject(fault)
		if cred, err := s.issue(t, keys{"path": "secret/app", "list": true}); cred != nil || err == nil || !providers.Void(err) {
			t.Errorf("%s: Issue = %v, %v, want an error, void", name, cred, err)
		}
	}
}

// Wrapped, a credential is one token; what is inside ends with the login, or
// stays valid.
func TestWrapping(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	s := newSession(t, srv)
	cred, err := s.issue(t, keys{"path": "database/creds/ro", "wrap": 2 * time.Minute})
	if err != nil || len(cred.Fields) != 1 || cred.Fields["token"].Len() == 0 || cred.Revocability != providers.Revocable || cred.Renewable || !cred.Expires.IsZero() {
		t.Fatalf("Issue = %+v, %v, want a token that ends with the login", cred, err)
	}
	if got := srv.Requests("database/creds")[0].Header.Get("X-Vault-Wrap-TTL"); got != "120" {
		t.Errorf("asked to wrap for %q, want 120", got)
	}
	before := len(srv.Requests(""))
	if err := s.Revoke(t.Context(), cred.Handle, s.login); !errors.Is(err, providers.ErrWithLogin) {
		t.Errorf("Revoke = %v, want %v", err, providers.ErrWithLogin)
	}
	if _, err := s.Renew(t.Context(), cred.Handle, s.login, time.Minute); !errors.Is(err, providers.ErrInvalid) || len(srv.Requests("")) != before {
		t.Errorf("Renew = %v, want %v and no request", err, providers.ErrInvalid)
	}
	if err := s.Logout(t.Context(), s.login); err != nil || srv.Leases() != 0 {
		t.Errorf("Logout = %v, and %d leases live, want none", err, srv.Leases())
	}
	s = newSession(t, srv)
	if cred, err = s.issue(t, keys{"path": "secret/ci/npm", "wrap": time.Minute}); err != nil || cred.Revocability != providers.Static || cred.Handle.Len() != 0 {
		t.Errorf("Issue(KV) = %+v, %v, want a static one", cred, err)
	}
	issued := srv.Issued()
	for _, path := range []string{"pki/issue/ci", "database/static-creds/ro", "ssh/creds/x"} {
		if cred, err := s.issue(t, keys{"path": path, "wrap": time.Minute}); cred != nil || !errors.Is(err, providers.ErrInvalid) || srv.Issued() != issued {
			t.Errorf("Issue(%s) = %v, %v, want %v: its end would be hidden", path, cred, err, providers.ErrInvalid)
		}
	}
	srv.Inject(vaulttest.On("database/", vaulttest.Rewrite(func(string) string {
		return `{"request_id":"x","lease_id":"database/creds/ro/1","lease_duration":60,"data":{"password":"c4n4ry"}}`
	})))
	if cred, err := s.issue(t, keys{"path": "database/creds/ro", "wrap": time.Minute}); cred != nil || !errors.Is(err, providers.ErrMalformed) {
		t.Errorf("Issue that isn't wrapped = %v, %v, want %v", cred, err, providers.ErrMalformed)
	}
}

// What signs certificates is told how long they may live.
func TestT16CertificatesAreLimited(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		keys keys
		want time.Duration // 0: refused
	}{
		{"no ttl", keys{"path": "ssh/sign/ci", "params": keys{}}, 10 * time.Minute},
		{"a shorter one", keys{"path": "ssh/sign/ci", "params": keys{"ttl": "90s"}}, 90 * time.Second},
		{"seconds", keys{"path": "ssh/sign/ci", "params": keys{"ttl": 60}}, time.Minute},
		{"a longer one", keys{"path": "ssh/sign/ci", "params": keys{"ttl": "24h"}}, 10 * time.Minute},
		{"no length of time", keys{"path": "ssh/sign/ci", "params": keys{"ttl": "1d"}}, 0},
		{"a negative one", keys{"path": "pki/issue/ci", "params": keys{"ttl": "-1h"}}, 0},
		{"pki, by issuer", keys{"path": "pki/issuer/default/sign/ci", "params": keys{"ttl": "24h"}}, 10 * time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := newServer(t)
			s := newSession(t, srv)
			cred, err := s.issue(t, tt.keys)
			if tt.want == 0 {
				if !errors.Is(err, providers.ErrInvalid) || srv.Issued() != 0 {
					t.Errorf("Issue = %v, want %v", err, providers.ErrInvalid)
				}
				return
			}
			if err != nil || cred.Revocability != providers.Expires || time.Until(cred.Expires).Round(10*time.Second) != tt.want {
				t.Errorf("Issue = %+v, %v, want one for %v", cred, err, tt.want)
			}
		})
	}
}

// A lease that Vault makes longer than asked for is shortened there; where that
// isn't allowed it says how long it really lives.
func TestT16LeasesAreShortened(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	srv.Mount("database", "database", vaulttest.Database(24*time.Hour))
	s := newSession(t, srv)
	cred, err := s.issue(t, keys{"path": "database/creds/ro"})
	if err != nil || time.Until(cred.Expires) > 10*time.Minute || len(srv.Requests("sys/leases/renew")) != 1 {
		t.Errorf("Issue = %+v, %v, want one for 10m", cred, err)
	}
	srv.Inject(vaulttest.On("sys/leases/renew", vaulttest.Status(http.StatusForbidden, "permission denied")))
	cred, err = s.issue(t, keys{"path": "database/creds/ro"})
	if err != nil || time.Until(cred.Expires) < 23*time.Hour {
		t.Errorf("Issue = %+v, %v, want one that says it lives a day", cred, err)
	}
}

// Near a lease's maximum the new end is sooner than asked for, and Renew says
// so.
func TestT16RenewTellsTheMaximum(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	srv.MaxLease = time.Minute
	s := newSession(t, srv)
	cred, err := s.issue(t, keys{"path": "database/creds/ro"})
	if err != nil {
		t.Fatal(err)
	}
	if end, err := s.Renew(t.Context(), cred.Handle, s.login, time.Hour); err != nil || time.Until(end) > time.Minute {
		t.Errorf("Renew = %v, %v, want a minute from now", end, err)
	}
}

func TestReference(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	s := newSession(t, srv)
	tests := []struct {
		name string
		ref  ref.Ref
		want string // of the token; empty: refused
	}{
		{"a secret", ref.Ref{Scheme: "vault", Path: "secret/ci/npm"}, "c4n4ry-token"},
		{"its version", ref.Ref{Scheme: "vault", Path: "secret/ci/npm", Version: "1", Field: "token"}, "c4n4ry-old"},
		{"a word for a version", ref.Ref{Scheme: "vault", Path: "secret/ci/npm", Version: "latest"}, ""},
		{"another spelling", ref.Ref{Scheme: "vault", Path: "secret/ci/npm", Version: "01"}, ""},
		{"version 0", ref.Ref{Scheme: "vault", Path: "secret/ci/npm", Version: "0"}, ""},
		{"a template", ref.Ref{Scheme: "vault", Path: "secret/{{project.name}}"}, ""},
		{"Vault's own", ref.Ref{Scheme: "vault", Path: "sys/mounts"}, ""},
		{"a climb", ref.Ref{Scheme: "vault", Path: "secret/../auth/token/lookup-self"}, ""},
		{"a mount", ref.Ref{Scheme: "vault", Path: "secret"}, ""},
		{"another scheme", ref.Ref{Scheme: "aws-sm", Path: "secret/ci/npm"}, ""},
	}
	for _, tt := range tests {
		def, err := s.Reference(tt.ref)
		if (err == nil) != (tt.want != "") {
			t.Errorf("%s: Reference = %v, %v", tt.name, def, err)
		}
		if err != nil {
			continue
		}
		cred, err := s.Issue(t.Context(), providers.Request{Definition: def, TTL: time.Minute, Marker: "m", Login: s.login})
		if err != nil || string(cred.Fields["token"].Reveal()) != tt.want {
			t.Errorf("%s: Issue = %v, want the token %q", tt.name, err, tt.want)
		}
	}
}
