package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// Fingerprint tells clusters apart that bear the same name. It is random, not zero, and never changes.
type Fingerprint uint64

func (f Fingerprint) String() string { return fmt.Sprintf("%016x", uint64(f)) }

// MarshalText writes 16 hexadecimal digits.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads hexadecimal digits.
func (f *Fingerprint) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 16, 64)
	if err != nil {
		return fmt.Errorf("fingerprint %q is not a hexadecimal number of 64 bits", text)
	}
	*f = Fingerprint(v)
	return nil
}

// Node is what the cluster knows about one of its nodes.
type Node struct {
	ID         NodeID       `json:"id"`
	Name       string       `json:"name"`
	Generation Generation   `json:"generation"`
	Address    string       `json:"address"` // advertised, of the node-to-node port
	Roles      Roles        `json:"roles"`
	Location   Location     `json:"location,omitzero"`
	Storage    StorageState `json:"storage"`
	Worker     WorkerState  `json:"worker"`

	Metadata MetadataState `json:"metadata"`
	// MetadataStorage is the storage id of the node's raft store while it is a member, else empty. Another id
	// under the same node is another disk, which must not vote with the identity of the first.
	MetadataStorage string `json:"metadata_storage,omitempty"`

	// Directory is the identity of the node's data directory, made when the directory was first used.
	Directory string `json:"directory"`
	// Incarnation is unique to the process that took the current generation. A joining process recognises by it
	// that a join whose outcome it does not know was applied.
	Incarnation string `json:"incarnation"`
	// BinaryVersion is the version of the server that joined last.
	BinaryVersion string `json:"binary_version,omitempty"`
}

// Gen is the node's present life.
func (n Node) Gen() GenNodeID { return GenNodeID{n.ID, n.Generation} }

// NodesConfig is the membership of a cluster. It is a value: methods that change it return a changed copy, and
// holders of a copy may read it for as long as they like. Its version is that of the metadata key it is kept in.
type NodesConfig struct {
	ClusterName string
	Fingerprint Fingerprint
	nodes       []Node   // by id
	removed     []NodeID // tombstones, ascending
}

// ErrUnknownNode is returned for node ids that were never given out.
var ErrUnknownNode = errors.New("no such node")

// NewNodesConfig is the empty membership of a new cluster.
func NewNodesConfig(clusterName string, fingerprint Fingerprint) (NodesConfig, error) {
	if err := checkName("cluster", clusterName); err != nil {
		return NodesConfig{}, err
	}
	if fingerprint == 0 {
		return NodesConfig{}, errors.New("the cluster fingerprint must not be zero")
	}
	return NodesConfig{ClusterName: clusterName, Fingerprint: fingerprint}, nil
}

// maxName bounds node and cluster names, in bytes.
const maxName = 128

func checkName(what, name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("%s name must have 1 to %d characters", what, maxName)
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; c <= ' ' || c >= 0x7f {
			return fmt.Errorf("%s name %q must consist of printable ASCII characters without spaces", what, name)
		}
	}
	return nil
}

func (c NodesConfig) find(id NodeID) (int, bool) {
	return slices.BinarySearchFunc(c.nodes, id, func(n Node, id NodeID) int { return int(int64(n.ID) - int64(id)) })
}

// Node is the node of an id; ok is false for removed and unknown nodes.
func (c NodesConfig) Node(id NodeID) (Node, bool) {
	if i, ok := c.find(id); ok {
		return c.nodes[i], true
	}
	return Node{}, false
}

// NodeByName is the node of a name.
func (c NodesConfig) NodeByName(name string) (Node, bool) {
	for i := range c.nodes {
		if c.nodes[i].Name == name {
			return c.nodes[i], true
		}
	}
	return Node{}, false
}

// Nodes lists the nodes by id.
func (c NodesConfig) Nodes() []Node { return slices.Clone(c.nodes) }

// Len is the number of nodes, without removed ones.
func (c NodesConfig) Len() int { return len(c.nodes) }

