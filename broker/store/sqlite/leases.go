package sqlite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/runenv/action/broker/store"
)

const (
	leaseColumns = `id, session, login, is_login, name, provider, revocability, renewable, state, marker, handle, batch,
	policy_digest, replaced_by, created_at, expires_at, ends_at, dies_by, next_at, attempts, claimed_by, claimed_until, epoch`

	notTerminal = `state NOT IN ('revoked', 'expired', 'disclosed', 'void')`
)

func toLease(r row) store.Lease {
	return store.Lease{
		ID: r.text(0), Session: r.text(1), Login: r.text(2), IsLogin: r.bool(3), Name: r.text(4), Provider: r.text(5),
		Revocability: r.text(6), Renewable: r.bool(7), State: store.State(r.text(8)), Marker: r.text(9),
		Handle: r.bytes(10), Batch: r.text(11), PolicyDigest: r.text(12), ReplacedBy: r.text(13), CreatedAt: r.time(14),
		ExpiresAt: r.time(15), EndsAt: r.time(16), DiesBy: r.time(17), NextAt: r.time(18), Attempts: r.int(19),
		ClaimedBy: r.text(20), ClaimedUntil: r.time(21), Epoch: r.int64(22),
	}
}

// leasesWhere returns leases, oldest first.
func leasesWhere(c *conn, where string, args ...any) ([]store.Lease, error) {
	var out []store.Lease
	err := c.query(func(r row) error { out = append(out, toLease(r)); return nil },
		"SELECT "+leaseColumns+" FROM leases WHERE "+where+" ORDER BY row", args...)
	return out, err
}

// Lease implements [store.Store].
func (s *Store) Lease(ctx context.Context, id string) (store.Lease, error) {
	var found []store.Lease
	err := s.read(ctx, func(c *conn) (err error) {
		found, err = leasesWhere(c, "id = ?", id)
		return err
	})
	if err == nil && len(found) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.Lease{}, err
	}
	return found[0], nil
}

