package lease

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/runenv/action/broker/shape"
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
	// Replaces are ids of the session's leases that these stand in for: they
	// live on to their own end and are renewed no more. Each must be active, past
	// half of its life, and not replaced yet.
	Replaces []string
	Limit    int // live leases of the session; twice as many with replaced ones
	// Begin makes the leases durable together with their session, which is new;
	// nil means that the session is there. It sees to Proof and Limit, and its
	// error is Issue's.
	Begin        func(context.Context, []store.Lease, []store.Entry) error
	RequestID    string
	PolicyDigest string
}

// item is one lease of a request on its way.
type item struct {
	row   store.Lease
	def   Definition
	ttl   time.Duration
	login *login
	cred  *providers.Credential
	made  shape.Made
	err   error
}

// login is a provider login that a request needs: found, or made by it.
type login struct {
	row      store.Lease
	provider providers.Loginer
	handle   secret.Value
	fresh    bool
	recorded bool // the row is Active
	err      error
}

type plan struct {
	req      Request
	items    []*item
	logins   []*login
	replaces []store.Lease
}

// ErrTooSoon says that a lease can be replaced once half of its life is over. Without
// that, replacing would be a way around the limit.
var ErrTooSoon = errors.New("too soon to replace a lease")

// Issue makes the leases, or none. Errors: store.ErrEnded, store.ErrLimit,
// store.ErrReplayed (proof); store.ErrConflict for a lease that can't be
// replaced, with ErrTooSoon where it soon can; a [*MissingError]; a
// [*CollisionError]; or a [*Failure] for the first lease that failed.
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
	if p.stored() {
		return e.disclose(ctx, p)
	}
	if err := e.begin(ctx, p, p.intended()); err != nil {
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
	return p.issued(), nil
}

func (p *plan) issued() []Issued {
	issued := make([]Issued, len(p.items))
	for i, it := range p.items {
		issued[i] = Issued{Lease: it.row, Made: it.made}
	}
	return issued
}

// stored reports whether the request wants nothing but values that are stored
// already, of providers that can't make a credential: there is nothing to be
// orphaned, and so nothing to intend.
func (p *plan) stored() bool {
	for _, it := range p.items {
		_, logsIn := it.def.Provider.(providers.Loginer)
		_, revokes := it.def.Provider.(providers.Revoker)
		if logsIn || revokes || it.def.Provides.Revocability() != providers.Static {
			return false
		}
	}
	return len(p.replaces) == 0
}

// disclose hands out stored values: they are read, and then one durable step
// counts the proof and says that they were handed out.
func (e *Engine) disclose(ctx context.Context, p *plan) ([]Issued, error) {
	if err := e.issueAll(ctx, p); err != nil {
		return nil, err
	}
	crash("read")
	in := p.intended()
	for i, it := range p.items {
		if it.cred.Revocability != providers.Static {
			return nil, &Failure{Lease: it.row.Name, Err: fmt.Errorf("%w: a provider without a way to revoke made a credential", providers.ErrMalformed)}
		}
		it.row.State, it.row.NextAt = store.Disclosed, time.Time{}
		it.row.ExpiresAt, it.row.DiesBy = it.cred.Expires, it.cred.Expires
		in.Leases[i] = it.row
		in.Entries = append(in.Entries, e.entry("lease.disclosed", it.row, p.req.RequestID, ""))
	}
	if err := e.begin(ctx, p, in); err != nil {
		return nil, err
	}
	crash("active")
	if in.Batch != "" {
		e.Wake() // a repeated request's first set may be due
	}
	return p.issued(), nil
}

// plan draws up the rows. It calls nobody but the store.
func (e *Engine) plan(ctx context.Context, req Request) (*plan, error) {
	now := e.cfg.Now()
	p := &plan{req: req}
	batch := batchKey(req)
	var rows []store.Lease
	if req.Begin == nil && (len(req.Replaces) > 0 || slices.ContainsFunc(req.Definitions, needsLogin)) {
		var err error
		if rows, err = e.cfg.Store.Leases(ctx, req.Session.ID); err != nil {
			return nil, fmt.Errorf("reading the session's leases: %w", err)
		}
	}
	if err := p.replace(rows, now); err != nil {
		return nil, err
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
		if def.Provides.Revocability() != providers.Static {
			it.row.DiesBy = now.Add(issueTimeout + it.ttl)
		}
		if needsLogin(def) {
			loginer := def.Provider.(providers.Loginer)
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
			if endsLogins(def.Provider) {
				// What ends with a login ends by then, and what doesn't by its
				// own time: which it is, the back end's answer may say.
				it.row.DiesBy = latest(it.row.DiesBy, req.Session.HardEnd.Add(loginer.LoginTTL()))
			}
		}
		p.items = append(p.items, it)
	}
	return p, nil
}

