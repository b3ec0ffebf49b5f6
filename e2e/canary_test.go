package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/broker/store/sqlite"
	"github.com/runenv/action/e2e/harness"
)

// bodyCanary stands in what a failing back end answers.
const bodyCanary = "back-end-body-canary-7f3a"

// A full run at debug level everywhere, with refusals and failures: what went
// over both wires is recorded, and no secret of it may be in any sink.
func TestT18NoSinkHoldsASecret(t *testing.T) {
	t.Parallel()
	c := newComponents(t)
	s := c.newSite(t, plan{front: true, back: true, dbTTL: 6 * time.Second, roles: `deploy:
    projects: [shop-api]
    match:
      github: {ref: refs/heads/main, event_name: push, environment: production}
    leases: [db]`})
	debug := []string{"--debug", "-v"}

	// A run whose lease is renewed meanwhile, whose output holds the values.
	long := s.start(t, order{flags: debug, script: tell + hold + `; echo "$DB_USER:$DB_PASSWORD"; printf %s "$DB_PASSWORD" | base64; exit 7`})
	s.logged(t, "lease.renewed", 30*time.Second)
	// Another is killed: the guardian ends its session by its end token.
	killed := s.start(t, order{flags: debug, script: tell + hold})
	killed.signal(t, syscall.SIGKILL)
	s.gone(t, killed, 5*time.Second, "the kill")
	long.release()
	if got := long.status(t, 10*time.Second); got != 7 {
		t.Errorf("runenv run ends with %d, want 7", got)
	}
	runs := []*run{long, killed}

	// Refusals: a role that isn't the job's, a lease that the role hasn't.
	refused := func(o order) {
		t.Helper()
		o.flags = append(o.flags, debug...)
		r := s.launch(t, o)
		if got := r.status(t, 60*time.Second); got != 125 {
			t.Errorf("runenv run ends with %d, want 125", got)
		}
		r.says(t, "runenv: error: ")
		runs = append(runs, r)
	}
	refused(order{flags: []string{"--role", "deploy"}, script: hold})
	refused(order{flags: []string{"--lease", "nothing"}, script: hold})
	// A back end that fails and says more than it should, at each step.
	for _, path := range []string{"/v1/auth/" + s.mount + "/login", "/v1/database/creds/" + s.dbRole} {
		for _, status := range []int{http.StatusForbidden, http.StatusInternalServerError} {
			s.back.Meddle(func(r *http.Request) harness.Fault {
				if r.URL.Path == path {
					return harness.Fault{Status: status, Body: `{"errors":["` + bodyCanary + `"]}`}
				}
				return harness.Fault{}
			})
			refused(order{script: hold})
		}
	}
	s.back.Meddle(nil)
	who := s.launch(t, order{direct: true, args: []string{"whoami"}})
	if got := who.status(t, 20*time.Second); got != 0 {
		t.Errorf("runenv whoami ends with %d, want 0", got)
	}
	runs = append(runs, who)
	s.noUsers(t, 10*time.Second, "all runs")
	s.broker.Signal(t, syscall.SIGHUP)
	harness.Eventually(t, 10*time.Second, "the broker has loaded its file again", func() bool {
		return strings.Contains(s.broker.Log(), `"reloaded"`)
	})

	canaries := s.secrets(t, runs)
	scanner := harness.NewScanner(t, canaries...)
	t.Logf("looking for %d secrets", len(canaries))
	for i, r := range runs {
		scanner.Check(t, fmt.Sprintf("standard output of run %d", i), []byte(r.stdout.String()))
		scanner.Check(t, fmt.Sprintf("standard error of run %d", i), []byte(r.stderr.String()))
	}
	if !strings.Contains(long.stdout.String(), "[REDACTED:db]") {
		t.Errorf("the output of the command isn't redacted: %q", long.stdout)
	}
	scanner.Check(t, "broker's log", []byte(s.broker.Log()))
	scanner.Check(t, "audit log", []byte(s.audit(t, "export")))
	for _, id := range s.sessions(t) {
		scanner.Check(t, "shown audit log", []byte(s.audit(t, "show", id)))
	}
	scanner.Check(t, "metrics", s.get(t, "/metrics"))
	scanner.Check(t, "discovery", s.get(t, "/.well-known/runenv"))
	scanner.Check(t, "key set", s.get(t, "/jwks"))
	errors := 0
	for _, e := range s.front.Exchanges() {
		if e.Status >= http.StatusBadRequest {
			errors++
			scanner.Check(t, "body of an error at "+e.Path, e.AnswerBody)
		}
		scanner.Check(t, "header of an answer at "+e.Path, fmt.Append(nil, e.Answer))
	}
	if errors < 6 {
		t.Errorf("%d errors went over the wire, want 6 at least", errors)
	}
	paths, err := filepath.Glob(filepath.Join(s.broker.Dir, "broker.db*"))
	if err != nil || len(paths) == 0 {
		t.Errorf("the store's files = %q, %v", paths, err)
	}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		scanner.Check(t, filepath.Base(path), content)
	}
}

