//go:build unix

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/internal/cli"
	"github.com/runenv/action/internal/devissuer"
	"github.com/runenv/action/internal/guardian"
)

func TestMain(m *testing.M) {
	if guardian.IsGuardian(os.Args) {
		os.Exit(guardian.Main(context.Background()))
	}
	testscript.Main(m, map[string]func(){
		"runenv-broker": main,
		"runenv":        func() { os.Exit(cli.Main(cli.OSEnv())) },
		"child":         child,
		"statusof":      statusof,
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
			env.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"site":    siteCmd,
			"cert":    certCmd,
			"issuer":  issuerCmd,
			"fill":    fillCmd,
			"seal":    sealCmd,
			"replace": replaceCmd,
			"capture": captureCmd,
			"auditor": auditorCmd,
			"serves":  servesCmd,
			"hold":    holdCmd,
			"status":  statusCmd,
			"await":   awaitCmd,
			"signal":  signalCmd,
		},
	})
}

// site NAME...: sets each to a loopback address that is free.
func siteCmd(ts *testscript.TestScript, _ bool, names []string) {
	for _, name := range names {
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
		ts.Check(err)
		ts.Setenv(name, l.Addr().String())
		ts.Check(l.Close())
	}
}

// cert [-expired] [-host HOST]: makes tls.crt and tls.key, for 127.0.0.1 if no
// host is given, and lets runenv trust it.
func certCmd(ts *testscript.TestScript, _ bool, args []string) {
	f := flag.NewFlagSet("cert", flag.ContinueOnError)
	expired := f.Bool("expired", false, "")
	host := f.String("host", "", "")
	ts.Check(f.Parse(args))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "runenv-broker's test"},
		NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	if *expired {
		template.NotAfter = now.Add(-time.Hour)
	}
	if *host != "" {
		template.DNSNames = []string{*host}
	} else {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	ts.Check(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("tls.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("tls.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	ts.Setenv("RUNENV_CA_FILE", ts.MkAbs("tls.crt"))
}

// issuer [claim=value...]: this script runs as a GitHub job. Only its token
// request is served: the broker gets the keys in jwks.json.
func issuerCmd(ts *testscript.TestScript, _ bool, args []string) {
	claims := map[string]any{}
	for _, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		claims[name] = value
	}
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	ts.Check(err)
	url := "https://" + l.Addr().String()
	issuer, err := devissuer.New(devissuer.Config{URL: url, Claims: claims})
	ts.Check(err)
	server := &http.Server{Handler: issuer, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	ts.Defer(func() { _ = server.Close() })
	ts.Check(os.WriteFile(ts.MkAbs("jwks.json"), issuer.JWKS(), 0o600))
	ts.Setenv("ISSUER", url)
	for _, kv := range issuer.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		ts.Setenv(name, strings.Replace(value, "https://", "http://", 1))
	}
}

// seal FILE: makes a seal key.
func sealCmd(ts *testscript.TestScript, _ bool, args []string) {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(base64.StdEncoding.EncodeToString(key)+"\n"), 0o600))
}

// fill FILE NAME...: puts variables in the place of @NAME@.
func fillCmd(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile(args[0])
	for _, name := range args[1:] {
		text = strings.ReplaceAll(text, "@"+name+"@", ts.Getenv(name))
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// replace FILE OLD NEW: once, and OLD must be there.
func replaceCmd(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile(args[0])
	changed := strings.Replace(text, args[1], args[2], 1)
	if changed == text {
		ts.Fatalf("%s doesn't hold %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(changed), 0o600))
}

// capture NAME FILE REGEXP: sets a variable to the last match's group.
func captureCmd(ts *testscript.TestScript, _ bool, args []string) {
	found := regexp.MustCompile(args[2]).FindAllStringSubmatch(ts.ReadFile(args[1]), -1)
	if found == nil {
		ts.Fatalf("%s has nothing like %s", args[1], args[2])
	}
	ts.Setenv(args[0], found[len(found)-1][1])
}

// auditor key NAME URL: sets a variable to a broker's audit key.
// auditor checkpoint FILE: makes a file of the checkpoint in the JSON report
// that was printed last.
func auditorCmd(ts *testscript.TestScript, _ bool, args []string) {
	if args[0] == "checkpoint" {
		var report struct {
			Checkpoint string `json:"checkpoint"`
		}
		ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &report))
		ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(report.Checkpoint), 0o600))
		return
	}
	var discovery api.Discovery
	ts.Check(json.Unmarshal(served(ts, args[2]+api.PathDiscovery), &discovery))
	ts.Setenv(args[1], discovery.AuditKey)
}

// serves FILE URL: makes a file of what the broker serves there.
func servesCmd(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), served(ts, args[1]), 0o600))
}

func served(ts *testscript.TestScript, url string) []byte {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ts.ReadFile("tls.crt")))
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get(url)
	ts.Check(err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	return body
}

// hold ADDRESS: leaves a call there that never ends its body.
func holdCmd(ts *testscript.TestScript, _ bool, args []string) {
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}}
	conn, err := dialer.DialContext(context.Background(), "tcp", args[0])
	ts.Check(err)
	ts.Defer(func() { _ = conn.Close() })
	// The server asks for the body once its handler reads it.
	_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n", api.PathToken, args[0])
	ts.Check(err)
	_, err = io.ReadFull(conn, make([]byte, len("HTTP/1.1 100 Continue")))
	ts.Check(err)
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

// await file NAME | text NAME TEXT [N]: waits until there is a file, or the
// text in it N times.
func awaitCmd(ts *testscript.TestScript, _ bool, args []string) {
	times := 1
	if len(args) > 3 {
		n, err := strconv.Atoi(args[3])
		ts.Check(err)
		times = n
	}
	done := func() bool {
		content, err := os.ReadFile(ts.MkAbs(args[1]))
		return err == nil && (args[0] == "file" || bytes.Count(content, []byte(args[2])) >= times)
	}
	tick, limit := time.NewTicker(2*time.Millisecond), time.NewTimer(30*time.Second)
	defer tick.Stop()
	defer limit.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit.C:
			content, _ := os.ReadFile(ts.MkAbs(args[1]))
			ts.Fatalf("%v: waited for 30 s; there is:\n%s", args, content)
		}
	}
}

// signal INT|TERM|KILL|HUP NAME: to the command that statusof NAME runs.
func signalCmd(ts *testscript.TestScript, _ bool, args []string) {
	sig, ok := map[string]syscall.Signal{
		"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "HUP": syscall.SIGHUP,
	}[args[0]]
	if !ok {
		ts.Fatalf("no signal %q", args[0])
	}
	pid, err := strconv.Atoi(ts.ReadFile(args[1] + ".pid"))
	ts.Check(err)
	ts.Check(syscall.Kill(pid, sig))
}

// statusof NAME COMMAND... runs a command in a session of its own, so that it
// has no terminal whoever runs the tests, and leaves its process id, output
// and status in NAME.pid, NAME.out, NAME.err and NAME.status. It's interrupted
// if the script fails.
func statusof() {
	name := os.Args[1]
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	cmd := exec.Command(os.Args[2], os.Args[3:]...)
	out, err := os.Create(name + ".out")
	check(err)
	errs, err := os.Create(name + ".err")
	check(err)
	cmd.Stdout, cmd.Stderr = out, errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	check(cmd.Start())
	go func() {
		<-interrupted
		_ = cmd.Process.Kill()
	}()
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
