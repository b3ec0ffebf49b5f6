//go:build !linux

package harness

import "os/exec"

// dieWithParent does nothing here: only Linux has it.
func dieWithParent(*exec.Cmd) {}
