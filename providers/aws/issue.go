package aws

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/rds/auth"
	"github.com/aws/aws-sdk-go-v2/service/ecr"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// An issuer is a definition of this package.
type issuer interface {
	providers.Definition
	issue(ctx context.Context, p *Provider, req providers.Request) (*providers.Credential, error)
}

// Issue makes what the definition names.
func (p *Provider) Issue(ctx context.Context, req providers.Request) (*providers.Credential, error) {
	def, ok := req.Definition.(issuer)
	if !ok {
		return nil, invalid("a definition of another provider (%T)", req.Definition)
	}
	if err := ctx.Err(); err != nil {
		return nil, hinted(fmt.Sprintf("%v: %v", providers.ErrUnavailable, err), "", providers.ErrUnavailable, providers.ErrNotIssued, err)
	}
	if b, ok := def.(providers.Bounder); ok {
		shortest, longest := b.Bounds()
		if req.TTL < shortest {
			return nil, invalid("a credential of %v, which AWS gives for %v at least", req.TTL, shortest)
		}
		req.TTL = min(req.TTL, longest)
	}
	return def.issue(ctx, p, req)
}

func text(s string) secret.Value { return secret.FromString(s) }

func (d *roleDefinition) issue(ctx context.Context, p *Provider, req providers.Request) (*providers.Credential, error) {
	a, err := d.expand(p, req)
	if err != nil {
		return nil, err
	}
	var g *grant
	switch {
	case p.auth.Method == methodDefault:
		creds, cerr := p.ambientCreds(ctx, true)
		if cerr != nil {
			return nil, cerr
		}
		g, err = p.byRole(ctx, a, creds)
	case d.via.String() != "":
		g, err = d.chain(ctx, p, a, req)
	default:
		g, err = p.byWebIdentity(ctx, a, req.Tokens)
	}
	if err != nil {
		return nil, err
	}
	handle, err := seal(leaseHandle{a.role.text})
	if err != nil {
		return nil, malformed(opAssumeRole, "gave a session that can't be kept")
	}
	fields := map[string]secret.Value{
		"access_key_id": text(g.AccessKeyID), "secret_access_key": text(g.SecretAccessKey), "session_token": text(g.SessionToken),
		"region": text(a.region), "expiration": text(g.expires().UTC().Format(time.RFC3339)),
	}
	if a.role.account != "" {
		fields["account_id"] = text(a.role.account)
	}
	return &providers.Credential{Fields: fields, Handle: handle, Expires: g.expires(), Revocability: providers.Expires}, nil
}

// chain assumes the role by another one, which is assumed for that alone.
// Nobody keeps the session in between.
func (d *roleDefinition) chain(ctx context.Context, p *Provider, a assumption, req providers.Request) (*grant, error) {
	via, err := p.expandRole(d.via, req.Vars)
	if err != nil {
		return nil, err
	}
	first, err := p.byWebIdentity(ctx, assumption{
		role: via, name: a.name, ttl: shortestSession, region: a.region, marker: a.marker, runenvRole: a.runenvRole,
	}, req.Tokens)
	if err != nil {
		return nil, err
	}
	g, err := p.byRole(ctx, a, first.provider())
	if err != nil { // the first session is there already, for 15 minutes
		return nil, fmt.Errorf("%w: %w", err, providers.ErrMaybeIssued)
	}
	return g, nil
}

// expand resolves the templates, and refuses what AWS would before it is asked.
func (d *roleDefinition) expand(p *Provider, req providers.Request) (a assumption, err error) {
	a = assumption{ttl: req.TTL.Truncate(time.Second), region: d.region, marker: req.Marker, runenvRole: req.Role, externalID: d.externalID, session: req.Session}
	if a.role, err = p.expandRole(d.role, req.Vars); err != nil {
		return a, err
	}
	prefix, err := d.sessionName.Expand(req.Vars)
	if err != nil {
		return a, invalid("%v", err)
	}
	if a.name = req.Marker; prefix != "" {
		a.name = prefix[:min(len(prefix), max(0, maxSessionName-1-len(req.Marker)))] + "-" + req.Marker
	}
	if !sessionText.MatchString(a.name) {
		return a, invalid("`session_name` and the marker make no name of a session")
	}
	for _, t := range d.policyARNs {
		text, err := t.Expand(req.Vars)
		if err != nil {
			return a, invalid("%v", err)
		}
		if !isPolicyARN(text) {
			return a, invalid("what a template of `policy_arns` made isn't the ARN of a policy")
		}
		a.policyARNs = append(a.policyARNs, text)
	}
	if d.policy != nil {
		if a.policy, err = d.policy.expand(req.Vars); err != nil {
			return a, invalid("%v", err)
		}
	}
	a.tags = map[string]string{"role": req.Role, "session_id": req.Session, "project": req.Vars["project.name"]}
	return a, nil
}

