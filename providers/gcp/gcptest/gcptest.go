// Package gcptest is a Google Cloud on the wire for tests: the parts of STS,
// IAM Credentials and Secret Manager that RunEnv uses, and the misbehaviour
// that the real ones can't be told to show.
//
// It is a fake. It verifies an ID token's signature, issuer, audience and
// expiry with keys that it fetches over HTTP, and the bearer token of every
// call; it knows who may impersonate whom and read what. What its refusals
// say follows Google's documentation and reports of users; nobody compared it
// with the real ones. STS and IAM Credentials speak HTTP, Secret Manager gRPC,
// all three at one address.
package gcptest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc"
)

// Echo is in the text of each error that the fake gives, as Google's own may
// repeat what it was sent; nothing of RunEnv's may show it.
const Echo = "c4n4ry-echo"

// Pool is the pool's provider at which the fake takes ID tokens, as `audience`
// of a RunEnv provider names it.
const Pool = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ci/providers/runenv"

// Principal is how the fake names who has an ID token with a subject.
func Principal(subject string) string {
	return "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ci/subject/" + subject
}

// Role is the principal of a RunEnv role.
func Role(role string) string { return Principal("runenv:role:" + role) }

// Account is how it names a service account.
func Account(email string) string { return "serviceAccount:" + email }

// A ServiceAccount is one that the fake knows.
type ServiceAccount struct {
	// Members may ask for its tokens: [Principal] or [Account].
	Members []string
	// Extended lets access tokens live twelve hours, not one.
	Extended bool
}

// A Secret is one of Secret Manager's, by its full name with the project's id.
type Secret struct {
	// Readers may read it: [Principal] or [Account].
	Readers []string
	// Versions are its values, from version 1; nil is a disabled one.
	Versions [][]byte
	// Aliases name versions.
	Aliases map[string]int
}

// Server is the fake. Its fields are set before it is used.
type Server struct {
	URL string
	// Issuer and JWKSURL are whose ID tokens it takes and where their keys are.
	Issuer, JWKSURL string
	// HTTP fetches them; nil means [http.DefaultClient].
	HTTP *http.Client
	// Condition is the provider's attribute condition: a claim and the values
	// that it may have. An empty one takes every token.
	Condition map[string][]string
	Accounts  map[string]ServiceAccount // by e-mail address
	Secrets   map[string]Secret
	// ProjectNumbers are the numbers of projects, by their ids, with which
	// Secret Manager answers.
	ProjectNumbers map[string]string

	secretmanagerpb.UnimplementedSecretManagerServiceServer
	server *httptest.Server
	grpc   *grpc.Server
	done   chan struct{}

	mu       sync.Mutex
	tokens   map[string]grant
	fault    Fault
	tamper   func(*secretmanagerpb.AccessSecretVersionResponse)
	requests []Request
	issued   map[string]int // by path
}

// A grant is what an access token stands for.
type grant struct {
	who    string
	ends   time.Time
	scopes []string
}

// A Request is one that came. Path is that of HTTP, or the gRPC method's.
type Request struct {
	Path   string
	Header http.Header
}

// New starts one on a loopback address; it ends with the test.
func New(t testing.TB) *Server { return start(t, false) }

// NewTLS starts one that speaks TLS with a certificate of its own.
func NewTLS(t testing.TB) *Server { return start(t, true) }

func start(t testing.TB, secure bool) *Server {
	t.Helper()
	s := &Server{
		Accounts: map[string]ServiceAccount{}, Secrets: map[string]Secret{}, ProjectNumbers: map[string]string{},
		done: make(chan struct{}), tokens: map[string]grant{}, issued: map[string]int{},
	}
	s.grpc = grpc.NewServer()
	secretmanagerpb.RegisterSecretManagerServiceServer(s.grpc, s)
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0) // clients hang up on it
	s.server.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, c)
	}
	if secure {
		s.server.EnableHTTP2 = true
		s.server.StartTLS()
	} else {
		s.server.Config.Protocols = new(http.Protocols)
		s.server.Config.Protocols.SetHTTP1(true)
		s.server.Config.Protocols.SetUnencryptedHTTP2(true) // for gRPC
		s.server.Start()
	}
	s.URL = s.server.URL
	t.Cleanup(func() {
		close(s.done)
		s.server.CloseClientConnections()
		s.server.Close()
	})
	return s
}

