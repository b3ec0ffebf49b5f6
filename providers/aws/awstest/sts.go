package awstest

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

var sessionText = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)

// token is what AWS reads of a web identity.
type token struct {
	Issuer   string       `json:"iss"`
	Subject  string       `json:"sub"`
	Audience jwt.Audience `json:"aud"`
	Expires  int64        `json:"exp"`
	From     int64        `json:"nbf"`
	Source   string       `json:"https://aws.amazon.com/source_identity"`
	Tags     struct {
		Principal map[string][]string `json:"principal_tags"`
	} `json:"https://aws.amazon.com/tags"`
}

func (s *Server) webIdentity(w http.ResponseWriter, r *http.Request, c *call) {
	if r.Header.Get("Authorization") != "" {
		refuse(w, r, &refusal400{"ValidationError", "a web identity that is signed"})
		return
	}
	tok, refusal := s.verifyToken(c.form.Get("WebIdentityToken"))
	if refusal != nil {
		refuse(w, r, refusal)
		return
	}
	roleARN := c.form.Get("RoleArn")
	s.mu.Lock()
	role, ok := s.roles[roleARN]
	s.mu.Unlock()
	denied := &refusal400{"AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity"}
	switch {
	case !ok || role.Issuer != tok.Issuer || role.Subject != tok.Subject || role.Audience != "" && !tok.Audience.Contains(role.Audience):
		refuse(w, r, denied)
		return
	case len(tok.Tags.Principal) > 0 && role.NoTagSession:
		refuse(w, r, &refusal400{"AccessDenied", "User: " + Echo + " is not authorized to perform: sts:TagSession on resource: " + roleARN})
		return
	case tok.Source != "" && role.NoSourceIdentity:
		refuse(w, r, &refusal400{"AccessDenied", "User: " + Echo + " is not authorized to perform: sts:SetSourceIdentity on resource: " + roleARN})
		return
	}
	x := Session{RoleARN: roleARN, SourceIdentity: tok.Source, Tags: map[string]string{}}
	for k, v := range tok.Tags.Principal {
		if len(v) != 1 {
			refuse(w, r, &refusal400{"InvalidIdentityToken", "a tag with several values"})
			return
		}
		x.Tags[k] = v[0]
	}
	s.grant(w, r, c, role, x)
}

// verifyToken checks a web identity against the keys that its issuer serves.
func (s *Server) verifyToken(raw string) (token, *refusal400) {
	bad := func(message string) (token, *refusal400) {
		return token{}, &refusal400{"InvalidIdentityToken", message}
	}
	parsed, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
	if err != nil {
		return bad("The ID Token provided is not a valid JWT.")
	}
	var tok token
	if parsed.UnsafeClaimsWithoutVerification(&tok) != nil {
		return bad("The ID Token provided is not a valid JWT.")
	}
	s.mu.Lock()
	audiences, known := s.audiences[tok.Issuer]
	s.mu.Unlock()
	if !known {
		return bad("No OpenIDConnect provider found in your account for " + tok.Issuer)
	}
	keys, err := s.fetchKeys(tok.Issuer)
	if err != nil {
		return bad("Couldn't retrieve verification key from your identity provider")
	}
	if parsed.Claims(keys, &tok) != nil {
		return bad("The ID Token provided has a signature that isn't valid.")
	}
	if !slices.ContainsFunc(audiences, tok.Audience.Contains) {
		return bad("Incorrect token audience")
	}
	now := s.now().Unix()
	if now >= tok.Expires || now < tok.From {
		return token{}, &refusal400{"ExpiredTokenException", "Token expired: current date/time must be before the expiration date/time"}
	}
	return tok, nil
}

