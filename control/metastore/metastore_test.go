package metastore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"perdure/control/metadata"
	"perdure/control/metadata/metadatatest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of the tests.
const patience = 20 * time.Second

// testLog gives the server's log to t until the test ends.
func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func open(t testing.TB, dir string) *Server {
	t.Helper()
	s, err := Open(Config{Dir: dir, Node: 1, Logger: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeServer(t, s) })
	return s
}

func closeServer(t testing.TB, s *Server) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func ready(t testing.TB, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

func openReady(t testing.TB, dir string) *Server {
	t.Helper()
	s := open(t, dir)
	if err := s.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	ready(t, s)
	return s
}

func mustPut(t testing.TB, s metadata.Store, key, data string) uint64 {
	t.Helper()
	v, err := s.Put(context.Background(), key, []byte(data), metadata.Any)
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return v
}

func expect(t testing.TB, s metadata.Store, key, data string, version uint64) {
	t.Helper()
	v, err := s.Get(context.Background(), key)
	if err != nil || string(v.Data) != data || v.Version != version {
		t.Fatalf("get %s: %q at %d, %v; want %q at %d", key, v.Data, v.Version, err, data, version)
	}
}

func TestServerKeepsTheContract(t *testing.T) {
	metadatatest.Run(t, func(t *testing.T) metadata.Store { return openReady(t, t.TempDir()) })
}

func TestValuesSurviveRestarts(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		s := openReady(t, dir)
		if fresh := s.Fresh(); fresh {
			t.Error("a bootstrapped store is fresh")
		}
		if i > 0 {
			expect(t, s, "k", fmt.Sprint(i-1), uint64(i))
			if v, err := s.Get(t.Context(), "deleted"); !errors.Is(err, metadata.ErrNotFound) || v.Version != uint64(2*i) {
				t.Errorf("deleted key: %v, %v", v, err)
			}
		}
		mustPut(t, s, "k", fmt.Sprint(i))
		mustPut(t, s, "deleted", "")
		if _, err := s.Delete(t.Context(), "deleted", metadata.Any); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			if err := s.Snapshot(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		w := s.Watch("")
		if v, ok := w.Get("k"); !ok || string(v.Data) != fmt.Sprint(i) {
			t.Errorf("cached %q, %v", v.Data, ok)
		}
		closeServer(t, s)
	}
}

// A server that is alone does not wait for an election timeout, neither on an empty directory nor after a restart.
func TestStartIsImmediate(t *testing.T) {
	dir := t.TempDir()
	start := func(bootstrap bool) {
		begin := time.Now()
		s, err := Open(Config{Dir: dir, Node: 1, Logger: testLog(t), ElectionTimeout: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		defer closeServer(t, s)
		opened := time.Since(begin)
		if bootstrap {
			if err := s.Bootstrap(); err != nil {
				t.Fatal(err)
			}
		}
		ready(t, s)
		led := time.Since(begin)
		mustPut(t, s, "k", "v")
		t.Logf("opened after %s, ready after %s, written after %s", opened, led, time.Since(begin))
	}
	start(true)
	start(false)
}

func TestFreshStoreWaits(t *testing.T) {
	s := open(t, t.TempDir())
	if !s.Fresh() {
		t.Error("an empty store is not fresh")
	}
	if _, err := s.Get(t.Context(), "k"); !errors.Is(err, metadata.ErrUnavailable) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Put(t.Context(), "k", nil, metadata.Any); !errors.Is(err, metadata.ErrUnavailable) {
		t.Errorf("put: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.WaitReady(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
}

func TestBootstrapTwice(t *testing.T) {
	s := openReady(t, t.TempDir())
	mustPut(t, s, "k", "v")
	if err := s.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	expect(t, s, "k", "v", 1)
	if m := s.Members(); len(m) != 1 || m[0].ID != s.Identity().ServerID() || !m[0].Voter {
		t.Errorf("members %v", m)
	}
}

// A crash between the two writes of raft's bootstrap leaves a term without a log; raft alone would never get out of
// that.
func TestHalfBootstrappedStoreRecovers(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	identity := s.Identity()
	closeServer(t, s)
	bolt, err := openBolt(Config{Dir: dir, Node: 1})
	if err != nil {
		t.Fatal(err)
	}
	stable, err := openStable(bolt, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stable.SetUint64(keyCurrentTerm, 1), bolt.Close()); err != nil {
		t.Fatal(err)
	}
	s = openReady(t, dir)
	mustPut(t, s, "k", "v")
	if s.Identity() != identity {
		t.Errorf("identity changed from %v to %v", identity, s.Identity())
	}
}

func TestDirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	if _, err := Open(Config{Dir: dir, Node: 1}); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("second open: %v", err)
	}
}

func TestDirectoryOfAnotherNode(t *testing.T) {
	dir := t.TempDir()
	closeServer(t, open(t, dir))
	if _, err := Open(Config{Dir: dir, Node: 2}); err == nil || !strings.Contains(err.Error(), "belongs to node N1") {
		t.Errorf("open by another node: %v", err)
	}
	closeServer(t, open(t, dir))
}

func TestWipedStoreHasAnotherIdentity(t *testing.T) {
	first, second := open(t, t.TempDir()), open(t, t.TempDir())
	if first.Identity() == second.Identity() || first.Identity().Node != second.Identity().Node {
		t.Errorf("identities %v and %v", first.Identity(), second.Identity())
	}
}

func TestMissingOrSwappedStoreIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	storage := s.Identity().Storage
	closeServer(t, s)
	for name, c := range map[string]Config{
		"wiped":   {Dir: t.TempDir(), Node: 1, ExpectStorage: storage},
		"swapped": {Dir: dir, Node: 1, ExpectStorage: "another"},
	} {
		if _, err := Open(c); !errors.Is(err, ErrLost) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "wiped" {
			if entries, err := os.ReadDir(c.Dir); err != nil || len(entries) != 0 {
				t.Errorf("refusing made %v in the directory, %v", entries, err)
			}
		}
	}
	s, err := Open(Config{Dir: dir, Node: 1, ExpectStorage: storage})
	if err != nil {
		t.Fatal(err)
	}
	closeServer(t, s)
}

func TestClosedServer(t *testing.T) {
	registry := prometheus.NewRegistry()
	s, err := Open(Config{Dir: t.TempDir(), Node: 1, Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	ready(t, s)
	mustPut(t, s, "k", "v")
	if families, err := registry.Gather(); err != nil || len(families) != 9 {
		t.Errorf("%d metrics, %v", len(families), err)
	}
	closeServer(t, s)
	closeServer(t, s)
	if families, err := registry.Gather(); err != nil || len(families) != 0 {
		t.Errorf("%d metrics after close, %v", len(families), err)
	}
	if err := s.confirm(); !errors.Is(err, metadata.ErrClosed) { // of a read that came before the end
		t.Errorf("confirm: %v", err)
	}
	if _, err := s.Get(t.Context(), "k"); !errors.Is(err, metadata.ErrClosed) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Put(t.Context(), "k", nil, metadata.Any); !errors.Is(err, metadata.ErrClosed) {
		t.Errorf("put: %v", err)
	}
	if err := s.Bootstrap(); !errors.Is(err, metadata.ErrClosed) {
		t.Errorf("bootstrap: %v", err)
	}
}

// Calls that are under way when the server closes all get an answer, and what was acknowledged is there afterwards.
func TestCloseUnderLoad(t *testing.T) {
	dir := t.TempDir()
	s := openReady(t, dir)
	var mu sync.Mutex
	acknowledged := map[string]uint64{}
	started := make(chan struct{}, 1000)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			key := fmt.Sprint("k", i)
			for {
				v, err := s.Put(context.Background(), key, []byte("v"), metadata.Any)
				if err != nil {
					if !errors.Is(err, metadata.ErrClosed) && !errors.Is(err, metadata.ErrUnknownOutcome) && !errors.Is(err, metadata.ErrUnavailable) {
						t.Errorf("put: %v", err)
					}
					return
				}
				mu.Lock()
				acknowledged[key] = v
				mu.Unlock()
				if _, err := s.Get(context.Background(), key); err != nil && !errors.Is(err, metadata.ErrClosed) && !errors.Is(err, metadata.ErrUnavailable) {
					t.Errorf("get: %v", err)
				}
				select {
				case started <- struct{}{}:
				default:
				}
			}
		})
	}
	for range 50 {
		<-started
	}
	closeServer(t, s)
	wg.Wait()
	s = openReady(t, dir)
	for key, version := range acknowledged {
		if v, err := s.Get(t.Context(), key); err != nil || v.Version < version || v.Version > version+1 {
			t.Errorf("%s is at version %d, %v; %d was acknowledged", key, v.Version, err, version)
		}
	}
}

func TestSnapshotsAndTruncation(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Config{Dir: dir, Node: 1, SnapshotThreshold: 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	ready(t, s)
	for round := range 3 {
		for i := range 30 {
			mustPut(t, s, fmt.Sprint("k", i), fmt.Sprint(round))
		}
		if err := s.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if first, err := s.logs.FirstIndex(); err != nil || first < 40 {
		t.Errorf("the log still begins at %d, %v", first, err)
	}
	closeServer(t, s)
	s = openReady(t, dir)
	for i := range 30 {
		expect(t, s, fmt.Sprint("k", i), "2", 3)
	}
}

// copyDir makes a copy of a closed store.
func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestDamagedSnapshotIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := openReady(t, dir)
	mustPut(t, s, "k", "v")
	if err := s.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	closeServer(t, s)
	for _, name := range []string{"state.bin", "meta.json"} {
		damaged := copyDir(t, dir)
		paths, err := filepath.Glob(filepath.Join(damaged, snapshotsDir, "*", name))
		if err != nil || len(paths) != 1 {
			t.Fatalf("snapshot files %v, %v", paths, err)
		}
		data, err := os.ReadFile(paths[0])
		if err != nil {
			t.Fatal(err)
		}
		data[0] ^= 1
		if err := os.WriteFile(paths[0], data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Config{Dir: damaged, Node: 1}); !errors.Is(err, ErrDamaged) {
			t.Errorf("open with a damaged %s: %v", name, err)
		}
	}
	lost := copyDir(t, dir)
	if err := os.RemoveAll(filepath.Join(lost, snapshotsDir)); err != nil {
		t.Fatal(err)
	}
	s = openReady(t, lost) // the log still has everything
	expect(t, s, "k", "v", 1)
}

// Whatever single byte of the file changes: either opening fails, or all that was written is read as it was.
func TestEveryFlippedByteIsNoticed(t *testing.T) {
	dir := t.TempDir()
	s := openReady(t, dir)
	for i := range 20 {
		mustPut(t, s, fmt.Sprint("key", i), strings.Repeat(fmt.Sprint("value", i), 20))
	}
	closeServer(t, s)
	check := func(dir string) (found map[uint64]string, err error) {
		defer recoverDamage(&err)
		defer trapFaults()()
		bolt, err := openBolt(Config{Dir: dir, Node: 1})
		if err != nil {
			return nil, err
		}
		defer bolt.Close()
		logs, err := openLog(bolt, func(error) {})
		if err != nil {
			return nil, err
		}
		stable, err := openStable(bolt, func(error) {})
		if err != nil {
			return nil, err
		}
		snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, newRaftLogger(slog.New(slog.DiscardHandler)))
		if err != nil {
			return nil, err
		}
		_, err = verifyStores(logs, stable, snaps, filepath.Join(dir, snapshotsDir))
		if err != nil {
			return nil, err
		}
		if _, err := readIdentity(stable, Config{Node: 1}); err != nil {
			return nil, err
		}
		found = map[uint64]string{}
		last, err := logs.LastIndex()
		if err != nil {
			return nil, err
		}
		for i := uint64(1); i <= last; i++ {
			var l raft.Log
			if err := logs.GetLog(i, &l); err != nil {
				return nil, err
			}
			found[i] = fmt.Sprint(l.Term, l.Type, string(l.Data))
		}
		vote, err := stable.Get(keyVoteFor)
		if err != nil {
			return nil, err
		}
		term, err := stable.GetUint64(keyCurrentTerm)
		found[0] = fmt.Sprint(term, string(vote))
		return found, err
	}
	want, err := check(dir)
	if err != nil || len(want) < 20 {
		t.Fatalf("undamaged store: %d entries, %v", len(want), err)
	}
	original, err := os.ReadFile(filepath.Join(dir, logFile))
	if err != nil {
		t.Fatal(err)
	}
	damaged := copyDir(t, dir)
	path := filepath.Join(damaged, logFile)
	noticed, tried := 0, 0
	const step = 97
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for at := int(seed % step); at < len(original); at += step {
		if original[at] == 0 && at%(8*step) != 0 {
			continue // mostly unused space
		}
		data := append([]byte(nil), original...)
		data[at] ^= 1 << (at % 8)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		tried++
		found, err := check(damaged)
		if err != nil {
			noticed++
			if err := os.Remove(path); err != nil { // a panicking bbolt keeps its lock on the old file
				t.Fatal(err)
			}
			continue
		}
		if fmt.Sprint(found) != fmt.Sprint(want) {
			t.Fatalf("with byte %d of %d flipped the store reads as something else:\n got %v\nwant %v", at, len(original), found, want)
		}
	}
	t.Logf("noticed %d of %d flips in %d bytes, the others were in unused space", noticed, tried, len(original))
	if noticed == 0 {
		t.Error("no flip was noticed")
	}
}

// A server whose disk fails stops, says so, and answers nobody with data afterwards.
func TestFailureStopsTheServer(t *testing.T) {
	s := openReady(t, t.TempDir())
	mustPut(t, s, "k", "v")
	if err := s.bolt.Close(); err != nil { // every write fails from now on
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "k", []byte("w"), metadata.Any); !errors.Is(err, metadata.ErrUnknownOutcome) {
		t.Errorf("put on a failing disk: %v", err)
	}
	select {
	case <-s.Failed():
	case <-time.After(patience):
		t.Fatal("the server goes on with a failing disk")
	}
	if _, err := s.Get(t.Context(), "k"); err == nil || errors.Is(err, metadata.ErrUnavailable) || !errors.Is(err, s.Failure()) {
		t.Errorf("get after a failure: %v", err)
	}
	// raft would leave the confirmation without an answer, in a goroutine, if it stopped meanwhile
	<-s.dead
	if err := s.confirm(); !errors.Is(err, s.Failure()) { // of a read that came before the failure
		t.Errorf("confirm after a failure: %v", err)
	}
	if _, err := s.Put(t.Context(), "k", nil, metadata.Any); !errors.Is(err, s.Failure()) {
		t.Errorf("put after a failure: %v", err)
	}
}

// An entry that this version does not understand must not be skipped: the state would differ from that of others.
func TestUnknownCommandStopsTheServer(t *testing.T) {
	s := openReady(t, t.TempDir())
	mustPut(t, s, "k", "v")
	future := s.raft.Apply([]byte{commandFormat + 1, 0, 0, 0}, 0)
	if err := future.Error(); err != nil {
		t.Fatal(err)
	}
	if a := future.Response().(applied); a.err == nil {
		t.Error("an unknown command was applied")
	}
	select {
	case <-s.Failed():
	case <-time.After(patience):
		t.Fatal("the server goes on after an unknown command")
	}
	if _, err := s.Get(t.Context(), "k"); err == nil || !strings.Contains(err.Error(), "not known to this version") {
		t.Errorf("get: %v", err)
	}
}

func BenchmarkPut(b *testing.B) {
	for _, writers := range []int{1, 24} {
		b.Run(fmt.Sprint("writers=", writers), func(b *testing.B) {
			s := openReady(b, b.TempDir())
			b.SetParallelism(writers)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := s.Put(context.Background(), "k", make([]byte, 200), metadata.Any); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func BenchmarkGet(b *testing.B) {
	s := openReady(b, b.TempDir())
	mustPut(b, s, "k", "v")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.Get(context.Background(), "k"); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
