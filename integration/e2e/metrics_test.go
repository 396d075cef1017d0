package e2e

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"testing"

	"perdure/integration/harness"
	"perdure/integration/services"
)

// documentedMetrics are the names that dashboards of the published server know. A name with a reason is absent on purpose.
//
//go:embed testdata/metrics.txt
var documentedMetrics string

// TestMetrics: every documented metric is served by a node that was used a little, or left out for a reason; and nothing
// has a name like a documented one without being it.
func TestMetrics(t *testing.T) {
	needPerdure(t)
	t.Parallel()
	s := harness.Start(t, "perdure", nil)
	c := newClient(s.Ingress(), s.Admin())
	if err := settle(c); err != nil {
		t.Fatal(err)
	}
	endpoint := &endpoint{client: c, prefix: "M", memory: services.NewMemory()}
	ep, err := services.Start("127.0.0.1:0", services.Options{Prefix: endpoint.prefix, Memory: endpoint.memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ep.Close() })
	if _, err := c.register(map[string]any{"uri": ep.URL}); err != nil {
		t.Fatal(err)
	}
	equal(t, "calls in parallel", call[int](t, endpoint, endpoint.path("Caller", "fan"), 3), 3)
	if err := ep.Close(); err != nil { // so that a connection is counted as closed
		t.Error(err)
	}
	absent := map[string]string{}
	var present []string
	for line := range strings.Lines(documentedMetrics) {
		name, why, left := strings.Cut(strings.TrimSpace(line), " - ")
		if left {
			absent[name] = why
		} else {
			present = append(present, name)
		}
	}
	samples := []string{`restate_partition_applied_lsn_lag{quantile="1.0"} `, `restate_partition_num_unknown_applied_lsn_lag 0`,
		`restate_log_server_store_records_total{status="ok"} `, `restate_bifrost_sequencer_store_duration_seconds_count{node_id="N1"} `,
		`restate_metadata_server_put_total{status="completed"} `}
	var served []string
	poll(t, "every documented metric is served, and some with their labels", func() error {
		a := c.do(t, s.NodePort(), request{method: "GET", path: "/metrics"})
		served = nil
		for line := range strings.Lines(string(a.body)) {
			if f := strings.Fields(line); len(f) > 3 && f[1] == "TYPE" {
				served = append(served, f[2])
			}
		}
		for _, name := range present {
			if !slices.Contains(served, name) {
				return fmt.Errorf("%s is not", name)
			}
		}
		for _, sample := range samples {
			if !strings.Contains(string(a.body), "\n"+sample) {
				return fmt.Errorf("no sample begins with %s", sample)
			}
		}
		return nil
	})
	for _, name := range served {
		if why, ok := absent[name]; ok {
			t.Errorf("%s is served, although %s", name, why)
		} else if strings.HasPrefix(name, "restate_") && !slices.Contains(present, name) {
			t.Errorf("%s is served, and nobody knows it by this name", name)
		}
	}
}
