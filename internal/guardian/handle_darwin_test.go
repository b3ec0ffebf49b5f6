package guardian

import (
	"testing"
	"time"
)

func pidOf(h *Handle) int { return h.process.Pid }

// hangUp closes the pipe, as the wrapper's death does.
func hangUp(t *testing.T, h *Handle) {
	t.Helper()
	if err := h.life.Close(); err != nil {
		t.Fatal(err)
	}
}

func awaitDeath(t *testing.T, h *Handle) {
	t.Helper()
	select {
	case <-h.exited:
	case <-time.After(patience):
		_ = h.process.Kill()
		t.Fatal("the guardian doesn't exit")
	}
}

func exitCode(t *testing.T, h *Handle) int {
	t.Helper()
	awaitDeath(t, h)
	return h.state.ExitCode()
}

// A program that doesn't confirm is no guardian.
func TestStartRefusesAnotherProgram(t *testing.T) {
	t.Parallel()
	h, err := watched("/bin/sh", Config{})
	if err == nil {
		_ = h.Done()
		t.Error("no error")
	}
}
