package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestReplicationForms(t *testing.T) {
	for in, want := range map[string]string{
		"3": "{node:3}", " 1 ": "{node:1}", "{zone:2,node:3}": "{zone:2,node:3}", "{node: 3, zone: 2}": "{zone:2,node:3}",
		"{zone:2}": "{zone:2,node:2}", "{region=2,node=4}": "{region:2,node:4}",
	} {
		r, err := ParseReplication(in)
		if err != nil || r.String() != want {
			t.Errorf("parse %q: %s, %v; want %s", in, r, err, want)
		}
		if back, err := ParseReplication(r.String()); err != nil || back != r {
			t.Errorf("%s does not read back: %s, %v", r, back, err)
		}
	}
	for _, in := range []string{"", "0", "-1", "65", "{", "{}", "{zone:2", "{zone:3,node:2}", "{region:3,zone:2,node:3}", "{disk:2}", "{node:1,node:2}", "{node:0}", "{node}", "x"} {
		if r, err := ParseReplication(in); err == nil {
			t.Errorf("%q was read as %s", in, r)
		}
	}
	if _, err := (Replication{}).MarshalText(); err == nil {
		t.Error("the zero replication was written")
	}
}

func FuzzParseReplication(f *testing.F) {
	for _, s := range []string{"3", "{zone:2,node:3}", "{region:1}", "{node:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReplication(s)
		if err != nil {
			return
		}
		if err := r.Validate(); err != nil {
			t.Fatalf("%q was read as an invalid property: %v", s, err)
		}
		if back, err := ParseReplication(r.String()); err != nil || back != r {
			t.Fatalf("%q was read as %s, which reads as %s, %v", s, r, back, err)
		}
	})
}

func TestLocations(t *testing.T) {
	for _, in := range []string{"", "eu-1", "eu-1.a_2"} {
		if l, err := ParseLocation(in); err != nil || l.String() != in {
			t.Errorf("parse %q: %q, %v", in, l, err)
		}
	}
	for _, in := range []string{".", "a.", ".b", "a.b.c", "a b"} {
		if l, err := ParseLocation(in); err == nil {
			t.Errorf("%q was read as %q", in, l)
		}
	}
}

func TestStorageTransitions(t *testing.T) {
	type move struct {
		from, to StorageState
		by       Actor
	}
	allowed := map[move]bool{
		{StorageProvisioning, StorageReadWrite, ByNode}:    true,
		{StorageProvisioning, StorageDisabled, ByOperator}: true,
		{StorageReadOnly, StorageDisabled, ByOperator}:     true,
		{StorageGone, StorageDisabled, ByOperator}:         true,
		{StorageDataLoss, StorageDisabled, ByOperator}:     true,
	}
	working := []StorageState{StorageReadWrite, StorageReadOnly, StorageGone}
	for _, a := range working {
		for _, b := range working {
			allowed[move{a, b, ByOperator}] = true
		}
	}
	for s := range storageStates {
		for _, by := range []Actor{ByNode, ByOperator} {
			allowed[move{s, s, by}] = true
			if s != StorageDisabled {
				allowed[move{s, StorageDataLoss, by}] = true
			}
		}
	}
	for from := range storageStates {
		for to := range storageStates {
			for _, by := range []Actor{ByNode, ByOperator} {
				if err := from.CheckTransition(to, by); (err == nil) != allowed[move{from, to, by}] {
					t.Errorf("%s to %s by the %s: %v", from, to, by, err)
				}
			}
		}
	}
}

