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
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
	"unicode"

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
	// Again executes the program once more in its place, with the same words;
	// nil where there is no process to replace. It returns only an error.
	Again func() error
}

// OSEnv is the process's own.
func OSEnv() Env {
	return Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Environ: os.Environ(), LookupEnv: os.LookupEnv, Now: time.Now,
		Again: func() error {
			path, err := os.Executable()
			if err != nil {
				return err
			}
			return syscall.Exec(path, os.Args, os.Environ()) //nolint:gosec // what runs already
		},
	}
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
// a mistake in the call, or the status of the command that dev or run ran.
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
// Texts from outside can't begin a line or steer a terminal.
func report(w io.Writer, err error) {
	say := func(kind, text string) {
		if text != "" {
			_, _ = fmt.Fprintf(w, "%s: %s: %s\n", program, kind, oneLine(text))
		}
	}
	if problems, ok := errors.AsType[config.Problems](err); ok {
		for _, p := range problems {
			hint := p.Hint
			p.Hint = ""
			say("error", p.String())
			say("hint", hint)
		}
		return
	}
	say("error", err.Error())
	say("hint", hintOf(err))
}

// hintOf is the cure that some error of the chain knows, or empty.
func hintOf(err error) string {
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		return h.Hint()
	}
	return ""
}

// oneLine makes one line without control characters.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
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
  runenv-broker providers check --config /etc/runenv/broker.yaml
  runenv-broker serve --config /etc/runenv/broker.yaml`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.SetFlagErrorFunc(misused)
	root.AddCommand(
		serveCommand(env), devCommand(env), runCommand(env), policyCommand(env), providersCommand(env), leasesCommand(env),
		auditCommand(env), keysCommand(env), versionCommand(),
	)
	return root
}

// misused is a mistake in the call of cmd.
func misused(cmd *cobra.Command, err error) error {
	return usageError{hinted{err, fmt.Sprintf("see `%s --help`", cmd.CommandPath())}}
}

// noSuchCommand is for commands that only have others.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("there is no command %q", args[0])
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return usageError{hinted{err, fmt.Sprintf("did you mean `%s %s`?", cmd.CommandPath(), near[0])}}
	}
	return misused(cmd, err)
}

// noArguments is for commands that take none.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return misused(cmd, fmt.Errorf("it takes no arguments, but got %q", args[0]))
}

// configFlag adds --config.
func configFlag(cmd *cobra.Command, path *string, usage string) {
	cmd.Flags().StringVar(path, "config", "", usage)
	_ = cmd.MarkFlagFilename("config", "yaml", "yml") // it fails for unknown flags alone
}

// configGiven is the refusal of an empty --config.
func configGiven(cmd *cobra.Command, path string) error {
	if path != "" {
		return nil
	}
	return usageError{hinted{errors.New("--config is missing"), fmt.Sprintf("name the broker's file: %s --config /etc/runenv/broker.yaml", cmd.CommandPath())}}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s (%s %s/%s)\n", program, Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
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

// untilStopped is ctx that ends with SIGINT or SIGTERM. A second signal finds
// its default, from when stopping is called on: it ends the program at once.
func untilStopped(ctx context.Context, stopping func()) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, func() {
		stop()
		stopping()
	})
	return ctx, stop
}

// logFlags are the flags of a command that logs.
type logFlags struct{ format, level string }

func (f *logFlags) add(cmd *cobra.Command, format, level string) {
	formats, levels := []string{"text", "json"}, []string{"debug", "info", "warn", "error"}
	cmd.Flags().StringVar(&f.format, "log-format", format, "`FORMAT` of the log on stderr: text or json")
	cmd.Flags().StringVar(&f.level, "log-level", level, "the least `LEVEL` that is logged: debug, info, warn or error; none shows a secret")
	// These fail for unknown flags alone.
	_ = cmd.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions(levels, cobra.ShellCompDirectiveNoFileComp))
}

func (f *logFlags) logger(cmd *cobra.Command, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return nil, misused(cmd, fmt.Errorf("--log-level is %q, and not debug, info, warn or error", f.level))
	}
	opts := &slog.HandlerOptions{Level: level}
	switch f.format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	}
	return nil, misused(cmd, fmt.Errorf("--log-format is %q, and not text or json", f.format))
}
