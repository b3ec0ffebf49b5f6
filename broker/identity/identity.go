// Package identity turns a CI job's token into an [Identity], or refuses it.
//
// A [Verifier] is a strict shell around go-oidc, which alone isn't enough: it
// takes tokens that live for years, with several audiences, doubled keys or no
// id, and fetches keys whenever a stranger asks. The shell looks the issuer up
// in its table before anything touches the network, parses without tolerance,
// keeps a key set of its own with bounds on size, time and rate, and applies
// its own rules for audience and time. What comes out is one canonical view of
// the claims, and policy, audit and answers read that and nothing else.
//
// The package promises: an unknown issuer costs no network call; a flood of
// forged tokens costs at most one fetch of the keys per issuer and minute; an
// [Error] holds no token and no claim value. It doesn't remember tokens:
// whether one was used before is for the caller to know, by issuer and JTI.
package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// maxIDDigits bounds ids, in digits. CIs number with 64-bit integers.
	maxIDDigits = 20

	// maxNumberBytes bounds the literal of a number among the claims, in bytes.
	maxNumberBytes = 24

	// maxUnixSeconds is the end of the year 9999, as far as RFC 3339 can tell.
	maxUnixSeconds = 253402300799
)

// An Identity is the one canonical view of a token's claims. It is immutable.
type Identity struct {
	Issuer    string // the issuer's name in the broker's table
	IssuerURL string // exactly the iss claim
	Profile   string // name of the [Profile]
	Reuse     Reuse  // of the issuer, or else of the profile

	Subject, JTI      string
	IssuedAt, Expires time.Time // UTC, whole seconds; zero if absent

	// ProjectID is immutable, decimal, and means something only within its
	// Issuer. The name may change hands and is only good for cross-checks.
	// Both are of the project in which the job runs.
	ProjectID, ProjectName string

	// SourceProjectID is the project whose code the job runs. It differs from
	// ProjectID only in a GitLab merge request from another project.
	SourceProjectID string

	OwnerID, OwnerName string // of the project whose code the job runs

	// Job names one job (one attempt of it), unique within the issuer.
	Job string

	claims  map[string]claim
	profile *Profile
}

// A claim is a scalar or a list of scalars, as text.
type claim struct {
	values []string
	list   bool
}

// New builds an Identity from decoded claims and verifies nothing: it is what
// [Verifier.Verify] calls at its end, and what the tests of a policy call to
// see how it would decide. Absent claims leave their fields empty.
//
// Claims are strings, booleans, numbers (json.Number, int, int64, float64) and
// lists of these. Objects, and lists that hold anything else, are left out:
// they can't be matched. A null claim is absent. It is an error if an id isn't
// decimal, or a number is too large to be compared exactly.
func New(profile *Profile, issuerName string, claims map[string]any) (*Identity, error) {
	id := &Identity{
		Issuer:  issuerName,
		Profile: profile.Name,
		Reuse:   profile.Reuse,
		claims:  make(map[string]claim, len(claims)),
		profile: profile,
	}
	for name, value := range claims {
		c, ok, err := canonical(value)
		if err != nil {
			return nil, fmt.Errorf("claim %q: %w", name, err)
		}
		if ok {
			id.claims[name] = c
		}
	}
	var err error
	number := func(name string) string {
		value := id.scalar(name)
		if value != "" && !isDecimal(value) {
			err = fmt.Errorf("claim %q: not a decimal id", name)
		}
		return value
	}
	seconds := func(name string) time.Time {
		value := id.scalar(name)
		if value == "" {
			return time.Time{}
		}
		n, perr := strconv.ParseInt(value, 10, 64)
		if perr != nil || n < 0 || n > maxUnixSeconds {
			err = fmt.Errorf("claim %q: not a time in whole seconds", name)
			return time.Time{}
		}
		return time.Unix(n, 0).UTC()
	}
	id.IssuerURL = id.scalar("iss")
	id.Subject = id.scalar("sub")
	id.JTI = id.scalar("jti")
	id.IssuedAt = seconds("iat")
	id.Expires = seconds("exp")
	id.SourceProjectID = number(profile.ProjectIDClaim)
	id.ProjectID = id.SourceProjectID
	id.ProjectName = id.scalar(profile.ProjectNameClaim)
	// Present is enough, so that one that can't be read doesn't pass for absent.
	if name := profile.JobProjectIDClaim; name != "" && claims[name] != nil {
		id.ProjectID = number(name)
		id.ProjectName = id.scalar(profile.JobProjectNameClaim)
	}
	id.OwnerID = number(profile.OwnerIDClaim)
	id.OwnerName = id.scalar(profile.OwnerNameClaim)
	id.Job = profile.job(number, id.scalar)
	if err != nil {
		return nil, err
	}
	return id, nil
}

