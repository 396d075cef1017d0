package provision

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"perdure/control/cluster"
	"perdure/control/datadir"
	"perdure/control/metadata"
	"perdure/control/metastore"
	"perdure/control/placement"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// process is one life of a node.
type process struct {
	name, directory, incarnation string
	fingerprint                  cluster.Fingerprint
}

func (p process) request() cluster.JoinRequest {
	return cluster.JoinRequest{
		ClusterName: "test", Name: p.name, Address: "127.0.0.1:5122", Roles: cluster.AllRoles,
		Directory: p.directory, Incarnation: p.incarnation,
	}
}

// boot is what a node does to the metadata when it starts.
func (p process) boot(ctx context.Context, s metadata.Store) (cluster.GenNodeID, error) {
	if _, err := Provision(ctx, s, Cluster{Name: "test", NewFingerprint: func() cluster.Fingerprint { return p.fingerprint }}); err != nil {
		return cluster.GenNodeID{}, err
	}
	self, _, err := Join(ctx, s, p.request())
	if err != nil {
		return cluster.GenNodeID{}, err
	}
	if _, err := Activate(ctx, s, self, Readiness{LogStore: true, Worker: true, MetadataStorage: "m-" + p.directory}); err != nil {
		return self, err
	}
	_, err = EnsureReplicaSets(ctx, s)
	return self, err
}

var errKilled = errors.New("killed")

// mortal is a store as seen by a process that dies at its n-th call, before or after the call has its effect.
type mortal struct {
	metadata.Store
	left  int
	after bool
}

func (m *mortal) call(do func() error) error {
	m.left--
	switch {
	case m.left > 0:
		return do()
	case m.left == 0 && m.after:
		_ = do()
	}
	return errKilled
}

func (m *mortal) Get(ctx context.Context, key string) (v metadata.Value, err error) {
	err = m.call(func() error { v, err = m.Store.Get(ctx, key); return err })
	return v, err
}

func (m *mortal) Put(ctx context.Context, key string, data []byte, p metadata.Precondition) (v uint64, err error) {
	err = m.call(func() error { v, err = m.Store.Put(ctx, key, data, p); return err })
	return v, err
}

func (m *mortal) Txn(ctx context.Context, c []metadata.Compare, p []metadata.Put) (r metadata.Result, err error) {
	err = m.call(func() error { r, err = m.Store.Txn(ctx, c, p); return err })
	return r, err
}

func (m *mortal) List(ctx context.Context, prefix string) (l []metadata.KeyValue, err error) {
	err = m.call(func() error { l, err = m.Store.List(ctx, prefix); return err })
	return l, err
}

// Get must return what the inner store said, also with an error.
func TestMortalStorePassesOn(t *testing.T) {
	s := metadata.NewMemory()
	m := &mortal{Store: s, left: 3}
	if _, err := m.Get(t.Context(), "k"); !errors.Is(err, metadata.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if v, err := m.Put(t.Context(), "k", nil, metadata.Any); err != nil || v != 1 {
		t.Errorf("put: %d, %v", v, err)
	}
	if _, err := m.Get(t.Context(), "k"); !errors.Is(err, errKilled) {
		t.Errorf("get after death: %v", err)
	}
}

// The process is killed at each of its calls, before and after the call's effect, and started anew, several times in a
// row. In the end there is one cluster, whose fingerprint is the first that was ever visible, with one node whose
// generations only grew.
func TestKilledAtEveryStep(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 6))
	died := 0
	for at := 1; at < 40; at++ {
		for _, after := range []bool{false, true} {
			s := metadata.NewMemory()
			var fingerprint cluster.Fingerprint
			var last cluster.Generation
			deaths := []mortal{{s, at, after}, {s, 1 + rnd.IntN(14), rnd.IntN(2) == 0}, {s, 1 << 20, false}, {s, 1 + rnd.IntN(14), true}, {s, 1 << 20, false}}
			for i := range deaths {
				p := process{"n1", "d1", fmt.Sprint("life ", i), cluster.Fingerprint(i + 1)}
				self, err := p.boot(t.Context(), &deaths[i])
				if err != nil && !errors.Is(err, errKilled) {
					t.Fatalf("killed at %d, %v; life %d: %v", at, after, i, err)
				}
				if errors.Is(err, errKilled) {
					died++
				}
				if self.ID != 0 && (self.ID != 1 || self.Generation <= last) {
					t.Fatalf("killed at %d, %v; life %d joined as %s after generation %d", at, after, i, self, last)
				}
				last = max(last, self.Generation)
				nodes, err := Nodes(t.Context(), s)
				if errors.Is(err, ErrNotProvisioned) {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if fingerprint == 0 {
					fingerprint = nodes.Fingerprint
				}
				if nodes.Fingerprint != fingerprint {
					t.Fatalf("the fingerprint changed from %s to %s", fingerprint, nodes.Fingerprint)
				}
			}
			checkCluster(t, s, last)
		}
	}
	if died < 20 {
		t.Errorf("only %d processes died", died)
	}
}