// secrets are those of the site: what was leased, what went over the wires,
// and the broker's own keys.
func (s *site) secrets(t *testing.T, runs []*run) []harness.Canary {
	t.Helper()
	var all []harness.Canary
	counts := map[string]int{}
	add := func(kind, value string) {
		if value == "" || slices.ContainsFunc(all, func(c harness.Canary) bool { return c.Value == value }) {
			return
		}
		counts[kind]++
		all = append(all, harness.Canary{Name: fmt.Sprintf("%s %d", kind, counts[kind]), Value: value})
	}
	// A token's signature makes it one; the rest of it may be told.
	jwt := func(kind, token string) {
		add(kind, token)
		add(kind+"'s signature", token[strings.LastIndexByte(token, '.')+1:])
	}
	for _, r := range runs {
		add("password", r.password)
	}
	for _, e := range s.front.Exchanges() {
		form, _ := url.ParseQuery(string(e.RequestBody))
		if token := form.Get("subject_token"); token != "" {
			jwt("CI token", token)
		}
		if scheme, token, ok := strings.Cut(e.Request.Get("Authorization"), " "); ok {
			add("token of scheme "+scheme, token)
		}
		var answer struct {
			AccessToken string `json:"access_token"`
			EndToken    string `json:"end_token"`
			Leases      []struct {
				Env []struct{ Value []byte }
			}
		}
		if json.Unmarshal(e.AnswerBody, &answer) != nil {
			continue
		}
		add("access token", answer.AccessToken)
		add("end token", answer.EndToken)
		for _, l := range answer.Leases {
			for _, v := range l.Env {
				add("leased value", string(v.Value))
			}
		}
	}
	for _, e := range s.back.Exchanges() {
		add("Vault token", e.Request.Get("X-Vault-Token"))
		var login struct{ JWT string }
		if json.Unmarshal(e.RequestBody, &login) == nil && login.JWT != "" {
			jwt("broker's own token", login.JWT)
		}
		var answer struct {
			Auth *struct {
				ClientToken string `json:"client_token"`
			}
			Data map[string]any
		}
		if json.Unmarshal(e.AnswerBody, &answer) != nil {
			continue
		}
		if answer.Auth != nil {
			add("Vault token", answer.Auth.ClientToken)
		}
		if password, ok := answer.Data["password"].(string); ok {
			add("password at Vault", password)
		}
	}
	for _, kv := range s.ci.Environ {
		if name, value, _ := strings.Cut(kv, "="); strings.HasSuffix(name, "_TOKEN") {
			add("CI's request token", value)
		}
	}
	add("body of the failing back end", bodyCanary)
	s.ownKeys(t, add)
	for _, kind := range []string{"password", "CI token", "access token", "end token", "leased value", "Vault token", "broker's own token", "password at Vault", "CI's request token", "seal", "TLS key", "signing key"} {
		if counts[kind] == 0 && !(kind == "leased value" || kind == "password at Vault") { // known as a password by then
			t.Errorf("no %s was recorded: the search would be blind", kind)
		}
	}
	return all
}

// ownKeys adds the broker's: its seal, its TLS key, and those that it keeps
// sealed in its store.
func (s *site) ownKeys(t *testing.T, add func(kind, value string)) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.broker.Dir, "seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	add("seal", string(key))
	file, err := os.ReadFile(filepath.Join(s.broker.Dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(file)
	add("TLS key", string(block.Bytes))

	sealer, err := seal.NewKey(key)
	if err != nil {
		t.Fatal(err)
	}
	st, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(s.broker.Dir, "broker.db"), ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	keys, err := st.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	opened := 0
	for _, k := range keys {
		for _, field := range fieldsOf(k) {
			if private, err := seal.Open(t.Context(), sealer, field, k.Sealed); err == nil {
				opened++
				add("signing key", string(private))
			}
		}
	}
	if len(keys) == 0 || opened != len(keys) {
		t.Errorf("%d of the %d keys in the store can be opened", opened, len(keys))
	}
}

// fieldsOf are the places that a key may be bound to.
func fieldsOf(k store.Key) []seal.Field {
	return []seal.Field{
		{Table: "keys", Row: k.Purpose + "/" + k.ID, Column: "sealed"},
		{Table: "keys", Row: k.ID, Column: "sealed"},
	}
}

// sessions are the ids of those in the audit log.
func (s *site) sessions(t *testing.T) []string {
	t.Helper()
	var ids []string
	for _, r := range s.records(t) {
		if r.Event == "session.created" {
			ids = append(ids, r.Session)
		}
	}
	return ids
}

// get reads what the broker tells everybody.
func (s *site) get(t *testing.T, path string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.broker.URL+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.broker.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || resp.StatusCode != http.StatusOK || len(body) == 0 {
		t.Fatalf("GET %s: %s, %d bytes, %v", path, resp.Status, len(body), err)
	}
	return body
}
