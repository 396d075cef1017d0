package bench

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"perdure/integration/harness"
)

func TestMain(m *testing.M) {
	code := m.Run()
	harness.Cleanup()
	os.Exit(code)
}

// TestTinyComparison keeps the benchmarks working: every measured figure is there, every effect is checked, and a server
// is fit to be compared with itself. The server is the one that PERDURE_E2E_SERVER names, by default Perdure.
func TestTinyComparison(t *testing.T) {
	name := os.Getenv("PERDURE_E2E_SERVER")
	if name == "" {
		name = "perdure"
	}
	for _, part := range []struct {
		ops     uint64
		figures map[string][]string
	}{
		{1000, map[string][]string{
			"startup":     {"cold start to first answer", "warm start to first answer", "idle RSS", "graceful stop", "binary size"},
			"greet-c64":   {"throughput", "p50", "p99", "server CPU /1k", "written /1k"},
			"counter-c64": {"throughput", "p50", "p99", "server CPU /1k", "written /1k"},
			"steps5-c32":  {"throughput", "p50", "p99"},
			"send-c32":    {"throughput", "accepted", "p50"},
		}},
		{50, map[string][]string{"steps5-c1": {"throughput", "p50", "p99"}}}, // one after the other
	} {
		workloads := slices.Collect(maps.Keys(part.figures))
		out := t.TempDir()
		res, err := Run(t.Context(), Options{Servers: []string{name}, Work: t.TempDir(), Out: out, Only: "^(" + strings.Join(workloads, "|") + ")$",
			Rounds: 1, Ops: part.ops, Duration: 400 * time.Millisecond, Settle: 10 * time.Millisecond, Progress: t.Output()})
		if err != nil {
			t.Fatal(err)
		}
		report, err := os.ReadFile(filepath.Join(out, "results.md"))
		if err != nil {
			t.Fatal(err)
		}
		for workload, figures := range part.figures {
			runs := res.Runs[workload][name]
			if len(runs) != 1 {
				t.Errorf("%s: %d runs", workload, len(runs))
				continue
			}
			for _, f := range figures {
				if runs[0][f] <= 0 {
					t.Errorf("%s: %s is %v", workload, f, runs[0][f])
				}
			}
			if runs[0]["wrong"] != 0 || runs[0]["errors"] != 0 {
				t.Errorf("%s: %v wrong, %v errors; notes %v", workload, runs[0]["wrong"], runs[0]["errors"], res.Notes)
			}
			if !strings.Contains(string(report), "| "+workload+" | "+figures[0]) {
				t.Errorf("%s is not in the report %q", workload, report)
			}
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for says, o := range map[string]Options{
		"no server":      {},
		"at most two":    {Servers: []string{"perdure", "restate", "perdure"}},
		"read server":    {Servers: []string{"no-such-definition"}},
		"choose workloa": {Servers: []string{"perdure"}, Only: "("},
	} {
		if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want %q", o, err, says)
		}
	}
}

func TestReport(t *testing.T) {
	r := &Results{Names: []string{"a", "b"}, Info: map[string]any{}, Runs: map[string]map[string][]Metrics{}, Desc: map[string]string{}, progress: t.Output()}
	c := acase{name: "w", desc: "a workload"}
	for _, v := range []float64{100, 300, 200} {
		r.add(c, "a", Metrics{"throughput": v, "p50": 4})
		r.add(c, "b", Metrics{"throughput": 2 * v, "p50": 5})
	}
	var s strings.Builder
	r.Write(&s)
	for _, line := range []string{
		"| w | throughput ↑ | op/s | 200 | 400 | **2.00×** | 100 % | 100 % |",
		"| w | p50 ↓ | ms | 4 | 5 | 1.25× | 0 % | 0 % |",
	} {
		if !strings.Contains(s.String(), line) {
			t.Errorf("no line %q in\n%s", line, s.String())
		}
	}
}
