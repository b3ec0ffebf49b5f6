package brokercli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/providers"
)

// lend makes a session with one active lease that only expires.
func lend(t *testing.T, s store.Store, session, lease string) {
	t.Helper()
	now := time.Now()
	entry, err := audit.Record{Time: now, Event: "session.created", Session: session}.Entry()
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.CreateSession(t.Context(), now, store.NewSession{
		Session: store.Session{
			ID: session, Role: "prod", Project: "shop-api", Issuer: "github", Job: session, Thumbprint: session, AccessHash: []byte("a" + session), EndHash: []byte("e" + session),
			CreatedAt: now, HardEnd: now.Add(time.Hour), Deadline: now.Add(time.Hour), HeartbeatTimeout: time.Hour,
		},
		Proof: store.Proof{Thumbprint: session, JTI: "p", Expires: now.Add(time.Minute)}, Limit: 1,
		Token:   store.Token{Issuer: "github", JTI: session, Expires: now.Add(time.Minute), Body: []byte("b")},
		Entries: []store.Entry{entry}, EndedEntry: entry,
	})
	if err != nil {
		t.Fatal(err)
	}
	row := store.Lease{
		ID: lease, Name: "deploy", Provider: "local", Revocability: string(providers.Expires), State: store.Issuing,
		Marker: "runenv-" + lease, NextAt: now.Add(time.Hour), DiesBy: now.Add(time.Hour),
	}
	if err := s.Intend(t.Context(), now, store.Intended{Session: session, Leases: []store.Lease{row}, Limit: 5}); err != nil {
		t.Fatal(err)
	}
	done, err := s.Advance(t.Context(), now, []store.Change{{
		Lease: lease, From: []store.State{store.Issuing}, To: store.Active, NextAt: now.Add(time.Hour), NeedsLive: true, Else: store.Expiring, Entries: []store.Entry{entry},
	}})
	if err != nil || done[0] != nil {
		t.Fatal(err, done)
	}
}

const local2 = "providers:\n  local: {type: static}\n"

func TestLeasesList(t *testing.T) {
	t.Parallel()
	path, env, w := onDisk(t, local2)
	lend(t, w.store, "s-1", "l-1")
	lend(t, w.store, "s-2", "l-2")
	list := func(args ...string) string {
		t.Helper()
		env.Stdout.(*bytes.Buffer).Reset()
		if code := Run(append([]string{"leases", "list", "--config", path}, args...), env); code != 0 {
			t.Fatalf("status %d: %s", code, env.Stderr)
		}
		return env.Stdout.(*bytes.Buffer).String()
	}
	all := list()
	if lines := strings.Split(all, "\n"); len(lines) != 4 || strings.Join(strings.Fields(lines[1])[:4], " ") != "deploy local active expires" || !strings.HasSuffix(lines[2], "l-2") {
		t.Errorf("list prints\n%s", all)
	}
	if one := list("--session", "s-2"); strings.Contains(one, "l-1") || !strings.Contains(one, "l-2") {
		t.Errorf("list of a session prints\n%s", one)
	}
	var got leaseJSON
	if err := json.Unmarshal([]byte(list("--session", "s-1", "--json")), &got); err != nil || got.ID != "l-1" || got.State != "active" || got.Role != "prod" || got.Project != "shop-api" || got.DiesBy.IsZero() {
		t.Errorf("list --json = %+v, %v", got, err)
	}
}

// A provider that can't cut off says so, and the status does.
func TestContainSaysWhatItCant(t *testing.T) {
	t.Parallel()
	path, env, w := onDisk(t, local2)
	lend(t, w.store, "s-1", "l-1")
	for _, flags := range [][]string{nil, {"--apply"}, {"--apply", "--json"}} {
		code := Run(append([]string{"leases", "contain", "--config", path, "--session", "s-1"}, flags...), env)
		if code != 1 || !strings.Contains(env.Stderr.(*bytes.Buffer).String(), `at provider "local": it has no way to cut off what it can't revoke`) {
			t.Errorf("contain %q = %d and %s", flags, code, env.Stderr)
		}
	}
}

func TestPrintSteps(t *testing.T) {
	t.Parallel()
	const arn = "arn:aws:iam::111122223333:role/deploy"
	step := providers.Containment{Target: arn, Policy: "{\n\t\"Version\": \"2012\x1b[2J\"\n}\n", Undo: "aws iam delete-role-policy"}
	done := step
	done.Done = true
	for _, tt := range []struct {
		name  string
		steps []providers.Containment
		apply bool
		want  string
	}{
		{"a dry run", []providers.Containment{step}, false, "would be put on " + arn + ":\n  {\n    \"Version\": \"2012 [2J\"\n  }\nundo: aws iam delete-role-policy\n\nnothing was done; --apply does it\n"},
		{"applied", []providers.Containment{done}, true, "is now on " + arn + ":\n  {\n    \"Version\": \"2012 [2J\"\n  }\nundo: aws iam delete-role-policy\n\n"},
		{"in part", []providers.Containment{step}, true, "couldn't be put on " + arn + ":\n  {\n    \"Version\": \"2012 [2J\"\n  }\nundo: aws iam delete-role-policy\n\n"},
		{"none", nil, true, "nothing to cut off: the session has no live credential that can't be revoked\n"},
	} {
		var b bytes.Buffer
		if err := printSteps(&b, tt.steps, tt.apply); err != nil || b.String() != tt.want {
			t.Errorf("%s: it prints %q, %v, want %q", tt.name, b.String(), err, tt.want)
		}
	}
}
