package sqlite_test

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/broker/store/sqlite"
)

// A tool's own records reach the log of the broker that runs beside it, while
// both write; it changes nothing else.
func TestToolsRecordBesideALiveStore(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	path := newPath(t)
	beside := func() (*sqlite.Store, error) { return sqlite.Open(ctx, sqlite.Config{Path: path, Beside: true}) }
	if _, err := beside(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open of nothing = %v, want ErrNotExist", err)
	}
	if _, err := sqlite.Open(ctx, sqlite.Config{Path: sqlite.Memory, Beside: true}); err == nil {
		t.Error("Open of a memory = nil, want an error")
	}
	s := open(t, path)
	tool, err := beside()
	if err != nil {
		t.Fatal(err)
	}
	const each = 50
	var both sync.WaitGroup
	both.Go(func() {
		for i := range each {
			if err := exchange(ctx, s, fmt.Sprint(i)); err != nil {
				t.Errorf("the broker's exchange %d = %v", i, err)
			}
		}
	})
	both.Go(func() {
		for i := range each {
			entry := store.Entry{Event: "provider.checked", Session: "check-1", Body: fmt.Appendf(nil, `{"n":%d}`, i)}
			if err := tool.Record(ctx, time.Now(), []store.Entry{entry}); err != nil {
				t.Errorf("the tool's record %d = %v", i, err)
			}
		}
	})
	both.Wait()
	if told, err := s.EntriesAbout(ctx, "check-1", 2*each); err != nil || len(told) != each {
		t.Errorf("the broker reads %d entries, %v, want %d", len(told), err, each)
	}
	if waiting, err := s.Pending(ctx, 10*each); err != nil || len(waiting) < 2*each {
		t.Errorf("%d entries wait for their place in the log, %v, want at least %d", len(waiting), err, 2*each)
	}
	if err := tool.UseProof(ctx, time.Now(), store.Proof{Thumbprint: "k", JTI: "j", Expires: time.Now()}); err == nil {
		t.Error("UseProof of a tool = nil, want an error")
	}
	if err := tool.Ready(ctx); err == nil {
		t.Error("Ready of a tool's store = nil, want an error")
	}
	closeStore(t, tool)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// Without a broker too, and it doesn't lock the next one out.
	if tool, err = beside(); err != nil {
		t.Fatal(err)
	}
	again := open(t, path)
	if err := tool.Record(ctx, time.Now(), []store.Entry{{Event: "provider.checked", Session: "check-2", Body: []byte(`{}`)}}); err != nil {
		t.Error(err)
	}
	closeStore(t, tool)
	if told, err := again.EntriesAbout(ctx, "check-2", 1); err != nil || len(told) != 1 {
		t.Errorf("the next broker reads %d entries, %v, want 1", len(told), err)
	}
	closeStore(t, again)
}
