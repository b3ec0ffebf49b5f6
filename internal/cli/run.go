package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/internal/ci"
	"github.com/runenv/action/internal/inject"
)

type runOptions struct {
	settings
	ifNoToken    string
	passCIToken  bool
	inherit      inherit
	files        fileOptions
	serve        serveOptions
	noRedact     bool
	scan         scanOptions
	onExit       string
	watchRestart bool
	explain      bool
	asJSON       bool
	verbose      bool
	debug        bool

	// step is the action's step whose run this is; nil for `runenv run`.
	step *actionStep
	// local is the broker in this process; nil where it is another's.
	local *Local
}

// inherit says what the command gets of the caller's environment.
type inherit struct {
	pristine         bool
	only, deny, keep []string
}

func (a *app) runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENTS...]",
		Short: "Run a command with leases in its environment",
		Long: `Run a command with leases in its environment, and end them when it exits.

RunEnv takes the job's OIDC token, trades it at the broker for a session in one
role, and leases what --lease names, or else all leases of the role. The command
gets the leases as environment variables, or as files in memory whose paths the
variables hold, and what it prints of them is replaced by [REDACTED:lease]. When
it exits, the session ends: credentials that can be revoked are revoked, others
expire at a time that --verbose tells. Then what changed in the workspace is
searched for the values (--scan): one that the command left there makes the run
fail. The workspace is GITHUB_WORKSPACE, CI_PROJECT_DIR or the working directory.

A lease is a name that the role has, or a reference to a secret that the role
grants, with the variable that gets it: NPM_TOKEN=vault://secret/ci/npm#token,
or APP_*=aws-sm://prod/app for a variable of each field. Without a variable it
is the field's name. References begin with vault://, aws-sm://, aws-ssm:// and
gcp-sm://; ARNs and the spellings of vault-action, bank-vaults and berglas are
read too.

The command's streams, signals and exit status pass through unchanged. It
doesn't get the variables by which more credentials could be had, unless
--pass-ci-token is given. If RunEnv itself is killed, a guardian process ends
the session; if that is killed too, the broker does, after missed heartbeats.

Settings come from flags, else from RUNENV_BROKER, RUNENV_ROLE, RUNENV_LEASES
(with commas, white space or semicolons between) and RUNENV_CA_FILE, else from
.runenv.yaml in the working directory, which may hold broker, role and leases.
In CI that file can't set the broker: a pull request could change it. --pristine,
--only, --deny, --keep-existing, --files, --isolate, --scan, --scan-path,
--scan-ignore, --on-exit and --serve can be set by variables too, such as
RUNENV_SCAN_PATH, with lines or semicolons between the items of a list.

A lease that can't be renewed in place grows old in a variable. With --serve it
is leased anew before it ends, and stands in no variable: AWS's SDKs and CLI ask
for it at AWS_CONTAINER_CREDENTIALS_FULL_URI, Google's libraries and gcloud at
GCE_METADATA_HOST, Vault's clients at VAULT_ADDR, on 127.0.0.1. Vault's need the
path: references have it, for a named lease it is LEASE:PATH#FIELD=VARIABLE,...
(secret/data/ci/npm for a KV engine that isn't mounted at its first segment).
For programs that can't ask again there is --watch-restart.

The job's token comes from RUNENV_ID_TOKEN_FILE, RUNENV_ID_TOKEN (GitLab:
"id_tokens:", with the broker's URL as "aud:") or GitHub Actions ("permissions:
id-token: write").

Exit status: the command's own; 128+n if signal n killed it; 127 if it wasn't
found, 126 if it can't be executed; 125 if RunEnv failed before it could run,
130 or 143 if SIGINT or SIGTERM came before that. A hit of the leak scan is 125
if the command's own status was 0. A session that couldn't be ended, or that the
broker ended early, is a warning.`,
		Example: `  # Everything that the role has:
  runenv run --broker https://runenv.example.com --role deploy -- ./deploy.sh

  # One lease, with the broker and the role from RUNENV_BROKER and RUNENV_ROLE:
  runenv run --lease db-readonly -- psql -c 'select 1'

  # Secrets by reference, as far as the role grants them:
  runenv run --lease NPM_TOKEN=vault://secret/ci/npm#token --lease 'APP_*=aws-sm://prod/app' -- npm publish

  # A job longer than its AWS session: the SDKs ask for the next one on loopback.
  runenv run --lease deploy --serve aws -- ./migrate.sh

  # Vault's CLI reads the lease, renewed, where it always did:
  runenv run --lease DB_PASSWORD=vault://database/creds/ro#password --serve vault -- ./report.sh
  runenv run --lease db --serve 'vault=db:database/creds/ro#username=DB_USER,password=DB_PASSWORD' -- ./report.sh

  # What would it get?
  runenv run --role deploy --explain

  # Pull requests from forks get no token: run their tests without leases.
  runenv run --if-no-token=run -- make test`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && !o.explain {
				return &usageError{"no command to run was given", cmd.CommandPath()}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := fromVariables(cmd.Flags(), a.env.Getenv); err != nil {
				return err
			}
			if err := o.check(cmd.CommandPath()); err != nil {
				return err
			}
			return a.run(o, args)
		},
	}
	f := cmd.Flags()
	brokerFlags(f, &o.settings)
	o.addFlags(f)
	_ = cmd.RegisterFlagCompletionFunc("lease", completeLease) // it fails for unknown flags alone
	_ = cmd.RegisterFlagCompletionFunc("serve", completeServe)
	return cmd
}

