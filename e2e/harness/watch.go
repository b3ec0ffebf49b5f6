package harness

import (
	"io"
	stdlog "log"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// A RoleWatch asks a PostgreSQL for its roles again and again, as a superuser,
// over one connection. It is safe for concurrent use.
type RoleWatch struct {
	mu   sync.Mutex
	conn *pgx.Conn
}

// Watch opens one.
func (pg *PostgresServer) Watch(tb testing.TB) *RoleWatch {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), pg.local("postgres"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { disconnect(tb.Context(), conn) })
	return &RoleWatch{conn: conn}
}

// Users are the roles whose name holds part. Vault puts the first eight bytes
// of its database role's name into each name that it makes.
func (w *RoleWatch) Users(tb testing.TB, part string) []string {
	tb.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	rows, err := w.conn.Query(tb.Context(), `SELECT rolname FROM pg_roles ORDER BY 1`)
	if err != nil {
		tb.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		tb.Fatal(err)
	}
	return slices.DeleteFunc(names, func(name string) bool { return !strings.Contains(name, part) })
}

// discardLog is for servers whose complaints are expected.
func discardLog() *stdlog.Logger { return stdlog.New(io.Discard, "", 0) }