func TestWorkerAndMetadataTransitions(t *testing.T) {
	if err := WorkerProvisioning.CheckTransition(WorkerActive, ByNode); err != nil {
		t.Error(err)
	}
	for _, to := range []WorkerState{WorkerProvisioning, WorkerDraining, WorkerDisabled} {
		if WorkerActive.CheckTransition(to, ByNode) == nil {
			t.Errorf("a node moved its active worker to %s", to)
		}
	}
	if WorkerActive.CheckTransition(WorkerDisabled, ByOperator) == nil {
		t.Error("an active worker was disabled without draining")
	}
	if err := WorkerDraining.CheckTransition(WorkerDisabled, ByOperator); err != nil {
		t.Error(err)
	}
	if MetadataMember.CheckTransition(MetadataProvisioning) == nil {
		t.Error("a member went back to provisioning")
	}
	if err := MetadataStandby.CheckTransition(MetadataMember); err != nil {
		t.Error(err)
	}
}

func TestRoles(t *testing.T) {
	r, err := ParseRoles(AllRoles.Names())
	if err != nil || r != AllRoles {
		t.Errorf("roles read back as %s, %v", r, err)
	}
	if _, err := ParseRoles([]string{"cook"}); err == nil {
		t.Error("an unknown role was accepted")
	}
}

func newCluster(t testing.TB) NodesConfig {
	t.Helper()
	c, err := NewNodesConfig("test", 0xfeed)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func request(name string) JoinRequest {
	return JoinRequest{ClusterName: "test", Name: name, Address: "127.0.0.1:5122", Roles: AllRoles, Directory: "dir-" + name, Incarnation: name + "/1"}
}

func mustJoin(t testing.TB, c NodesConfig, r JoinRequest) (NodesConfig, GenNodeID) {
	t.Helper()
	next, id, err := c.Join(r)
	if err != nil {
		t.Fatal(err)
	}
	return next, id
}

func TestJoinGivesIDsAndGenerations(t *testing.T) {
	c := newCluster(t)
	before := c
	c, a := mustJoin(t, c, request("a"))
	c, b := mustJoin(t, c, request("b"))
	if a != (GenNodeID{1, 1}) || b != (GenNodeID{2, 1}) {
		t.Fatalf("joined as %s and %s", a, b)
	}
	if before.Len() != 0 {
		t.Error("join changed the value it was called on")
	}
	again, id := mustJoin(t, c, request("a"))
	if id != a || !reflect.DeepEqual(again, c) {
		t.Errorf("repeating a join that was applied gave %s", id)
	}
	r := request("a")
	r.Incarnation = "a/2"
	if c, id = mustJoin(t, c, r); id != (GenNodeID{1, 2}) {
		t.Errorf("second start is %s", id)
	}
	if err := c.IsCurrent(a); err == nil {
		t.Error("the first life of the node is still current")
	}
	if err := c.IsCurrent(id); err != nil {
		t.Error(err)
	}
}

func TestJoinRefusals(t *testing.T) {
	c := newCluster(t)
	c, a := mustJoin(t, c, request("a"))
	c, _ = mustJoin(t, c, request("gone"))
	c, err := c.Remove(2)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = c.SetStorage(a, StorageReadWrite, ByNode); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*JoinRequest)
		want   error
	}{
		"other cluster":           {func(r *JoinRequest) { r.ClusterName = "other" }, ErrWrongCluster},
		"id of another name":      {func(r *JoinRequest) { r.Name, r.ForcedID = "b", 1 }, ErrWrongNode},
		"name of another id":      {func(r *JoinRequest) { r.ForcedID = 7 }, ErrWrongNode},
		"removed node":            {func(r *JoinRequest) { r.Name, r.ForcedID = "gone", 2 }, ErrNodeRemoved},
		"other directory":         {func(r *JoinRequest) { r.Directory = "other" }, ErrNameTaken},
		"newer process":           {func(r *JoinRequest) { r.Again, r.Seen = true, 1 }, ErrPreempted},
		"name appears":            {func(r *JoinRequest) { r.Again = true }, ErrPreempted},
		"no name":                 {func(r *JoinRequest) { r.Name = "" }, nil},
		"name with a space":       {func(r *JoinRequest) { r.Name = "a b" }, nil},
		"no roles":                {func(r *JoinRequest) { r.Roles = 0 }, nil},
		"no address":              {func(r *JoinRequest) { r.Address = "" }, nil},
		"no directory identity":   {func(r *JoinRequest) { r.Directory = "" }, nil},
		"no incarnation identity": {func(r *JoinRequest) { r.Incarnation = "" }, nil},
	} {
		r := request("a")
		r.Incarnation = "a/3"
		state := c
		if name == "newer process" {
			newer := request("a")
			newer.Incarnation = "a/2"
			state, _ = mustJoin(t, c, newer)
		}
		tc.change(&r)
		if _, _, err := state.Join(r); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	if _, id := mustJoin(t, c, request("b")); id.ID != 3 {
		t.Errorf("the id of a removed node was given out again: %s", id)
	}
}

