package endpoint

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/runenv/action/secret"
)

// Limits of the listener. Requests of this kind have a few hundred bytes.
const (
	maxHeaderBytes = 8 << 10
	maxBodyBytes   = 16 << 10
	maxConns       = 256

	headerTimeout = 3 * time.Second
	readTimeout   = 5 * time.Second
	writeTimeout  = 40 * time.Second // answering includes freshTimeout
	idleTimeout   = 30 * time.Second

	// freshTimeout is how long a request waits for a lease that has expired.
	freshTimeout = 20 * time.Second
)

// bearerBytes is the length of a bearer: 256 bits.
const bearerBytes = 32

// Config is what [Serve] needs: a Keeper, and what to serve of its leases.
type Config struct {
	Keeper *Keeper
	AWS    *AWS
	GCE    *GCE
	Vault  []Vault
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log gets who is refused and why, at level debug; nil means nowhere.
	Log *slog.Logger
}

// A Server serves leases on 127.0.0.1 until it is closed.
type Server struct {
	now     func() time.Time
	log     *slog.Logger
	addr    string
	http    *http.Server
	serving sync.WaitGroup

	aws   *awsService
	gce   *gceService
	vault *vaultService
}

// A Variable is set for the command.
type Variable struct {
	Name  string
	Value secret.Value
	// Mask says whether the value is one of [Server.Secrets].
	Mask bool
}

// Serve checks the configuration and listens. Close it when the command has
// ended, and before the Keeper.
func Serve(cfg Config) (*Server, error) {
	s := &Server{now: cfg.Now, log: cfg.Log}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.open(cfg); err != nil {
		return nil, fmt.Errorf("credential endpoint: %w", err)
	}
	// The literal address: a name could be made to mean another.
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("credential endpoint: %w", err)
	}
	s.addr = listener.Addr().String()
	s.http = &http.Server{
		Handler:                      s,
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            headerTimeout,
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		ConnContext:                  func(ctx context.Context, c net.Conn) context.Context { return withPeer(ctx, c) },
		ErrorLog:                     log.New(silent{}, "", 0), // it would quote what strangers send
	}
	limited := &limitedListener{Listener: listener, free: make(chan struct{}, maxConns), closed: make(chan struct{})}
	s.serving.Go(func() {
		if err := s.http.Serve(limited); !errors.Is(err, http.ErrServerClosed) {
			s.log.Debug("the credential endpoint stopped", "error", err)
		}
	})
	return s, nil
}

func (s *Server) open(cfg Config) (err error) {
	switch {
	case cfg.Keeper == nil:
		return errors.New("no leases are kept for it")
	case cfg.AWS == nil && cfg.GCE == nil && len(cfg.Vault) == 0:
		return errors.New("it has nothing to serve")
	}
	if cfg.AWS != nil {
		if s.aws, err = openAWS(cfg.Keeper, *cfg.AWS); err != nil {
			return err
		}
	}
	if cfg.GCE != nil {
		if s.gce, err = openGCE(cfg.Keeper, *cfg.GCE, s.now); err != nil {
			return err
		}
	}
	if len(cfg.Vault) > 0 {
		if s.vault, err = openVault(cfg.Keeper, cfg.Vault, s.now); err != nil {
			return err
		}
	}
	return nil
}

type silent struct{}

func (silent) Write(p []byte) (int, error) { return len(p), nil }

// Close stops listening and cuts every connection.
func (s *Server) Close() error {
	err := s.http.Close()
	s.serving.Wait()
	if err != nil {
		return fmt.Errorf("closing the credential endpoint: %w", err)
	}
	return nil
}

// Secrets are the bearers by which the command's programs ask: values to hide
// and to look for like leased ones.
func (s *Server) Secrets() []secret.Value {
	var all []secret.Value
	if s.aws != nil {
		all = append(all, s.aws.bearer)
	}
	if s.vault != nil {
		all = append(all, s.vault.bearer)
	}
	return all
}