func checkCluster(t *testing.T, s metadata.Store, generation cluster.Generation) {
	t.Helper()
	nodes, err := Nodes(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	n, ok := nodes.Node(1)
	if !ok || nodes.Len() != 1 || n.Generation != generation || n.Storage != cluster.StorageReadWrite || n.Worker != cluster.WorkerActive || n.Metadata != cluster.MetadataMember {
		t.Fatalf("nodes %+v", nodes.Nodes())
	}
	table, err := Partitions(t.Context(), s)
	if err != nil || table.Len() != DefaultPartitions {
		t.Fatalf("%d partitions, %v", table.Len(), err)
	}
	list, err := s.List(t.Context(), metadata.EpochPrefix)
	if err != nil || len(list) != DefaultPartitions {
		t.Fatalf("%d leadership objects, %v", len(list), err)
	}
	for _, kv := range list {
		l, err := placement.DecodeLeadership(kv.Data)
		if err != nil || !slices.Equal(l.Current.Nodes, []cluster.NodeID{1}) || kv.Version != 1 {
			t.Fatalf("%s: %+v at version %d, %v", kv.Key, l, kv.Version, err)
		}
	}
}

// A store that refuses, loses requests, loses answers and delivers late changes nothing about the result of one start.
func TestUnreliableStore(t *testing.T) {
	for round := range 50 {
		synctest.Test(t, func(t *testing.T) { unreliableStart(t, round) })
	}
}

func unreliableStart(t *testing.T, round int) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 7))
	s := metadata.NewMemory()
	var mu sync.Mutex
	s.SetFault(func(metadata.Call) metadata.Fault {
		mu.Lock()
		defer mu.Unlock()
		if rnd.IntN(3) > 0 {
			return metadata.Fault{}
		}
		s.DeliverDelayed()
		return metadata.Fault{Effect: metadata.Effect(1 + rnd.IntN(4))}
	})
	p := process{"n1", "d1", "life", 7}
	var self cluster.GenNodeID
	for {
		var err error
		if self, err = p.boot(t.Context(), s); err == nil {
			break
		}
		// EnsureReplicaSets does not wait for a store that refuses.
		if !errors.Is(err, metadata.ErrUnavailable) {
			t.Fatalf("round %d, seed %d: %v", round, seed, err)
		}
	}
	s.SetFault(nil)
	s.DeliverDelayed()
	if self != (cluster.GenNodeID{ID: 1, Generation: 1}) {
		t.Fatalf("round %d, seed %d: joined as %s although there was one process", round, seed, self)
	}
	checkCluster(t, s, 1)
}

// Many nodes that start at once get distinct ids, and two processes of one name do not both go on.
func TestConcurrentJoins(t *testing.T) {
	s := metadata.NewMemory()
	if _, err := Provision(t.Context(), s, Cluster{Name: "test", NewFingerprint: func() cluster.Fingerprint { return 1 }}); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	ids := map[cluster.NodeID]bool{}
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			self, _, err := Join(t.Context(), s, process{name: fmt.Sprint("n", i), directory: fmt.Sprint("d", i), incarnation: fmt.Sprint("i", i)}.request())
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if ids[self.ID] || self.Generation != 1 {
				t.Errorf("%s joined twice", self)
			}
			ids[self.ID] = true
		})
	}
	wg.Wait()
	if len(ids) != 10 {
		t.Errorf("%d ids", len(ids))
	}
}

