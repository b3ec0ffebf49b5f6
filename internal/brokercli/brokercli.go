// Package brokercli is the runenv-broker program: the composition root that
// alone knows the broker, its store and every provider, and the commands
// around it.
//
// Nothing here decides: a command reads the file, puts the parts together and
// reports. An error is one "error:" line and, where the cure is known, a
// "hint:" line.
package brokercli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/runenv/action/broker/config"
)

const program = "runenv-broker"

// An Env is the outside world of a run.
type Env struct {
	Stdin          *os.File
	Stdout, Stderr io.Writer
	Environ        []string
	LookupEnv      func(string) (string, bool)
	Now            func() time.Time
}

// OSEnv is the process's own.
func OSEnv() Env {
	return Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Environ: os.Environ(), LookupEnv: os.LookupEnv, Now: time.Now}
}

// statusError ends the program with a status and says nothing: a command run
// by dev has said it already.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("status %d", int(e)) }

// hinted is an error with its cure.
type hinted struct {
	error
	hint string
}

func (h hinted) Hint() string  { return h.hint }
func (h hinted) Unwrap() error { return h.error }

// usageError is a mistake in the words of the call.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// Run runs the program and returns its exit status: 0, 1 for a failure, 2 for
// a mistake in the call, or the status of the command that dev ran.
func Run(args []string, env Env) int {
	root := newRoot(env)
	root.SetArgs(args)
	err := root.ExecuteContext(context.Background())
	var status statusError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	report(env.Stderr, err)
	if errors.As(err, new(usageError)) {
		return 2
	}
	return 1
}

// report prints an error: a file's problems one a line, and every hint known.
func report(w io.Writer, err error) {
	var problems config.Problems
	if errors.As(err, &problems) {
		for _, p := range problems {
			hint := p.Hint
			p.Hint = ""
			_, _ = fmt.Fprintf(w, "%s: error: %v\n", program, p)
			if hint != "" {
				_, _ = fmt.Fprintf(w, "%s: hint: %s\n", program, hint)
			}
		}
		return
	}
	_, _ = fmt.Fprintf(w, "%s: error: %v\n", program, err)
	var h interface{ Hint() string }
	if errors.As(err, &h) && h.Hint() != "" {
		_, _ = fmt.Fprintf(w, "%s: hint: %s\n", program, h.Hint())
	}
}

func newRoot(env Env) *cobra.Command {
	root := &cobra.Command{
		Use:   program,
		Short: "Exchange CI jobs' OIDC tokens for short-lived leases",
		Long: `runenv-broker verifies the OIDC token of a CI job, asks its policy, and issues
short-lived leases from Vault or OpenBao and other back ends to the one command
that "runenv run" starts. It keeps an audit log that can be verified offline.`,
		Example: `  runenv-broker dev -- runenv run --role demo -- printenv DEMO_TOKEN
  runenv-broker policy check broker.yaml
  runenv-broker serve --config /etc/runenv/broker.yaml`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{hinted{fmt.Errorf("unknown command %q", args[0]), `see "runenv-broker --help"`}}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{hinted{err, fmt.Sprintf("see %q", cmd.CommandPath()+" --help")}}
	})
	root.AddCommand(serveCommand(env), devCommand(env), policyCommand(env), auditCommand(env), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), program, Version())
			return err
		},
	}
}

// Version is the module's version as the build recorded it.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}

// untilStopped is ctx that ends with SIGINT or SIGTERM.
func untilStopped(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
}

// logFlags are the flags of a command that logs.
type logFlags struct{ format, level string }

func (f *logFlags) add(cmd *cobra.Command, format string) {
	cmd.Flags().StringVar(&f.format, "log-format", format, "text or json")
	cmd.Flags().StringVar(&f.level, "log-level", "info", "debug, info, warn or error")
}

func (f *logFlags) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return nil, usageError{errors.New("--log-level is debug, info, warn or error")}
	}
	opts := &slog.HandlerOptions{Level: level}
	switch f.format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	}
	return nil, usageError{errors.New("--log-format is text or json")}
}
