//go:build linux || darwin

package ramdisk

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// runLimit bounds one program. Attaching a disk takes a fraction of a second.
const runLimit = 15 * time.Second

// Exec is what [System].Run is on a real system. The program gets none of this
// process's environment, which may hold tokens, and no signal that a terminal
// sends to this process's group.
func Exec(name string, args ...string) ([]byte, error) {
	return run(runLimit, name, args...)
}

func run(limit time.Duration, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var out bounded
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env, cmd.Stdout = "/", []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL=C"}, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("it took longer than %v", limit)
	}
	if out.overflown {
		err = errors.New("it said too much")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return out.kept, nil
}

// bounded keeps what a program prints, up to maxInfoBytes. It is no
// io.ReaderFrom, which would go round the bound.
type bounded struct {
	kept      []byte
	overflown bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if len(b.kept)+len(p) > maxInfoBytes {
		b.overflown = true
		return 0, errors.New("too much")
	}
	b.kept = append(b.kept, p...)
	return len(p), nil
}
