// Runenv gives one command short-lived credentials, for as long as it runs.
package main

import (
	"io"
	"log"
	"os"

	"github.com/runenv/action/internal/cli"
)

func main() {
	log.SetOutput(io.Discard) // net/http logs parts of answers, which may be values
	if status, is := cli.Helper(os.Args); is {
		os.Exit(status)
	}
	os.Exit(cli.Main(cli.OSEnv()))
}
