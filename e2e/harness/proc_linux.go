package harness

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel kill cmd when the test process ends, so that a
// test run that is killed leaves nothing behind.
func dieWithParent(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
}