// Removed reports whether the node of the id was removed for ever.
func (c NodesConfig) Removed(id NodeID) bool {
	_, found := slices.BinarySearch(c.removed, id)
	return found
}

// MaxID is the highest node id that was ever given out.
func (c NodesConfig) MaxID() NodeID {
	var highest NodeID
	if n := len(c.nodes); n > 0 {
		highest = c.nodes[n-1].ID
	}
	if n := len(c.removed); n > 0 {
		highest = max(highest, c.removed[n-1])
	}
	return highest
}

// Storage makes NodesConfig a StorageView.
func (c NodesConfig) Storage(id NodeID) (StorageState, Location) {
	if n, ok := c.Node(id); ok {
		return n.Storage, n.Location
	}
	if c.Removed(id) {
		return StorageDisabled, Location{}
	}
	return StorageProvisioning, Location{}
}

// IsCurrent says nil when g is the present life of a node, or else why the process of g must stop or be refused.
func (c NodesConfig) IsCurrent(g GenNodeID) error {
	if c.Removed(g.ID) {
		return fmt.Errorf("node %s was removed from the cluster", g.ID)
	}
	n, ok := c.Node(g.ID)
	switch {
	case !ok:
		return fmt.Errorf("node %s: %w", g.ID, ErrUnknownNode)
	case n.Generation > g.Generation:
		return fmt.Errorf("node %s was preempted by %s: another process of this node has started", g, n.Gen())
	}
	return nil
}

// SetStorage changes the storage state of a node by its legal transitions. With ByNode, g must be the present
// generation, so that an older process can not undo what a newer one declared.
func (c NodesConfig) SetStorage(g GenNodeID, next StorageState, by Actor) (NodesConfig, error) {
	return c.change(g, by, func(n *Node) error {
		if !n.Roles.Has(LogServer) && next != StorageDisabled && next != StorageDataLoss {
			return errors.New("the node is no log server")
		}
		err := n.Storage.CheckTransition(next, by)
		n.Storage = next
		return err
	})
}

// SetWorker changes the worker state of a node by its legal transitions; see SetStorage.
func (c NodesConfig) SetWorker(g GenNodeID, next WorkerState, by Actor) (NodesConfig, error) {
	return c.change(g, by, func(n *Node) error {
		err := n.Worker.CheckTransition(next, by)
		n.Worker = next
		return err
	})
}

// SetMetadata records that a node is or is no longer a member of the metadata group with the given storage id. A
// member under another storage id is refused: it is another disk with the identity of the first.
func (c NodesConfig) SetMetadata(g GenNodeID, next MetadataState, storage string) (NodesConfig, error) {
	return c.change(g, ByNode, func(n *Node) error {
		if err := n.Metadata.CheckTransition(next); err != nil {
			return err
		}
		if next == MetadataMember {
			if storage == "" {
				return errors.New("a metadata member needs the storage id of its store")
			}
			if n.Metadata == MetadataMember && n.MetadataStorage != storage {
				return fmt.Errorf("the metadata store of the node has storage id %s, but the cluster knows it as %s: its disk was wiped or swapped; remove the old member from the metadata group first", storage, n.MetadataStorage)
			}
		} else {
			storage = ""
		}
		n.Metadata, n.MetadataStorage = next, storage
		return nil
	})
}

func (c NodesConfig) change(g GenNodeID, by Actor, f func(*Node) error) (NodesConfig, error) {
	i, ok := c.find(g.ID)
	if !ok {
		return c, fmt.Errorf("change node %s: %w", g.ID, c.IsCurrent(g))
	}
	if by == ByNode && c.nodes[i].Generation != g.Generation {
		return c, fmt.Errorf("change node %s: its present generation is %d", g, c.nodes[i].Generation)
	}
	n := c.nodes[i]
	if err := f(&n); err != nil {
		return c, fmt.Errorf("change node %s: %w", g.ID, err)
	}
	c.nodes = slices.Clone(c.nodes)
	c.nodes[i] = n
	return c, nil
}

