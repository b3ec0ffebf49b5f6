package vault

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/url"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// afterwards bounds the calls that clean up when the caller's own time may be
// over.
const afterwards = 5 * time.Second

// Login gets a token of the session's own.
func (p *Provider) Login(ctx context.Context, req providers.LoginRequest) (*providers.Login, error) {
	r := request{marker: req.Marker, repeat: onFailure}
	if p.auth.Method == methodToken {
		r.path, r.token = "auth/token/create", string(p.auth.Token.Reveal())
		r.body = map[string]any{
			"display_name": "runenv-" + req.Role,
			"ttl":          providers.LoginTTL.String(),
			"type":         "service",
			"renewable":    true,
			"meta":         map[string]string{"runenv_role": req.Role, "runenv_session": req.Session, "runenv_marker": req.Marker},
		}
	} else {
		if req.Tokens == nil {
			return nil, invalid("logging in by JWT without a source of tokens")
		}
		jwt, err := req.Tokens(ctx, p.auth.Audience)
		if err != nil {
			return nil, fmt.Errorf("vault: getting the broker's own token for %s: %w: %w: %w", p.auth.Audience, providers.ErrUnavailable, providers.ErrNotIssued, err)
		}
		r.path = "auth/" + p.auth.Mount + "/login"
		r.body = map[string]any{"role": p.role(req.Role), "jwt": jwt}
	}
	s, cerr := p.do(ctx, r)
	if cerr != nil {
		return nil, p.explainLogin(cerr, req.Role)
	}
	if s == nil || s.Auth == nil || !isToken([]byte(s.Auth.ClientToken)) || s.Auth.LeaseDuration < 0 {
		return nil, malformed(r.path, "answered without a token", "")
	}
	return p.accept(ctx, s.Auth, req.Role)
}

// role is the Vault role for a RunEnv role.
func (p *Provider) role(role string) string {
	if p.auth.Role != "" {
		return p.auth.Role
	}
	return "runenv-" + role
}

// accept refuses a token that can't be revoked, and one that lives longer than
// [providers.LoginTTL]. To shorten that wouldn't do: should its answer be lost,
// nobody could, and it would outlive what the broker has written down for it.
func (p *Provider) accept(ctx context.Context, auth *answerAuth, role string) (*providers.Login, error) {
	got := p.now()
	if auth.TokenType == "batch" {
		return nil, malformed("logging in", "gave a batch token, which can't be revoked",
			fmt.Sprintf("set token_type=service on the Vault role %s", p.role(role)))
	}
	ttl := seconds(auth.LeaseDuration)
	if ttl == 0 || ttl > providers.LoginTTL {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
		defer cancel()
		if err := p.revokeSelf(late, auth.ClientToken); err != nil {
			p.log.WarnContext(ctx, "vault token too long-lived and not revoked", "role", role, "ttl", ttl, "error", err)
		}
		return nil, malformed("logging in", "gave a token that lives longer than five minutes",
			fmt.Sprintf("set token_ttl=5m, and no longer token_period, on the Vault role %s", p.role(role)))
	}
	handle, err := seal(loginHandle{auth.ClientToken, p.at()})
	if err != nil {
		return nil, malformed("logging in", "gave a token that can't be kept", "")
	}
	return &providers.Login{Handle: handle, Expires: got.Add(ttl)}, nil
}

// RenewLogin asks for another [providers.LoginTTL].
func (p *Provider) RenewLogin(ctx context.Context, login secret.Value) (time.Time, error) {
	token, err := p.token(login)
	if err != nil {
		return time.Time{}, err
	}
	ttl, err := p.renewSelf(ctx, token)
	if err != nil {
		return time.Time{}, err
	}
	return p.now().Add(ttl), nil
}

func (p *Provider) renewSelf(ctx context.Context, token string) (time.Duration, error) {
	const path = "auth/token/renew-self"
	s, err := p.do(ctx, request{
		path: path, token: token, body: map[string]any{"increment": int(providers.LoginTTL.Seconds())}, repeat: always,
	})
	if err != nil {
		return 0, err
	}
	if s == nil || s.Auth == nil || s.Auth.LeaseDuration <= 0 {
		return 0, malformed(path, "answered without a new end", "")
	}
	return seconds(s.Auth.LeaseDuration), nil
}

// Logout revokes the token, and Vault every lease made with it; for the
// leases that takes it about a second more.
func (p *Provider) Logout(ctx context.Context, login secret.Value) error {
	token, err := p.token(login)
	if err != nil {
		return err
	}
	return p.revokeSelf(ctx, token)
}