// Claim returns the values of the claim: one for a scalar, any number for a
// list, (nil, false) if it is absent or an object. Numbers are decimal without
// exponent where they are whole, booleans "true" or "false".
func (id *Identity) Claim(name string) (values []string, ok bool) {
	c, ok := id.claims[name]
	return slices.Clone(c.values), ok
}

// Claims returns a copy of all claims, for telling a caller its own: each is a
// string or a []string. It is as bounded as the token was. It may hold an
// e-mail address, so it belongs in no log: see [Identity.AuditClaims].
func (id *Identity) Claims() map[string]any {
	out := make(map[string]any, len(id.claims))
	for name, c := range id.claims {
		if c.list {
			out[name] = slices.Clone(c.values)
		} else {
			out[name] = c.values[0]
		}
	}
	return out
}

// AuditClaims returns the claims on the profile's list for the audit log. It
// holds no e-mail address. The map is the caller's.
func (id *Identity) AuditClaims() map[string]string {
	out := make(map[string]string, len(id.profile.auditClaims))
	for _, name := range id.profile.auditClaims {
		if c, ok := id.claims[name]; ok && !c.list {
			out[name] = c.values[0]
		}
	}
	return out
}

// scalar returns the claim's value, or "" if it is absent or a list.
func (id *Identity) scalar(name string) string {
	if c, ok := id.claims[name]; ok && !c.list {
		return c.values[0]
	}
	return ""
}

// githubJob joins run, attempt and job. Runners that don't name the job (older
// GHES) give what else tells jobs of a run apart, hashed so that no name can
// collide with a number.
func githubJob(number, text func(string) string) string {
	run, attempt := number("run_id"), number("run_attempt")
	if run == "" || attempt == "" {
		return ""
	}
	job := number("check_run_id")
	if job == "" {
		h := sha256.New()
		for _, name := range []string{"sub", "job_workflow_ref", "environment"} {
			_, _ = fmt.Fprintf(h, "%d:%s", len(text(name)), text(name))
		}
		job = "h" + hex.EncodeToString(h.Sum(nil)[:16])
	}
	return run + "/" + attempt + "/" + job
}

// canonical returns the claim as text, or false if it can't be matched.
func canonical(value any) (claim, bool, error) {
	var list []any
	switch v := value.(type) {
	case []any:
		list = v
	case []string:
		return claim{slices.Clone(v), true}, true, nil
	default:
		s, ok, err := scalarText(v)
		if !ok || err != nil {
			return claim{}, false, err
		}
		return claim{[]string{s}, false}, true, nil
	}
	values := make([]string, 0, len(list))
	for _, item := range list {
		s, ok, err := scalarText(item)
		if !ok || err != nil {
			return claim{}, false, err
		}
		values = append(values, s)
	}
	return claim{values, true}, true, nil
}

func scalarText(value any) (string, bool, error) {
	switch v := value.(type) {
	case string:
		return v, true, nil
	case bool:
		return strconv.FormatBool(v), true, nil
	case int:
		return strconv.Itoa(v), true, nil
	case int64:
		return strconv.FormatInt(v, 10), true, nil
	case float64:
		s, err := numberText(strconv.FormatFloat(v, 'g', -1, 64))
		return s, err == nil, err
	case json.Number:
		s, err := numberText(v.String())
		return s, err == nil, err
	}
	return "", false, nil
}

// numberText gives each number one spelling, so that 7, 7.0 and 70e-1 match
// alike. Whole numbers may have 64 bits, others must be below 2^53.
func numberText(literal string) (string, error) {
	if len(literal) > maxNumberBytes {
		return "", fmt.Errorf("number longer than %d bytes", maxNumberBytes)
	}
	if n, err := strconv.ParseInt(literal, 10, 64); err == nil {
		return strconv.FormatInt(n, 10), nil
	}
	f, err := strconv.ParseFloat(literal, 64)
	if err != nil || math.IsInf(f, 0) || math.IsNaN(f) || math.Abs(f) >= 1<<53 {
		return "", fmt.Errorf("number out of range")
	}
	if f == math.Trunc(f) {
		return strconv.FormatInt(int64(f), 10), nil
	}
	return strconv.FormatFloat(f, 'g', -1, 64), nil
}

// isDecimal reports whether s is a positive decimal number in its one spelling.
func isDecimal(s string) bool {
	if s == "" || len(s) > maxIDDigits || s[0] == '0' {
		return false
	}
	return strings.Trim(s, "0123456789") == ""
}
