// Package vaulttest is a Vault on the wire for tests: the part of its HTTP API
// that RunEnv uses, with the answers of Vault 1.13.1, and the misbehaviour
// that a real one can't be told to show.
//
// It is a fake: it checks subject, audience and expiry of an ID token, not its
// signature, and credentials end when told, not by time. What needs the real
// Vault is tested in the e2e module.
package vaulttest

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// RootToken may do everything.
const RootToken = "hvs.root-c4n4ry"

// Echo is in the text of each error that the fake gives, as Vault's own may
// repeat what it was sent; nothing of RunEnv's may show it.
const Echo = "c4n4ry-echo"

// A Role is a role of the JWT auth method.
type Role struct {
	Subject  string
	Audience string
	TTL      time.Duration // 0: five minutes
	Period   time.Duration // renewal always gives this
	Batch    bool
}

// An Engine answers at a mount. path is what follows the mount, body what was
// posted, nil for a read.
type Engine func(path string, body map[string]any) Answer

// An Answer is an engine's. With a TTL and no NoLease Vault makes a lease.
type Answer struct {
	Status    int // 0: 200
	Errors    []string
	Data      map[string]any
	TTL       time.Duration
	Renewable bool
	NoLease   bool
}

// Server is the fake. Its fields are set before it is used.
type Server struct {
	URL string
	// Roles are those of the JWT auth method at auth/jwt.
	Roles map[string]Role
	// AppRoles are those at auth/approle: role ids with their secret ids.
	AppRoles map[string]string
	// ServiceAccounts are the tokens that the roles of auth/kubernetes take.
	ServiceAccounts map[string]string
	// MaxLease is how long a lease can live; 0: for ever.
	MaxLease time.Duration
	// Self is added to what a token's look-up of itself answers.
	Self map[string]any
	// NoMounts makes sys/internal/ui/mounts answer 403.
	NoMounts bool
	// NoSingleRevoke makes sys/leases/revoke answer 403, as Vault does unless
	// a policy says otherwise.
	NoSingleRevoke bool
	// NoSelfRevoke makes auth/token/revoke-self answer 403.
	NoSelfRevoke bool

	server *httptest.Server
	done   chan struct{}

	mu       sync.Mutex
	mounts   map[string]*mountpoint // with a slash at their end
	tokens   map[string]*token
	leases   map[string]string // id -> token
	fault    Fault
	requests []*http.Request
	issued   int
}

type mountpoint struct {
	kind, version string
	engine        Engine
	stored        map[string][]map[string]any // versions; nil: deleted
}

type token struct {
	ttl, period time.Duration
	noRenew     bool
}

// New starts one on a loopback address; it ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		Roles: map[string]Role{}, AppRoles: map[string]string{}, ServiceAccounts: map[string]string{}, done: make(chan struct{}),
		mounts: map[string]*mountpoint{}, tokens: map[string]*token{RootToken: {}}, leases: map[string]string{},
	}
	s.server = httptest.NewServer(http.HandlerFunc(s.serve))
	s.URL = s.server.URL
	t.Cleanup(func() {
		close(s.done)
		s.server.CloseClientConnections()
		s.server.Close()
	})
	return s
}

// KV mounts a KV store of version 1 or 2.
func (s *Server) KV(mount string, version int) {
	m := &mountpoint{kind: "kv", stored: map[string][]map[string]any{}}
	if version == 2 {
		m.version = "2"
	}
	s.put(mount, m)
}

// Put stores a secret, as its next version where there are any; nil deletes.
func (s *Server) Put(mount, path string, data map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.mounts[mount+"/"]
	m.stored[path] = append(m.stored[path], data)
}

// Mount mounts an engine of another kind.
func (s *Server) Mount(mount, kind string, e Engine) {
	s.put(mount, &mountpoint{kind: kind, engine: e})
}

func (s *Server) put(mount string, m *mountpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounts[mount+"/"] = m
}

// Database is an engine that makes a user with each read.
func Database(ttl time.Duration) Engine {
	return func(path string, body map[string]any) Answer {
		if !strings.HasPrefix(path, "creds/") {
			return Answer{Status: http.StatusNotFound}
		}
		return Answer{TTL: ttl, Renewable: true, Data: map[string]any{"username": "v-" + rand.Text(), "password": "c4n4ry-" + rand.Text()}}
	}
}

// Inject makes it misbehave from now on; nil ends that.
func (s *Server) Inject(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Requests are those that came so far whose path, without /v1/, begins with
// prefix.
func (s *Server) Requests(prefix string) []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*http.Request
	for _, r := range s.requests {
		if strings.HasPrefix(strings.TrimPrefix(r.URL.Path, "/v1/"), prefix) {
			found = append(found, r)
		}
	}
	return found
}

