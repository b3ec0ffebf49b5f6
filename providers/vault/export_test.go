package vault

import (
	"time"

	"github.com/runenv/action/providers"
)

// Hasten shortens the waits between attempts.
func Hasten(p providers.Provider) { p.(*Provider).firstWait = time.Millisecond }
