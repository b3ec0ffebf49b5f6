// Package awstest is a fake AWS for tests: STS, Secrets Manager, Parameter
// Store, ECR and IAM's PutRolePolicy on one address, in the wire protocols
// that AWS's own SDK speaks.
//
// It checks what AWS checks: a web identity's signature against the keys that
// its issuer serves over HTTP, issuer, audience, times and a role's trust
// policy; the SigV4 signature of everything else, of credentials that it has
// issued itself; session lengths, chaining, external ids, and inline policies
// that deny by source identity. It can also deny, stall and lie: see [Fault]
// and [Lie]. What it isn't: an interpreter of IAM policies, or proof of what
// AWS does.
package awstest

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Echo stands in every message of the fake's errors: no text of ours may hold
// it.
const Echo = "c4n4ry-echo"

// Account is where everything is that doesn't say otherwise.
const Account = "111122223333"

const maxRequestBytes = 1 << 20

// A Role is what the fake knows of an IAM role: its trust policy and rights.
type Role struct {
	Issuer   string // whose tokens it takes
	Subject  string // exactly
	Audience string // exactly; empty: what the issuer is registered with

	Principals []string // ARNs of the roles and users that may assume it
	ExternalID string   // which they must name

	MaxSession       time.Duration // 0: an hour, IAM's default
	NoTagSession     bool          // its trust policy lacks sts:TagSession
	NoSourceIdentity bool          // and sts:SetSourceIdentity
	Deny             []string      // actions that it may not do
}

// A Session is one that the fake issued.
type Session struct {
	RoleARN, Name, SourceIdentity string
	AccessKeyID                   string
	Tags                          map[string]string
	Policy                        string
	PolicyARNs                    []string
	Duration                      time.Duration
	Expires                       time.Time
	Via                           string // the ARN of the role that assumed it
}

// A Request is one that reached the fake.
type Request struct {
	Action      string // such as sts:AssumeRole
	Region      string // that it is signed for; empty if it isn't signed
	AccessKeyID string
	UserAgent   string
}

// A Lie is what the fake says though it isn't so.
type Lie struct {
	Longer  time.Duration // a session lives this much longer than asked
	Account string        // all that is said to be in this account
	NoARN   bool          // AssumedRoleUser.Arn is empty, as MinIO's
}

// A Server is a fake AWS. Its methods are safe for concurrent use; its fields
// are set before the first request.
type Server struct {
	// URL is its address, for every one of `endpoints`.
	URL string
	// PageSize is how many parameters come at once; 0: ten, AWS's maximum.
	PageSize int
	// Now is its clock; nil means time.Now.
	Now func() time.Time
	// HTTP fetches issuers' documents; nil means a client that trusts what the
	// system trusts.
	HTTP *http.Client

	done chan struct{}

	mu         sync.Mutex
	audiences  map[string][]string // by issuer
	roles      map[string]Role     // by ARN
	principals map[string]*principal
	sessions   []Session
	inline     map[string]map[string]string // by role's ARN, by name
	secrets    map[string][]version
	parameters map[string][]parameter
	requests   []Request
	fault      Fault
	lie        Lie
}

// A principal is who holds an access key.
type principal struct {
	arn, secret, token string
	account            string
	session            *Session // nil: a user
}

// New starts a fake that ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		done: make(chan struct{}), audiences: map[string][]string{}, roles: map[string]Role{}, principals: map[string]*principal{},
		inline: map[string]map[string]string{}, secrets: map[string][]version{}, parameters: map[string][]parameter{},
	}
	server := httptest.NewServer(http.HandlerFunc(s.serve))
	s.URL = server.URL
	t.Cleanup(func() {
		close(s.done)
		server.Close()
	})
	return s
}

// Trust registers an OIDC provider, whose documents are fetched over HTTP when
// a token of it comes.
func (s *Server) Trust(issuer string, audiences ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.audiences[issuer] = audiences
}

