package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/internal/backoff"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// End ends a session and, all at once, its leases. It waits at most wait for
// the back ends and returns the leases (logins left out) as they are then;
// what isn't ended by then goes on in the background. Ending an ended session
// is no error.
func (e *Engine) End(ctx context.Context, s store.Session, reason, request string, wait time.Duration) ([]store.Lease, error) {
	// The caller may go away; the end of its session doesn't.
	ctx = context.WithoutCancel(ctx)
	now := e.cfg.Now()
	entry, err := audit.Record{
		Time: now, Event: "session.ended", Request: request, Session: s.ID,
		Role: s.Role, Project: s.Project, Issuer: s.Issuer, Reason: reason, Policy: s.PolicyDigest,
	}.Entry()
	if err != nil {
		return nil, err
	}
	op := e.op()
	rows, err := e.cfg.Store.EndSession(ctx, now, store.End{
		Session: s.ID, Reason: reason, Entries: []store.Entry{entry}, Worker: op, Until: now.Add(claimFor),
	})
	if err != nil {
		return nil, fmt.Errorf("ending session %s: %w", s.ID, err)
	}
	crash("session-ended")
	e.cfg.Notify(Event{Session: s.ID, Reason: reason})
	all := rows
	if slices.ContainsFunc(rows, func(row store.Lease) bool { return row.Epoch != 0 }) {
		done := make(chan struct{})
		e.work.Go(func() {
			defer close(done)
			e.finish(ctx, s.ID, rows)
			e.Wake() // what failed is due again, sooner than Run may look
		})
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-done:
		case <-timer.C:
		}
		if all, err = e.cfg.Store.Leases(ctx, s.ID); err != nil {
			return nil, fmt.Errorf("reading the leases of ended session %s: %w", s.ID, err)
		}
	}
	var delivered []store.Lease
	for _, row := range all {
		if !row.IsLogin {
			delivered = append(delivered, row)
		}
	}
	return delivered, nil
}

// EndLease ends one active lease of a live session, waiting at most wait.
// store.ErrConflict: it isn't active.
func (e *Engine) EndLease(ctx context.Context, row store.Lease, request string, wait time.Duration) (store.Lease, error) {
	ctx = context.WithoutCancel(ctx)
	now := e.cfg.Now()
	c := store.Change{Lease: row.ID, From: []store.State{store.Active}}
	c.To, c.NextAt = over(row, now)
	c.Entries = []store.Entry{e.entry("lease."+string(c.To), row, request, "client")}
	if err := e.advance(ctx, []store.Change{c}); err != nil {
		return row, err
	}
	done := make(chan struct{})
	e.work.Go(func() {
		defer close(done)
		_, wait := e.drain(ctx)
		wait()
	})
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
	return e.cfg.Store.Lease(ctx, row.ID)
}

// over is where an issued row goes when its time with us is over, and when it
// is due there.
func over(row store.Lease, now time.Time) (store.State, time.Time) {
	if providers.Revocability(row.Revocability) == providers.Expires {
		return store.Expiring, row.DiesBy
	}
	return store.Revoking, now
}

// kind is the audit log's word for a row.
func kind(row store.Lease) string {
	if row.IsLogin {
		return "login."
	}
	return "lease."
}

// op names one operation as the holder of claims, so that two operations of
// this process never work on one row.
func (e *Engine) op() string { return e.worker + "/" + NewID("o") }

// finish ends the rows that this operation holds (Epoch is not zero), which
// belong to one session: leases first, each by itself and all at once, then
// the logins, with which everything made under them ends.
func (e *Engine) finish(ctx context.Context, session string, rows []store.Lease) {
	var leases, logins []store.Lease
	for _, row := range rows {
		switch {
		case row.Epoch != 0 && row.State == store.Expiring && !e.cfg.Now().Before(row.NextAt):
			e.dueOther(ctx, row) // its time was over when its session ended
		case row.Epoch == 0 || (row.State != store.Revoking && row.State != store.Irrevocable):
		case row.IsLogin:
			logins = append(logins, row)
		default:
			leases = append(leases, row)
		}
	}
	if len(leases) > 0 {
		e.revokeLeases(ctx, session, leases)
	}
	crash("leases-revoked")
	if len(logins) > 0 {
		e.logOut(ctx, session, logins)
	}
}

