package aws

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/runenv/action/providers"
)

const (
	// maxSessionName is STS's bound, in characters.
	maxSessionName = 64
	// maxPolicyARNs is STS's bound.
	maxPolicyARNs = 10

	rdsLife = 15 * time.Minute
	ecrLife = 12 * time.Hour
)

var (
	hostName      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$`)
	databaseUser  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,62}$`)
	policyPath    = regexp.MustCompile(`^policy/([A-Za-z0-9_+=,.@-]+/)*[A-Za-z0-9_+=,.@-]{1,128}$`)
	sessionPrefix = regexp.MustCompile(`^[A-Za-z0-9_+=,.@-]{1,64}$`)
	externalText  = regexp.MustCompile(`^[A-Za-z0-9_+=,.@:/-]{2,128}$`)
)

// leaseKeys are a definition's own.
type leaseKeys struct {
	AssumeRole  providers.Template   `yaml:"assume_role"`
	Via         providers.Template   `yaml:"via"`
	ExternalID  string               `yaml:"external_id"`
	SessionName providers.Template   `yaml:"session_name"`
	Policy      any                  `yaml:"policy"`
	PolicyARNs  []providers.Template `yaml:"policy_arns"`

	Secret  providers.Template `yaml:"secret"`
	Version string             `yaml:"version"`
	Stage   string             `yaml:"stage"`

	Parameter      providers.Template `yaml:"parameter"`
	ParametersPath providers.Template `yaml:"parameters_path"`

	RDS *rdsKeys `yaml:"rds"`
	ECR *ecrKeys `yaml:"ecr"`

	Region string `yaml:"region"`
}

type rdsKeys struct {
	Host   providers.Template `yaml:"host"`
	Port   int                `yaml:"port"`
	User   providers.Template `yaml:"user"`
	Region string             `yaml:"region"`
}

type ecrKeys struct {
	RegistryID string `yaml:"registry_id"`
	Region     string `yaml:"region"`
}

// common is what the definitions share.
type common struct {
	region    string
	loginless bool
	templates []providers.Template
}

func (c *common) Templates() []providers.Template { return c.templates }
func (c *common) Loginless() bool                 { return c.loginless }

// A roleDefinition gives a session of STS.
type roleDefinition struct {
	common
	role, via, sessionName providers.Template
	externalID             string
	policy                 *policy
	policyARNs             []providers.Template
	longest                time.Duration
}

func (d *roleDefinition) Revocability() providers.Revocability { return providers.Expires }

func (d *roleDefinition) Bounds() (shortest, longest time.Duration) {
	return shortestSession, d.longest
}

// DefaultEnv is what every SDK of AWS reads.
func (d *roleDefinition) DefaultEnv() []providers.DefaultVar {
	return []providers.DefaultVar{
		{Name: "AWS_ACCESS_KEY_ID", Field: "access_key_id", Mask: true},
		{Name: "AWS_SECRET_ACCESS_KEY", Field: "secret_access_key", Mask: true},
		{Name: "AWS_SESSION_TOKEN", Field: "session_token", Mask: true},
		{Name: "AWS_REGION", Field: "region"},
		{Name: "AWS_DEFAULT_REGION", Field: "region"},
	}
}

// An rdsDefinition gives a password for a database user of RDS.
type rdsDefinition struct {
	common
	host, user providers.Template
	port       int
}

func (d *rdsDefinition) Revocability() providers.Revocability { return providers.Expires }

func (d *rdsDefinition) Bounds() (shortest, longest time.Duration) { return rdsLife, rdsLife }

// An ecrDefinition gives a login to a registry of images.
type ecrDefinition struct {
	common
	registry string
}

func (d *ecrDefinition) Revocability() providers.Revocability { return providers.Expires }

func (d *ecrDefinition) Bounds() (shortest, longest time.Duration) { return ecrLife, ecrLife }

// Define reads one of `assume_role`, `secret`, `parameter`, `parameters_path`,
// `rds` and `ecr`, and what belongs to it.
func (p *Provider) Define(decode func(any) error) (providers.Definition, error) {
	var k leaseKeys
	if err := decode(&k); err != nil {
		return nil, err
	}
	if err := k.oneKind(); err != nil {
		return nil, err
	}
	if err := checkRegion(k.Region); err != nil {
		return nil, err
	}
	switch {
	case k.AssumeRole.String() != "":
		return p.defineRole(&k)
	case k.RDS != nil:
		return p.defineRDS(&k)
	case k.ECR != nil:
		return p.defineECR(&k)
	case k.Secret.String() != "":
		return p.defineSecret(k.Secret, k.Version, k.Stage, k.Region)
	case k.Parameter.String() != "":
		return p.defineParameter(k.Parameter, k.Version, k.Region)
	}
	return p.definePath(k.ParametersPath, k.Region)
}

// oneKind: exactly one, and nothing that belongs to another.
func (k *leaseKeys) oneKind() error {
	var kinds []string
	for _, kind := range []struct {
		name string
		set  bool
	}{
		{"assume_role", k.AssumeRole.String() != ""}, {"secret", k.Secret.String() != ""}, {"parameter", k.Parameter.String() != ""},
		{"parameters_path", k.ParametersPath.String() != ""}, {"rds", k.RDS != nil}, {"ecr", k.ECR != nil},
	} {
		if kind.set {
			kinds = append(kinds, kind.name)
		}
	}
	switch len(kinds) {
	case 0:
		return errors.New("an aws lease needs one of `assume_role`, `secret`, `parameter`, `parameters_path`, `rds` and `ecr`")
	case 1:
	default:
		return fmt.Errorf("`%s` and `%s` are two leases: one of them in each", kinds[0], kinds[1])
	}
	kind := kinds[0]
	for _, own := range []struct {
		name  string
		set   bool
		kinds string
	}{
		{"via", k.Via.String() != "", "assume_role"},
		{"external_id", k.ExternalID != "", "assume_role"},
		{"session_name", k.SessionName.String() != "", "assume_role"},
		{"policy", k.Policy != nil, "assume_role"},
		{"policy_arns", k.PolicyARNs != nil, "assume_role"},
		{"version", k.Version != "", "secret parameter"},
		{"stage", k.Stage != "", "secret"},
	} {
		if own.set && !strings.Contains(" "+own.kinds+" ", " "+kind+" ") {
			return fmt.Errorf("`%s` doesn't belong to `%s`", own.name, kind)
		}
	}
	if k.Region != "" && (kind == "rds" || kind == "ecr") {
		return fmt.Errorf("write `region` into `%s`", kind)
	}
	return nil
}

