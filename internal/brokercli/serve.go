package brokercli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/internal/proc"
)

func serveCommand(env Env) *cobra.Command {
	var path string
	var logs logFlags
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Serve CI jobs over TLS",
		Long: `Serve CI jobs over TLS under the policy of FILE.

SIGHUP loads the file and the certificate again; if either is faulty, what was
in force stays and the log says why. SIGINT or SIGTERM stops the broker, once
the calls under way are answered, for which they have 10 seconds; a second
signal stops it at once. Live sessions and their leases stay in the store and go
on after the next start.`,
		Example: `  runenv-broker serve --config /etc/runenv/broker.yaml
  systemctl reload runenv-broker      # sends SIGHUP`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := configGiven(cmd, path); err != nil {
				return err
			}
			log, err := logs.logger(cmd, env.Stderr)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), env, path, log)
		},
	}
	configFlag(cmd, &path, "the broker's `FILE`")
	logs.add(cmd, "json", "info")
	return cmd
}

// gcPercent is how much the heap grows between collections, unless GOGC says
// otherwise.
const gcPercent = 300

func serve(ctx context.Context, env Env, path string, log *slog.Logger) error {
	if err := relaxTimers(env.Again); err != nil {
		log.DebugContext(ctx, "timers stay as they are", "err", err)
	}
	ctx, stop := untilStopped(ctx, func() { log.Info("stopping", "calls_have", calls) })
	defer stop()
	if err := proc.HardenSelf(); err != nil {
		log.WarnContext(ctx, "this process can be traced or dumped by others of its user", "err", err)
	}
	// The heap is small and each exchange leaves much behind: collecting a
	// third as often takes a sixth off the time of an exchange (measured with
	// BenchmarkExchange at 16 clients).
	if _, set := env.LookupEnv("GOGC"); !set {
		debug.SetGCPercent(gcPercent)
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	file, err := load(env, path, mode{})
	if err != nil {
		return err
	}
	var cert certificate
	if err := cert.load(file.TLS); err != nil {
		return err
	}
	cert.warn(ctx, log, file.URL, env.Now())
	// Before the store: a broker that can't serve takes nothing up.
	listener, err := listen(ctx, file.Listen)
	if err != nil {
		return err
	}
	w, err := assemble(ctx, env, file, mode{}, log)
	if err != nil {
		closeAll(listener)
		return err
	}
	defer w.close()
	server := newServer(w.broker.Handler(), log)
	server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get}
	log.InfoContext(ctx, "serving", "url", file.URL, "listen", listener.Addr().String(), "version", Version(), "policy", file.Compiled.Digest())

	var reloads sync.WaitGroup
	defer reloads.Wait() // before w closes
	reloads.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				if err := reloadAll(ctx, env, path, w, &cert); err != nil {
					log.ErrorContext(ctx, "reload refused: what was in force stays", "err", err, "hint", hintOf(err))
					continue
				}
				log.InfoContext(ctx, "reloaded", "policy", w.file.Compiled.Digest())
			}
		}
	})
	err = run(ctx, w, server, func() error { return server.ServeTLS(listener, "", "") })
	stop() // also where it was serving that failed
	if err == nil {
		log.InfoContext(ctx, "stopped")
	}
	return err
}

// reloadAll checks file and certificate both before either takes force.
func reloadAll(ctx context.Context, env Env, path string, w *world, cert *certificate) error {
	file, err := load(env, path, mode{})
	if err != nil {
		return err
	}
	var fresh certificate
	if err := fresh.load(file.TLS); err != nil {
		return err
	}
	if err := w.reload(ctx, file); err != nil {
		return err
	}
	fresh.warn(ctx, w.log, file.URL, env.Now())
	cert.current.Store(fresh.current.Load())
	return nil
}

// calls bounds how long a broker that stops waits for the calls under way.
const calls = 10 * time.Second

// run serves until ctx ends, and then lets calls finish.
func run(ctx context.Context, w *world, server *http.Server, serve func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	worked := make(chan error, 1)
	go func() {
		defer cancel()
		worked <- w.broker.Run(ctx)
	}()
	served := make(chan error, 1)
	go func() {
		defer cancel()
		served <- serve()
	}()
	<-ctx.Done()
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), calls)
	defer done()
	if err := server.Shutdown(stop); err != nil {
		w.log.WarnContext(ctx, "calls were cut off", "err", err)
		_ = server.Close() // so that Serve returns
	}
	err := <-worked
	if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(fmt.Errorf("serving: %w", serr), err)
	}
	return err
}

func newServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      90 * time.Second, // a lease request may wait for back ends
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// listen leaves TCP keepalive off: a handler couldn't tell a lost probe of a
// watch stream from a client's death.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAlive: -1}
	l, err := lc.Listen(ctx, "tcp", addr)
	if err == nil {
		return l, nil
	}
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "stop what uses this address, or choose another port"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "this machine has no such address; `listen: :PORT` takes all that it has"
	case errors.Is(err, os.ErrPermission):
		hint = "ports under 1024 need the capability CAP_NET_BIND_SERVICE: choose a higher one"
	}
	return nil, hinted{fmt.Errorf("listening: %w", err), hint}
}

// certificate is the broker's, swapped whole.
type certificate struct {
	current atomic.Pointer[tls.Certificate]
}

func (c *certificate) load(t *config.TLS) error {
	if t == nil {
		return errors.New("tls: cert and key are required")
	}
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		hint := "cert is the chain in PEM, the broker's own certificate first, and key its private key"
		if errors.Is(err, os.ErrPermission) {
			hint = "the broker's user must be able to read both files, and nobody else the key"
		}
		return hinted{fmt.Errorf("tls: %w", err), hint}
	}
	c.current.Store(&pair)
	return nil
}

// warn tells of a certificate that clients won't take. What stands in front of
// the broker may not mind, so that it's no refusal.
func (c *certificate) warn(ctx context.Context, log *slog.Logger, brokerURL string, now time.Time) {
	leaf := c.current.Load().Leaf
	switch {
	case now.After(leaf.NotAfter):
		log.WarnContext(ctx, "the certificate has expired: put a new one in its place and send SIGHUP", "expired", leaf.NotAfter.UTC())
	case now.Before(leaf.NotBefore):
		log.WarnContext(ctx, "the certificate isn't valid yet: is this machine's clock right?", "valid_from", leaf.NotBefore.UTC())
	}
	u, err := url.Parse(brokerURL)
	if err == nil {
		err = leaf.VerifyHostname(u.Hostname())
	}
	if err != nil {
		log.WarnContext(ctx, "the certificate isn't one for the host of `url`: clients won't take it", "err", err)
	}
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.current.Load(), nil
}