// A worker without logs can lose its disk and come back: nobody relies on what was on it.
func TestJoinWithNewDirectoryOfDisposableNode(t *testing.T) {
	c := newCluster(t)
	r := request("w")
	r.Roles = Worker
	c, _ = mustJoin(t, c, r)
	r.Directory, r.Incarnation = "new", "w/2"
	if _, id := mustJoin(t, c, r); id != (GenNodeID{1, 2}) {
		t.Errorf("joined as %s", id)
	}
}

func TestLocationOfLogServerIsFrozen(t *testing.T) {
	c := newCluster(t)
	r := request("a")
	c, id := mustJoin(t, c, r)
	c, err := c.SetStorage(id, StorageReadWrite, ByNode)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		location string
		ok       bool
	}{{"eu", true}, {"eu.a", true}, {"", true}, {"eu.b", false}, {"us.a", false}, {"eu", false}} {
		r.Location, _ = ParseLocation(step.location)
		r.Incarnation = fmt.Sprint("try", i)
		next, _, err := c.Join(r)
		if (err == nil) != step.ok {
			t.Errorf("location %q: %v", step.location, err)
		}
		if err == nil {
			c = next
		} else if !errors.Is(err, ErrLocationFrozen) {
			t.Errorf("location %q: %v", step.location, err)
		}
	}
	if n, _ := c.Node(id.ID); n.Location.String() != "eu.a" {
		t.Errorf("location is %q: an empty one must not clear it", n.Location)
	}
}

func TestOldProcessCanNotChangeItsNode(t *testing.T) {
	c, id := mustJoin(t, newCluster(t), request("a"))
	r := request("a")
	r.Incarnation = "a/2"
	c, now := mustJoin(t, c, r)
	if _, err := c.SetStorage(id, StorageReadWrite, ByNode); err == nil {
		t.Error("an old generation changed the storage state")
	}
	if _, err := c.SetStorage(now, StorageReadWrite, ByNode); err != nil {
		t.Error(err)
	}
	if _, err := c.SetStorage(GenNodeID{9, 1}, StorageReadWrite, ByNode); !errors.Is(err, ErrUnknownNode) {
		t.Errorf("unknown node: %v", err)
	}
}

