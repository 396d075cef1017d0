package node

import (
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"perdure/control/cluster"
	"perdure/nodes/worker"
)

// health is the answer of the node port's /health.
type health struct {
	Status       string   `json:"status"` // Alive, StartingUp or ShuttingDown
	NodeID       string   `json:"node_id"`
	NodeName     string   `json:"node_name"`
	ClusterName  string   `json:"cluster_name"`
	Roles        []string `json:"roles"`
	AgeSeconds   int64    `json:"age"`
	Admin        string   `json:"admin_status"`
	Worker       string   `json:"worker_status"`
	LogServer    string   `json:"log_server_status"`
	Metadata     string   `json:"metadata_server_status"`
	Version      string   `json:"version"`
	Bound        []string `json:"bound_addresses"`
	Advertised   []string `json:"advertised_addresses"`
	Partitions   int      `json:"partitions"`
	Leading      int      `json:"partitions_leading"`
	ParkedReason string   `json:"parked_reason,omitempty"`
}

// nodeServer serves the node port, not listening yet. Requests have no bodies: one that announces a body gets little time for
// it, all others as long as a profile takes.
func (n *Node) nodeServer() *http.Server {
	port := n.nodePort()
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength != 0 {
				_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Second)) // it is supported
			}
			port.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
	}
}

// nodePort serves metrics, the node's health, and profiles of the process for whoever looks for lost time or memory.
func (n *Node) nodePort() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		h := n.health()
		w.Header().Set("content-type", "application/json")
		if h.Status != statusAlive {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(h) // the client is gone
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	if n.registry != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(n.registry, promhttp.HandlerOpts{}))
	}
	return mux
}

// The states of a node and its roles.
const (
	statusAlive    = "Alive"
	statusStarting = "StartingUp"
	statusStopping = "ShuttingDown"
	roleReady      = "Ready"
	roleActive     = "Active"
	roleStarting   = "Starting"
)

func (n *Node) health() health {
	a := n.Addresses()
	h := health{
		Status: statusAlive, NodeID: n.self.String(), NodeName: n.cfg.NodeName, ClusterName: n.cfg.ClusterName, Roles: n.cfg.Roles,
		AgeSeconds: int64(time.Since(n.began).Seconds()), Admin: roleReady, Worker: roleActive, LogServer: roleReady, Metadata: "Member",
		Version:    n.version,
		Bound:      []string{n.listeners.ingress.Addr().String(), n.listeners.admin.Addr().String(), n.listeners.fabric.Addr().String()},
		Advertised: []string{a.Ingress, a.Admin, a.Fabric},
	}
	for _, s := range n.statuses() {
		h.Partitions++
		if s.Leading {
			h.Leading++
		}
		if s.Parked {
			h.ParkedReason = "partition " + strconv.Itoa(int(s.Partition)) + ": " + s.LastError
		}
	}
	switch {
	case n.stopping.Load():
		h.Status = statusStopping
	case !n.isReady():
		h.Status, h.Worker = statusStarting, roleStarting
	}
	return h
}

// partitionMetrics tells about the processors of a node. They are read when somebody asks for metrics.
type partitionMetrics struct {
	statuses func() []worker.Status
	tail     func(cluster.PartitionID) (cluster.LSN, bool)
	lag      *prometheus.Desc
	unknown  *prometheus.Desc
	total    *prometheus.Desc
	leading  *prometheus.Desc
	applied  *prometheus.Desc
	active   *prometheus.Desc
	restarts *prometheus.Desc
	parked   *prometheus.Desc
	behind   *prometheus.Desc
}

// newPartitionMetrics; tail is that of a partition's log, if it is known here.
func newPartitionMetrics(statuses func() []worker.Status, tail func(cluster.PartitionID) (cluster.LSN, bool)) *partitionMetrics {
	p := []string{"partition"}
	return &partitionMetrics{
		statuses: statuses, tail: tail,
		lag:      prometheus.NewDesc("restate_partition_applied_lsn_lag", "Records of its log that a partition has not applied: quantiles over the partitions of this node.", []string{"quantile"}, nil),
		unknown:  prometheus.NewDesc("restate_partition_num_unknown_applied_lsn_lag", "Partitions of which this node does not know the end of the log.", nil, nil),
		total:    prometheus.NewDesc("restate_num_partitions", "Partitions of the cluster.", nil, nil),
		leading:  prometheus.NewDesc("restate_num_active_partition_leaders", "Partitions that this node leads.", nil, nil),
		active:   prometheus.NewDesc("restate_num_active_partitions", "Partitions whose processor runs on this node.", nil, nil),
		applied:  prometheus.NewDesc("perdure_partition_applied_lsn", "Last record of its log that a partition has applied.", p, nil),
		restarts: prometheus.NewDesc("perdure_partition_restarts_total", "Times that a partition's processor failed and was started again.", p, nil),
		parked:   prometheus.NewDesc("perdure_partition_parked", "1 while a partition stays stopped because going on could do harm.", p, nil),
		behind:   prometheus.NewDesc("perdure_partition_clock_behind_seconds", "How far this node's clock is behind the latest time in a partition's log: it is wrong, or a former leader's was.", p, nil),
	}
}

// Describe implements prometheus.Collector.
func (m *partitionMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.lag, m.unknown, m.total, m.active, m.leading, m.applied, m.restarts, m.parked, m.behind} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *partitionMetrics) Collect(ch chan<- prometheus.Metric) {
	leading, active := 0, 0
	all := m.statuses()
	var lags []uint64
	for _, s := range all {
		if tail, known := m.tail(s.Partition); known {
			last := max(tail, 1) - 1
			lags = append(lags, uint64(last-min(s.Applied, last)))
		}
		p := strconv.Itoa(int(s.Partition))
		parked := 0.0
		if s.Leading {
			leading++
		}
		if s.Parked {
			parked = 1
		} else {
			active++
		}
		ch <- prometheus.MustNewConstMetric(m.applied, prometheus.GaugeValue, float64(s.Applied), p)
		ch <- prometheus.MustNewConstMetric(m.restarts, prometheus.CounterValue, float64(s.Restarts), p)
		ch <- prometheus.MustNewConstMetric(m.parked, prometheus.GaugeValue, parked, p)
		ch <- prometheus.MustNewConstMetric(m.behind, prometheus.GaugeValue, s.ClockBehind.Seconds(), p)
	}
	slices.Sort(lags)
	for _, q := range []struct {
		label   string
		percent int
	}{{"0.5", 50}, {"0.9", 90}, {"0.99", 99}, {"1.0", 100}} {
		if len(lags) > 0 {
			ch <- prometheus.MustNewConstMetric(m.lag, prometheus.GaugeValue, float64(lags[(len(lags)*q.percent+99)/100-1]), q.label)
		}
	}
	ch <- prometheus.MustNewConstMetric(m.unknown, prometheus.GaugeValue, float64(len(all)-len(lags)))
	ch <- prometheus.MustNewConstMetric(m.total, prometheus.GaugeValue, float64(len(all)))
	ch <- prometheus.MustNewConstMetric(m.active, prometheus.GaugeValue, float64(active))
	ch <- prometheus.MustNewConstMetric(m.leading, prometheus.GaugeValue, float64(leading))
}
