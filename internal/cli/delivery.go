package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/internal/endpoint"
	"github.com/runenv/action/internal/inject"
	"github.com/runenv/action/internal/needle"
	"github.com/runenv/action/internal/redact"
)

// restartGrace is how long a command that is to be started again has to stop.
const restartGrace = 10 * time.Second

// A delivery is the leases of a session on their way to one command, and what
// is to be hidden and looked for because of them.
type delivery struct {
	a       *app
	p       *process
	o       *runOptions
	session *client.Session
	held    *held

	mu      sync.Mutex
	leases  []api.Lease     // that the command gets
	secrets []redact.Secret // of these and of all that they replaced
	hiding  *redact.Redactor
	warned  map[string]bool // leases of which a value was said to be weak

	search  *leakSearch      // nil before the command
	keeper  *endpoint.Keeper // nil where no lease is kept fresh
	server  *endpoint.Server // nil where none is served
	bearers []redact.Secret  // of the server
	again   chan struct{}    // the command is to be started again

	removing sync.WaitGroup // of file secrets
}

// take adds leases to what is delivered.
func (d *delivery) take(leases []api.Lease) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leases = append(d.leases, leases...)
	for _, l := range leases {
		d.learn(secretsOf(l))
	}
}

// learn has values hidden and looked for from now on. mu is held.
func (d *delivery) learn(secrets []redact.Secret) {
	known := len(d.secrets)
	for _, s := range secrets {
		if !slices.ContainsFunc(d.secrets, func(have redact.Secret) bool {
			return (s.Part || !have.Part) && bytes.Equal(have.Value.Reveal(), s.Value.Reveal())
		}) {
			d.secrets = append(d.secrets, s)
		}
	}
	if d.hiding != nil && len(d.secrets) > known {
		d.hiding.Add(d.secrets[known:])
		d.warnOfWeak()
	}
}

// secretsOf are the values of a lease that the broker says are to be hidden.
// Parts of values that are too short for it, such as a port, aren't worth a
// warning.
func secretsOf(l api.Lease) []redact.Secret {
	var out []redact.Secret
	for _, v := range l.Env {
		if v.Mask {
			out = append(out, redact.Secret{Lease: l.Name, Value: v.Value.Value})
		}
	}
	for _, f := range l.Files {
		if f.Mask {
			out = append(out, redact.Secret{Lease: l.Name, Value: f.Value.Value})
		}
	}
	for _, v := range l.Hide {
		if len(bytes.TrimSpace(v.Reveal())) >= redact.MinBytes {
			out = append(out, redact.Secret{Lease: l.Name, Value: v.Value, Part: true})
		}
	}
	return out
}

// environ is the command's environment, with the paths of its files. mu is
// held.
func (d *delivery) environ(paths []inject.Var) ([]string, error) {
	vars := append([]inject.Var{}, paths...)
	for _, l := range d.leases {
		for _, v := range l.Env {
			vars = append(vars, inject.Var{Name: v.Name, Value: v.Value.Value, Lease: l.Name})
		}
	}
	opt := d.o.injection(vars)
	if err := d.endpointVars(&opt, paths); err != nil {
		return nil, err
	}
	return inject.Environ(d.a.env.Environ, vars, opt)
}

// run runs the command, with --watch-restart as often as it is to, and returns
// its last status.
func (d *delivery) run() (int, error) {
	for {
		status, again, err := d.once()
		if err != nil || !again {
			return status, err
		}
	}
}

// hide makes ready to hide all values. mu is held.
func (d *delivery) hide() {
	if d.hiding != nil || len(d.secrets) == 0 && d.keeper == nil || d.o.noRedact && d.o.scan.mode == scanOff {
		return
	}
	d.hiding = redact.New(d.secrets)
	d.warnOfWeak()
}

// warnOfWeak says once of a lease that a value of its can't be hidden, or is
// told by being hidden. mu is held.
func (d *delivery) warnOfWeak() {
	for _, w := range needle.Weak(d.secrets) {
		if d.warned[w.Lease] {
			continue
		}
		if d.warned == nil {
			d.warned = map[string]bool{}
		}
		d.warned[w.Lease] = true
		d.a.say.warning(weakText(fmt.Sprintf("lease %q", w.Lease), w, "that one isn't hidden in the output",
			"whoever gets the command to print or write guesses learns which is right; take a longer one, or set mask: false if it is no secret"))
	}
}

