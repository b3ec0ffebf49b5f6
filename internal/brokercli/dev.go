package brokercli

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/internal/devissuer"
	"github.com/runenv/action/internal/proc"
)

// devFile is the broker's file that dev uses unless it is given another.
//
//go:embed dev.yaml
var devFile string

func devCommand(env Env) *cobra.Command {
	var path string
	var j jobFlags
	var logs logFlags
	cmd := &cobra.Command{
		Use:   "dev [--config FILE] [--event FILE] [--claim NAME=VALUE]... [-- COMMAND [ARG...]]",
		Short: "Run a whole local world on loopback",
		Long: `Run a whole local world on loopback: a broker with its store in memory, an
issuer that speaks GitHub's token-request protocol, and static values. Its keys
and its audit log end with it.

Without COMMAND it prints what to export and serves until it is stopped. With
COMMAND it runs that with the variables set, then shows what the audit log says
and verifies it, and returns the command's status. What dev itself has to say
goes to stderr; the lines to export go to stdout.

The job that it vouches for is a push to refs/heads/main of acme/shop-api, whose
id is 1001. --event takes what a webhook's payload says instead, such as the
file that act is given; what that doesn't say (an environment; another event
than the payload looks like) --claim does. Where GitHub gives a job no token, as
for a pull request from a fork, neither does dev.

Its own file has one role for it, "demo", with one lease, which sets DEMO_TOKEN.

FILE must keep to loopback: http on 127.0.0.1, issuers of profile github or
gitlab on http loopback URLs (dev serves the first of profile github), providers
of type static, whose values may stand in the file, and the store in memory.

Exit status: the command's own; 128+n if signal n killed it; 127 if it wasn't
found, 126 if it can't be executed; 1 if dev itself failed.`,
		Example: `  runenv-broker dev -- runenv run --role demo -- sh -c 'echo "$DEMO_TOKEN"'
  runenv-broker dev --config my-broker.yaml
  runenv-broker dev --config my-broker.yaml --event event.json -- act push --eventpath event.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch dash := cmd.ArgsLenAtDash(); {
			case len(args) > 0 && dash != 0:
				return usageError{hinted{fmt.Errorf("%q stands before --", args[0]), "runenv-broker dev -- COMMAND ARG..."}}
			case len(args) == 0 && dash == 0:
				return usageError{hinted{errors.New("no command stands behind --"), "runenv-broker dev -- COMMAND ARG..., or no -- to serve until stopped"}}
			}
			job, err := j.job()
			if err != nil {
				return err
			}
			log, err := logs.logger(cmd, env.Stderr)
			if err != nil {
				return err
			}
			return dev(cmd.Context(), env, path, job, args, log)
		},
	}
	configFlag(cmd, &path, "a broker's `FILE` of your own")
	cmd.Flags().StringVar(&j.event, "event", "", "a webhook's payload in a `FILE`: the job is one that it starts")
	cmd.Flags().StringArrayVar(&j.claims, "claim", nil, "a claim of the job's token, as `NAME=VALUE`; repeat for more")
	logs.add(cmd, "text", "warn")
	return cmd
}

// devWorld is what dev serves.
type devWorld struct {
	*world
	issuer         *devissuer.Issuer
	brokerListener net.Listener
	issuerListener net.Listener
}

func dev(ctx context.Context, env Env, path string, job devissuer.Event, command []string, log *slog.Logger) error {
	if len(command) == 0 {
		var stop context.CancelFunc
		ctx, stop = untilStopped(ctx, func() {})
		defer stop()
	}
	d, err := newDev(ctx, env, path, job.Claims, log)
	if err != nil {
		return err
	}
	defer d.close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tokens := newServer(d.issuer, log)
	go func() { _ = tokens.Serve(d.issuerListener) }()
	defer func() { _ = tokens.Close() }()
	server := newServer(d.broker.Handler(), log)
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, d.world, server, func() error { return server.Serve(d.brokerListener) })
	}()

	vars := []string{"RUNENV_BROKER=" + d.file.URL}
	if job.NoToken == "" {
		vars = append(vars, d.issuer.Environ()...)
	} else {
		say(env, "%s at GitHub, so this one has none", job.NoToken)
	}
	if len(command) == 0 {
		d.introduce(env, vars)
		return <-ended
	}

	say(env, "a broker and a CI's issuer serve on loopback for the length of one command")
	code, err := d.child(ctx, env, command, vars)
	if err == nil {
		// The log is told and verified while the store is still open.
		err = d.tell(ctx, env, code)
	}
	cancel()
	if err := errors.Join(err, <-ended); err != nil {
		return err
	}
	if code != 0 {
		return statusError(code)
	}
	return nil
}

// introduce says how to use what serves: to people on stderr, to a shell on
// stdout.
func (d *devWorld) introduce(env Env, vars []string) {
	say(env, "a broker and a CI's issuer serve on loopback until you stop them (Ctrl-C)")
	var roles []string
	for _, r := range d.file.Compiled.Roles() {
		roles = append(roles, r.Name)
	}
	if len(roles) > 0 {
		say(env, "the roles: %s; for a shell, and then `runenv run --role %s -- COMMAND`:", strings.Join(roles, ", "), roles[0])
	}
	for _, v := range env.Environ {
		if name, _, _ := strings.Cut(v, "="); slices.Contains(otherTokens, name) && !sets(vars, name) {
			_, _ = fmt.Fprintf(env.Stdout, "unset %s\n", name)
		}
	}
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		_, _ = fmt.Fprintf(env.Stdout, "export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
	}
}

// child runs the command with the variables set, without any that could lead
// it to another broker or issuer.
func (d *devWorld) child(ctx context.Context, env Env, command, vars []string) (int, error) {
	terminal := proc.OnTerminal()
	signals, stop := proc.Notify(terminal)
	defer stop()
	status, err := proc.Run(ctx, proc.Config{
		Args: command, Env: merge(env.Environ, vars), Stdin: env.Stdin, Stdout: env.Stdout, Stderr: env.Stderr,
		Signals: signals, Terminal: terminal,
	})
	var start *proc.StartError
	if errors.As(err, &start) {
		report(env.Stderr, err)
		return 0, statusError(start.Code())
	}
	return status.Code(), err
}

// otherTokens are the variables that would lead runenv to another token, or to
// another authority for its broker, than dev's.
var otherTokens = []string{
	"RUNENV_ID_TOKEN", "RUNENV_ID_TOKEN_FILE", "RUNENV_CA_FILE",
	"ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
}

// sets tells whether vars set the variable name.
func sets(vars []string, name string) bool {
	return slices.ContainsFunc(vars, func(v string) bool { return strings.HasPrefix(v, name+"=") })
}

// merge sets vars over an environment that may have them, and drops the other
// ways to a token.
func merge(environ, vars []string) []string {
	var out []string
	for _, v := range environ {
		if name, _, _ := strings.Cut(v, "="); !slices.Contains(otherTokens, name) && !sets(vars, name) {
			out = append(out, v)
		}
	}
	return append(out, vars...)
}

func newDev(ctx context.Context, env Env, path string, claims map[string]any, log *slog.Logger) (_ *devWorld, err error) {
	d := &devWorld{}
	defer func() {
		if err != nil {
			closeAll(d.brokerListener, d.issuerListener)
		}
	}()
	file, err := d.listenAndLoad(ctx, env, path)
	if err != nil {
		return nil, err
	}
	for _, entry := range file.Issuers {
		if entry.Profile != "github" || d.issuer != nil {
			continue
		}
		d.issuer, err = devissuer.New(devissuer.Config{URL: entry.URL, Claims: claims, Now: env.Now})
		if err != nil {
			return nil, fmt.Errorf("issuers.%s: %w", entry.Name, err)
		}
		if d.issuerListener == nil {
			u, err := url.Parse(entry.URL)
			if err != nil {
				return nil, fmt.Errorf("issuers.%s: %w", entry.Name, err)
			}
			if d.issuerListener, err = listen(ctx, u.Host); err != nil {
				return nil, err
			}
		}
	}
	if d.issuer == nil {
		return nil, hinted{errors.New("the file has no issuer of profile github for dev to be"), "issuers: {github: {profile: github, url: http://127.0.0.1:8099}}"}
	}
	d.world, err = assemble(ctx, env, file, mode{dev: true}, log)
	return d, err
}

// listenAndLoad takes ports and reads the file: its own, which names the
// ports, or the embedded one, into which free ports are put.
func (d *devWorld) listenAndLoad(ctx context.Context, env Env, path string) (*config.File, error) {
	if path != "" {
		file, err := load(env, path, mode{dev: true})
		if err != nil {
			return nil, err
		}
		if err := onlyLocal(file, path); err != nil {
			return nil, err
		}
		d.brokerListener, err = listen(ctx, file.Listen)
		return file, err
	}
	var err error
	if d.brokerListener, err = listen(ctx, "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if d.issuerListener, err = listen(ctx, "127.0.0.1:0"); err != nil {
		return nil, err
	}
	text := strings.NewReplacer(
		"BROKER_ADDRESS", d.brokerListener.Addr().String(),
		"ISSUER_ADDRESS", d.issuerListener.Addr().String(),
		"MADE_UP_VALUE", "demo-"+rand.Text(),
	).Replace(devFile)
	return config.Parse("dev.yaml", []byte(text), config.Options{Getenv: env.LookupEnv, Dev: true})
}

func closeAll(listeners ...net.Listener) {
	for _, l := range listeners {
		if l != nil {
			_ = l.Close()
		}
	}
}

// onlyLocal refuses what a local world must not reach: its keys are made up
// and its rules let everybody on this machine in. path is the file's, for
// messages.
func onlyLocal(file *config.File, path string) error {
	var problems config.Problems
	refuse := func(pos config.Pos, key, message, hint string) {
		if pos.File == "" {
			pos.File = path
		}
		problems = append(problems, config.Problem{Pos: pos, Path: key, Message: message, Hint: hint})
	}
	host := func(pos config.Pos, key, text string) string {
		u, err := url.Parse(text)
		var ip netip.Addr
		if err == nil {
			ip, err = netip.ParseAddr(u.Hostname())
		}
		if err != nil || u.Scheme != "http" || !ip.IsLoopback() || u.Port() == "" {
			refuse(pos, key, "dev keeps to loopback", "write it like http://127.0.0.1:8099")
			return ""
		}
		return u.Host
	}
	broker := host(config.Pos{}, "url", file.URL)
	if file.IssuerURL != file.URL {
		host(config.Pos{}, "issuer_url", file.IssuerURL)
	}
	if broker != "" && file.Listen != broker {
		refuse(config.Pos{}, "listen", "dev listens where its url says", "leave listen out")
	}
	if file.TLS != nil {
		refuse(config.Pos{}, "tls", "dev speaks plain http, on loopback", "leave tls out")
	}
	for _, entry := range file.Issuers {
		if h := host(entry.Pos, "issuers."+entry.Name+".url", entry.URL); h != "" && h == broker {
			refuse(entry.Pos, "issuers."+entry.Name+".url", "has the broker's address", "give it a port of its own")
		}
	}
	for _, entry := range file.Providers {
		if entry.Type != "static" {
			refuse(entry.Pos, "providers."+entry.Name+".type", "dev has static providers only", `for a real back end use "runenv-broker serve"`)
		}
	}
	if file.Store != "memory:" {
		refuse(config.Pos{}, "store", "dev keeps its store in memory", `leave store out, or write store: "memory:"`)
	}
	if len(problems) > 0 {
		return ordered(problems)
	}
	return nil
}

func say(env Env, format string, args ...any) {
	_, _ = fmt.Fprintf(env.Stderr, "dev: "+format+"\n", args...)
}

// settle bounds how long dev waits for ends under way when its command is
// over.
const settle = 3 * time.Second
