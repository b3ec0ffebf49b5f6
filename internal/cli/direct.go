package cli

import (
	"errors"
	"net/http"

	"github.com/spf13/pflag"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/internal/ci"
	"github.com/runenv/action/internal/roots"
)

// A Direct is `runenv run` with a broker inside this process, which no other
// process can reach. Its flags are those of `runenv run` but for the two that
// find a broker.
//
// No guardian ends the session, since what could do so dies with this process;
// one removes file secrets.
type Direct struct {
	o     runOptions
	flags *pflag.FlagSet
}

// AddFlags adds the flags.
func (d *Direct) AddFlags(f *pflag.FlagSet) {
	d.flags = f
	d.o.addFlags(f)
}

// NeedsCommand says whether there is something to run: --explain runs nothing.
func (d *Direct) NeedsCommand() bool { return !d.o.explain }

// A Local broker is one inside this process.
type Local struct {
	// URL is the broker's, to which the job's token is made out.
	URL string
	// Withhold are names of variables that the broker's file takes credentials
	// from: the broker's, and not the command's.
	Withhold []string
	// Open opens it, with the job's source of tokens, once it is known that
	// there is one. Requests to URL are then made through what it returns.
	Open func(ci.Source) (http.RoundTripper, error)
}

// Run runs the command under the broker, and returns its exit status or that
// of `runenv run`. It has then said what went wrong.
func (d *Direct) Run(env Env, broker Local, command []string) int {
	a := &app{env: env, say: newPrinter(env.Stderr, env.Getenv), transport: roots.New()}
	if err := fromVariables(d.flags, env.Getenv); err != nil {
		return a.exit(err)
	}
	o := d.o
	o.local = &broker
	if err := o.check("runenv-broker run"); err != nil {
		return a.exit(err)
	}
	return a.exit(explained(a.run(o, command)))
}

// A causedError has a cause that the broker, which is in this process, has
// told already.
type causedError struct{ error }

func (e causedError) Unwrap() error { return e.error }

// Hint is in the place of those that send people to another machine.
func (causedError) Hint() string { return "the line of runenv-broker above says why" }

// explained gives a broker's refusal the hint that fits one in this process.
// What is wrong with the job's own token the client knows best.
func explained(err error) error {
	refused, isRefused := errors.AsType[*client.Error](err)
	_, unreachable := errors.AsType[*client.UnreachableError](err)
	if isRefused && refused.Refusal.Code != api.CodeInvalidRequest || unreachable {
		return causedError{err}
	}
	return err
}
