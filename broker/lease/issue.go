package lease

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// A Request asks for leases of one session, all or none. Who may ask was
// decided before.
type Request struct {
	Session     store.Session
	Definitions []Definition
	Vars        providers.Vars
	Proof       store.Proof
	// IdempotencyKey is scoped to session and Body: a repeat ends the first
	// set and issues anew.
	IdempotencyKey string
	Body           []byte
	Limit          int // live leases of the session
	RequestID      string
	PolicyDigest   string
}

// item is one lease of a request on its way.
type item struct {
	row   store.Lease
	def   Definition
	ttl   time.Duration
	login *login
	cred  *providers.Credential
	env   []Var
	err   error
}

// login is a provider login that a request needs: found, or made by it.
type login struct {
	row      store.Lease
	provider providers.Loginer
	handle   secret.Value
	fresh    bool
	err      error
}

type plan struct {
	req    Request
	items  []*item
	logins []*login
}

// Issue makes the leases, or none. Errors: store.ErrEnded, store.ErrLimit,
// store.ErrReplayed (proof), or a [*Failure] for the first lease that failed.
//
// Each step is durable before the next begins; ctx bounds the calls to
// providers, never the records about them.
func (e *Engine) Issue(ctx context.Context, req Request) ([]Issued, error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	// Requests of one session queue up, so that they share one login and a
	// roll-back never ends a login that a neighbour works with.
	unlock := e.locks.lock(req.Session.ID)
	defer unlock()

	p, err := e.plan(ctx, req)
	if err != nil {
		return nil, err
	}
	if err := e.intend(ctx, p); err != nil {
		return nil, err
	}
	crash("intended")
	err = e.logIn(ctx, p)
	if err == nil {
		err = e.issueAll(ctx, p)
	}
	if err == nil {
		crash("issued")
		err = e.activate(ctx, p)
	}
	if err != nil {
		e.rollBack(context.WithoutCancel(ctx), p)
		return nil, err
	}
	crash("active")
	e.Wake()
	issued := make([]Issued, len(p.items))
	for i, it := range p.items {
		issued[i] = Issued{Lease: it.row, Env: it.env}
	}
	return issued, nil
}

// plan draws up the rows. It calls nobody but the store.
func (e *Engine) plan(ctx context.Context, req Request) (*plan, error) {
	now := e.cfg.Now()
	p := &plan{req: req}
	batch := batchKey(req)
	rows, err := e.cfg.Store.Leases(ctx, req.Session.ID)
	if err != nil {
		return nil, fmt.Errorf("reading the session's leases: %w", err)
	}
	logins := map[string]*login{}
	for _, def := range req.Definitions {
		it := &item{def: def, ttl: timeToLive(def, req.Session, now)}
		id := NewID("l")
		it.row = store.Lease{
			ID: id, Session: req.Session.ID, Name: def.Name, Provider: def.ProviderName,
			Revocability: string(def.Provides.Revocability()), State: store.Issuing, Marker: "runenv-" + id,
			Batch: batch, PolicyDigest: req.PolicyDigest,
			CreatedAt: now, EndsAt: endsAt(def, req.Session, now), NextAt: now.Add(noticeAfter),
		}
		if loginer, ok := def.Provider.(providers.Loginer); ok {
			if logins[def.ProviderName] == nil {
				lg, err := e.findOrPlanLogin(ctx, now, req, rows, def.ProviderName, loginer)
				if err != nil {
					return nil, err
				}
				logins[def.ProviderName] = lg
				p.logins = append(p.logins, lg)
			}
			it.login = logins[def.ProviderName]
			it.row.Login = it.login.row.ID
			if it.login.fresh {
				it.row.State = store.Intent
			}
			// A login isn't renewed past its session's hard end.
			it.row.DiesBy = req.Session.HardEnd.Add(providers.LoginTTL)
		} else if def.Provides.Revocability() != providers.Static {
			it.row.DiesBy = now.Add(issueTimeout + it.ttl)
		}
		p.items = append(p.items, it)
	}
	return p, nil
}

