package brokercli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
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
in force stays and the log says why. SIGINT or SIGTERM stops the broker: live
sessions and their leases stay in the store and go on after the next start.`,
		Example: `  runenv-broker serve --config /etc/runenv/broker.yaml
  systemctl reload runenv-broker      # sends SIGHUP`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logs.logger(env.Stderr)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), env, path, log)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "the broker's file (required)")
	_ = cmd.MarkFlagRequired("config")
	logs.add(cmd, "json")
	return cmd
}

func serve(ctx context.Context, env Env, path string, log *slog.Logger) error {
	ctx, stop := untilStopped(ctx)
	defer stop()
	if err := proc.HardenSelf(); err != nil {
		log.WarnContext(ctx, "this process can be traced or dumped by others of its user", "err", err)
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	file, err := load(env, path, false)
	if err != nil {
		return err
	}
	var cert certificate
	if err := cert.load(file.TLS); err != nil {
		return err
	}
	w, err := assemble(ctx, env, file, false, log)
	if err != nil {
		return err
	}
	defer w.close()
	listener, err := listen(ctx, file.Listen)
	if err != nil {
		return err
	}
	server := newServer(w.broker.Handler(), log)
	server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get}
	log.InfoContext(ctx, "serving", "url", file.URL, "listen", listener.Addr().String(), "version", Version(), "policy", file.Compiled.Digest())

	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				if err := reloadAll(ctx, env, path, w, &cert); err != nil {
					log.ErrorContext(ctx, "reload refused: what was in force stays", "err", err)
					continue
				}
				log.InfoContext(ctx, "reloaded", "policy", w.file.Compiled.Digest())
			}
		}
	}()
	return run(ctx, w, server, func() error { return server.ServeTLS(listener, "", "") })
}

// reloadAll checks file and certificate both before either takes force.
func reloadAll(ctx context.Context, env Env, path string, w *world, cert *certificate) error {
	file, err := load(env, path, false)
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
	cert.current.Store(fresh.current.Load())
	return nil
}

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
	const calls = 10 * time.Second
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), calls)
	defer done()
	err := errors.Join(server.Shutdown(stop), <-worked)
	if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("serving: %w", serr))
	}
	if errors.Is(err, context.Canceled) {
		return nil
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
	if err != nil {
		return nil, hinted{fmt.Errorf("listening: %w", err), "choose another address under `listen`, or stop what uses this one"}
	}
	return l, nil
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
		return hinted{fmt.Errorf("tls: %w", err), "cert is the chain in PEM, the broker's own certificate first, and key its private key"}
	}
	c.current.Store(&pair)
	return nil
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.current.Load(), nil
}
