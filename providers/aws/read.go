package aws

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/ssm"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/ref"
	"github.com/runenv/action/secret"
)

const (
	// maxPages bounds a listing of parameters: AWS gives ten at most on each.
	maxPages = 100

	opSecret     = "secretsmanager:GetSecretValue"
	opParameter  = "ssm:GetParameter"
	opParameters = "ssm:GetParametersByPath"

	schemeSecret    = "aws-sm"
	schemeParameter = "aws-ssm"

	// wholeField holds a secret as it is, beside the fields of its JSON.
	wholeField = "value"
)

var (
	secretName    = regexp.MustCompile(`^[A-Za-z0-9_+=.@-]+(/[A-Za-z0-9_+=.@-]+)*$`)
	parameterName = regexp.MustCompile(`^(/[A-Za-z0-9_.-]+)+$|^[A-Za-z0-9_.-]+$`)
	parameterPath = regexp.MustCompile(`^(/[A-Za-z0-9_.-]+)+$`)
	versionID     = regexp.MustCompile(`^[A-Za-z0-9-]{32,64}$`)
	stageName     = regexp.MustCompile(`^[A-Za-z0-9_+=.@-]{1,256}$`)
	// A version of a parameter is a number, or a label that begins with none.
	parameterVersion = regexp.MustCompile(`^([1-9][0-9]{0,17}|[A-Za-z_.-][A-Za-z0-9_.-]{0,99})$`)
)

type secretDefinition struct {
	common
	id             providers.Template // a name or an ARN
	version, stage string
}

func (d *secretDefinition) Revocability() providers.Revocability { return providers.Static }

type parameterDefinition struct {
	common
	name    providers.Template
	version string
}

func (d *parameterDefinition) Revocability() providers.Revocability { return providers.Static }

type pathDefinition struct {
	common
	path providers.Template
}

func (d *pathDefinition) Revocability() providers.Revocability { return providers.Static }

func (p *Provider) defineSecret(id providers.Template, version, stage, region string) (providers.Definition, error) {
	if version != "" && stage != "" {
		return nil, errors.New("`version` and `stage` both choose a version: only one of them")
	}
	if version != "" && !versionID.MatchString(version) {
		return nil, errors.New("`version` isn't a version id of 32 to 64 letters, digits and -; a label such as AWSPREVIOUS is a `stage`")
	}
	if stage != "" && !stageName.MatchString(stage) {
		return nil, errors.New("`stage` isn't the label of a version, such as AWSPREVIOUS")
	}
	region, err := p.checkStored("secret", "secretsmanager", "secret:", id, region, secretName)
	if err != nil {
		return nil, err
	}
	return &secretDefinition{p.commonOf(region, false, id), id, version, stage}, p.wantLogin("secret")
}

func (p *Provider) defineParameter(name providers.Template, version, region string) (providers.Definition, error) {
	if version != "" && !parameterVersion.MatchString(version) {
		return nil, errors.New("`version` is neither a number from 1 nor a label of a parameter")
	}
	region, err := p.checkStored("parameter", "ssm", "parameter", name, region, parameterName)
	if err != nil {
		return nil, err
	}
	return &parameterDefinition{p.commonOf(region, false, name), name, version}, p.wantLogin("parameter")
}

func (p *Provider) definePath(path providers.Template, region string) (providers.Definition, error) {
	if text, _ := sample(path); !parameterPath.MatchString(text) {
		return nil, errors.New("`parameters_path` isn't a path of plain names, such as /ci/shop")
	}
	return &pathDefinition{p.commonOf(region, false, path), path}, p.wantLogin("parameters_path")
}

// checkStored judges the name or ARN of what is stored, and gives its region
// where the ARN says one.
func (p *Provider) checkStored(key, service, prefix string, t providers.Template, region string, name *regexp.Regexp) (string, error) {
	text, accountKnown := sample(t)
	if !strings.HasPrefix(text, "arn:") {
		if !name.MatchString(text) || len(text) > 1011 {
			return "", fmt.Errorf("`%s` is neither a plain name nor an ARN", key)
		}
		return region, nil
	}
	a, ok := parseARN(text)
	if !ok || a.service != service || a.account == "" || !strings.HasPrefix(a.resource, prefix) || !name.MatchString(strings.TrimPrefix(a.resource, prefix)) {
		return "", fmt.Errorf("`%s` isn't the ARN of one", key)
	}
	if accountKnown && !p.allowed(a.account) {
		return "", fmt.Errorf("`%s` is in an account that isn't among `allowed_account_ids`", key)
	}
	if !regionName.MatchString(a.region) {
		return "", fmt.Errorf("`%s` has no region of AWS's in its ARN: write it there, without a template", key)
	}
	if region != "" && region != a.region {
		return "", fmt.Errorf("`%s` and `region` name two regions", key)
	}
	return a.region, nil
}

