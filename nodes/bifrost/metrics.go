package bifrost

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"perdure/control/cluster"
	"perdure/nodes/loglet"
	"perdure/nodes/logserver"
)

// metrics of a Bifrost. All are safe for concurrent use.
type metrics struct {
	records          prometheus.Counter
	bytes            prometheus.Counter
	reconfigurations prometheus.Counter
	cacheHits        prometheus.Counter
	cacheMisses      prometheus.Counter
	enqueued         prometheus.Counter
	enqueuedBytes    prometheus.Counter
	read             prometheus.Counter
	readFromCache    prometheus.Counter
	appendSeconds    prometheus.Summary
	storeSeconds     *prometheus.SummaryVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		records:          counter("restate_bifrost_sequencer_committed_records_total", "Records committed by sequencers of this node."),
		bytes:            counter("restate_bifrost_sequencer_committed_records_bytes_total", "Bytes of records committed by sequencers of this node."),
		reconfigurations: counter("perdure_bifrost_reconfigurations_total", "Segments that this node has begun."),
		cacheHits:        counter("perdure_bifrost_cache_hits_total", "Runs of records that a reader took from the record cache."),
		cacheMisses:      counter("perdure_bifrost_cache_misses_total", "Reads of log servers because records were not cached."),
		enqueued:         counter("restate_bifrost_replicatedloglet_enqueued_records_total", "Records that were taken to be appended."),
		enqueuedBytes:    counter("restate_bifrost_replicatedloglet_enqueued_records_bytes_total", "Bytes of records that were taken to be appended."),
		read:             counter("restate_bifrost_replicatedloglet_read_record_total", "Records that readers got."),
		readFromCache:    counter("restate_bifrost_replicatedloglet_read_record_cache_hit_total", "Records that readers got from the record cache."),
		appendSeconds: prometheus.NewSummary(prometheus.SummaryOpts{
			Name: "restate_bifrost_sequencer_append_duration_seconds", Help: "Time from giving a batch to the sequencer to its commit.",
		}),
		storeSeconds: prometheus.NewSummaryVec(prometheus.SummaryOpts{
			Name: "restate_bifrost_sequencer_store_duration_seconds", Help: "Time until a log server had answered a store, by node.",
		}, []string{"node_id"}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.records, m.bytes, m.reconfigurations, m.cacheHits, m.cacheMisses,
		m.enqueued, m.enqueuedBytes, m.read, m.readFromCache, m.appendSeconds, m.storeSeconds} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) committed(records []logserver.Record) {
	bytes := 0
	for i := range records {
		bytes += records[i].Size()
	}
	m.records.Add(float64(len(records)))
	m.bytes.Add(float64(bytes))
}

// stored measures the stores of one segment, at the log servers that it has.
func (m *metrics) stored(nodes []cluster.NodeID) loglet.Stored {
	seconds := make(map[cluster.NodeID]prometheus.Observer, len(nodes))
	for _, n := range nodes {
		seconds[n] = m.storeSeconds.WithLabelValues(n.String())
	}
	return func(to cluster.NodeID, took time.Duration) { seconds[to].Observe(took.Seconds()) }
}
