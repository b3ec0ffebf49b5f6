package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/runenv/action/broker/store"
)

// hashBytes is the length of each hash in a tile.
const hashBytes = 32

// record appends entries to those that wait for their place in the log.
func record(c *conn, entries []store.Entry) error {
	for _, e := range entries {
		if len(e.Body) == 0 || bytes.ContainsAny(e.Body, "\n\r") {
			return &fault{errors.New("an audit entry isn't one line")}
		}
		if err := c.exec("INSERT INTO entries (event, request, session, lease, body) VALUES (?, ?, ?, ?, ?)",
			e.Event, e.Request, e.Session, e.Lease, e.Body); err != nil {
			return err
		}
	}
	return nil
}

// Record implements [store.AuditStore].
func (s *Store) Record(ctx context.Context, now time.Time, entries []store.Entry) error {
	if s.readOnly && s.writer == nil {
		return errReadOnly
	}
	return s.change(ctx, now, func(c *conn) error { return record(c, entries) })
}

const loggedColumns = "e.event, e.request, e.session, e.lease, e.body, e.row"

func (s *Store) logged(ctx context.Context, query string, args ...any) ([]store.Logged, error) {
	var out []store.Logged
	err := s.read(ctx, func(c *conn) error {
		out = nil
		return c.query(func(r row) error {
			l := store.Logged{
				Entry: store.Entry{Event: r.text(0), Request: r.text(1), Session: r.text(2), Lease: r.text(3), Body: r.bytes(4)},
				Row:   r.int64(5), Index: -1,
			}
			if !r.isNull(6) {
				l.Index = r.int64(6)
			}
			out = append(out, l)
			return nil
		}, query, args...)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Pending implements [store.AuditStore].
func (s *Store) Pending(ctx context.Context, n int) ([]store.Logged, error) {
	return s.logged(ctx, "SELECT "+loggedColumns+`, NULL FROM entries e
		WHERE e.row > (SELECT log_rows FROM meta) AND NOT EXISTS (SELECT 1 FROM log WHERE log.row = e.row)
		ORDER BY e.row LIMIT ?`, max(n, 0))
}

// Entries implements [store.AuditStore].
func (s *Store) Entries(ctx context.Context, first int64, n int) ([]store.Logged, error) {
	return s.logged(ctx, "SELECT "+loggedColumns+`, log.idx FROM log CROSS JOIN entries e ON e.row = log.row
		WHERE log.idx >= ? ORDER BY log.idx LIMIT ?`, first, max(n, 0))
}

// EntriesAbout implements [store.AuditStore].
func (s *Store) EntriesAbout(ctx context.Context, id string, n int) ([]store.Logged, error) {
	if id == "" {
		return nil, nil
	}
	return s.logged(ctx, "SELECT "+loggedColumns+`, log.idx FROM entries e LEFT JOIN log ON log.row = e.row
		WHERE e.row IN (SELECT row FROM entries WHERE request = ?1 AND request <> ''
			UNION SELECT row FROM entries WHERE session = ?1 AND session <> ''
			UNION SELECT row FROM entries WHERE lease = ?1 AND lease <> '')
		ORDER BY e.row LIMIT ?2`, id, max(n, 0))
}

// Checkpoint implements [store.AuditStore].
func (s *Store) Checkpoint(ctx context.Context) (note []byte, size int64, err error) {
	err = s.read(ctx, func(c *conn) error {
		r, err := c.one("SELECT checkpoint, log_size FROM meta")
		if err != nil {
			return err
		}
		if r == nil {
			return errors.New("the table meta is empty")
		}
		note, size = r.bytes(0), r.int64(1)
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return note, size, nil
}

// Grow implements [store.AuditStore].
func (s *Store) Grow(ctx context.Context, now time.Time, g store.Sequence) error {
	for _, t := range g.Tiles {
		if t.W < 1 || len(t.Data) != t.W*hashBytes {
			return fmt.Errorf("tile %d/%d has %d bytes for %d hashes", t.L, t.N, len(t.Data), t.W)
		}
	}
	if len(g.Rows) == 0 || len(g.Checkpoint) == 0 {
		return errors.New("a growth of the log needs rows and a checkpoint")
	}
	return s.write(ctx, now, func(c *conn) error { return grow(c, g) })
}

func grow(c *conn, g store.Sequence) error {
	r, err := c.one("SELECT log_size, log_rows FROM meta")
	if err != nil {
		return err
	}
	if r.int64(0) != g.First {
		return store.ErrConflict
	}
	through := r.int64(1)
	seen := make(map[int64]bool, len(g.Rows))
	for _, n := range g.Rows {
		pending, err := c.one("SELECT 1 FROM entries e WHERE e.row = ?1 AND NOT EXISTS (SELECT 1 FROM log WHERE log.row = ?1)", n)
		if err != nil {
			return err
		}
		if pending == nil || seen[n] {
			return store.ErrConflict
		}
		seen[n] = true
	}
	for seen[through+1] {
		through++
	}
	for i, n := range g.Rows {
		if err := c.exec("INSERT INTO log (idx, row) VALUES (?, ?)", g.First+int64(i), n); err != nil {
			return err
		}
	}
	for _, t := range g.Tiles {
		if err := c.exec(`INSERT INTO tiles (l, n, w, data) VALUES (?, ?, ?, ?)
			ON CONFLICT (l, n) DO UPDATE SET w = excluded.w, data = excluded.data WHERE excluded.w > tiles.w`,
			t.L, t.N, t.W, t.Data); err != nil {
			return err
		}
	}
	return c.exec("UPDATE meta SET log_size = ?, log_rows = ?, checkpoint = ?", g.First+int64(len(g.Rows)), through, g.Checkpoint)
}

// Tiles implements [store.AuditStore].
func (s *Store) Tiles(ctx context.Context, want []store.Tile) ([]store.Tile, error) {
	var out []store.Tile
	err := s.read(ctx, func(c *conn) error {
		out = make([]store.Tile, 0, len(want))
		for _, t := range want {
			r, err := c.one("SELECT data FROM tiles WHERE l = ? AND n = ? AND w >= ?", t.L, t.N, t.W)
			if err != nil {
				return err
			}
			if r == nil || len(r.bytes(0)) < t.W*hashBytes {
				return fmt.Errorf("tile %d/%d of width %d: %w", t.L, t.N, t.W, store.ErrNotFound)
			}
			t.Data = r.bytes(0)[:t.W*hashBytes]
			out = append(out, t)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
