package lease

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/internal/backoff"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

const (
	claimRows        = 64
	claimPerProvider = 16
	// lookAgain bounds how long the engine sleeps when nothing is due: another
	// replica may have made something.
	lookAgain = 30 * time.Second
	// looking stands for the time of the next look while one is under way, which
	// may miss what is made now.
	looking = 0
	// retryStore is the pause after the store failed.
	retryStore   = time.Second
	forgetEvery  = time.Minute
	forgetAfter  = 30 * 24 * time.Hour
	forgetAtOnce = 10_000
)

// Run ends sessions whose time has come, renews, revokes and retries until
// ctx ends, and then waits for what is under way. It looks up what is due by
// an index and sleeps until then.
func (e *Engine) Run(ctx context.Context) {
	defer e.Wait()
	var forget time.Time
	for ctx.Err() == nil {
		e.looks.Store(looking)
		busy := e.pass(ctx)
		if now := e.cfg.Now(); now.After(forget) {
			if err := e.cfg.Store.Forget(ctx, now, now.Add(-forgetAfter), forgetAtOnce); err != nil && ctx.Err() == nil {
				e.cfg.Log.ErrorContext(ctx, "forgetting what is over", "err", err)
			}
			forget = now.Add(forgetEvery)
		}
		if busy {
			continue
		}
		pause := lookAgain
		next, err := e.cfg.Store.NextDue(ctx)
		switch {
		case err != nil:
			pause = retryStore
		case !next.IsZero():
			pause = max(min(next.Sub(e.cfg.Now()), lookAgain), time.Millisecond)
		}
		e.looks.Store(e.cfg.Now().Add(pause).UnixMicro())
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-e.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// pass does what is due now and reports whether there may be more.
func (e *Engine) pass(ctx context.Context) (busy bool) {
	due, err := e.cfg.Store.DueSessions(ctx, e.cfg.Now(), claimRows)
	if err != nil {
		e.complain(ctx, "looking for sessions that are due", err)
		return false
	}
	for _, s := range due {
		reason := "heartbeat"
		if !e.cfg.Now().Before(s.HardEnd) {
			reason = "hard_end"
		}
		if _, err := e.End(ctx, s, reason, "", 0); err != nil {
			e.complain(ctx, "ending a session", err)
			return false
		}
	}
	n, _ := e.drain(ctx)
	return len(due) == claimRows || n == claimRows
}

// drain begins work on the leases that are due and returns how many there
// were. wait waits for the back ends; claims are spread over the providers, so
// that a slow one holds up only its own share.
func (e *Engine) drain(ctx context.Context) (n int, wait func()) {
	now := e.cfg.Now()
	rows, err := e.cfg.Store.Claim(ctx, now, e.op(), claimRows, claimPerProvider, now.Add(claimFor))
	if err != nil {
		e.complain(ctx, "looking for leases that are due", err)
		return 0, func() {}
	}
	type group struct{ session, provider string }
	groups := map[group][]store.Lease{}
	for _, row := range rows {
		g := group{row.Session, row.Provider}
		groups[g] = append(groups[g], row)
	}
	var begun sync.WaitGroup
	for g, rows := range groups {
		begun.Add(1)
		e.work.Go(func() {
			defer begun.Done()
			work, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimFor)
			defer cancel()
			e.due(work, g.session, rows)
			e.Wake()
		})
	}
	return len(rows), begun.Wait
}

func (e *Engine) complain(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		e.cfg.Log.ErrorContext(ctx, what, "err", err)
	}
}

// due does the claimed rows of one session and provider.
func (e *Engine) due(ctx context.Context, session string, rows []store.Lease) {
	s, err := e.cfg.Store.Session(ctx, session)
	if err != nil {
		e.complain(ctx, "reading a session", err)
		return
	}
	var end []store.Lease
	for _, row := range rows {
		switch row.State {
		case store.Revoking, store.Irrevocable:
			end = append(end, row)
		case store.Active:
			e.dueActive(ctx, s, row)
		default:
			e.dueOther(ctx, row)
		}
	}
	e.finish(ctx, session, end)
}

