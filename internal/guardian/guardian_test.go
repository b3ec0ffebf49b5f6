//go:build linux || darwin

package guardian

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/runenv/action/internal/proc"
	"github.com/runenv/action/secret"
)

const (
	// patience bounds every wait; none takes that long unless something is
	// broken.
	patience = 30 * time.Second

	urlVar   = "RUNENV_GUARDIAN_TEST_URL"  // makes the test binary a wrapper
	diesVar  = "RUNENV_GUARDIAN_TEST_DIES" // which kills itself at once: after what
	endToken = "end-token-canary"
)

// The test binary plays the guardian, and the wrapper that is killed.
func TestMain(m *testing.M) {
	switch {
	case IsGuardian(os.Args):
		if dir, err := os.Getwd(); err != nil || dir != "/" || len(os.Environ()) != 0 {
			os.Exit(97) // Start then fails
		}
		os.Exit(Main(context.Background()))
	case os.Getenv(urlVar) != "":
		wrapper(os.Getenv(urlVar))
	default:
		os.Exit(m.Run())
	}
}

// wrapper starts a guardian and a command, says so, and waits to be killed.
func wrapper(url string) {
	if err := proc.HardenSelf(); err != nil { // as runenv does
		fmt.Println("error", err)
		os.Exit(1)
	}
	cfg := Config{SessionURL: url, EndToken: secret.FromString(endToken)}
	if stage := os.Getenv(diesVar); stage != "" {
		h, err := Start("")
		if err == nil && stage == "guard" {
			err = h.Guard(cfg)
		}
		fmt.Println(err)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	if _, err := watched("", cfg); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println(cmd.Process.Pid)
	<-time.After(time.Hour)
}

// A broker is a server that notes what it is asked.
type broker struct {
	*httptest.Server
	asked chan string
	code  atomic.Int64
}

func newBroker(t *testing.T) *broker {
	t.Helper()
	b := &broker{asked: make(chan string, 100)}
	b.code.Store(http.StatusNoContent)
	b.Server = httptest.NewServer(b)
	t.Cleanup(b.Close)
	return b
}

func (b *broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.asked <- r.Method + " " + r.URL.Path + " " + r.Header.Get("Authorization")
	if b.code.Load() == http.StatusTemporaryRedirect {
		w.Header().Set("Location", "/elsewhere")
	}
	w.WriteHeader(int(b.code.Load()))
}

func (b *broker) next(t *testing.T) string {
	t.Helper()
	select {
	case got := <-b.asked:
		return got
	case <-time.After(patience):
		t.Fatal("the broker wasn't asked")
		return ""
	}
}

// watched starts a guardian that watches.
func watched(exe string, cfg Config) (*Handle, error) {
	h, err := Start(exe)
	if err != nil {
		return nil, err
	}
	if err := h.Guard(cfg); err != nil {
		return nil, err
	}
	return h, h.Watches()
}

// One that never got a session goes without a word.
func TestDoneWithoutASession(t *testing.T) {
	t.Parallel()
	h, err := Start("")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Done(); err != nil {
		t.Errorf("Done() = %v", err)
	}
}

const wantAsked = "DELETE /v1/session Bearer " + endToken

func start(t *testing.T, cfg Config) *Handle {
	t.Helper()
	if cfg.EndToken.Len() == 0 {
		cfg.EndToken = secret.FromString(endToken)
	}
	h, err := watched("", cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// die does to the guardian what the wrapper's death does, and returns its
// exit code.
func die(t *testing.T, h *Handle) int {
	t.Helper()
	hangUp(t, h)
	return exitCode(t, h)
}

func testProgram(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// A running is a wrapper that is to be killed.
type running struct {
	cmd *exec.Cmd
	out io.Reader
}

func startWrapper(t *testing.T, program string, b *broker, more ...string) *running {
	t.Helper()
	cmd := exec.Command(program)
	cmd.Env = append([]string{urlVar + "=" + b.URL + "/v1/session", "PATH=" + os.Getenv("PATH"), "RUNNER_TRACKING_ID=github_1"}, more...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &running{cmd, out}
}

// child is the command's process, once the guardian watches.
func (r *running) child(t *testing.T) int {
	t.Helper()
	line, err := bufio.NewReader(r.out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("the wrapper says %q", line)
	}
	return pid
}

func TestT30KilledWrapper(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	r := startWrapper(t, testProgram(t), b)
	child := r.child(t)
	defer func() { _ = syscall.Kill(child, syscall.SIGKILL) }()
	if len(b.asked) != 0 {
		t.Errorf("the broker was asked before the death: %q", <-b.asked)
	}
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := b.next(t); got != wantAsked {
		t.Errorf("the broker was asked %q, want %q", got, wantAsked)
	}
	_ = r.cmd.Wait() // killed, as intended
	// The command lived on, so it held no end of the pipe.
	if err := syscall.Kill(child, 0); err != nil {
		t.Errorf("the command is gone: %v", err)
	}
}

func TestDoneAsksNobody(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	h := start(t, Config{SessionURL: b.URL + "/v1/session"})
	if err := h.Done(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pidOf(h), 0); err != syscall.ESRCH {
		t.Errorf("the guardian outlives Done: %v", err)
	}
	if len(b.asked) != 0 {
		t.Errorf("the broker was asked %q", <-b.asked)
	}
}

func TestGuardianSurvivesSignals(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	h := start(t, Config{SessionURL: b.URL + "/v1/session"})
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		if err := syscall.Kill(pidOf(h), s); err != nil {
			t.Fatal(err)
		}
	}
	if code := die(t, h); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if got := b.next(t); got != wantAsked {
		t.Errorf("the broker was asked %q, want %q", got, wantAsked)
	}
}

func TestOwnSession(t *testing.T) {
	t.Parallel()
	h := start(t, Config{SessionURL: newBroker(t).URL})
	if group, err := syscall.Getpgid(pidOf(h)); err != nil || group != pidOf(h) {
		t.Errorf("the guardian's group is %d (%v), want its own, %d", group, err, pidOf(h))
	}
	if err := h.Done(); err != nil {
		t.Error(err)
	}
}

func TestBrokerInTrouble(t *testing.T) {
	t.Parallel()
	for _, trouble := range []int{503, 500, 429} {
		t.Run(strconv.Itoa(trouble), func(t *testing.T) {
			t.Parallel()
			b := newBroker(t)
			b.code.Store(int64(trouble))
			h := start(t, Config{SessionURL: b.URL + "/v1/session"})
			hangUp(t, h)
			b.next(t)
			b.next(t) // so the first was answered with trouble
			b.code.Store(204)
			if code := exitCode(t, h); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
		})
	}
}

func TestBrokerSaysNo(t *testing.T) {
	t.Parallel()
	for _, no := range []int{400, 401, 404, 307} {
		t.Run(strconv.Itoa(no), func(t *testing.T) {
			t.Parallel()
			b := newBroker(t)
			b.code.Store(int64(no))
			h := start(t, Config{SessionURL: b.URL + "/v1/session"})
			if code := die(t, h); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			if got := b.next(t); got != wantAsked || len(b.asked) != 0 {
				t.Errorf("the broker was asked %q and %d times more, want %q once", got, len(b.asked), wantAsked)
			}
		})
	}
}

func TestUnreachableBrokerIsTriedUntilTheEnd(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	b.Close() // connections are refused
	client, err := newClient(nil)
	if err != nil {
		t.Fatal(err)
	}
	tries := 0
	client.Transport = counting{client.Transport, &tries}
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	if err := end(ctx, client, wire{SessionURL: b.URL, EndToken: []byte(endToken)}); err == nil || tries < 2 {
		t.Errorf("end = %v after %d tries, want an error after several", err, tries)
	}
}

type counting struct {
	http.RoundTripper
	n *int
}

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	*c.n++
	return c.RoundTripper.RoundTrip(r)
}

func TestPrivateCA(t *testing.T) {
	t.Parallel()
	b := &broker{asked: make(chan string, 10)}
	b.code.Store(204)
	b.Server = httptest.NewTLSServer(b)
	t.Cleanup(b.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Certificate().Raw})
	h := start(t, Config{SessionURL: b.URL + "/v1/session", CAPEM: ca})
	if code := die(t, h); code != 0 || len(b.asked) != 1 {
		t.Errorf("exit code %d, asked %d times, want 0, once", code, len(b.asked))
	}
}

func TestKilledGuardian(t *testing.T) {
	t.Parallel()
	h := start(t, Config{SessionURL: newBroker(t).URL})
	if err := syscall.Kill(pidOf(h), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitDeath(t, h)
	if err := h.Done(); err == nil {
		t.Error("Done says nothing about the guardian's death")
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	token := secret.FromString(endToken)
	tests := []struct {
		name string
		cfg  Config
		exe  string
	}{
		{"no URL", Config{EndToken: token}, ""},
		{"no token", Config{SessionURL: "https://broker.example.com/v1/session"}, ""},
		{"token with a line break", Config{SessionURL: "https://broker.example.com/", EndToken: secret.FromString("a\nb")}, ""},
		{"http elsewhere", Config{SessionURL: "http://broker.example.com/v1/session", EndToken: token}, ""},
		{"http to a name", Config{SessionURL: "http://localhost/v1/session", EndToken: token}, ""},
		{"another scheme", Config{SessionURL: "file:///etc/passwd", EndToken: token}, ""},
		{"a user", Config{SessionURL: "https://me:pw@broker.example.com/", EndToken: token}, ""},
		{"no certificate", Config{SessionURL: "https://broker.example.com/", EndToken: token, CAPEM: []byte("text")}, ""},
		{"too large", Config{SessionURL: "https://broker.example.com/" + strings.Repeat("x", maxConfigBytes), EndToken: token}, ""},
		{"no program", Config{SessionURL: "https://broker.example.com/", EndToken: token}, "/no/such/program"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h, err := watched(tt.exe, tt.cfg)
			if err == nil {
				_ = h.Done()
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), endToken) || strings.Contains(err.Error(), "me:pw") {
				t.Errorf("the error tells: %v", err)
			}
		})
	}
}

func TestIsGuardian(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want bool
	}{
		{[]string{"runenv", "__guardian"}, true},
		{[]string{"runenv"}, false},
		{[]string{"runenv", "run"}, false},
		{[]string{"runenv", "run", "--", "__guardian"}, false},
		{[]string{"runenv", "__guardian", "x"}, false},
		{nil, false},
	} {
		if got := IsGuardian(tt.args); got != tt.want {
			t.Errorf("IsGuardian(%q) = %v, want %v", tt.args, got, tt.want)
		}
	}
}

// A wrapper that dies while it sends the configuration leaves a guardian that
// knows no session, and ends.
func FuzzDecode(f *testing.F) {
	good, err := encode(wire{SessionURL: "https://broker.example.com/v1/session", EndToken: []byte(endToken)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte("\xff\xff\xff\xff{}"))
	f.Add(framed("https://b.example.com", "x", "more"))
	f.Add(framed("", "", ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		w, err := decode(r)
		if err != nil {
			return
		}
		again, err := encode(w)
		if err != nil {
			if len(w.CAPEM) > 0 {
				return // certificates are parsed later
			}
			t.Fatalf("decode took what encode refuses: %v", err)
		}
		if w2, err := decode(bytes.NewReader(again)); err != nil || w2.SessionURL != w.SessionURL || !bytes.Equal(w2.EndToken, w.EndToken) {
			t.Fatalf("decode(encode(%q)) = %q, %v", w.SessionURL, w2.SessionURL, err)
		}
	})
}

func framed(parts ...string) []byte {
	var out []byte
	for _, part := range parts {
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(part))), part...)
	}
	return out
}

func TestDecodeIsStrict(t *testing.T) {
	t.Parallel()
	url := "https://b.example.com"
	for _, parts := range [][]string{
		{"http://b.example.com", "x", ""},
		{url, "", ""},
		{"", "x", ""},
		{url, "x\n", ""},
		{url, "x"},
		{url, "x", strings.Repeat("x", maxConfigBytes-len(url))},
		{},
	} {
		if _, err := decode(bytes.NewReader(framed(parts...))); err == nil {
			t.Errorf("decode(%.99q) gave no error", parts)
		}
	}
	if _, err := decode(bytes.NewReader(framed(url, "x", strings.Repeat("x", maxConfigBytes-len(url)-1)))); err != nil {
		t.Errorf("decode of the largest message = %v", err)
	}
	if _, err := decode(bytes.NewReader([]byte{0, 0, 0, 9, '{'})); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("decode of a torn message = %v, want %v", err, io.ErrUnexpectedEOF)
	}
}