func (s *Server) fetchKeys(issuer string) (*jose.JSONWebKeySet, error) {
	var discovery struct {
		Issuer string `json:"issuer"`
		JWKS   string `json:"jwks_uri"`
	}
	if err := s.fetchJSON(issuer+"/.well-known/openid-configuration", &discovery); err != nil {
		return nil, err
	}
	if discovery.Issuer != issuer {
		return nil, fmt.Errorf("discovery of %s names another issuer", issuer)
	}
	keys := &jose.JSONWebKeySet{}
	return keys, s.fetchJSON(discovery.JWKS, keys)
}

func (s *Server) fetchJSON(from string, into any) error {
	client := cmp.Or(s.HTTP, &http.Client{Timeout: 5 * time.Second})
	resp, err := client.Get(from)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %d", from, resp.StatusCode)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(into)
}

func (s *Server) assumeRole(w http.ResponseWriter, r *http.Request, c *call) {
	roleARN := c.form.Get("RoleArn")
	s.mu.Lock()
	role, ok := s.roles[roleARN]
	s.mu.Unlock()
	self := c.who.arn
	if c.who.session != nil {
		self = c.who.session.RoleARN
	}
	x := Session{RoleARN: roleARN, SourceIdentity: c.form.Get("SourceIdentity"), Tags: tagsOf(c.form)}
	if c.who.session != nil {
		x.Via = self
		before := c.who.session.SourceIdentity
		if before != "" && x.SourceIdentity != "" && before != x.SourceIdentity {
			refuse(w, r, &refusal400{"AccessDenied", "the source identity can't be changed: sts:SetSourceIdentity"})
			return
		}
		if x.SourceIdentity == "" {
			x.SourceIdentity = before
		}
		if seconds, _ := strconv.Atoi(c.form.Get("DurationSeconds")); seconds > 3600 {
			refuse(w, r, &refusal400{"ValidationError", "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining"})
			return
		}
	}
	if !ok || !slices.Contains(role.Principals, self) || role.ExternalID != c.form.Get("ExternalId") ||
		len(x.Tags) > 0 && role.NoTagSession || x.SourceIdentity != "" && role.NoSourceIdentity {
		refuse(w, r, &refusal400{"AccessDenied", "User: " + self + " is not authorized to perform: sts:AssumeRole on resource: " + roleARN})
		return
	}
	s.grant(w, r, c, role, x)
}

func tagsOf(form url.Values) map[string]string {
	tags := map[string]string{}
	for i := 1; form.Get(fmt.Sprintf("Tags.member.%d.Key", i)) != ""; i++ {
		tags[form.Get(fmt.Sprintf("Tags.member.%d.Key", i))] = form.Get(fmt.Sprintf("Tags.member.%d.Value", i))
	}
	return tags
}

