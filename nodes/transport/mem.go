package transport

import (
	"math/rand/v2"
	"sync"
	"time"

	"perdure/control/cluster"
)

// Faults are the knobs of one direction between two nodes of a Mem network.
type Faults struct {
	// Cut loses everything silently, as a partitioned network does.
	Cut bool
	// Drop, Duplicate are probabilities in [0,1] per message (requests and answers alike).
	Drop, Duplicate float64
	// MinDelay and MaxDelay bound the time a message is under way. Messages with unequal delays
	// overtake each other.
	MinDelay, MaxDelay time.Duration
}

// Mem is the in-process twin of the network between nodes. Messages are delivered by one goroutine
// per node, in order while no delay is set. Messages of a node to itself are delivered directly and
// meet no faults, as in a real node. Safe for concurrent use.
type Mem struct {
	mu    sync.Mutex
	rng   *rand.Rand
	nodes map[cluster.NodeID]*Endpoint
	def   Faults
	links map[[2]cluster.NodeID]Faults
	wg    sync.WaitGroup
}

// NewMem returns a network without nodes and faults. rng decides about losses, duplicates and delays.
func NewMem(rng *rand.Rand) *Mem {
	return &Mem{rng: rng, nodes: map[cluster.NodeID]*Endpoint{}, links: map[[2]cluster.NodeID]Faults{}}
}

// Endpoint is one life of a node on a Mem network. It implements Caller.
type Endpoint struct {
	*Node
	net *Mem

	mu struct {
		sync.Mutex
		queue  []func()
		closed bool
		// outstanding are the calls that other nodes made to this one.
		outstanding map[*memCall]struct{}
	}
	wake chan struct{}
}

// memCall is one call under way; done is taken by the first answer.
type memCall struct {
	from, to *Endpoint
	once     sync.Once
	done     ReplyFunc
}

// Join adds a life of a node. An older life of the same node is thrown out first, as by Leave.
func (n *Mem) Join(self cluster.GenNodeID) *Endpoint {
	n.Leave(self.ID)
	e := &Endpoint{net: n, wake: make(chan struct{}, 1)}
	e.mu.outstanding = map[*memCall]struct{}{}
	e.Node = NewNode(self, memPeers{e})
	n.mu.Lock()
	n.nodes[self.ID] = e
	n.mu.Unlock()
	n.wg.Go(e.run)
	return e
}

// Leave removes a node as a crash does: what is under way to it is lost, calls that wait for its
// answer end with ErrConnectionLost, and nothing that its old life still says is delivered.
func (n *Mem) Leave(id cluster.NodeID) {
	n.mu.Lock()
	e := n.nodes[id]
	delete(n.nodes, id)
	n.mu.Unlock()
	if e == nil {
		return
	}
	e.mu.Lock()
	e.mu.closed, e.mu.queue = true, nil
	calls := e.mu.outstanding
	e.mu.outstanding = nil
	e.mu.Unlock()
	e.signal()
	for c := range calls {
		c.finish(nil, ErrConnectionLost)
	}
}

// Close removes all nodes and waits for their goroutines.
func (n *Mem) Close() {
	n.mu.Lock()
	ids := make([]cluster.NodeID, 0, len(n.nodes))
	for id := range n.nodes {
		ids = append(ids, id)
	}
	n.mu.Unlock()
	for _, id := range ids {
		n.Leave(id)
	}
	n.wg.Wait()
}

// SetDefault sets the faults of all directions that have none of their own.
func (n *Mem) SetDefault(f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.def = f
}

// SetLink sets the faults of the direction from → to.
func (n *Mem) SetLink(from, to cluster.NodeID, f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links[[2]cluster.NodeID{from, to}] = f
}

// Partition cuts both directions between the nodes of a and those of b.
func (n *Mem) Partition(a, b []cluster.NodeID) {
	for _, x := range a {
		for _, y := range b {
			n.SetLink(x, y, Faults{Cut: true})
			n.SetLink(y, x, Faults{Cut: true})
		}
	}
}

// Heal removes all faults.
func (n *Mem) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.def = Faults{}
	clear(n.links)
}

// plan decides the fate of one message: the delay of each copy that arrives.
func (n *Mem) plan(from, to cluster.NodeID) []time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	f, ok := n.links[[2]cluster.NodeID{from, to}]
	if !ok {
		f = n.def
	}
	if f.Cut || (f.Drop > 0 && n.rng.Float64() < f.Drop) {
		return nil
	}
	copies := 1
	if f.Duplicate > 0 && n.rng.Float64() < f.Duplicate {
		copies = 2
	}
	delays := make([]time.Duration, copies)
	for i := range delays {
		delays[i] = f.MinDelay
		if f.MaxDelay > f.MinDelay {
			delays[i] += time.Duration(n.rng.Int64N(int64(f.MaxDelay - f.MinDelay)))
		}
	}
	return delays
}

// carry takes step to the endpoint's goroutine, subject to the faults of the direction.
func (n *Mem) carry(from cluster.NodeID, to *Endpoint, step func()) {
	for _, d := range n.plan(from, to.Self().ID) {
		if d == 0 {
			to.post(step)
			continue
		}
		time.AfterFunc(d, func() { to.post(step) })
	}
}

// memPeers is the way from an endpoint to all other nodes.
type memPeers struct{ e *Endpoint }

// Call implements Caller.
func (p memPeers) Call(to cluster.NodeID, m Message, done ReplyFunc) {
	n := p.e.net
	n.mu.Lock()
	dst := n.nodes[to]
	n.mu.Unlock()
	if dst == nil {
		p.e.post(func() { done(nil, ErrUnreachable) })
		return
	}
	c := &memCall{from: p.e, to: dst, done: done}
	if !dst.track(c) {
		p.e.post(func() { done(nil, ErrUnreachable) })
		return
	}
	n.carry(p.e.Self().ID, dst, func() {
		dst.Deliver(p.e.Self(), m, func(r Message, err error) {
			if dst.gone() {
				return
			}
			n.carry(to, p.e, func() { c.finishHere(r, err) })
		})
	})
}

// finish ends the call on the caller's goroutine.
func (c *memCall) finish(m Message, err error) {
	c.from.post(func() { c.finishHere(m, err) })
}

// finishHere ends the call; the caller's goroutine runs it.
func (c *memCall) finishHere(m Message, err error) {
	c.once.Do(func() {
		c.to.untrack(c)
		c.done(m, err)
	})
}

func (e *Endpoint) track(c *memCall) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.closed {
		return false
	}
	e.mu.outstanding[c] = struct{}{}
	return true
}

func (e *Endpoint) untrack(c *memCall) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.mu.outstanding, c)
}

func (e *Endpoint) gone() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mu.closed
}

func (e *Endpoint) post(step func()) {
	e.mu.Lock()
	if e.mu.closed {
		e.mu.Unlock()
		return
	}
	e.mu.queue = append(e.mu.queue, step)
	e.mu.Unlock()
	e.signal()
}

func (e *Endpoint) signal() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// run delivers what was posted, in order, until the endpoint leaves the network.
func (e *Endpoint) run() {
	for range e.wake {
		e.mu.Lock()
		steps, closed := e.mu.queue, e.mu.closed
		e.mu.queue = nil
		e.mu.Unlock()
		if closed {
			return
		}
		for _, step := range steps {
			step()
		}
	}
}
