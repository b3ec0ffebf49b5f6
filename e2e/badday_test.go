package e2e_test

import (
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// at makes a fault of the requests to a path; others pass.
func at(path string, fault func(n int32) harness.Fault) func(*http.Request) harness.Fault {
	var n atomic.Int32
	return func(r *http.Request) harness.Fault {
		if r.URL.Path != path {
			return harness.Fault{}
		}
		return fault(n.Add(1))
	}
}

// always is one fault for every request, once for the first alone.
func always(f harness.Fault) func(int32) harness.Fault { return func(int32) harness.Fault { return f } }

func once(f harness.Fault) func(int32) harness.Fault {
	return func(n int32) harness.Fault {
		if n > 1 {
			return harness.Fault{}
		}
		return f
	}
}

const vaultSays = `{"errors":["no"]}`

func TestVaultFailsWhileItIssues(t *testing.T) {
	t.Parallel()
	c := newComponents(t)
	const login, creds = "login", "creds"
	for _, tt := range []struct {
		name  string
		step  string
		fault func(int32) harness.Fault
		want  string // in the error; "": the command runs
	}{
		{"login 403", login, always(harness.Fault{Status: 403, Body: vaultSays}), "the back end refused"},
		{"login 412 once", login, once(harness.Fault{Status: 412, Body: vaultSays}), ""},
		{"login 412", login, always(harness.Fault{Status: 412, Body: vaultSays}), "the back end can't be reached"},
		{"login 500", login, always(harness.Fault{Status: 500, Body: vaultSays}), "the back end can't be reached"},
		{"login not answered", login, always(harness.Fault{Cut: true}), "the back end can't be reached"},
		{"login's answer lost once", login, once(harness.Fault{CutAnswer: true}), ""},
		{"creds 403", creds, always(harness.Fault{Status: 403, Body: vaultSays}), "the back end refused"},
		{"creds 412 once", creds, once(harness.Fault{Status: 412, Body: vaultSays}), ""},
		{"creds 412", creds, always(harness.Fault{Status: 412, Body: vaultSays}), "the back end can't be reached"},
		{"creds 500", creds, always(harness.Fault{Status: 500, Body: vaultSays}), "the back end can't be reached"},
		{"creds 503 as when sealed", creds, always(harness.Fault{Status: 503, Body: `{"errors":["Vault is sealed"]}`}), "the back end can't be reached"},
		{"creds not answered", creds, always(harness.Fault{Cut: true}), "the back end can't be reached"},
		{"creds' answers lost", creds, always(harness.Fault{CutAnswer: true}), "the back end can't be reached"},
		{"creds' answer lost once", creds, once(harness.Fault{CutAnswer: true}), ""},
		{"creds slow", creds, func(int32) harness.Fault { return harness.Fault{Hold: after(3 * time.Second)} }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := c.newSite(t, plan{back: true})
			path := map[string]string{login: "/v1/auth/" + s.mount + "/login", creds: "/v1/database/creds/" + s.dbRole}[tt.step]
			s.back.Meddle(at(path, tt.fault))
			if tt.want == "" {
				r := s.start(t, order{script: tell + hold + `; exit 7`})
				s.alive(t, r)
				r.release()
				if got := r.status(t, 10*time.Second); got != 7 {
					t.Errorf("runenv run ends with %d, want the command's own 7", got)
				}
			} else {
				r := s.launch(t, order{script: tell + hold})
				if got := r.status(t, 90*time.Second); got != 125 {
					t.Errorf("runenv run ends with %d, want 125", got)
				}
				r.says(t, `runenv: error: exchanging the CI token for role "migrate" and its leases: `, tt.want, "(lease db)", "runenv: hint: ", "runenv-broker audit show r-")
			}
			s.noUsers(t, 3*time.Second, "runenv's end")
		})
	}
}

// after is closed when a time has passed.
func after(d time.Duration) <-chan struct{} {
	done := make(chan struct{})
	time.AfterFunc(d, func() { close(done) })
	return done
}

// The job is cancelled while Vault has made a user and not yet said so.
func TestVaultHangsAndTheJobIsCancelled(t *testing.T) {
	t.Parallel()
	s := newComponents(t).newSite(t, plan{back: true})
	s.back.Meddle(at("/v1/database/creds/"+s.dbRole, always(harness.Fault{HoldAnswer: make(chan struct{})})))
	r := s.launch(t, order{script: tell + hold})
	s.anyUser(t)
	s.cancelled(t, r, syscall.SIGTERM)
	s.noUsers(t, 3*time.Second, "runenv's end")
}

