package store

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"perdure/control/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestNewStoreSurvives: all names on the way to a new store are durable when it was opened, also of directories that were made
// for it.
func TestNewStoreSurvives(t *testing.T) {
	fs := vfs.NewCrashableMem()
	if err := fs.MkdirAll("data", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syncDir(fs, ""); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Dir: "data/partitions/3", FS: fs, Range: cluster.KeyRange{End: math.MaxUint64}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	crashed := fs.CrashClone(vfs.CrashCloneCfg{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := crashed.Stat("data/partitions/3/" + readyFile); err != nil {
		t.Error(err)
	}
}

// Without a write-ahead log of its own the store must come back from a crash as an exact prefix of the
// batches, and not shorter than what DurableLSN promised. Pebble documents this use little; the log is trimmed
// in trust of it.
func TestCrashLeavesAPrefix(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	for range 15 {
		fs := vfs.NewCrashableMem()
		s := openMem(t, fs)
		model := []map[string]string{{}} // by LSN
		for lsn := cluster.LSN(1); lsn < cluster.LSN(2+rng.IntN(60)); lsn++ {
			model = append(model, writeBatch(t, s, rng, lsn, model[lsn-1]))
			if rng.IntN(8) == 0 {
				if err := s.Flush(); err != nil {
					t.Fatal(err)
				}
			}
		}
		durable, err := s.DurableLSN()
		if err != nil {
			t.Fatal(err)
		}
		crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openMem(t, crashed)
		applied, err := s.AppliedLSN()
		if err != nil {
			t.Fatal(err)
		}
		if applied < durable {
			t.Fatalf("seed %d: durable %d, left %d", seed, durable, applied)
		}
		got := map[string]string{}
		err = s.Scan([]byte("k"), []byte("l"), func(k, v []byte) (bool, error) { got[string(k)] = string(v); return true, nil })
		if err != nil || fmt.Sprint(got) != fmt.Sprint(model[applied]) {
			t.Fatalf("seed %d: at %d the store has %v, want %v (%v)", seed, applied, got, model[applied], err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func writeBatch(t *testing.T, s *Store, rng *rand.Rand, lsn cluster.LSN, before map[string]string) map[string]string {
	t.Helper()
	after := map[string]string{}
	for k, v := range before {
		after[k] = v
	}
	txn := s.NewTxn()
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 1 + rng.IntN(6) {
		k := fmt.Sprint("k", rng.IntN(20))
		switch rng.IntN(5) {
		case 0:
			check(txn.Delete([]byte(k)))
			delete(after, k)
		case 1:
			end := k + "\xff"
			check(txn.DeleteRange([]byte(k), []byte(end)))
			for old := range after {
				if old >= k && old < end {
					delete(after, old)
				}
			}
		default:
			v := fmt.Sprint(lsn, rng.IntN(100))
			check(txn.Set([]byte(k), []byte(v)))
			after[k] = v
		}
	}
	check(txn.SetApplied(lsn, 0))
	check(txn.Commit())
	return after
}

func TestTransactionReadsItsOwnWritesAndWhatWasBefore(t *testing.T) {
	s := openMem(t, vfs.NewMem())
	defer s.Close()
	put(t, s, []byte("a"), []byte("1"), []byte("b"), []byte("2"), []byte("c"), []byte("3"))
	txn := s.NewTxn()
	if err := txn.Set([]byte("a"), []byte("new")); err != nil {
		t.Fatal(err)
	}
	if err := txn.Delete([]byte("b")); err != nil {
		t.Fatal(err)
	}
	get := func(f func([]byte) ([]byte, bool, error), k string) string {
		v, ok, err := f([]byte(k))
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return "-"
		}
		return string(v)
	}
	for k, want := range map[string][2]string{"a": {"new", "1"}, "b": {"-", "2"}, "c": {"3", "3"}, "d": {"-", "-"}, "": {"-", "-"}} {
		if k == "" {
			continue
		}
		if got := [2]string{get(txn.Get, k), get(txn.GetCommitted, k)}; got != want {
			t.Errorf("%s: %v, want %v", k, got, want)
		}
	}
	var scanned string
	if err := txn.Scan([]byte("a"), []byte("d"), func(k, v []byte) (bool, error) {
		scanned += string(k) + string(v) + " "
		return len(scanned) < 5, nil
	}); err != nil || scanned != "anew " {
		t.Fatalf("%q %v", scanned, err)
	}
	txn.Discard()
	if got := get(txn.Get, "a"); got != "1" {
		t.Fatalf("a discarded transaction reads %s", got)
	}
	if err := txn.DeleteRange([]byte("a"), []byte("c")); err != nil {
		t.Fatal(err)
	}
	if err := txn.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := get(txn.GetCommitted, "b"); got != "-" {
		t.Fatalf("after the commit the same transaction reads %s", got)
	}
	txn.Discard()
	if err := txn.Commit(); err != nil { // nothing to do
		t.Fatal(err)
	}
}

// Readers that are under way when the store closes end first; later ones are refused.
func TestCloseWaitsForReaders(t *testing.T) {
	s := openMem(t, vfs.NewMem())
	for i := range 100 {
		var k [8]byte
		binary.BigEndian.PutUint64(k[:], uint64(i))
		put(t, s, append([]byte("k"), k[:]...), []byte("v"))
	}
	started := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			once := false
			for {
				err := s.Scan([]byte("k"), []byte("l"), func(_, _ []byte) (bool, error) { return true, nil })
				if !once {
					once = true
					started <- struct{}{}
				}
				if err == ErrClosed {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 4 {
		<-started
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}

// A crash at any moment of the creation leaves a directory that can be opened, and a store that was
// opened is not taken for an incomplete one.
func TestCrashDuringCreation(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 4))
	for i := range 60 {
		mem := vfs.NewCrashableMem()
		ops, at := 0, i
		var crashed *vfs.MemFS
		fs := vfs.WithLogging(mem, func(string, ...any) {
			if ops++; ops == at && crashed == nil {
				crashed = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			}
		})
		s := openMem(t, fs)
		if crashed == nil { // after the creation: what is durable now has to stay
			put(t, s, []byte("a"), []byte("b"))
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			crashed = mem.CrashClone(vfs.CrashCloneCfg{RNG: rng})
			at = 0
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openMem(t, crashed)
		if _, ok, err := s.Get([]byte("a")); err != nil || ok != (at == 0) {
			t.Fatalf("seed %d, crash after %d operations: row %v, %v", seed, i, ok, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
