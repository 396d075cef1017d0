package cluster

import (
	"errors"
	"fmt"
	"slices"
)

// ErrInsufficientNodes is returned when the usable log servers can not hold a write quorum.
var ErrInsufficientNodes = errors.New("not enough usable log servers")

// NodeSetRequest asks for the nodes of a new log segment.
type NodeSetRequest struct {
	Log         LogID
	Replication Replication
	// Target is the wanted number of nodes, 0 for as many as make writing and sealing equally available.
	Target int
	// First is chosen before all others of its domain when it can be: the node of the sequencer.
	First NodeID
	// Preferred are chosen before nodes that are not in it: the former segment's nodes, to scatter data less.
	Preferred []NodeID
	// Alive says which nodes can be written to now; nil means all. Others are only taken to fill up.
	Alive func(NodeID) bool
}

// SelectNodeSet chooses the node set for a log segment among the nodes that may be in new ones, spread evenly
// over the domains of the widest scope of the property. The same input gives the same set. The result is in
// ascending order. It can be smaller than wanted, but the nodes of it that are alive always hold a write quorum;
// otherwise the error is ErrInsufficientNodes. A result of just Replication.NodeCopies nodes stops writing at the
// first failure: the caller warns.
func SelectNodeSet(c NodesConfig, r NodeSetRequest) ([]NodeID, error) {
	if err := r.Replication.Validate(); err != nil {
		return nil, fmt.Errorf("select node set: %w", err)
	}
	scope := r.Replication.WidestScope()
	domains, err := candidates(c, r, scope)
	if err != nil {
		return nil, fmt.Errorf("select node set of log %d: %w", r.Log, err)
	}
	perDomain := r.minimumPerDomain(scope)
	chosen := pick(nil, domains, r.wanted(), perDomain, r.alive)
	chosen = pick(chosen, domains, r.wanted(), perDomain, func(NodeID) bool { return true })
	if err := checkSelected(c, r, chosen); err != nil {
		return nil, fmt.Errorf("select node set of log %d: %w", r.Log, err)
	}
	slices.Sort(chosen)
	return chosen, nil
}

func (r NodeSetRequest) wanted() int {
	copies := r.Replication.NodeCopies()
	return min(max(r.Target, 2*copies-1, copies+1), MaxNodeSet)
}

// minimumPerDomain is how many nodes a domain needs for the copies that do not have to be in another one.
func (r NodeSetRequest) minimumPerDomain(scope Scope) int {
	if scope == NodeScope {
		return 0
	}
	return r.Replication.NodeCopies() - r.Replication.Copies(scope) + 1
}

// domain is a failure domain with its candidates, best first.
type domain struct {
	location Location
	rank     uint64
	first    bool     // has the node that must be chosen
	nodes    []NodeID // usable ones before others
	taken    int
}

func candidates(c NodesConfig, r NodeSetRequest, scope Scope) ([]*domain, error) {
	var domains []*domain
	for _, n := range c.nodes {
		if !n.Roles.Has(LogServer) || !n.Storage.Selectable() {
			continue
		}
		location, ok := n.Location.Domain(scope)
		if scope != NodeScope && !ok {
			return nil, fmt.Errorf("node %s (%s) has no %s in its location, which replication %s needs", n.ID, n.Name, scope, r.Replication)
		}
		at := slices.IndexFunc(domains, func(d *domain) bool { return d.location == location })
		if at < 0 {
			at = len(domains)
			domains = append(domains, &domain{location: location, rank: rankOf(r.Log, hashString(location.String()))})
		}
		domains[at].nodes = append(domains[at].nodes, n.ID)
		domains[at].first = domains[at].first || n.ID == r.First
	}
	for _, d := range domains {
		slices.SortFunc(d.nodes, func(a, b NodeID) int { return r.compare(a, b) })
	}
	return domains, nil
}

// compare orders the candidates of a domain: alive, then the first, then the preferred, then by hash.
func (r NodeSetRequest) compare(a, b NodeID) int {
	if d := r.class(a) - r.class(b); d != 0 {
		return d
	}
	ha, hb := rankOf(r.Log, uint64(a)), rankOf(r.Log, uint64(b))
	switch {
	case ha < hb:
		return -1
	case ha > hb:
		return 1
	}
	return int(int64(a) - int64(b))
}

func (r NodeSetRequest) class(id NodeID) int {
	switch {
	case !r.alive(id):
		return 3
	case id == r.First:
		return 0
	case slices.Contains(r.Preferred, id):
		return 1
	}
	return 2
}

func (r NodeSetRequest) alive(id NodeID) bool { return r.Alive == nil || r.Alive(id) }

// pick takes usable nodes one by one, always from the domain with the fewest, until there are enough in all and
// in each domain, or no more.
func pick(chosen []NodeID, domains []*domain, wanted, perDomain int, usable func(NodeID) bool) []NodeID {
	for len(chosen) < MaxNodeSet {
		var next *domain
		for _, d := range domains {
			if d.taken == len(d.nodes) || !usable(d.nodes[d.taken]) {
				continue
			}
			if len(chosen) >= wanted && d.taken >= perDomain {
				continue
			}
			if next == nil || d.taken < next.taken || d.taken == next.taken && d.before(next) {
				next = d
			}
		}
		if next == nil {
			break
		}
		chosen = append(chosen, next.nodes[next.taken])
		next.taken++
	}
	return chosen
}

func (d *domain) before(o *domain) bool {
	if d.first != o.first {
		return d.first
	}
	if d.rank != o.rank {
		return d.rank < o.rank
	}
	return d.location.String() < o.location.String()
}

func checkSelected(c NodesConfig, r NodeSetRequest, chosen []NodeID) error {
	q := NewQuorum(chosen, r.Replication, c)
	var alive Members
	for i, id := range chosen {
		if r.alive(id) {
			alive.Add(i)
		}
	}
	if !q.WriteQuorum(alive) {
		return fmt.Errorf("%w: replication %s is not possible with %d usable of %d nodes; start more log servers or lower the replication",
			ErrInsufficientNodes, r.Replication, alive.Len(), c.Len())
	}
	return nil
}

// rankOf is a fixed pseudo-random order of things per log.
func rankOf(log LogID, x uint64) uint64 { return scramble(scramble(uint64(log)) ^ x) }

// scramble is a bijection of 64-bit numbers in which each input bit changes about half of the output bits.
func scramble(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func hashString(s string) uint64 {
	h := uint64(len(s))
	for i := 0; i < len(s); i++ {
		h = scramble(h ^ uint64(s[i]))
	}
	return h
}
