package fsm

import (
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"perdure/control/cluster"
	"perdure/nodes/partition/store"
	"perdure/nodes/record"
	"perdure/nodes/record/recordpb"
)

// logged is a record of a log.
type logged struct {
	payload []byte
	atMs    uint64
}

// command is the record as a reader has it: decoded anew, so that nothing is shared between replicas.
func (r *logged) command(t testing.TB) *recordpb.Command {
	c, err := record.Decode(r.payload)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// writeLog makes a random log with the help of a machine that applies it, and returns the hash of the rows
// behind each record.
func writeLog(t testing.TB, seed uint64, n int) (log []logged, hashes [][16]byte) {
	t.Helper()
	s := openStore(t, vfs.NewMem())
	defer s.Close()
	m, err := New(0, everything, s)
	if err != nil {
		t.Fatal(err)
	}
	p, txn := newProgram(seed), s.NewTxn()
	var out Actions
	for i := range n {
		c, at := p.next()
		payload, err := record.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, logged{payload, at})
		out.Reset()
		applyOne(t, m, txn, cluster.LSN(i+1), &log[i], &out)
		finish(t, m, txn, cluster.LSN(i+1))
		p.see(out.List)
		hashes = append(hashes, stateHash(t, s))
	}
	return log, hashes
}

func applyOne(t testing.TB, m *Machine, txn *store.Txn, lsn cluster.LSN, r *logged, out *Actions) {
	t.Helper()
	if err := m.Apply(txn, lsn, r.atMs, r.command(t), out); err != nil {
		t.Fatalf("apply %d: %v", lsn, err)
	}
}

func finish(t testing.TB, m *Machine, txn *store.Txn, lsn cluster.LSN) {
	t.Helper()
	if err := m.Finish(txn, lsn); err != nil {
		t.Fatal(err)
	}
	if err := txn.Commit(); err != nil {
		t.Fatal(err)
	}
}

func stateHash(t testing.TB, s *store.Store) [16]byte {
	t.Helper()
	h, err := s.StateHash()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Replicas that applied the same log have the same rows, whatever their batches were and however often they
// crashed and replayed; a crash leaves exactly a prefix, and never less than what was called durable.
func TestReplicasAgree(t *testing.T) {
	for range 3 {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		log, hashes := writeLog(t, seed, 400)
		rng := rand.New(rand.NewPCG(seed, 2))
		for _, maxBatch := range []int{1, 32} {
			replay(t, seed, rng, log, hashes, maxBatch)
		}
	}
}

func replay(t *testing.T, seed uint64, rng *rand.Rand, log []logged, hashes [][16]byte, maxBatch int) {
	t.Helper()
	fs := vfs.NewCrashableMem()
	s := openStore(t, fs)
	l := cluster.LSN(0)
	m, err := New(0, everything, s)
	if err != nil {
		t.Fatal(err)
	}
	txn := s.NewTxn()
	var out Actions
	crashes := 0
	for int(l) < len(log) {
		n := min(1+rng.IntN(maxBatch), len(log)-int(l))
		out.Reset()
		for range n {
			l++
			applyOne(t, m, txn, l, &log[l-1], &out)
		}
		finish(t, m, txn, l)
		if got := stateHash(t, s); got != hashes[l-1] {
			t.Fatalf("seed %d, batches up to %d: the rows differ at %d", seed, maxBatch, l)
		}
		if rng.IntN(10) == 0 {
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if crashes < 8 && rng.IntN(12) == 0 {
			crashes++
			durable, err := s.DurableLSN()
			if err != nil {
				t.Fatal(err)
			}
			crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			fs = crashed
			s = openStore(t, fs)
			if l, err = s.AppliedLSN(); err != nil {
				t.Fatal(err)
			}
			if l < durable {
				t.Fatalf("seed %d: %d was called durable and %d is left", seed, durable, l)
			}
			if l > 0 && stateHash(t, s) != hashes[l-1] {
				t.Fatalf("seed %d: what is left after a crash at %d is no prefix", seed, l)
			}
			if m, err = New(0, everything, s); err != nil {
				t.Fatal(err)
			}
			txn = s.NewTxn()
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
