// Package provision takes a cluster into being and a node into a cluster: the sequences of metadata writes that must
// converge when the process is killed between any two of them. Every function can be repeated at any time, by several
// processes at once, and ends in the same state.
package provision

import (
	"context"
	"errors"
	"fmt"

	"perdure/control/cluster"
	"perdure/control/metadata"
	"perdure/control/placement"
)

// DefaultPartitions is the number of partitions of a cluster whose operator did not choose one.
const DefaultPartitions = 24

// Cluster says what a new cluster is like.
type Cluster struct {
	Name string
	// Partitions is fixed for the life of the cluster. Default DefaultPartitions.
	Partitions int
	// Replication is that of the partition processors. Default one copy.
	Replication cluster.Replication
	// NewFingerprint makes a random number that is not zero.
	NewFingerprint func() cluster.Fingerprint
}

// Provision makes the cluster if there is none: first the membership, whose fingerprint is the cluster's identity, then
// the partition table. What exists already stays as it is. A cluster of another name is an error.
//
// It must be enabled on one node of a new cluster only: nodes that provision different metadata stores make
// different clusters.
func Provision(ctx context.Context, s metadata.Store, c Cluster) (cluster.NodesConfig, error) {
	if c.Partitions == 0 {
		c.Partitions = DefaultPartitions
	}
	if c.Replication.IsZero() {
		c.Replication = cluster.ReplicateTo(1)
	}
	table, err := placement.NewTable(c.Partitions, c.Replication)
	if err != nil {
		return cluster.NodesConfig{}, fmt.Errorf("provision cluster: %w", err)
	}
	nodes, err := provisionNodes(ctx, s, c)
	if err != nil {
		return cluster.NodesConfig{}, fmt.Errorf("provision cluster: %w", err)
	}
	_, err = metadata.Update(ctx, s, metadata.PartitionsKey, func(_ metadata.Value, exists bool) ([]byte, error) {
		if exists {
			return nil, metadata.ErrKeep
		}
		return table.Encode()
	})
	if err != nil {
		return cluster.NodesConfig{}, fmt.Errorf("provision cluster: %w", err)
	}
	return nodes, nil
}

func provisionNodes(ctx context.Context, s metadata.Store, c Cluster) (cluster.NodesConfig, error) {
	fingerprint := c.NewFingerprint()
	nodes, err := updateNodes(ctx, s, func(old cluster.NodesConfig, exists bool) (cluster.NodesConfig, error) {
		if exists {
			return old, metadata.ErrKeep
		}
		return cluster.NewNodesConfig(c.Name, fingerprint)
	})
	if err == nil && nodes.ClusterName != c.Name {
		err = fmt.Errorf("%w: this metadata store is of cluster %q, but the configured cluster name is %q", cluster.ErrWrongCluster, nodes.ClusterName, c.Name)
	}
	return nodes, err
}

// updateNodes changes the membership by compare-and-set.
func updateNodes(ctx context.Context, s metadata.Store, change func(old cluster.NodesConfig, exists bool) (cluster.NodesConfig, error)) (cluster.NodesConfig, error) {
	v, err := metadata.Update(ctx, s, metadata.NodesKey, func(v metadata.Value, exists bool) ([]byte, error) {
		var old cluster.NodesConfig
		if exists {
			var err error
			if old, err = cluster.DecodeNodesConfig(v.Data); err != nil {
				return nil, err
			}
		}
		next, err := change(old, exists)
		if err != nil {
			return nil, err
		}
		return next.Encode()
	})
	if err != nil {
		return cluster.NodesConfig{}, err
	}
	return cluster.DecodeNodesConfig(v.Data)
}

// ErrNotProvisioned is returned while the cluster has not been provisioned.
var ErrNotProvisioned = errors.New("cluster is not provisioned yet")

