//go:build linux || darwin

package ci

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A pipe that nobody writes to mustn't keep a stopped job from ending.
func TestTokenFileGivesUpWithTheContext(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "token")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	stopped := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := fileSource(path).Token(ctx, "")
		ended <- err
	}()
	cancel(stopped)
	select {
	case err := <-ended:
		if !errors.Is(err, stopped) {
			t.Errorf("Token: %v, want %v", err, stopped)
		}
	case <-time.After(10 * time.Second):
		t.Error("Token waits for ever")
	}
}
