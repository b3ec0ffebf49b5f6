package aws

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/runenv/action/providers"
)

// maxARNBytes is AWS's limit for a role's ARN; a secret's is as long.
const maxARNBytes = 2048

// An arn names a thing of AWS, or of what speaks its protocol (MinIO's have
// neither region nor account).
type arn struct{ text, partition, service, region, account, resource string }

var (
	arnText  = regexp.MustCompile(`^arn:([a-z][a-z0-9-]{0,30}):([a-z0-9-]{1,40}):([a-z0-9-]{0,40}):([0-9]{12})?:([A-Za-z0-9_+=,.@/:-]+)$`)
	rolePath = regexp.MustCompile(`^role/([A-Za-z0-9_+=,.@-]+/)*[A-Za-z0-9_+=,.@-]{1,128}$`)
	hole     = regexp.MustCompile(`\{\{[^{}]*\}\}`)
)

func parseARN(text string) (arn, bool) {
	if len(text) > maxARNBytes {
		return arn{}, false
	}
	m := arnText.FindStringSubmatch(text)
	if m == nil {
		return arn{}, false
	}
	return arn{text, m[1], m[2], m[3], m[4], m[5]}, true
}

func parseRole(text string) (arn, bool) {
	a, ok := parseARN(text)
	return a, ok && a.service == "iam" && a.region == "" && rolePath.MatchString(a.resource)
}

// name is a role's name, without its path.
func (a arn) name() string { return a.resource[strings.LastIndexByte(a.resource, '/')+1:] }

// official: a partition of AWS's own, in which every role has an account.
func (a arn) official() bool { return a.partition == "aws" || strings.HasPrefix(a.partition, "aws-") }

// sample fills a template's holes with what could stand there, to check the
// rest at load.
func sample(t providers.Template) (text string, accountKnown bool) {
	parts := strings.SplitN(hole.ReplaceAllStringFunc(t.String(), func(string) string { return "\x00" }), ":", 6)
	accountKnown = true
	for i, p := range parts {
		if i == 4 && strings.HasPrefix(parts[0], "arn") && strings.Contains(p, "\x00") {
			accountKnown = false
			parts[i] = strings.ReplaceAll(p, "\x00", "000000000000")
			continue
		}
		parts[i] = strings.ReplaceAll(p, "\x00", "x")
	}
	return strings.Join(parts, ":"), accountKnown
}

// checkRole judges what can be known of a role's ARN at load.
func (p *Provider) checkRole(key string, t providers.Template, region string) error {
	text, accountKnown := sample(t)
	a, ok := parseRole(text)
	if !ok {
		return fmt.Errorf("`%s` isn't the ARN of an IAM role, such as arn:aws:iam::111122223333:role/deploy", key)
	}
	if a.official() && a.account == "" {
		return fmt.Errorf("`%s` has no account id", key)
	}
	if accountKnown && !p.allowed(a.account) {
		return fmt.Errorf("`%s` is in an account that isn't among `allowed_account_ids`", key)
	}
	if p.endpoints.STS == "" {
		if want := partitionOf(region); a.partition != want {
			return fmt.Errorf("`%s` is in the partition %s, and the region %s is in %s", key, a.partition, region, want)
		}
	}
	return nil
}

// expandRole is the role that a template means here, in an allowed account.
func (p *Provider) expandRole(t providers.Template, vars providers.Vars) (arn, error) {
	text, err := t.Expand(vars)
	if err != nil {
		return arn{}, invalid("%v", err)
	}
	a, ok := parseRole(text)
	if !ok || a.official() && a.account == "" {
		return arn{}, invalid("what a template made isn't the ARN of an IAM role")
	}
	if !p.allowed(a.account) {
		return arn{}, wrongAccount("role "+a.name(), true)
	}
	return a, nil
}

func wrongAccount(what string, notSent bool) error {
	classes := []error{providers.ErrDenied}
	if notSent {
		classes = append(classes, providers.ErrNotIssued)
	}
	return hinted(fmt.Sprintf("%s is in an account that isn't among `allowed_account_ids`: %v", what, providers.ErrDenied),
		"add the account to `allowed_account_ids` of the provider if it may be used", classes...)
}

// partitionOf is a region's.
func partitionOf(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	case strings.HasPrefix(region, "us-iso-"):
		return "aws-iso"
	case strings.HasPrefix(region, "us-isob-"):
		return "aws-iso-b"
	case strings.HasPrefix(region, "eu-isoe-"):
		return "aws-iso-e"
	case strings.HasPrefix(region, "us-isof-"), strings.HasPrefix(region, "eu-isof-"):
		return "aws-iso-f"
	case strings.HasPrefix(region, "eusc-"):
		return "aws-eusc"
	}
	return "aws"
}

// checkRegion judges a lease's `region`.
func checkRegion(region string) error {
	if region != "" && !regionName.MatchString(region) {
		return errors.New("`region` isn't one of AWS's, such as eu-west-1")
	}
	return nil
}
