package node

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"perdure/control/cluster"
	"perdure/nodes/partition"
	"perdure/nodes/partition/fsm"
)

// processorMetrics count what the processors of a node announce. All are safe for concurrent use.
type processorMetrics struct {
	apply    prometheus.Summary
	records  prometheus.Counter
	starts   prometheus.Counter
	actions  [fsm.Kinds]prometheus.Counter
	usage    [fsm.Kinds]prometheus.Counter
	shuffled *prometheus.CounterVec
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
	usage := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "restate_usage_leader_action_count_total", Help: "The same as restate_partition_handle_leader_action_total, for those who count usage.",
	}, []string{"action"})
	m.shuffled = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "restate_partition_shuffle_message_total", Help: "Messages from a partition to partitions, itself included, that its leader got to deliver.",
	}, []string{"partition"})
	r.MustRegister(m.apply, m.records, m.starts, actions, usage, m.shuffled)
	for k := range m.actions {
		if name := fsm.Kind(k).String(); name != "" {
			m.actions[k], m.usage[k] = actions.WithLabelValues(name), usage.WithLabelValues(name)
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

func (m *processorMetrics) performed(p cluster.PartitionID, actions []fsm.Action) {
	var counts [fsm.Kinds]int
	for i := range actions {
		counts[actions[i].Kind]++
	}
	for k, n := range counts {
		if n > 0 && m.actions[k] != nil {
			m.actions[k].Add(float64(n))
			m.usage[k].Add(float64(n))
		}
	}
	if n := counts[fsm.ActOutbox]; n > 0 {
		m.shuffled.WithLabelValues(strconv.Itoa(int(p))).Add(float64(n))
	}
}