func TestMetadataMemberWithOtherDiskIsRefused(t *testing.T) {
	c, id := mustJoin(t, newCluster(t), request("a"))
	c, err := c.SetMetadata(id, MetadataMember, "s1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetMetadata(id, MetadataMember, "s1"); err != nil {
		t.Error(err)
	}
	if _, err := c.SetMetadata(id, MetadataMember, "s2"); err == nil || !strings.Contains(err.Error(), "wiped or swapped") {
		t.Errorf("another disk became the member: %v", err)
	}
	if c, err = c.SetMetadata(id, MetadataStandby, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetMetadata(id, MetadataMember, "s2"); err != nil {
		t.Error(err)
	}
}

func TestRemoveNeedsDisabledNode(t *testing.T) {
	c, id := mustJoin(t, newCluster(t), request("a"))
	c, err := c.SetStorage(id, StorageReadWrite, ByNode)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Remove(id.ID); err == nil {
		t.Error("a node with logs was removed")
	}
	for _, s := range []StorageState{StorageReadOnly, StorageDisabled} {
		if c, err = c.SetStorage(id, s, ByOperator); err != nil {
			t.Fatal(err)
		}
	}
	if c, err = c.Remove(id.ID); err != nil {
		t.Fatal(err)
	}
	if c, err = c.Remove(id.ID); err != nil {
		t.Errorf("removing twice: %v", err)
	}
	if s, _ := c.Storage(id.ID); s != StorageDisabled {
		t.Errorf("a removed node counts as %s", s)
	}
	if s, _ := c.Storage(99); s != StorageProvisioning {
		t.Errorf("an unknown node counts as %s", s)
	}
	if err := c.IsCurrent(id); err == nil {
		t.Error("a removed node is current")
	}
}

const goldenNodes = `{"format":1,"cluster_name":"test","fingerprint":"000000000000feed","nodes":[{"id":1,"name":"a","generation":1,"address":"127.0.0.1:5122","roles":["worker","log-server","metadata-server","admin","http-ingress"],"location":"eu.a","storage":"read-write","worker":"active","metadata":"member","metadata_storage":"s1","directory":"dir-a","incarnation":"a/1","binary_version":"1.0"}],"removed":[2]}`

func TestNodesConfigGolden(t *testing.T) {
	c, err := DecodeNodesConfig([]byte(goldenNodes))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Encode(); err != nil || string(got) != goldenNodes {
		t.Errorf("encoding changed (%v):\n got %s\nwant %s", err, got, goldenNodes)
	}
	n, ok := c.NodeByName("a")
	if !ok || n.Storage != StorageReadWrite || n.Location != (Location{"eu", "a"}) || c.MaxID() != 2 {
		t.Errorf("read as %+v", c)
	}
	for _, bad := range []string{
		strings.Replace(goldenNodes, `"format":1`, `"format":2`, 1),
		strings.Replace(goldenNodes, `"format":1`, `"format":1,"new":1`, 1),
		strings.Replace(goldenNodes, `"removed":[2]`, `"removed":[1]`, 1),
		strings.Replace(goldenNodes, `feed`, `0000`, 1),
		goldenNodes + "{}", "", "null",
	} {
		if _, err := DecodeNodesConfig([]byte(bad)); err == nil {
			t.Errorf("accepted %s", bad)
		}
	}
}

func FuzzDecodeNodesConfig(f *testing.F) {
	f.Add([]byte(goldenNodes))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := DecodeNodesConfig(data)
		if err != nil {
			return
		}
		first, err := c.Encode()
		if err != nil {
			t.Fatalf("decoded but does not encode: %v", err)
		}
		back, err := DecodeNodesConfig(first)
		if err != nil {
			t.Fatalf("own encoding is refused: %v", err)
		}
		if second, err := back.Encode(); err != nil || !bytes.Equal(first, second) {
			t.Fatalf("encoding is not stable: %s, %s, %v", first, second, err)
		}
	})
}

