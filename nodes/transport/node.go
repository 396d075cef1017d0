package transport

import (
	"sync/atomic"

	"perdure/control/cluster"
)

// Node routes the messages of one node: those to itself go straight to the handler of the service,
// without goroutine, copy or encoding; all others go to the peers. Safe for concurrent use.
type Node struct {
	self     cluster.GenNodeID
	peers    Caller
	handlers [services]atomic.Pointer[Handler]
}

// NewNode returns the routing of the node self. peers reaches the other nodes; it may be nil on a
// cluster of one, calls to other nodes then fail with ErrUnreachable.
func NewNode(self cluster.GenNodeID, peers Caller) *Node {
	return &Node{self: self, peers: peers}
}

// Self is the life of the node that this routing belongs to.
func (n *Node) Self() cluster.GenNodeID { return n.self }

// Handle installs the handler of a service, replacing the one before; nil removes it.
func (n *Node) Handle(s Service, h Handler) {
	if h == nil {
		n.handlers[s].Store(nil)
		return
	}
	n.handlers[s].Store(&h)
}

// Deliver hands a message that came from another node to its service.
func (n *Node) Deliver(from cluster.GenNodeID, m Message, reply ReplyFunc) {
	s := m.Service()
	if int(s) >= len(n.handlers) {
		reply(nil, ErrNoService)
		return
	}
	h := n.handlers[s].Load()
	if h == nil {
		reply(nil, ErrNoService)
		return
	}
	(*h)(from, m, reply)
}

// Call implements Caller.
func (n *Node) Call(to cluster.NodeID, m Message, done ReplyFunc) {
	switch {
	case to == n.self.ID:
		n.Deliver(n.self, m, done)
	case n.peers == nil:
		done(nil, ErrUnreachable)
	default:
		n.peers.Call(to, m, done)
	}
}

var _ Caller = (*Node)(nil)
