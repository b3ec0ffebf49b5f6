package aws

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

const (
	opWebIdentity = "sts:AssumeRoleWithWebIdentity"
	opAssumeRole  = "sts:AssumeRole"
	opCaller      = "sts:GetCallerIdentity"
)

const (
	// shortestSession and longestSession are STS's bounds; a role's own maximum
	// is an hour unless it is set higher.
	shortestSession = 15 * time.Minute
	longestSession  = 12 * time.Hour
	// longestChained is STS's bound for a role that is assumed by another.
	longestChained = time.Hour

	// skew is how far AWS's clock may be from ours where an end is judged: SigV4
	// takes no more.
	skew = 5 * time.Minute
)

// sessionText is the form of source identities and of session names.
var sessionText = regexp.MustCompile(`^[A-Za-z0-9_+=,.@-]{2,64}$`)

// An assumption is what STS is asked for.
type assumption struct {
	role       arn
	name       string // the session's
	ttl        time.Duration
	region     string
	marker     string
	policy     string // JSON; empty: none
	policyARNs []string
	externalID string
	session    string            // the source identity, where STS doesn't take it from a token
	tags       map[string]string // likewise
	runenvRole string            // for hints
}

// A grant is a session of STS.
type grant struct {
	AccessKeyID     string `json:"access_key_id"`
	SecretAccessKey string `json:"secret_access_key"`
	SessionToken    string `json:"session_token"`
	Expires         int64  `json:"expires"` // seconds since 1970
	RoleARN         string `json:"role_arn"`
}

func (g *grant) provider() aws.CredentialsProvider {
	return credentials.NewStaticCredentialsProvider(g.AccessKeyID, g.SecretAccessKey, g.SessionToken)
}

func (g *grant) expires() time.Time { return time.Unix(g.Expires, 0) }

// byWebIdentity trades a token for a session.
func (p *Provider) byWebIdentity(ctx context.Context, a assumption, tokens providers.TokenSource) (*grant, error) {
	token, err := p.idToken(ctx, tokens)
	if err != nil {
		return nil, err
	}
	client := p.sts(a.region, aws.AnonymousCredentials{}, a.marker)
	in := &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: &a.role.text, RoleSessionName: &a.name, WebIdentityToken: &token,
		DurationSeconds: aws.Int32(int32(a.ttl / time.Second)),
		Policy:          optional(a.policy), PolicyArns: descriptors(a.policyARNs),
	}
	out, cerr := call(ctx, p, opWebIdentity, "role "+a.role.name(), onRefusal,
		func(ctx context.Context) (*sts.AssumeRoleWithWebIdentityOutput, error) {
			return client.AssumeRoleWithWebIdentity(ctx, in)
		})
	if cerr != nil {
		return nil, p.explainWebIdentity(cerr, a)
	}
	return p.accept(opWebIdentity, a, out.Credentials, out.AssumedRoleUser)
}

// byRole assumes a role with credentials.
func (p *Provider) byRole(ctx context.Context, a assumption, creds aws.CredentialsProvider) (*grant, error) {
	if !sessionText.MatchString(a.session) {
		return nil, invalid("the session's id can't be a source identity")
	}
	client := p.sts(a.region, creds, a.marker)
	in := &sts.AssumeRoleInput{
		RoleArn: &a.role.text, RoleSessionName: &a.name, SourceIdentity: &a.session,
		DurationSeconds: aws.Int32(int32(a.ttl / time.Second)),
		Policy:          optional(a.policy), PolicyArns: descriptors(a.policyARNs), ExternalId: optional(a.externalID),
	}
	for _, key := range []string{"role", "session_id", "project"} {
		if v := a.tags[key]; v != "" {
			in.Tags = append(in.Tags, types.Tag{Key: aws.String(key), Value: aws.String(v)})
		}
	}
	out, cerr := call(ctx, p, opAssumeRole, "role "+a.role.name(), onRefusal,
		func(ctx context.Context) (*sts.AssumeRoleOutput, error) { return client.AssumeRole(ctx, in) })
	if cerr != nil {
		return nil, p.explainAssumeRole(cerr, a)
	}
	return p.accept(opAssumeRole, a, out.Credentials, out.AssumedRoleUser)
}