// cancelled signals a run before its command has begun.
func (s *site) cancelled(t *testing.T, r *run, sig syscall.Signal) {
	t.Helper()
	r.signal(t, sig)
	if got := r.status(t, 5*time.Second); got != 128+int(sig) {
		t.Errorf("runenv run ends with %d, want %d", got, 128+int(sig))
	}
}

func TestVaultFailsWhileItRevokes(t *testing.T) {
	t.Parallel()
	c := newComponents(t)
	for _, tt := range []struct {
		name  string
		fault harness.Fault
		hangs bool // until Vault is well again
		stays bool // the user lives until then
	}{
		{"403", harness.Fault{Status: 403, Body: vaultSays}, false, true},
		{"412", harness.Fault{Status: 412, Body: vaultSays}, false, true},
		{"500", harness.Fault{Status: 500, Body: vaultSays}, false, true},
		{"not answered", harness.Fault{Cut: true}, false, true},
		{"answers lost", harness.Fault{CutAnswer: true}, false, false},
		{"hangs", harness.Fault{}, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := c.newSite(t, plan{back: true, dbTTL: 10 * time.Minute})
			well := make(chan struct{})
			if tt.hangs {
				tt.fault.Hold = well
			}
			r := s.start(t, order{script: tell + hold + `; exit 7`, flags: []string{"-v"}})
			s.back.Meddle(func(r *http.Request) harness.Fault {
				if strings.Contains(r.URL.Path, "/revoke") {
					return tt.fault
				}
				return harness.Fault{}
			})
			r.release()
			if got := r.status(t, 5*time.Second); got != 7 {
				t.Errorf("runenv run ends with %d, want the command's own 7", got)
			}
			if tt.stays {
				r.says(t, "is still being ended by the broker")
				s.alive(t, r)
			}
			s.back.Meddle(nil)
			close(well)
			s.gone(t, r, 15*time.Second, "Vault's recovery")
			s.settled(t)
		})
	}
}

// The whole thing with a Vault that is really sealed, frozen and killed.
func TestVaultSealedFrozenAndKilled(t *testing.T) {
	t.Parallel()
	c := newComponents(t)
	s := c.newSite(t, plan{dbTTL: 10 * time.Minute})
	refused := func(what string) {
		t.Helper()
		r := s.launch(t, order{script: tell + hold})
		if got := r.status(t, 90*time.Second); got != 125 {
			t.Errorf("runenv run with Vault %s ends with %d, want 125", what, got)
		}
		r.says(t, `runenv: error: exchanging the CI token for role "migrate" and its leases: `, "the back end can't be reached", "runenv: hint: ")
	}
	ends := func(r *run, what string) {
		t.Helper()
		r.release()
		if got := r.status(t, 5*time.Second); got != 7 {
			t.Errorf("runenv run ends with %d when Vault is %s, want the command's own 7", got, what)
		}
	}
	script := tell + hold + `; exit 7`

	sealed := s.start(t, order{script: script})
	c.vault.Seal(t)
	refused("sealed")
	ends(sealed, "sealed")
	s.alive(t, sealed)
	key := regexp.MustCompile(`Unseal Key: (\S+)`).FindStringSubmatch(c.vault.Log())
	if key == nil {
		t.Fatal("Vault has printed no unseal key")
	}
	if _, err := c.vault.Client.Sys().UnsealWithContext(t.Context(), key[1]); err != nil {
		t.Fatal(err)
	}
	s.gone(t, sealed, 15*time.Second, "Vault was unsealed")

	frozen := s.start(t, order{script: script})
	c.vault.Freeze(t)
	ends(frozen, "frozen")
	c.vault.Thaw(t)
	s.gone(t, frozen, 15*time.Second, "Vault was thawed")
	s.noUsers(t, time.Second, "all runs")
	s.settled(t)

	c.vault.Kill()
	refused("dead")
}

