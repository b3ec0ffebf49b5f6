// Command runenv-broker is RunEnv's server and its tools.
package main

import (
	"os"

	"github.com/runenv/action/internal/brokercli"
)

func main() {
	os.Exit(brokercli.Run(os.Args[1:], brokercli.OSEnv()))
}