// dueOther moves rows that a crash left in the middle, and those whose time
// is over. One that becomes Revoking is due at once, and is claimed anew.
func (e *Engine) dueOther(ctx context.Context, row store.Lease) {
	kind := kind(row)
	now := e.cfg.Now()
	c := store.Change{Lease: row.ID, From: []store.State{row.State}, Epoch: row.Epoch, Attempts: row.Attempts}
	set := func(to store.State, nextAt time.Time, reason string) {
		c.To, c.NextAt = to, nextAt
		if to != row.State {
			c.Entries = []store.Entry{e.entry(kind+string(to), row, "", reason)}
		}
	}
	switch {
	case row.State == store.Intent:
		set(store.Void, time.Time{}, "crash")
	case row.State == store.Expiring && now.Before(row.DiesBy):
		set(store.Expiring, row.DiesBy, "")
	case row.State == store.Expiring:
		set(store.Expired, time.Time{}, "")
	// What follows is Issuing: the provider may have been called.
	case row.IsLogin:
		set(store.Expiring, row.DiesBy, "crash")
	case providers.Revocability(row.Revocability) == providers.Static:
		// Its value never left: the answer comes after the record.
		set(store.Void, time.Time{}, "crash")
	case providers.Revocability(row.Revocability) == providers.Expires:
		set(store.Expiring, row.DiesBy, "crash")
	default:
		set(store.Revoking, now, "crash")
	}
	e.record(ctx, []store.Change{c})
}

// dueActive renews an active row or brings it to its end.
func (e *Engine) dueActive(ctx context.Context, s store.Session, row store.Lease) {
	now := e.cfg.Now()
	c := store.Change{Lease: row.ID, From: []store.State{store.Active}, Epoch: row.Epoch, Attempts: row.Attempts}
	capped := !row.EndsAt.IsZero() && !now.Before(row.EndsAt)
	reason := "cap"
	// A renewal whose answer got lost may have moved the end beyond the one
	// that is known, up to DiesBy.
	expired := !row.ExpiresAt.IsZero() && !now.Before(row.ExpiresAt)
	switch {
	case !s.Live(now):
		reason = "session_ended"
	case expired:
		reason = "renewal_unknown"
	}
	tell := false
	switch {
	case expired && !now.Before(row.DiesBy):
		c.To = store.Expired
		c.Entries = []store.Entry{e.entry(kind(row)+"expired", row, "", "")}
	case expired || capped || !s.Live(now):
		c.To, c.NextAt = over(row, now)
		c.Entries = []store.Entry{e.entry(kind(row)+string(c.To), row, "", reason)}
	case e.renews(row):
		c, tell = e.renewDue(ctx, s, row, c)
	default:
		// Nobody lengthens it.
		c.To, c.NeedsLive, c.NextAt, tell = store.Active, true, end(row), foretells(s, row)
		c.Else, _ = over(row, now)
		c.ElseEntries = []store.Entry{e.entry(kind(row)+string(c.Else), row, "", "session_ended")}
	}
	e.record(ctx, []store.Change{c})
	if tell {
		e.cfg.Notify(Event{Session: s.ID, Lease: &row, Expiring: true})
	}
	if c.To == store.Expired && row.IsLogin && row.Revocability == string(providers.Revocable) {
		// What was made under it died with it.
		if rows, err := e.cfg.Store.Leases(ctx, row.Session); err == nil {
			e.record(ctx, e.under(rows, row, store.Expired, "with_login"))
		}
	}
}

