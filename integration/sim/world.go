package sim

import (
	"encoding/binary"
	"strconv"
	"strings"
	"time"

	"perdure/control/chain"
	"perdure/control/cluster"
	"perdure/control/datadir"
	"perdure/control/metadata"
	"perdure/nodes/logserver"
)

// world is one run: everything there is.
type world struct {
	*engine
	opts   Options
	cfg    config
	meta   *metadataStore
	nodes  []*node
	links  [][]time.Duration // when the last message of a link arrives
	cuts   [][]int           // how many faults cut a link
	oracle *oracle
	core   *core // nil without processors

	quiet      bool // no more faults
	victimLost bool
	swapped    []func() // swaps of disks to undo
	decoded    map[*byte]chain.Chain
	owners     []cluster.NodeID // who writes a log, without processors
	completed  []cluster.LSN    // highest LSN of a finished append, by log
	pending    int              // appends without answer
	nextID     uint64

	acknowledged, delivered, reconfigurations, faultsDone, mismatches, orders, trims uint64
}

func newWorld(o Options) *world {
	e := newEngine(o.Seed)
	w := &world{engine: e, opts: o, cfg: draw(e, o), decoded: map[*byte]chain.Chain{}}
	w.meta = &metadataStore{w: w, keys: map[string]*register{}}
	w.oracle = newOracle(w)
	w.completed = make([]cluster.LSN, w.cfg.logs)
	for i := range w.cfg.nodes {
		w.links = append(w.links, make([]time.Duration, w.cfg.nodes))
		w.cuts = append(w.cuts, make([]int, w.cfg.nodes))
		n := &node{w: w, id: cluster.NodeID(i + 1), store: w.newStorage()}
		n.disk = datadir.Store{Exists: true, Node: n.id, Storage: "storage of " + n.id.String(), Fingerprint: 1}
		n.marker = datadir.Marker{Node: n.id, Fingerprint: 1, LogStorage: n.disk.Storage}
		if w.cfg.has(ClockSkew) {
			n.skew = w.between(nemesis, -2*time.Second, 2*time.Second)
		}
		w.nodes = append(w.nodes, n)
	}
	for range w.cfg.logs {
		w.owners = append(w.owners, cluster.NodeID(1+w.rng[workload].IntN(w.cfg.nodes)))
	}
	if o.Core {
		w.core = newCore(w)
	}
	return w
}

// holder is the machine that has the disk of a node now.
func (w *world) holder(id cluster.NodeID) *node {
	if len(w.swapped) > 0 {
		for _, n := range w.nodes {
			if n.disk.Node == id {
				return n
			}
		}
	}
	return w.nodes[id-1]
}

func (w *world) newStorage() storage {
	if w.opts.Pebble {
		return newPebbleDisk(w)
	}
	return newDisk()
}

// chainOf decodes a chain that was read from the metadata.
func (w *world) chainOf(v []byte) chain.Chain {
	if len(v) == 0 {
		return chain.Chain{}
	}
	if c, ok := w.decoded[&v[0]]; ok {
		return c
	}
	c, err := chain.Decode(v)
	if err != nil {
		violated("chain", "a chain in the metadata can not be read: %v", err)
	}
	if len(w.decoded) > 256 {
		clear(w.decoded)
	}
	w.decoded[&v[0]] = c
	return c
}

// changed tells the nodes of a change in the metadata.
func (w *world) changed(key string, r *register) {
	value, version := r.value, r.version
	log, ok := strings.CutPrefix(key, metadata.LogPrefix)
	if !ok {
		return
	}
	id, err := strconv.Atoi(log)
	if err != nil {
		violated("chain", "key %q is not that of a log", key)
	}
	c := w.chainOf(value)
	w.oracle.chained(cluster.LogID(id), c, version)
	for _, n := range w.nodes {
		if n.up {
			n.after(w.between(network, time.Millisecond, 20*time.Millisecond), func() {
				if !n.cutFromMetadata {
					n.logs[id].install(c, version)
				}
			})
		}
	}
}

// Storage implements cluster.StorageView: the membership as everybody knows it.
func (w *world) Storage(id cluster.NodeID) (cluster.StorageState, cluster.Location) {
	if w.nodes[id-1].lost {
		return cluster.StorageDataLoss, w.cfg.location(id)
	}
	return cluster.StorageReadWrite, w.cfg.location(id)
}

func (w *world) quorum(s chain.Segment) *cluster.Quorum {
	return cluster.NewQuorum(s.NodeSet, s.Replication, w)
}

// nodeSet chooses the log servers of a new segment.
func (w *world) nodeSet(self cluster.NodeID) ([]cluster.NodeID, cluster.Replication) {
	var ids []cluster.NodeID
	for _, n := range w.nodes {
		if !n.lost {
			ids = append(ids, n.id)
		}
	}
	w.rng[workload].Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	least := w.cfg.replication
	if w.cfg.victim != 0 {
		least++
	}
	if least < len(ids) && w.cfg.zones == 0 && w.rng[workload].IntN(3) == 0 {
		ids = ids[:least+w.rng[workload].IntN(len(ids)-least)]
	}
	return ids, w.cfg.copies()
}

