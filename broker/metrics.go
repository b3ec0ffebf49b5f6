package broker

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/runenv/action/broker/store"
)

// metrics are what /metrics shows. No label comes from a caller.
type metrics struct {
	registry *prometheus.Registry
	calls    *prometheus.CounterVec
	rejected *prometheus.CounterVec
	issued   *prometheus.CounterVec
	ended    *prometheus.CounterVec
}

func newMetrics(s store.Store, now func() time.Time) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		calls:    counter("runenv_calls_total", "Calls of the API by route and outcome (ok or the error code).", "route", "outcome"),
		rejected: counter("runenv_tokens_rejected_total", "CI tokens that weren't accepted, by reason.", "reason"),
		issued:   counter("runenv_leases_issued_total", "Leases delivered, by provider.", "provider"),
		ended:    counter("runenv_sessions_ended_total", "Sessions ended at a client's word, by who said it.", "by"),
	}
	m.registry.MustRegister(m.calls, m.rejected, m.issued, m.ended, &rows{store: s, now: now, desc: prometheus.NewDesc(
		"runenv_rows", "Leases by state, and live sessions.", []string{"state"}, nil)})
	return m
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4,
		// A store that is down is when the other numbers are wanted most.
		ErrorHandling: promhttp.ContinueOnError,
	})
}

// countsFor is how long a count of the store's rows serves: whoever can reach
// the broker may ask, and counting reads every row.
const countsFor = 2 * time.Second

// rows counts the store's rows when it is asked.
type rows struct {
	store store.Store
	now   func() time.Time
	desc  *prometheus.Desc

	mu     sync.Mutex
	at     time.Time
	counts map[string]int
}

func (c *rows) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c *rows) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); c.counts == nil || now.Sub(c.at) >= countsFor {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		counts, err := c.store.Counts(ctx)
		if err != nil {
			c.counts = nil
			ch <- prometheus.NewInvalidMetric(c.desc, err)
			return
		}
		c.counts, c.at = counts, now
	}
	for state, n := range c.counts {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), state)
	}
}