var (
	// errNoWay: nothing but the end of the login, or time, ends this row.
	errNoWay = errors.New("no handle to revoke by")
	// errNotFound: the back end says that it never issued this row.
	errNotFound = errors.New("the back end has nothing with this marker")
)

func (e *Engine) revokeLeases(ctx context.Context, session string, rows []store.Lease) {
	handles := e.loginHandles(ctx, session)
	errs := make([]error, len(rows))
	each(len(rows), func(i int) { errs[i] = e.revoke(ctx, rows[i], handles) })
	now := e.cfg.Now()
	var changes []store.Change
	for i, row := range rows {
		login := handles[row.Login]
		withLogin := e.underLogin(row) && login.state != ""
		noWay := errors.Is(errs[i], providers.ErrWithLogin) || errors.Is(errs[i], errNoWay)
		c := store.Change{Lease: row.ID, From: []store.State{row.State}, Epoch: row.Epoch}
		switch {
		case errors.Is(errs[i], errNotFound):
			// Before that a call of before the crash might still be under way.
			if sure := row.CreatedAt.Add(noticeAfter); now.Before(sure) {
				c.To, c.Attempts, c.NextAt = row.State, row.Attempts, sure
				break
			}
			c.To = store.Void
			c.Entries = []store.Entry{e.entry("lease.void", row, "", "not_found_by_marker")}
		case errs[i] == nil:
			c.To = store.Revoked
			c.Entries = []store.Entry{e.entry("lease.revoked", row, "", "")}
		case withLogin && login.state.Terminal():
			// It ended with its login, as the login did.
			c.To = login.state
			c.Entries = []store.Entry{e.entry("lease."+string(c.To), row, "", "with_login")}
		case noWay && !row.DiesBy.IsZero():
			// The login's end takes it along, if it has one that does. Should
			// that never be known, its time ends it.
			c.To, c.Attempts, c.NextAt = store.Revoking, row.Attempts, row.DiesBy
			if !now.Before(row.DiesBy) {
				c.To, c.NextAt = store.Expired, time.Time{}
				c.Entries = []store.Entry{e.entry("lease.expired", row, "", "")}
			}
		default:
			c = e.retry(ctx, c, row, errs[i], now)
		}
		changes = append(changes, c)
	}
	e.record(ctx, changes)
}

// retry plans the next try of a revocation that failed.
func (e *Engine) retry(ctx context.Context, c store.Change, row store.Lease, err error, now time.Time) store.Change {
	kind := kind(row)
	c.Attempts = row.Attempts + 1
	switch {
	case !row.DiesBy.IsZero() && !now.Before(row.DiesBy):
		c.To = store.Expired
		c.Entries = []store.Entry{e.entry(kind+"expired", row, "", class(err))}
	case c.Attempts >= maxAttempts:
		c.To, c.NextAt = store.Irrevocable, now.Add(retryDaily)
		if row.State != store.Irrevocable {
			c.Entries = []store.Entry{e.entry(kind+"irrevocable", row, "", class(err))}
		}
		e.cfg.Log.ErrorContext(ctx, "a credential can't be revoked", "lease", row.ID, "name", row.Name, "provider", row.Provider, "attempts", c.Attempts, "dies_by", row.DiesBy, "err", err)
	default:
		c.To, c.NextAt = store.Revoking, now.Add(backoff.Delay(c.Attempts, minBackOff, maxBackOff))
		e.cfg.Log.WarnContext(ctx, "revoking failed", "lease", row.ID, "name", row.Name, "provider", row.Provider, "attempts", c.Attempts, "next", c.NextAt, "err", err)
	}
	if !row.DiesBy.IsZero() && c.NextAt.After(row.DiesBy) {
		c.NextAt = row.DiesBy
	}
	return c
}

// loginHandle is a login of a session as revocations see it.
type loginHandle struct {
	handle  secret.Value
	state   store.State
	expires time.Time
}

func (e *Engine) loginHandles(ctx context.Context, session string) map[string]loginHandle {
	rows, err := e.cfg.Store.Leases(ctx, session)
	if err != nil {
		e.cfg.Log.ErrorContext(ctx, "reading a session's leases", "session", session, "err", err)
		return nil
	}
	handles := map[string]loginHandle{}
	for _, row := range rows {
		if !row.IsLogin {
			continue
		}
		handle, err := e.openHandle(ctx, row)
		if err != nil {
			e.cfg.Log.ErrorContext(ctx, "opening a handle", "lease", row.ID, "err", err)
		}
		handles[row.ID] = loginHandle{handle: handle, state: row.State, expires: row.ExpiresAt}
	}
	return handles
}

