package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/runenv/action/broker/store"
)

const sessionColumns = `id, role, project, issuer, job, thumbprint, access_hash, end_hash, claims,
	policy_digest, created_at, hard_end, heartbeat_timeout, deadline, ended_at, end_reason`

func toSession(r row) store.Session {
	return store.Session{
		ID: r.text(0), Role: r.text(1), Project: r.text(2), Issuer: r.text(3), Job: r.text(4), Thumbprint: r.text(5),
		AccessHash: r.bytes(6), EndHash: r.bytes(7), Claims: r.bytes(8),
		PolicyDigest: r.text(9), CreatedAt: r.time(10), HardEnd: r.time(11),
		HeartbeatTimeout: time.Duration(r.int64(12)) * time.Microsecond,
		Deadline:         r.time(13), EndedAt: r.time(14), EndReason: r.text(15),
	}
}

// CreateSession implements [store.Store].
func (s *Store) CreateSession(ctx context.Context, now time.Time, n store.NewSession) (store.Created, error) {
	if err := checkNewSession(n); err != nil {
		return store.Created{}, err
	}
	var created store.Created
	err := s.write(ctx, now, func(c *conn) (err error) {
		created, err = createSession(c, now, n)
		return err
	})
	if err != nil {
		return store.Created{}, err
	}
	return created, nil
}

func checkNewSession(n store.NewSession) error {
	switch {
	case n.Session.ID == "":
		return errors.New("a session needs an id")
	case n.Token.JTI == "":
		return errors.New("a session needs a token with an id")
	case n.Proof.Thumbprint == "" || n.Proof.JTI == "":
		return errors.New("a session needs a proof")
	case n.Session.HeartbeatTimeout <= 0:
		return errors.New("a session needs a heartbeat timeout")
	case n.Session.Deadline.IsZero() || n.Session.Deadline.After(n.Session.HardEnd):
		return errors.New("a session needs a deadline that isn't after its hard end")
	}
	return checkBegun(n.Session.ID, n.Leases, n.Entries)
}

func createSession(c *conn, now time.Time, n store.NewSession) (store.Created, error) {
	if err := proofUnused(c, n.Proof); err != nil {
		return store.Created{}, err
	}
	t, ns := n.Token, n.Session
	used, err := c.one("SELECT expires, same_job, job, thumbprint, body, session FROM tokens WHERE issuer = ? AND jti = ?", t.Issuer, t.JTI)
	if err != nil {
		return store.Created{}, err
	}
	var ended string // the session that this retry ends
	if used != nil {
		again := used.bool(1) && t.SameJob && used.text(2) == ns.Job
		retry := (again || !used.bool(1) && !t.SameJob) && used.text(3) == ns.Thumbprint && bytes.Equal(used.bytes(4), t.Body)
		switch {
		case !now.Before(used.time(0)):
			return store.Created{}, store.ErrReplayed
		case retry:
			last, err := c.one("SELECT ended_at FROM sessions WHERE id = ?", used.text(5))
			if err != nil {
				return store.Created{}, err
			}
			if last != nil && last.isNull(0) {
				ended = used.text(5)
			}
		case !again:
			return store.Created{}, store.ErrReplayed
		}
	}
	live, err := c.one(`SELECT count(*) FROM sessions WHERE issuer = ? AND job = ? AND role = ? AND ended_at IS NULL
		AND deadline > ? AND id <> ?`, ns.Issuer, ns.Job, ns.Role, now, ended)
	if err != nil {
		return store.Created{}, err
	}
	if live.int(0) >= n.Limit {
		return store.Created{}, store.ErrLimit
	}

	if ended != "" {
		e := n.EndedEntry
		e.Session = ended
		e.Body = bytes.ReplaceAll(e.Body, []byte(`"session":"`+store.EndedSession+`"`), []byte(`"session":"`+ended+`"`))
		if err := finish(c, now, ended, "replaced", []store.Entry{e}); err != nil {
			return store.Created{}, err
		}
		if _, err := wind(c, now, ended, winding{first: true}); err != nil {
			return store.Created{}, err
		}
	}
	if err := useProof(c, n.Proof); err != nil {
		return store.Created{}, err
	}
	if used == nil {
		err = c.exec("INSERT INTO tokens (issuer, jti, expires, same_job, job, thumbprint, body, session) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
			t.Issuer, t.JTI, t.Expires, t.SameJob, ns.Job, ns.Thumbprint, t.Body, ns.ID)
	} else {
		err = c.exec("UPDATE tokens SET thumbprint = ?, body = ?, session = ? WHERE issuer = ? AND jti = ?", ns.Thumbprint, t.Body, ns.ID, t.Issuer, t.JTI)
	}
	if err != nil {
		return store.Created{}, err
	}
	if err := c.exec("INSERT INTO sessions ("+sessionColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		ns.ID, ns.Role, ns.Project, ns.Issuer, ns.Job, ns.Thumbprint, ns.AccessHash, ns.EndHash, ns.Claims,
		ns.PolicyDigest, orNow(ns.CreatedAt, now), ns.HardEnd, ns.HeartbeatTimeout, ns.Deadline, nil, ""); err != nil {
		return store.Created{}, err
	}
	if err := begin(c, now, ns.ID, "", n.Leases); err != nil {
		return store.Created{}, err
	}
	return store.Created{Ended: ended}, record(c, n.Entries)
}

