//go:build !goexperiment.runtimesecret

package inject

// erased runs f. With GOEXPERIMENT=runtimesecret its registers, stack and
// garbage are erased.
func erased(f func()) { f() }
