package placement

import (
	"slices"

	"perdure/control/cluster"
)

// Worker is a node as the planner sees it.
type Worker struct {
	Node     cluster.GenNodeID
	State    cluster.WorkerState
	Location cluster.Location
	// Alive is a hint from the failure detector; a wrong one costs availability, not safety.
	Alive bool
}

// View is what a plan is made from. The planner keeps nothing of it.
type View struct {
	Table       Table
	Leaderships []Leadership // of the partitions that have one, in any order
	Workers     []Worker     // in any order
	// CaughtUp reports whether the node's processor of the partition has applied what there is to apply. nil
	// means none has.
	CaughtUp func(cluster.PartitionID, cluster.NodeID) bool
	// Leader is the node that was last seen to lead the partition, zero for none. nil means none for all.
	Leader func(cluster.PartitionID) cluster.GenNodeID
}

// Action is what a decision wants to be done.
type Action uint8

// The actions.
const (
	// Create stores the first leadership object of a partition, if there is none yet.
	Create Action = iota
	// Replace stores a leadership object in place of the one in the view, if that is still there.
	Replace
	// Lead asks Node to claim the partition.
	Lead
)

// Decision is one step of a plan. Decisions on different partitions are independent of each other; of two on one
// partition the second may fail because of the first, and the next plan tries again.
type Decision struct {
	Action     Action
	Partition  cluster.PartitionID
	Leadership Leadership        // of Create and Replace
	Node       cluster.GenNodeID // of Lead
}

// Plan says what to do for each partition, in the order of partitions: leaders first, because a partition without one is
// down, and then replica sets, because moving one is slow. It is deterministic. Partitions that no worker can take
// are left as they are.
func Plan(v View) []Decision {
	known := make(map[cluster.PartitionID]Leadership, len(v.Leaderships))
	for _, l := range v.Leaderships {
		known[l.Partition] = l
	}
	workers := slices.Clone(v.Workers)
	slices.SortFunc(workers, func(a, b Worker) int { return int(int64(a.Node.ID) - int64(b.Node.ID)) })
	var lead, replicas []Decision
	for i := range v.Table.Len() {
		id := cluster.PartitionID(i)
		l, ok := known[id]
		if !ok {
			replicas = append(replicas, v.create(id, workers)...)
			continue
		}
		lead = append(lead, v.lead(l, workers)...)
		replicas = append(replicas, v.move(l, workers)...)
	}
	return append(lead, replicas...)
}

func (v View) create(id cluster.PartitionID, workers []Worker) []Decision {
	nodes := selectReplicas(id, v.Table.Replication(), workers, nil)
	l, err := NewLeadership(id, v.Table.Replication(), nodes)
	if err != nil {
		return nil // no worker is there
	}
	return []Decision{{Action: Create, Partition: id, Leadership: l}}
}

// lead keeps a leader that is alive and in the replica set, and else asks the best member that is alive.
func (v View) lead(l Leadership, workers []Worker) []Decision {
	var leader cluster.GenNodeID
	if v.Leader != nil {
		leader = v.Leader(l.Partition)
	}
	var best *Worker
	for i := range workers {
		w := &workers[i]
		if !w.Alive || !l.Current.Has(w.Node.ID) || w.State == cluster.WorkerDisabled {
			continue
		}
		if w.Node == leader {
			return nil
		}
		if best == nil || v.leadsBetter(l, w, best) {
			best = w
		}
	}
	if best == nil {
		return nil
	}
	return []Decision{{Action: Lead, Partition: l.Partition, Node: best.Node}}
}

func (v View) leadsBetter(l Leadership, a, b *Worker) bool {
	if ca, cb := v.caughtUp(l.Partition, a.Node.ID), v.caughtUp(l.Partition, b.Node.ID); ca != cb {
		return ca
	}
	if da, db := a.State == cluster.WorkerDraining, b.State == cluster.WorkerDraining; da != db {
		return db
	}
	if ca, cb := a.Node.ID == l.Claimant.ID, b.Node.ID == l.Claimant.ID; ca != cb {
		return ca
	}
	return rank(l.Partition, a.Node.ID) < rank(l.Partition, b.Node.ID)
}

func (v View) caughtUp(id cluster.PartitionID, n cluster.NodeID) bool {
	return v.CaughtUp != nil && v.CaughtUp(id, n)
}

// move completes a move whose new set can take over, and begins one when the set should be another.
func (v View) move(l Leadership, workers []Worker) []Decision {
	if l.Next != nil && slices.ContainsFunc(l.Next.Nodes, func(n cluster.NodeID) bool { return v.caughtUp(l.Partition, n) }) {
		return []Decision{{Action: Replace, Partition: l.Partition, Leadership: l.Complete()}}
	}
	target := l.Current
	if l.Next != nil {
		target = *l.Next
	}
	want := v.Table.Replication()
	nodes := selectReplicas(l.Partition, want, workers, l.Members())
	if len(nodes) == 0 || target.Replication == want && !better(nodes, target.Nodes, workers) {
		return nil
	}
	next, err := l.Reconfigure(want, nodes)
	if err != nil {
		return nil
	}
	return []Decision{{Action: Replace, Partition: l.Partition, Leadership: next}}
}

// better reports whether moving from old to nodes is worth it: old has a member that new sets may not have, or too few.
// A dead member alone is no reason here, the controller waits before it stops calling a worker active.
func better(nodes, old []cluster.NodeID, workers []Worker) bool {
	if len(nodes) > len(old) {
		return true
	}
	for _, id := range old {
		at := slices.IndexFunc(workers, func(w Worker) bool { return w.Node.ID == id })
		if at < 0 || !workers[at].State.Selectable() {
			return !slices.Equal(nodes, old)
		}
	}
	return false
}

// selectReplicas chooses as many workers as the replication wants, or as there are, spread over the domains of its
// widest scope; members are preferred, then a fixed order per partition. The result is ascending.
func selectReplicas(id cluster.PartitionID, r cluster.Replication, workers []Worker, members []cluster.NodeID) []cluster.NodeID {
	scope := r.WidestScope()
	perDomain := map[cluster.Location]int{}
	taken := make([]bool, len(workers))
	domainOf := func(w Worker) cluster.Location {
		location, _ := w.Location.Domain(scope)
		return location
	}
	before := func(a, b Worker) bool {
		if da, db := perDomain[domainOf(a)], perDomain[domainOf(b)]; scope != cluster.NodeScope && da != db {
			return da < db
		}
		if ma, mb := slices.Contains(members, a.Node.ID), slices.Contains(members, b.Node.ID); ma != mb {
			return ma
		}
		return rank(id, a.Node.ID) < rank(id, b.Node.ID)
	}
	var chosen []cluster.NodeID
	for len(chosen) < r.NodeCopies() {
		best := -1
		for i, w := range workers {
			if taken[i] || !w.Alive || !w.State.Selectable() {
				continue
			}
			if best < 0 || before(w, workers[best]) {
				best = i
			}
		}
		if best < 0 {
			break
		}
		taken[best] = true
		perDomain[domainOf(workers[best])]++
		chosen = append(chosen, workers[best].Node.ID)
	}
	slices.Sort(chosen)
	return chosen
}

// rank is a fixed pseudo-random order of the nodes for each partition.
func rank(id cluster.PartitionID, n cluster.NodeID) uint64 {
	x := uint64(id)<<32 | uint64(n)
	for range 2 {
		x += 0x9e3779b97f4a7c15
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		x ^= x >> 31
	}
	return x
}