// idToken is the broker's own, or the CI's.
func (p *Provider) idToken(ctx context.Context, tokens providers.TokenSource) (string, error) {
	whose := "the broker's own"
	if p.auth.Method == methodCI {
		tokens, whose = p.ci, "the CI's"
	}
	if tokens == nil {
		return "", invalid("a web identity without a source of tokens")
	}
	token, err := tokens(ctx, p.auth.Audience)
	if err != nil {
		return "", fmt.Errorf("aws: getting %s token for %s: %w: %w: %w", whose, p.auth.Audience, providers.ErrUnavailable, providers.ErrNotIssued, err)
	}
	return token, nil
}

// accept checks what STS gave: that it can be used, is for the role that was
// asked for, and lives no longer.
func (p *Provider) accept(op string, a assumption, c *types.Credentials, user *types.AssumedRoleUser) (*grant, error) {
	now := p.now()
	if c == nil || c.Expiration == nil {
		return nil, malformed(op, "answered without credentials")
	}
	g := &grant{
		AccessKeyID: aws.ToString(c.AccessKeyId), SecretAccessKey: aws.ToString(c.SecretAccessKey),
		SessionToken: aws.ToString(c.SessionToken), RoleARN: a.role.text,
	}
	if !g.usable() {
		return nil, malformed(op, "answered with credentials that can't be ones")
	}
	end, most := *c.Expiration, now.Add(a.ttl)
	switch {
	case end.After(most.Add(skew)):
		return nil, malformed(op, "gave a session that lives longer than asked for")
	case end.Before(now):
		return nil, hinted(fmt.Sprintf("%s gave a session that has ended: %v", op, providers.ErrMalformed),
			"set the broker's clock, by NTP", providers.ErrMalformed)
	case end.After(most): // clocks differ: it can't really live longer
		end = most
	}
	g.Expires = end.Unix()
	return g, p.checkAssumed(op, a.role, user)
}

// checkAssumed: STS's word on whose session it is, where its kind says it at
// all. MinIO's ARNs are empty, and its roles have no account.
func (p *Provider) checkAssumed(op string, role arn, user *types.AssumedRoleUser) error {
	text := ""
	if user != nil {
		text = aws.ToString(user.Arn)
	}
	if text == "" && !role.official() && len(p.accounts) == 0 {
		return nil
	}
	got, ok := parseARN(text)
	if !ok || got.partition != role.partition {
		return malformed(op, "doesn't say whose session it gave")
	}
	if got.account != role.account || !p.allowed(got.account) {
		return wrongAccountAnswered(op)
	}
	return nil
}

// wrongAccountAnswered isn't [providers.ErrDenied]: AWS did issue something.
func wrongAccountAnswered(op string) error {
	return hinted(fmt.Sprintf("%s answered for another account than was asked: %v", op, providers.ErrMalformed),
		"look at what stands at that endpoint", providers.ErrMalformed)
}

