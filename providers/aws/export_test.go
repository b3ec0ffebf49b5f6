package aws

import (
	"time"

	"github.com/runenv/action/providers"
)

// Hasten shortens the waits between attempts.
func Hasten(p providers.Provider) { core(p).firstWait = time.Millisecond }

func core(p providers.Provider) *Provider {
	if l, ok := p.(*loginProvider); ok {
		return l.Provider
	}
	return p.(*Provider)
}
