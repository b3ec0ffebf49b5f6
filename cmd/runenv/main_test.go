package main

import (
	"bytes"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client/clienttest"
	"github.com/runenv/action/internal/devissuer"
	"github.com/runenv/action/secret"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"runenv":   main,
		"child":    child,
		"statusof": statusof,
		"waitfor":  waitFor,
	})
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			// Else the race detector keeps each process for a second at its end.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			env.Values[worldKey{}] = &world{before: map[string]int{}}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"broker":  brokerCmd,
			"github":  githubCmd,
			"gitlab":  gitlabCmd,
			"status":  statusCmd,
			"await":   awaitCmd,
			"signal":  signalCmd,
			"runner":  runnerCmd,
			"entries": entriesCmd,
		},
	})
}

// world is what a script started in this process.
type world struct {
	broker *clienttest.Broker
	issuer *devissuer.Issuer
	before map[string]int // calls of a route when it last got a fault
	held   chan struct{}  // closed to let a held call pass
}

type worldKey struct{}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

func lease(name, revocability string, expires time.Duration, env ...api.Var) api.Lease {
	l := api.Lease{Name: name, Provider: "fake", Revocability: revocability, Env: env}
	if expires != 0 {
		l.ExpiresAt = time.Now().Add(expires)
	}
	return l
}

func envVar(name, value string) api.Var {
	return api.Var{Name: name, Value: api.NewValue(secret.FromString(value)), Mask: true}
}

func unmasked(name, value string) api.Var {
	v := envVar(name, value)
	v.Mask = false
	return v
}

// roles are those of every script's broker. The values stand in the scripts.
func roles() map[string][]api.Lease {
	public := unmasked("DB_HOST", "db.example.com")
	return map[string][]api.Lease{
		"demo": {
			lease("db", "revocable", time.Hour, envVar("DB_PASSWORD", "correct-horse-battery"), public),
			lease("npm", "static", 0, envVar("NPM_TOKEN", "npm-static-value")),
			lease("aws", "expires", time.Hour, envVar("AWS_SESSION_TOKEN", "aws-session-value")),
		},
		"cloud": {
			lease("deploy", "expires", time.Hour, envVar("AWS_ACCESS_KEY_ID", "aws-key-id-0"), envVar("AWS_SECRET_ACCESS_KEY", "aws-secret-key-0"), envVar("AWS_SESSION_TOKEN", "aws-session-value")),
			lease("google", "expires", time.Hour, envVar("CLOUDSDK_AUTH_ACCESS_TOKEN", "google-access-token")),
			lease("db", "revocable", time.Hour, envVar("DB_USER", "u-7f3a9c"), envVar("DB_PASSWORD", "correct-horse-battery")),
			lease("npm", "static", 0, envVar("NPM_TOKEN", "npm-static-value")),
		},
		"lines": {lease("key", "revocable", time.Hour, envVar("KEY", "first line of it\nsecond line % \"of\" it\n"))},
		"short": {lease("pin", "revocable", time.Hour, envVar("PIN", "1234"))},
		"easy": {
			lease("pin", "static", 0, envVar("PIN", "493817"), envVar("PASSWORD", "true-true")),
			lease("user", "static", 0, unmasked("DB_USER", "postgres"), envVar("DB_URL", "https://db.example.com")),
		},
		"weak":  {lease("both", "static", 0, envVar("PIN", "1234"), envVar("PASSWORD", "true-true"))},
		"parts": {hiding(lease("url", "static", 0, envVar("DB_URL", "postgres://app:inner-password-1@db/shop")), "inner-password-1")},
		"brief": {lease("aws", "expires", 2*time.Second, envVar("AWS_SESSION_TOKEN", "aws-session-value"))},
		"nul":   {lease("bad", "revocable", time.Hour, envVar("BAD", "a\x00bcdefgh"))},
		"huge":  {lease("big", "revocable", time.Hour, envVar("BIG", strings.Repeat("0123456789abcdef", 1<<16)))},
		"path":  {lease("evil", "revocable", time.Hour, envVar("PATH", "/tmp/evil-dir"))},
	}
}

// hiding adds a value that stands only within others.
func hiding(l api.Lease, value string) api.Lease {
	l.Hide = []api.Value{api.NewValue(secret.FromString(value))}
	return l
}

