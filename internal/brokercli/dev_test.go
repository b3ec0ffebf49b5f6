package brokercli

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/broker/store"
)

func TestOnlyLocal(t *testing.T) {
	t.Parallel()
	if err := onlyLocal(parse(t, local, true), "dev.yaml"); err != nil {
		t.Fatalf("onlyLocal of a local file = %v", err)
	}
	key := strings.Repeat("A", 43) + "="
	tests := []struct {
		name, old, new, want string
	}{
		{"a host of the network", "url: http://127.0.0.1:8098", "url: https://runenv.example.com", "dev.yaml: url: dev keeps to loopback"},
		{"a name for loopback", "url: http://127.0.0.1:8098", "url: https://localhost:8098", "dev.yaml: url: dev keeps to loopback"},
		{"all addresses", "url: http://127.0.0.1:8098", "url: https://0.0.0.0:8098", "dev.yaml: url: dev keeps to loopback"},
		{"TLS", "url: http://127.0.0.1:8098", "url: https://127.0.0.1:8098", "dev.yaml: url: dev keeps to loopback"},
		{"no port", "url: http://127.0.0.1:8098", "url: http://127.0.0.1", "dev.yaml: url: dev keeps to loopback"},
		{"an issuer_url elsewhere", "store:", "issuer_url: https://oidc.example.com\nstore:", "dev.yaml: issuer_url: dev keeps to loopback"},
		{"an open port beside", "store:", "listen: 0.0.0.0:8098\nstore:", "dev.yaml: listen: dev listens where its url says"},
		{"a certificate", "store:", "tls: {cert: a, key: b}\nstore:", "dev.yaml: tls: dev speaks plain http"},
		{"a real issuer", `"http://127.0.0.1:8099"`, "https://token.actions.githubusercontent.com", "broker.yaml:4:3: issuers.github.url: dev keeps to loopback"},
		{"an issuer at the broker's address", `127.0.0.1:8099"`, `127.0.0.1:8098/issuer"`, "broker.yaml:4:3: issuers.github.url: has the broker's address"},
		{"a back end", "local: {type: static}", "local: {type: vault, address: \"http://127.0.0.1:8200\"}", "broker.yaml:6:3: providers.local.type: dev has static providers only"},
		{"a store on disk", `store: "memory:"`, "store: sqlite:broker.db\nseal: " + key, "dev.yaml: store: dev keeps its store in memory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := onlyLocal(parse(t, strings.Replace(local, tt.old, tt.new, 1), true), "dev.yaml")
			problems, ok := errors.AsType[config.Problems](err)
			if !ok || len(problems) != 1 || problems[0].Hint == "" || !strings.HasPrefix(problems[0].String(), tt.want) {
				t.Errorf("onlyLocal = %v, want one problem with a hint: %s", err, tt.want)
			}
		})
	}
}

// The decoder refuses http to elsewhere; this doesn't rely on it.
func TestOnlyLocalOnItsOwn(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"192.0.2.1:8098", "0.0.0.0:8098", "[::]:8098", "localhost:8098"} {
		file := parse(t, local, true)
		file.URL, file.Listen = "http://"+host, host
		if err := onlyLocal(file, "dev.yaml"); err == nil || !strings.Contains(err.Error(), "url: dev keeps to loopback") {
			t.Errorf("onlyLocal of %s = %v", host, err)
		}
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	got := merge(
		[]string{"PATH=/bin", "RUNENV_BROKER=https://real.example.com", "RUNENV_ID_TOKEN=real", "RUNENV_ID_TOKEN_FILE=real", "RUNENV_CA_FILE=ca", "RUNENV_ROLE=demo", "ODD"},
		[]string{"RUNENV_BROKER=http://127.0.0.1:1", "ACTIONS_ID_TOKEN_REQUEST_URL=u"})
	want := []string{"PATH=/bin", "RUNENV_ROLE=demo", "ODD", "RUNENV_BROKER=http://127.0.0.1:1", "ACTIONS_ID_TOKEN_REQUEST_URL=u"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("merge (-want +got):\n%s", diff)
	}
}