// needsLogin reports whether a definition is issued under its session's login.
func needsLogin(def Definition) bool {
	if l, ok := def.Provides.(providers.Loginless); ok && l.Loginless() {
		return false
	}
	_, ok := def.Provider.(providers.Loginer)
	return ok
}

// replace finds what the request replaces.
func (p *plan) replace(rows []store.Lease, now time.Time) error {
	for _, id := range p.req.Replaces {
		i := slices.IndexFunc(rows, func(row store.Lease) bool { return row.ID == id })
		if i < 0 || rows[i].IsLogin || rows[i].State != store.Active {
			return fmt.Errorf("replacing lease %s: %w", id, store.ErrConflict)
		}
		row := rows[i]
		if half := row.CreatedAt.Add(end(row).Sub(row.CreatedAt) / 2); now.Before(half) {
			return fmt.Errorf("replacing lease %s: %w: %w", id, ErrTooSoon, store.ErrConflict)
		}
		p.replaces = append(p.replaces, row)
	}
	return nil
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
	lg := &login{provider: loginer, fresh: true, row: store.Lease{
		ID: id, Session: req.Session.ID, IsLogin: true, Name: name, Provider: name,
		Revocability: string(providers.Revocable), State: store.Issuing, Marker: "runenv-" + id,
		PolicyDigest: req.PolicyDigest, CreatedAt: now, EndsAt: req.Session.HardEnd,
		DiesBy: now.Add(issueTimeout + loginer.LoginTTL()), NextAt: now.Add(noticeAfter),
	}}
	if _, ok := loginer.(providers.Logouter); !ok {
		lg.row.Revocability = string(providers.Expires)
	}
	return lg, nil
}

// intended is the plan as the store takes it.
func (p *plan) intended() store.Intended {
	in := store.Intended{
		Session: p.req.Session.ID, Proof: p.req.Proof, Batch: batchKey(p.req), Limit: p.req.Limit, Replaces: p.req.Replaces,
	}
	for _, lg := range p.logins {
		if lg.fresh {
			in.Leases = append(in.Leases, lg.row)
		}
	}
	for _, it := range p.items {
		in.Leases = append(in.Leases, it.row)
	}
	return in
}

