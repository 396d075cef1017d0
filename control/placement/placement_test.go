package placement

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"perdure/control/cluster"
)

func mustTable(t testing.TB, n int, r cluster.Replication) Table {
	t.Helper()
	table, err := NewTable(n, r)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// The ranges cover the key space without gaps or overlaps, differ by at most one key in size, and Lookup agrees with
// them at their borders.
func TestTableCoversKeySpace(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 7, 24, 1000, 1024, 4097, 65535} {
		table := mustTable(t, n, cluster.ReplicateTo(1))
		next := cluster.PartitionKey(0)
		smallest, largest := ^uint64(0), uint64(0)
		for i := range n {
			id := cluster.PartitionID(i)
			r := table.Range(id)
			if r.Start != next || r.End < r.Start {
				t.Fatalf("%d partitions: %d is %v, expected to begin at %d", n, i, r, next)
			}
			if table.Lookup(r.Start) != id || table.Lookup(r.End) != id || table.Lookup(r.Start+(r.End-r.Start)/2) != id {
				t.Fatalf("%d partitions: keys of %v are looked up elsewhere", n, r)
			}
			smallest, largest = min(smallest, uint64(r.End-r.Start)), max(largest, uint64(r.End-r.Start))
			next = r.End + 1
		}
		if next != 0 {
			t.Fatalf("%d partitions end at %d", n, next-1)
		}
		if largest-smallest > 1 {
			t.Errorf("%d partitions: sizes from %d to %d", n, smallest, largest)
		}
	}
	for _, n := range []int{0, -1, 65536} {
		if _, err := NewTable(n, cluster.ReplicateTo(1)); err == nil {
			t.Errorf("%d partitions were accepted", n)
		}
	}
}

func mustLeadership(t testing.TB, nodes ...cluster.NodeID) Leadership {
	t.Helper()
	l, err := NewLeadership(3, cluster.ReplicateTo(1), nodes)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestClaim(t *testing.T) {
	l := mustLeadership(t, 2, 1)
	a, b := cluster.GenNodeID{ID: 1, Generation: 5}, cluster.GenNodeID{ID: 2, Generation: 1}
	for i, node := range []cluster.GenNodeID{a, a, b, a} {
		next, err := l.Claim(node)
		if err != nil || next.Epoch != cluster.Epoch(i+1) || next.Claimant != node || l.Epoch != cluster.Epoch(i) {
			t.Fatalf("claim %d by %s: %+v, %v", i, node, next, err)
		}
		l = next
	}
	if _, err := l.Claim(cluster.GenNodeID{ID: 1, Generation: 4}); !errors.Is(err, ErrPreempted) {
		t.Errorf("claim by an older process: %v", err)
	}
	if _, err := l.Claim(cluster.GenNodeID{ID: 3, Generation: 1}); !errors.Is(err, ErrNotReplica) {
		t.Errorf("claim by a stranger: %v", err)
	}
	moving, err := l.Reconfigure(cluster.ReplicateTo(1), []cluster.NodeID{3})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := moving.Claim(cluster.GenNodeID{ID: 3, Generation: 1}); err != nil {
		t.Errorf("claim by a member of the next set: %v", err)
	}
}

func TestReconfigure(t *testing.T) {
	l := mustLeadership(t, 1)
	l, err := l.Reconfigure(cluster.ReplicateTo(2), []cluster.NodeID{3, 2})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(l.Members(), []cluster.NodeID{1, 2, 3}) || l.Next.Version != 2 {
		t.Errorf("moving: %+v", l)
	}
	again, err := l.Reconfigure(cluster.ReplicateTo(2), []cluster.NodeID{3, 4})
	if err != nil || again.Next.Version != 3 || again.Current.Version != 1 {
		t.Errorf("moving elsewhere: %+v, %v", again, err)
	}
	done := again.Complete()
	if !slices.Equal(done.Members(), []cluster.NodeID{3, 4}) || done.Next != nil || done.Current.Version != 3 {
		t.Errorf("moved: %+v", done)
	}
	if !reflect.DeepEqual(done.Complete(), done) {
		t.Error("completing twice changed something")
	}
	if _, err := l.Reconfigure(cluster.ReplicateTo(2), nil); err == nil {
		t.Error("an empty set was accepted")
	}
	if _, err := l.Reconfigure(cluster.ReplicateTo(2), []cluster.NodeID{1, 1}); err == nil {
		t.Error("a node twice was accepted")
	}
}

const (
	goldenTable      = `{"format":1,"partitions":24,"replication":"{node:1}"}`
	goldenLeadership = `{"format":1,"partition":3,"epoch":2,"claimant":[1,5],"current":{"version":1,"replication":"{node:1}","nodes":[1,2]},"next":{"version":2,"replication":"{zone:2,node:2}","nodes":[3]}}`
)

func TestGolden(t *testing.T) {
	table, err := DecodeTable([]byte(goldenTable))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := table.Encode(); err != nil || string(got) != goldenTable || table.Len() != 24 {
		t.Errorf("table: %s, %v", got, err)
	}
	l, err := DecodeLeadership([]byte(goldenLeadership))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := l.Encode(); err != nil || string(got) != goldenLeadership {
		t.Errorf("leadership:\n got %s, %v\nwant %s", got, err, goldenLeadership)
	}
	for _, bad := range []string{
		strings.Replace(goldenLeadership, `"format":1`, `"format":2`, 1),
		strings.Replace(goldenLeadership, `"epoch":2`, `"epoch":0`, 1),
		strings.Replace(goldenLeadership, `"epoch":2`, `"epoch":2,"x":1`, 1),
		strings.Replace(goldenLeadership, `"claimant":[1,5]`, `"claimant":[0,5]`, 1),
		strings.Replace(goldenLeadership, `[1,2]`, `[2,1]`, 1),
		strings.Replace(goldenLeadership, `"version":2`, `"version":1`, 1),
		goldenLeadership + goldenLeadership, "", "null",
	} {
		if l, err := DecodeLeadership([]byte(bad)); err == nil {
			t.Errorf("accepted %s as %+v", bad, l)
		}
	}
	for _, bad := range []string{`{"format":2,"partitions":24,"replication":"1"}`, `{"format":1,"partitions":0,"replication":"1"}`, `{"format":1,"partitions":1}`} {
		if table, err := DecodeTable([]byte(bad)); err == nil {
			t.Errorf("accepted %s as %+v", bad, table)
		}
	}
}

func FuzzDecodeLeadership(f *testing.F) {
	f.Add([]byte(goldenLeadership))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := DecodeLeadership(data)
		if err != nil {
			return
		}
		first, err := l.Encode()
		if err != nil {
			t.Fatalf("decoded but does not encode: %v", err)
		}
		back, err := DecodeLeadership(first)
		if err != nil {
			t.Fatalf("own encoding is refused: %v", err)
		}
		if second, err := back.Encode(); err != nil || !bytes.Equal(first, second) {
			t.Fatalf("encoding is not stable: %s, %s, %v", first, second, err)
		}
	})
}

