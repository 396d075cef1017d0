package logstore

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of a store. All are safe for concurrent use.
type metrics struct {
	commit  prometheus.Histogram
	writes  prometheus.Counter
	batches prometheus.Counter
	bytes   prometheus.Counter
	records prometheus.Counter
	size    prometheus.Summary
	full    prometheus.Gauge
	stalls  prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	stored := prometheus.Labels{"status": "ok"} // no other is counted: a write that fails ends the store
	m := &metrics{
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "perdure_logstore_commit_seconds",
			Help:    "Time from the encoding of a batch to the end of its fsync.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}),
		writes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "perdure_logstore_writes_total", Help: "Writes that became durable.",
		}),
		batches: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "perdure_logstore_batches_total", Help: "Batches (groups of writes with one fsync) that became durable.",
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "restate_log_server_store_bytes_total", Help: "Bytes of writes that became durable.", ConstLabels: stored,
		}),
		records: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "restate_log_server_store_records_total", Help: "Records that became durable.", ConstLabels: stored,
		}),
	}
	m.size = prometheus.NewSummary(prometheus.SummaryOpts{
		Name: "restate_log_server_write_batch_size_bytes", Help: "Size of the batches that became durable.",
	})
	m.full = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "perdure_logstore_disk_full", Help: "1 while records are refused because the disk is nearly full.",
	})
	m.stalls = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "perdure_logstore_stalls_total", Help: "Times that a write began to wait because tables are written too slowly.",
	})
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.commit, m.writes, m.batches, m.bytes, m.records, m.size, m.full, m.stalls} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) observe(g *group) {
	m.commit.Observe(time.Since(g.began).Seconds())
	m.writes.Add(float64(len(g.writes)))
	m.batches.Inc()
	m.bytes.Add(float64(g.bytes))
	records := 0
	for _, w := range g.writes {
		records += len(w.Records)
	}
	m.records.Add(float64(records))
	m.size.Observe(float64(g.bytes))
}
