package gcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"regexp"
	"time"
	"unicode/utf8"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// The fields of credentials.
const (
	fieldAccessToken = "access_token"
	fieldIDToken     = "id_token"
	fieldExpiresAt   = "expires_at" // RFC 3339, UTC
	fieldValue       = "value"      // a secret as it is stored
)

// Issue asks for a token, or reads a secret.
func (p *core) Issue(ctx context.Context, req providers.Request) (*providers.Credential, error) {
	d, ok := req.Definition.(*definition)
	if !ok || d == nil {
		return nil, invalid("a definition of another provider (%T)", req.Definition)
	}
	if err := ctx.Err(); err != nil {
		return nil, &callError{what: "issuing", classes: []error{providers.ErrUnavailable, providers.ErrNotIssued, err}}
	}
	switch d.kind {
	case federatedToken:
		return p.issueFederated(ctx, d, req)
	case storedSecret:
		return p.issueSecret(ctx, d, req)
	}
	account, delegates, err := d.accounts(req.Vars)
	if err != nil {
		return nil, invalid("%v", err)
	}
	who, err := p.identity(ctx, d, req)
	if err != nil {
		return nil, err
	}
	i := impersonation{account: account, delegates: delegates, bearer: who.Token, caller: who.Caller, marker: req.Marker, repeat: onRefusal}
	if d.kind == idToken {
		return p.issueIDToken(ctx, d, req, i)
	}
	life := min(req.TTL, d.longest)
	if life < time.Second {
		return nil, invalid("an access token for %v: a second at least", req.TTL)
	}
	tok, err := p.accessToken(ctx, i, d.scopes, life)
	if err != nil {
		return nil, err
	}
	return tokenCredential(fieldAccessToken, tok), nil
}

// identity is by whom a lease is asked for: the session's login, or the
// broker's application default credentials.
func (p *core) identity(ctx context.Context, d *definition, req providers.Request) (loginHandle, error) {
	if p.ambient == nil {
		return p.openLogin(req.Login)
	}
	as, token, err := p.ambient.token(ctx, p)
	if err != nil {
		return loginHandle{}, err
	}
	h := loginHandle{Token: token, Caller: as}
	if d.kind == storedSecret && p.account.String() != "" {
		h.Service, err = p.ambient.service(ctx, p, req.Marker)
	}
	return h, err
}

func (d *definition) accounts(vars providers.Vars) (account string, delegates []string, err error) {
	all := make([]string, 0, 1+len(d.delegates))
	for _, t := range append([]providers.Template{d.account}, d.delegates...) {
		name, err := t.Expand(vars)
		if err == nil && !accountName.MatchString(name) {
			err = fmt.Errorf("%q becomes what isn't the e-mail address of a service account", t)
		}
		if err != nil {
			return "", nil, err
		}
		all = append(all, name)
	}
	return all[0], all[1:], nil
}

func (p *core) issueFederated(ctx context.Context, d *definition, req providers.Request) (*providers.Credential, error) {
	subjectToken, err := p.subjectToken(ctx, req.Tokens)
	if err != nil {
		return nil, err
	}
	tok, err := p.exchange(ctx, onRefusal, subjectToken, d.scopes, req.Marker)
	if err != nil {
		return nil, err
	}
	return tokenCredential(fieldAccessToken, tok), nil
}

func (p *core) issueIDToken(ctx context.Context, d *definition, req providers.Request, i impersonation) (*providers.Credential, error) {
	audience, err := d.audience.Expand(req.Vars)
	if err != nil {
		return nil, invalid("%v", err)
	}
	tok, err := p.idToken(ctx, i, audience, d.includeEmail)
	if err != nil {
		return nil, err
	}
	return tokenCredential(fieldIDToken, tok), nil
}

func tokenCredential(field string, tok *auth.Token) *providers.Credential {
	return &providers.Credential{
		Fields: map[string]secret.Value{
			field:          secret.FromString(tok.Value),
			fieldExpiresAt: secret.FromString(tok.Expiry.UTC().Format(time.RFC3339)),
		},
		Expires: tok.Expiry, Revocability: providers.Expires,
	}
}

