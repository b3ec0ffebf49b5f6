package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/client"
	"github.com/runenv/action/internal/endpoint"
	"github.com/runenv/action/internal/guardian"
)

const (
	// endTimeout bounds the end of a session: a cancelled GitHub job has
	// 2.5 s after its SIGTERM.
	endTimeout = 2 * time.Second
	// warnAhead is how long before a lease expires a warning comes, or a
	// tenth of the lease's life if that is less.
	warnAhead = time.Minute
)

// held is a session while it is this process's to end.
type held struct {
	p        *process
	session  *client.Session
	guardian *guardian.Handle // nil if there is none
	unended  string           // what becomes of a session that we can't end
	release  context.CancelFunc
	kept     chan struct{} // closed once nobody keeps the session alive
	ending   atomic.Bool
	told     sync.Map // ids of leases whose end was told

	mu     sync.Mutex
	timers []*time.Timer

	// anew says that every lease is kept fresh, for a command that can be
	// started again; else keeper keeps those that are served, if any.
	anew   bool
	keeper atomic.Pointer[endpoint.Keeper]
}

// A standby starts a guardian, and makes ready for the command, while this
// process waits for the broker.
type standby struct {
	p        *process
	once     sync.Once
	guardian *guardian.Handle
	err      error
	rest     func() // what else can be done meanwhile; once
}

func newStandby(p *process, rest func()) *standby {
	return &standby{p: p, rest: sync.OnceFunc(rest)}
}

// use is for the wait: the guardian comes first.
func (g *standby) use() {
	g.start()
	g.rest()
}

// start does so once; whoever calls it later waits until it is done.
func (g *standby) start() {
	g.once.Do(func() {
		if g.guardian, g.err = guardian.Start(""); g.err == nil {
			g.p.prepare()
		}
	})
}

// dismiss lets go of a guardian that got no session.
func (g *standby) dismiss() {
	g.once.Do(func() {}) // it isn't to be started any more
	if g.guardian != nil {
		_ = g.guardian.Done() // it had nothing to do
	}
}

// hold sees to it that the session ends if we are killed, and that it lives
// until then.
func (a *app) hold(p *process, s *client.Session, o *runOptions, ca []byte, g *standby) *held {
	h := &held{
		p: p, session: s, kept: make(chan struct{}),
		anew: o.watchRestart,
	}
	if o.local != nil {
		h.unended = "the broker is in this process: what it issued runs out by itself"
	} else {
		g.start()
		h.guard(g, guardian.Config{SessionURL: s.EndURL(), EndToken: s.EndToken(), CAPEM: a.guardianCA(ca)})
	}
	p.log.Debug("session open", "session", s.ID(), "hard_end", s.HardEnd())
	ctx, release := context.WithCancel(context.Background())
	h.release = release
	go g.rest()
	go func() {
		defer close(h.kept)
		err := s.KeepAlive(ctx, func(e api.Event) {
			switch {
			case e.Lease == nil:
			case h.keeps(e.Lease.Name):
				h.keeper.Load().Observe(e)
			case e.Event == api.EventExpiring:
				h.expiring(*e.Lease)
			default:
				p.log.Debug("lease renewed by the broker", "lease", e.Lease.Name, "expires", e.Lease.ExpiresAt)
			}
		})
		if ended, ok := errors.AsType[*client.EndedError](err); ok && !h.ending.Load() {
			p.say.warning(ended.Error() + "; its leases are no longer good, and the command goes on")
		}
	}()
	return h
}

// guard hands the session to the guardian.
func (h *held) guard(g *standby, cfg guardian.Config) {
	err := g.err
	if err == nil {
		err = g.guardian.Guard(cfg)
	}
	if err != nil {
		h.unguarded(err)
		return
	}
	h.guardian = g.guardian
	h.unended = "the guardian goes on trying for a minute, then the broker ends it after missed heartbeats"
}

// watched waits until the guardian watches: it starts while the leases are
// asked for. Call it before the command begins.
func (h *held) watched() {
	if h.guardian == nil {
		return
	}
	if err := h.guardian.Watches(); err != nil {
		h.guardian = nil
		h.p.unprepare() // for another may be started
		h.unguarded(err)
	}
}

