// Package clienttest has a fake of the broker, to test what talks to one.
//
// The fake speaks the real wire strictly: it verifies DPoP proofs, counts each
// once, knows its sessions' keys and refuses unknown parameters. It decides
// nothing: every role of [Config].Roles is given to whoever has a token for
// its URL, whose signature it doesn't check. [Broker.Next] makes it deny,
// stall, cut or lose.
package clienttest

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/ref"
	"github.com/runenv/action/secret"
)

// Config is what [Start] works with. The zero Config has no role.
type Config struct {
	// Roles are the leases of each role, which are delivered as they stand,
	// with an ID of their own.
	Roles map[string][]api.Lease
	// References are the secrets that any role may have by reference, by their
	// canonical text without a field. Env are a secret's fields: a name and a
	// value each.
	References map[string]api.Lease
	// TLS makes the broker speak HTTPS, HTTP/2 too.
	TLS bool
	// Issuer is what discovery names; "" is the truth.
	Issuer string
	// HeartbeatSeconds is what clients are told; 0 means 30.
	HeartbeatSeconds int
	// HardEnd is how long a session may live; 0 means an hour.
	HardEnd time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// A Broker is a fake that listens on a loopback address.
type Broker struct {
	URL string
	// Certificate is the server's own, in DER; nil without TLS.
	Certificate []byte

	cfg Config
	srv *httptest.Server

	mu       sync.Mutex
	faults   map[string][]Fault
	calls    []string
	proofs   map[string]bool
	tokens   map[string]exchanged // by CI token
	sessions map[string]*Session  // by access token
	stopped  chan struct{}
}

// exchanged is what the same CI token may be exchanged again with.
type exchanged struct{ thumbprint, body, access string }

// A Session is what the fake knows of one. It is a copy.
type Session struct {
	ID, Role   string
	Ended      string // why; "" while it lives
	ByEndToken bool
	Heartbeats int
	Watching   int
	Leases     []api.Lease
	Reports    []api.Report

	thumbprint, end string
	events          []chan api.Event
	replies         map[string]string   // Idempotency-Key to body
	replaced        map[string]string   // lease id to the Idempotency-Key of what replaced it
	sets            map[string][]string // Idempotency-Key to the ids of its leases
}

// Start makes a fake listen. Close it after use.
func Start(cfg Config) *Broker {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.HeartbeatSeconds == 0 {
		cfg.HeartbeatSeconds = 30
	}
	if cfg.HardEnd == 0 {
		cfg.HardEnd = time.Hour
	}
	b := &Broker{
		cfg:      cfg,
		faults:   map[string][]Fault{},
		proofs:   map[string]bool{},
		tokens:   map[string]exchanged{},
		sessions: map[string]*Session{},
		stopped:  make(chan struct{}),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathDiscovery, b.discovery)
	mux.HandleFunc("POST "+api.PathToken, b.token)
	mux.HandleFunc("POST "+api.PathLeases, b.session(b.lease))
	mux.HandleFunc("POST "+api.PathExplain, b.session(b.explain))
	mux.HandleFunc("POST "+api.PathLeases+"/{id}/renew", b.session(b.renew))
	mux.HandleFunc("POST "+api.PathHeartbeat, b.session(b.heartbeat))
	mux.HandleFunc("GET "+api.PathWatch, b.session(b.watch))
	mux.HandleFunc("POST "+api.PathReport, b.report)
	mux.HandleFunc("DELETE "+api.PathSession, b.end)
	b.srv = httptest.NewUnstartedServer(b.faulty(mux))
	b.URL = "http://" + b.srv.Listener.Addr().String()
	if cfg.TLS {
		b.URL = "https" + strings.TrimPrefix(b.URL, "http")
		b.srv.EnableHTTP2 = true
		b.srv.StartTLS()
		b.Certificate = b.srv.Certificate().Raw
	} else {
		b.srv.Start()
	}
	return b
}

// Close stops the fake and cuts every connection.
func (b *Broker) Close() {
	close(b.stopped)
	b.srv.CloseClientConnections()
	b.srv.Close()
}

// A Fault stands before the handler of one call.
type Fault func(w http.ResponseWriter, r *http.Request, serve http.Handler)

// Next puts faults before the next calls of a route, like "POST /v1/leases":
// one for each call, nil for none.
func (b *Broker) Next(route string, faults ...Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults[route] = append(b.faults[route], faults...)
}

// Refuse answers with a refusal, and Retry-After where that is set.
func Refuse(status int, code, retryAfter string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		refuse(w, status, code, "as the test wants")
	}
}

