package bifrost

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"perdure/control/chain"
	"perdure/control/cluster"
	"perdure/nodes/loglet"
	"perdure/nodes/logserver"
	"perdure/nodes/transport"
)

// movedChains is metadata in which somebody has ended the first segment at LSN 3 and continued the log, but
// whose watch has not told so yet.
type movedChains struct {
	mu         sync.Mutex
	old, moved chain.Chain
	asked      int
}

func (m *movedChains) Get(context.Context, cluster.LogID) (chain.Chain, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	return m.moved, 2, nil
}

func (m *movedChains) CompareAndSwap(context.Context, cluster.LogID, chain.Chain, uint64) (uint64, error) {
	return 0, ErrConflict
}

func (m *movedChains) Watch(_ cluster.LogID, changed func(chain.Chain, uint64)) func() {
	changed(m.old, 1)
	return func() {}
}

// strayNet has log servers on which a second repair has moved the sealed tail of the first segment to 5.
type strayNet struct{ first, second cluster.LogletID }

func (n *strayNet) Call(_ cluster.NodeID, m transport.Message, done transport.ReplyFunc) {
	sealed := &logserver.StateReply{LocalTail: 5, KnownGlobalTail: 5, Sealed: true}
	switch r := m.(type) {
	case *loglet.TailRequest:
		if r.Loglet == n.first {
			done(&loglet.TailReply{Gone: true}, nil)
		} else if r.After < 2 {
			done(&loglet.TailReply{Tail: 2}, nil)
		}
	case *logserver.ReadRequest:
		done(n.read(r), nil)
	default:
		done(sealed, nil)
	}
}

func (n *strayNet) read(r *logserver.ReadRequest) *logserver.ReadReply {
	reply := &logserver.ReadReply{Next: r.To}
	what := "old"
	if r.Loglet == n.second {
		what = "new"
	}
	for o := r.From; o < r.To; o++ {
		reply.Records = append(reply.Records, logserver.Found{Offset: o, Record: Record{Payload: []byte(what)}})
	}
	return reply
}

// A reader that finds a segment sealed must not take the tail that it found for the end of the segment: found
// with other servers, it may be above the one at which the log was continued.
func TestReadersEndASegmentWhereTheChainDoes(t *testing.T) {
	p := chain.Params{Sequencer: cluster.GenNodeID{ID: 8, Generation: 1}, Replication: cluster.ReplicateTo(2), NodeSet: []cluster.NodeID{1, 2, 3}}
	old, err := chain.New(1, p)
	if err != nil {
		t.Fatal(err)
	}
	p.Sequencer.ID = 9
	moved, err := old.Extend(0, 3, p)
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(Config{
		Self: cluster.GenNodeID{ID: 7, Generation: 1}, Net: &strayNet{old.Last().Loglet, moved.Last().Loglet},
		Chains: &movedChains{old: old, moved: moved}, Logger: slog.New(slog.DiscardHandler), TailPoll: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r := b.Reader(1, 1)
	defer r.Close()
	want := []string{"old", "old", "new"}
	deadline := time.After(time.Minute)
	for i := 0; i < len(want); {
		e, ok, err := r.TryNext()
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			if string(e.Record.Payload) != want[i] {
				t.Fatalf("position %d is %q, want %q", e.LSN, e.Record.Payload, want[i])
			}
			i++
			continue
		}
		select {
		case <-r.Wait():
		case <-deadline:
			t.Fatalf("only %d of %d records within a minute", i, len(want))
		}
	}
}
