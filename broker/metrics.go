package broker

import (
	"context"
	"net/http"
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

func newMetrics(s store.Store) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		calls:    counter("runenv_calls_total", "Calls of the API by route and outcome (ok or the error code).", "route", "outcome"),
		rejected: counter("runenv_tokens_rejected_total", "CI tokens that weren't accepted, by reason.", "reason"),
		issued:   counter("runenv_leases_issued_total", "Leases delivered, by provider.", "provider"),
		ended:    counter("runenv_sessions_ended_total", "Sessions ended at a client's word, by who said it.", "by"),
	}
	m.registry.MustRegister(m.calls, m.rejected, m.issued, m.ended, &rows{store: s, desc: prometheus.NewDesc(
		"runenv_rows", "Leases by state, and live sessions.", []string{"state"}, nil)})
	return m
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// rows counts the store's rows when it is asked.
type rows struct {
	store store.Store
	desc  *prometheus.Desc
}

func (c *rows) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c *rows) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	counts, err := c.store.Counts(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.desc, err)
		return
	}
	for state, n := range counts {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), state)
	}
}
