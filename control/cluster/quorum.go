package cluster

import "math/bits"

// Members is a set of positions in a node set.
type Members struct{ lo, hi uint64 }

// Add puts position i in the set. It does nothing outside of 0 to MaxNodeSet-1.
func (m *Members) Add(i int) {
	if i >= 0 && i < 64 {
		m.lo |= 1 << i
	} else if i >= 64 && i < MaxNodeSet {
		m.hi |= 1 << (i - 64)
	}
}

// Remove takes position i out of the set.
func (m *Members) Remove(i int) {
	if i >= 0 && i < 64 {
		m.lo &^= 1 << i
	} else if i >= 64 && i < MaxNodeSet {
		m.hi &^= 1 << (i - 64)
	}
}

// Has reports whether position i is in the set.
func (m Members) Has(i int) bool {
	if i >= 0 && i < 64 {
		return m.lo>>i&1 != 0
	}
	return i >= 64 && i < MaxNodeSet && m.hi>>(i-64)&1 != 0
}

// Len is the number of positions in the set.
func (m Members) Len() int { return bits.OnesCount64(m.lo) + bits.OnesCount64(m.hi) }

// Empty reports whether no position is in the set.
func (m Members) Empty() bool { return m.lo|m.hi == 0 }

// And is the intersection.
func (m Members) And(o Members) Members { return Members{m.lo & o.lo, m.hi & o.hi} }

// Or is the union.
func (m Members) Or(o Members) Members { return Members{m.lo | o.lo, m.hi | o.hi} }

// Minus is the difference.
func (m Members) Minus(o Members) Members { return Members{m.lo &^ o.lo, m.hi &^ o.hi} }

// Contains reports whether o is a subset of m.
func (m Members) Contains(o Members) bool { return o.Minus(m).Empty() }

// Majority is how far the answers of some nodes go towards intersecting every possible write quorum.
type Majority uint8

// The results of an f-majority check, weakest first.
const (
	MajorityNone       Majority = iota // more answers are needed
	MajorityBestEffort                 // all that can answer with authority did; it is not enough
	MajorityWithRisk                   // enough only when nodes that lost data are counted
	MajoritySuccess                    // enough authoritative nodes
)

// Passed reports whether the set is an f-majority.
func (m Majority) Passed() bool { return m >= MajorityWithRisk }

func (m Majority) String() string {
	return nameOf([]string{"none", "best-effort", "success-with-risk", "success"}, uint8(m))
}

// StorageView tells the storage state and location of the nodes as this process knows them. Both must hold for
// safety: a node that the view does not know (its version may be old) is StorageProvisioning with no location;
// a removed node is StorageDisabled. NodesConfig is a StorageView.
type StorageView interface {
	Storage(NodeID) (StorageState, Location)
}

// Quorum answers quorum questions over one node set with one replication property. It is immutable; make a new
// one when the view of the nodes changes. Checks allocate nothing.
//
// A set of nodes is a *write quorum* when for every scope of the property it touches at least as many distinct
// domains as the property wants copies. It is an *f-majority* when for at least one scope it holds whole domains
// of such a number that fewer than the wanted copies are left outside. By pigeonhole each f-majority intersects
// each write quorum, so what was acknowledged is seen, and who was sealed can acknowledge no more.
//
// Nodes whose domain is not known count against both: they add no domain to a write quorum, and each is a domain
// of its own that an f-majority must have. The true division into domains is coarser, which keeps the
// intersection.
type Quorum struct {
	nodes         []NodeID
	counted       Members // all but disabled nodes
	authoritative Members
	writable      Members
	readable      Members
	scopes        []scopeRule
}

// scopeRule is the demand of one scope. Only domains with at least one counted node are listed.
type scopeRule struct {
	copies  int
	located []Members // domains that are known
	unknown Members   // nodes without a known domain
	single  bool      // node scope: every counted node is a domain
}