// Remove turns a node into a tombstone; its id is never given out again. Its log store and worker must be
// disabled (or never have been provisioned) and it must not be a metadata member.
func (c NodesConfig) Remove(id NodeID) (NodesConfig, error) {
	if c.Removed(id) {
		return c, nil
	}
	i, ok := c.find(id)
	if !ok {
		return c, fmt.Errorf("remove node %s: %w", id, ErrUnknownNode)
	}
	n := c.nodes[i]
	switch {
	case n.Storage != StorageDisabled && n.Storage != StorageProvisioning:
		return c, fmt.Errorf("remove node %s: its log store is %s; drain and disable it first", id, n.Storage)
	case n.Worker != WorkerDisabled && n.Worker != WorkerProvisioning:
		return c, fmt.Errorf("remove node %s: its worker is %s; drain and disable it first", id, n.Worker)
	case n.Metadata == MetadataMember:
		return c, fmt.Errorf("remove node %s: it is a member of the metadata group; remove it there first", id)
	}
	c.nodes = slices.Delete(slices.Clone(c.nodes), i, i+1)
	at, _ := slices.BinarySearch(c.removed, id)
	c.removed = slices.Insert(slices.Clone(c.removed), at, id)
	return c, nil
}

// nodesFormat is the version of the stored form.
const nodesFormat = 1

type nodesJSON struct {
	Format      int         `json:"format"`
	ClusterName string      `json:"cluster_name"`
	Fingerprint Fingerprint `json:"fingerprint"`
	Nodes       []Node      `json:"nodes"`
	Removed     []NodeID    `json:"removed,omitempty"`
}

// Encode is the stored form of the membership.
func (c NodesConfig) Encode() ([]byte, error) {
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("encode nodes configuration: %w", err)
	}
	nodes := c.nodes
	if nodes == nil {
		nodes = []Node{}
	}
	return json.Marshal(nodesJSON{nodesFormat, c.ClusterName, c.Fingerprint, nodes, c.removed})
}

// DecodeNodesConfig reads the stored form. Unknown formats and fields are refused, because a node that wrote the
// configuration back would drop what it did not understand.
func DecodeNodesConfig(data []byte) (NodesConfig, error) {
	var v nodesJSON
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return NodesConfig{}, fmt.Errorf("decode nodes configuration: %w", err)
	}
	if d.More() {
		return NodesConfig{}, errors.New("decode nodes configuration: data follows the object")
	}
	if v.Format != nodesFormat {
		return NodesConfig{}, fmt.Errorf("decode nodes configuration: format %d is not known to this version of the server", v.Format)
	}
	c := NodesConfig{v.ClusterName, v.Fingerprint, v.Nodes, v.Removed}
	if err := c.validate(); err != nil {
		return NodesConfig{}, fmt.Errorf("decode nodes configuration: %w", err)
	}
	return c, nil
}

func (c NodesConfig) validate() error {
	if _, err := NewNodesConfig(c.ClusterName, c.Fingerprint); err != nil {
		return err
	}
	names := make(map[string]bool, len(c.nodes))
	for i, n := range c.nodes {
		if err := checkName("node", n.Name); err != nil {
			return err
		}
		switch {
		case n.ID == 0 || n.Generation == 0:
			return fmt.Errorf("node %q has no id or generation", n.Name)
		case i > 0 && c.nodes[i-1].ID >= n.ID:
			return errors.New("nodes are not in the order of their ids")
		case names[n.Name]:
			return fmt.Errorf("two nodes are named %q", n.Name)
		case c.Removed(n.ID):
			return fmt.Errorf("node %s is removed and present", n.ID)
		}
		names[n.Name] = true
	}
	for i, id := range c.removed {
		if id == 0 || i > 0 && c.removed[i-1] >= id {
			return errors.New("removed nodes are not in the order of their ids")
		}
	}
	return nil
}