func TestBrokerGoesAwayWhileTheCommandRuns(t *testing.T) {
	t.Parallel()
	c := newComponents(t)
	script := tell + hold + `; exit 7`
	own := func(t *testing.T, r *run) {
		t.Helper()
		r.release()
		if got := r.status(t, 6*time.Second); got != 7 {
			t.Errorf("runenv run ends with %d, want the command's own 7", got)
		}
	}
	t.Run("restarted", func(t *testing.T) {
		t.Parallel()
		s := c.newSite(t, plan{heartbeat: 6 * time.Second})
		r := s.start(t, order{script: script})
		s.broker.Stop()
		s.alive(t, r)
		s.broker.Restart(t)
		s.stays(t, r, 8*time.Second)
		own(t, r)
		s.gone(t, r, 2*time.Second, "the command's end")
		if out := r.stderr.String(); out != "" {
			t.Errorf("runenv says %q, want nothing", out)
		}
	})
	// A minute of three, on a smaller scale.
	t.Run("stopped for a third of its patience", func(t *testing.T) {
		t.Parallel()
		s := c.newSite(t, plan{heartbeat: 18 * time.Second})
		r := s.start(t, order{script: script})
		s.broker.Signal(t, syscall.SIGSTOP)
		s.stays(t, r, 6*time.Second)
		s.broker.Signal(t, syscall.SIGCONT)
		s.stays(t, r, 14*time.Second)
		own(t, r)
		s.gone(t, r, 2*time.Second, "the command's end")
	})
	t.Run("stopped for too long", func(t *testing.T) {
		t.Parallel()
		s := c.newSite(t, plan{heartbeat: 3 * time.Second})
		r := s.start(t, order{script: script})
		s.broker.Signal(t, syscall.SIGSTOP)
		s.stays(t, r, 5*time.Second)
		s.broker.Signal(t, syscall.SIGCONT)
		s.gone(t, r, 10*time.Second, "the missed heartbeats")
		harness.Eventually(t, 10*time.Second, "runenv tells that the session has ended", func() bool {
			return strings.Contains(r.stderr.String(), "runenv: warning: the broker ended the session")
		})
		own(t, r)
		if n := strings.Count(r.stderr.String(), "the broker ended the session"); n != 1 {
			t.Errorf("runenv tells of the session's end %d times, want once:\n%s", n, r.stderr)
		}
	})
	t.Run("stopped when the command ends", func(t *testing.T) {
		t.Parallel()
		s := c.newSite(t, plan{})
		r := s.start(t, order{script: script})
		s.broker.Signal(t, syscall.SIGSTOP)
		own(t, r)
		r.says(t, "runenv: warning: the session isn't ended yet")
		s.alive(t, r)
		s.broker.Signal(t, syscall.SIGCONT)
		s.gone(t, r, 15*time.Second, "the broker goes on") // the guardian's try
	})
	t.Run("gone for good", func(t *testing.T) {
		t.Parallel()
		const life = 15 * time.Second
		s := c.newSite(t, plan{tokenTTL: life})
		r := s.start(t, order{script: script})
		s.broker.Kill()
		s.alive(t, r)
		own(t, r)
		r.says(t, "runenv: warning: the session isn't ended yet", "runenv: hint: ")
		// Nobody is left who could end it: it dies by its login's time.
		s.gone(t, r, life+5*time.Second, "the broker's death")
	})
	t.Run("not there at all", func(t *testing.T) {
		t.Parallel()
		s := c.newSite(t, plan{})
		s.broker.Stop()
		r := s.launch(t, order{script: tell})
		if got := r.status(t, 20*time.Second); got != 125 {
			t.Errorf("runenv run ends with %d, want 125", got)
		}
		r.says(t, "runenv: error: ", s.broker.URL, "runenv: hint: nothing listens there")
	})
}

// reload has the broker read another file and waits for what its log says.
func (s *site) reload(t *testing.T, config, want string) {
	t.Helper()
	before := strings.Count(s.broker.Log(), want)
	s.configure(t, config)
	s.broker.Signal(t, syscall.SIGHUP)
	harness.Eventually(t, 10*time.Second, "the broker's log says "+want, func() bool {
		return strings.Count(s.broker.Log(), want) > before
	})
}

// runs says how a short command under the role ends.
func (s *site) runs(t *testing.T, role string, want int) *run {
	t.Helper()
	r := s.launch(t, order{flags: []string{"--role", role}, script: `exit 7`})
	if got := r.status(t, 30*time.Second); got != want {
		t.Errorf("runenv run with the role %s ends with %d, want %d", role, got, want)
	}
	return r
}

const (
	reloaded = `"reloaded"`
	refused  = "reload refused: what was in force stays"
)