type connKey struct{}

// CA is the certificate of a fake that speaks TLS, in PEM.
func (s *Server) CA() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.server.Certificate().Raw})
}

// Keys are those of a RunEnv provider that uses this fake.
func (s *Server) Keys() map[string]any {
	return map[string]any{
		"audience":  Pool,
		"endpoints": map[string]any{"sts": s.URL, "iamcredentials": s.URL, "secretmanager": s.URL},
	}
}

// Inject makes it misbehave from now on; nil ends that.
func (s *Server) Inject(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Tamper lets f change what Secret Manager answers; nil ends that.
func (s *Server) Tamper(f func(*secretmanagerpb.AccessSecretVersionResponse)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tamper = f
}

// Requests are those that came so far whose path has part in it.
func (s *Server) Requests(part string) []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []Request
	for _, r := range s.requests {
		if strings.Contains(r.Path, part) {
			found = append(found, r)
		}
	}
	return found
}

// Issued counts the tokens that were made by requests whose path ends with
// suffix: /v1/token, :generateAccessToken, :generateIdToken.
func (s *Server) Issued(suffix string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for path, count := range s.issued {
		if strings.HasSuffix(path, suffix) {
			n += count
		}
	}
	return n
}

// Scopes are those of an access token; nil if it isn't one of the fake's.
func (s *Server) Scopes(token string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[token].scopes
}

// Who is whose an access token is.
func (s *Server) Who(token string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[token].who
}

// grant makes an access token.
func (s *Server) grant(path, who string, life time.Duration, scopes []string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	token := "ya29.c4n4ry-" + rand.Text()
	s.tokens[token] = grant{who, time.Now().Add(life), scopes}
	s.issued[path]++
	return token
}

// caller is whose the bearer token of a call is.
func (s *Server) caller(authorization string) (who string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, ok := strings.CutPrefix(authorization, "Bearer ")
	g := s.tokens[token]
	if !ok || g.who == "" || !time.Now().Before(g.ends) || !slices.Contains(g.scopes, "https://www.googleapis.com/auth/cloud-platform") {
		return "", false
	}
	return g.who, true
}

// serve notes the request and lets the fault have its way.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, Request{r.URL.Path, r.Header.Clone()})
	fault := s.fault
	s.mu.Unlock()
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	h := http.Handler(http.HandlerFunc(s.answer))
	if fault != nil {
		h = fault(s, h)
	}
	h.ServeHTTP(w, r)
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	account, isAccount := strings.CutPrefix(r.URL.Path, "/v1/projects/-/serviceAccounts/")
	switch {
	case isGRPC(r):
		s.grpc.ServeHTTP(w, r)
	case r.Method != http.MethodPost:
		refuseAPI(w, http.StatusNotFound, "NOT_FOUND", "", "no such method")
	case r.URL.Path == "/v1/token":
		s.exchange(w, r)
	case isAccount && strings.HasSuffix(account, ":generateAccessToken"):
		s.accessToken(w, r, strings.TrimSuffix(account, ":generateAccessToken"))
	case isAccount && strings.HasSuffix(account, ":generateIdToken"):
		s.idToken(w, r, strings.TrimSuffix(account, ":generateIdToken"))
	default:
		refuseAPI(w, http.StatusNotFound, "NOT_FOUND", "", "no such method")
	}
}

func isGRPC(r *http.Request) bool {
	return strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// refuseOAuth refuses as STS does.
func refuseOAuth(w http.ResponseWriter, code, description string) {
	reply(w, http.StatusBadRequest, map[string]any{"error": code, "error_description": description + " " + Echo})
}

// refuseAPI refuses as Google's APIs do.
func refuseAPI(w http.ResponseWriter, code int, status, reason, message string) {
	e := map[string]any{"code": code, "message": message + " " + Echo, "status": status}
	if reason != "" {
		e["details"] = []any{map[string]any{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}}
	}
	reply(w, code, map[string]any{"error": e})
}
