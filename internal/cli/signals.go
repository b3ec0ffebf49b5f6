package cli

import (
	"fmt"
	"os"
	"sync"
	"syscall"
)

// A signalError says that a signal ended the program before the command began.
type signalError struct{ signal os.Signal }

func (e *signalError) Error() string { return fmt.Sprintf("stopped by a signal: %v", e.signal) }

// Code is what a shell reports after such a signal.
func (e *signalError) Code() int {
	if n, ok := e.signal.(syscall.Signal); ok {
		return 128 + int(n)
	}
	return exitFailure
}

// A switchboard hands each signal to whoever has the say at the moment.
type switchboard struct {
	mu sync.Mutex
	to func(os.Signal)
}

// serve hands signals on, to the program's end.
func (s *switchboard) serve(signals <-chan os.Signal) {
	for sig := range signals {
		s.mu.Lock()
		if s.to != nil {
			s.to(sig)
		}
		s.mu.Unlock()
	}
}

// connect gives the say to somebody else. When it returns, the one before
// isn't called any more.
func (s *switchboard) connect(to func(os.Signal)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to = to
}

// ends says whether a signal means that we are to end. Others are the
// command's, and lost where there is none yet.
func ends(sig os.Signal) bool {
	switch sig {
	case os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT:
		return true
	}
	return false
}
