package ingress

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TestMetricsByService: invocations are counted per service, kind and status.
func TestMetricsByService(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := newMetrics(reg, new(atomic.Int64), new(atomic.Int64))
	for range 2 {
		m.invoked("Greeter", routeCall, 200)
		m.took("Greeter", 3*time.Millisecond)
	}
	m.invoked("Greeter", routeSend, 202)
	m.invoked("Counter", routeCall, 409)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, s := range f.Metric {
			name := f.GetName()
			for _, lp := range s.Label { // sorted by name: rpc_service, rpc_type, status
				name += " " + lp.GetValue()
			}
			got[name] = s.GetCounter().GetValue() + float64(s.GetSummary().GetSampleCount())
		}
	}
	for name, want := range map[string]float64{
		"restate_ingress_requests_total Greeter call 200": 2, "restate_ingress_requests_total Greeter send 202": 1,
		"restate_ingress_requests_total Counter call 409": 1, "restate_ingress_request_duration_seconds Greeter": 2,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}