// Answer answers with any bytes.
func Answer(status int, header http.Header, body string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for name, values := range header {
			w.Header()[name] = values
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// Cut breaks the connection before the call is served.
func Cut(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }

// Lose serves the call and loses its answer.
func Lose(_ http.ResponseWriter, r *http.Request, serve http.Handler) {
	serve.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// Stall closes reached and answers nothing until the caller gives up.
func Stall(reached chan<- struct{}) Fault {
	return func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = io.Copy(io.Discard, r.Body) // else the caller's leaving isn't seen
		close(reached)
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
}

func (b *Broker) faulty(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		route := r.Method + " " + r.URL.Path
		b.mu.Lock()
		b.calls = append(b.calls, route)
		var fault Fault
		if waiting := b.faults[route]; len(waiting) > 0 {
			fault, b.faults[route] = waiting[0], waiting[1:]
		}
		b.mu.Unlock()
		if fault != nil {
			fault(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Calls are the routes called so far, in order.
func (b *Broker) Calls() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.calls)
}

// Count is how often a route was called.
func (b *Broker) Count(route string) int {
	n := 0
	for _, call := range b.Calls() {
		if call == route {
			n++
		}
	}
	return n
}

// Sessions are those made so far, by ID.
func (b *Broker) Sessions() map[string]Session {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[string]Session{}
	for _, s := range b.sessions {
		c := *s
		c.Leases = slices.Clone(s.Leases)
		c.Reports = slices.Clone(s.Reports)
		c.Watching = len(s.events)
		out[s.ID] = c
	}
	return out
}

// EndAll ends every session, as the broker may.
func (b *Broker) EndAll(reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		s.finish(reason)
	}
}

// Renewed tells the watchers of every session of a lease's new expiry.
func (b *Broker) Renewed(name string, expires time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		for i := range s.Leases {
			if s.Leases[i].Name != name {
				continue
			}
			s.Leases[i].ExpiresAt = expires
			lease := bare(s.Leases[i])
			s.tell(api.Event{Event: api.EventRenewed, Lease: &lease})
		}
	}
}

// Expiring tells the watchers of every session that a lease nears its end.
func (b *Broker) Expiring(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		for _, lease := range s.Leases {
			if lease.Name == name {
				lease = bare(lease)
				s.tell(api.Event{Event: api.EventExpiring, Lease: &lease})
			}
		}
	}
}

// CutWatches breaks every stream of events.
func (b *Broker) CutWatches() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		for _, events := range s.events {
			close(events)
		}
		s.events = nil
	}
}

// anew gives what stands in for a lease values of its own: the old ones with
// the number of what was replaced by then behind them.
func anew(env []api.Var, n int) []api.Var {
	env = slices.Clone(env)
	for i, v := range env {
		env[i].Value = api.NewValue(secret.FromString(fmt.Sprintf("%s-%d", v.Value.Reveal(), n)))
	}
	return env
}

func (s *Session) finish(reason string) {
	if s.Ended != "" {
		return
	}
	s.Ended = reason
	for i := range s.Leases {
		switch s.Leases[i].Revocability {
		case "expires":
			s.Leases[i].State = "expiring"
		case "static":
			s.Leases[i].State = "disclosed"
		default:
			s.Leases[i].State = "revoked"
		}
	}
	s.tell(api.Event{Event: api.EventEnded, Reason: reason})
}

func (s *Session) tell(event api.Event) {
	for _, events := range s.events {
		events <- event
	}
}

func (b *Broker) discovery(w http.ResponseWriter, _ *http.Request) {
	issuer := b.cfg.Issuer
	if issuer == "" {
		issuer = b.URL
	}
	// A field that this client doesn't know is none of its business.
	answer(w, map[string]any{"issuer": issuer, "token_endpoint": issuer + api.PathToken, "version": "fake", "features": []string{"x"}, "from_the_future": 1})
}

// session lets a call through that proves to hold its session's key.
func (b *Broker) session(next func(w http.ResponseWriter, r *http.Request, s *Session, p proof)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s, p, err := b.authenticate(r)
		if err != nil {
			refuse(w, http.StatusUnauthorized, err.code, err.why)
			return
		}
		b.mu.Lock()
		ended := s.Ended
		b.mu.Unlock()
		if ended != "" {
			refuse(w, http.StatusUnauthorized, api.CodeSessionEnded, "the session has ended")
			return
		}
		next(w, r, s, p)
	}
}

type denial struct{ code, why string }

func (b *Broker) authenticate(r *http.Request) (*Session, proof, *denial) {
	scheme, access, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	p, err := b.proof(r, access)
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sessions[access]
	switch {
	case scheme != api.SchemeDPoP || s == nil:
		return nil, p, &denial{api.CodeInvalidToken, "the access token isn't accepted"}
	case err != nil:
		return nil, p, &denial{api.CodeInvalidDPoP, err.Error()}
	case s.thumbprint != p.thumbprint:
		return nil, p, &denial{api.CodeInvalidToken, "bound to another key"}
	}
	return s, p, nil
}

