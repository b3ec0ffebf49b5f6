package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/runenv/action/client"
	"github.com/runenv/action/internal/backoff"
	"github.com/runenv/action/internal/ci"
	"github.com/runenv/action/internal/proc"
	"github.com/runenv/action/internal/redact"
	"github.com/runenv/action/secret"
)

// exchangeGrace is what a signal leaves an exchange under way: with its answer
// the session can be ended, without it the broker waits for heartbeats first.
const exchangeGrace = time.Second

// othersAfter is how old a command is when it gets the signals too that people,
// programs and CI runners don't send: most of the fifty are real-time signals.
// Subscribing takes two switches between threads for each, about as long as a
// short command with all that is done for it. Until then most do nothing; those
// that tell of a fault of its own end any Go program, and this one.
const othersAfter = 10 * time.Millisecond

// process is this process from its first signal to its last: before, while
// and after its one child runs.
type process struct {
	env      Env
	command  []string
	dir      string // the command's; "" is ours
	log      *slog.Logger
	say      *printer
	terminal bool
	board    switchboard
	detach   bool // what the command leaves running lives on
	forward  chan os.Signal
	ended    atomic.Int64 // signals that mean an end, while the command ran
	close    func()

	begun  chan struct{} // closed once a token may come: see begin
	others func()        // subscribes to the signals that are rare; set by then

	preparing sync.Mutex
	prepared  *proc.Prepared // nil if nothing is, or somebody took it

	// starting is done at the first signal that comes before the child,
	// exchanging a little later, and ending at the second one after it.
	starting, exchanging, ending context.Context

	abort, cutOff, hurry context.CancelCauseFunc
	opening              atomic.Bool
}

func (a *app) newProcess(command []string, o runOptions) *process {
	p := &process{
		env:     a.env,
		command: command,
		log:     a.logger(o.debug),
		say:     a.say,
		dir:     o.step.dir(),
		detach:  o.onExit == onExitDetach,
		// The action is signalled by a runner, not by a terminal's keys, even
		// where somebody started the runner on one.
		terminal: o.step == nil && proc.OnTerminal(),
		forward:  make(chan os.Signal, 64),

		begun: make(chan struct{}),
	}
	p.starting, p.abort = context.WithCancelCause(context.Background())
	p.exchanging, p.cutOff = context.WithCancelCause(context.Background())
	p.ending, p.hurry = context.WithCancelCause(context.Background())
	p.board.connect(p.beforeChild)
	go p.begin()
	p.close = func() {
		p.unprepare()
		p.abort(nil)
		p.cutOff(nil)
		p.hurry(nil)
	}
	return p
}

// prepare makes ready for the command, if there is one. No process is to be
// started after it but the command.
func (p *process) prepare() {
	if len(p.command) == 0 || p.detach {
		return
	}
	p.preparing.Lock()
	defer p.preparing.Unlock()
	p.prepared = proc.Prepare()
}

// takePrepared is nil where nothing was made ready, or somebody took it.
func (p *process) takePrepared() *proc.Prepared {
	p.preparing.Lock()
	defer p.preparing.Unlock()
	ready := p.prepared
	p.prepared = nil
	return ready
}

// unprepare takes back what was made ready.
func (p *process) unprepare() {
	if ready := p.takePrepared(); ready != nil {
		ready.Close()
	}
}

// begin is what has to be before anybody's token or value is here.
func (p *process) begin() {
	signals, rest := proc.NotifyFirst(p.terminal)
	p.others = sync.OnceFunc(func() {
		rest()
		p.log.Debug("all signals are passed on")
	})
	go p.board.serve(signals)
	// A killed shell step leaves nobody who wants us; under nohup somebody does.
	if !signal.Ignored(syscall.SIGHUP) {
		if err := proc.DieWithParent(); err != nil {
			p.log.Debug("not dying with the parent", "error", err)
		}
	}
	if err := proc.HardenSelf(); err != nil {
		p.say.problem("other processes of this user may read RunEnv's memory", err)
	}
	close(p.begun)
}

// A begunSource gives a token once the process has begun: a connection to the
// broker is on its way by then.
type begunSource struct {
	p *process
	ci.Source
}

func (s begunSource) Token(ctx context.Context, audience string) (secret.Value, error) {
	<-s.p.begun
	return s.Source.Token(ctx, audience)
}

