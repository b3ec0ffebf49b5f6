package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"time"

	"modernc.org/sqlite"
)

// A conn is one connection, used by one goroutine at a time. It speaks to the
// driver itself: database/sql's pool and its locks cost as much as a small
// statement does.
type conn struct {
	driver.Conn
	stmts  map[string]statement
	args   []driver.NamedValue
	writes int // statements that may have changed something
}

type statement interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// A fault is why a verb failed as a whole, apart from refusals: its changes
// are undone.
type fault struct{ err error }

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// connect opens a connection and runs the pragmas.
func connect(ctx context.Context, dsn string, pragmas ...string) (*conn, error) {
	connector, err := sqlite.NewConnector(dsn)
	if err != nil {
		return nil, &fault{err}
	}
	dc, err := connector.Connect(ctx)
	if err != nil {
		return nil, &fault{err}
	}
	c := &conn{Conn: dc, stmts: map[string]statement{}}
	for _, p := range pragmas {
		if err := c.exec("PRAGMA " + p); err != nil {
			return nil, errors.Join(fmt.Errorf("setting %s: %w", p, err), c.Close())
		}
	}
	return c, nil
}

// Close closes the statements and the connection.
func (c *conn) Close() error {
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.Close())
	}
	clear(c.stmts)
	return errors.Join(append(errs, c.Conn.Close())...)
}

// prepare returns the prepared statement for query, which is always one of
// this package's constants.
func (c *conn) prepare(query string) (statement, error) {
	if s, ok := c.stmts[query]; ok {
		return s, nil
	}
	s, err := c.Prepare(query)
	if err != nil {
		return nil, &fault{err}
	}
	st, ok := s.(statement)
	if !ok {
		return nil, errors.Join(&fault{errors.New("the driver's statements take no context")}, s.Close())
	}
	c.stmts[query] = st
	return st, nil
}

// bind puts args into the form that the driver takes, in c.args.
func (c *conn) bind(args []any) []driver.NamedValue {
	for len(c.args) < len(args) {
		c.args = append(c.args, driver.NamedValue{Ordinal: len(c.args) + 1})
	}
	for i, a := range args {
		switch v := a.(type) {
		case int:
			a = int64(v)
		case []byte:
			if len(v) == 0 {
				a = nil // absent and empty are one
			}
		case time.Time:
			a = nil
			if !v.IsZero() {
				a = v.UnixMicro()
			}
		case time.Duration:
			a = v.Microseconds()
		}
		c.args[i].Value = a
	}
	return c.args[:len(args)]
}

// exec runs a statement that returns no rows. Statements run without a
// context: cutting one short would roll back its whole transaction, which it
// shares with its neighbours.
func (c *conn) exec(query string, args ...any) error {
	s, err := c.prepare(query)
	if err != nil {
		return err
	}
	c.writes++
	if _, err := s.ExecContext(context.Background(), c.bind(args)); err != nil {
		return &fault{err}
	}
	return nil
}

// A row is one result row.
type row []driver.Value

func (r row) text(i int) string    { s, _ := r[i].(string); return s }
func (r row) int(i int) int        { n, _ := r[i].(int64); return int(n) }
func (r row) int64(i int) int64    { n, _ := r[i].(int64); return n }
func (r row) bool(i int) bool      { return r.int64(i) != 0 }
func (r row) bytes(i int) []byte   { b, _ := r[i].([]byte); return b }
func (r row) isNull(i int) bool    { return r[i] == nil }
func (r row) time(i int) time.Time { return fromMicros(r[i]) }
func fromMicros(v any) (t time.Time) {
	if n, ok := v.(int64); ok {
		t = time.UnixMicro(n).UTC()
	}
	return t
}

// query calls each for every row of the result. The row is overwritten by the
// next; its values are each's to keep.
func (c *conn) query(each func(row) error, query string, args ...any) (err error) {
	s, err := c.prepare(query)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(context.Background(), c.bind(args))
	if err != nil {
		return &fault{err}
	}
	defer func() {
		if cerr := rows.Close(); cerr != nil && err == nil {
			err = &fault{cerr}
		}
	}()
	r := make(row, len(rows.Columns()))
	for {
		if err := rows.Next(r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return &fault{err}
		}
		if err := each(r); err != nil {
			return err
		}
	}
}

// one returns the single row of a query, nil if there is none.
func (c *conn) one(query string, args ...any) (found row, err error) {
	err = c.query(func(r row) error { found = r; return nil }, query, args...)
	return found, err
}
