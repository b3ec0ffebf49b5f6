// Package cli is the command line of runenv: it reads settings, and joins the
// CI's token, the broker's client, the guardian and the child process.
//
// [Main] is the whole program as a function. Everything that RunEnv itself has
// to say goes to stderr, in lines that begin with "runenv:"; stdout belongs to
// the command that it runs. RunEnv's own failures end with status 125.
package cli

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/runenv/action/internal/ci"
	"github.com/runenv/action/internal/roots"
)

// exitFailure is the status of RunEnv's own failures, as with env(1) and
// timeout(1).
const exitFailure = 125

// Env is the process that runs the program.
type Env struct {
	Args                  []string // without the program's name
	Environ               []string
	Dir                   string // the working directory
	Stdin, Stdout, Stderr *os.File
}

// OSEnv is this process.
func OSEnv() Env {
	// Without a working directory there is no .runenv.yaml in it either.
	dir, _ := os.Getwd()
	return Env{os.Args[1:], os.Environ(), dir, os.Stdin, os.Stdout, os.Stderr}
}

// Main runs the program and returns its exit status.
func Main(env Env) int {
	a := &app{env: env, say: newPrinter(env.Stderr, env.Getenv), transport: roots.New()}
	root := a.root()
	// Every start would pay for a command that a run doesn't need.
	root.CompletionOptions.DisableDefaultCmd = len(env.Args) > 0 && env.Args[0] == "run"
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	return a.exit(root.ExecuteContext(context.Background()))
}

// exit says what went wrong, if something did, and returns the exit status.
func (a *app) exit(err error) int {
	if err == nil {
		return a.status
	}
	a.say.failure(err)
	if coded, ok := errors.AsType[interface {
		error
		Code() int
	}](err); ok {
		return coded.Code()
	}
	return exitFailure
}

// Getenv looks a variable up; the last setting counts.
func (e Env) Getenv(name string) string {
	value := ""
	for _, kv := range e.Environ {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			value = v
		}
	}
	return value
}

// app is one run of the program.
type app struct {
	env       Env
	say       *printer
	transport http.RoundTripper // to what the system trusts
	status    int               // the exit status, where there is no error
}

func (a *app) detect() (ci.Source, error) {
	return ci.Detect(ci.Config{Getenv: a.env.Getenv, HTTP: &http.Client{Transport: a.transport}})
}

// logger writes to stderr at debug level, or nowhere. Tokens and values are
// secret.Values: no handler can show them.
func (a *app) logger(debug bool) *slog.Logger {
	if !debug {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(a.env.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "runenv",
		Short: "Give one command short-lived credentials, for as long as it runs",
		Long: `RunEnv gives one command the credentials that it needs, for as long as it runs.

A CI job proves who it is with the OIDC token that its CI mints. A RunEnv broker
checks that token and answers with leases: short-lived credentials. "runenv run"
puts them into the environment of one command, hides them in its output, and
ends them when the command exits. Nothing is written to a disk.`,
		Example: `  runenv run --broker https://runenv.example.com --role deploy -- ./deploy.sh
  runenv scan --values - dist <values.txt
  runenv whoami`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{err.Error(), cmd.CommandPath()}
	})
	root.AddCommand(a.runCommand(), a.scanCommand(), a.whoamiCommand(), a.actionCommand(), versionCommand())
	return root
}

func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return &usageError{`there is no command "` + args[0] + `"; to run it with leases: runenv run -- ` + args[0], cmd.CommandPath()}
}

// noArguments is for commands that take none.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return &usageError{`it takes no arguments, but got "` + args[0] + `"`, cmd.CommandPath()}
}

// A usageError is a command line that can't be understood.
type usageError struct{ what, command string }

func (e *usageError) Error() string { return e.what }

// Hint says where to read more.
func (e *usageError) Hint() string { return "see `" + e.command + " --help`" }
