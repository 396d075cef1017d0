package sim

import (
	"time"

	"perdure/control/cluster"
	"perdure/control/datadir"
	"perdure/nodes/loglet"
	"perdure/nodes/logserver"
	"perdure/nodes/transport"
)

// node is one machine: a disk, a clock, and the process that runs on it, if one does.
type node struct {
	w   *world
	id  cluster.NodeID
	gen cluster.Generation

	// Of the machine.
	store           storage
	disk            datadir.Store  // whose store it is, by the marker in it
	marker          datadir.Marker // of the data directory, which is on another disk
	slowDisk        bool
	lost            bool // its log store was declared lost: no log server runs here any more
	skew            time.Duration
	cutFromMetadata bool
	cores           map[cluster.PartitionID]*machineStore // partition stores, see processor.go

	// Of the process.
	up, paused  bool
	life        int
	stalled     []task // what a paused process will do first
	queue       []*logserver.Write
	syncing     int                // how many of the queue a sync takes that is under way, 0: none is
	durable     []*logserver.Write // what the last sync has stored, for reuse
	out         logserver.Output   // for reuse
	diskBroken  bool
	loglets     map[cluster.LogletID]*logserver.Loglet
	logletOrder []cluster.LogletID
	logs        []*logHandle
	workers     []*worker
}

func (n *node) self() cluster.GenNodeID { return cluster.GenNodeID{ID: n.id, Generation: n.gen} }

// after schedules something that this life of the process does.
func (n *node) after(d time.Duration, f func()) { n.schedule(d, function(f)) }

func (n *node) schedule(d time.Duration, t task) { n.w.schedule(d, n, n.life, t) }

func (n *node) run(life int, t task) {
	switch {
	case n.life != life || !n.up:
	case n.paused:
		n.stalled = append(n.stalled, t)
	default:
		t.run()
	}
}

// Now is the node's wall clock, and AfterFunc its timer: node implements loglet.Clock.
func (n *node) Now() time.Time { return epoch.Add(n.w.now) }

// wall is what the node takes for the time of day.
func (n *node) wall() time.Time { return epoch.Add(n.w.now + n.skew) }

var epoch = time.Unix(1_800_000_000, 0)

type timer struct {
	f       func()
	stopped bool
}

func (t *timer) Stop() bool { s := t.stopped; t.stopped = true; return !s }

func (t *timer) run() {
	if !t.stopped {
		t.stopped = true
		t.f()
	}
}

// AfterFunc implements loglet.Clock.
func (n *node) AfterFunc(d time.Duration, f func()) loglet.Timer {
	t := &timer{f: f}
	n.schedule(d, t)
	return t
}

// fits asks the product whether the node may run with the disk that it has. It declares its log store lost when the
// disk has come back empty, and does not run with somebody else's.
func (n *node) fits() bool {
	state, _ := n.w.Storage(n.id)
	if n.lost {
		return true // its log server does not run any more, the rest does
	}
	verdict, err := n.marker.CheckLogStore(cluster.Node{ID: n.id, Storage: state}, n.disk)
	switch {
	case verdict == datadir.DeclareLoss:
		n.lost = true
	case verdict == datadir.Run && err == nil && n.disk.Node == n.id:
	case verdict == datadir.Refuse && n.disk.Node != n.id:
		n.w.trace("refuses", uint64(n.id), uint64(n.disk.Node), 0)
		return false
	default:
		violated("identity", "node %s with the disk of %s: verdict %d, %v", n.id, n.disk.Node, verdict, err)
	}
	return true
}

// start begins the node's next life.
func (n *node) start() {
	if !n.fits() {
		return
	}
	n.gen++
	n.life++
	n.up, n.paused, n.stalled = true, false, nil
	n.diskBroken, n.queue, n.syncing = false, nil, 0
	n.loglets, n.logletOrder = map[cluster.LogletID]*logserver.Loglet{}, nil
	n.w.trace("start", uint64(n.id), uint64(n.gen), 0)
	n.logs = nil
	for i := range n.w.cfg.logs {
		n.logs = append(n.logs, newLogHandle(n, cluster.LogID(i)))
	}
	n.startWorkers()
}