// Nodes reads the membership.
func Nodes(ctx context.Context, s metadata.Store) (cluster.NodesConfig, error) {
	v, err := s.Get(ctx, metadata.NodesKey)
	if errors.Is(err, metadata.ErrNotFound) {
		return cluster.NodesConfig{}, ErrNotProvisioned
	}
	if err != nil {
		return cluster.NodesConfig{}, err
	}
	return cluster.DecodeNodesConfig(v.Data)
}

// Partitions reads the partition table.
func Partitions(ctx context.Context, s metadata.Store) (placement.Table, error) {
	v, err := s.Get(ctx, metadata.PartitionsKey)
	if errors.Is(err, metadata.ErrNotFound) {
		return placement.Table{}, ErrNotProvisioned
	}
	if err != nil {
		return placement.Table{}, err
	}
	return placement.DecodeTable(v.Data)
}

// Join gives this process its node id and a generation of its own. Each call with a new Incarnation takes one
// generation; repeating a call with the same one gives the same answer. Again and Seen of the request are set here.
func Join(ctx context.Context, s metadata.Store, r cluster.JoinRequest) (cluster.GenNodeID, cluster.NodesConfig, error) {
	var self cluster.GenNodeID
	r.Again, r.Seen = false, 0
	nodes, err := updateNodes(ctx, s, func(old cluster.NodesConfig, exists bool) (next cluster.NodesConfig, err error) {
		if !exists {
			return old, ErrNotProvisioned
		}
		if next, self, err = old.Join(r); err != nil {
			return old, err
		}
		if now, ok := old.Node(self.ID); ok && now.Gen() == self {
			return old, metadata.ErrKeep // a former try was applied
		}
		if !r.Again {
			r.Again, r.Seen = true, self.Generation-1
		}
		return next, nil
	})
	if err != nil {
		return cluster.GenNodeID{}, cluster.NodesConfig{}, err
	}
	return self, nodes, nil
}

// Readiness is what a node has got ready since it joined.
type Readiness struct {
	// LogStore: the log store's marker is durable.
	LogStore bool
	// Worker: partitions may be given to the node.
	Worker bool
	// MetadataStorage is the storage id under which the node is a member of the metadata group, empty if it is not.
	MetadataStorage string
}

// Activate records that a node's roles are ready for use, in one write. States in which the node is already, or
// that its operator has set, stay as they are.
func Activate(ctx context.Context, s metadata.Store, self cluster.GenNodeID, r Readiness) (cluster.NodesConfig, error) {
	nodes, err := updateNodes(ctx, s, func(old cluster.NodesConfig, exists bool) (cluster.NodesConfig, error) {
		if !exists {
			return old, ErrNotProvisioned
		}
		if err := old.IsCurrent(self); err != nil {
			return old, err
		}
		next, err := activate(old, self, r)
		if err != nil {
			return old, err
		}
		if before, _ := old.Node(self.ID); before == mustNode(next, self.ID) {
			return old, metadata.ErrKeep
		}
		return next, nil
	})
	if err != nil {
		return cluster.NodesConfig{}, fmt.Errorf("activate node %s: %w", self, err)
	}
	return nodes, nil
}

func mustNode(c cluster.NodesConfig, id cluster.NodeID) cluster.Node {
	n, _ := c.Node(id)
	return n
}

func activate(c cluster.NodesConfig, self cluster.GenNodeID, r Readiness) (next cluster.NodesConfig, err error) {
	next = c
	n := mustNode(c, self.ID)
	if r.LogStore && n.Storage == cluster.StorageProvisioning {
		next, err = next.SetStorage(self, cluster.StorageReadWrite, cluster.ByNode)
	}
	if err == nil && r.Worker && n.Worker == cluster.WorkerProvisioning {
		next, err = next.SetWorker(self, cluster.WorkerActive, cluster.ByNode)
	}
	if err == nil && r.MetadataStorage != "" {
		next, err = next.SetMetadata(self, cluster.MetadataMember, r.MetadataStorage)
	}
	return next, err
}