// What is printed for a shell is one word to it, whatever a value holds, and
// takes away what would lead runenv to another token.
func TestIntroduce(t *testing.T) {
	t.Parallel()
	env := testEnv("HOME=/root", "RUNENV_ID_TOKEN=c4n4ry")
	d := &devWorld{world: &world{file: parse(t, local, true)}}
	d.introduce(env, []string{"A=it's $(x)", "B=c=d"})
	want := "unset RUNENV_ID_TOKEN\nexport A='it'\\''s $(x)'\nexport B='c=d'\n"
	if got := env.Stdout.(*bytes.Buffer).String(); got != want {
		t.Errorf("stdout gets %q, want %q", got, want)
	}
	told := env.Stderr.(*bytes.Buffer).String()
	if !strings.Contains(told, "the roles: demo; ") || strings.Contains(told, "c4n4ry") {
		t.Errorf("stderr gets %q", told)
	}
}

func TestStory(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	tests := []struct {
		rec  audit.Record
		want string // after the time; empty: not told
	}{
		{audit.Record{Event: "broker.started", Policy: "abc"}, ""},
		{audit.Record{Event: "session.created", Project: "shop-api", Role: "demo"}, "the job of project shop-api proved who it is and got a session for role demo"},
		{audit.Record{Event: "session.created", Role: "demo"}, "a job proved who it is and got a session for role demo"},
		{audit.Record{Event: "session.refused", Role: "demo\n12:00:00 the end", Reason: "claim_mismatch", Detail: "claim ref"}, `a job was refused role "demo\n12:00:00 the end": claim_mismatch (claim ref)`},
		{audit.Record{Event: "session.ended", Reason: "client"}, "the session ended: the command was over; nothing can be leased under it any more"},
		{audit.Record{Event: "session.ended", Reason: "end_token"}, "the session ended: runenv was killed, and its guardian ended it; nothing can be leased under it any more"},
		{audit.Record{Event: "session.ended", Reason: "new_reason"}, "the session ended: new_reason; nothing can be leased under it any more"},
		{audit.Record{Event: "lease.disclosed", LeaseName: "npm"}, "lease npm was handed to that one command (a static value is disclosed, not revoked: it stays valid at its source)"},
		{audit.Record{Event: "lease.refused", LeaseName: "npm", Reason: "not_found"}, "lease.refused npm not_found"},
		{audit.Record{Event: "policy.loaded"}, "policy.loaded"},
	}
	for _, tt := range tests {
		tt.rec.Time = at
		entry, err := tt.rec.Entry()
		if err != nil {
			t.Fatal(err)
		}
		want := tt.want
		if want != "" {
			want = at.Local().Format("15:04:05.000") + "  " + want
		}
		if got := story(entry.Body); got != want {
			t.Errorf("story of %s = %q, want %q", tt.rec.Event, got, want)
		}
	}
	if got := story([]byte("no JSON")); got != "" {
		t.Errorf("story of no record = %q", got)
	}
}

// A session that outlives its command is told, and waited for within bounds.
func TestSettleCountsWhatLives(t *testing.T) {
	t.Parallel()
	d := &devWorld{world: newWorld(t)}
	if live := d.settle(t.Context()); live != 0 {
		t.Errorf("settle of a new world = %d", live)
	}
	now := time.Now()
	created, err := audit.Record{Time: now, Event: "session.created", Session: "s-1"}.Entry()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.store.CreateSession(t.Context(), now, store.NewSession{
		Session: store.Session{
			ID: "s-1", Role: "demo", Issuer: "github", Job: "1", Thumbprint: "t", AccessHash: []byte("a"), EndHash: []byte("e"),
			CreatedAt: now, HardEnd: now.Add(time.Hour), Deadline: now.Add(time.Minute), HeartbeatTimeout: time.Minute,
		},
		Proof: store.Proof{Thumbprint: "t", JTI: "p", Expires: now.Add(time.Minute)}, Limit: 1,
		Token:   store.Token{Issuer: "github", JTI: "j", Expires: now.Add(time.Minute), Body: []byte("b")},
		Entries: []store.Entry{created}, EndedEntry: created,
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if live := d.settle(ctx); live != 1 {
		t.Errorf("settle with a live session = %d, want 1", live)
	}
	env := testEnv()
	if err := d.tell(t.Context(), env, 0); err != nil || !strings.Contains(env.Stderr.(*bytes.Buffer).String(), "sessions still live: 1; ") {
		t.Errorf("tell = %v and says\n%s", err, env.Stderr)
	}
}
