package vault

import (
	"context"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// afterwards bounds the calls that clean up when the caller's own time may be
// over.
const afterwards = 5 * time.Second

// Login gets a token of the session's own.
func (p *Provider) Login(ctx context.Context, req providers.LoginRequest) (*providers.Login, error) {
	auth, err := p.logIn(ctx, req)
	if err != nil {
		return nil, err
	}
	handle, err := seal(loginHandle{auth.ClientToken, p.at()})
	if err != nil {
		return nil, malformed("logging in", "gave a token that can't be kept", "")
	}
	return &providers.Login{Handle: handle, Expires: p.now().Add(seconds(auth.LeaseDuration))}, nil
}

func (p *Provider) logIn(ctx context.Context, req providers.LoginRequest) (*answerAuth, error) {
	r, err := p.loginCall(ctx, req)
	if err != nil {
		return nil, err
	}
	s, cerr := p.do(ctx, r)
	if cerr != nil {
		return nil, p.explainLogin(cerr, req.Role)
	}
	if s == nil || s.Auth == nil || !isToken([]byte(s.Auth.ClientToken)) || s.Auth.LeaseDuration < 0 {
		return nil, malformed(r.path, "answered without a token", "")
	}
	return s.Auth, p.accept(ctx, s.Auth, req.Role)
}

// accept refuses a token that can't be revoked, and one that lives longer than
// [Provider.LoginTTL]. To shorten that wouldn't do: should its answer be lost,
// nobody could, and it would outlive what the broker has written down for it.
func (p *Provider) accept(ctx context.Context, auth *answerAuth, role string) error {
	if auth.TokenType == "batch" {
		return malformed("logging in", "gave a batch token, which can't be revoked", "set token_type=service on "+p.roleInWords(role))
	}
	ttl := seconds(auth.LeaseDuration)
	if ttl != 0 && ttl <= p.LoginTTL() {
		return nil
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer cancel()
	if err := p.revokeSelf(late, auth.ClientToken); err != nil {
		p.log.WarnContext(ctx, "vault token too long-lived and not revoked", "role", role, "ttl", ttl, "error", err)
	}
	if p.auth.Method == methodCI {
		return malformed("logging in", "gave a token that lives longer than an hour", "set token_ttl=1h or less on "+p.roleInWords(role))
	}
	return malformed("logging in", "gave a token that lives longer than five minutes",
		"set token_ttl=5m, and no longer token_period, on "+p.roleInWords(role))
}

// roleInWords names what the session's token comes from.
func (p *Provider) roleInWords(role string) string {
	switch p.auth.Method {
	case methodAppRole:
		return "the AppRole that `role_id` names"
	case methodToken:
		return "the token store"
	}
	return "the Vault role " + p.role(role)
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
		path: path, token: token, body: map[string]any{"increment": increment(providers.LoginTTL)}, repeat: always,
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
