package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/internal/ci"
	"github.com/runenv/action/internal/inject"
	"github.com/runenv/action/internal/redact"
)

type runOptions struct {
	settings
	ifNoToken   string
	passCIToken bool
	noRedact    bool
	verbose     bool
	debug       bool

	// step is the action's step whose run this is; nil for `runenv run`.
	step *actionStep
	// local is the broker in this process; nil where it is another's.
	local *Local
}

func (a *app) runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENTS...]",
		Short: "Run a command with leases in its environment",
		Long: `Run a command with leases in its environment, and end them when it exits.

RunEnv takes the job's OIDC token, trades it at the broker for a session in one
role, and leases what --lease names, or else all leases of the role. The command
gets the leases as environment variables, and what it prints of them is replaced
by [REDACTED:lease]. When it exits, the session ends: credentials that can be
revoked are revoked, others expire at a time that --verbose tells.

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
In CI that file can't set the broker: a pull request could change it.

The job's token comes from RUNENV_ID_TOKEN_FILE, RUNENV_ID_TOKEN (GitLab:
"id_tokens:", with the broker's URL as "aud:") or GitHub Actions ("permissions:
id-token: write").

Exit status: the command's own; 128+n if signal n killed it; 127 if it wasn't
found, 126 if it can't be executed; 125 if RunEnv failed before it could run,
130 or 143 if SIGINT or SIGTERM came before that. A session that couldn't be
ended, or that the broker ended early, is a warning.`,
		Example: `  # Everything that the role has:
  runenv run --broker https://runenv.example.com --role deploy -- ./deploy.sh

  # One lease, with the broker and the role from RUNENV_BROKER and RUNENV_ROLE:
  runenv run --lease db-readonly -- psql -c 'select 1'

  # Secrets by reference, as far as the role grants them:
  runenv run --lease NPM_TOKEN=vault://secret/ci/npm#token --lease 'APP_*=aws-sm://prod/app' -- npm publish

  # Pull requests from forks get no token: run their tests without leases.
  runenv run --if-no-token=run -- make test`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{"no command to run was given", cmd.CommandPath()}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
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
	f.BoolVar(&o.noRedact, "no-redact", false, "hand the output through untouched, values and all")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "say on stderr what became of each lease")
	f.BoolVar(&o.debug, "debug", false, "log to stderr what is done; never a value or a token")
}

// check refuses what can't be meant; command is the one whose flags they are.
func (o *runOptions) check(command string) error {
	switch o.ifNoToken {
	case "fail", "skip", "run":
		return nil
	}
	return &usageError{fmt.Sprintf("--if-no-token is %q, and not fail, skip or run", o.ifNoToken), command}
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
	if _, none := errors.AsType[*ci.NoTokenError](err); none && o.ifNoToken != "fail" {
		return a.withoutToken(p, o)
	}
	if err != nil {
		return err
	}
	if err := o.complete(); err != nil {
		return err
	}
	ca, err := o.ca()
	if err != nil {
		return err
	}
	cfg := client.Config{URL: o.broker, Source: source, CAPEM: ca, Log: p.log, Wait: p.wait}
	switch {
	case o.local != nil:
		if cfg.Transport, err = o.local.Open(source); err != nil {
			return err
		}
	case ca == nil:
		cfg.Transport = a.transport
	}
	c, err := client.New(cfg)
	if err != nil {
		return err
	}
	p.log.Debug("asking for a session", "broker", o.broker, "role", o.role, "token", source.Name())
	var starting <-chan started
	if o.local == nil {
		starting = startGuardian()
	}
	s, err := p.open(c, o.role)
	if err != nil {
		dismiss(starting)
		return err
	}
	return a.inSession(p, s, o, ca, starting)
}

// withoutToken is for forks and Dependabot.
func (a *app) withoutToken(p *process, o runOptions) error {
	if o.ifNoToken == "skip" {
		a.say.note("no OIDC token here: skipping the command (--if-no-token=skip)")
		return o.step.skipped(true)
	}
	a.say.warning("no OIDC token here: the command runs without leases (--if-no-token=run)")
	if err := o.step.skipped(false); err != nil {
		return err
	}
	environ, err := a.environ(nil, o.passCIToken)
	if err != nil {
		return err
	}
	status, err := p.child(environ, nil)
	a.status = status
	return err
}

// inSession leases, runs the command and ends the session, whatever happens.
func (a *app) inSession(p *process, s *client.Session, o runOptions, ca []byte, starting <-chan started) error {
	held := a.hold(p, s, ca, starting)
	defer func() { o.step.ended(held.end(o.verbose || o.debug)) }()

	if err := o.step.opened(s); err != nil {
		return err
	}
	leases, err := s.LeaseAll(p.starting, o.leaseRequest())
	if err != nil {
		return p.orSignal(err)
	}
	if err := o.step.leased(s, leases); err != nil {
		return err
	}
	p.log.Debug("leased", "session", s.ID(), "leases", leaseNames(leases))
	environ, err := a.environ(leases, o.passCIToken)
	if err != nil {
		return err
	}
	if o.verbose || o.debug {
		for _, l := range leases {
			a.say.note(fmt.Sprintf("lease %q is leased: %s", l.Name, promise(l)))
		}
	}
	held.warnBeforeExpiry(leases, s.HardEnd())
	a.status, err = p.child(environ, a.redactor(leases, o.noRedact))
	return err
}

func leaseNames(leases []api.Lease) string {
	names := make([]string, len(leases))
	for i, l := range leases {
		names[i] = l.Name
	}
	return strings.Join(names, " ")
}

// environ is the command's environment.
func (a *app) environ(leases []api.Lease, passCIToken bool) ([]string, error) {
	var vars []inject.Var
	for _, lease := range leases {
		for _, v := range lease.Env {
			vars = append(vars, inject.Var{Name: v.Name, Value: v.Value.Value, Lease: lease.Name})
		}
	}
	return inject.Environ(a.env.Environ, vars, inject.Options{PassCIToken: passCIToken})
}

// redactor hides what the broker says is to be hidden; nil if that is nothing.
func (a *app) redactor(leases []api.Lease, noRedact bool) *redact.Redactor {
	if noRedact {
		return nil
	}
	var secrets []redact.Secret
	for _, lease := range leases {
		for _, v := range lease.Env {
			if v.Mask {
				secrets = append(secrets, redact.Secret{Lease: lease.Name, Value: v.Value.Value})
			}
		}
	}
	if len(secrets) == 0 {
		return nil
	}
	r := redact.New(secrets)
	for _, name := range r.Short() {
		a.say.warning(fmt.Sprintf("lease %q has a value of under %d bytes: that one isn't hidden in the output", name, redact.MinBytes))
	}
	return r
}