// stop ends the process; what was not synced is gone.
func (n *node) stop() {
	if n.up {
		n.end()
		n.store.crash()
	}
}

// end ends the process, but for its store.
func (n *node) end() {
	n.w.trace("stop", uint64(n.id), uint64(n.gen), 0)
	n.up = false
	n.life++
	n.stalled = nil
	for _, wk := range n.workers {
		wk.crash()
	}
	n.workers = nil
	n.losePower()
	n.loglets, n.logs = nil, nil
}

func (n *node) pause() {
	n.w.trace("pause", uint64(n.id), 0, 0)
	n.paused = true
}

func (n *node) resume() {
	if !n.paused {
		return
	}
	n.w.trace("resume", uint64(n.id), 0, 0)
	n.paused = false
	stalled := n.stalled
	n.stalled = nil
	for _, t := range stalled {
		// One after the other, but not at once: a process that wakes up works through what has piled up.
		n.schedule(0, t)
	}
}

// loglet is the acceptance core of a loglet; it is loaded from the disk on the first request.
func (n *node) loglet(id cluster.LogletID) *logserver.Loglet {
	l := n.loglets[id]
	if l == nil {
		l = logserver.NewLoglet(id, n.store.load(id))
		n.loglets[id] = l
		n.logletOrder = append(n.logletOrder, id)
		n.w.oracle.loaded(n, id, l)
	}
	return l
}

// replier is where the answer to a request goes.
type replier interface {
	reply(transport.Message, error)
}

// handle is a request that has arrived.
func (n *node) handle(from cluster.GenNodeID, m transport.Message, to replier) {
	if m.Service() == transport.Sequencer {
		n.answerTail(m.(*loglet.TailRequest), to)
		return
	}
	if n.lost {
		to.reply(nil, transport.ErrNoService)
		return
	}
	out := &n.out
	switch r := m.(type) {
	case *logserver.StoreRequest:
		n.loglet(r.Loglet).Store(to, from, r, out)
	case *logserver.SealRequest:
		n.loglet(r.Loglet).Seal(&sealReply{n, r.Loglet, to}, r, out)
	case *logserver.InfoRequest:
		n.loglet(r.Loglet).Info(to, r, out)
	case *logserver.WaitTailRequest:
		n.loglet(r.Loglet).WaitTail(to, r, out)
	case *logserver.TrimRequest:
		n.loglet(r.Loglet).Trim(to, r, out)
	case *logserver.ReadRequest:
		n.read(r, to, out)
	case *logserver.DigestRequest:
		rng, state := n.loglet(r.Loglet).Readable(r.Header, r.From, r.To, out)
		res := &logserver.DigestReply{StateReply: state}
		if state.Status == logserver.StatusOK && rng.From < rng.To {
			res.Exists = n.store.digest(r.Loglet, rng.From, rng.To)
		}
		to.reply(res, nil)
	}
	n.carryOut()
}

// sealReply is the answer to a seal, which must not say more than the disk has.
type sealReply struct {
	n      *node
	loglet cluster.LogletID
	to     replier
}

func (s *sealReply) reply(m transport.Message, err error) {
	if st, ok := m.(*logserver.StateReply); ok && st.Sealed && !s.n.store.load(s.loglet).Sealed {
		violated("seal", "node %s says that loglet %s is sealed, its disk does not", s.n.id, s.loglet)
	}
	s.to.reply(m, err)
}

func (n *node) read(r *logserver.ReadRequest, to replier, out *logserver.Output) {
	rng, state := n.loglet(r.Loglet).Readable(r.Header, r.From, r.To, out)
	res := &logserver.ReadReply{StateReply: state, Next: rng.From}
	if r.From <= state.TrimPoint {
		res.TrimmedTo, res.Next = state.TrimPoint, max(res.Next, state.TrimPoint+1)
	}
	if state.Status == logserver.StatusOK && rng.From < rng.To {
		found, next, err := n.store.read(r.Loglet, rng.From, rng.To, max(r.MaxBytes, 1))
		if err != nil {
			res.Status, res.Reason = logserver.StatusError, err.Error()
		} else {
			res.Records, res.Next = found, next
		}
	}
	to.reply(res, nil)
}