// fleet makes a cluster with n read-write log servers, node i in the zone that zone(i) names.
func fleet(t testing.TB, n int, zone func(i int) string) NodesConfig {
	t.Helper()
	c := newCluster(t)
	for i := range n {
		r := request(fmt.Sprint("n", i+1))
		location, err := ParseLocation(zone(i))
		if err != nil {
			t.Fatal(err)
		}
		r.Location = location
		var id GenNodeID
		c, id = mustJoin(t, c, r)
		if c, err = c.SetStorage(id, StorageReadWrite, ByNode); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestNodeSetOfOneNode(t *testing.T) {
	c := fleet(t, 1, func(int) string { return "" })
	set, err := SelectNodeSet(c, NodeSetRequest{Log: 3, Replication: ReplicateTo(1), First: 1})
	if err != nil || !slices.Equal(set, []NodeID{1}) {
		t.Errorf("node set %v, %v", set, err)
	}
	if _, err := SelectNodeSet(c, NodeSetRequest{Log: 3, Replication: ReplicateTo(2)}); !errors.Is(err, ErrInsufficientNodes) {
		t.Errorf("two copies on one node: %v", err)
	}
}

func TestNodeSetPrefersAliveFirstAndFormer(t *testing.T) {
	c := fleet(t, 9, func(int) string { return "" })
	for log := range LogID(50) {
		dead := NodeID(log%9 + 1)
		r := NodeSetRequest{Log: log, Replication: ReplicateTo(2), First: dead%9 + 1, Preferred: []NodeID{dead, (dead+3)%9 + 1}, Alive: func(id NodeID) bool { return id != dead }}
		set, err := SelectNodeSet(c, r)
		if err != nil {
			t.Fatal(err)
		}
		if len(set) != 3 || !slices.Contains(set, r.First) || !slices.Contains(set, r.Preferred[1]) || slices.Contains(set, dead) {
			t.Errorf("log %d: node set %v with %+v", log, set, r)
		}
		again, _ := SelectNodeSet(c, r)
		if !slices.Equal(set, again) {
			t.Errorf("log %d: %v, then %v", log, set, again)
		}
	}
}

func TestNodeSetsAreSpread(t *testing.T) {
	c := fleet(t, 9, func(i int) string { return "r." + string(rune('a'+i%3)) })
	r := mustReplication(t, "{zone:2,node:3}")
	used := map[NodeID]int{}
	for log := range LogID(200) {
		set, err := SelectNodeSet(c, NodeSetRequest{Log: log, Replication: r, First: NodeID(log%9 + 1)})
		if err != nil {
			t.Fatal(err)
		}
		zones := map[Location]int{}
		for _, id := range set {
			n, _ := c.Node(id)
			zones[n.Location]++
			used[id]++
		}
		for zone, n := range zones {
			if n < 2 {
				t.Errorf("log %d: only %d nodes in %s of %v", log, n, zone, set)
			}
		}
		if len(zones) != 3 || len(set) != 6 || !slices.Contains(set, NodeID(log%9+1)) {
			t.Errorf("log %d: node set %v over %d zones", log, set, len(zones))
		}
	}
	for id := range NodeID(9) {
		if used[id+1] < 80 {
			t.Errorf("node %d is in %d of 200 node sets of 6 of 9 nodes", id+1, used[id+1])
		}
	}
	moved := fleet(t, 4, func(i int) string { return []string{"r.a", "r.b", "r", "r.c"}[i] })
	if _, err := SelectNodeSet(moved, NodeSetRequest{Replication: r}); err == nil {
		t.Error("a node without a zone was accepted for a property over zones")
	}
}

// Whatever is selected holds a write quorum of nodes that are alive, or is refused.
func TestNodeSetsOfRandomClusters(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	properties := []string{"1", "2", "3", "{zone:2}", "{zone:2,node:3}", "{region:2,zone:2,node:3}"}
	selected := 0
	for range 500 {
		n := 1 + rnd.IntN(12)
		zones := make([]string, n)
		for i := range zones {
			zones[i] = fmt.Sprintf("r%d.z%d", rnd.IntN(3), rnd.IntN(3))
		}
		c := fleet(t, n, func(i int) string { return zones[i] })
		up := rnd.Uint64()
		alive := func(id NodeID) bool { return up>>id&1 != 0 }
		r := mustReplication(t, properties[rnd.IntN(len(properties))])
		set, err := SelectNodeSet(c, NodeSetRequest{Log: LogID(rnd.Uint32()), Replication: r, Target: rnd.IntN(6), Alive: alive})
		q := NewQuorum(set, r, c)
		var living Members
		for i, id := range set {
			if alive(id) {
				living.Add(i)
			}
		}
		if err == nil && !q.WriteQuorum(living) {
			t.Fatalf("%v of %v with %s has no write quorum alive", set, zones, r)
		}
		if err == nil {
			selected++
		}
		if !slices.IsSorted(set) || len(slices.Compact(slices.Clone(set))) != len(set) {
			t.Fatalf("node set %v is not a sorted set", set)
		}
	}
	if selected == 0 {
		t.Error("no cluster had a node set")
	}
}
