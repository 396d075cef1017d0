package bench

import (
	"strings"
	"testing"
)

func measured(other string, runs map[string][2]Metrics) *Results {
	r := &Results{Names: []string{other, subject}, Runs: map[string]map[string][]Metrics{}}
	for w, m := range runs {
		r.Runs[w] = map[string][]Metrics{other: {m[0]}, subject: {m[1]}}
	}
	return r
}

// TestTargets pins on which side of each bound a figure passes.
func TestTargets(t *testing.T) {
	for _, c := range []struct {
		name, other, workload, metric string
		a, b                          float64
		want                          string // of the verdicts for the metric, in order
	}{
		{"twice as fast", "restate", "greet-c64", "throughput", 1000, 2000, "pass"},
		{"not twice as fast", "restate", "greet-c64", "throughput", 1000, 1999, "**FAIL**"},
		{"four times as fast", "restate", "greet-c64", "throughput", 1000, 4000, "pass, goal reached"},
		{"against four partitions", "restate-4p", "greet-c64", "throughput", 1000, 1200, "pass"},
		{"too slow against four partitions", "restate-4p", "greet-c64", "throughput", 1000, 1199, "**FAIL**"},
		{"half the latency", "restate", "greet-c1", "p50", 3, 1.5, "pass; goal not reached"},
		{"more than half", "restate", "greet-c1", "p50", 3, 1.51, "**FAIL**; goal not reached"},
		{"half a millisecond", "restate", "greet-c1", "p50", 3, 0.5, "pass; goal reached"},
		{"CPU", "restate", "greet-c64", "server CPU /1k", 0.8, 0.15, "pass; goal reached"},
		{"idle memory", "restate", "startup", "idle RSS", 200, 80, "pass"},
		{"too much idle memory", "restate", "startup", "idle RSS", 200, 80.1, "**FAIL**"},
		{"a wrong answer", "restate", "greet-c64", "wrong", 0, 1, "**FAIL**"},
		{"no other figure", "restate", "greet-c64", "throughput", 0, 4000, "not measured"},
	} {
		r := measured(c.other, map[string][2]Metrics{c.workload: {{c.metric: c.a}, {c.metric: c.b}}})
		var got []string
		for _, v := range r.judge() {
			switch {
			case v.metric == c.metric && v.workload == c.workload:
				got = append(got, v.verdict())
			case v.known:
				t.Errorf("%s: %s is known", c.name, v.says)
			}
		}
		if s := strings.Join(got, "; "); s != c.want {
			t.Errorf("%s: %s, want %s", c.name, s, c.want)
		}
	}
}

// TestTargetsInReport: the report of Perdure has the table, also when it is measured alone; others do not.
func TestTargetsInReport(t *testing.T) {
	alone := &Results{Names: []string{subject}, Runs: map[string]map[string][]Metrics{"startup": {subject: {{"idle RSS": 61, "binary size": 36}}}}}
	var s strings.Builder
	alone.Write(&s)
	for _, line := range []string{
		"| memory when idle, MiB | startup | ≤ 80 | – | 61 | pass |",
		"| throughput at 64 clients | greet-c64 | ≥ 2.00× | ≥ 4.00× | – | not measured |",
	} {
		if !strings.Contains(s.String(), line) {
			t.Errorf("no line %q in\n%s", line, s.String())
		}
	}
	s.Reset()
	(&Results{Names: []string{"restate"}, Runs: map[string]map[string][]Metrics{"startup": {"restate": {{"idle RSS": 61}}}}}).Write(&s)
	if strings.Contains(s.String(), "Targets") {
		t.Errorf("targets for another server in\n%s", s.String())
	}
}

// TestTargetsOnBusyMachine: verdicts from a machine that others used carry a warning, whichever server it happened to.
func TestTargetsOnBusyMachine(t *testing.T) {
	for foreign, warned := range map[float64]bool{0: false, 5: false, 5.1: true, 70: true} {
		r := measured("restate", map[string][2]Metrics{"greet-c64": {{"throughput": 1, "foreign CPU": foreign}, {"throughput": 4, "foreign CPU": 1}}})
		var s strings.Builder
		r.writeTargets(&s)
		if strings.Contains(s.String(), "prove nothing") != warned {
			t.Errorf("foreign CPU %v %%: warned is %v in\n%s", foreign, !warned, s.String())
		}
	}
}
