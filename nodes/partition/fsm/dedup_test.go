package fsm

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"testing"

	"perdure/control/cluster"
	"perdure/nodes/record/recordpb"
)

// Whatever comes from whom, in whatever batches and with restarts between: a command counts if its producer has sent nothing as
// high before, and if no other leader was announced since it was sent.
func TestDedupFollowsTheRule(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	s, txn := newStep()
	d := &dedup{step: s}
	epoch := uint64(0)
	last := map[string][2]uint64{}
	for i := range 5000 {
		s.out.Reset()
		if rng.IntN(20) == 0 {
			if err := d.flush(); err != nil {
				t.Fatal(err)
			}
			if rng.IntN(2) == 0 {
				d = &dedup{step: s}
				if err := d.load(txn); err != nil {
					t.Fatal(err)
				}
			}
			continue
		}
		if rng.IntN(50) == 0 {
			e := epoch + rng.Uint64N(3) - min(epoch, 1)
			before := s.dropped
			if err := d.announce(&recordpb.AnnounceLeader{Epoch: e}); err != nil {
				t.Fatal(err)
			}
			if got := len(s.out.List) == 1 && s.out.List[0].Kind == ActAnnounced; got != (e >= epoch) || got == (s.dropped > before) {
				t.Fatalf("seed %d, step %d: epoch %d was announced behind %d: %v", seed, i, e, epoch, got)
			}
			epoch = max(epoch, e)
			if d.epoch != cluster.Epoch(epoch) {
				t.Fatalf("seed %d, step %d: epoch %d, want %d", seed, i, d.epoch, epoch)
			}
			continue
		}
		x := &recordpb.Dedup{Sequence: uint64(i/8) + rng.Uint64N(8), Epoch: epoch + rng.Uint64N(3) - min(epoch, 1)}
		name, fenced := "self", x.Epoch < epoch
		switch n := rng.IntN(6); n {
		case 0, 1, 2:
			x.Producer = &recordpb.Dedup_Partition{Partition: uint32(n)}
			name, fenced = fmt.Sprint("partition ", n), false
		case 3:
			x.Producer = &recordpb.Dedup_Other{Other: "2"}
			name, fenced = "other 2", false
		default:
			x.Producer = &recordpb.Dedup_Self{Self: true}
		}
		now := [2]uint64{x.Epoch, x.Sequence}
		old, known := last[name]
		want := !fenced && (!known || cmp.Or(cmp.Compare(now[0], old[0]), cmp.Compare(now[1], old[1])) > 0)
		got, err := d.accept(x)
		if err != nil || got != want {
			t.Fatalf("seed %d, step %d: %s of epoch %d counts: %v, %v; the last one was %v, the leader's epoch is %d", seed, i, name, x.Epoch, got, err, old, epoch)
		}
		if want {
			last[name] = now
		}
	}
	if ok, err := d.accept(nil); !ok || err != nil {
		t.Fatalf("a command without a producer counts: %v, %v", ok, err)
	}
}