// NewQuorum prepares the checks for nodeSet, which is what positions refer to. Sets of more than MaxNodeSet
// nodes are cut by node set selection and refused by chains; here further nodes would never count as answered,
// which blocks but is safe.
func NewQuorum(nodeSet []NodeID, r Replication, view StorageView) *Quorum {
	q := &Quorum{nodes: nodeSet}
	locations := make([]Location, len(nodeSet))
	for i, id := range nodeSet {
		state, location := view.Storage(id)
		locations[i] = location
		if state == StorageDisabled {
			continue
		}
		q.counted.Add(i)
		if state.Authoritative() {
			q.authoritative.Add(i)
		}
		if state.Writable() {
			q.writable.Add(i)
		}
		if state.Readable() {
			q.readable.Add(i)
		}
	}
	for s := NodeScope; s < scopeCount; s++ {
		if r.Copies(s) > 0 {
			q.scopes = append(q.scopes, q.ruleOf(s, r.Copies(s), locations))
		}
	}
	return q
}

func (q *Quorum) ruleOf(s Scope, copies int, locations []Location) scopeRule {
	rule := scopeRule{copies: copies, single: s == NodeScope}
	if rule.single {
		return rule
	}
	var names []Location
	for i := range q.nodes {
		if !q.counted.Has(i) {
			continue
		}
		domain, ok := locations[i].Domain(s)
		if !ok {
			rule.unknown.Add(i)
			continue
		}
		at := -1
		for j, n := range names {
			if n == domain {
				at = j
				break
			}
		}
		if at < 0 {
			at = len(names)
			names = append(names, domain)
			rule.located = append(rule.located, Members{})
		}
		rule.located[at].Add(i)
	}
	return rule
}

// Size is the number of nodes of the node set, disabled ones included.
func (q *Quorum) Size() int { return len(q.nodes) }

// Node is the node at a position of the node set.
func (q *Quorum) Node(position int) NodeID { return q.nodes[position] }

// Position is the place of a node in the node set, -1 if it is not a member.
func (q *Quorum) Position(id NodeID) int {
	for i, n := range q.nodes {
		if n == id {
			return i
		}
	}
	return -1
}

// Of is the set of those ids that are members of the node set.
func (q *Quorum) Of(ids ...NodeID) Members {
	var m Members
	for _, id := range ids {
		m.Add(q.Position(id))
	}
	return m
}

// Counted are the nodes that quorums are counted over: all that are not disabled.
func (q *Quorum) Counted() Members { return q.counted }

// Writable are the nodes that records may be sent to.
func (q *Quorum) Writable() Members { return q.writable }

// Readable are the nodes that records may be read from.
func (q *Quorum) Readable() Members { return q.readable }

// Authoritative are the nodes whose "I do not have it" is believed.
func (q *Quorum) Authoritative() Members { return q.authoritative }

// WriteQuorum reports whether records that are durable on acked are committed.
func (q *Quorum) WriteQuorum(acked Members) bool {
	acked = acked.And(q.counted)
	for i := range q.scopes {
		if q.scopes[i].touched(acked) < q.scopes[i].copies {
			return false
		}
	}
	return len(q.scopes) > 0
}

// FMajority grades the set of nodes that answered: whether it intersects each possible write quorum.
func (q *Quorum) FMajority(answered Members) Majority {
	answered = answered.And(q.counted)
	switch {
	case q.intersectsAll(answered.And(q.authoritative)):
		return MajoritySuccess
	case q.intersectsAll(answered):
		return MajorityWithRisk
	case answered.Contains(q.authoritative):
		return MajorityBestEffort
	}
	return MajorityNone
}

func (q *Quorum) intersectsAll(m Members) bool {
	for i := range q.scopes {
		s := &q.scopes[i]
		total, complete := s.domains(q.counted, m)
		if complete >= max(1, total-s.copies+1) {
			return true
		}
	}
	return false
}

func (s *scopeRule) touched(m Members) int {
	if s.single {
		return m.Len()
	}
	n := 0
	for _, d := range s.located {
		if !d.And(m).Empty() {
			n++
		}
	}
	return n
}

func (s *scopeRule) domains(counted, m Members) (total, complete int) {
	if s.single {
		return counted.Len(), m.Len()
	}
	for _, d := range s.located {
		if m.Contains(d) {
			complete++
		}
	}
	return len(s.located) + s.unknown.Len(), complete + s.unknown.And(m).Len()
}