// begin makes the leases durable before anything is asked of a provider.
func (e *Engine) begin(ctx context.Context, p *plan, in store.Intended) error {
	// A caller that hangs up now would leave rows that nobody rolls back.
	ctx = context.WithoutCancel(ctx)
	if p.req.Begin == nil {
		return e.cfg.Store.Intend(ctx, e.cfg.Now(), in)
	}
	return p.req.Begin(ctx, in.Leases, in.Entries)
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
		if made.Expires.IsZero() && lg.row.Revocability == string(providers.Expires) {
			// Nobody ends it: it is used for as long as it surely lives.
			lg.row.ExpiresAt = e.cfg.Now().Add(lg.provider.LoginTTL())
		}
		lg.row.DiesBy = lg.row.ExpiresAt
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
		lg.row.NextAt = e.nextDue(p.req.Session, lg.row, now)
		c := store.Change{
			Lease: lg.row.ID, From: []store.State{store.Issuing}, To: store.Active, Handle: sealed,
			ExpiresAt: lg.row.ExpiresAt, DiesBy: lg.row.DiesBy, Endless: lg.row.DiesBy.IsZero(), NextAt: lg.row.NextAt,
			NeedsLive: true,
			Entries:   []store.Entry{e.entry("login.issued", lg.row, p.req.RequestID, "")},
		}
		c.Else, _ = over(lg.row, now)
		c.ElseEntries = []store.Entry{e.entry("login."+string(c.Else), lg.row, p.req.RequestID, "session_ended")}
		changes = append(changes, c)
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
	for _, lg := range fresh {
		lg.recorded = lg.err == nil
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
	tokens := e.cfg.Tokens(p.req.Session)
	each(len(p.items), func(i int) {
		it := p.items[i]
		req := providers.Request{
			Definition: it.def.Provides, Vars: p.req.Vars, TTL: it.ttl, Marker: it.row.Marker,
			Role: p.req.Session.Role, Session: p.req.Session.ID, Tokens: tokens,
		}
		if it.login != nil {
			req.Login = it.login.handle
		}
		it.cred, it.err = e.issueOne(ctx, it, req)
		if it.err != nil {
			return
		}
		if it.cred.Revocability == providers.Expires && it.cred.Expires.IsZero() {
			it.err = fmt.Errorf("%w: what only expires has no expiry", providers.ErrMalformed)
			return
		}
		e.shorten(ctx, it, req.Login)
	})
	return p.deliverable()
}

// shaped makes the variables of a credential.
func (d Definition) shaped(fields map[string]secret.Value) (shape.Made, error) {
	vars := d.Env
	if d.Sole && len(fields) == 1 {
		vars = slices.Clone(d.Env)
		for i, v := range vars {
			if v.Name != "*" && v.Field == "" && v.Template == nil {
				vars[i].As = ""
				for name := range fields {
					vars[i].Field = name
				}
			}
		}
	}
	out, err := shape.Apply(vars, fields)
	if missing, ok := errors.AsType[*shape.MissingError](err); ok {
		return out, fmt.Errorf("%w: %w", missing, providers.ErrNotFound)
	}
	if err != nil {
		return out, &ShapeError{err}
	}
	return out, nil
}

// deliverable makes the variables and says what stands against handing them out
// together. It makes them one item after the other, and no more than fit an
// answer: a caller may ask for one large field in many variables.
func (p *plan) deliverable() error {
	total := 0
	missing := &MissingError{}
	var slots shape.Slots
	var failure error
	for _, it := range p.items {
		if it.err == nil && total <= maxAnswerBytes {
			it.made, it.err = it.def.shaped(it.cred.Fields)
		}
		lacks, isMissing := errors.AsType[*shape.MissingError](it.err)
		switch {
		case isMissing:
			missing.Leases = append(missing.Leases, Missing{Lease: it.row.Name, Fields: lacks.Fields})
			continue
		case it.err != nil:
			return &Failure{Lease: it.row.Name, Err: it.err}
		}
		for _, v := range it.made.Env {
			total += v.Value.Len() + len(v.Name) + len(v.File) + overheadBytes
			if err := slots.AddOut(v); err != nil && failure == nil {
				failure = err
			}
		}
		for _, v := range it.made.Hide {
			total += v.Len() + overheadBytes
		}
		if total > maxAnswerBytes && failure == nil {
			failure = &Failure{Lease: it.row.Name, Err: fmt.Errorf("%w: more than %d bytes together with the leases before it", providers.ErrMalformed, maxAnswerBytes)}
		}
	}
	if len(missing.Leases) > 0 {
		return missing
	}
	return failure
}

func (e *Engine) issueOne(ctx context.Context, it *item, req providers.Request) (_ *providers.Credential, err error) {
	defer e.contain(ctx, it.row.Provider, &err)
	cred, err := it.def.Provider.Issue(ctx, req)
	if err == nil && cred == nil {
		return nil, fmt.Errorf("%w: no credential", providers.ErrMalformed)
	}
	return cred, err
}

// shorten asks a back end that gave a longer life than wanted for the wanted
// one, so that the cap holds even if the broker is gone by then. Where the
// back end refuses, the engine's own end of the lease remains.
func (e *Engine) shorten(ctx context.Context, it *item, login secret.Value) {
	renewer, ok := it.def.Provider.(providers.Renewer)
	if !ok || !it.cred.Renewable || it.cred.Expires.IsZero() {
		return
	}
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

// activate makes everything deliverable in one durable step.
func (e *Engine) activate(ctx context.Context, p *plan) error {
	now := e.cfg.Now()
	var changes []store.Change
	for _, it := range p.items {
		c, err := e.issuedChange(ctx, p.req.Session, it, now)
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
		if len(changes) == 0 {
			c.Replaces = p.req.Replaces
			for _, row := range p.replaces {
				c.Entries = append(c.Entries, e.entry("lease.replaced", row, p.req.RequestID, ""))
			}
		}
		changes = append(changes, c)
	}
	return e.advance(ctx, changes)
}

// issuedChange is the part of a change that every end of an issued credential
// shares: what the back end answered.
func (e *Engine) issuedChange(ctx context.Context, session store.Session, it *item, now time.Time) (store.Change, error) {
	sealed, err := e.sealHandle(ctx, it.row.ID, it.cred.Handle)
	if err != nil {
		return store.Change{}, err
	}
	it.row.Handle = sealed
	it.row.Revocability = string(it.cred.Revocability)
	it.row.Renewable = it.cred.Renewable
	it.row.ExpiresAt = it.cred.Expires
	if it.cred.Revocability != providers.Expires || !it.cred.Expires.IsZero() {
		var login store.Lease
		if it.login != nil {
			login = it.login.row
		}
		it.row.DiesBy = e.boundOf(session, it.row, login.ExpiresAt, it.cred.Expires)
	} // else the intent's bound is all there is
	return store.Change{
		Lease: it.row.ID, From: []store.State{store.Issuing}, Handle: sealed,
		Revocability: it.row.Revocability, Renewable: &it.row.Renewable,
		ExpiresAt: it.row.ExpiresAt, DiesBy: it.row.DiesBy, Endless: it.row.DiesBy.IsZero(), NextAt: e.nextDue(session, it.row, now),
	}, nil
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