// proofUnused is the check of a proof's first use.
func proofUnused(c *conn, p store.Proof) error {
	used, err := c.one("SELECT 1 FROM proofs WHERE thumbprint = ? AND jti = ?", p.Thumbprint, p.JTI)
	if err == nil && used != nil {
		err = store.ErrProofReplayed
	}
	return err
}

func useProof(c *conn, p store.Proof) error {
	return c.exec("INSERT INTO proofs (thumbprint, jti, expires) VALUES (?, ?, ?)", p.Thumbprint, p.JTI, p.Expires)
}

// UseProof implements [store.Store].
func (s *Store) UseProof(ctx context.Context, now time.Time, p store.Proof) error {
	return s.write(ctx, now, func(c *conn) error {
		if err := proofUnused(c, p); err != nil {
			return err
		}
		return useProof(c, p)
	})
}

// Session implements [store.Store].
func (s *Store) Session(ctx context.Context, id string) (store.Session, error) {
	return s.session(ctx, "SELECT "+sessionColumns+" FROM sessions WHERE id = ?", id)
}

// SessionByEndHash implements [store.Store].
func (s *Store) SessionByEndHash(ctx context.Context, hash []byte) (store.Session, error) {
	return s.session(ctx, "SELECT "+sessionColumns+" FROM sessions WHERE end_hash = ?", hash)
}

func (s *Store) session(ctx context.Context, query string, key any) (store.Session, error) {
	all, err := s.sessions(ctx, query, key)
	if err != nil {
		return store.Session{}, err
	}
	if len(all) == 0 {
		return store.Session{}, store.ErrNotFound
	}
	return all[0], nil
}

