package vault

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// seconds is a TTL of Vault's, at most 100 years.
func seconds(n int) time.Duration {
	return time.Duration(min(int64(n), 100*365*24*3600)) * time.Second
}

// increment is a TTL as Vault takes it: whole seconds, at least one.
func increment(ttl time.Duration) int {
	return max(1, int(math.Floor(ttl.Seconds())))
}

// Renew asks for another ttl. Near the maximum that Vault sets for the lease
// the new end is sooner, and says so.
func (p *Provider) Renew(ctx context.Context, handle, login secret.Value, ttl time.Duration) (time.Time, error) {
	h, token, err := p.openBoth(handle, login)
	if err != nil {
		return time.Time{}, err
	}
	if h.Wrapped {
		return time.Time{}, invalid("renewing a wrapped credential")
	}
	return p.renew(ctx, h.LeaseID, token, ttl)
}

func (p *Provider) renew(ctx context.Context, id, token string, ttl time.Duration) (time.Time, error) {
	const path = "sys/leases/renew"
	s, cerr := p.do(ctx, request{
		path: path, token: token, body: map[string]any{"lease_id": id, "increment": increment(ttl)}, repeat: always,
	})
	switch {
	case cerr != nil && cerr.known == noLease:
		cerr.note, cerr.classes = "the lease has ended", []error{providers.ErrNotFound}
		return time.Time{}, cerr
	case cerr != nil:
		return time.Time{}, cerr
	case s == nil || s.LeaseID != id || s.LeaseDuration <= 0:
		return time.Time{}, malformed(path, "answered without a new end", "")
	}
	return p.now().Add(seconds(s.LeaseDuration)), nil
}

// Revoke ends a lease and returns when it has ended. Where the policy doesn't
// allow that, the usual case, it is [providers.ErrWithLogin].
func (p *Provider) Revoke(ctx context.Context, handle, login secret.Value) error {
	h, token, err := p.openBoth(handle, login)
	if err != nil {
		return err
	}
	if h.Wrapped { // only who unwraps it learns the lease's id
		return fmt.Errorf("vault: a wrapped credential: %w", providers.ErrWithLogin)
	}
	return p.revoke(ctx, h.LeaseID, token)
}

func (p *Provider) revoke(ctx context.Context, id, token string) error {
	_, err := p.end(ctx, request{
		path: "sys/leases/revoke", token: token, body: map[string]any{"lease_id": id, "sync": true}, repeat: always,
	})
	switch {
	case err == nil || err.is(providers.ErrNotFound) || err.known == noLease:
		return nil
	case err.is(providers.ErrDenied):
		err.classes = []error{providers.ErrWithLogin, providers.ErrDenied}
	case err.is(providers.ErrInvalid):
		// So Vault says when what it must call to end the credential fails.
		err.note, err.classes = "Vault couldn't end it", []error{providers.ErrUnavailable}
	}
	return err
}

func (p *Provider) openBoth(handle, login secret.Value) (h leaseHandle, token string, err error) {
	if h, err = openLease(handle); err != nil {
		return h, "", err
	}
	token, err = p.token(login)
	return h, token, err
}

// shorten makes Vault end a lease within ttl, where it gave a longer one. It
// is tried once and needs no right that Vault's default policy doesn't give;
// where it fails the lease still ends with its login.
func (p *Provider) shorten(ctx context.Context, cred *providers.Credential, id, token string, ttl time.Duration) {
	if !cred.Renewable || ttl <= 0 || !cred.Expires.After(p.now().Add(ttl)) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, afterwards)
	defer cancel()
	end, err := p.renew(ctx, id, token, ttl)
	if err != nil {
		p.log.WarnContext(ctx, "vault lease longer than asked for and not shortened", "ttl", ttl, "error", err)
		return
	}
	cred.Expires = end
}

// discard ends a lease that can't be used, best effort: it would end with its
// login all the same.
func (p *Provider) discard(ctx context.Context, id, token string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer cancel()
	if err := p.revoke(ctx, id, token); err != nil && !errors.Is(err, providers.ErrWithLogin) {
		p.log.WarnContext(ctx, "vault lease unusable and not revoked", "error", err)
	}
}
