// Command runenv-broker is RunEnv's server and its tools.
package main

import (
	"io"
	"log"
	"os"

	"github.com/runenv/action/internal/brokercli"
	"github.com/runenv/action/internal/cli"
)

func main() {
	log.SetOutput(io.Discard) // net/http logs parts of back ends' answers, which may be values
	if status, is := cli.Helper(os.Args); is {
		os.Exit(status)
	}
	os.Exit(brokercli.Run(os.Args[1:], brokercli.OSEnv()))
}
