package broker

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// A build farm behind one address starts hundreds of jobs at once, and a
// matrix of one project as many: bursts are generous, and what they bound is a
// flood.
const (
	addrRate, addrBurst   = 200, 4000 // exchanges per second and at once, by address
	ownerRate, ownerBurst = 50, 2000  // the same by project, after its token was verified
	// All but the end of a session, by session: a client leases once and
	// sends a heartbeat every half a minute.
	sessionRate, sessionBurst = 10, 200
	// Reports, by session: each is an entry in the audit log.
	reportRate, reportBurst = 1.0 / 60, 8
	// Refusals that are recorded, by project. Genuine tokens that are good for
	// nothing here can be had by anybody, and each can be sent for ever: what
	// they write bounds the disk, so that strangers can't fill it.
	refusedRate, refusedBurst = 1, 500
	// maxLimited bounds the keys in memory. When they are full the oldest half
	// goes, which can only forgive.
	maxLimited = 20_000
)

// limiter is a rate limit for each key.
type limiter struct {
	mu      sync.Mutex
	rate    rate.Limit
	burst   int
	current map[string]*rate.Limiter
	old     map[string]*rate.Limiter
}

func newLimiter(perSecond float64, burst int) *limiter {
	return &limiter{rate: rate.Limit(perSecond), burst: burst, current: map[string]*rate.Limiter{}}
}

func (l *limiter) allow(key string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	lim, ok := l.current[key]
	if !ok {
		if lim, ok = l.old[key]; !ok {
			lim = rate.NewLimiter(l.rate, l.burst)
		}
		if len(l.current) >= maxLimited/2 {
			l.old, l.current = l.current, map[string]*rate.Limiter{}
		}
		l.current[key] = lim
	}
	return lim.AllowN(now, 1)
}