// startWorkers begins what a node does besides storing records.
func (n *node) startWorkers() {
	if n.w.core != nil {
		n.w.core.start(n)
		return
	}
	for i := range n.w.cfg.logs {
		n.workers = append(n.workers, newWorker(n, n.logs[i]))
	}
}

// worker is what a node does with one log: it reads, and writes when it thinks that it is the one to do so.
type worker struct {
	n         *node
	h         *logHandle
	reader    *reader
	scheduled bool
	proc      *processor // with processors
}

func newWorker(n *node, h *logHandle) *worker {
	wk := &worker{n: n, h: h}
	h.writer = &writer{h: h}
	wk.reader = h.reader(1, wk.wake)
	if l := &n.w.oracle.logs[h.id]; l.tail > 200 { // reading everything after each restart costs much and finds little
		wk.reader.next = l.tail - cluster.LSN(n.w.rng[workload].IntN(200))
	}
	wk.append()
	wk.wake()
	return wk
}

func (wk *worker) wake() {
	if wk.scheduled {
		return
	}
	wk.scheduled = true
	wk.n.schedule(20*time.Microsecond, (*reading)(wk))
}

// reading is a worker that reads what there is.
type reading worker

func (wk *reading) run() {
	wk.scheduled = false
	for {
		expect := wk.reader.next
		e, ok := wk.reader.tryNext()
		if !ok {
			return
		}
		wk.n.w.oracle.delivered(wk.h.id, &e, expect)
		wk.n.w.delivered++
	}
}

// append writes now and then, as long as the node thinks that the log is its own.
func (wk *worker) append() {
	wk.n.schedule(wk.n.w.exponential(workload, wk.n.w.cfg.appendMean), (*appending)(wk))
}

// appending is a worker that writes if it is to.
type appending worker

func (a *appending) run() {
	wk := (*worker)(a)
	w := wk.n.w
	if w.quiet {
		return
	}
	if w.owners[wk.h.id] == wk.n.id {
		for range 1 + w.rng[workload].IntN(3) {
			wk.appendOne()
		}
	}
	wk.append()
}

func (wk *worker) appendOne() {
	w, log := wk.n.w, wk.h.id
	if len(wk.h.writer.queue) > 100 {
		return
	}
	records := make([]logserver.Record, 1+w.rng[workload].IntN(3))
	payloads := make([]byte, 0, 8*len(records))
	for i := range records {
		w.nextID++
		payloads = binary.BigEndian.AppendUint64(payloads, w.nextID)
		records[i].Payload = payloads[8*i : 8*i+8 : 8*i+8]
	}
	before := w.completed[log]
	w.pending++
	wk.h.writer.append(records, func(lsn cluster.LSN, err error) {
		w.pending--
		if err != nil {
			return
		}
		if lsn-cluster.LSN(len(records)) < before {
			violated("order", "log %d: an append got %d, but one that had ended before it began got %d", log, lsn, before)
		}
		w.completed[log] = max(w.completed[log], lsn)
	})
}

// crash ends the worker with its process.
func (wk *worker) crash() {
	if wk.h.writer != nil {
		wk.h.writer.close()
	}
	if wk.proc != nil {
		wk.proc.crash()
	}
}

// run is faults, then healing, then a time in which everything must come to an end.
func (w *world) run() {
	for _, n := range w.nodes {
		n.start()
	}
	if w.core != nil {
		w.core.begin()
	}
	if w.opts.broken != nil {
		w.opts.broken(w)
	}
	w.strike()
	for w.now < w.opts.Length && w.step(w.opts.Length) {
	}
	w.heal()
	limit, pause := w.now+10*time.Minute, 100*time.Millisecond
	if w.core != nil {
		pause = 2 * time.Second
	}
	for !w.settled() {
		stop := w.now + pause
		for w.step(stop) {
		}
		w.now = max(w.now, stop)
		if w.now > limit {
			violated("liveness", "10 minutes after the last fault: %s", w.unsettled())
		}
	}
	if w.core != nil {
		w.core.final()
	}
}

// settled reports whether all that was asked for is done.
func (w *world) settled() bool { return w.unsettled() == "" }

func (w *world) unsettled() string {
	if w.core != nil {
		return w.core.unsettled()
	}
	if w.pending > 0 {
		return strconv.Itoa(w.pending) + " appends have no answer"
	}
	for _, n := range w.nodes {
		for _, wk := range n.workers {
			if tail := w.oracle.logs[wk.h.id].tail; wk.reader.next < tail {
				return "node " + n.id.String() + " has read log " + strconv.Itoa(int(wk.h.id)) + " up to " +
					strconv.Itoa(int(wk.reader.next)) + ", its tail is " + strconv.Itoa(int(tail))
			}
		}
	}
	return ""
}

func (w *world) close() {
	for _, n := range w.nodes {
		n.stop()
		n.store.close()
	}
	if w.core != nil {
		w.core.close()
	}
}