func (h *held) unguarded(err error) {
	h.unended = "the broker ends it after missed heartbeats"
	h.p.say.problem("if RunEnv is killed, only missed heartbeats will end the session", err)
}

// guardianCA is what the guardian is to trust, whose environment is empty.
func (a *app) guardianCA(ca []byte) []byte {
	if file := a.env.Getenv("SSL_CERT_FILE"); ca == nil && file != "" {
		if pem, err := readBounded(file, maxCABytes/2); err == nil {
			return pem
		}
	}
	return ca
}

// warnBeforeExpiry tells of what runs out while the command may still run:
// leases that nobody can renew, and the session itself.
func (h *held) warnBeforeExpiry(leases []api.Lease, hardEnd time.Time) {
	for _, l := range leases {
		if !h.keeps(l.Name) && !l.Renewable && !l.ExpiresAt.IsZero() && l.ExpiresAt.Before(hardEnd) {
			h.before(l.ExpiresAt, func() { h.expiring(l) })
		}
	}
	h.before(hardEnd, func() { h.p.say.warning("the session ends at " + at(hardEnd) + ", and its leases with it") })
}

func (h *held) before(end time.Time, warn func()) {
	left := time.Until(end)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.timers = append(h.timers, time.AfterFunc(left-min(warnAhead, left/10), warn))
}

// keeps reports whether a lease is kept fresh.
func (h *held) keeps(name string) bool {
	k := h.keeper.Load()
	return k != nil && (h.anew || k.Serves(name))
}

// expiring tells once of a lease that runs out under the command, whose
// variables can't be given other values.
func (h *held) expiring(l api.Lease) {
	if _, told := h.told.LoadOrStore(l.ID, true); told || h.ending.Load() {
		return
	}
	h.p.say.warning(fmt.Sprintf("lease %q expires at %s and can't be renewed in place: the command's values end with it", l.Name, at(l.ExpiresAt)))
}

// end ends the session. Where that fails the guardian goes on trying, once we
// are gone. It returns what became of the leases; none, if the broker had
// ended the session before.
func (h *held) end(verbose bool) ([]api.Lease, error) {
	h.p.board.connect(h.p.afterChild())
	h.mu.Lock()
	for _, t := range h.timers {
		t.Stop()
	}
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(h.p.ending, endTimeout)
	defer cancel()
	// The stream is let go after the end: the broker would take a stream that
	// breaks before it for our death.
	h.ending.Store(true)
	ended, err := h.session.End(ctx)
	h.release()
	<-h.kept
	if err != nil {
		h.p.say.problem("the session isn't ended yet ("+h.unended+")", err)
		return nil, err
	}
	h.p.log.Debug("session ended", "session", h.session.ID())
	if verbose {
		for _, l := range ended.Leases {
			h.p.say.note(fmt.Sprintf("lease %q %s", l.Name, fate(l)))
		}
	}
	return ended.Leases, nil
}

// letGo lets the guardian go once the session is ended and the files are
// removed; else it does the rest when we are gone. Call what it returns in the
// end: it waits until the guardian is gone.
func (h *held) letGo(done bool) (gone func()) {
	if h.guardian == nil || !done {
		return func() {}
	}
	var going sync.WaitGroup
	going.Go(func() {
		if err := h.guardian.Done(); err != nil {
			h.p.log.Debug("the guardian's end", "error", err)
		}
	})
	return going.Wait
}

// fate says what became of a lease, and promises nothing that isn't so (P11).
func fate(l api.Lease) string {
	switch l.State {
	case "revoked":
		return "is revoked"
	case "expired":
		return "has expired"
	case "expiring":
		return "can't be revoked: it " + expires(l)
	case "disclosed":
		return "was handed out: its value stays valid"
	case "irrevocable":
		return "couldn't be revoked: it " + expires(l) + ", unless the broker gets it revoked before"
	case "void":
		return "was never issued"
	}
	return "is still being ended by the broker (" + oneLine(l.State) + ")"
}

func expires(l api.Lease) string {
	if l.ExpiresAt.IsZero() {
		return "expires by itself"
	}
	return "expires at " + at(l.ExpiresAt)
}

func at(t time.Time) string { return t.UTC().Format(time.RFC3339) }
