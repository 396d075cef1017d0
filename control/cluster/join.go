package cluster

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// JoinRequest is what a starting process says about itself.
type JoinRequest struct {
	ClusterName string // must be the cluster's
	Name        string // the node's name, unique in the cluster
	Address     string // advertised address of the node-to-node port
	Roles       Roles
	Location    Location // zero: keep what the cluster knows
	// Directory is the identity of the data directory this process holds the lock of.
	Directory string
	// Incarnation is unique to this process; see Node.Incarnation.
	Incarnation   string
	BinaryVersion string
	// ForcedID is the id that the node must get or have, 0 for any. A process whose data directory was used by a
	// node before passes that node's id.
	ForcedID NodeID
	// Again is set on every try but the first; Seen is the generation that was found at the first one, 0 for none.
	// A newer one was taken by another process that is starting under the same name.
	Again bool
	Seen  Generation
}

// The reasons for which a join is refused. None goes away by trying again.
var (
	ErrWrongCluster   = errors.New("wrong cluster")
	ErrWrongNode      = errors.New("wrong node id")
	ErrNameTaken      = errors.New("node name is taken")
	ErrNodeRemoved    = errors.New("node was removed")
	ErrPreempted      = errors.New("preempted by a newer process of this node")
	ErrLocationFrozen = errors.New("location can not change")
)

// Join gives a starting process its node id and a generation of its own: a new id and generation 1 for a new
// name, the next generation for a known one. The caller stores the returned membership by compare-and-set and
// repeats Join on the newer value when that fails. A Join whose result is already in c changes nothing, so that
// it can be repeated after an outcome that is not known.
func (c NodesConfig) Join(r JoinRequest) (NodesConfig, GenNodeID, error) {
	if err := r.validate(); err != nil {
		return c, GenNodeID{}, fmt.Errorf("join cluster: %w", err)
	}
	if r.ClusterName != c.ClusterName {
		return c, GenNodeID{}, fmt.Errorf("join cluster %q: %w: this cluster is named %q; check the cluster name and the metadata addresses of the configuration", r.ClusterName, ErrWrongCluster, c.ClusterName)
	}
	if r.ForcedID != 0 && c.Removed(r.ForcedID) {
		return c, GenNodeID{}, fmt.Errorf("join cluster: %w: node %s was removed and its id is never used again; start with an empty data directory and a new name", ErrNodeRemoved, r.ForcedID)
	}
	if n, ok := c.NodeByName(r.Name); ok {
		return c.rejoin(n, r)
	}
	return c.admit(r)
}

func (r JoinRequest) validate() error {
	if err := checkName("node", r.Name); err != nil {
		return err
	}
	switch {
	case r.Roles == 0:
		return errors.New("a node needs at least one role")
	case r.Address == "":
		return errors.New("a node needs an advertised address")
	case r.Directory == "" || r.Incarnation == "":
		return errors.New("a join needs the identities of the data directory and of the process")
	}
	return nil
}

func (c NodesConfig) admit(r JoinRequest) (NodesConfig, GenNodeID, error) {
	id := r.ForcedID
	if id == 0 {
		highest := c.MaxID()
		if highest == math.MaxUint32 {
			return c, GenNodeID{}, errors.New("join cluster: all node ids are used up")
		}
		id = highest + 1
	} else if other, ok := c.Node(id); ok {
		return c, GenNodeID{}, fmt.Errorf("join cluster: %w: id %s belongs to node %q, this process is named %q; a data directory can not be given to a node of another name", ErrWrongNode, id, other.Name, r.Name)
	}
	n := Node{
		ID: id, Name: r.Name, Generation: 1, Address: r.Address, Roles: r.Roles, Location: r.Location,
		Directory: r.Directory, Incarnation: r.Incarnation, BinaryVersion: r.BinaryVersion,
	}
	at, _ := c.find(id)
	c.nodes = slices.Insert(slices.Clone(c.nodes), at, n)
	return c, n.Gen(), nil
}

func (c NodesConfig) rejoin(n Node, r JoinRequest) (NodesConfig, GenNodeID, error) {
	if n.Incarnation == r.Incarnation {
		return c, n.Gen(), nil
	}
	if err := checkRejoin(n, r); err != nil {
		return c, GenNodeID{}, fmt.Errorf("join cluster as %q: %w", r.Name, err)
	}
	n.Generation++
	n.Address, n.Roles, n.BinaryVersion = r.Address, r.Roles, r.BinaryVersion
	n.Directory, n.Incarnation = r.Directory, r.Incarnation
	if !r.Location.IsZero() {
		n.Location = r.Location
	}
	at, _ := c.find(n.ID)
	c.nodes = slices.Clone(c.nodes)
	c.nodes[at] = n
	return c, n.Gen(), nil
}

func checkRejoin(n Node, r JoinRequest) error {
	switch {
	case r.ForcedID != 0 && r.ForcedID != n.ID:
		return fmt.Errorf("%w: the name belongs to %s, but this data directory is that of %s; check the node name and the data directory", ErrWrongNode, n.ID, r.ForcedID)
	case r.Again && n.Generation > r.Seen:
		return fmt.Errorf("%w: generation %d appeared while this process was starting; are two servers configured with the same node name?", ErrPreempted, n.Generation)
	case n.Generation == math.MaxUint32:
		return errors.New("all generations of the node are used up")
	case r.Directory != n.Directory && n.holdsData():
		return fmt.Errorf("%w: node %s keeps data in another data directory (%s, this one is %s). If this is a second server, give it a name of its own. If the disk of %s was lost, start the replacement under a new name and set the storage state of %s to data-loss",
			ErrNameTaken, n.ID, n.Directory, r.Directory, n.ID, n.ID)
	case !r.Location.IsZero() && r.Location != n.Location && n.holdsLogs() && !refines(r.Location, n.Location):
		return fmt.Errorf("%w: node %s has logs and is known in %q; quorums were counted with that location, so it can not become %q", ErrLocationFrozen, n.ID, n.Location, r.Location)
	}
	return nil
}

// holdsLogs reports whether the node's log store was ever in a node set.
func (n Node) holdsLogs() bool {
	return n.Storage != StorageProvisioning && n.Storage != StorageDisabled
}

// holdsData reports whether others rely on what is in the node's data directory. Partition stores do not count,
// they are rebuilt from snapshots and logs.
func (n Node) holdsData() bool { return n.holdsLogs() || n.Metadata == MetadataMember }

// refines reports whether next says the same as old, or more.
func refines(next, old Location) bool {
	return old.IsZero() || next.Region == old.Region && (old.Zone == "" || next.Zone == old.Zone)
}