func (b *Broker) lease(w http.ResponseWriter, r *http.Request, s *Session, p proof) {
	body, err := io.ReadAll(io.LimitReader(r.Body, api.MaxRequest))
	var in api.LeaseRequest
	key := r.Header.Get(api.HeaderIdempotency)
	if err != nil || api.Decode(strings.NewReader(string(body)), api.MaxRequest, &in) != nil || in.Leases == nil || key == "" {
		refuse(w, http.StatusBadRequest, api.CodeInvalidRequest, "the body isn't a lease request")
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.count(p) {
		refuse(w, http.StatusUnauthorized, api.CodeInvalidDPoP, "the proof was used before")
		return
	}
	if before, again := s.replies[key]; again {
		if before != string(body) {
			refuse(w, http.StatusBadRequest, api.CodeInvalidRequest, "another body under this key")
			return
		}
		// The first set ends.
		s.Leases = slices.DeleteFunc(s.Leases, func(l api.Lease) bool { return slices.Contains(s.sets[key], l.ID) })
	}
	s.replies[key] = string(body)
	for _, id := range in.Replaces {
		switch i := slices.IndexFunc(s.Leases, func(l api.Lease) bool { return l.ID == id }); {
		case i < 0:
			refuse(w, http.StatusNotFound, api.CodeNotFound, "no such lease in this session")
			return
		case s.replaced[id] != "" && s.replaced[id] != key || s.Leases[i].State != "active":
			refuse(w, http.StatusConflict, api.CodeInvalidRequest, "a lease to replace isn't active, or was replaced before")
			return
		}
	}
	out, refusal := b.granted(s.Role, in)
	if refusal != nil {
		answerError(w, refusal.Status, refusal)
		return
	}
	if len(in.Replaces) > 0 {
		for i := range out {
			out[i].Env = anew(out[i].Env, len(s.replaced)+1)
		}
	}
	for _, id := range in.Replaces {
		s.replaced[id] = key
	}
	for _, lease := range out {
		s.sets[key] = append(s.sets[key], lease.ID)
	}
	s.Leases = append(s.Leases, out...)
	answer(w, api.Leases{Leases: out})
}

// granted are the leases of a request, all or none.
func (b *Broker) granted(role string, in api.LeaseRequest) ([]api.Lease, *api.Error) {
	var out []api.Lease
	for _, lease := range b.cfg.Roles[role] {
		if len(in.Leases)+len(in.References) > 0 && !slices.Contains(in.Leases, lease.Name) {
			continue
		}
		lease.ID = "l-" + rand.Text()
		lease.State = "active"
		out = append(out, lease)
	}
	for _, name := range in.Leases {
		if !slices.ContainsFunc(out, func(l api.Lease) bool { return l.Name == name }) {
			return nil, &api.Error{Status: http.StatusForbidden, Code: api.CodeAccessDenied, Lease: name, Description: "the RunEnv role doesn't have this lease", RequestID: "r-fake"}
		}
	}
	named, refusal := b.named(in.References)
	return append(out, named...), refusal
}

// bare is a lease without its values.
func bare(l api.Lease) api.Lease {
	l.Env, l.Files, l.Hide = nil, nil, nil
	return l
}

// named are the leases that references name, those to one secret together.
func (b *Broker) named(references []api.Reference) ([]api.Lease, *api.Error) {
	var out []api.Lease
	for _, given := range references {
		r, err := ref.Parse(given.Ref)
		if err != nil {
			return nil, &api.Error{Status: http.StatusBadRequest, Code: api.CodeInvalidRequest, Description: err.Error(), RequestID: "r-fake"}
		}
		name := r.Credential().String()
		secret, granted := b.cfg.References[name]
		if !granted {
			return nil, &api.Error{Status: http.StatusForbidden, Code: api.CodeAccessDenied, Lease: name, Description: "the RunEnv role doesn't grant this reference", RequestID: "r-fake"}
		}
		i := slices.IndexFunc(out, func(l api.Lease) bool { return l.Name == name })
		if i < 0 {
			i = len(out)
			lease := bare(secret)
			lease.ID, lease.Name, lease.State = "l-"+rand.Text(), name, "active"
			out = append(out, lease)
		}
		prefix, all := strings.CutSuffix(given.Variable, "*")
		before := len(out[i].Env) + len(out[i].Files)
		for _, field := range secret.Env {
			v := api.Var{Name: given.Variable, Value: field.Value, Mask: true}
			switch {
			case all:
				v.Name = prefix + strings.ToUpper(field.Name)
			case r.Field != field.Name && (r.Field != "" || len(secret.Env) != 1):
				continue
			}
			if name, isFile := strings.CutSuffix(v.Name, "_FILE"); isFile {
				out[i].Files = append(out[i].Files, api.File{Variable: v.Name, Name: strings.ToLower(name), Value: v.Value, Mask: true})
				continue
			}
			out[i].Env = append(out[i].Env, v)
		}
		if len(out[i].Env)+len(out[i].Files) == before {
			return nil, &api.Error{Status: http.StatusBadGateway, Code: api.CodeProviderNotFound, Lease: name, Description: "the back end has no such field: " + r.Field, RequestID: "r-fake"}
		}
	}
	return out, nil
}

func (b *Broker) renew(w http.ResponseWriter, r *http.Request, s *Session, p proof) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.count(p) {
		refuse(w, http.StatusUnauthorized, api.CodeInvalidDPoP, "the proof was used before")
		return
	}
	for i := range s.Leases {
		if s.Leases[i].ID == r.PathValue("id") {
			if !s.Leases[i].Renewable || s.replaced[s.Leases[i].ID] != "" {
				refuse(w, http.StatusConflict, api.CodeInvalidRequest, "this lease can't be renewed in place; lease it again, with its id in replaces")
				return
			}
			s.Leases[i].ExpiresAt = b.cfg.Now().Add(time.Hour)
			lease := bare(s.Leases[i])
			answer(w, lease)
			return
		}
	}
	refuse(w, http.StatusNotFound, api.CodeNotFound, "no such lease in this session")
}