func (e *Engine) revoke(ctx context.Context, row store.Lease, logins map[string]loginHandle) (err error) {
	defer e.contain(ctx, row.Provider, &err)
	handle, err := e.openHandle(ctx, row)
	if err != nil {
		return err
	}
	p, ok := e.cfg.Provider(row.Provider)
	if !ok {
		return fmt.Errorf("provider %q is no longer in the broker's file: %w", row.Provider, providers.ErrUnavailable)
	}
	release, err := e.turns.take(ctx, row.Provider)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	revoker, canRevoke := p.(providers.Revoker)
	if handle.Len() > 0 && canRevoke {
		return revoker.Revoke(ctx, handle, logins[row.Login].handle)
	}
	finder, canFind := p.(providers.Finder)
	if !canFind || !canRevoke {
		return errNoWay
	}
	found, err := finder.Find(ctx, row.Marker, logins[row.Login].handle)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return errNotFound
	}
	for _, handle := range found {
		if err := revoker.Revoke(ctx, handle, logins[row.Login].handle); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) logOut(ctx context.Context, session string, logins []store.Lease) {
	errs := make([]error, len(logins))
	each(len(logins), func(i int) { errs[i] = e.logOutOne(ctx, logins[i]) })
	crash("logged-out")
	now := e.cfg.Now()
	rows, err := e.cfg.Store.Leases(ctx, session)
	if err != nil {
		// The claims run out and the work is done again.
		e.cfg.Log.ErrorContext(ctx, "reading a session's leases", "session", session, "err", err)
		return
	}
	var changes []store.Change
	for i, login := range logins {
		c := store.Change{Lease: login.ID, From: []store.State{login.State}, Epoch: login.Epoch}
		if errs[i] != nil {
			c = e.retry(ctx, c, login, errs[i], now)
		} else {
			c.To = store.Revoked
			c.Entries = []store.Entry{e.entry("login.revoked", login, "", "")}
		}
		changes = append(changes, c)
		if c.To.Terminal() {
			changes = append(changes, e.under(rows, login, c.To, "with_login")...)
		}
	}
	e.record(ctx, changes)
}

// under are the changes of the leases that ended with their login.
func (e *Engine) under(rows []store.Lease, login store.Lease, to store.State, reason string) []store.Change {
	var changes []store.Change
	for _, row := range rows {
		if row.Login != login.ID || row.IsLogin || row.State.Terminal() || row.State == store.Intent {
			continue
		}
		if providers.Revocability(row.Revocability) == providers.Expires {
			continue // it outlives the login
		}
		changes = append(changes, store.Change{
			Lease: row.ID, From: []store.State{store.Active, store.Revoking, store.Irrevocable}, To: to,
			Entries: []store.Entry{e.entry("lease."+string(to), row, "", reason)},
		})
	}
	return changes
}

func (e *Engine) logOutOne(ctx context.Context, login store.Lease) (err error) {
	defer e.contain(ctx, login.Provider, &err)
	handle, err := e.openHandle(ctx, login)
	if err != nil {
		return err
	}
	p, ok := e.cfg.Provider(login.Provider)
	if !ok {
		return fmt.Errorf("provider %q is no longer in the broker's file: %w", login.Provider, providers.ErrUnavailable)
	}
	loginer, ok := p.(providers.Logouter)
	if !ok || handle.Len() == 0 {
		return errNoWay
	}
	release, err := e.turns.take(ctx, login.Provider)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	return loginer.Logout(ctx, handle)
}

// record applies changes; a conflict means that another operation was faster,
// which is fine.
func (e *Engine) record(ctx context.Context, changes []store.Change) {
	if len(changes) == 0 {
		return
	}
	results, err := e.cfg.Store.Advance(ctx, e.cfg.Now(), changes)
	if err != nil {
		e.cfg.Log.ErrorContext(ctx, "recording a transition", "lease", changes[0].Lease, "err", err)
		return
	}
	for i, c := range changes {
		if r := results[i]; r != nil && !errors.Is(r, store.ErrConflict) {
			e.cfg.Log.WarnContext(ctx, "a transition was refused", "lease", c.Lease, "to", c.To, "err", r)
		}
	}
}