// Leases counts the leases that live.
func (s *Server) Leases() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.leases) }

// Tokens counts the tokens that live, besides the root token.
func (s *Server) Tokens() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.tokens) - 1 }

// Issued counts the answers with a credential that engines other than KV gave.
func (s *Server) Issued() int { s.mu.Lock(); defer s.mu.Unlock(); return s.issued }

// serve notes the request and lets the fault have its way.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r)
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
	path, ok := strings.CutPrefix(r.URL.Path, "/v1/")
	body := map[string]any(nil)
	if r.Method == http.MethodPut || r.Method == http.MethodPost {
		raw, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(raw, &body) != nil {
			refuse(w, http.StatusBadRequest, "error parsing JSON "+Echo)
			return
		}
	}
	switch {
	case !ok:
		http.NotFound(w, r)
	case r.Header.Get("X-Vault-Request") != "true":
		refuse(w, http.StatusPreconditionFailed, "missing 'X-Vault-Request' header")
	case path == "auth/jwt/login":
		s.login(w, body)
	case path == "auth/approle/login":
		s.loginAppRole(w, body)
	case path == "auth/kubernetes/login":
		s.loginKubernetes(w, body)
	default:
		s.authorised(w, r, path, body)
	}
}

func (s *Server) authorised(w http.ResponseWriter, r *http.Request, path string, body map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := r.Header.Get("X-Vault-Token")
	tok := s.tokens[id]
	if tok == nil {
		refuse(w, http.StatusForbidden, "permission denied")
		return
	}
	lease, _ := body["lease_id"].(string)
	ui, isUI := strings.CutPrefix(path, "sys/internal/ui/mounts/")
	switch {
	case path == "auth/token/create":
		s.grant(w, Role{TTL: mustDuration(body["ttl"])})
	case path == "auth/token/lookup-self":
		data := map[string]any{
			"ttl": int(tok.ttl.Seconds()), "id": id, "accessor": "c4n4ry-accessor", "display_name": "jwt-prod", "entity_id": "e-1",
			"renewable": true, "explicit_max_ttl": 0, "num_uses": 0, "policies": []string{"default"},
		}
		maps.Copy(data, s.Self)
		reply(w, map[string]any{"data": data})
	case path == "auth/token/renew-self":
		s.renewSelf(w, id, tok, body)
	case path == "auth/token/revoke-self" && s.NoSelfRevoke, path == "sys/leases/revoke" && s.NoSingleRevoke:
		refuse(w, http.StatusForbidden, "1 error occurred:\n\t* permission denied\n\n")
	case path == "auth/token/revoke-self":
		delete(s.tokens, id)
		for l, parent := range s.leases {
			if parent == id {
				delete(s.leases, l)
			}
		}
		w.WriteHeader(http.StatusNoContent)
	case path == "sys/leases/revoke":
		delete(s.leases, lease)
		w.WriteHeader(http.StatusNoContent)
	case path == "sys/leases/renew":
		if _, ok := s.leases[lease]; !ok {
			refuse(w, http.StatusBadRequest, "lease not found")
			return
		}
		seconds, _ := body["increment"].(float64)
		if s.MaxLease != 0 {
			seconds = min(seconds, s.MaxLease.Seconds())
		}
		reply(w, map[string]any{"lease_id": lease, "lease_duration": int(seconds), "renewable": true})
	case isUI:
		s.uiMount(w, ui)
	default:
		s.engine(w, r, id, path, body)
	}
}

// mounted finds the mount of a path and what follows it.
func (s *Server) mounted(path string) (name, rest string, m *mountpoint) {
	for name, m := range s.mounts {
		if rest, ok := strings.CutPrefix(path, name); ok {
			return name, rest, m
		}
	}
	return "", "", nil
}

func (s *Server) uiMount(w http.ResponseWriter, path string) {
	name, _, m := s.mounted(path)
	if m == nil || s.NoMounts {
		refuse(w, http.StatusForbidden, fmt.Sprintf("preflight capability check returned 403, please ensure client's policies grant access to path %q", path+"/"))
		return
	}
	var options any
	if m.version != "" {
		options = map[string]any{"version": m.version}
	}
	reply(w, map[string]any{"data": map[string]any{"path": name, "type": m.kind, "options": options}})
}

