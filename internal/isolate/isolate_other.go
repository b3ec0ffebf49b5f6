//go:build !linux

package isolate

import (
	"errors"
	"os"
)

const hint = "leave --isolate=require out: only Linux has mount namespaces"

func (*Stage) start(string, []string, *os.ProcAttr) (*os.Process, error) {
	return nil, &Error{errors.ErrUnsupported}
}

// Main is the mode: there is none here.
func Main([]string) int { return 1 }
