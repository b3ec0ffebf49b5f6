package lease

import (
	"time"

	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/providers"
)

// timeToLive is what a provider is asked for: what the definition wants, at
// most what the session has left, within what the back end can give. Its
// shortest may be more than is left: the credential then outlives the session,
// and its bound says so.
func timeToLive(def Definition, s store.Session, now time.Time) time.Duration {
	left := s.HardEnd.Sub(now)
	ttl := def.TTL
	if ttl == 0 {
		ttl = DefaultTTL
		if def.Provides.Revocability() == providers.Expires {
			ttl = left
		}
	}
	if def.MaxTTL != 0 {
		ttl = min(ttl, def.MaxTTL)
	}
	shortest, longest := boundsOf(def)
	return max(min(ttl, left, longest), shortest)
}

// boundsOf is what the back end can give.
func boundsOf(def Definition) (shortest, longest time.Duration) {
	if b, ok := def.Provides.(providers.Bounder); ok {
		shortest, longest = b.Bounds()
	}
	if longest == 0 {
		longest = providers.MaxTTL
	}
	return max(shortest, time.Second), longest
}

func endsAt(def Definition, s store.Session, now time.Time) time.Time {
	if def.MaxTTL == 0 {
		return s.HardEnd
	}
	return earliest(s.HardEnd, now.Add(def.MaxTTL))
}

// endsLogins reports whether the logins of a provider are ended, and with them
// what was made under them.
func endsLogins(p providers.Provider) bool {
	_, ok := p.(providers.Logouter)
	return ok
}

// underLogin reports whether a row ends with its login at the latest: its login
// is ended, or ends by itself, and isn't renewed past the session's hard end.
func (e *Engine) underLogin(row store.Lease) bool {
	if row.Login == "" || providers.Revocability(row.Revocability) != providers.Revocable {
		return false
	}
	p, ok := e.cfg.Provider(row.Provider)
	return ok && endsLogins(p)
}

// boundOf is the bound of a credential's life if it and its login expire then;
// the zero time stands for never.
func (e *Engine) boundOf(s store.Session, row store.Lease, login, expires time.Time) time.Time {
	if !e.underLogin(row) || login.IsZero() {
		return expires
	}
	p, _ := e.cfg.Provider(row.Provider)
	loginer, ok := p.(providers.Loginer)
	if !ok {
		return expires
	}
	return earliest(expires, s.HardEnd.Add(loginer.LoginTTL()))
}

// end is when an active row ends unless it is renewed.
func end(row store.Lease) time.Time { return earliest(row.ExpiresAt, row.EndsAt) }

// renews reports whether a row is to be renewed in place.
func (e *Engine) renews(row store.Lease) bool {
	return e.canRenew(row) && !row.ExpiresAt.IsZero() && row.ExpiresAt.Before(row.EndsAt)
}

// foretells reports whether the client is to be told that a row, which isn't
// renewed, nears its end.
func foretells(s store.Session, row store.Lease) bool {
	return !row.IsLogin && row.ReplacedBy == "" && !end(row).IsZero() && end(row).Before(s.HardEnd)
}

// nextDue is when work on an active row is due: after two thirds of what is
// left, to renew it or to tell the client that nobody can, or else its end.
func (e *Engine) nextDue(s store.Session, row store.Lease, now time.Time) time.Time {
	last := end(row)
	if e.renews(row) || foretells(s, row) {
		return now.Add(last.Sub(now) * 2 / 3)
	}
	return last
}

// canRenew reports whether the back end may be asked to lengthen a row's life.
func (e *Engine) canRenew(row store.Lease) bool {
	p, ok := e.cfg.Provider(row.Provider)
	if !ok {
		return false
	}
	if row.IsLogin {
		_, ok = p.(providers.LoginRenewer)
		return ok
	}
	_, ok = p.(providers.Renewer)
	return ok && row.Renewable && row.ReplacedBy == ""
}

func earliest(times ...time.Time) time.Time {
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