// renewDue renews. tell: the client is to be told that nobody could, and nobody
// will.
func (e *Engine) renewDue(ctx context.Context, s store.Session, row store.Lease, c store.Change) (_ store.Change, tell bool) {
	kind := kind(row)
	c.To, c.NeedsLive = store.Active, true
	c.Else, _ = over(row, e.cfg.Now())
	c.ElseEntries = []store.Entry{e.entry(kind+string(c.Else), row, "", "session_ended")}
	renewed, most, err := e.renew(ctx, s, row)
	c.Epoch = renewed.Epoch
	now := e.cfg.Now()
	switch {
	case err == nil && most:
		c.ExpiresAt, c.DiesBy = renewed.ExpiresAt, renewed.DiesBy
		c.NextAt, tell = end(renewed), foretells(s, renewed)
		c.Entries = []store.Entry{e.entry(kind+"not_renewed", renewed, "", "provider_maximum")}
	case err == nil:
		c.ExpiresAt, c.DiesBy = renewed.ExpiresAt, renewed.DiesBy
		c.NextAt = e.nextDue(s, renewed, now)
		c.Entries = []store.Entry{e.entry(kind+"renewed", renewed, "", "")}
		if !row.IsLogin {
			e.cfg.Notify(Event{Session: s.ID, Lease: &renewed})
		}
	case errors.Is(err, errNotRenewed) || providers.Void(err):
		// It lives on to its present end.
		c.DiesBy = row.DiesBy
		c.NextAt, tell = end(row), foretells(s, row)
		c.Entries = []store.Entry{e.entry(kind+"not_renewed", row, "", class(err))}
		e.cfg.Log.WarnContext(ctx, "a lease isn't renewed", "lease", row.ID, "name", row.Name, "expires_at", row.ExpiresAt, "err", err)
	default:
		c.Attempts = row.Attempts + 1
		c.NextAt = earliest(now.Add(backoff.Delay(c.Attempts, minBackOff, maxBackOff)), row.ExpiresAt, row.EndsAt)
		c.Entries = []store.Entry{e.entry(kind+"not_renewed", row, "", class(err))}
		e.cfg.Log.WarnContext(ctx, "renewing failed", "lease", row.ID, "name", row.Name, "attempts", c.Attempts, "err", err)
	}
	return c, tell
}

// errNotRenewed: today's policy, or the kind of credential, forbids it.
var errNotRenewed = errors.New("not renewed")

// foresee makes durable how long the credential lives at most if it is now
// renewed by ttl, before the back end is asked: should the answer get lost, the
// row says no less than what is true. It gives up the claim, and returns the
// row as it is then.
func (e *Engine) foresee(ctx context.Context, s store.Session, row store.Lease, login time.Time, ttl time.Duration) (store.Lease, error) {
	now := e.cfg.Now()
	diesBy := e.boundOf(s, row, login, now.Add(revokeTimeout+ttl))
	if !diesBy.After(row.DiesBy) {
		return row, nil
	}
	next := row.NextAt
	if !next.After(now) {
		next = now.Add(claimFor)
	}
	err := e.advance(ctx, []store.Change{{
		Lease: row.ID, From: []store.State{store.Active}, Epoch: row.Epoch, To: store.Active,
		DiesBy: diesBy, NextAt: next, Attempts: row.Attempts, NeedsLive: true,
	}})
	if err != nil {
		return row, err
	}
	row.DiesBy, row.NextAt, row.Epoch = diesBy, next, 0
	return row, nil
}

