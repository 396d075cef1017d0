package logstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"perdure/control/cluster"
	"perdure/nodes/logserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var sequencer = cluster.GenNodeID{ID: 3, Generation: 9}

func open(t testing.TB, fs vfs.FS, change func(*Config)) *Store {
	t.Helper()
	s, err := tryOpen(fs, change)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func tryOpen(fs vfs.FS, change func(*Config)) (*Store, error) {
	cfg := Config{Dir: "log", FS: fs, Logger: slog.New(slog.DiscardHandler), HintInterval: time.Hour}
	if change != nil {
		change(&cfg)
	}
	return Open(cfg)
}

// owner collects the ends of writes.
type owner struct {
	mu   sync.Mutex
	ends []error
	wake chan struct{}
}

func newOwner() *owner { return &owner{wake: make(chan struct{}, 1)} }

func (o *owner) WriteDone(_ *logserver.Write, err error) {
	o.mu.Lock()
	o.ends = append(o.ends, err)
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// count is how many writes have ended.
func (o *owner) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.ends)
}

// wait waits for n ends in all and returns them.
func (o *owner) wait(t testing.TB, n int) []error {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		o.mu.Lock()
		ends := slices.Clone(o.ends)
		o.mu.Unlock()
		if len(ends) >= n {
			return ends
		}
		select {
		case <-o.wake:
		case <-limit:
			t.Fatalf("%d of %d writes ended within a minute", len(ends), n)
		}
	}
}

func records(first cluster.Offset, n int) []logserver.Record {
	rs := make([]logserver.Record, n)
	for i := range rs {
		o := uint64(first) + uint64(i)
		rs[i] = logserver.Record{Key: o * 7, Keyed: o%2 == 0, CreatedAt: o + 1000, Payload: []byte(fmt.Sprintf("payload of %d", o))}
	}
	return rs
}

func store(t testing.TB, s *Store, id cluster.LogletID, first cluster.Offset, n int) {
	t.Helper()
	must(t, s, &logserver.Write{Loglet: id, Kind: logserver.WriteRecords, First: first, Records: records(first, n), Sequencer: sequencer})
}

func must(t testing.TB, s *Store, w *logserver.Write) {
	t.Helper()
	o := newOwner()
	w.Owner = o
	if err := s.Enqueue(w); err != nil {
		t.Fatalf("enqueue: %v", err)
	}
	if err := o.wait(t, 1)[0]; err != nil {
		t.Fatalf("write: %v", err)
	}
}

func load(t testing.TB, s *Store, id cluster.LogletID) logserver.Meta {
	t.Helper()
	m, err := s.Load(id)
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	return m
}