// issueSecret reads a stored secret. Whatever goes wrong, nothing was issued.
func (p *core) issueSecret(ctx context.Context, d *definition, req providers.Request) (*providers.Credential, error) {
	name, err := d.secret.Expand(req.Vars)
	if err == nil && !secretName.MatchString(name) {
		err = errors.New("`secret` becomes what isn't a secret's name")
	}
	if err != nil {
		return nil, invalid("%v", err)
	}
	who, err := p.identity(ctx, d, req)
	if err != nil {
		return nil, err
	}
	bearer, reader := who.Token, who.Caller
	if who.Service != "" {
		bearer, reader = who.Service, "serviceAccount:"+p.account.String()
	}
	full := name + "/versions/" + d.version
	resp, cerr := p.access(ctx, full, bearer, req.Marker)
	if cerr != nil {
		explainSecret(cerr, name, reader)
		return nil, cerr
	}
	payload, note := checked(resp, name, d.version)
	if note != "" {
		return nil, malformed("reading "+full, note, "", providers.ErrNotIssued)
	}
	return &providers.Credential{Fields: fieldsOf(payload), Revocability: providers.Static}, nil
}

// explainSecret says which right is missing, or what isn't there.
func explainSecret(e *callError, name, reader string) {
	switch {
	case e.known == apiDisabled:
		e.note, e.hint = "the API is disabled", "gcloud services enable secretmanager.googleapis.com"
	case e.known == ended || e.status == "code Unauthenticated":
		e.note, e.hint = "the login isn't taken", "a login lives an hour and can't be renewed: start the session again"
	case e.is(providers.ErrDenied):
		e.note = "it may not be read"
		e.hint = fmt.Sprintf("gcloud secrets add-iam-policy-binding %s --role=roles/secretmanager.secretAccessor --member=%s; changes take some minutes", name, reader)
	case e.is(providers.ErrNotFound) && e.known != versionOff:
		e.note, e.hint = "there is no such secret or version", "correct `secret` or `version`"
	}
}

var versionName = regexp.MustCompile(`^projects/([a-z0-9.:-]+)/secrets/([A-Za-z0-9_-]+)/versions/([0-9]+)$`)

// castagnoli is the polynomial of Google's checksums.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checked is the payload of what was asked for, or says what is wrong with it.
func checked(resp *secretmanagerpb.AccessSecretVersionResponse, name, version string) (payload []byte, note string) {
	m := versionName.FindStringSubmatch(resp.GetName())
	asked := versionName.FindStringSubmatch(name + "/versions/0")
	data := resp.GetPayload().GetData()
	switch {
	case m == nil || asked == nil || m[2] != asked[2],
		// Google answers with the project's number, whichever was asked for.
		m[1] != asked[1] && (!isNumber(m[1]) || isNumber(asked[1])),
		versionNumber.MatchString(version) && m[3] != version:
		return nil, "it gave another secret or version"
	case len(data) == 0:
		return nil, "it gave a secret without a value"
	case resp.GetPayload().DataCrc32C == nil:
		return nil, "it gave a value without a checksum"
	case resp.GetPayload().GetDataCrc32C() != int64(crc32.Checksum(data, castagnoli)):
		return nil, "the value's checksum is wrong"
	}
	return data, ""
}

func isNumber(s string) bool { return versionNumber.MatchString(s) }

// fieldsOf gives a secret as `value`, and where it is a JSON object of up to
// 1000 keys, none of them twice, its members besides: strings as they are,
// null left out, the rest as compact JSON.
func fieldsOf(payload []byte) map[string]secret.Value {
	fields := map[string]secret.Value{}
	if members, ok := objectOf(payload); ok && utf8.Valid(payload) {
		for _, m := range members {
			if b, ok := text(m.value); ok && m.name != "" {
				fields[m.name] = secret.New(b)
			}
		}
	}
	fields[fieldValue] = secret.New(payload)
	return fields
}

// text is a member's value as a field holds it; not ok if it is null.
func text(raw json.RawMessage) (b []byte, ok bool) {
	if raw[0] == '"' {
		var s string
		err := json.Unmarshal(raw, &s)
		return []byte(s), err == nil
	}
	var buf bytes.Buffer
	if json.Compact(&buf, raw) != nil {
		return nil, false
	}
	return buf.Bytes(), buf.String() != "null"
}
