package node

import (
	"context"
	"fmt"

	"perdure/control/cluster"
	"perdure/control/metadata"
	"perdure/control/placement"
	"perdure/nodes/partition"
)

// claimer takes leader epochs for this life of the node.
type claimer struct {
	store metadata.Store
	self  cluster.GenNodeID
}

// claim takes the next epoch of a partition.
func (c claimer) claim(ctx context.Context, id cluster.PartitionID) (partition.Claim, error) {
	var claimed placement.Leadership
	v, err := metadata.Update(ctx, c.store, metadata.EpochKey(id), func(old metadata.Value, exists bool) ([]byte, error) {
		if !exists {
			return nil, fmt.Errorf("partition %d has no replica set yet", id)
		}
		l, err := placement.DecodeLeadership(old.Data)
		if err != nil {
			return nil, err
		}
		if claimed, err = l.Claim(c.self); err != nil {
			return nil, err
		}
		return claimed.Encode()
	})
	if err != nil {
		return partition.Claim{}, fmt.Errorf("take the leader epoch of partition %d: %w", id, err)
	}
	return partition.Claim{Epoch: claimed.Epoch, Node: c.self, ConfigVersion: v.Version, ReplicaSets: v.Data}, nil
}
