package lease

import (
	"context"
	"errors"

	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/providers"
)

// rollBack ends what a failed request made. Rows whose session ended in the
// meantime have been moved already, and give a conflict here.
func (e *Engine) rollBack(ctx context.Context, p *plan) {
	now := e.cfg.Now()
	var changes []store.Change
	add := func(c store.Change, event string, row store.Lease, reason string) {
		c.Lease = row.ID
		c.From = []store.State{store.Intent, store.Issuing, store.Active}
		c.Entries = []store.Entry{e.entry(event, row, p.req.RequestID, reason)}
		changes = append(changes, c)
	}
	for _, it := range p.items {
		revocability := providers.Revocability(it.row.Revocability)
		called := it.cred != nil || it.err != nil
		switch {
		case !called || (it.cred == nil && providers.Void(it.err)):
			add(store.Change{To: store.Void}, "lease.void", it.row, class(it.err))
		case it.cred != nil && it.cred.Revocability == providers.Static:
			add(store.Change{To: store.Void}, "lease.void", it.row, "rolled_back")
		case it.cred != nil:
			c, err := e.issuedChange(ctx, p.req.Session, it, now)
			if err != nil {
				e.cfg.Log.ErrorContext(ctx, "sealing a handle", "lease", it.row.ID, "err", err)
			}
			c.To, c.NextAt = store.Revoking, now
			if it.cred.Revocability == providers.Expires {
				c.To, c.NextAt = store.Expiring, it.row.DiesBy
			}
			add(c, "lease."+string(c.To), it.row, "rolled_back")
		case revocability == providers.Static:
			add(store.Change{To: store.Void}, "lease.void", it.row, class(it.err))
		case revocability == providers.Expires:
			add(store.Change{To: store.Expiring, NextAt: it.row.DiesBy}, "lease.expiring", it.row, class(it.err))
		default:
			add(store.Change{To: store.Revoking, NextAt: now}, "lease.revoking", it.row, class(it.err))
		}
	}
	for _, lg := range p.logins {
		switch {
		case !lg.fresh:
		case lg.recorded && lg.row.Revocability == string(providers.Expires):
			// It can't be ended, so the session's next request may use it.
		case lg.err != nil && providers.Void(lg.err):
			add(store.Change{To: store.Void}, "login.void", lg.row, class(lg.err))
		case lg.handle.Len() == 0, lg.row.Revocability == string(providers.Expires):
			add(store.Change{To: store.Expiring, NextAt: lg.row.DiesBy}, "login.expiring", lg.row, class(lg.err))
		default:
			sealed, err := e.sealHandle(ctx, lg.row.ID, lg.handle)
			if err != nil {
				e.cfg.Log.ErrorContext(ctx, "sealing a handle", "lease", lg.row.ID, "err", err)
			}
			add(store.Change{To: store.Revoking, NextAt: now, Handle: sealed}, "login.revoking", lg.row, "rolled_back")
		}
	}
	if err := e.advance(ctx, changes); err != nil && !errors.Is(err, store.ErrEnded) && !errors.Is(err, store.ErrConflict) {
		// The rows stay as they are and are noticed when their time comes.
		e.cfg.Log.ErrorContext(ctx, "recording a roll-back", "session", p.req.Session.ID, "err", err)
	}
	e.Wake()
}