// weakText tells of values that are too short, easy to guess, or some of each,
// and what follows. Whoever guesses learns no more than that from it.
func weakText(of string, w needle.Weakness, short, easy string) string {
	var parts []string
	if w.Short {
		parts = append(parts, fmt.Sprintf("has a value of under %d bytes: %s", needle.MinBytes, short))
	}
	if w.Easy {
		parts = append(parts, "has a value that is easy to guess: "+easy)
	}
	return of + " " + strings.Join(parts, "; and ")
}

// prepare makes the command's files and environment of the leases as they are
// now. Remove the files in the end.
func (d *delivery) prepare() (files *delivered, environ []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-d.again: // it is about to be
	default:
	}
	more, err := d.endpointFiles()
	if err != nil {
		return nil, nil, err
	}
	d.hide()
	if files, err = d.a.deliver(d.p, d.held, d.leases, d.o.files, more...); err != nil {
		return nil, nil, err
	}
	if environ, err = d.environ(files.vars); err != nil {
		files.remove()
		return nil, nil, err
	}
	return files, environ, nil
}

// once runs the command once; again says that it was stopped to get other
// values.
func (d *delivery) once() (status int, again bool, err error) {
	d.removing.Wait() // of the command before
	files, environ, err := d.prepare()
	if err != nil {
		return 0, false, err
	}
	defer d.removing.Go(files.remove) // while the session ends
	if d.search == nil {
		d.search = d.beginSearch()
	}
	redactor := d.hiding
	if d.o.noRedact {
		redactor = nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	over, restart := make(chan struct{}), make(chan bool, 1)
	go func() { restart <- d.awaitRestart(over, cancel) }()
	status, err = d.p.child(ctx, environ, redactor, files.start)
	close(over)
	return status, <-restart, files.startError(err)
}

// awaitRestart waits until a lease is replaced or the command is over, and
// stops the command in the first case. A signal that comes meanwhile from
// elsewhere means that it isn't to be started again.
func (d *delivery) awaitRestart(over <-chan struct{}, kill context.CancelFunc) bool {
	select {
	case <-over:
		return false
	case <-d.again:
	}
	before := d.p.ended.Load()
	d.a.say.note("the command is stopped and started again, with other values")
	select {
	case d.p.forward <- syscall.SIGTERM:
	case <-over:
	}
	grace := time.NewTimer(restartGrace)
	defer grace.Stop()
	select {
	case <-over:
	case <-grace.C:
		kill()
		<-over
	}
	return d.p.ended.Load() == before
}

// end ends the session, looks for what the command left of its leases, and
// forgets them. It returns what the run fails with, which is err if that isn't
// nil.
func (d *delivery) end(err error) error {
	d.unserve() // what is to be looked for is settled then
	// The search needs nobody, and the session's end is mostly waiting.
	searched := make(chan *leaks, 1)
	go func() {
		d.removing.Wait() // they may lie in a folder that is searched
		searched <- d.find()
	}()
	ended, endErr := d.held.end(d.o.verbose || d.o.debug)
	d.removing.Wait()
	gone := d.held.letGo(endErr == nil)
	defer gone()
	found := <-searched
	if found != nil {
		d.tell(found)
	}
	d.o.step.ended(ended, endErr, found)
	if found != nil && err == nil && found.fails() && d.a.status == 0 {
		d.a.status = exitFailure
	}
	d.forget()
	return err
}

// forget overwrites the values that this process holds.
func (d *delivery) forget() {
	if d.hiding != nil {
		d.hiding.Wipe()
	}
	for _, s := range d.secrets {
		clear(s.Value.Reveal())
	}
}

// report tells the broker's audit log of what --scan was told or found.
func (d *delivery) report(r api.Report) {
	ctx, cancel := context.WithTimeout(d.p.ending, endTimeout)
	defer cancel()
	if err := d.session.Report(ctx, r); err != nil && !errors.Is(err, context.Canceled) {
		d.a.say.problem("the broker's audit log doesn't tell of the leak scan", err)
	}
}