func (b *Broker) heartbeat(w http.ResponseWriter, _ *http.Request, s *Session, _ proof) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.Heartbeats++
	answer(w, api.Heartbeat{Deadline: b.cfg.Now().Add(time.Minute), HeartbeatSeconds: b.cfg.HeartbeatSeconds})
}

func (b *Broker) watch(w http.ResponseWriter, r *http.Request, s *Session, _ proof) {
	events := make(chan api.Event, 16)
	b.mu.Lock()
	s.events = append(s.events, events)
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		s.events = slices.DeleteFunc(s.events, func(c chan api.Event) bool { return c == events })
	}()
	lines, flush := json.NewEncoder(w), http.NewResponseController(w)
	event := api.Event{Event: api.EventHello}
	for {
		if lines.Encode(event) != nil || flush.Flush() != nil || event.Event == api.EventEnded {
			return
		}
		var open bool
		select {
		case event, open = <-events:
			if !open {
				panic(http.ErrAbortHandler)
			}
		case <-r.Context().Done():
			return
		case <-b.stopped:
			return
		}
	}
}

// report takes what a client did, of an ended session too.
func (b *Broker) report(w http.ResponseWriter, r *http.Request) {
	s, p, denied := b.authenticate(r)
	if denied != nil {
		refuse(w, http.StatusUnauthorized, denied.code, denied.why)
		return
	}
	var in api.Report
	if api.Decode(r.Body, api.MaxReport, &in) != nil || in.Check() != nil {
		refuse(w, http.StatusBadRequest, api.CodeInvalidRequest, "the body isn't a report")
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.count(p) {
		refuse(w, http.StatusUnauthorized, api.CodeInvalidDPoP, "the proof was used before")
		return
	}
	s.Reports = append(s.Reports, in)
	answer(w, struct{}{})
}

func (b *Broker) end(w http.ResponseWriter, r *http.Request) {
	s, byEndToken, denied := b.ending(r)
	if denied != nil {
		refuse(w, http.StatusUnauthorized, denied.code, denied.why)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.ByEndToken = s.Ended == "" && byEndToken
	s.finish("client")
	ended := api.Ended{Leases: []api.Lease{}}
	for _, lease := range s.Leases {
		ended.Leases = append(ended.Leases, bare(lease))
	}
	answer(w, ended)
}

func (b *Broker) ending(r *http.Request) (s *Session, byEndToken bool, denied *denial) {
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, s := range b.sessions {
			if s.end == token {
				return s, true, nil
			}
		}
		return nil, true, &denial{api.CodeInvalidToken, "no session has this end token"}
	}
	s, _, denied = b.authenticate(r)
	return s, false, denied
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(fmt.Sprintf("clienttest: encoding an answer: %T", err))
	}
}

func refuse(w http.ResponseWriter, status int, code, why string) {
	answerError(w, status, &api.Error{Code: code, Description: why, RequestID: "r-fake"})
}

func answerError(w http.ResponseWriter, status int, e *api.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e) // a caller that has gone needs no answer
}
