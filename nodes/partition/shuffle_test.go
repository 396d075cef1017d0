package partition

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"perdure/control/cluster"
	"perdure/nodes/record/recordpb"
)

// outboxWorld is an outbox in a store and receivers that drop what is not above the last index that they
// applied, as a partition's dedup does.
type outboxWorld struct {
	t       *testing.T
	rng     *rand.Rand
	stored  []outMessage // index 1 on
	applied map[cluster.PartitionID][]uint64
	// Batches that were sent and not answered. After a failure all later ones to the same leader fail as well,
	// applied or not: the sender cannot know. A successor of the leader may be there before it does.
	flight map[cluster.PartitionID][]inFlight
	down   map[cluster.PartitionID]bool
	heard  map[cluster.PartitionID]*Origin // by the leader of now; nil: of nobody
}

type inFlight struct {
	n   int
	err error
}

func (w *outboxWorld) apply(d cluster.PartitionID, b batch) {
	for _, m := range b.messages {
		a := w.applied[d]
		if len(a) == 0 || a[len(a)-1] < m.index {
			w.applied[d] = append(a, m.index)
		}
	}
}

func (w *outboxWorld) load(from uint64, limit, bytes int) (ms []outMessage, more bool, err error) {
	for i := from; i <= uint64(len(w.stored)); i++ {
		if len(ms) == limit || len(ms) > 0 && bytes <= 0 {
			return ms, true, nil
		}
		ms = append(ms, w.stored[i-1])
		bytes -= w.stored[i-1].bytes
	}
	return ms, false, nil
}

func (w *outboxWorld) send(d cluster.PartitionID, b batch) error {
	bytes := 0
	for _, m := range b.messages {
		bytes += m.bytes
	}
	if bytes > shuffleBatchBytes && len(b.messages) > 1 {
		w.t.Errorf("a batch has %d bytes in %d messages", bytes, len(b.messages))
	}
	if w.rng.IntN(10) == 0 {
		return errors.New("not the leader")
	}
	if w.down[d] && w.rng.IntN(3) == 0 {
		w.down[d], w.heard[d] = false, nil // a new leader
	}
	if last := w.heard[d]; last == nil && b.from.Batch > 0 || last != nil && !b.from.follows(*last) {
		return ErrOutOfStep
	}
	w.heard[d] = &b.from
	f := inFlight{n: len(b.messages)}
	switch {
	case w.down[d]:
		f.err = errors.New("the appender failed before")
	case w.rng.IntN(8) == 0:
		w.down[d] = true // this leader's appender fails here, perhaps after the write
		if w.rng.IntN(2) == 0 {
			w.apply(d, b)
		}
		f.err = errors.New("connection lost")
	default:
		w.apply(d, b)
	}
	w.flight[d] = append(w.flight[d], f)
	return nil
}

func TestShuffleDeliversExactlyOnce(t *testing.T) {
	for range 300 {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		runShuffle(t, seed)
		if t.Failed() {
			return
		}
	}
}

// A destination that is not there must not hold up the messages for others, however many wait for it.
func TestShuffleAroundAParkedPartition(t *testing.T) {
	const parked, limit, total = 0, 40, 3000
	w := &outboxWorld{t: t}
	s := newShuffle(Origin{Epoch: 1}, 1, limit, 1<<20, func(k cluster.PartitionKey) cluster.PartitionID { return cluster.PartitionID(k) })
	s.load = w.load
	there, got := false, map[cluster.PartitionID][]uint64{}
	var flight []ack
	s.send = func(d cluster.PartitionID, b batch) error {
		if d == parked && !there {
			return ErrNotLeader
		}
		for _, m := range b.messages {
			got[d] = append(got[d], m.index)
		}
		flight = append(flight, ack{dest: d, n: len(b.messages)})
		return nil
	}
	now := time.Unix(0, 0)
	step := func() {
		t.Helper()
		now = now.Add(20 * time.Millisecond)
		acks := flight
		flight = nil
		for _, a := range acks {
			s.acked(a.dest, a.n, a.err, now)
		}
		if s.pending() {
			if err := s.refill(now); err != nil {
				t.Fatal(err)
			}
		}
		if s.held > limit {
			t.Fatalf("%d messages are held, the limit is %d", s.held, limit)
		}
	}
	for i := range total {
		m := outMessage{index: uint64(i) + 1, cmd: &recordpb.Command{PartitionKey: uint64(i % 3)}, bytes: 10}
		w.stored = append(w.stored, m)
		s.add(m, now)
		step()
	}
	for i := 0; len(got[1])+len(got[2]) < total/3*2; i++ {
		if i > total {
			t.Fatalf("%d and %d of %d messages came to the others", len(got[1]), len(got[2]), total/3)
		}
		step()
	}
	if s.delivered() != 0 {
		t.Fatalf("messages up to %d count as delivered, the first one is not", s.delivered())
	}
	there = true
	for i := 0; s.delivered() < total; i++ {
		if i > 10*total {
			t.Fatalf("%d of %d messages came to the one that is there again", len(got[parked]), total/3)
		}
		step()
	}
	for d, indexes := range got {
		for i, index := range indexes {
			if index != uint64(i*3)+uint64(d)+1 {
				t.Fatalf("destination %d got %d at %d", d, index, i)
			}
		}
	}
	if s.pending() || s.held != 0 || s.heldBytes != 0 || !s.wake(now).IsZero() {
		t.Errorf("in the end %d messages of %d bytes are held", s.held, s.heldBytes)
	}
}

