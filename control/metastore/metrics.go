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
	// get, put and list are the kinds of calls; every write is a put.
	get, put, list callMetrics
}

// callMetrics are those of one kind of calls.
type callMetrics struct {
	total   *prometheus.CounterVec
	seconds prometheus.Summary
}

func newCallMetrics(prefix, what string) callMetrics {
	return callMetrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "_total", Help: what + " of the metadata store by outcome."}, []string{"status"}),
		// Without its unit, as existing dashboards know it.
		seconds: prometheus.NewSummary(prometheus.SummaryOpts{Name: prefix + "_duration", Help: "Duration in seconds of " + what + " of the metadata store."}),
	}
}

func newMetrics(registry prometheus.Registerer, s *Server) (*metrics, error) {
	m := &metrics{
		registry: registry,
		get:      newCallMetrics("restate_metadata_server_get", "reads"),
		put:      newCallMetrics("restate_metadata_server_put", "writes"),
		list:     newCallMetrics("perdure_metadata_server_list", "listings"),
	}
	m.all = []prometheus.Collector{
		m.get.total, m.get.seconds, m.put.total, m.put.seconds, m.list.total, m.list.seconds,
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

func (c *callMetrics) observe(begin time.Time, err error) {
	c.seconds.Observe(time.Since(begin).Seconds())
	c.total.WithLabelValues(outcomeOf(err)).Inc()
}

func outcomeOf(err error) string {
	var conflict *metadata.ConflictError
	switch {
	case err == nil, errors.Is(err, metadata.ErrNotFound):
		return "completed"
	case errors.As(err, &conflict):
		return "conflict"
	case errors.Is(err, metadata.ErrUnknownOutcome):
		return "unknown"
	case errors.Is(err, metadata.ErrUnavailable):
		return "unavailable"
	}
	return "error"
}
