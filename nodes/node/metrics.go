package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"perdure/control/cluster"
	"perdure/nodes/partition"
	"perdure/nodes/partition/fsm"
)

// processorMetrics count what the processors of a node announce. All are safe for concurrent use.
type processorMetrics struct {
	apply   prometheus.Summary
	records prometheus.Counter
	starts  prometheus.Counter
	actions [fsm.Kinds]prometheus.Counter
}

// newProcessorMetrics registers the metrics and makes listener feed them. r may be nil: nothing is counted then.
func newProcessorMetrics(r prometheus.Registerer, listener *partition.Listener) {
	if r == nil {
		return
	}
	m := &processorMetrics{
		apply: prometheus.NewSummary(prometheus.SummaryOpts{
			Name: "restate_partition_apply_command_duration_seconds", Help: "Time to apply a command, its share of the batch's commit included.",
		}),
		records: prometheus.NewCounter(prometheus.CounterOpts{Name: "perdure_partition_applied_records_total", Help: "Records of the log that were applied."}),
		starts:  prometheus.NewCounter(prometheus.CounterOpts{Name: "restate_partition_start_total", Help: "Times that a partition began to be led from here."}),
	}
	actions := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "restate_partition_handle_leader_action_total", Help: "What applied commands made the leaders do, by kind.",
	}, []string{"action"})
	r.MustRegister(m.apply, m.records, m.starts, actions)
	for k := range m.actions {
		if name := fsm.Kind(k).String(); name != "" {
			m.actions[k] = actions.WithLabelValues(name)
		}
	}
	listener.Applied = m.applied
	listener.Performed = m.performed
	listener.Leading = func(cluster.PartitionID, cluster.Epoch) { m.starts.Inc() }
}

func (m *processorMetrics) applied(_ cluster.PartitionID, records int, took time.Duration) {
	m.records.Add(float64(records))
	m.apply.Observe(took.Seconds() / float64(records))
}

func (m *processorMetrics) performed(_ cluster.PartitionID, actions []fsm.Action) {
	for i := range actions {
		if c := m.actions[actions[i].Kind]; c != nil {
			c.Inc()
		}
	}
}