// usable: what may stand in a header or an environment.
func (g *grant) usable() bool {
	for _, s := range []string{g.AccessKeyID, g.SecretAccessKey, g.SessionToken} {
		if len(s) > 16<<10 || !printable(s) {
			return false
		}
	}
	return true
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func descriptors(arns []string) []types.PolicyDescriptorType {
	var out []types.PolicyDescriptorType
	for _, a := range arns {
		out = append(out, types.PolicyDescriptorType{Arn: aws.String(a)})
	}
	return out
}

// LoginTTL is the least that STS gives.
func (p *loginProvider) LoginTTL() time.Duration { return shortestSession }

// Login gets a session of STS with `auth.role`. It can't be renewed or ended.
func (p *loginProvider) Login(ctx context.Context, req providers.LoginRequest) (*providers.Login, error) {
	g, err := p.login(ctx, req)
	if err != nil {
		return nil, err
	}
	handle, err := seal(g)
	if err != nil {
		return nil, malformed(opWebIdentity, "gave a session that can't be kept")
	}
	return &providers.Login{Handle: handle, Expires: g.expires()}, nil
}

func (p *Provider) login(ctx context.Context, req providers.LoginRequest) (*grant, error) {
	if p.auth.Role.String() == "" {
		return nil, hinted("no `auth.role` to log in with: "+providers.ErrInvalid.Error(), needsRole, providers.ErrInvalid)
	}
	role, err := p.expandRole(p.auth.Role, providers.Vars{"role.name": req.Role})
	if err != nil {
		return nil, err
	}
	if !sessionText.MatchString(req.Marker) {
		return nil, invalid("the marker can't be the name of a session")
	}
	return p.byWebIdentity(ctx, assumption{
		role: role, name: req.Marker, ttl: shortestSession, region: p.region, marker: req.Marker, runenvRole: req.Role,
	}, req.Tokens)
}

const needsRole = "set `auth.role` of the provider, such as arn:aws:iam::111122223333:role/runenv-{{role.name}}"

// reader is what a lease that isn't a session of STS is read with: the
// session's login, or the default chain. role is the login's.
func (p *Provider) reader(ctx context.Context, login secret.Value) (creds aws.CredentialsProvider, role string, ends time.Time, err error) {
	if p.auth.Method == methodDefault {
		creds, err = p.ambientCreds(ctx, true)
		return creds, "", time.Time{}, err
	}
	g, err := openGrant(login)
	if err != nil {
		return nil, "", time.Time{}, err
	}
	if role, ok := parseRole(g.RoleARN); !ok || !p.allowed(role.account) {
		return nil, "", time.Time{}, wrongAccount("the login", true)
	}
	if !g.expires().After(p.now()) {
		return nil, "", time.Time{}, hinted("the session's login has run out: "+providers.ErrDenied.Error(), "", providers.ErrDenied)
	}
	return g.provider(), g.RoleARN, g.expires(), nil
}

// ambientCreds are the default chain's at this moment, in an allowed account.
func (p *Provider) ambientCreds(ctx context.Context, check bool) (aws.CredentialsProvider, error) {
	creds, err := p.ambient.Retrieve(ctx)
	if err != nil {
		classes := []error{providers.ErrUnavailable, providers.ErrNotIssued}
		if cause := ctx.Err(); cause != nil {
			classes = append(classes, cause)
		}
		return nil, hinted("the SDK's default chain finds no credentials: "+providers.ErrUnavailable.Error(),
			"give the broker's process AWS_* variables, a profile, or a role of its machine", classes...)
	}
	static := credentials.NewStaticCredentialsProvider(creds.AccessKeyID, creds.SecretAccessKey, creds.SessionToken)
	if !check || len(p.accounts) == 0 {
		return static, nil
	}
	p.mu.Lock()
	account, asked := p.callers[creds.AccessKeyID]
	p.mu.Unlock()
	if !asked {
		who, err := p.caller(ctx, p.region, static, "")
		if err != nil {
			return nil, err.stored()
		}
		a, _ := parseARN(aws.ToString(who.Arn))
		account = a.account
		p.mu.Lock()
		clear(p.callers) // the chain has one identity at a time
		p.callers[creds.AccessKeyID] = account
		p.mu.Unlock()
	}
	if !p.allowed(account) {
		return nil, wrongAccount("the broker's own identity", true)
	}
	return static, nil
}

func (p *Provider) caller(ctx context.Context, region string, creds aws.CredentialsProvider, marker string) (*sts.GetCallerIdentityOutput, *callError) {
	client := p.sts(region, creds, marker)
	out, cerr := call(ctx, p, opCaller, "", always, func(ctx context.Context) (*sts.GetCallerIdentityOutput, error) {
		return client.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	})
	if cerr != nil {
		return nil, cerr
	}
	if a, ok := parseARN(aws.ToString(out.Arn)); !ok || a.account == "" {
		return nil, &callError{op: opCaller, status: http.StatusOK, note: "it doesn't say who", classes: []error{providers.ErrMalformed}}
	}
	return out, nil
}

// explainWebIdentity names the cure for each known refusal of a web identity.
func (p *Provider) explainWebIdentity(e *callError, a assumption) error {
	name := a.role.name()
	switch {
	case e.code == "InvalidIdentityToken" && e.known == noOIDCProvider:
		e.note = "the account doesn't know the token's issuer"
		e.hint = "register it: aws iam create-open-id-connect-provider --url <issuer_url> --client-id-list " + p.auth.Audience
	case e.code == "InvalidIdentityToken" && e.known == noKeys:
		e.note = "AWS can't fetch the issuer's keys"
		e.hint = "AWS must reach <issuer_url>/.well-known/openid-configuration and what that names as jwks_uri, over https from the internet"
	case e.code == "InvalidIdentityToken" && e.known == badThumbprint:
		e.note = "the issuer's certificate isn't the one that the account knows"
		e.hint = "give a certificate of a public authority, or set the thumbprint: aws iam update-open-id-connect-provider-thumbprint"
	case e.code == "InvalidIdentityToken" && e.known == badAudience:
		e.note = "the account's OIDC provider takes another audience"
		e.hint = fmt.Sprintf("add the client id %s to the OIDC provider in IAM, or set `auth.audience`", p.auth.Audience)
	case e.code == "InvalidIdentityToken" || e.code == "IDPRejectedClaim":
		e.note = "AWS doesn't take the token"
		e.hint = "after a new store the broker has new keys, which AWS may take some minutes to fetch; does issuer_url say what it did when it was registered?"
	case e.code == "ExpiredToken" || e.code == "ExpiredTokenException":
		e.note, e.hint = "the token has run out, by AWS's clock", "set the broker's clock, by NTP"
	case e.known == noTagSession:
		e.note = fmt.Sprintf("the trust policy of role %s doesn't allow session tags", name)
		e.hint = "add sts:TagSession to its actions: the broker's token carries tags"
	case e.known == noSourceIdentity:
		e.note = fmt.Sprintf("the trust policy of role %s doesn't allow a source identity", name)
		e.hint = "add sts:SetSourceIdentity to its actions: the broker's token carries one"
	case e.code == "AccessDenied":
		e.note = fmt.Sprintf("the trust policy of role %s doesn't take this token, or there is no such role", name)
		e.hint = fmt.Sprintf("it must name the OIDC provider, the subject runenv:role:%s, the audience %s, and allow sts:AssumeRoleWithWebIdentity, sts:TagSession and sts:SetSourceIdentity",
			a.runenvRole, p.auth.Audience)
		if p.auth.Method == methodCI {
			e.hint = fmt.Sprintf("it must name the CI's OIDC provider, the job's subject and the audience %s", p.auth.Audience)
		}
	default:
		p.explainSession(e, a)
	}
	return e
}

func (p *Provider) explainAssumeRole(e *callError, a assumption) error {
	if e.is(providers.ErrDenied) && e.code == "AccessDenied" {
		e.note = fmt.Sprintf("role %s can't be assumed from here, or there is no such role", a.role.name())
		e.hint = "its trust policy must name who assumes it, allow sts:AssumeRole, sts:TagSession and sts:SetSourceIdentity, and `external_id` must be what it wants; who assumes it needs these rights too"
	} else {
		p.explainSession(e, a)
	}
	return e
}

// explainSession is for what can be wrong however a role is assumed.
func (p *Provider) explainSession(e *callError, a assumption) {
	switch {
	case e.known == chainTooLong:
		e.note, e.hint = "it lives too long", "a role that is assumed by a role lives at most an hour: set `ttl` or `max_ttl` to 1h"
	case e.known == tooLong:
		e.note, e.hint = "it lives longer than the role allows", fmt.Sprintf("set MaxSessionDuration of role %s, or a shorter `ttl` of the lease", a.role.name())
	case e.code == "PackedPolicyTooLarge":
		e.note, e.hint = "the session policy and the tags are too large together", "make `policy` shorter, or a managed policy of it (`policy_arns`)"
	case e.code == "MalformedPolicyDocument":
		e.note, e.hint = "the session policy isn't one", "check `policy` with: aws accessanalyzer validate-policy"
	case e.code == "RegionDisabledException":
		e.note, e.hint = fmt.Sprintf("STS isn't active in %s for that account", a.region), "activate it in IAM's account settings, or set another `region`"
	case e.code == "OptInRequired" || e.code == "InvalidClientTokenId":
		e.note, e.hint = fmt.Sprintf("it doesn't know who asks in %s", a.region), "is that region enabled for the account?"
	}
}
