package fsm

import (
	"testing"

	"perdure/control/cluster"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/record/recordpb"
)

func announce(epoch uint64) *recordpb.Command {
	return &recordpb.Command{
		Dedup: &recordpb.Dedup{Producer: &recordpb.Dedup_Self{Self: true}, Epoch: epoch},
		Kind:  &recordpb.Command_AnnounceLeader{AnnounceLeader: &recordpb.AnnounceLeader{Epoch: epoch, NodeId: 4, NodeGeneration: 5}},
	}
}

// from is a command of a producer that is easy to recognise: the invocation n of a service.
func from(d *recordpb.Dedup, n int) *recordpb.Command {
	x := request(service("A"), n)
	return &recordpb.Command{Dedup: d, Kind: &recordpb.Command_Invoke{Invoke: x}}
}

func self(epoch, seq uint64) *recordpb.Dedup {
	return &recordpb.Dedup{Producer: &recordpb.Dedup_Self{Self: true}, Epoch: epoch, Sequence: seq}
}

func partition(p uint32, seq uint64) *recordpb.Dedup {
	return &recordpb.Dedup{Producer: &recordpb.Dedup_Partition{Partition: p}, Sequence: seq}
}

func other(name string, seq uint64) *recordpb.Dedup {
	return &recordpb.Dedup{Producer: &recordpb.Dedup_Other{Other: name}, Sequence: seq}
}

// restarted is the world after a restart of its machine: only the rows are left.
func (w *world) restarted() *world {
	w.t.Helper()
	m, err := New(3, everything, w.txn)
	if err != nil {
		w.t.Fatal(err)
	}
	n := *w
	n.m = m
	return &n
}

func TestDeduplication(t *testing.T) {
	steps := []struct {
		d       *recordpb.Dedup
		applied bool
	}{
		{self(2, 0), true}, {self(2, 0), false}, {self(2, 1), true}, {self(2, 1), false}, {self(2, 3), true}, {self(2, 2), false},
		{self(3, 0), true}, {self(2, 9), false}, {self(3, 1), true},
		{partition(1, 1), true}, {partition(1, 1), false}, {partition(2, 1), true}, {partition(1, 5), true}, {partition(1, 4), false},
		{other("a", 0), true}, {other("a", 0), false}, {other("b", 0), true}, {other("a", 1), true}, {other("a", 0), false},
		{nil, true}, {nil, true}, {&recordpb.Dedup{Epoch: 1}, true},
	}
	for _, restarts := range []bool{false, true} {
		w := newWorld(t)
		w.m.dedup.epoch = 0
		for i, s := range steps {
			if restarts {
				w = w.restarted()
			}
			got := len(ofKind(w.apply(from(s.d, i)), ActInvoke)) == 1
			if got != s.applied {
				t.Fatalf("step %d (%v), restarts %v: applied %v", i, s.d, restarts, got)
			}
		}
	}
}

func TestAnnouncedLeaderFencesTheFormer(t *testing.T) {
	w := newWorld(t)
	a := w.one(w.apply(announce(3)), ActAnnounced)
	if a.Epoch != 3 || a.Node != (cluster.GenNodeID{ID: 4, Generation: 5}) || a.LSN != w.lsn {
		t.Fatalf("%+v", a)
	}
	w.one(w.apply(from(self(3, 1), 1)), ActInvoke)
	w.one(w.apply(announce(5)), ActAnnounced)
	for range 2 {
		if w.m.Epoch() != 5 {
			t.Fatalf("epoch %d", w.m.Epoch())
		}
		w.none(w.apply(from(self(3, 2), 2)), ActInvoke)
		w.none(w.apply(from(self(4, 1), 3)), ActInvoke)
		w.none(w.apply(announce(4)), ActAnnounced)
		w = w.restarted()
	}
	w.one(w.apply(from(self(5, 1), 4)), ActInvoke)
}

func TestDurabilityAndBarrier(t *testing.T) {
	w := newWorld(t)
	a := w.one(w.apply(&recordpb.Command{Kind: &recordpb.Command_PartitionDurability{PartitionDurability: &recordpb.PartitionDurability{DurableLsn: 77}}}), ActDurable)
	if a.LSN != 77 {
		t.Fatalf("%+v", a)
	}
	w.apply(&recordpb.Command{Kind: &recordpb.Command_VersionBarrier{VersionBarrier: &recordpb.VersionBarrier{MinVersion: "1.2"}}})
	for _, k := range []keyspace.Meta{keyspace.MetaDurability, keyspace.MetaBarrier} {
		if _, ok, _ := w.txn.Get(keyspace.AppendMeta(nil, k)); !ok {
			t.Fatalf("no row %c", k)
		}
	}
}

// Counters continue where they were: no outbox index and no inbox sequence is used twice.
func TestCountersSurviveARestart(t *testing.T) {
	w := newWorld(t)
	ids := w.queue("k", 3)
	w.effects(ids[0], sendTo(service("B"), 1, 1, 0))
	w = w.restarted()
	if a := w.one(w.effects(ids[0], sendTo(service("B"), 2, 2, 0)), ActOutbox); a.Index != 2 {
		t.Fatalf("outbox index %d", a.Index)
	}
	seq := w.m.counters.row.InboxNext
	w.queue("l", 2)
	if w.m.counters.row.InboxNext != seq+1 || seq != 3 {
		t.Fatalf("inbox sequence %d after %d", w.m.counters.row.InboxNext, seq)
	}
}

func TestDamagedRowsAreErrors(t *testing.T) {
	id := idFor(service("A"), 1)
	damage := map[string][]byte{
		"status":   keyspace.AppendInvocation(nil, &id),
		"leader":   keyspace.AppendMeta(nil, keyspace.MetaLeader),
		"counters": keyspace.AppendMeta(nil, keyspace.MetaCounters),
		"producer": keyspace.AppendSelfProducer(nil),
	}
	for name, key := range damage {
		txn := newMemTxn()
		txn.rows[string(key)] = []byte{0xff}
		m, err := New(0, everything, txn)
		if err == nil {
			err = m.Apply(txn, 1, 1, from(self(1, 1), 1), new(Actions))
		}
		if err == nil {
			t.Errorf("a damaged %s row is no error", name)
		}
	}
}
