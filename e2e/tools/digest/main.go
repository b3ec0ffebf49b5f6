// Digest writes the SHA-256 of one file into another, in hex. It is what an
// image's build runs on its secret in the tests: static, for an image without a
// shell.
//
//	digest FILE SUM-FILE
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: digest FILE SUM-FILE")
		os.Exit(2)
	}
	content, err := os.ReadFile(os.Args[1])
	if err == nil {
		err = os.WriteFile(os.Args[2], fmt.Appendf(nil, "%x", sha256.Sum256(content)), 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "digest:", err)
		os.Exit(1)
	}
}