func (e *Engine) findOrPlanLogin(ctx context.Context, now time.Time, req Request, rows []store.Lease, name string, loginer providers.Loginer) (*login, error) {
	for _, row := range rows {
		usable := row.ExpiresAt.IsZero() || row.ExpiresAt.After(now.Add(issueTimeout))
		if row.IsLogin && row.Provider == name && row.State == store.Active && usable {
			handle, err := e.openHandle(ctx, row)
			if err != nil {
				return nil, err
			}
			return &login{row: row, provider: loginer, handle: handle}, nil
		}
	}
	id := NewID("l")
	return &login{provider: loginer, fresh: true, row: store.Lease{
		ID: id, Session: req.Session.ID, IsLogin: true, Name: name, Provider: name,
		Revocability: string(providers.Revocable), State: store.Issuing, Marker: "runenv-" + id,
		PolicyDigest: req.PolicyDigest, CreatedAt: now, EndsAt: req.Session.HardEnd,
		DiesBy: now.Add(issueTimeout + providers.LoginTTL), NextAt: now.Add(noticeAfter),
	}}, nil
}

func (e *Engine) intend(ctx context.Context, p *plan) error {
	in := store.Intended{
		Session: p.req.Session.ID, Proof: p.req.Proof, Batch: batchKey(p.req), Limit: p.req.Limit,
	}
	for _, lg := range p.logins {
		if lg.fresh {
			in.Leases = append(in.Leases, lg.row)
		}
	}
	for _, it := range p.items {
		in.Leases = append(in.Leases, it.row)
	}
	// A caller that hangs up now would leave rows that nobody rolls back.
	return e.cfg.Store.Intend(context.WithoutCancel(ctx), e.cfg.Now(), in)
}

