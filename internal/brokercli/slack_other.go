//go:build !linux

package brokercli

// relaxTimers does nothing: only Linux has a timer slack to set.
func relaxTimers(func() error) error { return nil }
