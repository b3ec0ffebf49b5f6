package aws

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/runenv/action/providers"
)

// Check logs in, asks AWS who that is, and says it as an ARN.
func (p *Provider) Check(ctx context.Context, req providers.LoginRequest) (providers.Checked, error) {
	var out providers.Checked
	if len(p.accounts) == 0 {
		out.Notes = append(out.Notes, "any account may be used: name yours as `allowed_account_ids`")
	}
	if p.auth.Method == methodDefault {
		creds, err := p.ambientCreds(ctx, false)
		if err != nil {
			return providers.Checked{}, err
		}
		out.Notes = append(out.Notes, "every RunEnv role has the rights of the broker's own identity: `method: oidc` gives each its own")
		out.As, err = p.who(ctx, creds, req.Marker)
		if err != nil {
			return providers.Checked{}, err
		}
		return out, nil
	}
	if p.auth.Role.String() == "" {
		// What it could log in with stands in the leases alone.
		if _, err := p.idToken(ctx, req.Tokens); err != nil {
			return providers.Checked{}, err
		}
		if err := ctx.Err(); err != nil {
			return providers.Checked{}, hinted(fmt.Sprintf("%v: %v", providers.ErrUnavailable, err), "", providers.ErrUnavailable, providers.ErrNotIssued, err)
		}
		out.As = "nobody: there is no `auth.role`"
		out.Notes = append(out.Notes, "leases with `assume_role` are tried when they are issued, not here; set `auth.role` for the other kinds")
		return out, nil
	}
	g, err := p.login(ctx, req)
	if err != nil {
		return providers.Checked{}, err
	}
	if role, _ := parseRole(g.RoleARN); !role.official() {
		out.As = g.RoleARN
		out.Notes = append(out.Notes, "what stands at `endpoints.sts` isn't asked for its own word on that: it isn't AWS's")
		return out, nil
	}
	if out.As, err = p.who(ctx, g.provider(), req.Marker); err != nil {
		return providers.Checked{}, err
	}
	return out, nil
}

// who is an identity in an allowed account.
func (p *Provider) who(ctx context.Context, creds aws.CredentialsProvider, marker string) (string, error) {
	got, cerr := p.caller(ctx, p.region, creds, marker)
	if cerr != nil {
		p.explainSession(cerr, assumption{region: p.region})
		return "", cerr
	}
	a, _ := parseARN(aws.ToString(got.Arn))
	if !p.allowed(a.account) {
		return "", wrongAccount("who was let in", false)
	}
	return a.text, nil
}
