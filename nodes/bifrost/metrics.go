package bifrost

import (
	"github.com/prometheus/client_golang/prometheus"

	"perdure/nodes/logserver"
)

// metrics of a Bifrost. All are safe for concurrent use.
type metrics struct {
	records          prometheus.Counter
	bytes            prometheus.Counter
	reconfigurations prometheus.Counter
	cacheHits        prometheus.Counter
	cacheMisses      prometheus.Counter
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
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.records, m.bytes, m.reconfigurations, m.cacheHits, m.cacheMisses} {
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
