//go:build goexperiment.runtimesecret

package inject

import "runtime/secret"

// erased runs f, whose registers, stack and garbage are erased.
func erased(f func()) { secret.Do(f) }