func (s *Server) engine(w http.ResponseWriter, r *http.Request, id, path string, body map[string]any) {
	name, rest, m := s.mounted(path)
	switch {
	case m == nil:
		refuse(w, http.StatusNotFound, fmt.Sprintf("no handler for route %q. route entry not found.", path))
		return
	case m.kind == "kv" && r.URL.Query().Get("list") == "true":
		m.listKV(w, rest)
		return
	case m.kind == "kv" && r.Header.Get("X-Vault-Wrap-TTL") == "":
		m.readKV(w, r, name, rest, body)
		return
	case m.kind == "kv":
		wrap(w)
		return
	}
	a := m.engine(rest, body)
	if a.Status != 0 && a.Status != http.StatusOK {
		refuse(w, a.Status, a.Errors...)
		return
	}
	s.issued++
	out := map[string]any{"data": a.Data}
	if a.TTL != 0 && !a.NoLease {
		lease := path + "/" + rand.Text()
		s.leases[lease] = id
		out["lease_id"], out["renewable"] = lease, a.Renewable
	}
	if a.TTL != 0 {
		out["lease_duration"] = int(a.TTL.Seconds())
	}
	if r.Header.Get("X-Vault-Wrap-TTL") != "" {
		wrap(w)
		return
	}
	reply(w, out)
}

// wrap answers with a wrapping token in place of what was asked for.
func wrap(w http.ResponseWriter) {
	reply(w, map[string]any{"request_id": "", "wrap_info": map[string]any{
		"token": "hvs.c4n4ry-wrap-" + rand.Text(), "accessor": "c4n4ry-accessor", "ttl": 300,
		"creation_time": time.Now().Format(time.RFC3339Nano), "creation_path": "x",
	}})
}

// listKV lists the secrets and folders below a path.
func (m *mountpoint) listKV(w http.ResponseWriter, rest string) {
	if m.version == "2" {
		var ok bool
		if rest, ok = strings.CutPrefix(rest, "metadata/"); !ok {
			refuse(w, http.StatusNotFound)
			return
		}
	}
	names := map[string]bool{}
	for path := range m.stored {
		below, ok := strings.CutPrefix(path, strings.TrimSuffix(rest, "/")+"/")
		if !ok {
			continue
		}
		name, _, folder := strings.Cut(below, "/")
		if folder {
			name += "/"
		}
		names[name] = true
	}
	if len(names) == 0 {
		refuse(w, http.StatusNotFound)
		return
	}
	reply(w, map[string]any{"data": map[string]any{"keys": slices.Sorted(maps.Keys(names))}})
}

func (m *mountpoint) readKV(w http.ResponseWriter, r *http.Request, name, rest string, body map[string]any) {
	if body != nil {
		m.stored[strings.TrimPrefix(rest, "data/")] = append(m.stored[strings.TrimPrefix(rest, "data/")], body)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if m.version == "2" {
		var ok bool
		if rest, ok = strings.CutPrefix(rest, "data/"); !ok {
			w.WriteHeader(http.StatusNotFound)
			reply(w, map[string]any{"warnings": []string{"Invalid path for a versioned K/V secrets engine. " + Echo}})
			return
		}
	}
	versions := m.stored[rest]
	n := len(versions)
	if v := r.URL.Query().Get("version"); v != "" && v != "0" {
		if _, err := fmt.Sscan(v, &n); err != nil || n > len(versions) {
			n = 0
		}
	}
	switch {
	case n == 0:
		refuse(w, http.StatusNotFound)
	case m.version != "2":
		reply(w, map[string]any{"data": versions[n-1], "lease_duration": 2764800})
	case versions[n-1] == nil:
		w.WriteHeader(http.StatusNotFound)
		reply(w, map[string]any{"data": map[string]any{"data": nil, "metadata": map[string]any{"version": n, "deletion_time": "2026-01-01T00:00:00Z"}}})
	default:
		reply(w, map[string]any{"data": map[string]any{"data": versions[n-1], "metadata": map[string]any{"version": n}}})
	}
}

func mustDuration(v any) time.Duration {
	text, _ := v.(string)
	d, _ := time.ParseDuration(text)
	return d
}

func reply(w http.ResponseWriter, body map[string]any) {
	out := map[string]any{
		"request_id": rand.Text(), "lease_id": "", "renewable": false, "lease_duration": 0,
		"data": nil, "wrap_info": nil, "warnings": nil, "auth": nil,
	}
	for k, v := range body {
		out[k] = v
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

// refuse answers as Vault does, with a text that may not get any further.
func refuse(w http.ResponseWriter, status int, errors ...string) {
	if errors == nil {
		errors = []string{}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Echo", Echo)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": errors})
}
