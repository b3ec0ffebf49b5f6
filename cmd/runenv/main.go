// Runenv gives one command short-lived credentials, for as long as it runs.
package main

import (
	"context"
	"io"
	"log"
	"os"

	"github.com/runenv/action/internal/cli"
	"github.com/runenv/action/internal/guardian"
)

func main() {
	log.SetOutput(io.Discard) // net/http logs parts of answers, which may be values
	if guardian.IsGuardian(os.Args) {
		os.Exit(guardian.Main(context.Background()))
	}
	os.Exit(cli.Main(cli.OSEnv()))
}
