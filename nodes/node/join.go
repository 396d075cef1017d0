package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/oklog/ulid/v2"

	"perdure/control/admin"
	"perdure/control/cluster"
	"perdure/control/datadir"
	"perdure/control/metastore"
	"perdure/control/placement"
	"perdure/control/provision"
	"perdure/nodes/logstore"
)

// membership is what a node has once it belongs to its cluster.
type membership struct {
	dir   *datadir.Dir
	store *metastore.Server
	nodes cluster.NodesConfig
	table placement.Table
}

var _ admin.Cluster = (*membership)(nil)

// Health implements admin.Cluster.
func (m *membership) Health(context.Context) (admin.Health, error) {
	if err := m.store.Failure(); err != nil {
		return admin.Health{}, fmt.Errorf("the metadata store has stopped: %w", err)
	}
	h := admin.Health{ClusterName: m.nodes.ClusterName, Members: []uint32{}}
	for _, n := range m.nodes.Nodes() {
		if n.Metadata == cluster.MetadataMember {
			h.Members = append(h.Members, uint32(n.ID))
		}
	}
	return h, nil
}

// join makes this process a node of its cluster, and the cluster first where there is none. Nothing is written to a
// directory of somebody else: lock and marker come first.
func (n *Node) join(ctx context.Context) (*membership, error) {
	dir, err := datadir.Open(n.cfg.DataDir(), newID)
	if err != nil {
		return nil, err
	}
	n.onStop("data directory", func(context.Context) error { return dir.Close() })
	marker := dir.Marker()
	if err := marker.CheckConfiguration(n.cfg.ClusterName, n.cfg.NodeName); err != nil {
		return nil, err
	}
	m := &membership{dir: dir}
	if err := n.openMetadata(ctx, m, marker); err != nil {
		return nil, err
	}
	if m.nodes, err = n.provision(ctx, m); err != nil {
		return nil, err
	}
	if err := marker.CheckCluster(m.nodes); err != nil {
		return nil, err
	}
	n.self, m.nodes, err = provision.Join(ctx, m.store, cluster.JoinRequest{
		ClusterName: n.cfg.ClusterName, Name: n.cfg.NodeName, Address: n.Addresses().Fabric, Roles: cluster.AllRoles,
		Directory: marker.Directory, Incarnation: newID(), BinaryVersion: n.version, ForcedID: firstID(marker.Node, n.cfg.ForceNodeID),
	})
	if err != nil {
		return nil, err
	}
	if m.table, err = provision.Partitions(ctx, m.store); err != nil {
		return nil, err
	}
	marker.ClusterName, marker.Fingerprint, marker.NodeName, marker.Node = n.cfg.ClusterName, m.nodes.Fingerprint, n.cfg.NodeName, n.self.ID
	marker.MetadataStorage = m.store.Identity().Storage
	return m, dir.SetMarker(marker)
}

func newID() string { return ulid.Make().String() }

// firstID is the id that the node must have: the one of its directory, or the one that was asked for.
func firstID(own cluster.NodeID, forced uint32) cluster.NodeID {
	if forced != 0 {
		return cluster.NodeID(forced)
	}
	return own
}

func (n *Node) openMetadata(ctx context.Context, m *membership, marker datadir.Marker) (err error) {
	c := &n.cfg.MetadataServer
	m.store, err = metastore.Open(metastore.Config{
		Dir: filepath.Join(n.cfg.DataDir(), "metadata"), Node: max(firstID(marker.Node, n.cfg.ForceNodeID), 1), ExpectStorage: marker.MetadataStorage,
		ElectionTimeout: c.TickInterval * time.Duration(c.ElectionTicks), SnapshotThreshold: uint64(c.LogTrimThreshold),
		Logger: n.log, Registry: n.registerer(),
	})
	if err != nil {
		return err
	}
	n.onStop("metadata store", func(context.Context) error { return m.store.Close() })
	stop := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-m.store.Failed():
			n.fail(fmt.Errorf("the metadata store failed: %w", m.store.Failure()))
		case <-stop:
		}
	}()
	n.onStop("metadata watch", func(context.Context) error {
		close(stop)
		<-watched
		return nil
	})
	if m.store.Fresh() {
		if !n.cfg.AutoProvision {
			return errors.New("there is no cluster in the data directory and auto-provision is off: switch it on to found one")
		}
		if err := m.store.Bootstrap(); err != nil {
			return err
		}
	}
	return m.store.WaitReady(ctx)
}

func (n *Node) provision(ctx context.Context, m *membership) (cluster.NodesConfig, error) {
	if !n.cfg.AutoProvision {
		return provision.Nodes(ctx, m.store)
	}
	return provision.Provision(ctx, m.store, provision.Cluster{
		Name: n.cfg.ClusterName, Partitions: n.cfg.DefaultNumPartitions,
		NewFingerprint: func() cluster.Fingerprint { return cluster.Fingerprint(rand.Uint64() | 1) },
	})
}

// activate judges the log store that was opened, marks a new one, and makes the node usable in the cluster.
func (n *Node) activate(ctx context.Context, m *membership, ls *logstore.Store) error {
	found, ok, err := ls.Marker()
	if err != nil {
		return err
	}
	me, known := m.nodes.Node(n.self.ID)
	if !known {
		return fmt.Errorf("node %s is not in the membership that it joined", n.self)
	}
	marker := m.dir.Marker()
	verdict, err := marker.CheckLogStore(me, datadir.Store{Exists: ok, Node: found.Node, Storage: found.StorageID, Fingerprint: cluster.Fingerprint(found.Fingerprint)})
	switch verdict {
	case datadir.DeclareLoss:
		_, e := provision.SetStorage(ctx, m.store, n.self, cluster.StorageDataLoss, cluster.ByNode)
		return errors.Join(err, e)
	case datadir.Refuse:
		return err
	case datadir.Provision:
		if !ok {
			found = logstore.Marker{Node: n.self.ID, StorageID: newID(), Fingerprint: uint64(m.nodes.Fingerprint)}
			if err := ls.SetMarker(found); err != nil {
				return err
			}
		}
	}
	if marker.LogStorage != found.StorageID {
		marker.LogStorage = found.StorageID
		if err := m.dir.SetMarker(marker); err != nil {
			return err
		}
	}
	m.nodes, err = provision.Activate(ctx, m.store, n.self, provision.Readiness{LogStore: true, Worker: true, MetadataStorage: m.store.Identity().Storage})
	if err != nil {
		return err
	}
	_, err = provision.EnsureReplicaSets(ctx, m.store)
	return err
}