// world carries out plans in memory: members of replica sets catch up at once, who is asked to lead leads.
type world struct {
	t       *testing.T
	view    View
	objects map[cluster.PartitionID]Leadership
	leaders map[cluster.PartitionID]cluster.GenNodeID
}

func newWorld(t *testing.T, partitions int, r cluster.Replication, workers ...Worker) *world {
	w := &world{t: t, objects: map[cluster.PartitionID]Leadership{}, leaders: map[cluster.PartitionID]cluster.GenNodeID{}}
	w.view = View{
		Table: mustTable(t, partitions, r), Workers: workers,
		CaughtUp: func(id cluster.PartitionID, n cluster.NodeID) bool { return w.objects[id].Has(n) && w.alive(n) },
		Leader:   func(id cluster.PartitionID) cluster.GenNodeID { return w.leaders[id] },
	}
	return w
}

func (w *world) alive(n cluster.NodeID) bool {
	return slices.ContainsFunc(w.view.Workers, func(x Worker) bool { return x.Node.ID == n && x.Alive })
}

// settle repeats planning and acting until there is nothing left to do.
func (w *world) settle() (rounds int) {
	w.t.Helper()
	for rounds = 0; rounds < 20; rounds++ {
		w.view.Leaderships = nil
		for _, l := range w.objects {
			w.view.Leaderships = append(w.view.Leaderships, l)
		}
		decisions := Plan(w.view)
		if len(decisions) == 0 {
			return rounds
		}
		for _, d := range decisions {
			old, known := w.objects[d.Partition]
			switch d.Action {
			case Create:
				if known {
					w.t.Fatalf("create of an existing leadership: %+v", d)
				}
				w.objects[d.Partition] = d.Leadership
			case Replace:
				if d.Leadership.Epoch == old.Epoch { // else the compare-and-set fails: it was claimed meanwhile
					w.objects[d.Partition] = d.Leadership
				}
			case Lead:
				l, err := old.Claim(d.Node)
				if err != nil {
					w.t.Fatal(err)
				}
				w.objects[d.Partition], w.leaders[d.Partition] = l, d.Node
			}
		}
	}
	w.t.Fatal("plans do not come to an end")
	return rounds
}

func worker(id cluster.NodeID, zone string) Worker {
	return Worker{Node: cluster.GenNodeID{ID: id, Generation: 1}, State: cluster.WorkerActive, Location: cluster.Location{Region: "r", Zone: zone}, Alive: true}
}

