package sqlite

import (
	"context"
	"errors"
	"time"

	"github.com/runenv/action/broker/store"
)

// Forget implements [store.Store].
func (s *Store) Forget(ctx context.Context, now, before time.Time, n int) error {
	return s.write(ctx, now, func(c *conn) error { return forget(c, now, before, n) })
}

func forget(c *conn, now, before time.Time, n int) error {
	for _, f := range []struct{ find, drop string }{
		{"SELECT thumbprint, jti FROM proofs WHERE expires <= ? ORDER BY expires LIMIT ?", "DELETE FROM proofs WHERE thumbprint = ? AND jti = ?"},
		{"SELECT issuer, jti FROM tokens WHERE expires <= ? ORDER BY expires LIMIT ?", "DELETE FROM tokens WHERE issuer = ? AND jti = ?"},
	} {
		var found [][2]string
		if err := c.query(func(r row) error { found = append(found, [2]string{r.text(0), r.text(1)}); return nil }, f.find, now, max(n, 0)); err != nil {
			return err
		}
		for _, key := range found {
			if err := c.exec(f.drop, key[0], key[1]); err != nil {
				return err
			}
		}
		n -= len(found)
	}
	var sessions []string
	if err := c.query(func(r row) error { sessions = append(sessions, r.text(0)); return nil },
		`SELECT id FROM sessions s WHERE ended_at < ? AND NOT EXISTS (SELECT 1 FROM leases WHERE session = s.id AND `+notTerminal+`)
		ORDER BY ended_at LIMIT ?`, before, max(n, 0)); err != nil {
		return err
	}
	for _, id := range sessions {
		var leases []int64
		if err := c.query(func(r row) error { leases = append(leases, r.int64(0)); return nil },
			"SELECT row FROM leases WHERE session = ? LIMIT ?", id, max(n, 0)); err != nil {
			return err
		}
		for _, l := range leases {
			if err := c.exec("DELETE FROM leases WHERE row = ?", l); err != nil {
				return err
			}
		}
		// The session goes after the last of its leases, next time if need be.
		if n -= len(leases); n < 1 {
			return nil
		}
		if err := c.exec("DELETE FROM sessions WHERE id = ?", id); err != nil {
			return err
		}
		n--
	}
	return nil
}

// Counts implements [store.Store].
func (s *Store) Counts(ctx context.Context) (map[string]int, error) {
	var counts map[string]int
	err := s.read(ctx, func(c *conn) error {
		counts = map[string]int{}
		if err := c.query(func(r row) error { counts[r.text(0)] = r.int(1); return nil },
			"SELECT state, count(*) FROM leases GROUP BY state"); err != nil {
			return err
		}
		r, err := c.one("SELECT count(*) FROM sessions WHERE ended_at IS NULL")
		if err == nil {
			counts["session"] = r.int(0)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return counts, nil
}

const keyColumns = "purpose, id, algorithm, public, sealed, created_at"

func toKey(r row) store.Key {
	return store.Key{Purpose: r.text(0), ID: r.text(1), Algorithm: r.text(2), Public: r.bytes(3), Sealed: r.bytes(4), CreatedAt: r.time(5)}
}

// EnsureKeys implements [store.Store].
func (s *Store) EnsureKeys(ctx context.Context, now time.Time, keys []store.Key) ([]store.Key, error) {
	for _, k := range keys {
		if k.Purpose == "" || k.ID == "" {
			return nil, errors.New("a key needs a purpose and an id")
		}
	}
	var out []store.Key
	err := s.write(ctx, now, func(c *conn) error {
		out = make([]store.Key, len(keys))
		stored := func(purpose string) (row, error) {
			return c.one("SELECT "+keyColumns+" FROM keys WHERE purpose = ? ORDER BY created_at DESC, row DESC LIMIT 1", purpose)
		}
		for i, k := range keys {
			r, err := stored(k.Purpose)
			if err == nil && r == nil {
				if err = c.exec("INSERT INTO keys ("+keyColumns+") VALUES (?, ?, ?, ?, ?, ?)",
					k.Purpose, k.ID, k.Algorithm, k.Public, k.Sealed, orNow(k.CreatedAt, now)); err == nil {
					r, err = stored(k.Purpose)
				}
			}
			if err != nil {
				return err
			}
			out[i] = toKey(r)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Keys implements [store.Store].
func (s *Store) Keys(ctx context.Context) ([]store.Key, error) {
	var out []store.Key
	err := s.read(ctx, func(c *conn) error {
		out = nil
		return c.query(func(r row) error { out = append(out, toKey(r)); return nil }, "SELECT "+keyColumns+" FROM keys ORDER BY row")
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// HighWater implements [store.Store]. A mark that only refused verbs have
// reached becomes durable with the next change.
func (s *Store) HighWater(ctx context.Context) (time.Time, error) {
	if s.readOnly {
		if err := s.read(ctx, s.loadHighWater); err != nil {
			return time.Time{}, err
		}
	}
	n := s.highWater.Load()
	if n == 0 {
		return time.Time{}, nil
	}
	return time.UnixMicro(n).UTC(), nil
}

// Ready implements [store.Store] by making a durable change.
func (s *Store) Ready(ctx context.Context) error {
	if s.readOnly {
		return errReadOnly
	}
	return s.submit(ctx, func(c *conn) error { return c.exec("UPDATE meta SET probes = probes + 1") })
}
