// Package sqlite keeps the broker's records in one SQLite file, or in memory.
//
// One writer goroutine makes every change. It takes the verbs that wait, runs
// them in one transaction, commits with a sync of the disk, and answers all of
// them: many callers share the price of one sync, and a lone caller waits for
// nobody. Readers have connections of their own, and see every answered
// change.
//
// The file is for one broker: a second is refused by a lock. The file and its
// folder must be closed to other users, since what is sealed in it is sealed
// field by field and the rest is not.
//
// What the package doesn't promise: if the disk failed during a commit, the
// callers are told so and the store carries on without these changes, but if
// the machine goes down before the next commit, the disk may turn out to have
// kept them. A verb whose context ends while its transaction is under way may
// have been made durable too; its arguments mustn't be changed after that.
package sqlite

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"

	"github.com/runenv/action/broker/store"
)

const (
	// Memory is the path of a store that lives and dies with its process.
	Memory = ":memory:"

	// applicationID marks our files: "RENU".
	applicationID = 0x52454e55

	// schemaVersion is the user_version that the last migration sets.
	schemaVersion = 1

	// readerConns is the number of connections for reading. Reads are short;
	// more wouldn't help on few cores.
	readerConns = 4
)

//go:embed migrations/*.sql
var migrations embed.FS

var _ store.Store = (*Store)(nil)

var (
	errClosed   = errors.New("the store is closed")
	errReadOnly = errors.New("the store is open for reading only")
	errInUse    = &hinted{
		"another broker has it open",
		"stop that one first; to run several brokers side by side, give each a `store` of its own",
	}
)

// hinted is an error whose cure is known.
type hinted struct{ text, hint string }

func (e *hinted) Error() string { return e.text }

// Hint is one line for people that names the cure.
func (e *hinted) Hint() string { return e.hint }

// Config says what to open.
type Config struct {
	// Path of the database file, which is made if it doesn't exist; its
	// folder must. [Memory] keeps everything in memory.
	Path string
	// ReadOnly is for tools that look into a store beside its running broker:
	// it takes no lock, migrates nothing and refuses every change.
	ReadOnly bool
	// Beside is ReadOnly for tools that besides add to the audit log what they
	// do ([Store.Record]). A running broker's log takes it up.
	Beside bool
	// Log is told of migrations. Default: nobody is.
	Log *slog.Logger
}

// A Store is a [store.Store] in SQLite.
type Store struct {
	readOnly  bool         // but for Record, if there is a writer
	highWater atomic.Int64 // microseconds
	lock      *os.File

	jobs        chan *job
	readers     chan *conn // nil in memory
	readerCount int

	closeOnce sync.Once
	closing   chan struct{}
	closed    chan struct{} // the writer is gone
	writer    *conn         // the writer's until then; nil if the store is read-only
	closeErr  error
}

// Open opens the store, and makes or migrates it where needed.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		readOnly: cfg.ReadOnly || cfg.Beside,
		jobs:     make(chan *job, queueLength),
		closing:  make(chan struct{}),
		closed:   make(chan struct{}),
	}
	var err error
	switch {
	case cfg.Path == "":
		err = errors.New("no path")
	case cfg.Path == Memory && s.readOnly:
		err = errors.New("a store in memory can't be looked into from outside")
	case cfg.Path == Memory:
		s.writer, err = openMemory(ctx, log)
	default:
		err = s.openFile(ctx, cfg.Path, log)
	}
	if err == nil && cfg.Beside {
		err = s.openBeside(ctx, cfg.Path)
	}
	if err == nil && s.writer != nil {
		err = s.loadHighWater(s.writer)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the store %s: %w", cfg.Path, err), s.release())
	}
	if s.writer == nil {
		close(s.closed)
	} else {
		go s.serve(s.writer)
	}
	return s, nil
}

