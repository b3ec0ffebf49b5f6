// Package guardian ends a session, and removes its file secrets, when the
// process that opened it can't.
//
// A wrapper killed by SIGKILL or the kernel's out-of-memory killer runs no
// code of its own any more. So [Start] puts a guardian beside it: the same
// program in another mode (see [IsGuardian]), in a session of its own, with an
// empty environment, in the root directory. It reads a pipe whose only write
// end the wrapper holds. When that end closes and the wrapper hasn't said that
// all is done, the guardian overwrites and unlinks the file secrets that it was
// told of, ends the session with its end token, trying for up to a minute, and
// exits.
//
// The configuration crosses that pipe; nothing of it is in an argument, the
// environment or a file. The end token is good for ending this one session
// only. The guardian follows no redirect, uses no proxy, and speaks plain http
// to loopback addresses only.
package guardian

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/runenv/action/internal/backoff"
	"github.com/runenv/action/internal/filesecret"
	"github.com/runenv/action/internal/proc"
	"github.com/runenv/action/secret"
)

const (
	// argument is the guardian's only one.
	argument = "__guardian"

	// maxConfigBytes has room for a whole bundle of CA certificates.
	maxConfigBytes = 1 << 20

	startLimit   = 10 * time.Second // a loaded machine starts a process in well under one
	exitLimit    = 2 * time.Second
	endLimit     = time.Minute
	attemptLimit = 10 * time.Second
	minPause     = 100 * time.Millisecond
	maxPause     = 5 * time.Second

	readyByte = 'R'
	doneByte  = 'D'
	filesByte = 'F' // then the length of a path in four bytes, and the path

	maxPathBytes = 4096
	maxFolders   = 16
)

// Config says which session to end and how.
type Config struct {
	// SessionURL is what to DELETE: https, or http to a loopback address. With
	// "" there is no session, and no EndToken: only [Handle.Files].
	SessionURL string
	// EndToken is sent as the bearer token.
	EndToken secret.Value
	// CAPEM holds the certificates to trust instead of the system's, if any.
	CAPEM []byte
}

// A Handle is the wrapper's side of a guardian.
type Handle struct {
	process *os.Process
	life    *os.File // closing it without doneByte is the wrapper's death
	ready   *os.File
	unread  int // confirmations that are to come
	exited  chan struct{}
	state   *os.ProcessState // after exited
}

// Start starts a guardian, which has nothing to guard until [Handle.Guard]:
// its start can go on beside the opening of the session. exe is the program;
// "" is the running one. Call [Handle.Done] in the end.
func Start(exe string) (*Handle, error) {
	if exe == "" {
		var err error
		if exe, err = executable(); err != nil {
			return nil, fmt.Errorf("finding the guardian's program: %w", err)
		}
	}
	h, err := spawn(exe)
	if err != nil {
		return nil, fmt.Errorf("starting the guardian: %w", err)
	}
	return h, nil
}

// Guard hands the guardian its session. Once it has started it ends the session
// when the caller exits, however it does, unless [Handle.Done] came first. Ask
// [Handle.Watches] whether it has started before anything depends on that.
// After an error there is no guardian any more.
func (h *Handle) Guard(cfg Config) error {
	message, err := encode(wire{SessionURL: cfg.SessionURL, EndToken: cfg.EndToken.Reveal(), CAPEM: cfg.CAPEM})
	if err == nil {
		err = h.send(message)
		clear(message)
	}
	if err != nil {
		h.abandon()
		return fmt.Errorf("configuring the guardian: %w", err)
	}
	return nil
}

// Watches returns once the guardian has confirmed that it watches. After an
// error there is no guardian any more.
func (h *Handle) Watches() error {
	if err := h.confirmed(); err != nil {
		h.abandon()
		return fmt.Errorf("configuring the guardian: %w", err)
	}
	return nil
}

func (h *Handle) abandon() {
	_ = h.process.Kill()
	_ = h.life.Close()
	_ = h.ready.Close()
	<-h.exited
}

// End ends the session itself, trying again until ctx ends while the broker
// can't be reached or is overloaded.
func End(ctx context.Context, cfg Config) error {
	w := wire{SessionURL: cfg.SessionURL, EndToken: cfg.EndToken.Reveal(), CAPEM: cfg.CAPEM}
	if err := w.check(); err != nil {
		return fmt.Errorf("ending the session: %w", err)
	}
	if err := w.end(ctx); err != nil {
		return fmt.Errorf("ending the session: %w", err)
	}
	return nil
}

// executable survives the program's replacement where the system allows it.
func executable() (string, error) {
	if runtime.GOOS == "linux" {
		return "/proc/self/exe", nil
	}
	return os.Executable()
}

