package gcp

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// maxHandleBytes bounds a login's handle: two tokens of up to 4 KiB and names.
const maxHandleBytes = 16 << 10

// loginHandle is what the broker keeps sealed, as JSON.
type loginHandle struct {
	// Token is the federated access token.
	Token string `json:"token"`
	// Service is the token of `auth: service_account`, by which secrets are
	// read; empty if there is none.
	Service string `json:"service,omitempty"`
	// Caller names the identity at Google; for hints.
	Caller string `json:"caller"`
	// At is where it was made; see [core.at].
	At string `json:"at"`
}

// Login trades the session's ID token for a federated access token, and that,
// where `auth` names a service account, for one of the account's besides.
func (p *Provider) Login(ctx context.Context, req providers.LoginRequest) (*providers.Login, error) {
	h, end, err := p.login(ctx, req)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(h)
	if err != nil || len(b) > maxHandleBytes {
		return nil, malformed("logging in", "it gave a token that can't be kept", "")
	}
	return &providers.Login{Handle: secret.New(b), Expires: end}, nil
}

func (p *core) login(ctx context.Context, req providers.LoginRequest) (h loginHandle, end time.Time, err error) {
	account, err := p.account.Expand(providers.Vars{"role.name": req.Role})
	if err == nil && account != "" && !accountName.MatchString(account) {
		err = errors.New("`auth`: `service_account` becomes what isn't the e-mail address of a service account")
	}
	if err != nil {
		return h, end, invalid("logging in for role %.64q: %v", req.Role, err)
	}
	subjectToken, err := p.subjectToken(ctx, req.Tokens)
	if err != nil {
		return h, end, err
	}
	tok, err := p.exchange(ctx, onFailure, subjectToken, []string{cloudPlatform}, req.Marker)
	if err != nil {
		return h, end, err
	}
	h = loginHandle{Token: tok.Value, Caller: p.principal(subjectToken), At: p.at()}
	end = tok.Expiry
	if account == "" {
		return h, end, nil
	}
	service, err := p.accessToken(ctx, impersonation{account: account, bearer: tok.Value, caller: h.Caller, marker: req.Marker, repeat: onFailure},
		[]string{cloudPlatform}, end.Sub(p.now()))
	if err != nil { // the federated token is there already, for an hour
		return h, end, fmt.Errorf("%w: %w", err, providers.ErrMaybeIssued)
	}
	if service.Expiry.Before(end) {
		end = service.Expiry
	}
	h.Service = service.Value
	return h, end, nil
}

// subjectToken gets the ID token that is traded.
func (p *core) subjectToken(ctx context.Context, tokens providers.TokenSource) (string, error) {
	if p.ci != nil {
		tokens = p.ci
	}
	if tokens == nil {
		return "", invalid("logging in without a source of tokens")
	}
	t, err := tokens(ctx, p.audience)
	if err != nil {
		return "", fmt.Errorf("gcp: getting an ID token for %s: %w: %w: %w", p.audience, providers.ErrUnavailable, providers.ErrNotIssued, err)
	}
	if c, ok := claimsOf(t); ok && len(c.Subject) > maxSubjectBytes {
		e := malformed("logging in", fmt.Sprintf("the ID token's subject has %d bytes", len(c.Subject)), fmt.Sprintf("Google takes %d: map google.subject to a shorter claim", maxSubjectBytes))
		e.classes = []error{providers.ErrInvalid}
		return "", e
	}
	return t, nil
}

// at names the pool's provider and the places: a login that was made with
// others isn't shown to those of now.
func (p *core) at() string {
	return strings.Join([]string{p.audience, p.endpoints.STS, p.endpoints.IAMCredentials, p.endpoints.SecretManager, p.account.String()}, " ")
}

// openLogin reads a login's handle.
func (p *core) openLogin(login secret.Value) (loginHandle, error) {
	var h loginHandle
	b := login.Reveal()
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if len(b) == 0 || len(b) > maxHandleBytes || dec.Decode(&h) != nil || !isToken(h.Token) || h.Service != "" && !isToken(h.Service) {
		return loginHandle{}, invalid("a login's handle that isn't one of this provider's")
	}
	if _, err := dec.Token(); err != io.EOF {
		return loginHandle{}, invalid("a login's handle that isn't one of this provider's")
	}
	if h.At != p.at() {
		return loginHandle{}, &callError{
			what: "a login", note: "it was made with other `endpoints`, `audience` or `service_account` than this provider has now",
			hint:    "it ends within the hour; start the session again",
			classes: []error{providers.ErrUnavailable, providers.ErrNotIssued},
		}
	}
	return h, nil
}

