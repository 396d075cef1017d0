package invokers

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the pool's. Names with restate_ are those that existing dashboards match on; our own additions have our
// own prefix.
type metrics struct {
	enqueued, acquired, released prometheus.Counter
	requests                     *prometheus.CounterVec
	started, completed           prometheus.Counter
	suspended, failed, paused    prometheus.Counter
	yielded                      prometheus.Counter
	sent, received               prometheus.Counter
	duration                     prometheus.Summary
}

func newMetrics(reg prometheus.Registerer, p *Pool) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	tasks := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "restate_invoker_invocation_tasks_total",
		Help: "Attempts of invocations, by what happened to them.",
	}, []string{"status"})
	m := &metrics{
		enqueued: counter("restate_invoker_enqueue_total", "Invocations handed to the invoker."),
		acquired: counter("restate_invoker_concurrency_slots_acquired", "Concurrency slots taken by attempts."),
		released: counter("restate_invoker_concurrency_slots_released", "Concurrency slots given back."),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "restate_invoker_client_requests_total", Help: "Requests to services, by the class of their answer.",
		}, []string{"status"}),
		sent:     counter("restate_invoker_sent_bytes_total", "Bytes of frames sent to services."),
		received: counter("restate_invoker_received_bytes_total", "Bytes of frames received from services."),
		duration: prometheus.NewSummary(prometheus.SummaryOpts{
			Name: "restate_invoker_task_duration_seconds", Help: "Time from the start of an attempt to its last message.",
		}),
		started: tasks.WithLabelValues("started"), completed: tasks.WithLabelValues("completed"),
		suspended: tasks.WithLabelValues("suspended"), failed: tasks.WithLabelValues("failed"),
		paused: tasks.WithLabelValues("paused"), yielded: tasks.WithLabelValues("yielded"),
	}
	if reg == nil {
		return m, nil
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	pool := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: prometheus.Labels{"name": "invoker"}}, f)
	}
	for _, c := range []prometheus.Collector{
		m.enqueued, m.acquired, m.released, m.requests, m.sent, m.received, m.duration, tasks,
		gauge("restate_invoker_concurrency_limit", "Attempts that may be open at a time.", func() float64 { return float64(p.cfg.ConcurrencyLimit) }),
		gauge("perdure_invoker_queued_invocations", "Invocations that wait for a concurrency slot.", func() float64 { return float64(p.slots.queued.Load()) }),
		gauge("perdure_invoker_queued_deployments", "Deployments whose invocations wait for a concurrency slot.", func() float64 { return float64(p.slots.waitingDeployments()) }),
		pool("restate_memory_pool_usage_bytes", "Bytes that are reserved.", func() float64 { return float64(p.memory.used.Load()) }),
		pool("restate_memory_pool_capacity_bytes", "Bytes that may be reserved.", func() float64 { return float64(p.cfg.MemoryLimit) }),
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register invoker metrics: %w", err)
		}
	}
	return m, nil
}

// answered counts the answer to a request.
func (m *metrics) answered(status int) {
	switch {
	case status == 0:
		m.requests.WithLabelValues("error").Inc()
	case status < 300:
		m.requests.WithLabelValues("2xx").Inc()
	case status < 400:
		m.requests.WithLabelValues("3xx").Inc()
	case status < 500:
		m.requests.WithLabelValues("4xx").Inc()
	default:
		m.requests.WithLabelValues("5xx").Inc()
	}
}