func TestReload(t *testing.T) {
	t.Parallel()
	s := newComponents(t).newSite(t, plan{leases: `word: {provider: vault, path: "secret/ci/word", env: {WORD: word}}`,
		vaultPolicy: `path "secret/data/ci/word" { capabilities = ["read"] }`})
	s.vault.Write(t, "secret/data/ci/word", map[string]any{"data": map[string]any{"word": "a-word-in-a-vault"}})
	first := s.config()

	// A file with one more role counts at once.
	s.runs(t, "more", 125)
	s.plan.roles = `more:
    projects: [shop-api]
    match:
      github: {ref: refs/heads/main, event_name: push}
    leases: [word]`
	s.vault.Write(t, "auth/"+s.mount+"/role/runenv-more", map[string]any{
		"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{s.address()}, "bound_subject": "runenv:role:more",
		"token_policies": []string{s.mount}, "token_ttl": "5m",
	})
	second := s.config()
	s.reload(t, second, reloaded)
	s.runs(t, "more", 7)

	// A faulty one doesn't, and what was in force stays. The log names the
	// key and shows no value of the file.
	s.reload(t, second+"unknown_key: canary-of-the-broken-file\n", refused)
	s.runs(t, "more", 7)
	if strings.Contains(s.broker.Log(), "canary-of-the-broken-file") {
		t.Error("the broker's log shows a value of the faulty file")
	}
	s.reload(t, "\tnot: [yaml\n", refused)
	s.runs(t, "more", 7)

	// A session whose role is taken away gets no more leases.
	session := s.exchange(t, "more")
	if _, err := session.Lease(t.Context(), "word"); err != nil {
		t.Errorf("Lease before the role is removed = %v", err)
	}
	user := s.exchange(t, "migrate")
	leases, err := user.Lease(t.Context(), "db")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := user.Renew(t.Context(), leases[0]); err != nil {
		t.Errorf("Renew before the role is changed = %v", err)
	}
	s.reload(t, first, reloaded)
	if _, err := session.Lease(t.Context(), "word"); !isRefusal(err, "access_denied") {
		t.Errorf("Lease after the role was removed = %v, want access_denied", err)
	}
	s.runs(t, "more", 125)
	s.plan.leasesOf = "word"
	s.reload(t, s.config(), reloaded)
	if _, err := user.Renew(t.Context(), leases[0]); !isRefusal(err, "access_denied") {
		t.Errorf("Renew of a lease that the role no longer has = %v, want access_denied", err)
	}
	// It is left to its end, and ends with its session.
	if len(s.users(t)) != 1 {
		t.Errorf("the site has the users %q, want one", s.users(t))
	}
	if _, err := user.End(t.Context()); err != nil {
		t.Errorf("End after the role was changed = %v", err)
	}
	s.noUsers(t, 2*time.Second, "the session's end")
}

func TestReloadOfTheCertificate(t *testing.T) {
	t.Parallel()
	s := newComponents(t).newSite(t, plan{})
	config := s.config()
	fresh := writeCertificate(t, s.broker.Dir)
	// It may need a new connection after the reload: its stream takes one.
	r := s.start(t, order{flags: []string{"--ca-file", together(t, s.broker.CAFile, fresh)}, script: tell + hold + `; exit 7`})
	ask := s.connected(t)

	if err := s.dial(t, fresh); err == nil {
		t.Fatal("the broker has the new certificate before the reload")
	}
	s.reload(t, config, reloaded)
	if err := s.dial(t, fresh); err != nil {
		t.Errorf("dialling with the new certificate's authority after the reload = %v", err)
	}
	other := s.launch(t, order{flags: []string{"--ca-file", fresh}, script: `exit 7`})
	if got := other.status(t, 20*time.Second); got != 7 {
		t.Errorf("runenv run that trusts the new certificate ends with %d, want 7", got)
	}
	// A connection from before goes on, and so does a run.
	if err := ask(); err != nil {
		t.Errorf("a request over a connection from before = %v", err)
	}
	r.release()
	if got := r.status(t, 10*time.Second); got != 7 {
		t.Errorf("runenv run from before ends with %d, want 7", got)
	}
	s.gone(t, r, 2*time.Second, "the command's end")

	// A certificate without its key changes nothing.
	breakKey(t, s.broker.Dir)
	s.reload(t, config, refused)
	if err := s.dial(t, fresh); err != nil {
		t.Errorf("dialling after a faulty key = %v", err)
	}
}