func TestReadBack(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs, nil)
	store(t, s, 5, 1, 10)
	store(t, s, 6, 1, 3) // a neighbour must not be seen
	store(t, s, 5, 14, 2)
	check := func(s *Store) {
		t.Helper()
		found, next, err := s.Read(5, 3, 15, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		want := append(records(3, 8), records(14, 1)...)
		if len(found) != len(want) || next != 15 {
			t.Fatalf("%d records up to %d, want %d up to 15", len(found), next, len(want))
		}
		for i, f := range found {
			if f.Record.Key != want[i].Key || f.Record.Keyed != want[i].Keyed || f.Record.CreatedAt != want[i].CreatedAt || string(f.Record.Payload) != string(want[i].Payload) {
				t.Errorf("record %d is %+v, want %+v", f.Offset, f.Record, want[i])
			}
		}
		ranges, err := s.Digest(5, 1, 100)
		if err != nil || !slices.Equal(ranges, []logserver.Range{{From: 1, To: 11}, {From: 14, To: 16}}) {
			t.Errorf("digest %v, %v", ranges, err)
		}
		if m := load(t, s, 5); m != (logserver.Meta{Sequencer: sequencer, LocalTail: 16}) && m != (logserver.Meta{Sequencer: sequencer, LocalTail: 16, GlobalTail: 1}) {
			t.Errorf("meta %+v", m)
		}
	}
	check(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check(open(t, fs, nil))
}

func TestReadBudget(t *testing.T) {
	s := open(t, vfs.NewMem(), nil)
	store(t, s, 5, 1, 10)
	found, next, err := s.Read(5, 2, 11, 1)
	if err != nil || len(found) != 1 || found[0].Offset != 2 || next != 3 {
		t.Errorf("read with budget 1: %v up to %d, %v; want record 2 up to 3", found, next, err)
	}
}

// TestReadUpToDamage: what comes before a damaged record can still be read.
func TestReadUpToDamage(t *testing.T) {
	s := open(t, vfs.NewMem(), nil)
	store(t, s, 5, 1, 10)
	key := dataKey(5, 6)
	v := encoded(key, &records(6, 1)[0])
	v[len(v)-1] ^= 1
	if err := s.db.Set(key, v, pebble.Sync); err != nil {
		t.Fatal(err)
	}
	found, next, err := s.Read(5, 1, 11, 1<<20)
	if err != nil || len(found) != 5 || next != 6 {
		t.Errorf("%d records up to %d, %v; want 5 up to 6", len(found), next, err)
	}
	if found, next, err := s.Read(5, 6, 11, 1<<20); !errors.Is(err, ErrCorrupt) || len(found) != 0 || next != 6 {
		t.Errorf("%d records up to %d at the damage, %v; want ErrCorrupt", len(found), next, err)
	}
	if found, _, err := s.Read(5, 7, 11, 1<<20); err != nil || len(found) != 4 {
		t.Errorf("%d records behind the damage, %v; want 4", len(found), err)
	}
}

func TestSealTrimAndMeta(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs, nil)
	store(t, s, 5, 1, 10)
	must(t, s, &logserver.Write{Loglet: 5, Kind: logserver.WriteTrim, TrimPoint: 4, GlobalTail: 9})
	must(t, s, &logserver.Write{Loglet: 5, Kind: logserver.WriteSeal, GlobalTail: 11})
	want := logserver.Meta{Sequencer: sequencer, LocalTail: 11, GlobalTail: 11, TrimPoint: 4, Sealed: true}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, fs, nil)
	if m := load(t, s, 5); m != want {
		t.Errorf("meta %+v, want %+v", m, want)
	}
	if found, _, err := s.Read(5, 1, 11, 1<<20); err != nil || len(found) != 6 || found[0].Offset != 5 {
		t.Errorf("%d records after trim, %v", len(found), err)
	}
	must(t, s, &logserver.Write{Loglet: 5, Kind: logserver.WriteTrim, TrimPoint: 10})
	if m := load(t, s, 5); m.LocalTail != 11 || m.TrimPoint != 10 {
		t.Errorf("meta %+v after everything was trimmed, want tail 11", m)
	}
}

func TestMarker(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs, nil)
	if _, ok, err := s.Marker(); ok || err != nil {
		t.Fatalf("fresh disk has marker: %v, %v", ok, err)
	}
	want := Marker{Node: 4, StorageID: "01J", Fingerprint: 1<<63 + 5}
	if err := s.SetMarker(want); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if got, ok, err := open(t, fs, nil).Marker(); got != want || !ok || err != nil {
		t.Errorf("marker %+v, %v, %v; want %+v", got, ok, err, want)
	}
}

func TestCloseAnswersEveryWrite(t *testing.T) {
	s := open(t, vfs.NewMem(), nil)
	o := newOwner()
	const n = 500
	taken := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range n {
			w := &logserver.Write{Loglet: 1, Kind: logserver.WriteRecords, First: cluster.Offset(i + 1), Records: records(1, 1), Owner: o}
			if err := s.Enqueue(w); err != nil {
				if !errors.Is(err, ErrClosed) {
					t.Errorf("enqueue: %v", err)
				}
				return
			}
			taken++
		}
	}()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	<-done
	for _, err := range o.wait(t, taken) {
		if err != nil {
			t.Errorf("write that was taken before close: %v", err)
		}
	}
}

