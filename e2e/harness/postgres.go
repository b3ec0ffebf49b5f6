package harness

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

// A PostgresServer is a real PostgreSQL with one database, shop, whose table
// orders has one row. Over TCP it checks passwords.
type PostgresServer struct {
	Port     int
	dir      string
	password string
}

// Postgres starts one. It needs RUNENV_E2E_POSTGRES: the folder of initdb and
// postgres.
func Postgres(tb testing.TB) *PostgresServer {
	tb.Helper()
	bin := tool(tb, "RUNENV_E2E_POSTGRES")
	pg := &PostgresServer{Port: freePort(tb), dir: publicDir(tb, "runenv-pg-"), password: randomWord()}
	attr := pg.unprivileged(tb)
	data := filepath.Join(pg.dir, "data")

	pwfile := filepath.Join(pg.dir, "password")
	writeFile(tb, pwfile, []byte(pg.password))
	if attr != nil {
		if err := os.Chown(pwfile, int(attr.Credential.Uid), int(attr.Credential.Gid)); err != nil {
			tb.Fatal(err)
		}
	}
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres",
		"--auth-local=trust", "--auth-host=scram-sha-256", "--pwfile="+pwfile, "--no-sync", "--no-locale", "-E", "UTF8")
	initdb.SysProcAttr, initdb.Dir = attr, pg.dir
	if out, err := initdb.CombinedOutput(); err != nil {
		tb.Fatalf("initdb: %v\n%s", err, out)
	}

	server := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-p", strconv.Itoa(pg.Port), "-k", pg.dir,
		"-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "shared_buffers=16MB")
	server.SysProcAttr, server.Dir = attr, pg.dir
	p := start(tb, server, new(log))
	p.await(tb, "postgres", func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, pg.local("postgres"))
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
	tb.Cleanup(func() { p.stop(syscall.SIGINT) }) // at once, not when its clients leave

	pg.Exec(tb, "postgres", "CREATE DATABASE shop")
	pg.Exec(tb, "shop", "CREATE TABLE orders (id int); INSERT INTO orders VALUES (1)")
	return pg
}

// unprivileged gives the credentials of an ordinary user when we are root,
// since PostgreSQL refuses that, and makes the server's folder theirs.
func (pg *PostgresServer) unprivileged(tb testing.TB) *syscall.SysProcAttr {
	tb.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		if err := os.Chown(pg.dir, int(uid), int(gid)); err != nil {
			tb.Fatal(err)
		}
		return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	tb.Fatal("PostgreSQL doesn't run as root, and there is neither a user postgres nor nobody")
	return nil
}

// local is how the superuser connects, by socket and without a password.
func (pg *PostgresServer) local(database string) string {
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=%s", pg.dir, pg.Port, database)
}

// disconnect says goodbye; the server notices anyhow.
func disconnect(ctx context.Context, conn *pgx.Conn) { _ = conn.Close(context.WithoutCancel(ctx)) }

// Address is host and port.
func (pg *PostgresServer) Address() string { return fmt.Sprintf("127.0.0.1:%d", pg.Port) }

// Exec runs SQL as the superuser.
func (pg *PostgresServer) Exec(tb testing.TB, database, sql string) {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), pg.local(database))
	if err != nil {
		tb.Fatal(err)
	}
	defer disconnect(tb.Context(), conn)
	if _, err := conn.Exec(tb.Context(), sql); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
}

// Login connects to the database shop as the user and counts the orders.
func (pg *PostgresServer) Login(ctx context.Context, name, password string) (orders int, err error) {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(name, password), Host: pg.Address(), Path: "/shop", RawQuery: "sslmode=disable"}
	conn, err := pgx.Connect(ctx, u.String())
	if err != nil {
		return 0, err
	}
	defer disconnect(ctx, conn)
	err = conn.QueryRow(ctx, "SELECT count(*) FROM orders").Scan(&orders)
	return orders, err
}

// Roles lists the roles of the server, less its own and the superuser: what
// somebody made.
func (pg *PostgresServer) Roles(tb testing.TB) []string {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), pg.local("postgres"))
	if err != nil {
		tb.Fatal(err)
	}
	defer disconnect(tb.Context(), conn)
	rows, err := conn.Query(tb.Context(), `SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> 'postgres' ORDER BY 1`)
	if err != nil {
		tb.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		tb.Fatal(err)
	}
	return names
}