// carryOut does what a step of a loglet wants, which is in n.out. It calls nothing that takes another step.
func (n *node) carryOut() {
	for _, w := range n.out.Writes {
		n.submit(w)
	}
	for i := range n.out.Replies {
		state := n.out.Replies[i].State
		n.out.Replies[i].Token.(replier).reply(&state, nil)
	}
	n.out.Reset()
}

// call is a request of a life of a process, which alone can hear of the answer.
type call struct {
	n, to    *node
	life     int
	from     cluster.GenNodeID
	msg      transport.Message
	done     transport.ReplyFunc
	answered bool
}

// Call sends a request: node implements transport.Caller.
func (n *node) Call(to cluster.NodeID, m transport.Message, done transport.ReplyFunc) {
	w, t := n.w, n.w.nodes[to-1]
	c := &call{n: n, life: n.life, to: t, from: n.self(), msg: m, done: done}
	if t == n {
		// A local destination does not go over the network.
		n.schedule(5*time.Microsecond, (*localCall)(c))
		return
	}
	if !t.up && w.chance(network, 0.8) {
		n.schedule(w.delay(n.id, to), &ending{c, nil, transport.ErrUnreachable})
		return
	}
	if !w.lost(n.id, to) {
		w.schedule(w.delay(n.id, to), nil, 0, c)
	}
	if !w.quiet && w.cfg.has(Duplication) && w.chance(network, w.cfg.dup) {
		d := w.delay(n.id, to)
		if w.chance(network, 0.2) {
			d += w.between(network, 0, 5*time.Second)
		}
		w.schedule(d, nil, 0, c)
	}
}

// run is the arrival of the request at the machine.
func (c *call) run() {
	if c.to.up && !c.n.w.isCut(c.n.id, c.to.id) {
		c.to.run(c.to.life, &visit{c, c.to.life})
	}
}

// visit is a request in the process that it has come to. A duplicated one can come to two.
type visit struct {
	*call
	life int
}

func (v *visit) run() { v.to.handle(v.from, v.msg, v) }

func (v *visit) reply(r transport.Message, err error) {
	w := v.n.w
	if v.to.life == v.life && !w.lost(v.to.id, v.n.id) {
		w.schedule(w.delay(v.to.id, v.n.id), v.n, v.call.life, &landing{ending{v.call, r, err}})
	}
}

// landing is an answer that comes back over the network.
type landing struct{ ending }

func (l *landing) run() {
	if c := l.call; !c.answered && !c.n.w.isCut(c.to.id, c.n.id) {
		c.answered = true
		c.done(l.reply, l.err)
	}
}

// ending is the end of a call.
type ending struct {
	call  *call
	reply transport.Message
	err   error
}

func (e *ending) run() { e.call.done(e.reply, e.err) }

// localCall is a request of a process to itself.
type localCall call

func (c *localCall) run() { c.n.handle(c.from, c.msg, c) }

func (c *localCall) reply(r transport.Message, err error) {
	c.n.w.schedule(0, c.n, c.life, &ending{(*call)(c), r, err})
}

// delay is how long a message takes.
func (w *world) delay(from, to cluster.NodeID) time.Duration {
	d := w.between(network, 50*time.Microsecond, 600*time.Microsecond)
	if w.quiet {
		return d
	}
	if w.cfg.has(Delay) && w.chance(network, 0.02) {
		d += w.exponential(network, 300*time.Millisecond)
	}
	if w.cfg.has(Reordering) {
		return d
	}
	link := &w.links[from-1][to-1]
	*link = max(*link+1, w.now+d)
	return *link - w.now
}

func (w *world) lost(from, to cluster.NodeID) bool {
	return !w.quiet && w.cfg.has(Loss) && w.chance(network, w.cfg.drop)
}

func (w *world) isCut(from, to cluster.NodeID) bool { return w.cuts[from-1][to-1] > 0 }
