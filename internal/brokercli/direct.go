package brokercli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/internal/ci"
	"github.com/runenv/action/internal/cli"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

const (
	// lastEnds bounds how long the program waits, once its command is over,
	// for back ends to end what they issued: GitHub kills a cancelled job 10 s
	// after its first signal.
	lastEnds = 5 * time.Second
	// stopWait bounds the end of the broker's own work after that.
	stopWait = time.Second
)

func runCommand(env Env) *cobra.Command {
	var path, trailFile string
	var direct cli.Direct
	cmd := &cobra.Command{
		Use:   "run --config FILE [flags] -- COMMAND [ARGUMENTS...]",
		Short: "Run one command with leases, without a server",
		Long: `Run one command with leases in its environment, and end them when it exits: like
"runenv run", with a broker inside this process that no other process can reach.
It is for the time before there is a server, and weaker than one: see
docs/direct.md.

The CI job proves who it is with its own token, made out to the "url" of FILE,
and the policy of FILE decides. FILE is like that of "serve" without listen, tls,
store and seal. A provider with "auth: {method: ci}" logs in with a second token
of the job, made out to that provider, at the trust that the back end already
has. GitHub mints one for each. Elsewhere each comes by a variable of its own:
RUNENV_ID_TOKEN for the broker, and RUNENV_ID_TOKEN_FOR_NAME (or a file named by
RUNENV_ID_TOKEN_FILE_FOR_NAME) for the provider NAME, in capitals, with "_" for
what isn't a letter or digit.

The audit log goes to standard error as JSON lines before what it tells of is
handed out, or to the end of --audit-file, and isn't kept.

SIGINT and SIGTERM end the command and its leases. If this process is killed by
SIGKILL nobody revokes what it got: a login at Vault takes its leases along when
it runs out, after the "token_ttl" of its Vault role (an hour at most, five
minutes is better); other credentials live to their end.

Exit status: as of "runenv run"; 1 or 2 for a fault in FILE or in the call.`,
		Example: `  runenv-broker run --config runenv.yaml --role deploy -- ./deploy.sh
  runenv-broker run --config runenv.yaml --role deploy --lease db-readonly --audit-file audit.jsonl -- make migrate

  # Is the file right, and does the trust work?
  runenv-broker policy test --direct runenv.yaml
  runenv-broker providers check --direct --config runenv.yaml`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 || !direct.NeedsCommand() {
				return nil
			}
			return usageError{hinted{errors.New("no command to run was given"), "runenv-broker run --config FILE --role ROLE -- COMMAND ARG..."}}
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := configGiven(cmd, path); err != nil {
				return err
			}
			level := slog.LevelWarn
			if debug, err := cmd.Flags().GetBool("debug"); err == nil && debug {
				level = slog.LevelDebug
			}
			log := slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: level})
			return runDirect(cmd.Context(), env, path, trailFile, &direct, args, slog.New(&causes{Handler: log, w: env.Stderr}))
		},
	}
	configFlag(cmd, &path, "the `FILE`, which is like that of a server")
	cmd.Flags().StringVar(&trailFile, "audit-file", "", "append the audit log to a `FILE`; standard error if not given")
	direct.AddFlags(cmd.Flags())
	return cmd
}

// aloneWith is the mode of a broker for one command, before the job's source
// of tokens is known.
var aloneWith = mode{ci: func(string) providers.TokenSource {
	return func(context.Context, string) (string, error) { return "", errors.New("no token is asked for yet") }
}}

// onlyAlone refuses what a broker for one command can't do.
func onlyAlone(file *config.File, parts *opened) error {
	var problems config.Problems
	for _, entry := range file.Providers {
		if a, ok := parts.providers[entry.Name].(providers.Audienced); ok && a.Audience() != "" {
			problems = append(problems, config.Problem{
				Pos: entry.Pos, Path: "providers." + entry.Name + ".auth.method",
				Message: "logs in with the broker's own token, and nobody can verify one of a broker for one command",
				Hint:    "let it log in with the job's own token: auth: {method: ci}",
			})
		}
	}
	if len(problems) > 0 {
		return ordered(problems)
	}
	return nil
}

