package fsm

import (
	"math/rand/v2"
	"testing"

	"perdure/control/ident"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
)

// Whatever rows are read, changed and removed, in whatever batches and with restarts between: who reads a row sees what was last
// done to it, the store has it at the end of the batch, and only what was changed is written, once.
func TestRowsAreWrittenAsTheyAre(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	s, txn := newStep()
	counting := &countingTxn{memTxn: txn}
	s.txn = counting
	rs := newRows(s)
	type state struct {
		status     storepb.Invocation_Status
		entries    uint32
		modifiedAt uint64
	}
	model := map[ident.InvocationID]state{}
	changed := map[ident.InvocationID]bool{}
	ids := make([]ident.InvocationID, 2*cachedRows)
	for i := range ids {
		ids[i] = idFor(service("A"), i)
	}
	for i := range 6000 {
		s.now++
		id := ids[rng.IntN(len(ids))]
		if rng.IntN(2) == 0 {
			id = ids[rng.IntN(8)]
		}
		r, err := rs.of(id)
		want, known := model[id]
		if err != nil || r.id != id || (r.inv != nil) != known || r.inv.GetStatus() != want.status || r.inv.GetEntries() != want.entries {
			t.Fatalf("seed %d, step %d: %s is %v, %v; want %+v, %v", seed, i, id, r.inv, err, want, known)
		}
		switch n := rng.IntN(10); {
		case n < 4: // it is only read
		case n < 5:
			r.inv = nil
			rs.touch(r)
			delete(model, id)
			changed[id] = true
		default:
			if r.inv == nil {
				r.inv = &storepb.Invocation{}
			}
			status := storepb.Invocation_Status(1 + rng.IntN(6))
			r.inv.Status, r.inv.Entries, r.output = status, uint32(i), []byte{1}
			rs.touch(r)
			model[id] = state{status, uint32(i), s.now}
			changed[id] = true
		}
		if rng.IntN(40) > 0 {
			continue
		}
		counting.sets, counting.deletes = 0, 0
		if err := rs.flush(); err != nil {
			t.Fatal(err)
		}
		if n := counting.sets + counting.deletes; n != len(changed) || len(rs.known) > cachedRows {
			t.Fatalf("seed %d, step %d: %d rows were written, want %d; %d are held", seed, i, n, len(changed), len(rs.known))
		}
		clear(changed)
		if rng.IntN(4) == 0 {
			rs = newRows(s)
		}
		for _, r := range rs.known {
			if r.output != nil || r.dirty {
				t.Fatalf("seed %d, step %d: behind its batch %+v is held", seed, i, r)
			}
		}
		if len(txn.rows) != len(model) {
			t.Fatalf("seed %d, step %d: %d rows, want %d", seed, i, len(txn.rows), len(model))
		}
		for id, want := range model {
			var inv storepb.Invocation
			ok, err := read(txn, keyspace.AppendInvocation(nil, &id), &inv)
			if got := (state{inv.Status, inv.Entries, inv.ModifiedAtMs}); !ok || err != nil || got != want {
				t.Fatalf("seed %d, step %d: the row of %s is %+v, %v, %v; want %+v", seed, i, id, got, ok, err, want)
			}
		}
	}
}