// TestCrash cuts the power at random moments: what was answered must be there, what was not may be,
// and offsets have no holes.
func TestCrash(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	fs := vfs.NewCrashableMem()
	tails := map[cluster.LogletID]cluster.Offset{}
	for round := range 25 {
		s, err := tryOpen(fs, nil)
		if err != nil {
			t.Fatalf("round %d: open: %v", round, err)
		}
		next := map[cluster.LogletID]cluster.Offset{}
		for id := cluster.LogletID(1); id <= 3; id++ {
			m := load(t, s, id)
			if m.LocalTail < max(tails[id], 1) || m.DataLoss {
				t.Fatalf("round %d: loglet %d recovered %+v, but %d was durable", round, id, m, tails[id])
			}
			found, _, err := s.Read(id, 1, m.LocalTail, 1<<30)
			if err != nil || len(found) != int(m.LocalTail-1) {
				t.Fatalf("round %d: loglet %d has %d records below tail %d, %v", round, id, len(found), m.LocalTail, err)
			}
			next[id] = m.LocalTail
		}
		var mu sync.Mutex
		acked := map[cluster.LogletID]cluster.Offset{}
		o := ackOwner(func(w *logserver.Write, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				acked[w.Loglet] = w.Next()
			}
		})
		crashAt := rng.IntN(60)
		var after vfs.FS
		for i := range 80 {
			id, n := cluster.LogletID(1+rng.IntN(3)), 1+rng.IntN(20)
			if err := s.Enqueue(&logserver.Write{Loglet: id, Kind: logserver.WriteRecords, First: next[id], Records: records(next[id], n), Owner: o}); err != nil {
				t.Fatal(err)
			}
			next[id] += cluster.Offset(n)
			if rng.IntN(10) == 0 {
				if err := s.tails.flush(); err != nil {
					t.Fatal(err)
				}
			}
			if i == crashAt {
				mu.Lock()
				for id, tail := range acked {
					tails[id] = tail
				}
				mu.Unlock()
				after = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng})
			}
		}
		_ = s.Close()
		fs = after.(*vfs.MemFS)
	}
}

type ackOwner func(*logserver.Write, error)

func (f ackOwner) WriteDone(w *logserver.Write, err error) { f(w, err) }

// TestLostTailIsNoticed takes the end of the write-ahead log away, as a disk does that lies about
// what it has made durable.
func TestLostTailIsNoticed(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs, nil)
	store(t, s, 5, 1, 10)
	before := clone(t, fs, "log/db")
	store(t, s, 5, 11, 10)
	if err := s.Close(); err != nil { // notes tail 21 outside of the database
		t.Fatal(err)
	}
	if err := fs.RemoveAll("log/db"); err != nil {
		t.Fatal(err)
	}
	if _, err := vfs.Clone(before, fs, "log/db", "log/db"); err != nil {
		t.Fatal(err)
	}
	if m := load(t, open(t, fs, nil), 5); !m.DataLoss || m.LocalTail != 11 {
		t.Errorf("meta %+v, want data loss with tail 11", m)
	}
}

// A disk that loses a seal must not make the loglet one that takes appends again: with another server, which was not
// asked for the seal, it would be a write quorum for a sequencer that does not know that it was replaced.
func TestLostSealIsNoticed(t *testing.T) {
	for _, n := range []int{0, 10} {
		fs := vfs.NewMem()
		s := open(t, fs, nil)
		store(t, s, 4, 1, 1) // another loglet, which loses nothing
		if n > 0 {
			store(t, s, 5, 1, n)
		}
		before := clone(t, fs, "log/db")
		must(t, s, &logserver.Write{Loglet: 5, Kind: logserver.WriteSeal})
		if err := s.Close(); err != nil { // notes the seal outside of the database
			t.Fatal(err)
		}
		if m := load(t, open(t, clone(t, fs, "log"), nil), 5); !m.Sealed || m.DataLoss {
			t.Errorf("%d records: meta %+v, want a seal and no loss", n, m)
		}
		if err := fs.RemoveAll("log/db"); err != nil {
			t.Fatal(err)
		}
		if _, err := vfs.Clone(before, fs, "log/db", "log/db"); err != nil {
			t.Fatal(err)
		}
		lossy := open(t, fs, nil)
		if m := load(t, lossy, 5); !m.DataLoss {
			t.Errorf("%d records: meta %+v, want data loss", n, m)
		}
		if m := load(t, lossy, 4); m.DataLoss {
			t.Errorf("%d records: meta %+v of a loglet that lost nothing", n, m)
		}
	}
}

func clone(t testing.TB, fs vfs.FS, dir string) vfs.FS {
	t.Helper()
	to := vfs.NewMem()
	if err := to.MkdirAll("log", 0o755); err != nil {
		t.Fatal(err)
	}
	if ok, err := vfs.Clone(fs, to, dir, dir); err != nil || !ok {
		t.Fatalf("clone: %v %v", ok, err)
	}
	return to
}