// commonOf is for a region that may be the provider's, and templates, of which
// empty ones don't count.
func (p *Provider) commonOf(region string, loginless bool, templates ...providers.Template) common {
	c := common{region: region, loginless: loginless || p.auth.Method == methodDefault}
	if region == "" {
		c.region = p.region
	}
	for _, t := range templates {
		if t.String() != "" {
			c.templates = append(c.templates, t)
		}
	}
	return c
}

// wantLogin refuses, at load, what could never be read.
func (p *Provider) wantLogin(key string) error {
	if p.auth.Method != methodDefault && p.auth.Role.String() == "" {
		return fmt.Errorf("`%s` is read under the session's login: %s", key, needsRole)
	}
	return nil
}

func (p *Provider) defineRole(k *leaseKeys) (providers.Definition, error) {
	d := &roleDefinition{
		role: k.AssumeRole, via: k.Via, externalID: k.ExternalID, sessionName: k.SessionName, policyARNs: k.PolicyARNs, longest: longestSession,
	}
	d.common = p.commonOf(k.Region, true, append([]providers.Template{k.AssumeRole, k.Via, k.SessionName}, k.PolicyARNs...)...)
	if err := p.checkRole("assume_role", d.role, d.region); err != nil {
		return nil, err
	}
	if d.via.String() != "" {
		if p.auth.Method == methodDefault {
			return nil, errors.New("`via` belongs to `method: oidc` and `method: ci`: with default, the chain's own identity assumes the role")
		}
		if err := p.checkRole("via", d.via, d.region); err != nil {
			return nil, err
		}
		d.longest = longestChained
	}
	if d.externalID != "" {
		switch {
		case d.via.String() == "" && p.auth.Method != methodDefault:
			return nil, errors.New("`external_id` is for a role that another assumes: it belongs to `via` or `method: default`")
		case !externalText.MatchString(d.externalID):
			return nil, errors.New("`external_id` has 2 to 128 of letters, digits and _+=,.@:/-")
		}
	}
	if name, _ := sample(d.sessionName); name != "" && !sessionPrefix.MatchString(name) {
		return nil, errors.New("`session_name` has at most 64 of letters, digits and _+=,.@-")
	}
	if len(d.policyARNs) > maxPolicyARNs {
		return nil, fmt.Errorf("`policy_arns` has %d entries: at most %d", len(d.policyARNs), maxPolicyARNs)
	}
	for _, t := range d.policyARNs {
		if text, _ := sample(t); !isPolicyARN(text) {
			return nil, errors.New("`policy_arns` holds something else than ARNs of policies, such as arn:aws:iam::aws:policy/ReadOnlyAccess")
		}
	}
	if k.Policy != nil {
		var err error
		if d.policy, err = parsePolicy(k.Policy); err != nil {
			return nil, fmt.Errorf("`policy` %w", err)
		}
		d.templates = append(d.templates, d.policy.templates...)
	}
	return d, nil
}

// isPolicyARN: AWS's own policies have "aws" where others have the account.
func isPolicyARN(text string) bool {
	a, ok := parseARN(strings.Replace(text, ":iam::aws:", ":iam:::", 1))
	return ok && a.service == "iam" && a.region == "" && policyPath.MatchString(a.resource)
}

func (p *Provider) defineRDS(k *leaseKeys) (providers.Definition, error) {
	d := &rdsDefinition{host: k.RDS.Host, user: k.RDS.User, port: k.RDS.Port}
	d.common = p.commonOf(k.RDS.Region, false, d.host, d.user)
	if err := checkRegion(k.RDS.Region); err != nil {
		return nil, err
	}
	if host, _ := sample(d.host); !hostName.MatchString(host) || len(host) > 255 {
		return nil, errors.New("`rds.host` isn't the name of a host, such as db.example.com (without a port)")
	}
	if user, _ := sample(d.user); !databaseUser.MatchString(user) {
		return nil, errors.New("`rds.user` isn't the name of a database user")
	}
	if d.port < 1 || d.port > 65535 {
		return nil, errors.New("`rds.port` is missing or isn't a port, such as 5432")
	}
	return d, p.wantLogin("rds")
}

func (p *Provider) defineECR(k *leaseKeys) (providers.Definition, error) {
	d := &ecrDefinition{registry: k.ECR.RegistryID}
	d.common = p.commonOf(k.ECR.Region, false)
	if err := checkRegion(k.ECR.Region); err != nil {
		return nil, err
	}
	if d.registry != "" && !accountID.MatchString(d.registry) {
		return nil, errors.New("`ecr.registry_id` isn't an account id of 12 digits, in quotes")
	}
	if d.registry != "" && !p.allowed(d.registry) {
		return nil, errors.New("`ecr.registry_id` isn't among `allowed_account_ids`")
	}
	return d, p.wantLogin("ecr")
}
