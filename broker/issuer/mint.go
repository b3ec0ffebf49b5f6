package issuer

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// life is how long a token lives after it was minted.
	life = 5 * time.Minute
	// early is how long before that it would have been valid already: for
	// back ends whose clock is behind ours and that know no leeway.
	early = time.Minute

	maxAudienceBytes = 1024

	// maxExtra bounds the number of project's and run's claims: AWS takes 50
	// session tags, of which role and session are two.
	maxExtra = 40
	// maxValueBytes bounds one such claim, in bytes: what Vault takes as a
	// metadata value.
	maxValueBytes = 512
	// maxTokenBytes bounds a token: what mapped claims may take together at
	// GCP is 8 KiB, and AWS takes 20,000 characters.
	maxTokenBytes = 8 << 10

	// maxTagValueBytes is AWS's limit for a session tag's value, in characters
	// that all are ASCII here.
	maxTagValueBytes = 256
)

// Claims that AWS reads session tags and the source identity from.
const (
	tagsClaim           = "https://aws.amazon.com/tags"
	sourceIdentityClaim = "https://aws.amazon.com/source_identity"
)

// subjectPrefix and a role's name are the subject. Users write trust policies
// on this form: it is frozen.
const subjectPrefix = "runenv:role:"

// ownClaims are the names that [Claims.Extra] can't have.
func ownClaims() []string {
	return []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "role", "session_id"}
}

var (
	roleName = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)
	// sessionID is the form of AWS's source identity.
	sessionID = regexp.MustCompile(`^[A-Za-z0-9_+=,.@-]{2,64}$`)
	claimName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)
)

// Claims are what a token says.
type Claims struct {
	// Audience is the back end that the token is for: what its provider's
	// entry names, and never the broker or its issuer.
	Audience string
	// Role is the RunEnv role, [a-z0-9-]{1,63}.
	Role string
	// Session is the id of the session; to AWS, the source identity.
	Session string
	// Extra are the project's and the run's ids, by claim name
	// ([a-z][a-z0-9_]*): project, project_id, run_id and their like. Values
	// are at most 512 bytes of UTF-8 without control characters. Empty ones
	// are left out.
	Extra map[string]string
}

// Mint signs a token that lives five minutes. The algorithm is [ES256] or
// [RS256]; "" means ES256.
//
// Vault and GCP read the claims as they are: all are strings but the times,
// and the subject has at most 75 bytes of GCP's 127. AWS gets all of them once
// more as session tags in its own characters: a byte outside of
// [A-Za-z0-9_.:/+@-] stands there as "=" and two hexadecimal digits, and a
// value that is too long ends in "=+" and a digest of the whole, so that
// different values stay different.
func (i *Issuer) Mint(ctx context.Context, c Claims, alg string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("minting a token: %w", err)
	}
	if len(i.signers) == 0 {
		return "", fmt.Errorf("minting a token: %w", muteError{})
	}
	if alg == "" {
		alg = ES256
	}
	signer, ok := i.signers[alg]
	if !ok {
		return "", fmt.Errorf("minting a token: no key for the algorithm %q; there are %s and %s", alg, ES256, RS256)
	}
	if err := i.check(c); err != nil {
		return "", fmt.Errorf("minting a token for role %.64q: %w", c.Role, err)
	}
	now := i.now()
	claims := map[string]any{
		"iss":               i.url,
		"sub":               subjectPrefix + c.Role,
		"aud":               c.Audience,
		"iat":               now.Unix(),
		"nbf":               now.Add(-early).Unix(),
		"exp":               now.Add(life).Unix(),
		"jti":               rand.Text(),
		sourceIdentityClaim: c.Session,
	}
	tags := map[string][]string{}
	facts := maps.Clone(c.Extra)
	if facts == nil {
		facts = map[string]string{}
	}
	facts["role"], facts["session_id"] = c.Role, c.Session
	for name, value := range facts {
		if value != "" {
			claims[name] = value
			tags[name] = []string{tagValue(value)}
		}
	}
	claims[tagsClaim] = map[string]any{"principal_tags": tags}

	var payload bytes.Buffer
	enc := json.NewEncoder(&payload)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(claims); err != nil {
		return "", fmt.Errorf("minting a token for role %.64q: %w", c.Role, err)
	}
	jws, err := signer.Sign(bytes.TrimSpace(payload.Bytes()))
	if err != nil {
		return "", fmt.Errorf("minting a token for role %.64q: signing: %w", c.Role, err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("minting a token for role %.64q: %w", c.Role, err)
	}
	if len(token) > maxTokenBytes {
		return "", fmt.Errorf("minting a token for role %.64q: it would have %d bytes, over the limit of %d", c.Role, len(token), maxTokenBytes)
	}
	return token, nil
}

// check refuses what a token may not say. Errors hold names, never values.
func (i *Issuer) check(c Claims) error {
	switch {
	case !roleName.MatchString(c.Role):
		return errors.New("a role's name is 1 to 63 of a-z, 0-9 and -")
	case c.Audience == "":
		return errors.New("no audience")
	case len(c.Audience) > maxAudienceBytes || !plain(c.Audience):
		return fmt.Errorf("the audience isn't plain text of at most %d bytes", maxAudienceBytes)
	case same(c.Audience, i.brokerURL):
		return errors.New("the broker itself is no audience: give the provider one of its own")
	case same(c.Audience, i.url):
		return errors.New("the issuer itself is no audience: give the provider one of its own")
	case !sessionID.MatchString(c.Session):
		return errors.New("the session's id can't be an AWS source identity: 2 to 64 of letters, digits and _+=,.@-")
	case len(c.Extra) > maxExtra:
		return fmt.Errorf("%d claims are over the limit of %d", len(c.Extra), maxExtra)
	}
	own := ownClaims()
	for _, name := range slices.Sorted(maps.Keys(c.Extra)) {
		switch {
		case !claimName.MatchString(name):
			return fmt.Errorf("%.80q is no claim name: one has 1 to 63 of a-z, 0-9 and _", name)
		case slices.Contains(own, name):
			return fmt.Errorf("the claim %q is the issuer's own", name)
		case len(c.Extra[name]) > maxValueBytes || !plain(c.Extra[name]):
			return fmt.Errorf("the claim %q isn't plain text of at most %d bytes", name, maxValueBytes)
		}
	}
	return nil
}

// same is wider than what the broker compares its audience with, to be safe
// from somebody else's idea of equal URLs.
func same(audience, u string) bool {
	return strings.EqualFold(strings.TrimRight(audience, "/"), strings.TrimRight(u, "/"))
}

func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// tagValue is value in the characters of an AWS session tag,
// [\p{L}\p{Z}\p{N}_.:/=+\-@]{0,256}, and never with the reserved "aws:" in
// front. The letters of other scripts are escaped although AWS takes them, so
// that no two values look alike. Different values give different results, by
// the strength of half a SHA-256 where they are cut.
func tagValue(value string) string {
	var b strings.Builder
	cut := 0 // where a value that turns out too long is cut
	digest := sha256.Sum256([]byte(value))
	ending := "=+" + hex.EncodeToString(digest[:16])
	for i := range len(value) {
		c := value[i]
		reserved := i == 0 && len(value) >= 4 && strings.EqualFold(value[:4], "aws:")
		if !reserved && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_.:/+@-", c) >= 0) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "=%02X", c)
		}
		if b.Len() <= maxTagValueBytes-len(ending) {
			cut = b.Len()
		}
	}
	if b.Len() > maxTagValueBytes {
		return b.String()[:cut] + ending
	}
	return b.String()
}