func runDirect(ctx context.Context, env Env, path, trailFile string, direct *cli.Direct, command []string, log *slog.Logger) error {
	// All that can be wrong with the file is found where there is no token too.
	var taken []string // variables of the job whose values are the file's credentials
	loading := env
	loading.LookupEnv = func(name string) (string, bool) {
		taken = append(taken, name)
		return env.LookupEnv(name)
	}
	file, err := loadWhole(loading, path, true)
	if err != nil {
		return err
	}
	// Before a token is asked for: nothing is begun that can't be recorded.
	t := &trail{out: env.Stderr, prefix: program + ": audit: "}
	if trailFile != "" {
		f, err := os.OpenFile(trailFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return fmt.Errorf("opening the audit file: %w", err)
		}
		defer func() { _ = f.Close() }() // each line's fate is known already
		t = &trail{out: f}
	}
	// The command's own signals are cli's; this only outlives them, so that
	// none ends the program while leases are being ended.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)

	var alone *aloneBroker
	outer := cli.OSEnv() // the command's streams are this process's own
	outer.Environ = env.Environ
	code := direct.Run(outer, cli.Local{URL: file.URL, Withhold: slices.Clone(taken), Open: func(source ci.Source) (http.RoundTripper, error) {
		var err error
		alone, err = openAlone(ctx, env, file, source, t, log)
		if err != nil {
			return nil, err
		}
		return inProcess{alone.broker.Handler(), func(ctx context.Context) error { return t.follow(ctx, alone.world) }}, nil
	}}, command)
	if alone != nil {
		err = alone.end(ctx, env, t, signals)
	}
	if code != 0 {
		if err != nil {
			report(env.Stderr, err)
		}
		return statusError(code)
	}
	return err
}

// aloneBroker is a broker for one command, at work.
type aloneBroker struct {
	*world
	stop  context.CancelFunc
	ended chan error
}

func openAlone(ctx context.Context, env Env, file *config.File, source ci.Source, t *trail, log *slog.Logger) (*aloneBroker, error) {
	w, err := assemble(ctx, env, file, mode{ci: jobTokens(env, file.URL, source)}, log)
	if err != nil {
		return nil, err
	}
	if err := t.follow(ctx, w); err != nil {
		w.close()
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	a := &aloneBroker{w, stop, make(chan error, 1)}
	go func() { a.ended <- w.broker.Run(ctx) }()
	return a, nil
}

// end waits, within bounds, for what is being ended at back ends, completes the
// trail, and says what is left behind.
func (a *aloneBroker) end(ctx context.Context, env Env, t *trail, signals <-chan os.Signal) error {
	defer a.close()
	for len(signals) > 0 {
		<-signals // it has ended the command
	}
	ctx, cancel := context.WithTimeout(ctx, lastEnds)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for busy := true; busy && ctx.Err() == nil; {
		select {
		case <-tick.C:
			counts, err := a.store.Counts(ctx)
			busy = err == nil && counts[string(store.Issuing)]+counts[string(store.Revoking)] > 0
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	}
	a.stop()
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), stopWait)
	defer cancel()
	select {
	case <-a.ended:
	case <-ctx.Done():
	}
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), stopWait)
	defer cancel()
	err := t.follow(ctx, a.world)
	return errors.Join(err, a.tellLeft(ctx, env, t.sessions))
}

// tellLeft warns of what could end and hasn't: nobody will try again.
func (a *aloneBroker) tellLeft(ctx context.Context, env Env, sessions []string) error {
	for _, id := range sessions {
		rows, err := a.store.Leases(ctx, id)
		if err != nil {
			return fmt.Errorf("reading what is left: %w", err)
		}
		for _, row := range rows {
			if row.State.Terminal() || row.State == store.Expiring {
				continue
			}
			what, until := "lease", "nothing bounds its life"
			if row.IsLogin {
				what = "the login"
			}
			if !row.DiesBy.IsZero() {
				until = "it lives until " + row.DiesBy.UTC().Format(time.RFC3339) + " at most"
			}
			warn(env, fmt.Sprintf("%s %q of provider %q isn't ended, and nobody will try again: %s", what, row.Name, row.Provider, until))
		}
	}
	return nil
}