// expandStored resolves a name or an ARN.
func (p *Provider) expandStored(t providers.Template, vars providers.Vars, name *regexp.Regexp) (string, error) {
	text, err := t.Expand(vars)
	if err != nil {
		return "", invalid("%v", err)
	}
	if a, ok := parseARN(text); ok {
		if !p.allowed(a.account) {
			return "", wrongAccount(lastOf(text), true)
		}
	} else if !name.MatchString(text) {
		return "", invalid("what a template made isn't the name of one")
	}
	return text, nil
}

// lastOf is an ARN's name, for errors.
func lastOf(id string) string {
	if a, ok := parseARN(id); ok {
		return strings.TrimPrefix(strings.TrimPrefix(a.resource, "secret:"), "parameter")
	}
	return id
}

func (d *secretDefinition) issue(ctx context.Context, p *Provider, req providers.Request) (*providers.Credential, error) {
	id, err := p.expandStored(d.id, req.Vars, secretName)
	if err != nil {
		return nil, err
	}
	creds, _, _, err := p.reader(ctx, req.Login)
	if err != nil {
		return nil, err
	}
	client := p.secretsManager(d.region, creds, req.Marker)
	in := &secretsmanager.GetSecretValueInput{SecretId: &id, VersionId: optional(d.version), VersionStage: optional(d.stage)}
	what := "secret " + lastOf(id)
	out, cerr := call(ctx, p, opSecret, what, always, func(ctx context.Context) (*secretsmanager.GetSecretValueOutput, error) {
		return client.GetSecretValue(ctx, in)
	})
	if cerr != nil {
		return nil, explainRead(cerr, d.region, "secretsmanager:GetSecretValue").stored()
	}
	if got := aws.ToString(out.VersionId); d.version != "" && got != d.version {
		return nil, malformed(opSecret, "answered with another version", providers.ErrNotIssued)
	}
	if err := p.checkOwner(opSecret, aws.ToString(out.ARN)); err != nil {
		return nil, err
	}
	fields := map[string]secret.Value{}
	switch {
	case out.SecretString != nil:
		fields, err = fieldsOf([]byte(*out.SecretString))
	case out.SecretBinary != nil:
		_, err = merge(fields, 0, wholeField, out.SecretBinary)
	default:
		return nil, malformed(opSecret, "answered without a value", providers.ErrNotIssued)
	}
	return static(opSecret, fields, err)
}

// checkOwner: what was read is in an allowed account, as far as AWS says.
func (p *Provider) checkOwner(op, text string) error {
	if len(p.accounts) == 0 {
		return nil
	}
	if a, ok := parseARN(text); !ok || !p.allowed(a.account) {
		return hinted(fmt.Sprintf("%s answered from an account that isn't among `allowed_account_ids`: %v", op, providers.ErrDenied),
			"", providers.ErrDenied)
	}
	return nil
}

func static(op string, fields map[string]secret.Value, err error) (*providers.Credential, error) {
	if err != nil {
		return nil, malformed(op, "answered with "+err.Error(), providers.ErrNotIssued)
	}
	return &providers.Credential{Fields: fields, Revocability: providers.Static}, nil
}

func (d *parameterDefinition) issue(ctx context.Context, p *Provider, req providers.Request) (*providers.Credential, error) {
	name, err := p.expandStored(d.name, req.Vars, parameterName)
	if err != nil {
		return nil, err
	}
	creds, _, _, err := p.reader(ctx, req.Login)
	if err != nil {
		return nil, err
	}
	what := "parameter " + lastOf(name)
	if d.version != "" {
		name += ":" + d.version
	}
	client := p.ssm(d.region, creds, req.Marker)
	in := &ssm.GetParameterInput{Name: &name, WithDecryption: aws.Bool(true)}
	out, cerr := call(ctx, p, opParameter, what, always, func(ctx context.Context) (*ssm.GetParameterOutput, error) {
		return client.GetParameter(ctx, in)
	})
	if cerr != nil {
		return nil, explainRead(cerr, d.region, "ssm:GetParameter").stored()
	}
	if out.Parameter == nil || out.Parameter.Value == nil {
		return nil, malformed(opParameter, "answered without a value", providers.ErrNotIssued)
	}
	if err := p.checkOwner(opParameter, aws.ToString(out.Parameter.ARN)); err != nil {
		return nil, err
	}
	fields, err := fieldsOf([]byte(*out.Parameter.Value))
	return static(opParameter, fields, err)
}

