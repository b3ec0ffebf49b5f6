package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

const opPutPolicy = "iam:PutRolePolicy"

// Contain denies everything to a session on each of its roles, by its source
// identity, which AWS lets nobody change. handles are those of its leases and
// logins. To apply it, the SDK's default chain is used whatever `method` says:
// an operator's own identity, with iam:PutRolePolicy in the roles' account,
// since no session may have that right.
//
// IAM takes some seconds to heed a policy. A token for RDS or a login to ECR is
// judged by the rights of its role when it is used.
func (p *Provider) Contain(ctx context.Context, session string, handles []secret.Value, apply bool) ([]providers.Containment, error) {
	if p.auth.Method == methodCI {
		return nil, hinted("the CI's own token gives a session no source identity to contain it by: "+providers.ErrInvalid.Error(),
			"remove the role's rights, or deny by aws:TokenIssueTime", providers.ErrInvalid)
	}
	if !sessionText.MatchString(session) {
		return nil, invalid("a session's id that can't be a source identity")
	}
	policy, err := json.Marshal(map[string]any{
		"Version": "2012-10-17",
		"Statement": []any{map[string]any{
			"Sid": "RunEnvContain", "Effect": "Deny", "Action": "*", "Resource": "*",
			"Condition": map[string]any{"StringEquals": map[string]any{"aws:SourceIdentity": session}},
		}},
	})
	if err != nil {
		return nil, invalid("a policy that can't be written")
	}
	// Whatever is wrong with one role, the others are contained.
	var failed error
	var roles []arn
	for _, h := range handles {
		role, err := handleRole(h)
		switch {
		case err != nil:
			failed = errors.Join(failed, err)
		case !slices.Contains(roles, role):
			roles = append(roles, role)
		}
	}
	name := "runenv-contain-" + session
	var steps []providers.Containment
	for _, role := range roles {
		steps = append(steps, providers.Containment{
			Target: role.text, Policy: string(policy),
			Undo: fmt.Sprintf("aws iam delete-role-policy --role-name %s --policy-name %s", role.name(), name),
		})
	}
	if !apply || len(roles) == 0 {
		return steps, failed
	}
	return steps, errors.Join(failed, p.contain(ctx, roles, steps, name))
}

// contain puts the policies on, and marks what was done.
func (p *Provider) contain(ctx context.Context, roles []arn, steps []providers.Containment, name string) error {
	chain := p.ambient
	if chain == nil {
		var err error
		if chain, err = defaultChain(ctx, p.region); err != nil {
			return err
		}
	}
	got, err := chain.Retrieve(ctx)
	if err != nil {
		return hinted("the SDK's default chain finds no credentials: "+providers.ErrUnavailable.Error(),
			"run this as somebody who may do iam:PutRolePolicy there, or put the printed policy on by hand", providers.ErrUnavailable, providers.ErrNotIssued)
	}
	creds := aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return got, nil })
	who, cerr := p.caller(ctx, p.region, creds, "")
	if cerr != nil {
		return cerr
	}
	self, _ := parseARN(aws.ToString(who.Arn))
	client := p.iam(creds)
	var failed error
	for i, role := range roles {
		if !p.allowed(role.account) {
			failed = errors.Join(failed, wrongAccount("role "+role.name(), true))
			continue
		}
		// IAM takes a role by its name: in another account that is another role.
		if role.account != self.account || role.partition != self.partition {
			failed = errors.Join(failed, hinted(fmt.Sprintf("role %s is in another account than you are: %v", role.name(), providers.ErrDenied),
				"put its policy on as somebody of its own account", providers.ErrDenied))
			continue
		}
		in := &iam.PutRolePolicyInput{RoleName: aws.String(role.name()), PolicyName: &name, PolicyDocument: &steps[i].Policy}
		_, cerr := call(ctx, p, opPutPolicy, "role "+role.name(), always, func(ctx context.Context) (*iam.PutRolePolicyOutput, error) {
			return client.PutRolePolicy(ctx, in)
		})
		if cerr != nil {
			if cerr.is(providers.ErrDenied) {
				cerr.hint = "run this as somebody who may do iam:PutRolePolicy on that role"
			}
			failed = errors.Join(failed, cerr)
			continue
		}
		steps[i].Done = true
	}
	return failed
}