// SetStorage changes the storage state of a node; see cluster.NodesConfig.SetStorage.
func SetStorage(ctx context.Context, s metadata.Store, node cluster.GenNodeID, next cluster.StorageState, by cluster.Actor) (cluster.NodesConfig, error) {
	return updateNodes(ctx, s, func(old cluster.NodesConfig, exists bool) (cluster.NodesConfig, error) {
		if !exists {
			return old, ErrNotProvisioned
		}
		if now, ok := old.Node(node.ID); ok && now.Storage == next && (by == cluster.ByOperator || now.Gen() == node) {
			return old, metadata.ErrKeep
		}
		return old.SetStorage(node, next, by)
	})
}

// EnsureReplicaSets gives a replica set to each partition that has none, among the workers that are active, and
// returns the leadership objects of all partitions in order. It is what a single node does in place of a controller.
// With no active worker it leaves partitions without one, which then are not in the result. It does not wait for a
// store that is unavailable: it returns metadata.ErrUnavailable and can be called again.
func EnsureReplicaSets(ctx context.Context, s metadata.Store) ([]placement.Leadership, error) {
	for {
		view, err := readView(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("place partitions: %w", err)
		}
		compares, puts, err := creations(placement.Plan(view))
		if err != nil {
			return nil, fmt.Errorf("place partitions: %w", err)
		}
		if len(puts) == 0 {
			return view.Leaderships, nil
		}
		// A conflict, or not knowing, means looking again; the context bounds it.
		var conflict *metadata.ConflictError
		if _, err := s.Txn(ctx, compares, puts); err != nil && !errors.As(err, &conflict) && !errors.Is(err, metadata.ErrUnknownOutcome) {
			return nil, fmt.Errorf("place partitions: %w", err)
		}
	}
}

// maxCreations keeps a transaction far below its limits.
const maxCreations = 1024

func creations(plan []placement.Decision) (compares []metadata.Compare, puts []metadata.Put, err error) {
	for _, d := range plan {
		if d.Action != placement.Create || len(puts) == maxCreations {
			continue
		}
		data, err := d.Leadership.Encode()
		if err != nil {
			return nil, nil, err
		}
		key := metadata.EpochKey(d.Partition)
		compares = append(compares, metadata.Compare{Key: key, Precondition: metadata.Absent})
		puts = append(puts, metadata.Put{Key: key, Data: data})
	}
	return compares, puts, nil
}

// readView reads what a plan needs, with every worker taken for alive.
func readView(ctx context.Context, s metadata.Store) (placement.View, error) {
	nodes, err := Nodes(ctx, s)
	if err != nil {
		return placement.View{}, err
	}
	view := placement.View{}
	if view.Table, err = Partitions(ctx, s); err != nil {
		return placement.View{}, err
	}
	for _, n := range nodes.Nodes() {
		if n.Roles.Has(cluster.Worker) {
			view.Workers = append(view.Workers, placement.Worker{Node: n.Gen(), State: n.Worker, Location: n.Location, Alive: true})
		}
	}
	stored, err := s.List(ctx, metadata.EpochPrefix)
	if err != nil {
		return placement.View{}, err
	}
	byPartition := make([]*placement.Leadership, view.Table.Len())
	for _, kv := range stored {
		l, err := placement.DecodeLeadership(kv.Data)
		if err != nil {
			return placement.View{}, fmt.Errorf("read %q: %w", kv.Key, err)
		}
		if int(l.Partition) >= len(byPartition) || kv.Key != metadata.EpochKey(l.Partition) {
			return placement.View{}, fmt.Errorf("read %q: it is of partition %d, which does not belong there", kv.Key, l.Partition)
		}
		byPartition[l.Partition] = &l
	}
	for _, l := range byPartition {
		if l != nil {
			view.Leaderships = append(view.Leaderships, *l)
		}
	}
	return view, nil
}
