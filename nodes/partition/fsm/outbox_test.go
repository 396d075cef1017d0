package fsm

import (
	"math"
	"math/rand/v2"
	"testing"

	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/record/recordpb"
)

// Whatever is sent and truncated, in whatever batches and with restarts between: the rows are those from the head to below the
// next index, each is announced to the leader once, and no index comes twice.
func TestOutboxIsDense(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	s, txn := newStep()
	var c counters
	if err := c.load(txn); err != nil {
		t.Fatal(err)
	}
	o := &outbox{s, &c}
	head, next := uint64(1), uint64(1) // the model
	for i := range 2000 {
		s.out.Reset()
		switch {
		case rng.IntN(4) > 0:
			if err := o.send(&recordpb.Command{PartitionKey: next}); err != nil {
				t.Fatal(err)
			}
			if a := s.out.List[0]; len(s.out.List) != 1 || a.Kind != ActOutbox || a.Index != next || a.Command.PartitionKey != next {
				t.Fatalf("seed %d, step %d: %+v", seed, i, s.out.List)
			}
			next++
		case rng.IntN(6) == 0:
			// More than there is, little and much, also what is gone already.
			upTo := []uint64{0, head - 1, head, head + rng.Uint64N(2*rangeDeleteFrom), next, math.MaxUint64 - 1}[rng.IntN(6)]
			if err := o.truncate(upTo); err != nil {
				t.Fatal(err)
			}
			head = max(head, min(upTo+1, next))
		default:
			if err := c.flush(s); err != nil {
				t.Fatal(err)
			}
			c = counters{}
			if err := c.load(txn); err != nil {
				t.Fatal(err)
			}
		}
		rows := 0
		for k := range txn.rows {
			if k[0] == keyspace.TagOutbox {
				rows++
			}
		}
		if uint64(rows) != next-head {
			t.Fatalf("seed %d, step %d: %d rows, want those from %d to below %d", seed, i, rows, head, next)
		}
		for n := head; n < next; n++ {
			var m recordpb.Command
			if ok, err := read(txn, keyspace.AppendOutbox(nil, n), &m); !ok || err != nil || m.PartitionKey != n {
				t.Fatalf("seed %d, step %d: message %d: %v, %v", seed, i, n, ok, err)
			}
		}
	}
}

// A batch that counted nothing does not write the row.
func TestCountersAreWrittenWhenTheyChanged(t *testing.T) {
	s, txn := newStep()
	var c counters
	for want := range uint64(3) {
		if err := c.flush(s); err != nil {
			t.Fatal(err)
		}
		if len(txn.rows) != int(min(want, 1)) {
			t.Fatalf("%d rows", len(txn.rows))
		}
		clear(txn.rows)
		if err := c.flush(s); err != nil || len(txn.rows) != 0 {
			t.Fatalf("written again: %d rows, %v", len(txn.rows), err)
		}
		c.next(&c.row.InboxNext)
	}
}