// principal is how IAM names who has an ID token, with google.subject mapped
// to its subject.
func (p *core) principal(idToken string) string {
	subject := "SUBJECT"
	if c, ok := claimsOf(idToken); ok && plain(c.Subject) {
		subject = c.Subject
	}
	pool, _, _ := strings.Cut(p.audience, "/providers/")
	return "principal:" + pool + "/subject/" + subject
}

// Check logs in and says as whom.
func (p *core) Check(ctx context.Context, req providers.LoginRequest) (providers.Checked, error) {
	if err := ctx.Err(); err != nil {
		return providers.Checked{}, &callError{what: "checking", classes: []error{providers.ErrUnavailable, providers.ErrNotIssued, err}}
	}
	if p.ambient != nil {
		as, _, err := p.ambient.token(ctx, p)
		if err == nil && p.account.String() != "" {
			as = p.account.String()
			_, err = p.ambient.service(ctx, p, req.Marker)
		}
		if err != nil {
			return providers.Checked{}, err
		}
		return providers.Checked{As: as, Notes: []string{"every role has the rights of this one identity; with `method: oidc` each has its own"}}, nil
	}
	h, _, err := p.login(ctx, req)
	if err != nil {
		return providers.Checked{}, err
	}
	if h.Service == "" {
		return providers.Checked{As: h.Caller}, nil
	}
	account, err := p.account.Expand(providers.Vars{"role.name": req.Role})
	return providers.Checked{As: account}, err
}

// explainExchange says what is wrong in the words of the pool's settings.
func (p *core) explainExchange(err error, subjectToken string) error {
	e, ok := err.(*callError) //nolint:errorlint // fetch's own, never wrapped
	if !ok {
		return err
	}
	c, _ := claimsOf(subjectToken)
	issuer := c.Issuer
	if !plain(issuer) {
		issuer = "the broker's issuer_url"
	}
	say := func(note, hint string) { e.note, e.hint = note, hint }
	switch e.known {
	case noPool:
		say("there is no such pool or provider, or it is disabled", "create "+p.audience+", or correct `audience`: it has the project's number, not its id")
	case conditionFailed:
		say("the provider's attribute condition refuses this role", "let the condition take assertion.sub == \"runenv:role:<role>\" if the role may log in")
	case otherIssuer:
		say("the provider trusts another issuer", "set the provider's issuer to "+issuer+", the broker's issuer_url, to the letter")
	case otherAudience:
		say("the provider takes another audience", "remove its allowed audiences, or add "+p.audience)
	case noKeySet:
		say("Google can't fetch the issuer's keys", "let "+issuer+" be reachable from outside, or upload its keys: `runenv-broker keys export` writes them, and gcloud takes them with --jwk-json-path")
	case badSignature:
		say("Google doesn't know the key of the token", "upload the keys of the broker as it is now, by `runenv-broker keys export`: after a new store it has new ones")
	case badTime:
		say("Google finds the token too old or too young", "set this machine's clock")
	case longSubject:
		say("a mapped attribute is too long", fmt.Sprintf("map google.subject=assertion.sub: it may have %d bytes", maxSubjectBytes))
	case apiDisabled:
		say("the API is disabled", "gcloud services enable sts.googleapis.com iamcredentials.googleapis.com secretmanager.googleapis.com")
	default:
		if e.is(providers.ErrDenied) {
			say("it doesn't take the token", "compare the provider's issuer, allowed audiences and attribute condition with the set-up guide; changes take some minutes")
		}
	}
	return e
}

// explainAccount says which right is missing.
func (p *core) explainAccount(err error, i impersonation) error {
	e, ok := err.(*callError) //nolint:errorlint // fetch's own, never wrapped
	if !ok {
		return err
	}
	switch {
	case e.known == apiDisabled:
		e.note, e.hint = "the API is disabled", "gcloud services enable iamcredentials.googleapis.com"
	case e.known == ended || strings.HasSuffix(e.status, "401"):
		e.note, e.hint = "the login isn't taken", "a login lives an hour and can't be renewed: start the session again"
	case e.known == badLifetime:
		e.note, e.hint = "it may not live that long", "the organisation policy iam.allowServiceAccountCredentialLifetimeExtension must name "+i.account+", or leave `extended_lifetime` out"
	case e.is(providers.ErrNotFound):
		e.note, e.hint = "there is no such service account", "create it, or correct `service_account`"
	case e.is(providers.ErrDenied) && len(i.delegates) > 0:
		e.note = "a link of the chain is missing"
		e.hint = fmt.Sprintf("grant %s on %s to %s, and roles/iam.serviceAccountTokenCreator on each account to the delegate before it; changes take some minutes", p.callersRole(), i.delegates[0], i.caller)
	case e.is(providers.ErrDenied):
		e.note = "it may not be impersonated"
		e.hint = fmt.Sprintf("gcloud iam service-accounts add-iam-policy-binding %s --role=%s --member=%s; changes take some minutes", i.account, p.callersRole(), i.caller)
	}
	return e
}

