package node

import (
	"context"
	"crypto/rand"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"perdure/control/admin"
	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/nodes/partition"
	"perdure/nodes/partition/doctor"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
	"perdure/nodes/worker"
)

// submit has the node accept an invocation of a service, atMs milliseconds since the epoch.
func submit(t *testing.T, n *Node, service string, atMs uint64) ident.InvocationID {
	t.Helper()
	var u, request [16]byte
	for _, b := range [][]byte{u[:], request[:]} {
		_, _ = rand.Read(b) // never fails
	}
	id := ident.NewInvocationID(cluster.PartitionKey(uint64(u[0])<<56), u)
	_, err := n.worker.Load().Do(t.Context(), id.PartitionKey(), &recordpb.Request{Id: request[:], Kind: &recordpb.Request_Invoke_{Invoke: &recordpb.Request_Invoke{
		Invocation: &invocationpb.Invocation{Id: id[:], Target: &invocationpb.Target{Service: service, Handler: "h", ServiceType: uint32(schema.Service)}, ExecutionTimeMs: atMs},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// The doctor of a running node says what invocations of both partitions wait for, and that nothing is stuck.
func TestCheckup(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	n := startNode(t, small(t.TempDir()))
	defer stopNode(t, n)
	c := &checkups{worker: n.worker.Load(), schemas: empty{}, log: n.log, settle: time.Millisecond}
	delayed := submit(t, n, "Later", uint64(time.Now().Add(time.Hour).UnixMilli()))
	unserved := submit(t, n, "Nobody", 0)
	r, err := c.Checkup(t.Context())
	if err != nil || !r.Healthy || r.Partitions != 2 || r.Invocations["scheduled"] != 1 || r.Invocations["ready"]+r.Invocations["backing-off"]+r.Invocations["running"] != 1 || r.WaitsFor["timer"] != 1 || r.WaitsFor["operator"] != 1 {
		t.Errorf("checkup %+v, %v; want it healthy, with one delayed and one that nobody serves", r, err)
	}
	for id, want := range map[ident.InvocationID]string{delayed: "its delay until", unserved: "no deployment serves Nobody"} {
		d, err := c.Diagnose(t.Context(), id)
		if err != nil || d == nil || d.Problem != "" || !strings.Contains(text(d), want) {
			t.Errorf("diagnosis %+v, %v; want it to say %q", d, err, want)
		}
	}
	if d, err := c.Diagnose(t.Context(), ident.NewInvocationID(1, [16]byte{1})); d != nil || err != nil {
		t.Errorf("diagnosis of nothing: %+v, %v", d, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := c.Checkup(ctx); err == nil {
		t.Errorf("a checkup without time said %+v", r)
	}
	resp, err := http.Get(n.Addresses().Admin + "perdure/doctor/" + delayed.String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("GET answered %s", resp.Status)
	}
	http.DefaultClient.CloseIdleConnections()
}

func text(d *admin.Diagnosis) (s string) {
	for _, w := range d.Waits {
		s += w.Text + "\n"
	}
	return s
}

type empty struct{}

func (empty) Current() *schema.Schema { return new(schema.Schema) }

// The doctor says that the clock is behind, but not for what clocks may differ by.
func TestClockNotes(t *testing.T) {
	if n := clockNotes([]worker.Status{{}, {ClockBehind: partition.ClockTolerance}}); n != nil {
		t.Errorf("clocks that are right: %q", n)
	}
	n := clockNotes([]worker.Status{{ClockBehind: time.Minute}, {}, {ClockBehind: time.Hour}})
	if len(n) != 1 || !strings.Contains(n[0], "up to 1h0m0s behind the latest time in the logs of 2 partitions") {
		t.Errorf("a clock that is behind: %q", n)
	}
}

// The doctor and the list of invocations have the same names for the same things.
func TestCheckupNamesStatusesLikeTheList(t *testing.T) {
	got := map[string]int{}
	countStatuses(got, &doctor.Summary{
		Statuses: map[storepb.Invocation_Status]int{storepb.Invocation_INBOXED: 1, storepb.Invocation_INVOKED: 9, storepb.Invocation_PAUSED: 2},
		Reasons:  map[doctor.Reason]int{doctor.Attempt: 4, doctor.Retry: 3, doctor.Slot: 1},
	})
	if want := map[string]int{"pending": 1, "running": 4, "backing-off": 3, "ready": 2, "paused": 2}; !maps.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
	for _, c := range []struct {
		f    doctor.Finding
		want string
	}{
		{doctor.Finding{Status: storepb.Invocation_INVOKED, Waits: []doctor.Wait{{Reason: doctor.Attempt}}}, admin.StatusRunning},
		{doctor.Finding{Status: storepb.Invocation_INVOKED, Waits: []doctor.Wait{{Reason: doctor.Retry}, {Reason: doctor.Operator}}}, admin.StatusBackingOff},
		{doctor.Finding{Status: storepb.Invocation_INVOKED}, admin.StatusReady},
		{doctor.Finding{Status: storepb.Invocation_SUSPENDED}, admin.StatusSuspended},
	} {
		if got := statusText(&c.f); got != c.want {
			t.Errorf("%v: %s, want %s", c.f.Status, got, c.want)
		}
	}
}

// What looks wrong once only, or in another life, is no problem.
func TestLasting(t *testing.T) {
	at := func(n byte, incarnation uint64) doctor.Finding {
		return doctor.Finding{ID: ident.NewInvocationID(1, [16]byte{n}), Target: "S/h", Problem: "no timer", Incarnation: incarnation}
	}
	before := &doctor.Summary{Problems: []doctor.Finding{at(1, 5), at(2, 5), at(3, 5)}}
	now := &doctor.Summary{Problems: []doctor.Finding{at(2, 5), at(3, 6), at(4, 5)}}
	if kept := lasting(before, now); len(kept) != 1 || kept[0].ID != at(2, 5).ID {
		t.Errorf("kept %+v, want the second only", kept)
	}
}