// SetRole makes a role, or replaces it.
func (s *Server) SetRole(arn string, r Role) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roles[arn] = r
}

// User makes an IAM user and gives its access key.
func (s *Server) User(name string) (accessKeyID, secretAccessKey string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, key := "AKIA"+rand.Text()[:16], "c4n4ry-user-"+rand.Text()
	s.principals[id] = &principal{arn: "arn:aws:iam::" + Account + ":user/" + name, secret: key, account: Account}
	return id, key
}

// Inject puts a fault before every request from now on; nil heals.
func (s *Server) Inject(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Lie lets the fake lie from now on; the zero Lie is the truth.
func (s *Server) Lie(l Lie) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lie = l
}

// Sessions are those issued, in order.
func (s *Server) Sessions() []Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sessions)
}

// Requests are those that came, in order.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Log is what the fake's CloudTrail holds of markers: names of sessions and
// user agents.
func (s *Server) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, r := range s.requests {
		fmt.Fprintln(&b, r.Action, r.UserAgent)
	}
	for _, x := range s.sessions {
		fmt.Fprintln(&b, x.Name)
	}
	return b.String()
}

// InlinePolicies are a role's, by name.
func (s *Server) InlinePolicies(roleARN string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	for name, doc := range s.inline[roleARN] {
		out[name] = doc
	}
	return out
}

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// A call is a request, read.
type call struct {
	action string
	json   bool
	form   url.Values
	body   []byte
	who    *principal // nil: unsigned
	region string
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBytes))
	if err != nil {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	c := read(r, body)
	s.mu.Lock()
	s.requests = append(s.requests, Request{Action: c.action, Region: scopeOf(r).region, AccessKeyID: scopeOf(r).key, UserAgent: r.UserAgent()})
	fault := s.fault
	s.mu.Unlock()
	var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, c) })
	if fault != nil {
		h = fault(s, h)
	}
	h.ServeHTTP(w, r)
}

// actions by the prefix of the JSON protocol's target; the rest is the query
// protocol's, whose Version tells the services apart.
var targets = map[string]string{
	"secretsmanager": "secretsmanager", "AmazonSSM": "ssm", "AmazonEC2ContainerRegistry_V20150921": "ecr",
}

func read(r *http.Request, body []byte) *call {
	c := &call{body: body}
	if target := r.Header.Get("X-Amz-Target"); target != "" {
		c.json = true
		prefix, name, _ := strings.Cut(target, ".")
		c.action = targets[prefix] + ":" + name
		return c
	}
	c.form, _ = url.ParseQuery(string(body))
	service := map[string]string{"2011-06-15": "sts", "2010-05-08": "iam"}[c.form.Get("Version")]
	c.action = service + ":" + c.form.Get("Action")
	return c
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, c *call) {
	if c.action == "sts:AssumeRoleWithWebIdentity" {
		s.webIdentity(w, r, c)
		return
	}
	who, region, refusal := s.authenticate(r, c)
	if refusal != nil {
		refuse(w, r, refusal)
		return
	}
	c.who, c.region = who, region
	if c.action != "sts:GetCallerIdentity" { // which nobody can be denied
		if refusal := s.authorize(c); refusal != nil {
			refuse(w, r, refusal)
			return
		}
	}
	switch c.action {
	case "sts:AssumeRole":
		s.assumeRole(w, r, c)
	case "sts:GetCallerIdentity":
		s.callerIdentity(w, c)
	case "iam:PutRolePolicy":
		s.putRolePolicy(w, r, c)
	case "secretsmanager:GetSecretValue":
		s.getSecretValue(w, r, c)
	case "ssm:GetParameter":
		s.getParameter(w, r, c)
	case "ssm:GetParametersByPath":
		s.getParametersByPath(w, r, c)
	case "ecr:GetAuthorizationToken":
		s.getAuthorizationToken(w, c)
	default:
		refuse(w, r, &refusal400{"InvalidAction", "Could not find operation " + c.action})
	}
}