// callersRole is the IAM role by which the provider's own identity may
// impersonate an account.
func (p *core) callersRole() string {
	if p.ambient != nil {
		return "roles/iam.serviceAccountTokenCreator"
	}
	return "roles/iam.workloadIdentityUser"
}

// claims are what is read of an ID token, whose signature is for others to
// verify.
type claims struct {
	Issuer, Subject string
	Audience        string // empty if it is a list
	Expires         int64  // seconds since 1970
}

func claimsOf(token string) (c claims, ok bool) {
	parts := strings.Split(token, ".")
	if len(token) > maxTokenAnswer || len(parts) != 3 {
		return c, false
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return c, false
	}
	if _, ok := objectOf(b); !ok {
		return c, false
	}
	var read struct {
		Audience any     `json:"aud"`
		Issuer   string  `json:"iss"`
		Subject  string  `json:"sub"`
		Expires  float64 `json:"exp"`
	}
	if json.Unmarshal(b, &read) != nil {
		return c, false
	}
	audience, _ := read.Audience.(string)
	const farthest = 1 << 40
	return claims{read.Issuer, read.Subject, audience, int64(max(0, min(read.Expires, farthest)))}, true
}

// isToken: what may stand in a header.
func isToken(s string) bool { return len(s) > 0 && len(s) <= 12<<10 && plain(s) }

// plain: visible ASCII without blanks.
func plain(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// ambient are the broker's application default credentials. They are looked
// for when they are first needed: that may ask the metadata server.
type ambient struct {
	detect func() (*auth.Credentials, error)

	mu      sync.Mutex
	creds   *auth.Credentials
	account *auth.Token // of `auth: service_account`
}

func newAmbient(client *http.Client) *ambient {
	return &ambient{detect: func() (*auth.Credentials, error) {
		return credentials.DetectDefault(&credentials.DetectOptions{Scopes: []string{cloudPlatform}, Client: client, Logger: silent()})
	}}
}

// token gives a token and says whose it is.
func (a *ambient) token(ctx context.Context, p *core) (as, token string, err error) {
	const what = "application default credentials"
	a.mu.Lock()
	if a.creds == nil {
		a.creds, err = a.detect()
	}
	creds := a.creds
	a.mu.Unlock()
	if err != nil {
		return "", "", &callError{what: what, note: "there are none", hint: "let GOOGLE_APPLICATION_CREDENTIALS name their file, or run the broker where there is a metadata server",
			classes: []error{providers.ErrUnavailable, providers.ErrNotIssued}}
	}
	var tok *auth.Token
	if cerr := p.again(ctx, always, func(ctx context.Context) *callError {
		var g passage
		if tok, err = creds.Token(context.WithValue(ctx, passageKey{}, &g)); err == nil && isToken(tok.Value) {
			return nil
		}
		e := g.failure(ctx, what)
		// It is a token of the broker's own: no credential was issued.
		e.classes = append(e.classes, providers.ErrNotIssued)
		return e
	}); cerr != nil {
		return "", "", cerr
	}
	var file struct {
		Type  string `json:"type"`
		Email string `json:"client_email"`
	}
	_ = json.Unmarshal(creds.JSON(), &file)
	switch {
	case accountName.MatchString(file.Email):
		as = file.Email
	case plain(file.Type):
		as = what + " (" + file.Type + ")"
	default:
		as = what
	}
	return as, tok.Value, nil
}

// service gives a token of `auth: service_account`, kept for as long as it has
// five minutes to live.
func (a *ambient) service(ctx context.Context, p *core, marker string) (string, error) {
	a.mu.Lock()
	tok := a.account
	a.mu.Unlock()
	if tok != nil && tok.Expiry.Sub(p.now()) > 5*time.Minute {
		return tok.Value, nil
	}
	as, bearer, err := a.token(ctx, p)
	if err != nil {
		return "", err
	}
	tok, err = p.accessToken(ctx, impersonation{account: p.account.String(), bearer: bearer, caller: as, marker: marker, repeat: onFailure}, []string{cloudPlatform}, tokenLife)
	if err != nil {
		return "", err
	}
	a.mu.Lock()
	a.account = tok
	a.mu.Unlock()
	return tok.Value, nil
}