func (s *Store) sessions(ctx context.Context, query string, args ...any) ([]store.Session, error) {
	var out []store.Session
	err := s.read(ctx, func(c *conn) error {
		out = nil
		return c.query(func(r row) error { out = append(out, toSession(r)); return nil }, query, args...)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// liveSession reads what a verb needs of a session that must be live.
func liveSession(c *conn, now time.Time, id string) (row, error) {
	r, err := c.one("SELECT ended_at, deadline, heartbeat_timeout, hard_end FROM sessions WHERE id = ?", id)
	switch {
	case err != nil:
		return nil, err
	case r == nil:
		return nil, store.ErrNotFound
	case !r.isNull(0) || !now.Before(r.time(1)):
		return nil, store.ErrEnded
	}
	return r, nil
}

// Heartbeat implements [store.Store].
func (s *Store) Heartbeat(ctx context.Context, now time.Time, id string) (time.Time, error) {
	var deadline time.Time
	err := s.write(ctx, now, func(c *conn) error {
		r, err := liveSession(c, now, id)
		if err != nil {
			return err
		}
		deadline = time.UnixMicro(min(now.UnixMicro()+r.int64(2), r.int64(3))).UTC()
		return c.exec("UPDATE sessions SET deadline = ?, graced = 0 WHERE id = ?", deadline, id)
	})
	if err != nil {
		return time.Time{}, err
	}
	return deadline, nil
}

// Hasten implements [store.Store].
func (s *Store) Hasten(ctx context.Context, now time.Time, id string, deadline time.Time) error {
	return s.write(ctx, now, func(c *conn) error {
		r, err := liveSession(c, now, id)
		if err != nil || !deadline.Before(r.time(1)) {
			return err
		}
		return c.exec("UPDATE sessions SET deadline = ? WHERE id = ?", deadline, id)
	})
}

// EndSession implements [store.Store].
func (s *Store) EndSession(ctx context.Context, now time.Time, e store.End) ([]store.Lease, error) {
	var leases []store.Lease
	err := s.write(ctx, now, func(c *conn) error {
		leases = nil
		r, err := c.one("SELECT ended_at FROM sessions WHERE id = ?", e.Session)
		if err != nil {
			return err
		}
		if r == nil {
			return store.ErrNotFound
		}
		first := r.isNull(0)
		if first {
			if err := finish(c, now, e.Session, e.Reason, e.Entries); err != nil {
				return err
			}
		}
		leases, err = wind(c, now, e.Session, winding{first: first, worker: e.Worker, until: e.Until})
		return err
	})
	if err != nil {
		return nil, err
	}
	return leases, nil
}

// finish marks a session as ended.
func finish(c *conn, now time.Time, id, reason string, entries []store.Entry) error {
	if err := c.exec("UPDATE sessions SET ended_at = ?, end_reason = ? WHERE id = ?", now, reason, id); err != nil {
		return err
	}
	return record(c, entries)
}

// A winding says how the leases of an ended session are wound up.
type winding struct {
	first  bool   // the session ended just now: leases take their way out
	worker string // claims what needs work; "" for nobody
	until  time.Time
}

// wind sends the leases of an ended session on their way and returns them,
// oldest first.
func wind(c *conn, now time.Time, session string, w winding) ([]store.Lease, error) {
	leases, err := leasesWhere(c, "session = ?", session)
	if err != nil {
		return nil, err
	}
	for i := range leases {
		l := &leases[i]
		changed := w.first && wayOut(l, now)
		held := l.ClaimedUntil.After(now)
		claim := w.worker != "" && l.State != store.Issuing && !l.State.Terminal() && !held && (w.first || !l.NextAt.IsZero() && !l.NextAt.After(now))
		if claim {
			l.ClaimedBy, l.ClaimedUntil = w.worker, micro(w.until)
			l.Epoch++
		}
		if changed || claim {
			if err := c.exec("UPDATE leases SET state = ?, next_at = ?, attempts = ?, claimed_by = ?, claimed_until = ?, epoch = ? WHERE id = ?",
				string(l.State), l.NextAt, l.Attempts, l.ClaimedBy, l.ClaimedUntil, l.Epoch, l.ID); err != nil {
				return nil, err
			}
		}
		if !claim {
			l.Epoch, l.ClaimedBy, l.ClaimedUntil = 0, "", time.Time{}
		}
	}
	return leases, nil
}

// wayOut moves a lease whose session ended, or whose request was made anew, to
// the state from which it ends, and reports whether it did. Whoever held it
// for another purpose has lost it.
func wayOut(l *store.Lease, now time.Time) bool {
	switch l.State {
	case store.Intent:
		l.State, l.NextAt = store.Void, time.Time{}
	case store.Active, store.Irrevocable:
		l.State, l.NextAt = store.Revoking, micro(now)
		if l.Revocability == "expires" {
			l.State = store.Expiring
			if l.DiesBy.After(now) {
				l.NextAt = l.DiesBy
			}
		}
	default:
		return false
	}
	l.Attempts, l.ClaimedBy, l.ClaimedUntil = 0, "", time.Time{}
	return true
}

// DueSessions implements [store.Store].
func (s *Store) DueSessions(ctx context.Context, now time.Time, n int) ([]store.Session, error) {
	return s.sessions(ctx, "SELECT "+sessionColumns+" FROM sessions WHERE ended_at IS NULL AND deadline <= ? ORDER BY deadline LIMIT ?", now, max(n, 0))
}

// NextDue implements [store.Store].
func (s *Store) NextDue(ctx context.Context) (time.Time, error) {
	var next time.Time
	err := s.read(ctx, func(c *conn) error {
		r, err := c.one("SELECT min(deadline) FROM sessions WHERE ended_at IS NULL")
		if err != nil {
			return err
		}
		next = r.time(0)
		return eachProvider(c, func(provider string) error {
			r, err := c.one("SELECT min(due_at) FROM leases WHERE provider = ? AND due_at IS NOT NULL", provider)
			if err != nil {
				return err
			}
			if due := r.time(0); next.IsZero() || due.Before(next) {
				next = due
			}
			return nil
		})
	})
	if err != nil {
		return time.Time{}, err
	}
	return next, nil
}

// micro rounds down to what the store keeps.
func micro(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return time.UnixMicro(t.UnixMicro()).UTC()
}

// orNow is the time at which a record was made.
func orNow(t, now time.Time) time.Time {
	if t.IsZero() {
		return now
	}
	return t
}

// Restart implements [store.Store].
func (s *Store) Restart(ctx context.Context, now time.Time) error {
	return s.write(ctx, now, func(c *conn) error {
		for _, query := range []string{
			`UPDATE sessions SET deadline = min(?1 + heartbeat_timeout, hard_end), graced = 1 WHERE ended_at IS NULL AND graced = 0`,
			`UPDATE leases SET next_at = ?1 WHERE state IN ('intent', 'issuing')`,
		} {
			if err := c.exec(query, now); err != nil {
				return fmt.Errorf("restarting: %w", err)
			}
		}
		return c.exec("UPDATE leases SET claimed_by = '', claimed_until = NULL WHERE claimed_until IS NOT NULL")
	})
}
