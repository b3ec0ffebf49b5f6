package brokercli

import (
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runenv/action/broker/identity/identitytest"
	"github.com/runenv/action/secret"
)

// A wall clock that is set back gives no old token another life: by then the
// store may have forgotten that it was used.
func TestT24TokensAreJudgedByTheBrokersClock(t *testing.T) {
	t.Parallel()
	ci := identitytest.New(t)
	var ahead atomic.Int64
	env := testEnv()
	env.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	file := parse(t, strings.ReplaceAll(local, "http://127.0.0.1:8099", ci.URL), true)
	w, err := assemble(t.Context(), env, file, mode{dev: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	token := secret.FromString(ci.Sign(ci.GitHub(file.URL)))
	if _, err := w.verifier.Verify(t.Context(), token); err != nil {
		t.Fatalf("Verify(a fresh token) = %v", err)
	}
	ahead.Store(int64(20 * time.Minute))
	w.now()
	ahead.Store(0)
	if _, err := w.verifier.Verify(t.Context(), token); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("20 minutes later, by a clock that was set back, Verify = %v, want expired", err)
	}
}
