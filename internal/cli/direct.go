package cli

import (
	"net/http"

	"github.com/spf13/pflag"

	"github.com/runenv/action/internal/ci"
	"github.com/runenv/action/internal/roots"
)

// A Direct is `runenv run` with a broker inside this process, which no other
// process can reach. Its flags are those of `runenv run` but for the two that
// find a broker.
//
// There is no guardian: what could end the session dies with this process.
type Direct struct{ o runOptions }

// AddFlags adds the flags.
func (d *Direct) AddFlags(f *pflag.FlagSet) { d.o.addFlags(f) }

// A Local broker is one inside this process.
type Local struct {
	// URL is the broker's, to which the job's token is made out.
	URL string
	// Open opens it, with the job's source of tokens, once it is known that
	// there is one. Requests to URL are then made through what it returns.
	Open func(ci.Source) (http.RoundTripper, error)
}

// Run runs the command under the broker, and returns its exit status or that
// of `runenv run`. It has then said what went wrong.
func (d *Direct) Run(env Env, broker Local, command []string) int {
	a := &app{env: env, say: newPrinter(env.Stderr, env.Getenv), transport: roots.New()}
	o := d.o
	o.local = &broker
	if err := o.check("runenv-broker run"); err != nil {
		return a.exit(err)
	}
	return a.exit(a.run(o, command))
}