// renew asks the back end and returns the row with its new times. After an
// error it is the row as the store has it. most: the back end's own maximum is
// reached, for it gave less than was asked for, and no more than before.
func (e *Engine) renew(ctx context.Context, s store.Session, row store.Lease) (_ store.Lease, most bool, err error) {
	p, ok := e.cfg.Provider(row.Provider)
	if !ok {
		return row, false, fmt.Errorf("provider %q is no longer in the broker's file: %w", row.Provider, errNotRenewed)
	}
	handle, err := e.openHandle(ctx, row)
	if err != nil {
		return row, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	if row.IsLogin {
		loginer, ok := p.(providers.LoginRenewer)
		if !ok {
			return row, false, errNotRenewed
		}
		ttl := p.(providers.Loginer).LoginTTL()
		if row, err = e.foresee(ctx, s, row, time.Time{}, ttl); err != nil {
			return row, false, err
		}
		expires, err := e.lengthenLogin(ctx, loginer, row.Provider, handle)
		if err != nil {
			return row, false, err
		}
		if expires.IsZero() {
			expires = e.cfg.Now().Add(ttl)
		}
		most = e.atMost(row, expires, ttl)
		row.ExpiresAt, row.DiesBy = expires, expires
		return row, most, nil
	}
	renewer, ok := p.(providers.Renewer)
	if !ok || !row.Renewable {
		return row, false, errNotRenewed
	}
	def, digest, err := e.cfg.Judge(ctx, s, row.Name)
	if err != nil {
		return row, false, fmt.Errorf("today's policy: %w: %w", err, errNotRenewed)
	}
	if def.ProviderName != row.Provider {
		return row, false, fmt.Errorf("today's policy has it of provider %q, and not of %q: %w", def.ProviderName, row.Provider, errNotRenewed)
	}
	login := e.loginHandles(ctx, s.ID)[row.Login]
	shortest, _ := boundsOf(def)
	ttl := min(timeToLive(def, s, e.cfg.Now()), row.EndsAt.Sub(e.cfg.Now()))
	if ttl < shortest {
		return row, false, errNotRenewed
	}
	if row, err = e.foresee(ctx, s, row, login.expires, ttl); err != nil {
		return row, false, err
	}
	expires, err := e.lengthen(ctx, renewer, row.Provider, handle, login.handle, ttl)
	if err != nil {
		return row, false, err
	}
	most = e.atMost(row, expires, ttl)
	row.PolicyDigest = digest
	if expires.IsZero() {
		// It is never lengthened for ever: what was asked for is what is known.
		return row, false, fmt.Errorf("%w: a renewal without an expiry", providers.ErrMalformed)
	}
	row.ExpiresAt, row.DiesBy = expires, e.boundOf(s, row, login.expires, expires)
	return row, most, nil
}

// slack is what a back end's answer may differ by: its times are whole seconds,
// and the way to it takes some.
const slack = 5 * time.Second

func (e *Engine) atMost(row store.Lease, expires time.Time, asked time.Duration) bool {
	return expires.Before(e.cfg.Now().Add(asked-slack)) && expires.Before(row.ExpiresAt.Add(slack))
}

func (e *Engine) lengthen(ctx context.Context, p providers.Renewer, name string, handle, login secret.Value, ttl time.Duration) (_ time.Time, err error) {
	defer e.contain(ctx, name, &err)
	return p.Renew(ctx, handle, login, ttl)
}

func (e *Engine) lengthenLogin(ctx context.Context, p providers.LoginRenewer, name string, login secret.Value) (_ time.Time, err error) {
	defer e.contain(ctx, name, &err)
	return p.RenewLogin(ctx, login)
}

// Renew lengthens one active lease of a live session at its client's word and
// returns it with its new expiry. store.ErrConflict: it isn't active or can't
// be renewed, or not past the end that it has; otherwise a [*Failure].
func (e *Engine) Renew(ctx context.Context, s store.Session, row store.Lease, request string) (store.Lease, error) {
	unlock := e.locks.lock(s.ID)
	defer unlock()
	// What was before the lock may have replaced it.
	row, err := e.cfg.Store.Lease(ctx, row.ID)
	if err != nil {
		return row, fmt.Errorf("reading a lease: %w", err)
	}
	if row.State != store.Active || !e.canRenew(row) || !e.renews(row) && foretells(s, row) {
		return row, store.ErrConflict
	}
	row.Epoch = 0 // of somebody's claim
	renewed, most, err := e.renew(ctx, s, row)
	if err != nil {
		switch {
		case errors.Is(err, errNotRenewed):
			return row, fmt.Errorf("%w: %w", store.ErrConflict, err)
		case errors.Is(err, store.ErrEnded), errors.Is(err, store.ErrConflict):
			return row, err
		}
		return row, &Failure{Lease: row.Name, Err: err}
	}
	renewed.NextAt = e.nextDue(s, renewed, e.cfg.Now())
	orElse, _ := over(row, e.cfg.Now())
	err = e.advance(ctx, []store.Change{{
		Lease: row.ID, From: []store.State{store.Active}, To: store.Active,
		ExpiresAt: renewed.ExpiresAt, DiesBy: renewed.DiesBy, NextAt: renewed.NextAt,
		NeedsLive: true, Else: orElse,
		Entries:     []store.Entry{e.entry("lease.renewed", renewed, request, "client")},
		ElseEntries: []store.Entry{e.entry("lease."+string(orElse), row, request, "session_ended")},
	}})
	if err != nil {
		return row, err
	}
	e.Wake()
	if most && foretells(s, renewed) {
		return renewed, fmt.Errorf("the back end's own maximum is reached: %w", store.ErrConflict)
	}
	e.cfg.Notify(Event{Session: s.ID, Lease: &renewed})
	return renewed, nil
}