func TestTwoProcessesOfOneName(t *testing.T) {
	s := metadata.NewMemory()
	if _, err := Provision(t.Context(), s, Cluster{Name: "test", NewFingerprint: func() cluster.Fingerprint { return 1 }}); err != nil {
		t.Fatal(err)
	}
	second := process{name: "n1", directory: "d1", incarnation: "second"}
	intruded := false
	s.SetFault(func(c metadata.Call) metadata.Fault {
		if c.Method == "Put" && !intruded { // between reading and writing of the first
			intruded = true
			if _, _, err := Join(t.Context(), s, second.request()); err != nil {
				t.Error(err)
			}
		}
		return metadata.Fault{}
	})
	if _, _, err := Join(t.Context(), s, process{name: "n1", directory: "d1", incarnation: "first"}.request()); !errors.Is(err, cluster.ErrPreempted) {
		t.Errorf("the slower of two processes: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	s := metadata.NewMemory()
	p := process{"n1", "d1", "life", 7}
	if _, _, err := Join(t.Context(), s, p.request()); !errors.Is(err, ErrNotProvisioned) {
		t.Errorf("join before provisioning: %v", err)
	}
	if _, err := Partitions(t.Context(), s); !errors.Is(err, ErrNotProvisioned) {
		t.Errorf("partitions before provisioning: %v", err)
	}
	self, err := p.boot(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Provision(t.Context(), s, Cluster{Name: "other", NewFingerprint: func() cluster.Fingerprint { return 1 }}); !errors.Is(err, cluster.ErrWrongCluster) {
		t.Errorf("provisioning under another name: %v", err)
	}
	if _, err := Provision(t.Context(), s, Cluster{Name: "test", Partitions: 70000}); err == nil {
		t.Error("70000 partitions were accepted")
	}
	if _, err := (process{"n1", "d1", "next life", 7}).boot(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if _, err := Activate(t.Context(), s, self, Readiness{Worker: true}); err == nil {
		t.Error("an old process activated its node")
	}
	if _, err := SetStorage(t.Context(), s, self, cluster.StorageDataLoss, cluster.ByNode); err == nil {
		t.Error("an old process declared its disk lost")
	}
	self.Generation++
	for range 2 {
		if _, err := SetStorage(t.Context(), s, self, cluster.StorageDataLoss, cluster.ByNode); err != nil {
			t.Error(err)
		}
	}
}

// node is the control side of a node's start and stop, in the order in which a server composes it.
type node struct {
	dir      *datadir.Dir
	metadata *metastore.Server
	self     cluster.GenNodeID
}

func startNode(t *testing.T, path, incarnation string) (started *node, err error) {
	n := &node{}
	defer func() {
		if err != nil {
			n.stop(t)
		}
	}()
	// The lock and the marker come first: nothing may be written into a directory of somebody else.
	if n.dir, err = datadir.Open(path, func() string { return "directory of " + incarnation }); err != nil {
		return nil, err
	}
	marker := n.dir.Marker()
	if err := marker.CheckConfiguration("test", "n1"); err != nil {
		return nil, err
	}
	// The first node of a cluster gets id 1; others learn theirs by joining before they open a store.
	id := max(marker.Node, 1)
	n.metadata, err = metastore.Open(metastore.Config{
		Dir: n.dir.Sub("metadata"), Node: id, ExpectStorage: marker.MetadataStorage,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		return nil, err
	}
	storage := n.metadata.Identity().Storage
	if n.metadata.Fresh() { // and auto-provisioning is on
		if err := n.metadata.Bootstrap(); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := n.metadata.WaitReady(ctx); err != nil {
		return nil, err
	}
	nodes, err := Provision(ctx, n.metadata, Cluster{Name: "test", NewFingerprint: func() cluster.Fingerprint { return cluster.Fingerprint(rand.Uint64() | 1) }})
	if err != nil {
		return nil, err
	}
	if err := marker.CheckCluster(nodes); err != nil {
		return nil, err
	}
	n.self, nodes, err = Join(ctx, n.metadata, cluster.JoinRequest{
		ClusterName: "test", Name: "n1", Address: "127.0.0.1:5122", Roles: cluster.AllRoles,
		Directory: marker.Directory, Incarnation: incarnation, ForcedID: id,
	})
	if err != nil {
		return nil, err
	}
	marker.ClusterName, marker.Fingerprint, marker.NodeName, marker.Node = "test", nodes.Fingerprint, "n1", n.self.ID
	marker.MetadataStorage = storage
	if err := n.dir.SetMarker(marker); err != nil {
		return nil, err
	}
	// Here the log store would be opened, judged by CheckLogStore and marked.
	if _, err := Activate(ctx, n.metadata, n.self, Readiness{LogStore: true, Worker: true, MetadataStorage: storage}); err != nil {
		return nil, err
	}
	_, err = EnsureReplicaSets(ctx, n.metadata)
	return n, err
}

func (n *node) stop(t *testing.T) {
	t.Helper()
	if n.metadata != nil {
		if err := n.metadata.Close(); err != nil {
			t.Error(err)
		}
	}
	if n.dir != nil {
		if err := n.dir.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A node starts three times in one directory; a second server in the directory is kept out; a wiped metadata disk is
// noticed.
func TestNodeStartsAndRestarts(t *testing.T) {
	path := t.TempDir()
	for life := range 3 {
		begin := time.Now()
		n, err := startNode(t, path, fmt.Sprint("life ", life))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("start %d took %s", life, time.Since(begin))
		if want := (cluster.GenNodeID{ID: 1, Generation: cluster.Generation(life + 1)}); n.self != want {
			t.Errorf("life %d is %s", life, n.self)
		}
		if _, err := startNode(t, path, "intruder"); !errors.Is(err, datadir.ErrLocked) {
			t.Errorf("second server: %v", err)
		}
		checkCluster(t, n.metadata, n.self.Generation)
		n.stop(t)
	}
	dir, err := datadir.Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	marker := dir.Marker()
	if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
	if marker.Node != 1 || marker.Fingerprint == 0 || marker.MetadataStorage == "" {
		t.Errorf("marker %+v", marker)
	}
	if err := os.RemoveAll(filepath.Join(path, "metadata")); err != nil {
		t.Fatal(err)
	}
	if _, err := startNode(t, path, "after the wipe"); !errors.Is(err, metastore.ErrLost) {
		t.Errorf("start with a wiped metadata disk: %v", err)
	}
}