// Variables are to be set for the command, whose environment getenv reads:
// where that names a proxy, they keep loopback out of it, and where it doesn't
// say where AWS's tools look besides, they look nowhere else.
func (s *Server) Variables(getenv func(string) string) []Variable {
	plain := func(name, value string) Variable { return Variable{Name: name, Value: secret.FromString(value)} }
	var all []Variable
	if s.aws != nil {
		all = append(all, plain("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://"+s.addr+awsPath),
			Variable{"AWS_CONTAINER_AUTHORIZATION_TOKEN", s.aws.bearer, true})
		for _, v := range awsElsewhere() {
			if getenv(v.Name) == "" {
				all = append(all, v)
			}
		}
	}
	if s.gce != nil {
		// Google's libraries read the first and the second, gcloud the third.
		all = append(all, plain("GCE_METADATA_HOST", s.addr), plain("GCE_METADATA_IP", s.addr), plain("GCE_METADATA_ROOT", s.addr))
	}
	if s.vault != nil {
		all = append(all, plain("VAULT_ADDR", "http://"+s.addr), Variable{"VAULT_TOKEN", s.vault.bearer, true})
	}
	return append(all, pastProxy(getenv)...)
}

// pastProxy has tools that go through a proxy come to loopback directly.
func pastProxy(getenv func(string) string) []Variable {
	if !slices.ContainsFunc([]string{"http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"}, func(name string) bool { return getenv(name) != "" }) {
		return nil
	}
	names := []string{"NO_PROXY", "no_proxy"}
	if runtime.GOOS == "windows" {
		names = names[:1] // both are one there
	}
	var all []Variable
	for _, name := range names {
		hosts := cmp.Or(getenv(name), getenv("no_proxy"), getenv("NO_PROXY"))
		if hosts == "*" {
			continue
		}
		all = append(all, Variable{Name: name, Value: secret.FromString(strings.TrimPrefix(hosts+",127.0.0.1", ","))})
	}
	return all
}

// Withholds lists the variables that the command's environment must not have,
// neither leased nor inherited: they hold what is served instead, or tools
// would heed them more than [Server.Variables].
func (s *Server) Withholds() []string {
	var all []string
	if s.aws != nil {
		all = append(all,
			awsKeyID, awsSecretKey, awsSessionToken, "AWS_SECURITY_TOKEN", "AWS_CREDENTIAL_EXPIRATION", "AWS_PROFILE", "AWS_DEFAULT_PROFILE",
			"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
	}
	if s.gce != nil {
		all = append(all, GCEVariables()...)
		all = append(all, "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE", "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE", "CLOUDSDK_CORE_CHECK_GCE_METADATA",
			"GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CREDENTIALS", "NO_GCE_CHECK", "METADATA_SERVER_DETECTION")
		for _, t := range s.gce.idTokens {
			all = append(all, t.variable)
		}
	}
	if s.vault != nil {
		all = append(all, "VAULT_AGENT_ADDR", "VAULT_PROXY_ADDR", "VAULT_NAMESPACE", "VAULT_WRAP_TTL")
		all = append(all, s.vault.variables...)
	}
	return all
}

// ServeHTTP refuses what no tool of ours would send, then asks the service.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
	ctx, cancel := context.WithTimeout(r.Context(), freshTimeout)
	defer cancel()
	r = r.WithContext(ctx)
	a := s.answer(r)
	if a.status >= http.StatusBadRequest {
		s.log.DebugContext(ctx, "credential endpoint: refused", "kind", a.kind, "status", a.status, "reason", a.reason)
	}
	if a.kind == kindGCE {
		h.Set("Metadata-Flavor", "Google")
		h.Set("Server", "Metadata Server for VM")
	}
	h.Set("Content-Type", a.contentType)
	if a.status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "2")
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // nobody is there to be told
	clear(a.body)
}

// An answer is a service's, as its protocol wants it.
type answer struct {
	kind        string
	status      int
	contentType string
	body        []byte
	reason      string // of a refusal; constant words and our own names
}

// Kinds of service, for the log.
const (
	kindNone  = "none"
	kindAWS   = "aws"
	kindGCE   = "gce"
	kindVault = "vault"
)

const (
	jsonType = "application/json"
	textType = "text/plain; charset=utf-8"
)

func refuse(status int, reason string) answer {
	return answer{kindNone, status, textType, []byte("runenv: " + reason + "\n"), reason}
}

