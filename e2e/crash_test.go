package e2e_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/broker/store/sqlite"
	"github.com/runenv/action/e2e/harness"
)

// Bounds of the sites where the broker dies: short, so that they can be seen
// to hold.
const (
	crashHeartbeat = 4 * time.Second
	crashLogin     = 20 * time.Second // of a login at Vault that nobody recorded
	crashSlack     = 6 * time.Second  // to restart, to claim, to end
)

// issuing and ending are the points at which the broker of build tag
// crashpoints kills itself, in their order.
var (
	issuing = []string{"intended", "logged-in", "login-recorded", "issued", "active"}
	ending  = []string{"session-ended", "leases-revoked", "logged-out"}
)

// The job is lost together with the broker: only the broker's own store says
// what there is to end.
func TestT14BrokerDiesAtEachStepAndTheJobWithIt(t *testing.T) {
	t.Parallel()
	c := newComponents(t)
	for _, point := range slices.Concat(issuing, ending) {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			s := c.newSite(t, plan{crashAt: point, heartbeat: crashHeartbeat, tokenTTL: crashLogin})
			r := s.launch(t, order{script: tell})
			s.dies(t, r)
			r.killAll(t)
			if point == "issued" || point == "active" {
				if len(s.users(t)) == 0 {
					t.Fatal("the broker died too late or too early: there is no database user to be left behind")
				}
			}
			s.broker.Env = nil
			s.broker.Restart(t)
			s.noUsers(t, crashHeartbeat+crashSlack, "the broker's restart")
			s.noLogins(t, crashLogin+crashSlack)
			s.settled(t)
		})
	}
}

// The job goes on: its client repeats what got no answer.
func TestT14BrokerDiesAtEachStepAndTheJobGoesOn(t *testing.T) {
	t.Parallel()
	c := newComponents(t)
	for _, point := range slices.Concat(issuing, ending) {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			s := c.newSite(t, plan{front: true, crashAt: point, heartbeat: crashHeartbeat, tokenTTL: crashLogin})
			// What the client repeats arrives once the broker is back, however
			// long that takes here: a client gives up after some seconds.
			died, back := s.broker.Ended(), make(chan struct{})
			s.front.Meddle(func(r *http.Request) harness.Fault {
				select {
				case <-died:
					if strings.HasPrefix(r.URL.Path, "/v1/") {
						return harness.Fault{Hold: back}
					}
				default:
				}
				return harness.Fault{}
			})
			r := s.launch(t, order{script: tell + hold + `; exit 7`})
			if slices.Contains(ending, point) {
				r.listen(t)
				r.release()
			}
			s.dies(t, r)
			s.broker.Env = nil
			s.broker.Restart(t)
			close(back)
			if slices.Contains(issuing, point) {
				r.listen(t)
				s.alive(t, r)
				r.release()
			}
			if got := r.status(t, 10*time.Second); got != 7 {
				t.Errorf("runenv run ends with %d, want the command's own 7", got)
			}
			s.noUsers(t, 2*time.Second, "the command's end")
			s.noLogins(t, crashLogin+crashSlack)
			s.settled(t)
		})
	}
}

// A broker killed under a running command finds it again.
func TestT14BrokerKilledWhileTheCommandRuns(t *testing.T) {
	t.Parallel()
	s := newComponents(t).newSite(t, plan{heartbeat: 2 * crashHeartbeat, dbTTL: 15 * time.Second})
	r := s.start(t, order{script: tell + hold + `; exit 7`})
	s.broker.Kill()
	s.broker.Restart(t)
	// Longer than the grace after a restart: the client's heartbeats count.
	s.stays(t, r, 2*crashHeartbeat+2*time.Second)
	r.release()
	if got := r.status(t, 10*time.Second); got != 7 {
		t.Errorf("runenv run ends with %d, want the command's own 7", got)
	}
	s.gone(t, r, 2*time.Second, "the command's end")
	s.settled(t)
}

// stays fails the test if the run's user goes within a time.
func (s *site) stays(t *testing.T, r *run, during time.Duration) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(during); time.Now().Before(end); <-tick.C {
		if len(s.watch.Users(t, r.user)) == 0 {
			t.Fatalf("the user is gone %v before the end of a time in which it must live", time.Until(end))
		}
	}
	s.alive(t, r)
}

// dies waits until the broker has killed itself.
func (s *site) dies(t *testing.T, r *run) {
	t.Helper()
	select {
	case <-s.broker.Ended():
	case <-time.After(30 * time.Second):
		t.Fatalf("the broker didn't reach its crash point; runenv says:\n%s", r.stderr)
	}
}

// killAll ends the whole job, guardian and all, as a lost machine does.
func (r *run) killAll(t *testing.T) {
	t.Helper()
	for _, pid := range childrenOf(t, r.cmd.Process.Pid) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
	r.signal(t, syscall.SIGKILL)
}

// noLogins waits until Vault has no token of this site's.
func (s *site) noLogins(t *testing.T, within time.Duration) {
	t.Helper()
	begin := time.Now()
	harness.Eventually(t, within, "Vault has no login of the broker's left", func() bool { return s.logins(t) == 0 })
	t.Logf("no login was left %v later", time.Since(begin).Round(time.Millisecond))
}

// logins counts the tokens that the site's auth mount gave and that live.
func (s *site) logins(t *testing.T) int {
	t.Helper()
	list, err := s.vault.Client.Logical().ListWithContext(t.Context(), "auth/token/accessors")
	if err != nil {
		t.Fatal(err)
	}
	if list == nil {
		return 0
	}
	n := 0
	accessors, _ := list.Data["keys"].([]any)
	for _, accessor := range accessors {
		token, err := s.vault.Client.Auth().Token().LookupAccessorWithContext(t.Context(), fmt.Sprint(accessor))
		if err == nil && strings.HasPrefix(fmt.Sprint(token.Data["path"]), "auth/"+s.mount+"/") {
			n++
		}
	}
	return n
}

// settled checks what the broker knows when all is over: the log verifies, and
// each row has come to its end or has a bound.
func (s *site) settled(t *testing.T) {
	t.Helper()
	st, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(s.broker.Dir, "broker.db"), ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	var sessions []string
	// An export ends with the latest checkpoint, and those come twice a second.
	harness.Eventually(t, 5*time.Second, "a session is in the audit log", func() bool {
		for _, r := range s.records(t) {
			if r.Event == "session.created" {
				sessions = append(sessions, r.Session)
			}
		}
		return len(sessions) > 0
	})
	for _, id := range sessions {
		var rows []store.Lease
		harness.Eventually(t, 10*time.Second, "each row of the session has an end or a bound", func() bool {
			rows, err = st.Leases(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return !slices.ContainsFunc(rows, func(l store.Lease) bool { return !l.State.Terminal() && !bounded(l) })
		})
		for _, l := range rows {
			t.Logf("%s of %s: %s, dies by %v", l.Name, id, l.State, l.DiesBy.Format(time.TimeOnly))
		}
	}
}

// bounded: the row waits for nothing but its time.
func bounded(l store.Lease) bool { return l.State == store.Expiring && !l.DiesBy.IsZero() }
