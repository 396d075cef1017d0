package node

import (
	"context"
	"errors"
	"testing"
	"time"

	"perdure/control/chain"
	"perdure/control/cluster"
	"perdure/control/metadata"
	"perdure/control/placement"
	"perdure/nodes/bifrost"
)

// Both implementations of bifrost.Chains keep the same contract.
func TestChains(t *testing.T) {
	for name, c := range map[string]bifrost.Chains{
		"memory":   bifrost.NewMemoryChains(),
		"metadata": chains{metadata.NewMemory()},
	} {
		t.Run(name, func(t *testing.T) { testChains(t, c) })
	}
}

func testChains(t *testing.T, c bifrost.Chains) {
	ctx := context.Background()
	got, v, err := c.Get(ctx, 3)
	if err != nil || v != 0 || !got.IsZero() {
		t.Fatalf("chain of a log that does not exist: %v, version %d, %v", got, v, err)
	}
	first, err := chain.New(3, chain.Params{Sequencer: cluster.GenNodeID{ID: 1, Generation: 1}, Replication: cluster.ReplicateTo(1), NodeSet: []cluster.NodeID{1}})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan uint64, 16)
	cancel := c.Watch(3, func(_ chain.Chain, version uint64) { seen <- version })
	v1, err := c.CompareAndSwap(ctx, 3, first, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.CompareAndSwap(ctx, 3, first, 0); !errors.Is(err, bifrost.ErrConflict) {
		t.Errorf("second creation: %v, want a conflict", err)
	}
	second, err := first.Extend(0, 10, chain.Params{Sequencer: cluster.GenNodeID{ID: 1, Generation: 2}, Replication: cluster.ReplicateTo(1), NodeSet: []cluster.NodeID{1}})
	if err != nil {
		t.Fatal(err)
	}
	v2, err := c.CompareAndSwap(ctx, 3, second, v1)
	if err != nil || v2 <= v1 {
		t.Fatalf("extension: version %d after %d, %v", v2, v1, err)
	}
	if got, v, err = c.Get(ctx, 3); err != nil || v != v2 || got.LastIndex() != 1 {
		t.Errorf("read back: last segment %d, version %d, %v", got.LastIndex(), v, err)
	}
	for last := uint64(0); last != v2; {
		select {
		case v := <-seen:
			if v < last {
				t.Fatalf("the watch went back from version %d to %d", last, v)
			}
			last = v
		case <-time.After(time.Minute):
			t.Fatalf("the watch did not get to version %d", v2)
		}
	}
	cancel()
	cancel()
}

func TestClaimsGrow(t *testing.T) {
	store := metadata.NewMemory()
	l, err := placement.NewLeadership(7, cluster.ReplicateTo(1), []cluster.NodeID{1})
	if err != nil {
		t.Fatal(err)
	}
	data, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Put(context.Background(), metadata.EpochKey(7), data, metadata.Absent); err != nil {
		t.Fatal(err)
	}
	var last cluster.Epoch
	for gen := range cluster.Generation(5) {
		c := claimer{store: store, self: cluster.GenNodeID{ID: 1, Generation: gen + 1}}
		claim, err := c.claim(context.Background(), 7)
		if err != nil {
			t.Fatal(err)
		}
		if claim.Epoch <= last || claim.Node != c.self {
			t.Fatalf("claim %+v after epoch %d", claim, last)
		}
		last = claim.Epoch
	}
}