func (d *rdsDefinition) issue(ctx context.Context, p *Provider, req providers.Request) (*providers.Credential, error) {
	host, err := d.host.Expand(req.Vars)
	if err != nil {
		return nil, invalid("%v", err)
	}
	user, err := d.user.Expand(req.Vars)
	if err != nil {
		return nil, invalid("%v", err)
	}
	if !hostName.MatchString(host) || !databaseUser.MatchString(user) {
		return nil, invalid("what a template of `rds` made isn't the name of a host or a user")
	}
	creds, role, ends, err := p.reader(ctx, req.Login)
	if err != nil {
		return nil, err
	}
	// It is signed by the machine's clock, whatever ours says.
	token, err := auth.BuildAuthToken(ctx, host+":"+strconv.Itoa(d.port), d.region, user, creds)
	if err != nil {
		return nil, hinted("signing an RDS token: "+providers.ErrMalformed.Error(), "", providers.ErrMalformed, providers.ErrNotIssued)
	}
	end := p.now().Add(rdsLife)
	if !ends.IsZero() && ends.Before(end) {
		end = ends // what is signed with a session's credentials ends with them
	}
	cred := &providers.Credential{
		Fields: map[string]secret.Value{
			"token": text(token), "host": text(host), "port": text(strconv.Itoa(d.port)), "user": text(user), "region": text(d.region),
		},
		Expires: end, Revocability: providers.Expires,
	}
	return withRole(cred, role)
}

// withRole gives a credential the handle by which its role can be contained.
func withRole(cred *providers.Credential, role string) (*providers.Credential, error) {
	if role == "" {
		return cred, nil // the default chain's, which has no source identity
	}
	var err error
	if cred.Handle, err = seal(leaseHandle{role}); err != nil {
		return nil, malformed("the login's role", "can't be kept")
	}
	return cred, nil
}

func (d *ecrDefinition) issue(ctx context.Context, p *Provider, req providers.Request) (*providers.Credential, error) {
	const op = "ecr:GetAuthorizationToken"
	creds, role, _, err := p.reader(ctx, req.Login)
	if err != nil {
		return nil, err
	}
	in := &ecr.GetAuthorizationTokenInput{}
	if d.registry != "" {
		in.RegistryIds = []string{d.registry} //nolint:staticcheck // it chooses the endpoint that is answered
	}
	client := p.ecr(d.region, creds, req.Marker)
	out, cerr := call(ctx, p, op, "", onRefusal, func(ctx context.Context) (*ecr.GetAuthorizationTokenOutput, error) {
		return client.GetAuthorizationToken(ctx, in)
	})
	if cerr != nil {
		if cerr.is(providers.ErrDenied) && cerr.hint == "" {
			cerr.hint = "let the login's role do ecr:GetAuthorizationToken on *"
		}
		return nil, cerr
	}
	if len(out.AuthorizationData) != 1 {
		return nil, malformed(op, "answered with another number of logins than one")
	}
	data := out.AuthorizationData[0]
	plain, err := base64.StdEncoding.DecodeString(aws.ToString(data.AuthorizationToken))
	user, password, ok := strings.Cut(string(plain), ":")
	if err != nil || !ok || !printable(user) || !printable(password) {
		return nil, malformed(op, "answered with a login that isn't one")
	}
	endpoint, err := url.Parse(aws.ToString(data.ProxyEndpoint))
	if err != nil || endpoint.Host == "" {
		return nil, malformed(op, "answered without a registry")
	}
	account, _, _ := strings.Cut(endpoint.Host, ".")
	if d.registry != "" && account != d.registry || !p.allowed(account) {
		return nil, wrongAccountAnswered(op)
	}
	now := p.now()
	if data.ExpiresAt == nil || !data.ExpiresAt.After(now) || data.ExpiresAt.After(now.Add(ecrLife+skew)) {
		return nil, malformed(op, "answered with an end that can't be one")
	}
	end := *data.ExpiresAt
	if most := now.Add(ecrLife); end.After(most) {
		end = most
	}
	return withRole(&providers.Credential{
		Fields:  map[string]secret.Value{"username": text(user), "password": text(password), "registry": text(endpoint.Host)},
		Expires: end, Revocability: providers.Expires,
	}, role)
}

// merge adds fields and bounds their sum.
func merge(into map[string]secret.Value, size int, name string, value []byte) (int, error) {
	size += len(name) + len(value)
	if size > providers.MaxCredentialBytes {
		return size, fmt.Errorf("more than %d bytes", providers.MaxCredentialBytes)
	}
	into[name] = secret.New(slices.Clone(value))
	return size, nil
}