// spawn gives the guardian two pipes and nothing else: the wrapper's life as
// its standard input, and its standard output, for the ready byte. Our ends
// are close-on-exec: a command that inherited the first would keep the
// guardian waiting for ever.
func spawn(exe string) (*Handle, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()
	theirLife, life, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirLife.Close() }()
	ready, theirReady, err := os.Pipe()
	if err != nil {
		_ = life.Close()
		return nil, err
	}
	defer func() { _ = theirReady.Close() }()
	p, err := os.StartProcess(exe, []string{"runenv", argument}, &os.ProcAttr{
		Dir: rootDir, Env: environment(), Files: []*os.File{theirLife, theirReady, null}, Sys: detached(),
	})
	if err != nil {
		_ = life.Close()
		_ = ready.Close()
		return nil, err
	}
	h := &Handle{process: p, life: life, ready: ready, exited: make(chan struct{})}
	go func() {
		defer close(h.exited)
		h.state, _ = p.Wait() // nil if somebody else reaped it
	}()
	return h, nil
}

// Files tells the guardian of a folder of file secrets, to be removed if the
// caller dies, and returns once it knows. Call it after [Handle.Guard] and
// before the first secret lies there.
func (h *Handle) Files(dir string) error {
	if len(dir) > maxPathBytes {
		return errors.New("telling the guardian of a folder: its path is too long")
	}
	message := binary.BigEndian.AppendUint32([]byte{filesByte}, uint32(len(dir)))
	err := h.send(append(message, dir...))
	if err == nil {
		err = h.confirmed()
	}
	if err != nil {
		return fmt.Errorf("telling the guardian of a folder: %w", err)
	}
	return nil
}

// send sends a message, which will be confirmed.
func (h *Handle) send(message []byte) error {
	// Windows' pipes have no deadlines; there only a live guardian is bounded.
	_ = h.life.SetWriteDeadline(time.Now().Add(startLimit))
	if _, err := h.life.Write(message); err != nil {
		return fmt.Errorf("sending a message: %w", err)
	}
	h.unread++
	return nil
}

// confirmed waits until all that was sent is confirmed.
func (h *Handle) confirmed() error {
	_ = h.ready.SetReadDeadline(time.Now().Add(startLimit))
	for ; h.unread > 0; h.unread-- {
		var answer [1]byte
		if _, err := io.ReadFull(h.ready, answer[:]); err != nil || answer[0] != readyByte {
			return errors.New("it didn't confirm")
		}
	}
	return nil
}

// Done tells the guardian that the session has ended, or that there is none,
// and waits for its exit, for two seconds at most. The error says that the
// guardian died before, or had to be killed: the session has ended all the
// same. Call it once.
func (h *Handle) Done() error {
	_ = h.life.SetWriteDeadline(time.Now().Add(exitLimit))
	_, err := h.life.Write([]byte{doneByte})
	if err != nil {
		err = fmt.Errorf("dismissing the guardian: %w", err)
		_ = h.process.Kill() // or it would end the session when the pipe closes
	}
	_ = h.life.Close()
	_ = h.ready.Close()
	timer := time.NewTimer(exitLimit)
	defer timer.Stop()
	select {
	case <-h.exited:
	case <-timer.C:
		err = errors.New("dismissing the guardian: it had to be killed")
		_ = h.process.Kill()
		<-h.exited
	}
	return err
}

// IsGuardian reports whether a program with these arguments (os.Args, whole)
// was started to be a guardian.
func IsGuardian(args []string) bool { return len(args) == 2 && args[1] == argument }

// Main is the guardian: it returns the exit code, 0 if the session has ended.
// It takes over standard input and output, and ignores the signals that ask a
// process to end.
func Main(ctx context.Context) int {
	runtime.GOMAXPROCS(1) // it waits: more threads would only cost their start and end
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	closeInherited()
	if err := proc.HardenSelf(); err != nil {
		return 1
	}
	return guard(ctx, os.Stdin, os.Stdout)
}

func guard(ctx context.Context, life io.Reader, ready io.Writer) int {
	w, err := decode(life)
	if err != nil {
		return 1
	}
	// A wrapper that died already shows in the next read.
	_, _ = ready.Write([]byte{readyByte})
	folders, done := watch(life, ready)
	if done {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	code := 0
	// First what is here and takes no time.
	for _, dir := range folders {
		if filesecret.Erase(dir) != nil {
			code = 1
		}
	}
	if w.SessionURL != "" && w.end(ctx) != nil {
		code = 1
	}
	return code
}

// watch returns when the wrapper says that all is done, or is dead.
func watch(life io.Reader, ready io.Writer) (folders []string, done bool) {
	for {
		var what [1]byte
		if _, err := io.ReadFull(life, what[:]); err != nil {
			return folders, false
		}
		switch what[0] {
		case doneByte:
			return folders, true
		case filesByte:
			path, err := readFrame(life, maxPathBytes)
			// A command that is started again gets a folder anew.
			folders = slices.DeleteFunc(folders, func(dir string) bool {
				_, err := os.Lstat(dir)
				return errors.Is(err, os.ErrNotExist)
			})
			if err != nil || len(folders) == maxFolders {
				return folders, false
			}
			folders = append(folders, string(path))
			_, _ = ready.Write([]byte{readyByte})
		default:
			return folders, false
		}
	}
}

// readFrame reads a length in four bytes and as many bytes after it.
func readFrame(r io.Reader, limit uint32) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > limit {
		return nil, errors.New("a message is too large")
	}
	body := make([]byte, size)
	_, err := io.ReadFull(r, body)
	return body, err
}