// references are the secrets that every role may have, with their fields.
func references() map[string]api.Lease {
	return map[string]api.Lease{
		"vault://secret/ci/npm":     lease("", "static", 0, envVar("token", "npm-static-value"), envVar("url", "https://npm.example.com")),
		"vault://database/creds/ro": lease("", "revocable", time.Hour, envVar("username", "u-7f3a9c"), envVar("password", "correct-horse-battery")),
		"gcp-sm://shop-1/token#7":   lease("", "static", 0, envVar("value", "gcp-static-value")),
	}
}

// broker start [-tls] [-issuer URL] [-hard-end D]: a fake for this script,
// named in RUNENV_BROKER (and RUNENV_CA_FILE)
// broker next ROUTE FAULT [ARGUMENT...]: refuse STATUS CODE [RETRY-AFTER], cut,
// lose, stall, hold
// broker release: serves the call that is held
// broker expiring LEASE: tells that it nears its end
// broker end-all REASON
// broker stop
// broker sessions, broker reports: prints a line for each
func brokerCmd(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	if neg || len(args) == 0 {
		ts.Fatalf("usage: broker start|next|end-all|stop|sessions")
	}
	switch verb, args := args[0], args[1:]; verb {
	case "start":
		cfg := clienttest.Config{Roles: roles(), References: references()}
		f := flag.NewFlagSet("broker start", flag.ContinueOnError)
		f.BoolVar(&cfg.TLS, "tls", false, "")
		f.StringVar(&cfg.Issuer, "issuer", "", "")
		f.DurationVar(&cfg.HardEnd, "hard-end", 0, "")
		ts.Check(f.Parse(args))
		w.broker = clienttest.Start(cfg)
		ts.Defer(w.broker.Close)
		ts.Setenv("RUNENV_BROKER", w.broker.URL)
		if cfg.TLS {
			ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.broker.Certificate})
			ts.Check(os.WriteFile(ts.MkAbs("ca.pem"), ca, 0o600))
			ts.Setenv("RUNENV_CA_FILE", ts.MkAbs("ca.pem"))
		}
	case "next":
		fault, ok := map[string]clienttest.Fault{"cut": clienttest.Cut, "lose": clienttest.Lose, "stall": clienttest.Stall(make(chan struct{}))}[args[1]]
		switch args[1] {
		case "hold":
			held := make(chan struct{})
			w.held = held
			fault, ok = func(rw http.ResponseWriter, r *http.Request, serve http.Handler) {
				<-held
				serve.ServeHTTP(rw, r)
			}, true
		case "refuse":
			code, err := strconv.Atoi(args[2])
			ts.Check(err)
			fault, ok = clienttest.Refuse(code, args[3], strings.Join(args[4:], "")), true
		}
		if !ok {
			ts.Fatalf("no fault %q", args[1])
		}
		w.before[args[0]] = w.broker.Count(args[0])
		w.broker.Next(args[0], fault)
	case "release":
		close(w.held)
	case "expiring":
		w.broker.Expiring(args[0])
	case "end-all":
		w.broker.EndAll(args[0])
	case "stop":
		gone := clienttest.Start(clienttest.Config{})
		gone.Close()
		ts.Setenv("RUNENV_BROKER", gone.URL)
	case "sessions":
		var lines []string
		for _, s := range w.broker.Sessions() {
			by := "proof"
			if s.ByEndToken {
				by = "end token"
			}
			names := []string{}
			for _, l := range s.Leases {
				names = append(names, l.Name+"="+l.State)
			}
			lines = append(lines, fmt.Sprintf("role %s: ended %q by %s: %s\n", s.Role, s.Ended, by, strings.Join(names, " ")))
		}
		slices.Sort(lines)
		_, err := fmt.Fprint(ts.Stdout(), strings.Join(lines, ""))
		ts.Check(err)
	case "reports":
		for _, s := range w.broker.Sessions() {
			for _, r := range s.Reports {
				_, err := fmt.Fprintf(ts.Stdout(), "files=%s scan=%s ignore=%q hits=%d\n", r.Files, r.Scan, r.ScanIgnore, r.ScanHits)
				ts.Check(err)
			}
		}
	default:
		ts.Fatalf("no verb %q", verb)
	}
}