func (p *process) beforeChild(sig os.Signal) {
	cause := &signalError{sig}
	switch {
	case !ends(sig):
	case p.starting.Err() == nil:
		p.abort(cause)
		p.log.Debug("ending before the command began", "signal", sig.String())
		time.AfterFunc(exchangeGrace, func() { p.cutOff(cause) })
	default:
		p.cutOff(cause)
	}
}

func (p *process) whileChild(sig os.Signal) {
	if ends(sig) {
		p.ended.Add(1)
	}
	select {
	case p.forward <- sig:
	default: // 64 wait already: it is the same signal again
	}
}

// afterChild returns what is to be done with signals while cleaning up.
func (p *process) afterChild() func(os.Signal) {
	signals := 0
	return func(sig os.Signal) {
		if signals++; ends(sig) && signals > 1 {
			p.hurry(&signalError{sig})
		}
	}
}

// wait waits for the client; while a session is being opened, a signal ends it.
func (p *process) wait(ctx context.Context, d time.Duration) error {
	if !p.opening.Load() {
		return backoff.Wait(ctx, d)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.starting, func() { cancel(context.Cause(p.starting)) })()
	return backoff.Wait(ctx, d)
}

// open makes the exchange.
func (p *process) open(exchange func(context.Context) (*client.Session, error)) (*client.Session, error) {
	p.opening.Store(true)
	defer p.opening.Store(false)
	s, err := exchange(p.exchanging)
	if err != nil {
		return nil, p.orSignal(err)
	}
	return s, nil
}

// orSignal is err, or the signal that is to blame for it.
func (p *process) orSignal(err error) error {
	if stopped, ok := errors.AsType[*signalError](context.Cause(p.starting)); ok {
		return stopped
	}
	return err
}

// A starter starts a process, as [os.StartProcess] does.
type starter = func(path string, args []string, attr *os.ProcAttr) (*os.Process, error)

// child runs the command and returns its status; when ctx ends, the command
// is stopped. A nil redactor hands the output through untouched; a nil start is
// the usual one.
func (p *process) child(ctx context.Context, environ []string, redactor *redact.Redactor, start starter) (int, error) {
	<-p.begun
	p.board.connect(p.whileChild)
	if err := p.orSignal(nil); err != nil {
		return 0, err
	}
	var stdout, stderr io.Writer = p.env.Stdout, p.env.Stderr
	flush := func() error { return nil }
	var pty *proc.PTY
	if redactor != nil {
		if p.terminal && proc.IsTerminal(p.env.Stdout) {
			pty = &proc.PTY{Stdin: proc.IsTerminal(p.env.Stdin), Stderr: proc.IsTerminal(p.env.Stderr)}
			p.say.onRaw(true)
			defer p.say.onRaw(false)
		}
		out, errs := redactor.Writer(p.env.Stdout), redactor.Writer(p.env.Stderr)
		stdout, stderr = out, errs
		flush = func() error { return errors.Join(out.Close(), errs.Close()) }
	}
	var others *time.Timer // nil until the command runs
	status, err := proc.Run(ctx, proc.Config{
		Args:     p.command,
		Env:      environ,
		Dir:      p.dir,
		Stdin:    p.env.Stdin,
		Stdout:   stdout,
		Stderr:   stderr,
		Signals:  p.forward,
		Terminal: p.terminal,
		PTY:      pty,
		Detach:   p.detach,
		Adopt:    true,
		Prepared: p.takePrepared(),
		Start:    start,
		OnStart: func(pid int) {
			p.log.Debug("the command runs", "pid", pid)
			others = time.AfterFunc(othersAfter, p.others)
		},
		Problem: p.say.problem,
	})
	if _, ok := errors.AsType[*proc.StartError](err); ok {
		return 0, err
	}
	if others != nil {
		others.Stop()
	}
	if ferr := flush(); err == nil && ferr != nil && !errors.Is(ferr, syscall.EPIPE) {
		err = fmt.Errorf("passing on the command's output: %w", ferr)
	}
	p.log.Debug("the command has ended", "status", status.Code())
	if err != nil && status.Code() != 0 {
		p.say.problem("the command's output may be cut off", err)
		err = nil
	}
	return status.Code(), err
}
