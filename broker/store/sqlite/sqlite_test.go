package sqlite_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/broker/store/sqlite"
	"github.com/runenv/action/broker/store/storetest"
)

// childPath names, in a child's environment, the store that it writes to until
// it is killed.
const childPath = "RUNENV_TEST_STORE"

func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		if err := writeUntilKilled(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// newPath is a path for a store, in a folder of its own that is closed to
// others.
func newPath(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "broker.db")
}

func open(t testing.TB, path string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatalf("Open(%s) = %v", path, err)
	}
	return s
}

func closeStore(t testing.TB, s *sqlite.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("Close() = %v", err)
	}
}

// wantHint holds an error to its text and its cure.
func wantHint(t *testing.T, err error, text, hint string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one about %q", text)
	}
	var h interface{ Hint() string }
	if !errors.As(err, &h) {
		t.Fatalf("%v has no hint", err)
	}
	if !strings.Contains(err.Error(), text) || !strings.Contains(h.Hint(), hint) {
		t.Errorf("error %q with hint %q, want %q and %q in them", err, h.Hint(), text, hint)
	}
}

func TestContractOnDisk(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, newPath(t)) })
}

func TestContractInMemory(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, sqlite.Memory) })
}

func TestStoresInMemoryAreApart(t *testing.T) {
	t.Parallel()
	a, b := open(t, sqlite.Memory), open(t, sqlite.Memory)
	defer closeStore(t, a)
	defer closeStore(t, b)
	if err := exchange(t.Context(), a, "1"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Session(t.Context(), "s-1"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Session in the other store = %v, want ErrNotFound", err)
	}
}

func TestEverythingIsThereAfterReopening(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := open(t, path)
	ctx := t.Context()
	if err := exchange(ctx, s, "1"); err != nil {
		t.Fatal(err)
	}
	read := func(s *sqlite.Store) []any {
		t.Helper()
		var out []any
		add := func(v any, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, v)
		}
		session, err := s.Session(ctx, "s-1")
		add(session, err)
		lease, err := s.Lease(ctx, "l-1")
		add(lease, err)
		pending, err := s.Pending(ctx, 10)
		add(pending, err)
		mark, err := s.HighWater(ctx)
		add(mark, err)
		return out
	}
	want := read(s)
	closeStore(t, s)
	s = open(t, path)
	defer closeStore(t, s)
	if diff := cmp.Diff(want, read(s)); diff != "" {
		t.Errorf("after reopening (-want +got):\n%s", diff)
	}
}

func TestASecondBrokerIsRefused(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := open(t, path)
	_, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	wantHint(t, err, "another broker has it open", "stop that one first")
	if err := s.Ready(t.Context()); err != nil {
		t.Errorf("Ready of the first = %v", err)
	}
	closeStore(t, s)
	closeStore(t, open(t, path))
}

// A full page of an entry's body would be readable in the file.
func TestOthersCantReadTheFiles(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	s := open(t, path)
	defer closeStore(t, s)
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, f := range files {
		names = append(names, f.Name())
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("%s has mode %04o, want 0600", f.Name(), mode)
		}
	}
	if diff := cmp.Diff([]string{"broker.db", "broker.db-shm", "broker.db-wal", "broker.db.lock"}, names); diff != "" {
		t.Errorf("files differ (-want +got):\n%s", diff)
	}
}

func TestOpenNamesTheCure(t *testing.T) {
	t.Parallel()
	sqlFile := func(path string, statements ...string) error {
		db, err := sql.Open("sqlite", path)
		if err != nil {
			return err
		}
		for _, s := range statements {
			if _, err := db.Exec(s); err != nil {
				return errors.Join(err, db.Close())
			}
		}
		return errors.Join(db.Close(), os.Chmod(path, 0o600))
	}
	tests := []struct {
		name       string
		prepare    func(path string) error
		text, hint string
	}{
		{"open folder", func(p string) error { return os.Chmod(filepath.Dir(p), 0o750) }, "other users can get into the folder", "chmod 700"},
		{"no folder", func(p string) error { return os.Remove(filepath.Dir(p)) }, "doesn't exist", "mkdir -m 700"},
		{"open file", func(p string) error {
			return errors.Join(os.WriteFile(p, nil, 0o600), os.Chmod(p, 0o640))
		}, "other users can get at", "chmod 600"},
		{"open log", func(p string) error {
			return errors.Join(os.WriteFile(p+"-wal", nil, 0o600), os.Chmod(p+"-wal", 0o604))
		}, "broker.db-wal (mode 0604)", "chmod 600"},
		{"another program's", func(p string) error { return sqlFile(p, "CREATE TABLE t (x)") }, "another program's database", "a file of its own"},
		{"another program's, marked", func(p string) error {
			return sqlFile(p, "PRAGMA application_id = 7", "CREATE TABLE t (x)")
		}, "another program's database", "a file of its own"},
		{"newer", func(p string) error {
			return sqlFile(p, "PRAGMA application_id = 1380273749", "PRAGMA user_version = 99", "CREATE TABLE t (x)")
		}, "newer runenv-broker (schema 99", "run the newer"},
		{"no database", func(p string) error {
			return os.WriteFile(p, []byte(strings.Repeat("this is a diary\n", 100)), 0o600)
		}, "damaged", "restore"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := newPath(t)
			if err := tt.prepare(path); err != nil {
				t.Fatal(err)
			}
			_, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
			wantHint(t, err, tt.text, tt.hint)
			if strings.Contains(err.Error(), "diary") {
				t.Errorf("the error %q holds what is in the file", err)
			}
			// The refusal holds no lock.
			_, again := sqlite.Open(t.Context(), sqlite.Config{Path: path})
			wantHint(t, again, tt.text, tt.hint)
		})
	}
	if _, err := sqlite.Open(t.Context(), sqlite.Config{}); err == nil {
		t.Error("Open of no path = nil, want an error")
	}
}