func (p *Provider) revokeSelf(ctx context.Context, token string) error {
	_, err := p.end(ctx, request{path: "auth/token/revoke-self", token: token, body: map[string]any{}, repeat: always})
	switch {
	case err == nil || err.is(providers.ErrNotFound):
		return nil
	case !err.is(providers.ErrDenied):
		return err
	}
	// Vault says 403 of a token that has ended and of one that may not end
	// itself. One that may still read itself is the second.
	if _, alive := p.end(ctx, request{path: "auth/token/lookup-self", token: token, repeat: always}); alive == nil {
		err.hint = "give the token Vault's default policy, or the right to update auth/token/revoke-self"
		return err
	} else if alive.is(providers.ErrDenied) || alive.is(providers.ErrNotFound) {
		return nil
	} else {
		return alive
	}
}

// end sends a request whose refusal may mean that something has ended. Only
// Vault's own word counts there: a 404 of whatever else answers at its address
// ends nothing.
func (p *Provider) end(ctx context.Context, r request) (*answer, *callError) {
	s, err := p.do(ctx, r)
	if err != nil && !err.fromVault && !err.is(providers.ErrUnavailable) && !err.is(providers.ErrMalformed) {
		err.note, err.classes = "that isn't an answer of Vault's", []error{providers.ErrUnavailable}
	}
	return s, err
}

// explainLogin says what is wrong in the words of RunEnv's and Vault's roles.
func (p *Provider) explainLogin(err *callError, role string) error {
	if p.auth.Method == methodToken {
		if err.is(providers.ErrDenied) {
			err.hint = "the configured token has ended, or lacks the right to update auth/token/create"
		}
		return err
	}
	name, mount := p.role(role), p.auth.Mount
	denied := func(note, hint string) {
		err.note, err.hint, err.classes = note, hint, []error{providers.ErrDenied}
	}
	switch err.known {
	case noRole:
		err.note = fmt.Sprintf("it has no JWT role %q", name)
		err.hint = fmt.Sprintf("create it: vault write auth/%s/role/%s role_type=jwt user_claim=sub bound_subject=runenv:role:%s bound_audiences=%s token_policies=… token_ttl=5m",
			mount, name, role, p.auth.Audience)
	case badAudience:
		denied(fmt.Sprintf("its JWT role %q takes another audience", name),
			fmt.Sprintf("set bound_audiences=%s on that Vault role, or `audience` here to what it takes", p.auth.Audience))
	case badSubject:
		denied(fmt.Sprintf("its JWT role %q is for another RunEnv role", name),
			fmt.Sprintf("set bound_subject=runenv:role:%s on that Vault role if it may serve this one", role))
	case badSignature:
		denied("it doesn't know the key of the broker's token",
			fmt.Sprintf("let oidc_discovery_url of auth/%s/config be the broker's issuer_url, which Vault must be able to reach", mount))
	case noAuthConfig:
		err.hint = fmt.Sprintf("configure it: vault write auth/%s/config oidc_discovery_url=<the broker's issuer_url>", mount)
	default:
		if err.is(providers.ErrDenied) || err.is(providers.ErrNotFound) {
			err.hint = fmt.Sprintf("is the JWT auth method enabled at auth/%s, in this namespace?", mount)
		}
	}
	return err
}

// seconds is a TTL of Vault's, at most 100 years.
func seconds(n int) time.Duration {
	return time.Duration(min(int64(n), 100*365*24*3600)) * time.Second
}

// increment is a TTL as Vault takes it: whole seconds, at least one.
func increment(ttl time.Duration) int {
	return max(1, int(math.Floor(ttl.Seconds())))
}

// Renew asks for another ttl.
func (p *Provider) Renew(ctx context.Context, handle, login secret.Value, ttl time.Duration) (time.Time, error) {
	id, token, err := p.openBoth(handle, login)
	if err != nil {
		return time.Time{}, err
	}
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
	id, token, err := p.openBoth(handle, login)
	if err != nil {
		return err
	}
	return p.revoke(ctx, id, token)
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

func (p *Provider) openBoth(handle, login secret.Value) (id, token string, err error) {
	if id, err = openLease(handle); err != nil {
		return "", "", err
	}
	token, err = p.token(login)
	return id, token, err
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

// queryVersion is the query for one version of a KV secret.
func queryVersion(version int) url.Values {
	if version == 0 {
		return nil
	}
	return url.Values{"version": {fmt.Sprint(version)}}
}

// LoginTTL is [providers.LoginTTL]: a longer login is refused.
func (p *Provider) LoginTTL() time.Duration { return providers.LoginTTL }
