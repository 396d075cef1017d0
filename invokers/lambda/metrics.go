package lambda

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	invokes   *prometheus.CounterVec
	throttles *prometheus.CounterVec
	billed    *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	running   prometheus.Gauge
	sent      prometheus.Counter
	received  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		invokes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "perdure_invoker_lambda_invokes_total",
			Help: "Calls of Lambda functions by function and outcome (ok or the kind of failure).",
		}, []string{"function", "outcome"}),
		throttles: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "perdure_invoker_lambda_throttles_total",
			Help: "Attempts put off for a function's concurrency, by who refused: api (status 429) or limiter (before calling).",
		}, []string{"function", "by"}),
		billed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "perdure_invoker_lambda_billed_seconds_total",
			Help: "Estimate of the billed duration: wall time of the calls that ran, each rounded up to a millisecond.",
		}, []string{"function"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "perdure_invoker_lambda_call_seconds",
			Help:    "Wall time of calls that ran; start=cold are those that probably had to start an execution environment.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 18),
		}, []string{"start"}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "perdure_invoker_lambda_running_calls",
			Help: "Calls that run now.",
		}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "perdure_invoker_lambda_sent_bytes_total",
			Help: "Bytes of request payloads.",
		}),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "perdure_invoker_lambda_received_bytes_total",
			Help: "Bytes of response payloads.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.invokes, m.throttles, m.billed, m.duration, m.running, m.sent, m.received} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// ran records a call that reached the function.
func (m *metrics) ran(function string, took time.Duration, cold bool) {
	start := "warm"
	if cold {
		start = "cold"
	}
	m.duration.WithLabelValues(start).Observe(took.Seconds())
	ms := (took + time.Millisecond - 1) / time.Millisecond
	m.billed.WithLabelValues(function).Add(float64(ms) / 1000)
}