// TestBitFlips flips single bits all over the files of a store: each flip must lead to an error, to
// declared data loss, or to no change of what was durable, never to silently missing or wrong records.
func TestBitFlips(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	fs := vfs.NewMem()
	s := open(t, zeroTailFS{fs}, nil)
	for i := range 20 {
		store(t, s, 5, cluster.Offset(1+i*10), 10)
		if i == 10 {
			if err := s.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.tails.flush(); err != nil {
		t.Fatal(err)
	}
	image := clone(t, fs, "log") // as after a power cut: no orderly close
	var damaged, noticed int
	for range 80 {
		work := clone(t, image, "log")
		if !flipBit(t, work, rng) {
			continue
		}
		damaged++
		if !intact(t, work, 200) {
			noticed++
		}
	}
	if damaged < 50 || noticed == 0 {
		t.Errorf("%d files were damaged, %d times it was noticed", damaged, noticed)
	}
}

// zeroTailFS makes files of the write-ahead log longer than what is in them, as a real file system does for walFS.
type zeroTailFS struct{ vfs.FS }

const zeroTail = 1 << 20

func (z zeroTailFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := z.FS.Create(name, c)
	if err == nil && c == walCategory {
		_, err = f.WriteAt(make([]byte, zeroTail), 0)
	}
	return f, err
}

// TestLogFilesGrowInSteps: a small write mostly leaves the length of its log file alone, and what follows the last batch in
// it does no harm to those who open the store after a crash.
func TestLogFilesGrowInSteps(t *testing.T) {
	dir := t.TempDir()
	s := open(t, vfs.Default, func(c *Config) { c.Dir = dir })
	lengths := map[int64]bool{}
	for i := range 100 {
		store(t, s, 5, cluster.Offset(1+i*10), 10)
		names, err := filepath.Glob(filepath.Join(dir, "db", "*.log"))
		if err != nil || len(names) != 1 {
			t.Fatalf("files of the log: %v, %v", names, err)
		}
		info, err := os.Stat(names[0])
		if err != nil {
			t.Fatal(err)
		}
		lengths[info.Size()] = true
	}
	if len(lengths) > 2 {
		t.Errorf("the log file had %d lengths in 100 writes", len(lengths))
	}
	after := t.TempDir()
	if _, err := vfs.Clone(vfs.Default, vfs.Default, dir, after); err != nil {
		t.Fatal(err)
	}
	s = open(t, vfs.Default, func(c *Config) { c.Dir = after })
	m := load(t, s, 5)
	found, _, err := s.Read(5, 1, m.LocalTail, 1<<30)
	if err != nil || m.LocalTail != 1001 || len(found) != 1000 || m.DataLoss {
		t.Errorf("after a crash: %+v with %d records, %v; want tail 1001", m, len(found), err)
	}
}

// flipBit flips one bit of a random log or table file, among its first bytes: the ends of log files are empty.
func flipBit(t testing.TB, fs vfs.FS, rng *rand.Rand) bool {
	t.Helper()
	names, err := fs.List("log/db")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, ".log") && !strings.HasSuffix(n, ".sst") })
	path := fs.PathJoin("log/db", names[rng.IntN(len(names))])
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return false
	}
	at := rng.Int64N(min(info.Size(), 16<<10))
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	b[0] ^= 1 << rng.IntN(8)
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	return true
}

// intact opens a damaged store. It reports whether everything was there; being told of the damage is
// fine, a wrong or missing record without a word is not.
func intact(t testing.TB, fs vfs.FS, n int) (whole bool) {
	t.Helper()
	s, err := tryOpen(fs, nil)
	if err != nil {
		return false
	}
	defer func() {
		if recover() != nil { // Pebble gives up by panicking through our logger
			whole = false
		}
		_ = s.Close()
	}()
	m, err := s.Load(5)
	if err != nil || m.DataLoss {
		return false
	}
	var found []logserver.Found
	for next := cluster.Offset(1); next < m.LocalTail; {
		var part []logserver.Found
		if part, next, err = s.Read(5, next, m.LocalTail, 1<<30); err != nil {
			return false
		}
		found = append(found, part...)
	}
	if len(found) != n {
		t.Fatalf("%d of %d durable records, tail %d, and no error", len(found), n, m.LocalTail)
	}
	want := records(1, n)
	for i, f := range found {
		if string(f.Record.Payload) != string(want[i].Payload) {
			t.Fatalf("record %d is %q", f.Offset, f.Record.Payload)
		}
	}
	return true
}