func (s *Server) answer(r *http.Request) answer {
	if reason := s.foreign(r); reason != "" {
		return refuse(http.StatusForbidden, reason)
	}
	t, ok := parseTarget(r.RequestURI)
	switch {
	case !ok:
		return refuse(http.StatusBadRequest, "a request's target is a plain path, without escapes")
	case s.aws != nil && t.path == awsPath:
		return s.aws.answer(r)
	case s.vault != nil && strings.HasPrefix(t.path, vaultPrefix):
		return s.vault.answer(r, t)
	case s.gce != nil && (t.path == "/" || t.path == gceRoot || strings.HasPrefix(t.path, gceRoot+"/")):
		return s.gce.answer(r, t)
	}
	return refuse(http.StatusNotFound, "nothing is served here")
}

// foreign says why a request can't be of a tool on this machine that was told
// where to ask: a page in a browser may get a name resolved to our address,
// and a proxy may carry a stranger's request.
func (s *Server) foreign(r *http.Request) string {
	switch {
	case r.Host != s.addr:
		return "the Host header must be this endpoint's address in numbers"
	case r.ProtoMajor != 1:
		return "only HTTP/1 is spoken here"
	}
	for _, name := range []string{"Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode", "X-Forwarded-For", "Forwarded", "Via"} {
		if _, ok := r.Header[name]; ok {
			return "requests of browsers and proxies are refused (header " + name + ")"
		}
	}
	return ""
}

// A target is a path with the parameters behind it.
type target struct {
	path  string // without a final slash, but for "/"
	dir   bool   // there was one
	query map[string]string
}

// parseTarget reads an origin-form target (RFC 9112) strictly: no escapes in
// the path, no empty, "." or ".." segment, no parameter twice.
func parseTarget(uri string) (t target, ok bool) {
	path, query, _ := strings.Cut(uri, "?")
	if !strings.HasPrefix(path, "/") {
		return target{}, false
	}
	t.path, t.query = path, map[string]string{}
	if path != "/" {
		t.path = strings.TrimSuffix(path, "/")
		t.dir = t.path != path
		if !plainPath(t.path[1:]) {
			return target{}, false
		}
	}
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		value, err := url.QueryUnescape(value)
		if _, twice := t.query[name]; twice || err != nil || strings.ContainsAny(name, "%+;") {
			return target{}, false
		}
		if pair != "" {
			t.query[name] = value
		}
	}
	return t, true
}

// plainPath reports whether a path, without a slash at either end, has only
// segments that mean themselves to everybody.
func plainPath(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return false
		}
	}
	for i := range len(path) {
		c := path[i]
		if c <= ' ' || c > '~' || strings.IndexByte(`%?#\;"<>^{|}`+"`", c) >= 0 {
			return false
		}
	}
	return true
}

// authorized compares in constant time.
func authorized(given []string, bearer secret.Value) bool {
	return len(given) == 1 && secret.FromString(given[0]).Equal(bearer)
}

func newBearer() secret.Value {
	raw := make([]byte, bearerBytes)
	_, _ = rand.Read(raw) // it never fails
	defer clear(raw)
	return secret.New(base64.RawURLEncoding.AppendEncode(nil, raw))
}

// encode marshals what holds revealed values; it can't fail for them.
func encode(v any) []byte {
	body, err := json.Marshal(v)
	if err != nil {
		return []byte("{}")
	}
	return body
}

// A limitedListener has at most as many connections as free holds.
type limitedListener struct {
	net.Listener
	free   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: conn, free: l.free}, nil
}

func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	free chan struct{}
	once sync.Once
}

func (c *limitedConn) Close() error {
	c.once.Do(func() { <-c.free })
	return c.Conn.Close()
}

// peerKey is where a request's context has its connection's ends.
type peerKey struct{}

// A peer is who holds the other end of a connection, judged once.
type peer struct {
	remote, local netip.AddrPort
	once          sync.Once
	err           error
}

func withPeer(ctx context.Context, c net.Conn) context.Context {
	p := &peer{}
	if remote, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		p.remote = remote.AddrPort()
	}
	if local, ok := c.LocalAddr().(*net.TCPAddr); ok {
		p.local = local.AddrPort()
	}
	return context.WithValue(ctx, peerKey{}, p)
}
