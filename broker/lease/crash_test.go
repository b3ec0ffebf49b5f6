//go:build crashpoints

package lease_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/broker/store/sqlite"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// folder is a back end whose credentials and logins are files, which outlive
// the process that dies at a crash point.
type folder struct {
	dir string
	now func() time.Time
}

func (f folder) Define(func(any) error) (providers.Definition, error) { return def{}, nil }

func (f folder) Issue(_ context.Context, req providers.Request) (*providers.Credential, error) {
	d := req.Definition.(named).of()
	cred := &providers.Credential{Fields: map[string]secret.Value{"value": secret.FromString("v-" + req.Marker)}, Revocability: d.kind}
	if d.kind == providers.Static {
		return cred, nil
	}
	cred.Handle = secret.FromString("cred-" + req.Marker)
	cred.Expires = f.now().Add(req.TTL)
	return cred, f.write(cred.Handle, cred.Expires)
}

// write makes what works until then.
func (f folder) write(handle secret.Value, until time.Time) error {
	return os.WriteFile(filepath.Join(f.dir, string(handle.Reveal())), []byte(until.Format(time.RFC3339Nano)), 0o600)
}

func (f folder) remove(handle secret.Value) error {
	err := os.Remove(filepath.Join(f.dir, string(handle.Reveal())))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (f folder) Revoke(_ context.Context, handle, _ secret.Value) error { return f.remove(handle) }

func (f folder) Find(_ context.Context, marker string, _ secret.Value) ([]secret.Value, error) {
	if _, err := os.Stat(filepath.Join(f.dir, "cred-"+marker)); err != nil {
		return nil, nil
	}
	return []secret.Value{secret.FromString("cred-" + marker)}, nil
}

// left are the credentials and logins that work, and until when.
func left(t *testing.T, dir string, now time.Time) map[string]time.Time {
	t.Helper()
	found, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	lives := map[string]time.Time{}
	for _, e := range found {
		until, err := time.Parse(time.RFC3339Nano, noted(t, dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if now.Before(until) {
			lives[e.Name()] = until
		}
	}
	return lives
}

// expireOnlyFolder is a folder that can neither revoke nor find.
type expireOnlyFolder struct{ providers.Provider }

// withLogins is one with logins that only expire.
type withLogins struct{ expireOnlyFolder }

func (withLogins) LoginTTL() time.Duration { return 10 * time.Minute }

func (p withLogins) Login(_ context.Context, req providers.LoginRequest) (*providers.Login, error) {
	f := p.Provider.(folder)
	login := &providers.Login{Handle: secret.FromString("login-" + req.Marker), Expires: f.now().Add(p.LoginTTL())}
	return login, f.write(login.Handle, login.Expires)
}

// The kinds of request whose crashes differ.
const (
	byMarker     = "found by its marker"
	expiring     = "under a login that only expires"
	stored       = "a stored value"
	replacingOld = "replacing"
	// Of these the session begins with its leases.
	together       = "found by its marker, with the session"
	togetherLogin  = "under a login that only expires, with the session"
	togetherStored = "a stored value, with the session"
)

func begins(kind string) bool {
	return kind == together || kind == togetherLogin || kind == togetherStored
}

func crashDefinition(r *rig, kind string) lease.Definition {
	return r.def("x", map[string]providers.Revocability{
		byMarker: providers.Revocable, expiring: providers.Expires, stored: providers.Static, replacingOld: providers.Expires,
		together: providers.Revocable, togetherLogin: providers.Expires, togetherStored: providers.Static,
	}[kind])
}

// crashRig is a rig on what the folder holds, at the latest time that its store
// has seen.
func crashRig(t *testing.T, dir, kind string) *rig {
	t.Helper()
	r := newRig(t)
	st, err := sqlite.Open(t.Context(), sqlite.Config{Path: filepath.Join(dir, "store", "broker.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	// What was sealed before the crash is opened after it.
	if r.sealer, err = seal.NewKey([]byte("0123456789abcdef0123456789abcdef")); err != nil {
		t.Fatal(err)
	}
	if seen, err := st.HighWater(t.Context()); err != nil {
		t.Fatal(err)
	} else if seen.After(r.time.t) {
		r.time.t = seen
	}
	r.store, r.verbs = st, st
	back := folder{filepath.Join(dir, "back"), r.time.Now}
	switch kind {
	case byMarker, together:
		r.provider = back
	case expiring, togetherLogin, replacingOld:
		r.provider = withLogins{expireOnlyFolder{back}}
	case stored, togetherStored:
		r.provider = plain{back}
	}
	r.engine = r.newEngine()
	return r
}

// begin makes the session together with its leases.
func (r *rig) begin(n store.NewSession) func(context.Context, []store.Lease, []store.Entry) error {
	return func(ctx context.Context, leases []store.Lease, entries []store.Entry) error {
		n.Leases, n.Entries = leases, entries
		_, err := r.store.CreateSession(ctx, r.time.Now(), n)
		return err
	}
}

// TestCrashChild is the process that dies, and no test by itself.
func TestCrashChild(t *testing.T) {
	dir, kind, point := os.Getenv("CRASH_DIR"), os.Getenv("CRASH_KIND"), os.Getenv("CRASH_POINT")
	if dir == "" {
		return
	}
	r := crashRig(t, dir, kind)
	n := r.newSession()
	s := n.Session
	if !begins(kind) {
		r.create(n)
	}
	note := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	note("session", s.ID)
	d := crashDefinition(r, kind)
	var replaces []string
	if kind == replacingOld {
		old := r.issue(s, d)[0].Lease.ID
		note("old", old)
		r.live(s, 8*time.Minute)
		replaces = []string{old}
	}
	t.Setenv("RUNENV_CRASH_AT", point)
	req := r.request(s, d)
	req.Replaces = replaces
	if begins(kind) {
		req.Begin = r.begin(n)
	}
	_, _ = r.engine.Issue(t.Context(), req)
	r.end(s)
	t.Fatalf("it didn't die at %s", point)
}

// P4 and T14 for what a crash at each step can leave of each kind: it is gone,
// or the store says until when it can live.
func TestT14CrashAtEachStep(t *testing.T) {
	t.Parallel()
	for kind, points := range map[string][]string{
		byMarker:     {"intended", "issued", "active", "session-ended", "leases-revoked"},
		expiring:     {"intended", "logged-in", "login-recorded", "issued", "active", "session-ended"},
		stored:       {"read", "active", "session-ended"},
		replacingOld: {"intended", "issued", "active"},

		together:       {"intended", "issued", "active", "session-ended", "leases-revoked"},
		togetherLogin:  {"intended", "logged-in", "login-recorded", "issued", "active", "session-ended"},
		togetherStored: {"read", "active", "session-ended"},
	} {
		for _, point := range points {
			t.Run(kind+"/"+point, func(t *testing.T) {
				t.Parallel()
				crashAt(t, kind, point)
			})
		}
	}
}

func crashAt(t *testing.T, kind, point string) {
	dir := t.TempDir()
	for _, sub := range []string{"store", "back"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashChild$")
	child.Env = append(os.Environ(), "CRASH_DIR="+dir, "CRASH_KIND="+kind, "CRASH_POINT="+point)
	out, err := child.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended with %v:\n%s", err, out)
	}
	r := crashRig(t, dir, kind)
	s, err := r.store.Session(t.Context(), noted(t, dir, "session"))
	if kind == togetherStored && point == "read" {
		// Neither was there yet, and nothing was handed out.
		if !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the session is %+v, %v, want none", s, err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Restart(t.Context(), r.time.Now()); err != nil {
		t.Fatal(err)
	}
	r.time.add(s.HeartbeatTimeout) // the job is gone too
	r.step(s)
	r.time.add(2 * time.Minute) // claims have lapsed
	r.step(s)

	rows, err := r.store.Leases(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if !row.State.Terminal() && (row.State != store.Expiring || row.DiesBy.IsZero()) {
			t.Errorf("%s %s is %s, dies by %v", row.Name, row.ID, row.State, row.DiesBy)
		}
	}
	for name, until := range left(t, filepath.Join(dir, "back"), r.time.Now()) {
		what, marker, _ := strings.Cut(name, "-")
		i := slices.IndexFunc(rows, func(row store.Lease) bool { return row.Marker == marker })
		if i < 0 || kind == byMarker || kind == together {
			t.Errorf("%s is left", name)
			continue
		}
		if row := rows[i]; row.State != store.Expiring || row.DiesBy.Before(until) || row.IsLogin != (what == "login") {
			t.Errorf("%s lives until %v, and its row is %s and dies by %v", name, until, row.State, row.DiesBy)
		}
	}
	if kind == stored || kind == togetherStored {
		disclosed := slices.Contains(r.entries(s.ID), "lease.disclosed")
		if disclosed != (point != "read") || disclosed != (r.states(s) == "x=disclosed") {
			t.Errorf("rows are %q, the log says %v", r.states(s), r.entries(s.ID))
		}
	}
	if kind == replacingOld {
		old := r.row(noted(t, dir, "old"))
		replaced := slices.Contains(r.entries(old.ID), "lease.replaced")
		if replaced != (point == "active") || replaced != (old.ReplacedBy != "") {
			t.Errorf("replaced by %q, the log says %v", old.ReplacedBy, r.entries(old.ID))
		}
	}
}

func noted(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