func TestPlanOfOneNode(t *testing.T) {
	w := newWorld(t, 24, cluster.ReplicateTo(1), worker(1, ""))
	w.settle()
	for i := range cluster.PartitionID(24) {
		if l := w.objects[i]; !slices.Equal(l.Current.Nodes, []cluster.NodeID{1}) || l.Epoch != 1 || w.leaders[i].ID != 1 {
			t.Errorf("partition %d: %+v led by %s", i, l, w.leaders[i])
		}
	}
	w.view.Workers[0].Node.Generation = 2
	w.settle()
	for i := range cluster.PartitionID(24) {
		if w.objects[i].Epoch != 2 || w.leaders[i].Generation != 2 {
			t.Errorf("after a restart partition %d: %+v led by %s", i, w.objects[i], w.leaders[i])
		}
	}
}

func TestPlanWithoutWorkers(t *testing.T) {
	w := newWorld(t, 4, cluster.ReplicateTo(1))
	if w.settle() != 0 {
		t.Error("something was planned without workers")
	}
	sleeping := worker(1, "")
	sleeping.State = cluster.WorkerProvisioning
	w.view.Workers = []Worker{sleeping}
	if w.settle() != 0 {
		t.Error("a worker that is not active got partitions")
	}
}

func TestPlanSpreadsAndMoves(t *testing.T) {
	r, err := cluster.ParseReplication("{zone:2}")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, 60, r, worker(1, "a"), worker(2, "a"), worker(3, "b"), worker(4, "b"))
	w.settle()
	check := func(without cluster.NodeID) {
		t.Helper()
		for id, l := range w.objects {
			zones := map[string]bool{}
			for _, n := range l.Current.Nodes {
				zones[w.view.Workers[n-1].Location.Zone] = true
			}
			if len(l.Current.Nodes) != 2 || len(zones) != 2 || l.Next != nil || l.Has(without) {
				t.Fatalf("partition %d: %+v", id, l)
			}
			if leader := w.leaders[id]; !l.Current.Has(leader.ID) {
				t.Fatalf("partition %d of %v is led by %s", id, l.Current.Nodes, leader)
			}
		}
	}
	check(0)
	before := map[cluster.PartitionID][]cluster.NodeID{}
	for id, l := range w.objects {
		before[id] = l.Current.Nodes
	}
	w.view.Workers[1].State = cluster.WorkerDraining
	w.settle()
	check(2)
	for id, nodes := range before {
		if !slices.Contains(nodes, 2) && !slices.Equal(w.objects[id].Current.Nodes, nodes) {
			t.Errorf("partition %d moved from %v to %v without need", id, nodes, w.objects[id].Current.Nodes)
		}
	}
}

func TestPlanFailsOver(t *testing.T) {
	w := newWorld(t, 30, cluster.ReplicateTo(2), worker(1, ""), worker(2, ""), worker(3, ""))
	w.settle()
	w.view.Workers[0].Alive = false
	epochs := map[cluster.PartitionID]cluster.Epoch{}
	for id, l := range w.objects {
		epochs[id] = l.Epoch
	}
	led := 0
	for id := range w.leaders {
		if w.leaders[id].ID == 1 {
			led++
		}
	}
	w.settle()
	for id, l := range w.objects {
		if w.leaders[id].ID == 1 || l.Epoch < epochs[id] {
			t.Errorf("partition %d: %+v led by %s", id, l, w.leaders[id])
		}
	}
	if led == 0 {
		t.Error("the dead node led nothing, the test shows nothing")
	}
}

// The order of the input does not matter, and random worlds settle with valid sets.
func TestPlanIsDeterministic(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 5))
	for range 100 {
		var workers []Worker
		for i := range cluster.NodeID(1 + rnd.IntN(6)) {
			x := worker(i+1, string(rune('a'+rnd.IntN(3))))
			x.State = cluster.WorkerState(rnd.IntN(4))
			x.Alive = rnd.IntN(4) > 0
			workers = append(workers, x)
		}
		w := newWorld(t, 8, cluster.ReplicateTo(1+rnd.IntN(3)), workers...)
		w.settle()
		for i := range w.view.Workers {
			w.view.Workers[i].State = cluster.WorkerState(rnd.IntN(4))
			w.view.Workers[i].Alive = rnd.IntN(4) > 0
		}
		first := Plan(w.view)
		rnd.Shuffle(len(w.view.Workers), func(i, j int) {
			w.view.Workers[i], w.view.Workers[j] = w.view.Workers[j], w.view.Workers[i]
		})
		rnd.Shuffle(len(w.view.Leaderships), func(i, j int) {
			w.view.Leaderships[i], w.view.Leaderships[j] = w.view.Leaderships[j], w.view.Leaderships[i]
		})
		if second := Plan(w.view); !reflect.DeepEqual(first, second) {
			t.Fatalf("plans differ:\n%+v\n%+v", first, second)
		}
		w.settle()
		for _, l := range w.objects {
			if err := l.validate(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	table := mustTable(b, 24, cluster.ReplicateTo(1))
	key := cluster.PartitionKey(12345)
	for b.Loop() {
		key = key*0x9e3779b97f4a7c15 + cluster.PartitionKey(table.Lookup(key))
	}
}