// wire is the configuration as it crosses the pipe: three frames, each its
// length in four bytes and what it holds.
type wire struct {
	SessionURL string
	EndToken   []byte
	CAPEM      []byte
}

func (w wire) end(ctx context.Context) error {
	client, err := newClient(w.CAPEM)
	if err != nil {
		return err
	}
	return end(ctx, client, w)
}

func (w wire) check() error {
	if w.SessionURL == "" && len(w.EndToken) == 0 {
		return nil
	}
	if len(w.EndToken) == 0 {
		return errors.New("no end token")
	}
	for _, c := range w.EndToken {
		if c <= ' ' || c > '~' {
			return errors.New("the end token can't stand in a header")
		}
	}
	u, err := url.Parse(w.SessionURL)
	if err != nil {
		return errors.New("the session's URL can't be parsed")
	}
	if u.User != nil || u.Fragment != "" || u.Hostname() == "" {
		return errors.New("the session's URL has a user or a fragment, or no host")
	}
	switch u.Scheme {
	case "https":
		return nil
	case "http":
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && a.IsLoopback() {
			return nil
		}
	}
	return errors.New("the session's URL is neither https nor http to a loopback address")
}

func encode(w wire) ([]byte, error) {
	if err := w.check(); err != nil {
		return nil, err
	}
	if len(w.CAPEM) > 0 && !hasCertificate(w.CAPEM) {
		return nil, errNoCertificate
	}
	size := len(w.SessionURL) + len(w.EndToken) + len(w.CAPEM)
	if size > maxConfigBytes {
		return nil, fmt.Errorf("%d bytes of configuration, more than %d", size, maxConfigBytes)
	}
	out := make([]byte, 0, size+3*4)
	for _, part := range [][]byte{[]byte(w.SessionURL), w.EndToken, w.CAPEM} {
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(part))), part...)
	}
	return out, nil
}

func decode(r io.Reader) (wire, error) {
	var parts [3][]byte
	left := uint32(maxConfigBytes)
	for i := range parts {
		var err error
		if parts[i], err = readFrame(r, left); err != nil {
			return wire{}, err
		}
		left -= uint32(len(parts[i]))
	}
	w := wire{string(parts[0]), parts[1], parts[2]}
	return w, w.check()
}

var errNoCertificate = errors.New("no certificate in the CA's PEM")

// hasCertificate reports whether [newClient] will take the PEM, and parses no
// more than it must: a bundle has a hundred and more.
func hasCertificate(caPEM []byte) bool {
	for len(caPEM) > 0 {
		var block *pem.Block
		if block, caPEM = pem.Decode(caPEM); block == nil {
			return false
		}
		if block.Type != "CERTIFICATE" || len(block.Headers) != 0 {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err == nil {
			return true
		}
	}
	return false
}

func newClient(caPEM []byte) (*http.Client, error) {
	var roots *x509.CertPool
	if len(caPEM) > 0 {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(caPEM) {
			return nil, errNoCertificate
		}
	}
	return &http.Client{
		Timeout: attemptLimit,
		Transport: &http.Transport{
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2:      true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// end deletes the session. It tries again, with growing pauses, until ctx
// ends, while the broker can't be reached or is overloaded.
func end(ctx context.Context, client *http.Client, w wire) error {
	for n := 1; ; n++ {
		again, err := try(ctx, client, w)
		if err == nil || !again || backoff.Wait(ctx, backoff.Delay(n, minPause, maxPause)) != nil {
			return err
		}
	}
}

func try(ctx context.Context, client *http.Client, w wire) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, w.SessionURL, nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("Authorization", "Bearer "+string(w.EndToken))
	resp, err := client.Do(req)
	if err != nil {
		return true, err
	}
	_ = resp.Body.Close()
	switch code := resp.StatusCode; {
	case code >= 200 && code < 300:
		return false, nil
	default:
		return code == http.StatusTooManyRequests || code >= 500, fmt.Errorf("the broker answered %d", code)
	}
}