// TestFailedSyncEndsTheHandle has an fsync of the write-ahead log fail once: no write is acknowledged
// afterwards, although the disk works again.
func TestFailedSyncEndsTheHandle(t *testing.T) {
	var fail sync.Map
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSyncTo) && strings.HasSuffix(op.Path, ".log") {
			if _, on := fail.LoadAndDelete("on"); on {
				return errorfs.ErrInjected
			}
		}
		return nil
	})
	fatal := make(chan error, 1)
	s := open(t, errorfs.Wrap(vfs.NewMem(), inject), func(c *Config) { c.OnFatal = func(err error) { fatal <- err } })
	store(t, s, 5, 1, 1)
	fail.Store("on", true)
	o := newOwner()
	for i := range 10 {
		w := &logserver.Write{Loglet: 5, Kind: logserver.WriteRecords, First: cluster.Offset(2 + i), Records: records(2, 1), Owner: o}
		if err := s.Enqueue(w); err != nil {
			o.WriteDone(w, err)
		}
		if errors.Is(o.wait(t, i+1)[i], ErrFailed) {
			continue
		}
		t.Errorf("write %d after the failure ended with %v", i, o.wait(t, i+1)[i])
	}
	select {
	case <-fatal:
	case <-time.After(time.Minute):
		t.Error("the owner was not told")
	}
	if err := s.Enqueue(&logserver.Write{Loglet: 5, Owner: o}); !errors.Is(err, ErrFailed) {
		t.Errorf("enqueue after failure: %v", err)
	}
}

// TestFailureWhileClosing has the disk fail when Close has begun already: what was taken and did not become durable must not
// be acknowledged.
func TestFailureWhileClosing(t *testing.T) {
	syncing, release := make(chan struct{}), make(chan struct{})
	var armed atomic.Bool
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData && strings.HasSuffix(op.Path, ".log") && armed.CompareAndSwap(true, false) {
			syncing <- struct{}{}
			<-release
			return errorfs.ErrInjected
		}
		return nil
	})
	s := open(t, errorfs.Wrap(vfs.NewMem(), inject), nil)
	store(t, s, 5, 1, 1)
	armed.Store(true)
	o := newOwner()
	write := func(first cluster.Offset) error {
		return s.Enqueue(&logserver.Write{Loglet: 5, Kind: logserver.WriteRecords, First: first, Records: records(first, 1), Owner: o})
	}
	if err := write(2); err != nil {
		t.Fatal(err)
	}
	<-syncing
	if err := write(3); err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = s.Close()
	}()
	for o := newOwner(); s.Enqueue(&logserver.Write{Loglet: 6, Kind: logserver.WriteSeal, Owner: o}) == nil; {
		runtime.Gosched()
	}
	close(release)
	<-closed
	for i, err := range o.wait(t, 2) {
		if !errors.Is(err, ErrFailed) {
			t.Errorf("write %d ended with %v after its fsync had failed", i+2, err)
		}
	}
}

// TestErrorsOfTheLogAreToldAtOnce: Pebble may tell of them much later, and not by returning them.
func TestErrorsOfTheLogAreToldAtOnce(t *testing.T) {
	failing := errorfs.OpKind(-1)
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == failing {
			return errorfs.ErrInjected
		}
		return nil
	})
	told := 0
	fs := walFS{FS: errorfs.Wrap(vfs.NewMem(), inject), failed: func(err error) {
		if !errors.Is(err, errorfs.ErrInjected) {
			t.Errorf("told of %v", err)
		}
		told++
	}}
	for _, category := range []vfs.DiskWriteCategory{walCategory, vfs.WriteCategoryUnspecified} {
		f, err := fs.Create("file", category)
		if err != nil {
			t.Fatal(err)
		}
		want := 0
		for kind, do := range map[errorfs.OpKind]func() error{
			errorfs.OpFileWrite:     func() error { _, err := f.Write([]byte("x")); return err },
			errorfs.OpFileSyncData:  f.SyncData,
			errorfs.OpCreate:        func() error { _, err := fs.Create("other", category); return err },
			errorfs.OpReuseForWrite: func() error { _, err := fs.ReuseForWrite("file", "again", category); return err },
		} {
			told, failing = 0, kind
			if err := do(); !errors.Is(err, errorfs.ErrInjected) {
				t.Errorf("operation %d returned %v", kind, err)
			}
			if want = 0; category == walCategory {
				want = 1
			}
			if told != want {
				t.Errorf("operation %d of category %q: told %d times, want %d", kind, category, told, want)
			}
		}
		failing = -1
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFullDiskEndsTheHandle lets the tables of the database not be written, while its write-ahead log is.
func TestFullDiskEndsTheHandle(t *testing.T) {
	var full atomic.Bool
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind == errorfs.OpFileWrite && strings.HasSuffix(op.Path, ".sst") {
			return syscall.ENOSPC
		}
		return nil
	})
	fatal := make(chan error, 1)
	s := open(t, errorfs.Wrap(vfs.NewMem(), inject), func(c *Config) {
		c.MemTableSize, c.OnFatal = 256<<10, func(err error) { fatal <- err }
	})
	t.Cleanup(func() { full.Store(false) }) // before Close, which then leaves nothing behind
	full.Store(true)
	o := newOwner()
	big := logserver.Record{Payload: make([]byte, 100<<10)}
	if _, err := rand.NewChaCha8([32]byte{}).Read(big.Payload); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := 0; i < 1000 && err == nil; i++ {
		w := &logserver.Write{Loglet: 5, Kind: logserver.WriteRecords, First: cluster.Offset(1 + i), Records: []logserver.Record{big}, Sequencer: sequencer, Owner: o}
		if err = s.Enqueue(w); err == nil {
			err = o.wait(t, i+1)[i]
		}
	}
	if !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("writing to a full disk ended with %v, want ErrFailed and the reason", err)
	}
	select {
	case <-fatal:
	case <-time.After(time.Minute):
		t.Error("the owner was not told")
	}
}