// addFlags adds the flags that don't say where the broker is.
func (o *runOptions) addFlags(f *pflag.FlagSet) {
	f.SetInterspersed(false) // what follows the command's name is the command's
	f.SortFlags = false
	f.StringVar(&o.role, "role", "", "the RunEnv `ROLE` to ask for ($"+varRole+")")
	f.StringArrayVar(&o.leases, "lease", nil, "`NAME` of a lease, or VARIABLE=REFERENCE, once for each; default: all of the role's ($"+varLeases+")")
	f.StringVar(&o.ifNoToken, "if-no-token", "fail", "`WHAT` to do where the CI gives no token: fail, skip (status 0) or run without leases")
	f.BoolVar(&o.passCIToken, "pass-ci-token", false, "leave the CI's token variables in the command's environment")
	f.BoolVar(&o.inherit.pristine, "pristine", false, "let the command inherit nothing but what a login gives, such as PATH and HOME, and what --only names")
	f.StringArrayVar(&o.inherit.only, "only", nil, "let the command inherit variables whose name matches the `GLOB`, and no others; once for each")
	f.StringArrayVar(&o.inherit.deny, "deny", nil, "let the command inherit no variable whose name matches the `GLOB`; once for each")
	f.StringArrayVar(&o.inherit.keep, "keep-existing", nil, "leave the variable `NAME` as it is, if it is set, though a lease sets it too; once for each")
	fileFlags(f, &o.files)
	f.BoolVar(&o.noRedact, "no-redact", false, "hand the output through untouched, values and all")
	f.StringVar(&o.scan.mode, "scan", scanFail, "`WHAT` to do about values that the command left in files: fail, scrub (overwrite them), warn, or off")
	f.StringArrayVar(&o.scan.paths, "scan-path", nil, "search the file or folder `PATH` too, beside the workspace; once for each")
	f.StringArrayVar(&o.scan.ignore, "scan-ignore", nil, "leave out files and folders that match the `GLOB`, like **/tfplan; once for each")
	f.StringVar(&o.onExit, "on-exit", onExitKill, "`WHAT` becomes of processes that the command leaves running: kill, or detach (they live on)")
	f.StringArrayVar(&o.serve.texts, "serve", nil, "serve a lease on loopback, renewed, to tools that ask for credentials again: `TOOLS` are aws, gce (Linux) or vault, with =LEASE where several would do; once for each")
	f.BoolVar(&o.watchRestart, "watch-restart", false, "when a lease runs out, lease it anew, stop the command and start it again")
	f.BoolVar(&o.explain, "explain", false, "say what the command would get, from which lease and how; lease and run nothing")
	f.BoolVar(&o.asJSON, "json", false, "with --explain: as JSON")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "say on stderr what became of each lease")
	f.BoolVar(&o.debug, "debug", false, "log to stderr what is done; never a value or a token")
}

const (
	onExitKill   = "kill"
	onExitDetach = "detach"
)

// check refuses what can't be meant; command is the one whose flags they are.
func (o *runOptions) check(command string) error {
	for _, choice := range []struct {
		flag, is string
		among    []string
	}{
		{"if-no-token", o.ifNoToken, []string{"fail", "skip", "run"}},
		{"on-exit", o.onExit, []string{onExitKill, onExitDetach}},
		{"scan", o.scan.mode, scanModes},
	} {
		if last := len(choice.among) - 1; !slices.Contains(choice.among, choice.is) {
			return &usageError{fmt.Sprintf("--%s is %q, and not %s or %s", choice.flag, choice.is, strings.Join(choice.among[:last], ", "), choice.among[last]), command}
		}
	}
	if o.asJSON && !o.explain {
		return &usageError{"--json is for --explain", command}
	}
	if err := o.scan.check(); err != nil {
		return &usageError{"--scan-ignore: " + err.Error(), command}
	}
	if err := o.serve.check(); err != nil {
		return &usageError{"--serve " + err.Error(), command}
	}
	return o.files.check(command)
}

