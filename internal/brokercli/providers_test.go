package brokercli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/vault/vaulttest"
)

// onDisk writes a file of serve's and starts its broker once, so that there is
// a store. The broker stays open, as one that runs would.
func onDisk(t *testing.T, parts string) (path string, env Env, w *world) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "store"), 0o700); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "broker.yaml")
	text := strings.NewReplacer("broker.db", "store/broker.db", "%s", parts).Replace(served)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	env = testEnv()
	file, err := load(env, path, mode{})
	if err != nil {
		t.Fatal(told(err))
	}
	if w, err = assemble(t.Context(), env, file, mode{}, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(told(err))
	}
	t.Cleanup(w.close)
	return path, env, w
}

type checksJSON struct {
	Session string
	Checks  []result
}

// A check logs in as a session of each role would, beside the running broker,
// gives the login up, and stands in the log before and after.
func TestProvidersCheck(t *testing.T) {
	t.Parallel()
	back := vaulttest.New(t)
	back.Roles = map[string]vaulttest.Role{"runenv-prod": {Subject: "runenv:role:prod", Audience: back.URL}}
	path, env, w := onDisk(t, `
providers:
  vault: {type: vault, address: "`+back.URL+`"}
  local: {type: static}
leases:
  db: {provider: vault, path: database/creds/ro, env: {DB: username}}
  npm: {provider: local, values: {token: "${env:SEAL}"}, env: {NPM: token}}
roles:
  prod: {projects: [shop-api], match: {github: {ref: refs/heads/main}}, leases: [db, npm]}
  stage: {projects: [shop-api], match: {github: {ref: refs/heads/main}}, leases: [db]}
`)
	code := Run([]string{"providers", "check", "--config", path, "--json"}, env)
	var got checksJSON
	if err := json.Unmarshal(env.Stdout.(*bytes.Buffer).Bytes(), &got); err != nil || code != 1 || len(got.Checks) != 3 {
		t.Fatalf("status %d, %v, %s%s", code, err, env.Stdout, env.Stderr)
	}
	prod, stage, local := got.Checks[0], got.Checks[1], got.Checks[2]
	if prod.Provider != "vault" || prod.Role != "prod" || prod.Result != "ok" || prod.As == "" || prod.Error != "" {
		t.Errorf("the role that Vault trusts: %+v", prod)
	}
	if stage.Role != "stage" || stage.Result != "failed" || stage.Error == "" || stage.Hint == "" {
		t.Errorf("the role that Vault doesn't know: %+v", stage)
	}
	if local.Provider != "local" || local.Result != "skipped" {
		t.Errorf("a provider without a login: %+v", local)
	}
	if n := back.Tokens(); n != 0 {
		t.Errorf("%d logins are left", n)
	}
	logged, err := w.store.EntriesAbout(t.Context(), got.Session, 10)
	if err != nil {
		t.Fatal(err)
	}
	var events []string
	for _, e := range logged {
		var rec audit.Record
		if err := json.Unmarshal(e.Body, &rec); err != nil {
			t.Fatal(err)
		}
		events = append(events, rec.Event+" "+rec.Role+" "+rec.Reason)
		if rec.Event == "provider.checking" && (rec.Marker == "" || time.Until(rec.DiesBy) > providers.LoginTTL) {
			t.Errorf("the record before a login bounds it by %v, marker %q", rec.DiesBy, rec.Marker)
		}
	}
	slices.Sort(events)
	want := []string{"provider.checked prod ", "provider.checked stage failed", "provider.checking prod ", "provider.checking stage "}
	if !slices.Equal(events, want) {
		t.Errorf("the log tells %q, want %q", events, want)
	}

	// For people.
	env.Stdout.(*bytes.Buffer).Reset()
	if code := Run([]string{"providers", "check", "--config", path, "--role", "prod"}, env); code != 0 {
		t.Errorf("a role that is trusted = %d", code)
	}
	text := env.Stdout.(*bytes.Buffer).String()
	if !strings.Contains(text, "\nvault     prod  ok  ") || strings.Contains(text, "stage") {
		t.Errorf("it prints\n%s", text)
	}
}

