package metastore

import (
	"errors"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"perdure/control/metadata"
)

// metrics are registered while the server is open.
type metrics struct {
	registry prometheus.Registerer
	all      []prometheus.Collector
	calls    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(registry prometheus.Registerer, s *Server) (*metrics, error) {
	m := &metrics{
		registry: registry,
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "perdure_metadata_server_calls_total",
			Help: "Reads and writes of the metadata store by outcome.",
		}, []string{"call", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "perdure_metadata_server_call_seconds",
			Help:    "Duration of reads and writes of the metadata store.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"call"}),
	}
	m.all = []prometheus.Collector{
		m.calls, m.seconds,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "perdure_metadata_server_leader",
			Help: "1 while this server leads the metadata group.",
		}, func() float64 {
			if s.raft.State() == raft.Leader {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "perdure_metadata_server_term",
			Help: "Current raft term.",
		}, func() float64 { return float64(s.raft.CurrentTerm()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "restate_metadata_server_replicated_committed_lsn",
			Help: "Last committed entry of the metadata log.",
		}, func() float64 { return float64(s.raft.CommitIndex()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "restate_metadata_server_replicated_applied_lsn",
			Help: "Last entry of the metadata log that this server has applied.",
		}, func() float64 { return float64(s.raft.AppliedIndex()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "restate_metadata_server_replicated_last_index",
			Help: "Last entry of the metadata log on this server.",
		}, func() float64 { return float64(s.raft.LastIndex()) }),
	}
	if registry == nil {
		return m, nil
	}
	for i, c := range m.all {
		if err := registry.Register(c); err != nil {
			m.unregister(m.all[:i])
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) close() { m.unregister(m.all) }

func (m *metrics) unregister(collectors []prometheus.Collector) {
	if m.registry == nil {
		return
	}
	for _, c := range collectors {
		m.registry.Unregister(c)
	}
}

func (m *metrics) observe(call string, begin time.Time, err error) {
	m.seconds.WithLabelValues(call).Observe(time.Since(begin).Seconds())
	m.calls.WithLabelValues(call, outcomeOf(err)).Inc()
}

func outcomeOf(err error) string {
	var conflict *metadata.ConflictError
	switch {
	case err == nil, errors.Is(err, metadata.ErrNotFound):
		return "ok"
	case errors.As(err, &conflict):
		return "conflict"
	case errors.Is(err, metadata.ErrUnknownOutcome):
		return "unknown"
	case errors.Is(err, metadata.ErrUnavailable):
		return "unavailable"
	}
	return "error"
}