// jobTokens gives the CI's own tokens: for each provider from a variable of its
// own, else from the source of the job's token. None is made out to the broker:
// a back end could use that one there.
func jobTokens(env Env, broker string, source ci.Source) func(string) providers.TokenSource {
	getenv := func(name string) string {
		v, _ := env.LookupEnv(name)
		return v
	}
	return func(provider string) providers.TokenSource {
		suffix := "_FOR_" + variable(provider)
		return func(ctx context.Context, audience string) (string, error) {
			from, name := source, ci.VarToken+suffix
			if audience == broker {
				return "", hinted{
					fmt.Errorf("the audience of provider %q is the broker's own url: %w", provider, providers.ErrInvalid),
					"give the provider an `auth.audience` of its own, or the file another `url`",
				}
			}
			own, err := ci.Detect(ci.Config{Getenv: func(name string) string {
				if name != ci.VarToken && name != ci.VarTokenFile {
					return ""
				}
				return getenv(name + suffix)
			}})
			if err == nil {
				from = own
			}
			token, err := from.Token(ctx, audience)
			if err != nil {
				return "", fmt.Errorf("the job's token for provider %q: %w", provider, err)
			}
			if !isFor(token, audience) {
				return "", hinted{
					fmt.Errorf("the job's token for provider %q isn't made out to %q: %w", provider, audience, providers.ErrInvalid),
					fmt.Sprintf("give the job another: %s with that audience (GitLab: `id_tokens: %s: aud: %s`)", name, name, audience),
				}
			}
			return string(token.Reveal()), nil
		}
	}
}

// variable is a name in capitals, with _ for what isn't a letter or digit.
func variable(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToUpper(name))
}

// isFor tells, unverified, whether a token names the audience and no other.
// The back end verifies it; here it keeps a token from being sent where it
// isn't meant to go.
func isFor(token secret.Value, audience string) bool {
	claims, err := ci.Peek(token)
	if err != nil {
		return false
	}
	if list, ok := claims["aud"].([]any); ok && len(list) == 1 {
		return list[0] == audience
	}
	return claims["aud"] == audience
}

// causes is a log that tells of each refusal in a line for people, with its
// cure: nobody but the caller will ever read it.
type causes struct {
	slog.Handler
	w io.Writer

	mu   sync.Mutex
	told string // the last one: a client tries some calls again
}

// Enabled implements [slog.Handler]. Refusals are logged at level info.
func (c *causes) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || c.Handler.Enabled(ctx, level)
}

// Handle implements [slog.Handler].
func (c *causes) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "refused" {
		var cause error
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "err" {
				cause, _ = a.Value.Any().(error)
			}
			return cause == nil
		})
		c.mu.Lock()
		defer c.mu.Unlock()
		if cause != nil && cause.Error() != c.told {
			c.told = cause.Error()
			report(c.w, fmt.Errorf("refused: %w", cause))
		}
		if !c.Handler.Enabled(ctx, slog.LevelDebug) {
			return nil
		}
	}
	if !c.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return c.Handler.Handle(ctx, r)
}

// A trail writes the audit log of a broker that keeps none, as it grows.
type trail struct {
	out    io.Writer
	prefix string // of each line

	mu       sync.Mutex
	next     int64
	sessions []string // that it told of
	err      error    // what stopped it, for good
}

// follow writes the entries that there are by now. Once it has failed it fails
// for ever: the record would have a gap.
func (t *trail) follow(ctx context.Context, w *world) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return t.err
	}
	if err := w.audit.Flush(ctx); err != nil {
		return fmt.Errorf("completing the audit log: %w", err)
	}
	for {
		page, err := w.store.Entries(ctx, t.next, 1000)
		if err != nil {
			return fmt.Errorf("reading the audit log: %w", err)
		}
		if len(page) == 0 {
			return nil
		}
		var lines strings.Builder
		for _, e := range page {
			lines.WriteString(t.prefix + escaped(e.Body) + "\n")
			t.next = e.Index + 1
			var rec audit.Record
			if json.Unmarshal(e.Body, &rec) == nil && rec.Event == "session.created" {
				t.sessions = append(t.sessions, rec.Session)
			}
		}
		if _, err := io.WriteString(t.out, lines.String()); err != nil {
			t.err = fmt.Errorf("writing the audit log: %w", err)
			return t.err
		}
	}
}
