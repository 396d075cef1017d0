package ingress

import (
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var routeNames = [...]string{
	0: "none", routeCall: "call", routeSend: "send", routeAttach: "attach", routeOutput: "output", routeLookup: "lookup",
	routeAwakeable: "awakeable", routeHealth: "health",
}

// metrics are labelled by kind of request and status. Only invocations are counted by service, too, once it is known to be
// registered: what clients make up must not decide on the number of series.
type metrics struct {
	requests *prometheus.CounterVec
	ok       [len(routeNames)]prometheus.Counter // of requests with the status 200 or 202, looked up once
	seconds  [len(routeNames)]prometheus.Observer
	retries  prometheus.Counter
	// tries of requests to partitions, those that were answered and those that were not.
	completed, failed prometheus.Counter
	connected, left   prometheus.Counter

	byService        *prometheus.CounterVec
	durationOf       *prometheus.SummaryVec
	services         sync.Map // serviceKey → prometheus.Counter: looking up by labels costs more
	serviceDurations sync.Map // service → prometheus.Observer
}

type serviceKey struct {
	service string
	kind    routeKind
	status  int
}

func newMetrics(reg prometheus.Registerer, inflight, bodies *atomic.Int64) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "perdure_ingress_requests_total", Help: "Requests that were answered, by kind and HTTP status.",
		}, []string{"type", "status"}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "perdure_ingress_retries_total", Help: "Repeated tries to reach the leader of a partition.",
		}),
	}
	tries := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "restate_invocation_client_requests_total", Help: "Tries to have a request done by the leader of its partition, by outcome.",
	}, []string{"status"})
	m.completed, m.failed = tries.WithLabelValues("completed"), tries.WithLabelValues("failed")
	m.connected = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "restate_ingress_http_connection_created_total", Help: "Connections that clients made.",
	})
	m.left = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "restate_ingress_http_connection_dropped_total", Help: "Connections of clients that ended.",
	})
	m.byService = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "restate_ingress_requests_total", Help: "Invocations that were answered, by HTTP status, service and kind (call or send).",
	}, []string{"status", "rpc_service", "rpc_type"})
	m.durationOf = prometheus.NewSummaryVec(prometheus.SummaryOpts{
		Name: "restate_ingress_request_duration_seconds", Help: "Time from the parsed request to the answer of successful invocations, by service.",
	}, []string{"rpc_service"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "perdure_ingress_request_duration_seconds", Help: "Time from the parsed request to the answer of successful requests, by kind.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 18),
	}, []string{"type"})
	for k, name := range routeNames {
		status := "200"
		if routeKind(k) == routeSend || routeKind(k) == routeAwakeable {
			status = "202"
		}
		m.ok[k] = m.requests.WithLabelValues(name, status)
		m.seconds[k] = seconds.WithLabelValues(name)
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.retries, tries, m.connected, m.left, m.byService, m.durationOf, seconds, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "perdure_ingress_requests_in_progress", Help: "Requests that wait for their answer or are being read.",
		}, func() float64 { return float64(inflight.Load()) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "perdure_ingress_request_memory_bytes", Help: "What the bodies of the requests in progress take.",
		}, func() float64 { return float64(bodies.Load()) }))
	}
	return m
}

// connection counts connections that come and go.
func (m *metrics) connection(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		m.connected.Inc()
	case http.StateClosed, http.StateHijacked:
		m.left.Inc()
	}
}

func (m *metrics) count(kind routeKind, status int) {
	m.requests.WithLabelValues(routeNames[kind], strconv.Itoa(status)).Inc()
}

func (m *metrics) succeeded(kind routeKind, took time.Duration) {
	m.ok[kind].Inc()
	m.seconds[kind].Observe(took.Seconds())
}

// invoked counts the answer to an invocation of a registered service.
func (m *metrics) invoked(service string, kind routeKind, status int) {
	key := serviceKey{service, kind, status}
	c, ok := m.services.Load(key)
	if !ok {
		c, _ = m.services.LoadOrStore(key, m.byService.WithLabelValues(strconv.Itoa(status), service, routeNames[kind]))
	}
	c.(prometheus.Counter).Inc()
}

// took notes how long a successful invocation of a registered service took.
func (m *metrics) took(service string, d time.Duration) {
	o, ok := m.serviceDurations.Load(service)
	if !ok {
		o, _ = m.serviceDurations.LoadOrStore(service, m.durationOf.WithLabelValues(service))
	}
	o.(prometheus.Observer).Observe(d.Seconds())
}
