package main

import (
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/runenv/action/client/clienttest"
	"github.com/runenv/action/internal/devissuer"
	"github.com/runenv/action/internal/proc/proctest"
)

// somebody is a shell on a terminal, whose user has a token and a broker.
func somebody(t *testing.T, argv ...string) *proctest.Screen {
	t.Helper()
	broker := clienttest.Start(clienttest.Config{Roles: roles()})
	t.Cleanup(broker.Close)
	srv := httptest.NewUnstartedServer(nil)
	issuer, err := devissuer.New(devissuer.Config{URL: "http://" + srv.Listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	srv.Config.Handler = issuer
	srv.Start()
	t.Cleanup(srv.Close)
	if len(argv) == 0 {
		argv = []string{"bash", "--norc", "--noprofile", "-i"}
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(issuer.Environ(),
		"PATH="+os.Getenv("PATH"), "HOME="+t.TempDir(), "TERM=dumb", "PS1=$ ", "HISTFILE=", "GORACE=atexit_sleep_ms=0",
		"RUNENV_BROKER="+broker.URL, "RUNENV_ROLE=demo",
	)
	s := proctest.NewScreen(t, cmd)
	if len(argv) == 4 && argv[0] == "bash" {
		s.Want("$ ")
		s.Keys("set +o history; bind 'set enable-bracketed-paste off' 2>/dev/null; stty -echo; echo rea''dy\n")
		s.Want("ready")
		s.Want("$ ")
	}
	return s
}

// On a terminal the command has one, though its output is redacted.
func TestTerminalStaysOne(t *testing.T) {
	t.Parallel()
	s := somebody(t)
	s.Keys(`runenv run -- sh -c 'test -t 0 && test -t 1 && test -t 2 && stty size && echo "pw is $DB_PASSWORD" && echo "on stderr $DB_PASSWORD" >&2'; echo status $?` + "\n")
	s.Want("pw is [REDACTED:db]\r\n")
	s.Want("on stderr [REDACTED:db]\r\n")
	s.Want("status 0")
	s.Want("$ ")
	s.Keys("stty -a | grep -o ' -\\?icanon'; echo e''nd\n")
	if got := s.Want("end"); strings.Contains(got, "-icanon") {
		t.Errorf("the terminal is left raw: %q", got)
	}
	// Without redaction it is the caller's own.
	s.Keys(`runenv run --no-redact -- sh -c 'test "$(tty)" = "'$(tty)'" && echo sa"m"e'; echo status $?` + "\n")
	s.Want("same")
	s.Want("status 0")
	// Somebody who reads the output by a program gets no terminal's line ends.
	s.Keys(`runenv run -- sh -c 'test -t 1 || echo "a $DB_PASSWORD"' | od -c | head -3; echo e''nd` + "\n")
	if got := s.Want("end"); strings.Contains(got, `\r`) || !strings.Contains(got, "R   E   D   A   C   T   E   D") {
		t.Errorf("through a pipe: %q", got)
	}
}

func TestTerminalPasswordPrompt(t *testing.T) {
	t.Parallel()
	s := somebody(t)
	s.Keys(`runenv run -- sh -c 'printf "Pass""word: "; stty -echo; read -r p </dev/tty; stty echo; echo; echo "got ${#p} letters"'` + "\n")
	s.Want("Password: ")
	s.Keys("hunter22\n")
	if got := s.Want("got 8 letters"); strings.Contains(got, "hunter22") {
		t.Errorf("the password is echoed: %q", got)
	}
}

func TestTerminalSuspendAndResize(t *testing.T) {
	t.Parallel()
	s := somebody(t)
	s.Keys(`runenv run -- sh -c 'trap "stty size" WINCH; echo st"a"rted; while read -r l; do echo "heard $l"; done'; echo status $?` + "\n")
	s.Want("started")
	s.Keys("\x1a")
	s.Want("Stopped")
	s.Want("$ ")
	s.Keys("echo shell $((20+3))\n")
	s.Want("shell 23")
	s.Keys("fg\n")
	s.Want("\n")
	s.Keys("again\n")
	s.Want("heard again")
	s.Resize(44, 55)
	s.Want("44 55")
	s.Keys("\x04")
	s.Want("$ ")
}

func TestTerminalControlC(t *testing.T) {
	t.Parallel()
	s := somebody(t)
	s.Keys(`runenv run -v -- sh -c 'trap "echo interr""upted; exit 9" INT; echo st"a"rted; while :; do sleep 0.05; done'; echo status $?` + "\n")
	s.Want("started")
	s.Keys("\x03")
	s.Want("interrupted")
	s.Want(`lease "db" is revoked`)
	s.Want("status 9")
	s.Want("$ ")
	s.Keys(`runenv run -- sh -c 'trap "echo ignor""ed" INT; echo st"a"rted; while :; do sleep 0.05; done'; echo status $?` + "\n")
	s.Want("started")
	s.Keys("\x03")
	s.Want("ignored")
	s.Keys("\x03\x03")
	s.Want("status 137")
}

// A warning that comes while the terminal is the command's begins a line.
func TestTerminalWarningsBeginLines(t *testing.T) {
	t.Parallel()
	s := somebody(t)
	s.Keys("runenv run --role brief -- sh -c 'echo st\"a\"rted; read -r l'; echo status $?\n")
	s.Want("started")
	s.Want("runenv: warning: lease \"aws\" expires at")
	if got := s.Want("\n"); !strings.HasSuffix(got, "\r") {
		t.Errorf("the line ends with %q", got[max(0, len(got)-5):])
	}
	s.Keys("\n")
	s.Want("status 0")
}

func TestTerminalHangUp(t *testing.T) {
	t.Parallel()
	s := somebody(t, "sh", "-c", `exec runenv run -- sh -c 'echo ready; exec sleep 1000'`)
	s.Want("ready")
	s.HangUp()
}
