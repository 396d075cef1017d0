package h2

import (
	"github.com/prometheus/client_golang/prometheus"

	"perdure/invokers/transport"
)

// metrics of a client. Names with restate_ are those that existing dashboards match on.
type metrics struct {
	connsOpened   prometheus.Counter
	connsClosed   *prometheus.CounterVec
	connsFailed   prometheus.Counter
	slotsTaken    prometheus.Counter
	slotsReleased prometheus.Counter
	slotHeld      prometheus.Summary
	slotAwaited   prometheus.Summary
	streamsOpened prometheus.Counter
	streamsOpen   prometheus.Gauge
	failures      *prometheus.CounterVec
	bytesSent     prometheus.Counter
	bytesReceived prometheus.Counter
	writes        prometheus.Counter
	waiting       prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		connsOpened: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "restate_connection_pool_connection_opened_total",
			Help: "Connections to service endpoints that were established (HTTP/2).",
		}),
		connsClosed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "restate_connection_pool_connection_closed_total",
			Help: "HTTP/2 connections to service endpoints that ended, by reason.",
		}, []string{"reason"}),
		connsFailed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "restate_connection_pool_connection_open_failed_total",
			Help: "HTTP/2 connections to service endpoints that could not be established.",
		}),
		slotsTaken: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "restate_connection_pool_stream_opened_total",
			Help: "Streams of HTTP/2 connections that exchanges got.",
		}),
		slotsReleased: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "restate_connection_pool_stream_closed_total",
			Help: "Streams of HTTP/2 connections that exchanges gave back.",
		}),
		slotHeld: prometheus.NewSummary(prometheus.SummaryOpts{
			Name: "restate_connection_pool_stream_duration_seconds",
			Help: "Time that an exchange held its stream.",
		}),
		slotAwaited: prometheus.NewSummary(prometheus.SummaryOpts{
			Name: "restate_connection_pool_acquire_stream_duration_seconds",
			Help: "Time that an exchange waited for a connection or a free stream, of those that had to.",
		}),
		streamsOpened: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "perdure_invoker_http_exchanges_opened_total",
			Help: "Exchanges (attempts and discoveries) opened with HTTP endpoints.",
		}),
		streamsOpen: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "perdure_invoker_http_exchanges_open",
			Help: "Exchanges that hold a stream of an HTTP/2 connection now.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "perdure_invoker_http_exchange_failures_total",
			Help: "Exchanges that failed, by kind of failure.",
		}, []string{"kind"}),
		bytesSent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "perdure_invoker_http_sent_bytes_total",
			Help: "Bytes written to HTTP/2 connections, before TLS.",
		}),
		bytesReceived: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "perdure_invoker_http_received_bytes_total",
			Help: "Bytes read from HTTP/2 connections, after TLS.",
		}),
		writes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "perdure_invoker_http_writes_total",
			Help: "Writes to sockets of HTTP/2 connections; exchanges per write tell how well they coalesce.",
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "perdure_invoker_http_waiting_exchanges",
			Help: "Exchanges that wait for a connection or a free stream.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.connsOpened, m.connsClosed, m.connsFailed, m.slotsTaken, m.slotsReleased, m.slotHeld, m.slotAwaited, m.streamsOpened, m.streamsOpen, m.failures,
		m.bytesSent, m.bytesReceived, m.writes, m.waiting,
	} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) failed(kind transport.Kind) {
	m.failures.WithLabelValues(kind.String()).Inc()
}
