package partition

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"perdure/invokers"
	"perdure/invokers/invocationpb"
	"perdure/nodes/partition/store/storepb"
)

// While calls begin and end, every moment that is captured explains all invocations: the rows never say that something is
// to run which the invoker was not told of.
func TestInspectUnderLoad(t *testing.T) {
	w := newWorld(t, 1, echo)
	w.start()
	defer w.stop()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 60 {
				req, key := call(fmt.Sprint(i), true)
				if _, err := w.do(within(t), key, req); err != nil {
					t.Errorf("call: %v", err)
					return
				}
			}
		})
	}
	over := make(chan struct{})
	go func() { wg.Wait(); close(over) }()
	for n := 0; ; n++ {
		v, done, err := w.procs[0].Load().Inspect(within(t))
		if err != nil {
			t.Fatal(err)
		}
		s, err := v.Summary()
		done()
		if err != nil {
			t.Fatal(err)
		}
		if s.Total > 0 {
			t.Fatalf("moment %d has %d problems, such as %s of %s: %s", n, s.Total, s.Problems[0].ID, s.Problems[0].Target, s.Problems[0].Problem)
		}
		select {
		case <-over:
			return
		default:
		}
	}
}

// Inspecting fails where there is no leader, and what waits is answered when the leader ends.
func TestInspectNeedsLeader(t *testing.T) {
	w := newWorld(t, 1, func(*invokers.Journal) []*invocationpb.Effect { return nil })
	w.start()
	req, key := call("x", false)
	if _, err := w.do(within(t), key, req); err != nil {
		t.Fatal(err)
	}
	p := w.procs[0].Load()
	v, done, err := p.Inspect(within(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := v.Summary()
	if err != nil || s.Statuses[storepb.Invocation_INVOKED] != 1 {
		t.Errorf("summary %+v, %v, want one invoked", s, err)
	}
	done()
	l := p.leader.Load()
	w.stop()
	if _, _, err := p.Inspect(within(t)); !errors.Is(err, ErrNotLeader) {
		t.Errorf("inspect after the stop: %v, want ErrNotLeader", err)
	}
	p.leader.Store(l) // as it is for who asked just before the stop
	if _, _, err := p.Inspect(within(t)); !errors.Is(err, ErrNotLeader) {
		t.Errorf("inspect during the stop: %v, want ErrNotLeader", err)
	}
}
