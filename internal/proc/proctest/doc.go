// Package proctest drives programs on a terminal, for tests: it types keys and
// waits for what the screen shows. Linux only.
package proctest