// openMemory returns the only connection of a new database in memory.
func openMemory(ctx context.Context, log *slog.Logger) (*conn, error) {
	// The memdb VFS lets goose in by a second connection; the name keeps
	// stores of one process apart.
	dsn := "file:/" + rand.Text() + "?vfs=memdb"
	c, err := connect(ctx, dsn, "journal_mode=MEMORY", "synchronous=OFF", "temp_store=MEMORY")
	if err != nil {
		return nil, err
	}
	if err := prepareSchema(ctx, c, dsn, log); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// openFile checks, locks and opens the file. What it opened stands in s even
// if it fails.
func (s *Store) openFile(ctx context.Context, path string, log *slog.Logger) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if err := checkFolder(filepath.Dir(path)); err != nil {
		return err
	}
	if s.readOnly {
		if _, err := os.Stat(path); err != nil {
			return err
		}
	} else {
		if s.lock, err = lockFile(path + ".lock"); err != nil {
			return err
		}
		// SQLite would make it by the umask, and gives its side files the
		// same mode.
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := checkFile(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return damaged(s.connectAll(ctx, fileDSN(path), log))
}

// openBeside adds a writer to a file that another process may write to.
func (s *Store) openBeside(ctx context.Context, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if s.writer, err = connect(ctx, fileDSN(path), "busy_timeout=5000", "temp_store=MEMORY", "synchronous=FULL", "fullfsync=1"); err != nil {
		return err
	}
	version, err := s.writer.one("PRAGMA user_version")
	if err != nil {
		return err
	}
	if v := version.int64(0); v != schemaVersion {
		return &hinted{
			fmt.Sprintf("the file was written by an older runenv-broker (schema %d, this one knows %d)", v, schemaVersion),
			"start the newer runenv-broker once: it brings the file up to date",
		}
	}
	return nil
}

// connectAll opens the connections to a file, brings its schema up to date,
// and leaves them in s.
func (s *Store) connectAll(ctx context.Context, dsn string, log *slog.Logger) (err error) {
	// The wait concerns tools that work beside us.
	common := []string{"busy_timeout=5000", "temp_store=MEMORY"}
	if !s.readOnly {
		// Commits sync the data, and not the times of the file: as durable,
		// and cheaper. Where there is no such call SQLite syncs all.
		if _, err := sqlite.Fdatasync(true); err != nil && !errors.Is(err, sqlite.ErrFdatasyncUnavailable) {
			return err
		}
		s.writer, err = connect(ctx, dsn, append(common, "journal_mode=WAL", "synchronous=FULL", "fullfsync=1",
			"checkpoint_fullfsync=1", "cache_size=-16384", "wal_autocheckpoint=4000")...)
		if err != nil {
			return err
		}
		if err := prepareSchema(ctx, s.writer, dsn, log); err != nil {
			return err
		}
	}
	s.readers = make(chan *conn, readerConns)
	for range readerConns {
		c, err := connect(ctx, dsn, append(common, "query_only=1")...)
		if err != nil {
			return err
		}
		s.readers <- c
		s.readerCount++
		if s.readOnly && s.readerCount == 1 {
			if err := checkOurs(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// fileDSN names a file so that no character of its path is taken for syntax.
func fileDSN(path string) string {
	path = filepath.ToSlash(path)
	if runtime.GOOS == "windows" {
		path = "/" + path
	}
	return "file://" + (&url.URL{Path: path}).EscapedPath() + "?mode=rw"
}

// damaged adds the cure to the errors that a damaged or foreign file gives.
func damaged(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	const corrupt, notADB = 11, 26
	switch e.Code() & 0xff {
	case corrupt, notADB:
		return &hinted{
			"the file is damaged, or isn't a SQLite database",
			"check the path in `store`; if it is right, restore the file from a backup",
		}
	}
	return err
}

// prepareSchema brings a new or older database up to date.
func prepareSchema(ctx context.Context, c *conn, dsn string, log *slog.Logger) error {
	tables, err := c.one("SELECT count(*) FROM sqlite_schema")
	if err != nil {
		return err
	}
	if tables.int64(0) == 0 {
		// Marked first, so that a crash in the middle leaves a file that is
		// known to be ours.
		if err := c.exec(fmt.Sprintf("PRAGMA application_id = %d", applicationID)); err != nil {
			return err
		}
	} else if err := checkOurs(c); err != nil {
		return err
	}
	version, err := c.one("PRAGMA user_version")
	if err != nil {
		return err
	}
	if version.int64(0) == schemaVersion {
		return nil
	}
	return migrate(ctx, dsn, log)
}

// checkOurs refuses databases of other programs and of newer brokers.
func checkOurs(c *conn) error {
	app, err := c.one("PRAGMA application_id")
	if err != nil {
		return err
	}
	version, err := c.one("PRAGMA user_version")
	if err != nil {
		return err
	}
	if app.int64(0) != applicationID {
		return &hinted{
			"the file is another program's database",
			"point `store` to a file of its own",
		}
	}
	if v := version.int64(0); v > schemaVersion {
		return &hinted{
			fmt.Sprintf("the file was written by a newer runenv-broker (schema %d, this one knows %d)", v, schemaVersion),
			"run the newer runenv-broker, or restore a backup from before the upgrade",
		}
	}
	return nil
}

// migrate runs what is missing of the migrations, on a connection of its own.
func migrate(ctx context.Context, dsn string, log *slog.Logger) (err error) {
	connector, err := sqlite.NewConnector(dsn)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer func() { err = errors.Join(err, db.Close()) }()
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, sub)
	if err != nil {
		return fmt.Errorf("reading the migrations: %w", err)
	}
	results, err := provider.Up(ctx)
	if err != nil {
		return fmt.Errorf("migrating: %w", err)
	}
	for _, r := range results {
		log.InfoContext(ctx, "store migrated", "version", r.Source.Version, "took", r.Duration)
	}
	return nil
}

// loadHighWater reads the mark that an earlier process left.
func (s *Store) loadHighWater(c *conn) error {
	r, err := c.one("SELECT high_water FROM meta")
	if err != nil {
		return err
	}
	if r == nil {
		return errors.New("the table meta is empty")
	}
	s.highWater.Store(r.int64(0))
	return nil
}

// Close answers the verbs that wait, and closes the files. Later calls return
// what the first did.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.closing)
		<-s.closed
		s.closeErr = s.release()
	})
	return s.closeErr
}

// release closes the connections, the readers' once they are back, and gives
// up the lock. The writer's goes last: what goes last tidies up the files.
func (s *Store) release() error {
	var errs []error
	for range s.readerCount {
		errs = append(errs, (<-s.readers).Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}