// Leases implements [store.Store].
func (s *Store) Leases(ctx context.Context, session string) ([]store.Lease, error) {
	var found []store.Lease
	err := s.read(ctx, func(c *conn) (err error) {
		found, err = leasesWhere(c, "session = ?", session)
		return err
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// Intend implements [store.Store].
func (s *Store) Intend(ctx context.Context, now time.Time, in store.Intended) error {
	if (in.Proof.Thumbprint == "") != (in.Proof.JTI == "") {
		return errors.New("half a proof")
	}
	if err := checkBegun(in.Session, in.Leases, in.Entries); err != nil {
		return err
	}
	return s.write(ctx, now, func(c *conn) error { return intend(c, now, in) })
}

// checkBegun says whether leases can begin so.
func checkBegun(session string, leases []store.Lease, entries []store.Entry) error {
	for _, l := range leases {
		switch {
		case l.ID == "" || l.Provider == "":
			return errors.New("a lease needs an id and a provider")
		case l.Session != "" && l.Session != session:
			return fmt.Errorf("lease %s is of another session", l.ID)
		case l.ReplacedBy != "":
			return fmt.Errorf("lease %s is replaced before it begins", l.ID)
		case l.State == store.Disclosed:
			if !l.NextAt.IsZero() || !slices.ContainsFunc(entries, func(e store.Entry) bool { return e.Lease == l.ID }) {
				return fmt.Errorf("lease %s can't be disclosed with work left or without an audit entry", l.ID)
			}
		case l.State != store.Intent && l.State != store.Issuing:
			return fmt.Errorf("lease %s can't begin as %q", l.ID, l.State)
		case l.NextAt.IsZero():
			return fmt.Errorf("lease %s has no time at which a crash would be noticed", l.ID)
		}
	}
	return nil
}

func intend(c *conn, now time.Time, in store.Intended) error {
	if _, err := liveSession(c, now, in.Session); err != nil {
		return err
	}
	proved := in.Proof.JTI != ""
	if proved {
		if err := proofUnused(c, in.Proof); err != nil {
			return err
		}
	}
	if err := replaceable(c, in.Session, in.Batch, in.Replaces); err != nil {
		return err
	}
	// Leases of the request that this one repeats are on their way out and
	// don't count; those of repeats before it still do, so that repeating
	// doesn't get around the limit.
	held, err := leasesWhere(c, "session = ? AND is_login = 0 AND "+notTerminal, in.Session)
	if err != nil {
		return err
	}
	count, replaced := 0, 0
	var repeated []store.Lease
	for _, l := range held {
		if in.Batch != "" && l.Batch == in.Batch && wayOut(&l, now) {
			repeated = append(repeated, l)
			continue
		}
		switch {
		case l.ReplacedBy == "" && !slices.Contains(in.Replaces, l.ID):
			count++
		case l.DiesBy.IsZero() || l.DiesBy.After(now):
			replaced++
		}
	}
	for _, l := range in.Leases {
		if !l.IsLogin {
			count++
		}
	}
	// Two generations at most: what replaces a lease may end with it, and be
	// replaced in its turn long before.
	if count > in.Limit || count+replaced > 2*in.Limit {
		return store.ErrLimit
	}

	if proved {
		if err := useProof(c, in.Proof); err != nil {
			return err
		}
	}
	for _, l := range repeated {
		if err := c.exec("UPDATE leases SET state = ?, next_at = ?, attempts = 0, claimed_by = '', claimed_until = NULL WHERE id = ?",
			string(l.State), l.NextAt, l.ID); err != nil {
			return err
		}
	}
	if err := begin(c, now, in.Session, in.Batch, in.Leases); err != nil {
		return err
	}
	return record(c, in.Entries)
}

// begin adds leases to a session.
func begin(c *conn, now time.Time, session, batch string, leases []store.Lease) error {
	for _, l := range leases {
		of := batch
		if l.IsLogin {
			of = "" // a login outlives the request that needed it first
		}
		if err := c.exec("INSERT INTO leases ("+leaseColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
			l.ID, session, l.Login, l.IsLogin, l.Name, l.Provider, l.Revocability, l.Renewable, string(l.State), l.Marker,
			nil, of, l.PolicyDigest, "", orNow(l.CreatedAt, now), l.ExpiresAt, l.EndsAt, l.DiesBy, l.NextAt, l.Attempts, "", nil, 0); err != nil {
			return err
		}
	}
	return nil
}

// replaceable says whether each of the leases can be replaced by one of batch.
func replaceable(c *conn, session, batch string, ids []string) error {
	for _, id := range ids {
		r, err := c.one(`SELECT l.session, l.is_login, l.state, l.replaced_by, coalesce(n.batch, '')
			FROM leases l LEFT JOIN leases n ON n.id = l.replaced_by WHERE l.id = ?`, id)
		switch {
		case err != nil:
			return err
		case r == nil || r.text(0) != session || r.bool(1) || store.State(r.text(2)) != store.Active:
			return store.ErrConflict
		case r.text(3) != "" && (batch == "" || r.text(4) != batch):
			return store.ErrConflict
		}
	}
	return nil
}

// Advance implements [store.Store].
func (s *Store) Advance(ctx context.Context, now time.Time, changes []store.Change) ([]error, error) {
	for _, ch := range changes {
		if err := checkChange(ch); err != nil {
			return nil, fmt.Errorf("lease %s: %w", ch.Lease, err)
		}
	}
	var results []error
	err := s.write(ctx, now, func(c *conn) error {
		results = make([]error, len(changes))
		for i, ch := range changes {
			err := advance(c, now, ch)
			var f *fault
			if errors.As(err, &f) {
				return err
			}
			results[i] = err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

// checkChange refuses what no caller may ask for.
func checkChange(ch store.Change) error {
	switch ch.To {
	case store.Active, store.Disclosed:
		if len(ch.Entries) == 0 && !(ch.To == store.Active && len(ch.From) == 1 && ch.From[0] == store.Active) {
			return fmt.Errorf("a change to %s needs an audit entry", ch.To)
		}
	case store.Issuing, store.Revoking, store.Expiring, store.Irrevocable, store.Revoked, store.Expired, store.Void:
	default:
		return fmt.Errorf("no change leads to %q", ch.To)
	}
	if ch.Endless && !(ch.ExpiresAt.IsZero() && ch.DiesBy.IsZero()) {
		return errors.New("what ends by itself isn't endless")
	}
	switch ch.Else {
	case "", store.Revoking, store.Expiring, store.Irrevocable, store.Revoked, store.Expired, store.Void:
	default:
		return fmt.Errorf("a change can't end in %q without a live session", ch.Else)
	}
	return nil
}

// advance makes one change. A result that isn't a fault is the row's; the row
// was changed only if it is nil, or ErrEnded with an Else.
func advance(c *conn, now time.Time, ch store.Change) error {
	r, err := c.one("SELECT state, epoch, claimed_by, session, batch FROM leases WHERE id = ?", ch.Lease)
	if err != nil {
		return err
	}
	if r == nil {
		return store.ErrNotFound
	}
	from := store.State(r.text(0))
	if from.Terminal() || !slices.Contains(ch.From, from) {
		return store.ErrConflict
	}
	if ch.Epoch != 0 && (ch.Epoch != r.int64(1) || r.text(2) == "") {
		return store.ErrConflict
	}
	to, next, attempts, entries := ch.To, ch.NextAt, ch.Attempts, ch.Entries
	var result error
	if ch.NeedsLive || to == store.Active {
		_, err := liveSession(c, now, r.text(3))
		switch {
		case errors.Is(err, store.ErrEnded) || errors.Is(err, store.ErrNotFound):
			if ch.Else == "" {
				return store.ErrEnded
			}
			result = store.ErrEnded
			to, next, attempts, entries = ch.Else, now, 0, ch.ElseEntries
		case err != nil:
			return err
		}
	}
	if to.Terminal() {
		next = time.Time{}
	}
	if result == nil {
		if err := replaceable(c, r.text(3), r.text(4), ch.Replaces); err != nil {
			return err
		}
		for _, id := range ch.Replaces {
			if err := c.exec("UPDATE leases SET replaced_by = ? WHERE id = ?", ch.Lease, id); err != nil {
				return err
			}
		}
	}
	var revocability, renewable any
	if ch.Revocability != "" {
		revocability = ch.Revocability
	}
	if ch.Renewable != nil {
		renewable = *ch.Renewable
	}
	if err := c.exec(`UPDATE leases SET state = ?, handle = coalesce(?, handle), revocability = coalesce(?, revocability),
		renewable = coalesce(?, renewable), expires_at = iif(?, NULL, coalesce(?, expires_at)), ends_at = coalesce(?, ends_at),
		dies_by = iif(?, NULL, coalesce(?, dies_by)), next_at = ?, attempts = ?, claimed_by = '', claimed_until = NULL WHERE id = ?`,
		string(to), ch.Handle, revocability, renewable, ch.Endless, ch.ExpiresAt, ch.EndsAt, ch.Endless, ch.DiesBy, next, attempts, ch.Lease); err != nil {
		return err
	}
	if err := record(c, entries); err != nil {
		return err
	}
	return result
}

// eachProvider calls each with the providers that have rows with work, by
// index: one step a provider, however many rows it has.
func eachProvider(c *conn, each func(provider string) error) error {
	provider := ""
	for {
		r, err := c.one("SELECT provider FROM leases WHERE due_at IS NOT NULL AND provider > ? ORDER BY provider LIMIT 1", provider)
		if err != nil || r == nil {
			return err
		}
		provider = r.text(0)
		if err := each(provider); err != nil {
			return err
		}
	}
}

// Claim implements [store.Store].
func (s *Store) Claim(ctx context.Context, now time.Time, worker string, n, perProvider int, until time.Time) ([]store.Lease, error) {
	if worker == "" {
		return nil, errors.New("a claim needs a worker")
	}
	var claimed []store.Lease
	err := s.write(ctx, now, func(c *conn) error {
		claimed = nil
		err := eachProvider(c, func(provider string) error {
			return c.query(func(r row) error { claimed = append(claimed, toLease(r)); return nil },
				"SELECT "+leaseColumns+" FROM leases WHERE provider = ? AND due_at <= ? ORDER BY due_at LIMIT ?",
				provider, now, max(min(n, perProvider), 0))
		})
		if err != nil {
			return err
		}
		slices.SortStableFunc(claimed, func(a, b store.Lease) int { return cmp.Or(a.NextAt.Compare(b.NextAt), cmp.Compare(a.ID, b.ID)) })
		claimed = claimed[:min(len(claimed), max(n, 0))]
		for i := range claimed {
			l := &claimed[i]
			l.ClaimedBy, l.ClaimedUntil = worker, micro(until)
			l.Epoch++
			if err := c.exec("UPDATE leases SET claimed_by = ?, claimed_until = ?, epoch = ? WHERE id = ?", worker, l.ClaimedUntil, l.Epoch, l.ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return claimed, nil
}