// A leader that finds a long outbox looks at it in parts: it has other things to do than to read what cannot be sent.
func TestShuffleReadsALongOutboxInParts(t *testing.T) {
	const total = 20 * loadAtOnce
	w := &outboxWorld{t: t}
	for i := range uint64(total) {
		w.stored = append(w.stored, outMessage{index: i + 1, cmd: &recordpb.Command{PartitionKey: i % 2}, bytes: 10})
	}
	s := newShuffle(Origin{Epoch: 1}, 1, 100, 1<<20, func(k cluster.PartitionKey) cluster.PartitionID { return cluster.PartitionID(k) })
	s.send = func(cluster.PartitionID, batch) error { return ErrNotLeader }
	loaded := 0
	s.load = func(from uint64, limit, bytes int) ([]outMessage, bool, error) {
		ms, more, err := w.load(from, limit, bytes)
		loaded += len(ms)
		return ms, more, err
	}
	now := time.Unix(0, 0)
	for looks := 0; s.next <= total; looks++ {
		if looks > total {
			t.Fatalf("after %d looks only the messages below %d were looked at", looks, s.next)
		}
		loaded = 0
		if err := s.refill(now); err != nil {
			t.Fatal(err)
		}
		if loaded > loadAtOnce {
			t.Fatalf("%d messages were read in one go", loaded)
		}
		if wake := s.wake(now); s.next <= total && !wake.Equal(now) {
			t.Fatalf("there is more to look at, but it goes on at %v", wake)
		}
	}
}

func runShuffle(t *testing.T, seed uint64) {
	w := &outboxWorld{t: t, rng: rand.New(rand.NewPCG(seed, 0)), applied: map[cluster.PartitionID][]uint64{},
		flight: map[cluster.PartitionID][]inFlight{}, down: map[cluster.PartitionID]bool{}, heard: map[cluster.PartitionID]*Origin{}}
	dests := uint64(1 + w.rng.IntN(4))
	lookup := func(k cluster.PartitionKey) cluster.PartitionID { return cluster.PartitionID(uint64(k) % dests) }
	total := uint64(1 + w.rng.IntN(200))
	limitBytes := 1 + w.rng.IntN(4*shuffleBatchBytes)
	s := newShuffle(Origin{Epoch: 1}, 1, 1+w.rng.IntN(20), limitBytes, lookup)
	s.send = w.send
	s.load = w.load
	now := time.Unix(0, 0)
	for step := 0; s.delivered() < total; step++ {
		if step > 100_000 {
			t.Fatalf("seed %d: stuck: delivered %d of %d", seed, s.delivered(), total)
		}
		now = now.Add(time.Duration(w.rng.IntN(200)) * time.Millisecond)
		switch {
		case uint64(len(w.stored)) < total && w.rng.IntN(2) == 0:
			m := outMessage{index: uint64(len(w.stored)) + 1, cmd: &recordpb.Command{PartitionKey: w.rng.Uint64N(100)}, bytes: w.rng.IntN(shuffleBatchBytes)}
			w.stored = append(w.stored, m)
			s.add(m, now)
		case w.rng.IntN(3) == 0:
			if err := s.refill(now); err != nil {
				t.Fatal(err)
			}
		default:
			for d := range cluster.PartitionID(dests) {
				if f := w.flight[d]; len(f) > 0 {
					w.flight[d] = f[1:]
					s.acked(d, f[0].n, f[0].err, now)
				}
			}
		}
		if s.held > s.limit || s.heldBytes >= limitBytes+shuffleBatchBytes {
			t.Fatalf("seed %d: %d messages of %d bytes held, limits %d and %d", seed, s.held, s.heldBytes, s.limit, limitBytes)
		}
	}
	want := map[cluster.PartitionID][]uint64{}
	for _, m := range w.stored {
		d := lookup(clusterKey(m.cmd))
		want[d] = append(want[d], m.index)
	}
	if s.heldBytes != 0 || s.held != 0 {
		t.Fatalf("seed %d: %d messages of %d bytes held in the end", seed, s.held, s.heldBytes)
	}
	for d, idx := range want {
		got := w.applied[d]
		if len(got) != len(idx) {
			t.Fatalf("seed %d: destination %d applied %v, want %v", seed, d, got, idx)
		}
		for i := range idx {
			if got[i] != idx[i] {
				t.Fatalf("seed %d: destination %d applied %v, want %v", seed, d, got, idx)
			}
		}
	}
}