// A role that has only references to a provider logs in there too.
func TestProvidersListKnowsReferences(t *testing.T) {
	t.Parallel()
	path, env, _ := onDisk(t, `
providers:
  vault: {type: vault, address: https://vault.example.com}
roles:
  prod: {projects: [shop-api], match: {github: {ref: refs/heads/main}}, references: ["vault://secret/{{project.vars.team}}/**"]}
`)
	code := Run([]string{"providers", "list", "--config", path, "--json"}, env)
	var got []entry
	if err := json.Unmarshal(env.Stdout.(*bytes.Buffer).Bytes(), &got); err != nil || code != 0 || len(got) != 1 || !slices.Equal(got[0].Roles, []string{"prod"}) {
		t.Errorf("status %d, %v: %s%s", code, err, env.Stdout, env.Stderr)
	}
}

// P4: what can't be recorded isn't begun.
func TestProvidersCheckRecordsFirst(t *testing.T) {
	t.Parallel()
	back := vaulttest.New(t)
	path, env, _ := onDisk(t, `
providers:
  vault: {type: vault, address: "`+back.URL+`"}
leases:
  db: {provider: vault, path: database/creds/ro, env: {DB: username}}
roles:
  prod: {projects: [shop-api], match: {github: {ref: refs/heads/main}}, leases: [db]}
`)
	c, err := newChecker(t.Context(), env, path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	c.record = func(context.Context, audit.Record) error { return errors.New("no space left") }
	results, err := c.plan("", nil)
	if err != nil {
		t.Fatal(err)
	}
	c.run(t.Context(), results)
	if len(results) != 1 || results[0].Result != "failed" || !strings.Contains(results[0].Error, "recording the check: no space left") {
		t.Errorf("results = %+v", results)
	}
	if n := len(back.Requests("auth/")); n != 0 {
		t.Errorf("%d requests reached the back end", n)
	}
}

// What another broker made, or nobody, isn't passed off as this broker's.
func TestProvidersCheckNeedsTheBrokersSeal(t *testing.T) {
	t.Parallel()
	back := vaulttest.New(t)
	path, env, _ := onDisk(t, "providers:\n  vault: {type: vault, address: \""+back.URL+"\"}\n")
	lookup := env.LookupEnv
	env.LookupEnv = func(name string) (string, bool) {
		if name == "SEAL" {
			return "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", true
		}
		return lookup(name)
	}
	if code := Run([]string{"providers", "check", "--config", path}, env); code != 1 || !strings.Contains(env.Stderr.(*bytes.Buffer).String(), "`seal` must be what the broker runs with") {
		t.Errorf("status %d and %s", code, env.Stderr)
	}
	if n := len(back.Requests("")); n != 0 {
		t.Errorf("%d requests reached the back end", n)
	}
}

// A back end that hangs, or a provider that panics, is a failed check.
func TestProvidersCheckOutlivesTheProvider(t *testing.T) {
	t.Parallel()
	c := &checker{now: time.Now, tokens: func(string) providers.TokenSource { return nil }}
	for name, p := range map[string]checkFunc{
		"panic": func(context.Context) (providers.Checked, error) { panic("c4n4ry") },
		"late": func(ctx context.Context) (providers.Checked, error) {
			if _, ok := ctx.Deadline(); !ok {
				return providers.Checked{}, nil
			}
			return providers.Checked{}, http.ErrHandlerTimeout
		},
	} {
		if _, err := c.ask(t.Context(), &result{provider: p}); err == nil || strings.Contains(err.Error(), "c4n4ry") {
			t.Errorf("%s: ask = %v", name, err)
		}
	}
}

type checkFunc func(context.Context) (providers.Checked, error)

func (f checkFunc) Check(ctx context.Context, _ providers.LoginRequest) (providers.Checked, error) {
	return f(ctx)
}