// grant issues a session.
func (s *Server) grant(w http.ResponseWriter, r *http.Request, c *call, role Role, x Session) {
	x.Name, x.Policy = c.form.Get("RoleSessionName"), c.form.Get("Policy")
	for i := 1; c.form.Get(fmt.Sprintf("PolicyArns.member.%d.arn", i)) != ""; i++ {
		x.PolicyARNs = append(x.PolicyARNs, c.form.Get(fmt.Sprintf("PolicyArns.member.%d.arn", i)))
	}
	seconds, err := strconv.Atoi(c.form.Get("DurationSeconds"))
	x.Duration = time.Duration(seconds) * time.Second
	most := role.MaxSession
	if most == 0 {
		most = time.Hour
	}
	var policy map[string]any
	switch {
	case !sessionText.MatchString(x.Name):
		refuse(w, r, &refusal400{"ValidationError", "roleSessionName"})
		return
	case err != nil || x.Duration < 15*time.Minute:
		refuse(w, r, &refusal400{"ValidationError", "durationSeconds must have value greater than or equal to 900"})
		return
	case x.Duration > most:
		refuse(w, r, &refusal400{"ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."})
		return
	case x.Policy != "" && (len(x.Policy) > 2048 || json.Unmarshal([]byte(x.Policy), &policy) != nil || policy["Statement"] == nil):
		refuse(w, r, &refusal400{"MalformedPolicyDocument", "This policy contains invalid Json"})
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x.AccessKeyID, x.Expires = "ASIA"+rand.Text()[:16], s.now().Add(x.Duration)
	parts := strings.SplitN(x.RoleARN, ":", 6)
	assumed := "arn:" + parts[1] + ":sts::" + parts[4] + ":assumed-role/" + x.RoleARN[strings.LastIndexByte(x.RoleARN, '/')+1:] + "/" + x.Name
	p := &principal{arn: assumed, secret: "c4n4ry-key-" + rand.Text(), token: "c4n4ry-session-" + rand.Text(), account: parts[4], session: &x}
	s.principals[x.AccessKeyID] = p
	s.sessions = append(s.sessions, x)
	if s.lie.NoARN {
		assumed = ""
	} else if s.lie.Account != "" {
		assumed = strings.Replace(assumed, parts[4], s.lie.Account, 1)
	}
	_, action, _ := strings.Cut(c.action, ":")
	replyXML(w, action, fmt.Sprintf("<Credentials><AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>%s</SessionToken><Expiration>%s</Expiration></Credentials>"+
		"<AssumedRoleUser><Arn>%s</Arn><AssumedRoleId>AROA:%s</AssumedRoleId></AssumedRoleUser>",
		x.AccessKeyID, p.secret, p.token, x.Expires.Add(s.lie.Longer).UTC().Format(time.RFC3339), escape(assumed), escape(x.Name)))
}

func (s *Server) callerIdentity(w http.ResponseWriter, c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	arn, account := c.who.arn, c.who.account
	if s.lie.Account != "" {
		arn, account = strings.Replace(arn, account, s.lie.Account, 1), s.lie.Account
	}
	replyXML(w, "GetCallerIdentity", fmt.Sprintf("<Arn>%s</Arn><UserId>AIDA</UserId><Account>%s</Account>", escape(arn), account))
}

func (s *Server) putRolePolicy(w http.ResponseWriter, r *http.Request, c *call) {
	roleARN := ""
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, arn := range slices.Sorted(maps.Keys(s.roles)) {
		if strings.Contains(arn, ":"+c.who.account+":") && strings.HasSuffix(arn, "/"+c.form.Get("RoleName")) {
			roleARN = arn
		}
	}
	if roleARN == "" {
		refuseAs(w, r, http.StatusNotFound, "NoSuchEntity", "The role cannot be found.")
		return
	}
	if s.inline[roleARN] == nil {
		s.inline[roleARN] = map[string]string{}
	}
	s.inline[roleARN][c.form.Get("PolicyName")] = c.form.Get("PolicyDocument")
	w.Header().Set("Content-Type", "text/xml")
	_, _ = io.WriteString(w, "<PutRolePolicyResponse><ResponseMetadata><RequestId>c6104cbe</RequestId></ResponseMetadata></PutRolePolicyResponse>")
}

// authorize heeds a role's denied actions, and inline policies that deny
// everything to a source identity.
func (s *Server) authorize(c *call) *refusal400 {
	if c.who.session == nil {
		return nil
	}
	code := "AccessDenied"
	if c.json {
		code = "AccessDeniedException"
	}
	denied := &refusal400{code, "User: " + c.who.arn + " is not authorized to perform: " + c.action}
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.roles[c.who.session.RoleARN].Deny, c.action) {
		return denied
	}
	for _, doc := range s.inline[c.who.session.RoleARN] {
		var policy struct {
			Statement []struct {
				Effect, Action, Resource string
				Condition                map[string]map[string]string
			}
		}
		if json.Unmarshal([]byte(doc), &policy) != nil {
			continue
		}
		for _, st := range policy.Statement {
			if st.Effect == "Deny" && st.Action == "*" && st.Resource == "*" && st.Condition["StringEquals"]["aws:SourceIdentity"] == c.who.session.SourceIdentity {
				return denied
			}
		}
	}
	return nil
}