func TestACrashBeforeTheFirstMigrationHealsItself(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("PRAGMA application_id = 1380273749"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Close(), os.Chmod(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
	defer closeStore(t, s)
	if err := exchange(t.Context(), s, "1"); err != nil {
		t.Errorf("exchange = %v", err)
	}
}

func TestAnyPathIsAFile(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a ?b#c%41&mode=memory")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "d?mode=memory#e%2F.db")
	s := open(t, path)
	defer closeStore(t, s)
	if info, err := os.Stat(path); err != nil || info.Size() == 0 {
		t.Errorf("Stat(%s) = %v, %v, want a database", path, info, err)
	}
}

func TestToolsLookIntoALiveStore(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	path := newPath(t)
	look := func() (*sqlite.Store, error) { return sqlite.Open(ctx, sqlite.Config{Path: path, ReadOnly: true}) }
	if _, err := look(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open of nothing for reading = %v, want ErrNotExist", err)
	}
	if _, err := sqlite.Open(ctx, sqlite.Config{Path: sqlite.Memory, ReadOnly: true}); err == nil {
		t.Error("Open of a memory for reading = nil, want an error")
	}
	s := open(t, path)
	tool, err := look()
	if err != nil {
		t.Fatal(err)
	}
	if err := exchange(ctx, s, "1"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if told, err := tool.EntriesAbout(ctx, "s-1", 10); err != nil || len(told) != 2 {
			t.Errorf("EntriesAbout = %d entries, %v, want 2", len(told), err)
		}
		want, _ := s.HighWater(ctx)
		if got, err := tool.HighWater(ctx); err != nil || !got.Equal(want) {
			t.Errorf("HighWater = %v, %v, want %v", got, err, want)
		}
		if err := tool.UseProof(ctx, time.Now(), store.Proof{Thumbprint: "k", JTI: "j", Expires: time.Now()}); err == nil {
			t.Error("UseProof in a store for reading = nil, want an error")
		}
		if err := tool.Ready(ctx); err == nil {
			t.Error("Ready of a store for reading = nil, want an error")
		}
		closeStore(t, tool)
		// Once more, after the broker has gone.
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if tool, err = look(); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, tool)
	// What the tool left doesn't lock the broker out.
	closeStore(t, open(t, path))
}

// writeUntilKilled is the child of the test below.
func writeUntilKilled(path string) error {
	s, err := sqlite.Open(context.Background(), sqlite.Config{Path: path})
	if err != nil {
		return err
	}
	errs := make(chan error)
	for worker := range 8 {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d", worker, i)
				if err := exchange(context.Background(), s, id); err != nil {
					errs <- err
					return
				}
				if _, err := fmt.Println(id); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	return <-errs
}

func TestP3WhatWasAnsweredOutlivesAKill(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childPath+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var answered []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		answered = append(answered, lines.Text())
		if len(answered) == 300 {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Exited() {
		t.Fatalf("the child ended by itself: %v", err)
	}
	s := open(t, path)
	defer closeStore(t, s)
	if len(answered) < 300 {
		t.Fatalf("%d answers, want 300", len(answered))
	}
	for _, id := range answered {
		if _, err := s.Session(t.Context(), "s-"+id); err != nil {
			t.Errorf("session %s = %v", id, err)
		}
		if l, err := s.Lease(t.Context(), "l-"+id); err != nil || l.State != store.Active {
			t.Errorf("lease %s = %v, %v", id, l.State, err)
		}
		if told, err := s.EntriesAbout(t.Context(), "s-"+id, 10); err != nil || len(told) != 2 {
			t.Errorf("entries about %s = %d, %v, want 2", id, len(told), err)
		}
	}
}

func TestCloseAnswersEverybody(t *testing.T) {
	t.Parallel()
	for _, path := range []string{sqlite.Memory, newPath(t)} {
		s := open(t, path)
		var wg sync.WaitGroup
		first := make(chan struct{}, 32)
		for i := range 32 {
			wg.Go(func() {
				for k := 0; ; k++ {
					if err := exchange(t.Context(), s, fmt.Sprint(i, "-", k)); err != nil {
						return
					}
					if k == 0 {
						first <- struct{}{}
					}
					if _, err := s.Session(t.Context(), fmt.Sprint("s-", i, "-", k)); err != nil {
						return
					}
				}
			})
		}
		for range 32 {
			<-first
		}
		closeStore(t, s)
		wg.Wait() // hangs if anybody wasn't answered
	}
}