func (w *world) startIssuer(ts *testscript.TestScript, claims map[string]any) {
	srv := httptest.NewUnstartedServer(nil)
	issuer, err := devissuer.New(devissuer.Config{URL: "http://" + srv.Listener.Addr().String(), Claims: claims})
	ts.Check(err)
	srv.Config.Handler = issuer
	srv.Start()
	ts.Defer(srv.Close)
	w.issuer = issuer
}

func claimsOf(ts *testscript.TestScript, args []string) map[string]any {
	claims := map[string]any{}
	for _, arg := range args {
		name, value, ok := strings.Cut(arg, "=")
		if !ok {
			ts.Fatalf("%q isn't claim=value", arg)
		}
		claims[name] = value
	}
	return claims
}

// github [claim=value...]: this script runs as a GitHub job.
func githubCmd(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	w.startIssuer(ts, claimsOf(ts, args))
	for _, kv := range w.issuer.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		ts.Setenv(name, value)
	}
	ts.Setenv("GITHUB_ACTIONS", "true")
}

// gitlab [claim=value...]: this script runs as a GitLab job. The token is for
// the broker that runs already.
func gitlabCmd(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	w.startIssuer(ts, nil)
	token, err := w.issuer.GitLabToken(ts.Getenv("RUNENV_BROKER"), claimsOf(ts, args))
	ts.Check(err)
	ts.Setenv("RUNENV_ID_TOKEN", token)
	ts.Setenv("GITLAB_CI", "true")
}

// status N COMMAND...: like exec, for an exact exit status.
func statusCmd(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// await file NAME | text NAME TEXT | call ROUTE | watching | ended: waits for
// what another process brings about; for a call after the route's last fault.
func awaitCmd(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	var done func() bool
	switch args[0] {
	case "file":
		done = func() bool { _, err := os.Stat(ts.MkAbs(args[1])); return err == nil }
	case "text":
		done = func() bool {
			content, err := os.ReadFile(ts.MkAbs(args[1]))
			return err == nil && bytes.Contains(content, []byte(args[2]))
		}
	case "call":
		done = func() bool { return w.broker.Count(args[1]) > w.before[args[1]] }
	case "watching":
		done = func() bool {
			for _, s := range w.broker.Sessions() {
				if s.Watching > 0 {
					return true
				}
			}
			return false
		}
	case "ended":
		done = func() bool {
			for _, s := range w.broker.Sessions() {
				if s.Ended == "" {
					return false
				}
			}
			return true
		}
	default:
		ts.Fatalf("nothing called %q can be awaited", args[0])
	}
	tick, limit := time.NewTicker(2*time.Millisecond), time.NewTimer(30*time.Second)
	defer tick.Stop()
	defer limit.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit.C:
			ts.Fatalf("%v: waited for 30 s", args)
		}
	}
}

// signal INT|TERM|KILL NAME: to the command that statusof NAME runs.
func signalCmd(ts *testscript.TestScript, _ bool, args []string) {
	sig, ok := map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}[args[0]]
	if !ok {
		ts.Fatalf("no signal %q", args[0])
	}
	pid, err := strconv.Atoi(ts.ReadFile(args[1] + ".pid"))
	ts.Check(err)
	process, err := os.FindProcess(pid)
	ts.Check(err)
	ts.Check(process.Signal(sig))
}

// statusof NAME COMMAND... runs a command, and leaves its process id, output
// and status in NAME.pid, NAME.out, NAME.err and NAME.status.
func statusof() {
	name := os.Args[1]
	cmd := exec.Command(os.Args[2], os.Args[3:]...)
	out, err := os.Create(name + ".out")
	check(err)
	errs, err := os.Create(name + ".err")
	check(err)
	cmd.Stdout, cmd.Stderr = out, errs
	check(cmd.Start())
	leave(name+".pid", strconv.Itoa(cmd.Process.Pid))
	_ = cmd.Wait() // its status is what counts
	leave(name+".status", fmt.Sprintln(cmd.ProcessState.ExitCode()))
}

// leave makes a file that is whole from its first moment.
func leave(name, content string) {
	check(os.WriteFile(name+".tmp", []byte(content), 0o600))
	check(os.Rename(name+".tmp", name))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0])+":", err)
		os.Exit(99)
	}
}
