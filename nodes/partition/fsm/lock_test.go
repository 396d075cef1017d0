package fsm

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"perdure/control/ident"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
)

// modelLock is an object of the model: who holds it, and what waits. A zero id stands for a patch.
type modelLock struct {
	held   bool
	holder ident.InvocationID
	queue  []modelInboxed
}

type modelInboxed struct {
	id       ident.InvocationID
	sequence uint64
}

// Whatever takes locks, waits, leaves, and passes them on, in whatever batches and with restarts between: everybody gets a turn in
// the order of arrival, only the holder passes on, and the rows say what the model says.
func TestLocksPassInOrder(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	s, txn := newStep()
	var c counters
	if err := c.load(txn); err != nil {
		t.Fatal(err)
	}
	ls := newLocks(s, &c)
	objects := [3]keyspace.Object{{Partition: 1, Service: "A", Key: "k"}, {Partition: 1, Service: "A", Key: "kk"}, {Partition: 2, Service: "B"}}
	var model [3]modelLock
	n := 0
	for i := range 3000 {
		s.now++
		o, m := &objects[i%3], &model[i%3]
		switch k := rng.IntN(10); {
		case k < 4: // something comes
			l, err := ls.of(o)
			if err != nil || (l.row != nil) != m.held {
				t.Fatalf("seed %d, step %d: lock %v, %v, want one that is held: %v", seed, i, l.row, err, m.held)
			}
			n++
			id := idFor(service("A"), n)
			if !m.held {
				ls.take(l, id)
				m.held, m.holder = true, id
				break
			}
			b := &storepb.Inboxed{InvocationId: id[:]}
			if rng.IntN(3) == 0 {
				id, b = ident.InvocationID{}, &storepb.Inboxed{Patch: &storepb.StatePatch{}}
			}
			sequence, err := ls.enqueue(l, b)
			if err != nil {
				t.Fatal(err)
			}
			m.queue = append(m.queue, modelInboxed{id, sequence})
		case k < 7: // the holder, or somebody else, ends
			who := m.holder
			if rng.IntN(4) == 0 {
				who = idFor(service("B"), n)
			}
			b, err := ls.pass(who, o)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case !m.held || who != m.holder:
				if b != nil {
					t.Fatalf("seed %d, step %d: who does not hold the lock passed it on to %v", seed, i, b)
				}
			case len(m.queue) == 0:
				if b != nil {
					t.Fatalf("seed %d, step %d: %v was not waiting", seed, i, b)
				}
				*m = modelLock{}
			default:
				next := m.queue[0].id
				if b == nil || (b.Patch != nil) != (next == ident.InvocationID{}) || b.Patch == nil && !bytes.Equal(b.InvocationId, next[:]) {
					t.Fatalf("seed %d, step %d: the next is %v, want %v", seed, i, b, next)
				}
				m.queue = m.queue[1:]
				if b.Patch == nil {
					m.holder = next
				}
			}
		case k < 8: // one that waits is taken back
			if at := rng.IntN(len(m.queue) + 1); at < len(m.queue) {
				if err := ls.leave(o, m.queue[at].id, m.queue[at].sequence); err != nil {
					t.Fatal(err)
				}
				m.queue = slices.Delete(m.queue, at, at+1)
			}
		default: // the batch ends
			if err := ls.flush(); err != nil {
				t.Fatal(err)
			}
			for j := range objects {
				model[j].check(t, txn, &objects[j])
			}
			if rng.IntN(2) == 0 {
				ls = newLocks(s, &c)
			}
		}
	}
}

// check compares the rows of an object.
func (m *modelLock) check(t *testing.T, txn *memTxn, o *keyspace.Object) {
	t.Helper()
	var row storepb.Lock
	ok, err := read(txn, keyspace.AppendLock(nil, o), &row)
	if err != nil || ok != m.held {
		t.Fatalf("a lock is held: %v, %v; want %v", ok, err, m.held)
	}
	if ok && (!bytes.Equal(row.Holder, m.holder[:]) || int(row.Queued) != len(m.queue)) {
		t.Fatalf("lock %v, want %d that wait for %s", &row, len(m.queue), m.holder)
	}
	var sequences []uint64
	prefix := keyspace.AppendInboxPrefix(nil, o)
	err = txn.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(key, _ []byte) (bool, error) {
		_, sequence, err := keyspace.InboxOf(key)
		sequences = append(sequences, sequence)
		return true, err
	})
	if err != nil || !slices.EqualFunc(sequences, m.queue, func(a uint64, b modelInboxed) bool { return a == b.sequence }) {
		t.Fatalf("inbox %v, %v; want %v", sequences, err, m.queue)
	}
	if ok && len(m.queue) > 0 && row.Next > m.queue[0].sequence {
		t.Fatalf("the inbox is read from %d, %d waits", row.Next, m.queue[0].sequence)
	}
}

// A lock and an inbox that contradict each other are damage.
func TestLocksSeeDamage(t *testing.T) {
	s, _ := newStep()
	c := counters{}
	ls := newLocks(s, &c)
	o := keyspace.Object{Service: "A"}
	id := idFor(service("A"), 1)
	if err := ls.leave(&o, id, 1); !errors.Is(err, keyspace.ErrCorrupt) {
		t.Fatalf("leaving the inbox of a free object: %v", err)
	}
	l, err := ls.of(&o)
	if err != nil {
		t.Fatal(err)
	}
	ls.take(l, id)
	l.row.Queued = 1
	if _, err := ls.pass(id, &o); !errors.Is(err, keyspace.ErrCorrupt) {
		t.Fatalf("an inbox without the row that the lock counts: %v", err)
	}
}