// logIn makes the fresh logins, all at once, and records them together with
// their leases' step to Issuing.
func (e *Engine) logIn(ctx context.Context, p *plan) error {
	var fresh []*login
	for _, lg := range p.logins {
		if lg.fresh {
			fresh = append(fresh, lg)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	each(len(fresh), func(i int) {
		lg := fresh[i]
		made, err := e.logInOne(ctx, p.req.Session, lg)
		if err != nil {
			lg.err = err
			return
		}
		lg.handle = made.Handle
		lg.row.ExpiresAt = made.Expires
		if !made.Expires.IsZero() {
			lg.row.DiesBy = made.Expires
		}
	})
	crash("logged-in")
	// Every login that was made is recorded, even if a neighbour failed.
	now := e.cfg.Now()
	var changes []store.Change
	var failure error
	for _, lg := range fresh {
		if lg.err != nil {
			failure = errors.Join(failure, &Failure{Lease: p.firstOf(lg), Err: lg.err})
			continue
		}
		sealed, err := e.sealHandle(ctx, lg.row.ID, lg.handle)
		if err != nil {
			return err
		}
		lg.row.Handle, lg.row.State = sealed, store.Active
		lg.row.NextAt = nextDue(lg.row, now, true)
		changes = append(changes, store.Change{
			Lease: lg.row.ID, From: []store.State{store.Issuing}, To: store.Active, Handle: sealed,
			ExpiresAt: lg.row.ExpiresAt, DiesBy: lg.row.DiesBy, NextAt: lg.row.NextAt,
			NeedsLive: true, Else: store.Revoking,
			Entries:     []store.Entry{e.entry("login.issued", lg.row, p.req.RequestID, "")},
			ElseEntries: []store.Entry{e.entry("login.revoking", lg.row, p.req.RequestID, "session_ended")},
		})
		for _, it := range p.items {
			if it.login == lg {
				changes = append(changes, store.Change{
					Lease: it.row.ID, From: []store.State{store.Intent}, To: store.Issuing, NextAt: it.row.NextAt,
					NeedsLive: true, Else: store.Void,
					ElseEntries: []store.Entry{e.entry("lease.void", it.row, p.req.RequestID, "session_ended")},
				})
				it.row.State = store.Issuing
			}
		}
	}
	if err := e.advance(ctx, changes); err != nil {
		return err
	}
	crash("login-recorded")
	return failure
}

func (e *Engine) logInOne(ctx context.Context, s store.Session, lg *login) (_ *providers.Login, err error) {
	defer e.contain(ctx, lg.row.Provider, &err)
	return lg.provider.Login(ctx, providers.LoginRequest{
		Role: s.Role, Session: s.ID, Marker: lg.row.Marker, Tokens: e.cfg.Tokens(s),
	})
}

func (p *plan) firstOf(lg *login) string {
	for _, it := range p.items {
		if it.login == lg {
			return it.row.Name
		}
	}
	return lg.row.Name
}

func (e *Engine) issueAll(ctx context.Context, p *plan) error {
	each(len(p.items), func(i int) {
		it := p.items[i]
		req := providers.Request{Definition: it.def.Provides, Vars: p.req.Vars, TTL: it.ttl, Marker: it.row.Marker}
		if it.login != nil {
			req.Login = it.login.handle
		}
		it.cred, it.err = e.issueOne(ctx, it, req)
		if it.err == nil {
			e.shorten(ctx, it, req.Login)
			it.env, it.err = environment(it.def.Env, it.cred.Fields)
		}
	})
	total := 0
	for _, it := range p.items {
		if it.err != nil {
			return &Failure{Lease: it.row.Name, Err: it.err}
		}
		for _, v := range it.env {
			total += v.Value.Len()
		}
		if total > maxAnswerBytes {
			return &Failure{Lease: it.row.Name, Err: fmt.Errorf("%w: more than %d bytes together with the leases before it", providers.ErrMalformed, maxAnswerBytes)}
		}
	}
	return nil
}

func (e *Engine) issueOne(ctx context.Context, it *item, req providers.Request) (_ *providers.Credential, err error) {
	defer e.contain(ctx, it.row.Provider, &err)
	return it.def.Provider.Issue(ctx, req)
}

// shorten asks a back end that gave a longer life than wanted for the wanted
// one, so that the cap holds even if the broker is gone by then. Where the
// back end refuses, the engine's own end of the lease remains.
func (e *Engine) shorten(ctx context.Context, it *item, login secret.Value) {
	renewer, ok := it.def.Provider.(providers.Renewer)
	if !ok || !it.cred.Renewable || it.cred.Expires.IsZero() {
		return
	}
	const slack = 5 * time.Second
	if !it.cred.Expires.After(e.cfg.Now().Add(it.ttl + slack)) {
		return
	}
	expires, err := e.lengthen(ctx, renewer, it.row.Provider, it.cred.Handle, login, it.ttl)
	if err != nil {
		e.cfg.Log.WarnContext(ctx, "a lease outlives its ttl at the back end", "lease", it.row.ID, "name", it.row.Name, "err", err)
		return
	}
	it.cred.Expires = expires
}

// environment picks the variables out of a credential's fields.
func environment(vars []EnvVar, fields map[string]secret.Value) ([]Var, error) {
	var out []Var
	for _, v := range vars {
		value, ok := fields[v.Field]
		switch {
		case ok:
		case v.Default != nil:
			value = secret.FromString(*v.Default)
		case v.Optional:
			continue
		default:
			return nil, fmt.Errorf("field %q for variable %s: %w", v.Field, v.Name, providers.ErrNotFound)
		}
		out = append(out, Var{Name: v.Name, Value: value, Mask: v.Mask})
	}
	return out, nil
}

// activate makes everything deliverable in one durable step.
func (e *Engine) activate(ctx context.Context, p *plan) error {
	now := e.cfg.Now()
	var changes []store.Change
	for _, it := range p.items {
		c, err := e.issuedChange(ctx, it, now)
		if err != nil {
			return err
		}
		c.To, c.NeedsLive, c.Else = store.Active, true, store.Revoking
		event := "lease.issued"
		elseEvent := "lease.revoking"
		switch providers.Revocability(it.row.Revocability) {
		case providers.Static:
			// Handed out and nothing to end; if it isn't handed out after
			// all, then nothing was disclosed.
			c.To, event = store.Disclosed, "lease.disclosed"
			c.Else, elseEvent = store.Void, "lease.void"
			c.NextAt = time.Time{}
		case providers.Expires:
			c.Else, elseEvent = store.Expiring, "lease.expiring"
		}
		it.row.State, it.row.NextAt = c.To, c.NextAt
		c.Entries = []store.Entry{e.entry(event, it.row, p.req.RequestID, "")}
		c.ElseEntries = []store.Entry{e.entry(elseEvent, it.row, p.req.RequestID, "session_ended")}
		changes = append(changes, c)
	}
	return e.advance(ctx, changes)
}

// issuedChange is the part of a change that every end of an issued credential
// shares: what the back end answered.
func (e *Engine) issuedChange(ctx context.Context, it *item, now time.Time) (store.Change, error) {
	sealed, err := e.sealHandle(ctx, it.row.ID, it.cred.Handle)
	if err != nil {
		return store.Change{}, err
	}
	it.row.Handle = sealed
	it.row.Revocability = string(it.cred.Revocability)
	it.row.Renewable = it.cred.Renewable
	it.row.ExpiresAt = it.cred.Expires
	if it.login != nil {
		it.row.DiesBy = earliest(it.row.DiesBy, it.cred.Expires)
	} else if !it.cred.Expires.IsZero() {
		it.row.DiesBy = it.cred.Expires
	}
	return store.Change{
		Lease: it.row.ID, From: []store.State{store.Issuing}, Handle: sealed,
		Revocability: it.row.Revocability, Renewable: &it.row.Renewable,
		ExpiresAt: it.row.ExpiresAt, DiesBy: it.row.DiesBy, NextAt: nextDue(it.row, now, e.canRenew(it.row)),
	}, nil
}

func (e *Engine) canRenew(row store.Lease) bool {
	p, ok := e.cfg.Provider(row.Provider)
	if !ok || !row.Renewable {
		return false
	}
	_, ok = p.(providers.Renewer)
	return ok
}

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
			c, err := e.issuedChange(ctx, it, now)
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
		case lg.err != nil && providers.Void(lg.err):
			add(store.Change{To: store.Void}, "login.void", lg.row, class(lg.err))
		case lg.handle.Len() == 0:
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

// advance applies the changes and returns the first refusal.
func (e *Engine) advance(ctx context.Context, changes []store.Change) error {
	if len(changes) == 0 {
		return nil
	}
	results, err := e.cfg.Store.Advance(context.WithoutCancel(ctx), e.cfg.Now(), changes)
	if err != nil {
		return fmt.Errorf("recording a transition: %w", err)
	}
	for i, c := range changes {
		if r := results[i]; r != nil {
			return fmt.Errorf("lease %s to %s: %w", c.Lease, c.To, r)
		}
	}
	return nil
}

// class names an error for the audit log, which never gets a back end's text.
func class(err error) string {
	switch {
	case err == nil:
		return "rolled_back"
	case errors.Is(err, providers.ErrDenied):
		return "provider_denied"
	case errors.Is(err, providers.ErrNotFound):
		return "provider_not_found"
	case errors.Is(err, providers.ErrInvalid):
		return "provider_invalid"
	case errors.Is(err, providers.ErrMalformed):
		return "provider_malformed"
	case errors.Is(err, context.Canceled):
		return "caller_gone"
	default:
		return "provider_unavailable"
	}
}

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
	return max(min(ttl, left, providers.MaxTTL), time.Second)
}

func endsAt(def Definition, s store.Session, now time.Time) time.Time {
	if def.MaxTTL == 0 {
		return s.HardEnd
	}
	return earliest(s.HardEnd, now.Add(def.MaxTTL))
}

// nextDue is when work on an active row is due: its end, or a renewal after
// two thirds of what is left.
func nextDue(row store.Lease, now time.Time, renew bool) time.Time {
	end := earliest(row.ExpiresAt, row.EndsAt)
	if renew && !row.ExpiresAt.IsZero() && row.ExpiresAt.Before(row.EndsAt) {
		return now.Add(row.ExpiresAt.Sub(now) * 2 / 3)
	}
	return end
}

func batchKey(req Request) string {
	if req.IdempotencyKey == "" {
		return ""
	}
	h := sha256.New()
	for _, part := range [][]byte{[]byte(req.Session.ID), []byte(req.IdempotencyKey), req.Body} {
		fmt.Fprintf(h, "%d:", len(part))
		h.Write(part)
	}
	return hex.EncodeToString(h.Sum(nil))
}