// TestDirectoryOfAnInterruptedStart: a process that was killed before it had synced the parent of the directory that it made
// leaves a directory which is gone after a power cut, with all that later ones write into it.
func TestDirectoryOfAnInterruptedStart(t *testing.T) {
	mem := vfs.NewCrashableMem()
	if err := mem.MkdirAll("log", 0o700); err != nil {
		t.Fatal(err)
	}
	store(t, open(t, mem, nil), 5, 1, 10)
	if m := load(t, open(t, mem.CrashClone(vfs.CrashCloneCfg{}), nil), 5); m.LocalTail != 11 {
		t.Errorf("after a power cut %+v, want 10 records", m)
	}
}

// TestOpenOnAFullDisk: what the write-ahead log has does not fit into tables. Opening must fail, not wait for room.
func TestOpenOnAFullDisk(t *testing.T) {
	mem := vfs.NewCrashableMem()
	s := open(t, mem, nil)
	store(t, s, 5, 1, 10)
	var full atomic.Bool
	full.Store(true)
	fs := errorfs.Wrap(mem.CrashClone(vfs.CrashCloneCfg{}), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind == errorfs.OpFileWrite && strings.HasSuffix(op.Path, ".sst") {
			return syscall.ENOSPC
		}
		return nil
	}))
	result := make(chan error, 1)
	go func() {
		_, err := tryOpen(fs, nil)
		result <- err
	}()
	select {
	case err := <-result:
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("opening on a full disk: %v, want the reason", err)
		}
	case <-time.After(time.Minute):
		t.Error("opening on a full disk did not end within a minute")
	}
	full.Store(false) // what was given up ends
}

// smallDisk has as much room as the test says.
type smallDisk struct {
	vfs.FS
	free atomic.Uint64
}

func (d *smallDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: d.free.Load(), TotalBytes: 10 << 30}, nil
}

// TestNearlyFullDisk: no records are taken, but seals and trims, which make room; with room it goes on.
func TestNearlyFullDisk(t *testing.T) {
	fs := &smallDisk{FS: vfs.NewMem()}
	fs.free.Store(defaultMinFree)
	s := open(t, fs, func(c *Config) { c.HintInterval = time.Millisecond })
	await := func(want bool) {
		t.Helper()
		for limit := time.Now().Add(time.Minute); s.Backlogged() != want; runtime.Gosched() {
			if time.Now().After(limit) {
				t.Fatalf("backlogged is %v with %d bytes free", !want, fs.free.Load())
			}
		}
	}
	if s.Backlogged() {
		t.Error("a store with room is backlogged")
	}
	store(t, s, 5, 1, 10)
	fs.free.Store(defaultMinFree - 1)
	await(true)
	must(t, s, &logserver.Write{Loglet: 5, Kind: logserver.WriteTrim, TrimPoint: 4})
	must(t, s, &logserver.Write{Loglet: 5, Kind: logserver.WriteSeal})
	fs.free.Store(defaultMinFree)
	s.checkRoom()
	if !s.Backlogged() {
		t.Error("a little room is room already: it would go to and fro")
	}
	fs.free.Store(defaultMinFree - 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, fs, nil)
	if !s.Backlogged() {
		t.Error("a store that is opened on a nearly full disk takes records")
	}
	_ = s.Close()
	s = open(t, fs, func(c *Config) { c.HintInterval = time.Millisecond })
	fs.free.Store(defaultMinFree + defaultMinFree/8)
	await(false)
}

