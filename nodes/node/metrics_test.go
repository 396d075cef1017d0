package node

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"perdure/nodes/partition"
	"perdure/nodes/partition/fsm"
)

// TestProcessorMetrics: what processors announce is counted under the names that dashboards know.
func TestProcessorMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	var l partition.Listener
	newProcessorMetrics(reg, &l)
	l.Leading(0, 1)
	l.Applied(0, 4, 8*time.Millisecond)
	l.Performed(0, []fsm.Action{{Kind: fsm.ActInvoke}, {Kind: fsm.ActReply}, {Kind: fsm.ActInvoke}})
	got := map[string]float64{}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, lp := range m.Label {
				name += "/" + lp.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetSummary().GetSampleSum()
		}
	}
	for name, want := range map[string]float64{
		"restate_partition_start_total": 1, "perdure_partition_applied_records_total": 4, "restate_partition_apply_command_duration_seconds": 0.002,
		"restate_partition_handle_leader_action_total/invoke": 2, "restate_partition_handle_leader_action_total/reply": 1,
		"restate_partition_handle_leader_action_total/outbox": 0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (%v), want %v", name, v, ok, want)
		}
	}
	for k := fsm.Kind(1); k < fsm.Kinds; k++ {
		if _, ok := got["restate_partition_handle_leader_action_total/"+k.String()]; !ok || k.String() == "" {
			t.Errorf("actions of kind %d %q are not counted", k, k)
		}
	}
	var none partition.Listener
	newProcessorMetrics(nil, &none)
	if none.Applied != nil {
		t.Error("something is counted without a registry")
	}
}