func (d *pathDefinition) issue(ctx context.Context, p *Provider, req providers.Request) (*providers.Credential, error) {
	path, err := d.path.Expand(req.Vars)
	if err != nil || !parameterPath.MatchString(path) {
		return nil, invalid("a template made no path of parameters (%v)", err)
	}
	creds, _, _, err := p.reader(ctx, req.Login)
	if err != nil {
		return nil, err
	}
	client := p.ssm(d.region, creds, req.Marker)
	in := &ssm.GetParametersByPathInput{Path: &path, Recursive: aws.Bool(true), WithDecryption: aws.Bool(true)}
	fields, size := map[string]secret.Value{}, 0
	for range maxPages {
		out, cerr := call(ctx, p, opParameters, path, always, func(ctx context.Context) (*ssm.GetParametersByPathOutput, error) {
			return client.GetParametersByPath(ctx, in)
		})
		if cerr != nil {
			return nil, explainRead(cerr, d.region, "ssm:GetParametersByPath").stored()
		}
		if out.Parameters == nil {
			return nil, malformed(opParameters, "answered without a list", providers.ErrNotIssued)
		}
		for _, param := range out.Parameters {
			name, under := strings.CutPrefix(aws.ToString(param.Name), path+"/")
			if _, twice := fields[name]; !under || twice || param.Value == nil {
				return nil, malformed(opParameters, "answered with a parameter that wasn't asked for", providers.ErrNotIssued)
			}
			if err := p.checkOwner(opParameters, aws.ToString(param.ARN)); err != nil {
				return nil, err
			}
			if size, err = merge(fields, size, name, []byte(*param.Value)); err != nil {
				return static(opParameters, nil, err)
			}
		}
		next := aws.ToString(out.NextToken)
		if next == "" {
			if len(fields) == 0 {
				return nil, hinted(fmt.Sprintf("%s: no parameters under %s: %v", opParameters, path, providers.ErrNotFound),
					"is `region` right, and may the login's role read them?", providers.ErrNotFound)
			}
			return static(opParameters, fields, nil)
		}
		if next == aws.ToString(in.NextToken) {
			return nil, malformed(opParameters, "answered with the same page again", providers.ErrNotIssued)
		}
		in.NextToken = &next
	}
	return nil, malformed(opParameters, fmt.Sprintf("answered with more than %d pages", maxPages), providers.ErrNotIssued)
}

// explainRead names the cure of a refused read.
func explainRead(e *callError, region, action string) *callError {
	switch {
	case e.code == "ExpiredToken" || e.code == "ExpiredTokenException":
		e.note = "the session's login has run out"
	case e.code == "DecryptionFailure" || e.code == "KMSAccessDeniedException":
		e.hint = "let the login's role do kms:Decrypt with the key that it is encrypted with"
	case e.code == "UnrecognizedClientException" || e.code == "OptInRequired":
		e.hint = fmt.Sprintf("is the region %s enabled for the account?", region)
	case e.is(providers.ErrDenied):
		e.hint = fmt.Sprintf("let the login's role do %s on it, and kms:Decrypt if it is encrypted with a key of your own", action)
	case e.is(providers.ErrNotFound):
		e.hint = fmt.Sprintf("is it in %s, and in the login's account?", region)
	case e.code == "InvalidRequestException":
		e.hint = "is it scheduled for deletion?"
	}
	return e
}

// fieldsOf are those of a JSON object, and the whole as [wholeField] unless a
// field of the object is called so. What isn't an object is that field alone.
func fieldsOf(text []byte) (map[string]secret.Value, error) {
	fields := map[string]secret.Value{}
	size := 0
	for name, v := range objectOf(text) {
		b := []byte(v)
		var s string
		switch {
		case bytes.Equal(b, []byte("null")):
			continue
		case b[0] == '"' && json.Unmarshal(b, &s) == nil:
			b = []byte(s)
		default:
			var compact bytes.Buffer
			if json.Compact(&compact, b) == nil {
				b = compact.Bytes()
			}
		}
		var err error
		if size, err = merge(fields, size, name, b); err != nil {
			return nil, err
		}
	}
	if _, taken := fields[wholeField]; taken {
		return fields, nil
	}
	_, err := merge(fields, size, wholeField, text)
	return fields, err
}

// objectOf is empty unless text is one JSON object.
func objectOf(text []byte) map[string]json.RawMessage {
	dec := json.NewDecoder(bytes.NewReader(text))
	var object map[string]json.RawMessage
	if dec.Decode(&object) != nil {
		return nil
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil
	}
	return object
}

// Schemes are aws-sm (Secrets Manager) and aws-ssm (Parameter Store).
func (p *Provider) Schemes() []string { return []string{schemeSecret, schemeParameter} }

// Reference is a secret by name or ARN, whose version is an id or a stage, or
// a parameter, whose version is a number or a label. A parameter's path begins
// with a slash at AWS unless it is a single name, and needs none here.
func (p *Provider) Reference(r ref.Ref) (providers.Definition, error) {
	if strings.ContainsAny(r.Path+r.Version, "{}") {
		return nil, fmt.Errorf("a reference of %s with a brace", r.Scheme)
	}
	switch r.Scheme {
	case schemeSecret:
		id, err := providers.ParseTemplate(r.Path)
		if err != nil {
			return nil, err
		}
		if versionID.MatchString(r.Version) {
			return p.defineSecret(id, r.Version, "", "")
		}
		return p.defineSecret(id, "", r.Version, "")
	case schemeParameter:
		path := r.Path
		if strings.Contains(path, "/") && !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "arn:") {
			path = "/" + path
		}
		name, err := providers.ParseTemplate(path)
		if err != nil {
			return nil, err
		}
		return p.defineParameter(name, r.Version, "")
	}
	return nil, fmt.Errorf("aws has no references of the scheme %q: aws-sm or aws-ssm", r.Scheme)
}