// TestFullDiskFreesWhoWaitsForRoom: the writer may wait in the database for room, when the disk is found to be full. Every write
// that was taken must be answered all the same, and Close must return.
func TestFullDiskFreesWhoWaitsForRoom(t *testing.T) {
	before := goleak.IgnoreCurrent()
	gate := make(chan struct{})
	release := sync.OnceFunc(func() { close(gate) })
	var full atomic.Bool
	full.Store(true)
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind != errorfs.OpFileWrite || !strings.HasSuffix(op.Path, ".sst") {
			return nil
		}
		<-gate
		if full.Load() {
			return syscall.ENOSPC
		}
		return nil
	})
	s := open(t, errorfs.Wrap(vfs.NewMem(), inject), func(c *Config) { c.MemTableSize = 256 << 10 })
	t.Cleanup(func() { full.Store(false); release() }) // what was left as it is ends
	o := newOwner()
	payload := make([]byte, 100<<10)
	if _, err := rand.NewChaCha8([32]byte{}).Read(payload); err != nil {
		t.Fatal(err)
	}
	writes := 0
	write := func() {
		t.Helper()
		writes++
		w := &logserver.Write{Loglet: 5, Kind: logserver.WriteRecords, First: cluster.Offset(writes), Records: []logserver.Record{{Payload: payload}}, Sequencer: sequencer, Owner: o}
		if err := s.Enqueue(w); err != nil {
			t.Fatal(err)
		}
	}
	stalled := func() bool {
		var m dto.Metric
		if err := s.metrics.stalls.Write(&m); err != nil {
			t.Fatal(err)
		}
		return m.GetCounter().GetValue() > 0
	}
	for !stalled() {
		if write(); writes > 200 {
			t.Fatal("the database never waits for room")
		}
		for deadline := time.Now().Add(time.Minute); !stalled() && o.count() < writes; <-time.After(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("write %d neither ends nor waits for room", writes)
			}
		}
	}
	for range 10 { // behind the one that waits
		write()
	}
	release()
	ends := o.wait(t, writes)
	if err := ends[writes-1]; !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the last write ended with %v, want ErrFailed and the reason", err)
	}
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Error("Close did not return within a minute")
	}
	full.Store(false)
	left := goleak.Find(before)
	for deadline := time.Now().Add(time.Minute); left != nil && time.Now().Before(deadline); left = goleak.Find(before) {
	}
	if left != nil {
		t.Errorf("when the disk has room: %v", left)
	}
}

func TestBacklog(t *testing.T) {
	s := open(t, vfs.NewMem(), func(c *Config) { c.QueueBytes = 1000 })
	if s.Backlogged() {
		t.Error("empty store is backlogged")
	}
	s.queued.Add(2000)
	if !s.Backlogged() {
		t.Error("store with 2000 of 1000 bytes is not backlogged")
	}
	s.queued.Add(-2000)
}

func FuzzRecord(f *testing.F) {
	key := dataKey(5, 9)
	for _, r := range append(records(9, 2), logserver.Record{Payload: bytes.Repeat([]byte("again "), 1000)}) {
		f.Add(key, encoded(key, &r))
	}
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		r, err := parseRecord(key, value)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v is not ErrCorrupt", err)
			}
			return
		}
		again, err := parseRecord(key, encoded(key, &r))
		if err != nil || again.Key != r.Key || again.Keyed != r.Keyed || again.CreatedAt != r.CreatedAt || !bytes.Equal(again.Payload, r.Payload) {
			t.Errorf("%x decodes to a record that reads back as another: %v", value, err)
		}
	})
}

// encoded is the stored form of a record.
func encoded(key []byte, r *logserver.Record) []byte {
	stored, flags, _ := pack(r.Payload, nil)
	v := make([]byte, recordHeaderLen+len(stored))
	putRecord(v, key, r, stored, flags)
	return v
}

// Large payloads come back as they were, and are stored small when they can be.
func TestCompression(t *testing.T) {
	noise := make([]byte, 8<<10)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	key := dataKey(1, 1)
	for name, c := range map[string]struct {
		payload []byte
		most    int // bytes stored
	}{
		"short":     {bytes.Repeat([]byte("a"), compressFrom-1), recordHeaderLen + compressFrom - 1},
		"text":      {bytes.Repeat([]byte("durable "), 8<<10), 8 << 10},
		"noise":     {noise, recordHeaderLen + len(noise)},
		"threshold": {bytes.Repeat([]byte("a"), compressFrom), 200},
	} {
		v := encoded(key, &logserver.Record{Payload: c.payload})
		if len(v) > c.most {
			t.Errorf("%s: %d bytes are stored as %d, want at most %d", name, len(c.payload), len(v), c.most)
		}
		r, err := parseRecord(key, v)
		if err != nil || !bytes.Equal(r.Payload, c.payload) {
			t.Errorf("%s: read back %d bytes, %v", name, len(r.Payload), err)
		}
		v[len(v)-1] ^= 4
		if _, err := parseRecord(key, v); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: a flipped bit gives %v", name, err)
		}
	}
}

