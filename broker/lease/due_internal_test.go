package lease

import (
	"testing"
	"time"
)

func TestDueWakesWhoWouldBeLate(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	looks := now.Add(30 * time.Second).UnixMicro()
	for name, c := range map[string]struct {
		looks int64
		at    time.Time
		woken bool
	}{
		"due before the next look":    {looks, now.Add(30*time.Second - time.Microsecond), true},
		"due at the next look":        {looks, now.Add(30 * time.Second), false},
		"due after the next look":     {looks, now.Add(time.Hour), false},
		"while it looks":              {looking, now.Add(time.Hour), true},
		"the clock reached the look":  {now.UnixMicro(), now.Add(time.Hour), true},
		"the clock jumped beyond it":  {now.Add(-time.Hour).UnixMicro(), now.Add(time.Hour), true},
		"what was due before anybody": {looks, time.Time{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := &Engine{cfg: Config{Now: func() time.Time { return now }}, wake: make(chan struct{}, 1)}
			e.looks.Store(c.looks)
			e.Due(c.at)
			if woken := len(e.wake) == 1; woken != c.woken {
				t.Errorf("woken: %v, want %v", woken, c.woken)
			}
		})
	}
}