// run is `runenv run`: DESIGN section 9, in its order.
func (a *app) run(o runOptions, command []string) error {
	if err := o.resolve(a.env); err != nil {
		return err
	}
	if o.local != nil {
		// Its own file names it: neither a variable nor .runenv.yaml does.
		o.broker, o.refusedBroker, o.caFile = o.local.URL, false, ""
	}
	p := a.newProcess(command, o)
	defer p.close()
	source, err := a.detect()
	if _, none := errors.AsType[*ci.NoTokenError](err); none && o.ifNoToken != "fail" && !o.explain {
		return a.withoutToken(p, o)
	}
	if err != nil {
		return err
	}
	g := newStandby(p, a.sweepFiles)
	c, ca, err := a.client(p, &o, source, g.use)
	if err != nil {
		return err
	}
	p.log.Debug("asking for a session", "broker", o.broker, "role", o.role, "token", source.Name())
	if o.explain {
		s, err := p.open(func(ctx context.Context) (*client.Session, error) { return c.Exchange(ctx, o.role) })
		if err != nil {
			return err
		}
		return a.explain(p, s, &o)
	}
	h, leases, err := a.open(p, &o, c, ca, g)
	if err != nil {
		return err
	}
	return a.inSession(p, h, leases, &o)
}

// open makes the session with its leases.
func (a *app) open(p *process, o *runOptions, c *client.Client, ca []byte, g *standby) (*held, []api.Lease, error) {
	var leases []api.Lease
	s, err := p.open(func(ctx context.Context) (s *client.Session, err error) {
		s, leases, err = c.ExchangeAndLease(ctx, o.role, o.leaseRequest())
		return s, err
	})
	if err != nil {
		g.dismiss()
		return nil, nil, err
	}
	return a.hold(p, s, o, ca, g), leases, nil
}

// client makes the broker's client. While it waits for an exchange it calls
// waiting. It returns the CA that vouches for the broker, if one was named.
func (a *app) client(p *process, o *runOptions, source ci.Source, waiting func()) (c *client.Client, ca []byte, err error) {
	if err := o.complete(); err != nil {
		return nil, nil, err
	}
	if ca, err = o.ca(); err != nil {
		return nil, nil, err
	}
	cfg := client.Config{URL: o.broker, Source: begunSource{p, source}, CAPEM: ca, Log: p.log, Wait: p.wait}
	if o.local == nil && !o.explain {
		cfg.Waiting = waiting
	}
	switch {
	case o.local != nil:
		if cfg.Transport, err = o.local.Open(source); err != nil {
			return nil, nil, err
		}
	case ca == nil:
		cfg.Transport = a.transport
	}
	c, err = client.New(cfg)
	return c, ca, err
}

// withoutToken is for forks and Dependabot.
func (a *app) withoutToken(p *process, o runOptions) error {
	if o.ifNoToken == "skip" {
		a.say.note("no OIDC token here: skipping the command (--if-no-token=skip)")
		return o.step.skipped(true)
	}
	a.say.warning("no OIDC token here: the command runs without leases (--if-no-token=run)")
	go a.sweepFiles()
	if err := o.step.skipped(false); err != nil {
		return err
	}
	environ, err := inject.Environ(a.env.Environ, nil, o.injection(nil))
	if err != nil {
		return err
	}
	a.status, err = p.child(context.Background(), environ, nil, nil)
	return err
}

// inSession runs the command with the leases and ends the session, whatever
// happens.
func (a *app) inSession(p *process, h *held, leases []api.Lease, o *runOptions) (err error) {
	s := h.session
	d := &delivery{a: a, p: p, o: o, session: s, held: h, again: make(chan struct{}, 1)}
	defer func() { err = d.end(err) }()

	d.take(leases)
	if err := o.step.opened(s); err != nil {
		return err
	}
	if err := d.serve(leases); err != nil {
		return err
	}
	if err := o.step.leased(s, leases, d.bearers); err != nil {
		return err
	}
	d.held.watched()
	p.log.Debug("leased", "session", s.ID(), "leases", leaseNames(leases))
	if o.verbose || o.debug {
		for _, l := range leases {
			a.say.note(fmt.Sprintf("lease %q is leased: %s", l.Name, promise(l)))
		}
	}
	d.held.warnBeforeExpiry(leases, s.HardEnd())
	a.status, err = d.run()
	return err
}

func leaseNames(leases []api.Lease) string {
	names := make([]string, len(leases))
	for i, l := range leases {
		names[i] = l.Name
	}
	return strings.Join(names, " ")
}

// injection is what the flags say of the environment. A variable that vars
// doesn't set needn't be kept.
func (o *runOptions) injection(vars []inject.Var) inject.Options {
	opt := inject.Options{PassCIToken: o.passCIToken, Pristine: o.inherit.pristine, Only: o.inherit.only, Deny: o.inherit.deny}
	if vars != nil {
		opt.Keep = o.inherit.keep
	}
	if o.local != nil {
		opt.NotInherited = o.local.Withhold
	}
	return opt
}