// TestTailHintsEndWithAnError: after a failed fsync the file is not touched any more.
func TestTailHintsEndWithAnError(t *testing.T) {
	var fail bool
	ops := 0
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpFileSyncData {
			ops++
		}
		if fail && op.Kind == errorfs.OpFileSyncData {
			return errorfs.ErrInjected
		}
		return nil
	})
	tails, err := openTailHints(errorfs.Wrap(vfs.NewMem(), inject), tailsFile)
	if err != nil {
		t.Fatal(err)
	}
	advance := func(to cluster.Offset) {
		tails.advance([]*logserver.Write{{Loglet: 5, Kind: logserver.WriteRecords, First: 1, Records: make([]logserver.Record, to-1)}})
	}
	advance(10)
	fail = true
	if err := tails.flush(); !errors.Is(err, errorfs.ErrInjected) {
		t.Fatalf("flush with a failing fsync: %v", err)
	}
	fail = false
	before := ops
	advance(20)
	if err := tails.flush(); !errors.Is(err, errorfs.ErrInjected) {
		t.Errorf("flush after a failed fsync: %v, want its error", err)
	}
	if err := tails.close(); !errors.Is(err, errorfs.ErrInjected) {
		t.Errorf("close after a failed fsync: %v, want its error", err)
	}
	if ops != before {
		t.Errorf("%d writes and fsyncs after one had failed", ops-before)
	}
}

// TestTailHintsOfManyLoglets: a file that is large because there are many loglets is not written anew each time.
func TestTailHintsOfManyLoglets(t *testing.T) {
	made := 0
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpCreate {
			made++
		}
		return nil
	})
	fs := errorfs.Wrap(vfs.NewMem(), inject)
	tails, err := openTailHints(fs, tailsFile)
	if err != nil {
		t.Fatal(err)
	}
	const loglets = 2 * compactAbove / hintLen
	for tail := cluster.Offset(1); tail <= 6; tail++ {
		for id := range cluster.LogletID(loglets) {
			if tail > 1 && id > 100 {
				break
			}
			tails.advance([]*logserver.Write{{Loglet: id, Kind: logserver.WriteRecords, First: tail, Records: make([]logserver.Record, 1)}})
		}
		if err := tails.flush(); err != nil {
			t.Fatal(err)
		}
	}
	if made > 2 {
		t.Errorf("the file was made %d times in 6 flushes", made)
	}
	if err := tails.close(); err != nil {
		t.Fatal(err)
	}
	if tails, err = openTailHints(fs, tailsFile); err != nil {
		t.Fatal(err)
	}
	if got, other := tails.known[7].tail, tails.known[loglets-1].tail; got != 7 || other != 2 {
		t.Errorf("hints %d and %d, want 7 and 2", got, other)
	}
	if err := tails.close(); err != nil {
		t.Fatal(err)
	}
}

func FuzzTailHints(f *testing.F) {
	f.Add(appendHint(appendHint(nil, 7, hint{100, false}), 8, hint{1, true}))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for raw := range slices.Chunk(b, hintLen) {
			if id, h, ok := parseHint(raw); ok && string(appendHint(nil, id, h)) != string(raw) {
				t.Errorf("%x decodes to loglet %s %+v", raw, id, h)
			}
		}
	})
}

// TestRecordGolden pins the stored form: stores written by released versions must stay readable.
func TestRecordGolden(t *testing.T) {
	r := logserver.Record{Key: 0x0102030405060708, Keyed: true, CreatedAt: 0x1112131415161718, Payload: []byte("abc")}
	key := dataKey(0x2122232425262728, 0x31323334)
	v := encoded(key, &r)
	const wantKey, wantValue = "64212223242526272831323334", "0101181716151413121108070605040302015412b73e616263"
	if got := fmt.Sprintf("%x", key); got != wantKey {
		t.Errorf("key %s, want %s", got, wantKey)
	}
	if got := fmt.Sprintf("%x", v); got != wantValue {
		t.Errorf("value %s, want %s", got, wantValue)
	}
}
