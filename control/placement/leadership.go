package placement

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	"perdure/control/cluster"
)

// ReplicaSet is the nodes that run processors of a partition. Versions of a partition's sets only grow.
type ReplicaSet struct {
	Version     uint32              `json:"version"`
	Replication cluster.Replication `json:"replication"`
	Nodes       []cluster.NodeID    `json:"nodes"` // ascending
}

// Has reports whether the node is in the set.
func (r ReplicaSet) Has(id cluster.NodeID) bool { return slices.Contains(r.Nodes, id) }

// Leadership is what the cluster agreed on for one partition. Epoch and replica sets are one object, so that a leader
// claims its epoch and learns atomically which configuration it has to announce. It is a value: changes return
// another one.
type Leadership struct {
	Partition cluster.PartitionID
	// Epoch is that of the last claim, 0 before the first.
	Epoch cluster.Epoch
	// Claimant is who made the last claim.
	Claimant cluster.GenNodeID
	// Current is the replica set in force; Next, if not nil, the one that is being moved to. Processors run on
	// both.
	Current ReplicaSet
	Next    *ReplicaSet
}

// The reasons for which a change is refused.
var (
	ErrNotReplica = errors.New("node is in no replica set of the partition")
	ErrPreempted  = errors.New("a newer process of this node has claimed the partition")
)

// NewLeadership is the object of a partition that nobody has claimed yet.
func NewLeadership(id cluster.PartitionID, r cluster.Replication, nodes []cluster.NodeID) (Leadership, error) {
	set, err := newReplicaSet(1, r, nodes)
	if err != nil {
		return Leadership{}, fmt.Errorf("create leadership of partition %d: %w", id, err)
	}
	return Leadership{Partition: id, Current: set}, nil
}

func newReplicaSet(version uint32, r cluster.Replication, nodes []cluster.NodeID) (ReplicaSet, error) {
	set := ReplicaSet{version, r, slices.Sorted(slices.Values(nodes))}
	return set, set.validate()
}

func (r ReplicaSet) validate() error {
	if err := r.Replication.Validate(); err != nil {
		return err
	}
	if r.Version == 0 {
		return errors.New("a replica set has no version")
	}
	if len(r.Nodes) == 0 || len(r.Nodes) > cluster.MaxNodeSet {
		return fmt.Errorf("a replica set has 1 to %d nodes, not %d", cluster.MaxNodeSet, len(r.Nodes))
	}
	for i, id := range r.Nodes {
		if id == 0 || i > 0 && r.Nodes[i-1] >= id {
			return fmt.Errorf("replica set %v is not an ascending list of nodes", r.Nodes)
		}
	}
	return nil
}

// Members are the nodes of both sets, ascending.
func (l Leadership) Members() []cluster.NodeID {
	members := slices.Clone(l.Current.Nodes)
	if l.Next != nil {
		members = append(members, l.Next.Nodes...)
	}
	slices.Sort(members)
	return slices.Compact(members)
}

// Has reports whether the node runs a processor of the partition.
func (l Leadership) Has(id cluster.NodeID) bool {
	return l.Current.Has(id) || l.Next != nil && l.Next.Has(id)
}

// Claim takes the next epoch for node, which then may announce itself as leader in the partition's log. Each claim
// gives a new epoch, also to the same node.
func (l Leadership) Claim(node cluster.GenNodeID) (Leadership, error) {
	switch {
	case !l.Has(node.ID):
		return l, fmt.Errorf("claim partition %d for %s: %w", l.Partition, node, ErrNotReplica)
	case l.Claimant.ID == node.ID && l.Claimant.Generation > node.Generation:
		return l, fmt.Errorf("claim partition %d for %s: %w: %s", l.Partition, node, ErrPreempted, l.Claimant)
	case l.Epoch == math.MaxUint64:
		return l, fmt.Errorf("claim partition %d for %s: all epochs are used up", l.Partition, node)
	}
	l.Epoch++
	l.Claimant = node
	return l, nil
}

// Reconfigure begins to move to another replica set, or changes where to if a move is under way.
func (l Leadership) Reconfigure(r cluster.Replication, nodes []cluster.NodeID) (Leadership, error) {
	version := l.Current.Version
	if l.Next != nil {
		version = l.Next.Version
	}
	if version == math.MaxUint32 {
		return l, fmt.Errorf("reconfigure partition %d: all versions are used up", l.Partition)
	}
	next, err := newReplicaSet(version+1, r, nodes)
	if err != nil {
		return l, fmt.Errorf("reconfigure partition %d: %w", l.Partition, err)
	}
	l.Next = &next
	return l, nil
}

// Complete ends a move: the next set becomes the current one. Without a move nothing changes.
func (l Leadership) Complete() Leadership {
	if l.Next != nil {
		l.Current, l.Next = *l.Next, nil
	}
	return l
}

const leadershipFormat = 1

type leadershipJSON struct {
	Format    int                 `json:"format"`
	Partition cluster.PartitionID `json:"partition"`
	Epoch     cluster.Epoch       `json:"epoch"`
	Claimant  [2]uint32           `json:"claimant"` // node id and generation
	Current   ReplicaSet          `json:"current"`
	Next      *ReplicaSet         `json:"next,omitempty"`
}

// Encode is the stored form.
func (l Leadership) Encode() ([]byte, error) {
	if err := l.validate(); err != nil {
		return nil, fmt.Errorf("encode leadership of partition %d: %w", l.Partition, err)
	}
	claimant := [2]uint32{uint32(l.Claimant.ID), uint32(l.Claimant.Generation)}
	return json.Marshal(leadershipJSON{leadershipFormat, l.Partition, l.Epoch, claimant, l.Current, l.Next})
}

// DecodeLeadership reads the stored form.
func DecodeLeadership(data []byte) (Leadership, error) {
	var v leadershipJSON
	if err := decodeStrict(data, &v); err != nil {
		return Leadership{}, fmt.Errorf("decode leadership: %w", err)
	}
	if v.Format != leadershipFormat {
		return Leadership{}, fmt.Errorf("decode leadership: format %d is not known to this version of the server", v.Format)
	}
	claimant := cluster.GenNodeID{ID: cluster.NodeID(v.Claimant[0]), Generation: cluster.Generation(v.Claimant[1])}
	l := Leadership{v.Partition, v.Epoch, claimant, v.Current, v.Next}
	if err := l.validate(); err != nil {
		return Leadership{}, fmt.Errorf("decode leadership of partition %d: %w", v.Partition, err)
	}
	return l, nil
}

func (l Leadership) validate() error {
	if err := l.Current.validate(); err != nil {
		return err
	}
	if l.Next != nil {
		if err := l.Next.validate(); err != nil {
			return err
		}
		if l.Next.Version <= l.Current.Version {
			return errors.New("the next replica set is not newer than the current one")
		}
	}
	claimed := l.Claimant.ID != 0 && l.Claimant.Generation != 0
	if claimed != (l.Epoch != 0) || !claimed && l.Claimant != (cluster.GenNodeID{}) {
		return errors.New("epoch and claimant do not agree")
	}
	return nil
}
