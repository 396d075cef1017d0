package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"perdure/control/cluster"
	"perdure/control/metadata"
	"perdure/control/placement"
	"perdure/invokers"
	"perdure/nodes/bifrost"
	"perdure/nodes/partition"
	"perdure/nodes/partition/store"
	"perdure/nodes/record"
	"perdure/nodes/record/recordpb"
)

// core is everything above the logs: partitions with their processors, services, and clients.
type core struct {
	w          *world
	cache      *pebble.Cache
	partitions []*partitionWorld
	services   *services
	clients    *clients
	operators  *operators
	ctx        context.Context
}

// message is one of a partition's outbox.
type message struct {
	from  uint32
	index uint64
}

// partitionWorld is what is known of one partition by everybody and by nobody.
type partitionWorld struct {
	id      cluster.PartitionID
	keys    cluster.KeyRange
	epochs  map[cluster.Epoch]cluster.GenNodeID
	hashes  map[cluster.LSN][16]byte // state after a position, by who got there first
	leader  *processor               // the last one that began to lead
	lastLSN cluster.LSN
	// stamps are the records that leaders wrote which are younger by their clock than all that were written after them.
	stamps []stamp
	// sent are the outbox messages that a destination has committed, by index.
	sent      map[uint64]bool
	truncated uint64
	durable   cluster.LSN // the highest durable point in the log
	// arrived are the messages of each partition's outbox that are in the log, accepted the last one that counted.
	arrived  map[message]bool
	accepted map[uint32]uint64
}

func newCore(w *world) *core {
	c := &core{w: w, cache: pebble.NewCache(16 << 20), ctx: context.Background()}
	n := w.cfg.logs
	size := ^uint64(0)/uint64(n) + 1
	for i := range n {
		keys := cluster.KeyRange{Start: cluster.PartitionKey(size * uint64(i)), End: cluster.PartitionKey(size*uint64(i+1) - 1)}
		if i == n-1 {
			keys.End = ^cluster.PartitionKey(0)
		}
		c.partitions = append(c.partitions, &partitionWorld{id: cluster.PartitionID(i), keys: keys, epochs: map[cluster.Epoch]cluster.GenNodeID{},
			hashes: map[cluster.LSN][16]byte{}, sent: map[uint64]bool{}, arrived: map[message]bool{}, accepted: map[uint32]uint64{}})
	}
	c.services = newServices(w)
	c.clients = newClients(c)
	c.operators = newOperators(c)
	return c
}

func (c *core) lookup(k cluster.PartitionKey) cluster.PartitionID {
	for _, p := range c.partitions {
		if p.keys.Contains(k) {
			return p.id
		}
	}
	panic("the ranges of the partitions have a hole")
}

// begin makes the epoch objects, and starts who sees to it that each partition has a leader.
func (c *core) begin() {
	var all []cluster.NodeID
	for _, n := range c.w.nodes {
		all = append(all, n.id)
	}
	for _, p := range c.partitions {
		l, err := placement.NewLeadership(p.id, cluster.ReplicateTo(1), all)
		if err != nil {
			violated("epochs", "new leadership: %v", err)
		}
		value, err := l.Encode()
		if err != nil {
			violated("epochs", "encode leadership: %v", err)
		}
		r := c.w.meta.at(metadata.EpochKey(p.id))
		r.value, r.version = value, 1
		c.control(p)
	}
	if c.w.cfg.has(Move) {
		c.wander()
	}
	c.clients.begin()
	if c.w.cfg.has(Operators) {
		c.operators.begin()
	}
}

// wander moves leaderships often: what goes wrong between two leaders needs two leaders.
func (c *core) wander() {
	w := c.w
	w.after(w.exponential(nemesis, 10*time.Second), func() {
		if w.quiet {
			return
		}
		w.move()
		c.wander()
	})
}

// control moves the leadership of a partition whose leader is gone to a node that is there.
func (c *core) control(p *partitionWorld) {
	w := c.w
	w.after(w.between(workload, time.Second, 3*time.Second), func() {
		if l := p.leader; l == nil || !l.alive() {
			c.moveLeader(p.id, w.nodes[w.rng[workload].IntN(len(w.nodes))])
		}
		c.control(p)
	})
}

// moveLeader tells a node to lead a partition. One with a single replica is led by its node, in another term.
func (c *core) moveLeader(id cluster.PartitionID, n *node) {
	if c.w.cfg.single {
		n = c.home(id)
	}
	if !n.up || n.paused {
		return
	}
	for _, wk := range n.workers {
		if wk.proc != nil && wk.proc.p.id == id {
			wk.proc.claim()
		}
	}
}

// home is the node of a partition with a single replica.
func (c *core) home(id cluster.PartitionID) *node { return c.w.nodes[int(id)%len(c.w.nodes)] }

// start runs a processor of each partition that the node has a replica of.
func (c *core) start(n *node) {
	for _, p := range c.partitions {
		if c.w.cfg.single && c.home(p.id) != n {
			continue
		}
		wk := &worker{n: n, h: n.logs[p.id]}
		pr := &processor{c: c, p: p, n: n, h: n.logs[p.id]}
		wk.proc = pr
		n.workers = append(n.workers, wk)
		pr.open()
	}
}

// stamp is when a record was written, and its creation time in ms since 1970.
type stamp struct {
	at time.Duration
	ms uint64
}

// stamped notes what a leader's clock said when it wrote a record.
func (p *partitionWorld) stamped(s stamp) {
	for n := len(p.stamps); n > 0 && p.stamps[n-1].ms <= s.ms; n-- {
		p.stamps = p.stamps[:n-1]
	}
	p.stamps = append(p.stamps, s)
}

// latest is the latest creation time of the records that were written since a moment.
func (p *partitionWorld) latest(since time.Duration) uint64 {
	for _, s := range p.stamps {
		if s.at >= since {
			return s.ms
		}
	}
	return 0
}

// machineStore is a partition store's file system on a machine, which survives processes.
type machineStore struct {
	fs      *vfs.MemFS
	claimed cluster.LSN // highest position that was announced as durable here
}

// processor is one replica of a partition: a follower, or a leader while it may.
type processor struct {
	c       *core
	p       *partitionWorld
	n       *node
	h       *logHandle
	machine *machineStore
	store   *store.Store
	proc    *partition.Processor
	step    *partition.Stepper
	reader  *procReader
	writer  *writer
	epoch   cluster.Epoch // 0: follower
	fence   cluster.LSN   // of the own announcement, once it was read
	invoker *invoker
	leading bool
	// sessions are the streams of the term to other leaders.
	sessions map[cluster.PartitionID]*session

	scheduled bool
	wakeAt    time.Time
	claiming  bool
	dead      bool
	pauses    cluster.LSN // the reader has ended a batch here, so that states can be compared
}

func (pr *processor) open() {
	if pr.n.cores == nil {
		pr.n.cores = map[cluster.PartitionID]*machineStore{}
	}
	m := pr.n.cores[pr.p.id]
	if m == nil {
		m = &machineStore{fs: vfs.NewCrashableMem()}
		pr.n.cores[pr.p.id] = m
	}
	pr.machine = m
	st, err := store.Open(store.Options{Dir: "p", FS: m.fs, Cache: pr.c.cache, Partition: pr.p.id, Range: pr.p.keys, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		violated("atomicity", "node %s: the store of partition %d does not open after a crash: %v", pr.n.id, pr.p.id, err)
	}
	pr.store = st
	applied, err := st.AppliedLSN()
	if err != nil {
		violated("atomicity", "applied LSN: %v", err)
	}
	if applied < m.claimed {
		violated("atomicity", "node %s: partition %d was announced to be durable up to %d and comes back at %d", pr.n.id, pr.p.id, m.claimed, applied)
	}
	pr.compare(applied)
	pr.follow()
}

// follow runs the processor without a claim: it applies what the log has, for a follower is a processor whose
// announcement never comes.
func (pr *processor) follow() {
	pr.run(0, partition.Claim{Epoch: ^cluster.Epoch(0), Node: pr.n.self()})
}

// run begins a term, or following.
func (pr *processor) run(epoch cluster.Epoch, claim partition.Claim) {
	pr.stopStep()
	w := pr.n.w
	pr.epoch, pr.fence, pr.leading = epoch, 0, false
	pr.sessions = map[cluster.PartitionID]*session{}
	cfg := partition.Config{
		Partition: pr.p.id, Range: pr.p.keys, Log: pr.h.id, Lookup: pr.c.lookup, Peers: pr, Logger: slog.New(slog.DiscardHandler),
		Now: pr.n.wall, TrimDelay: w.cfg.trimDelay, FlushRecords: 200, DurabilityStep: 100, FlushInterval: 20 * time.Second,
		BatchRecords: 1 + w.rng[configuration].IntN(32), TimersInMemory: 1 + w.rng[configuration].IntN(8), OutboxInMemory: 1 + w.rng[configuration].IntN(8),
		CleanupInterval: 5 * time.Second,
		OpenInvoker: func(_ cluster.PartitionID, h invokers.Host) partition.Invoker {
			pr.invoker = newInvoker(pr, h)
			return pr.invoker
		},
	}
	if w.cfg.single && w.cfg.has(Trim) {
		cfg.FlushInterval, cfg.DurabilityStep = 5*time.Second, 10 // so that there is something to trim
	}
	proc, err := partition.New(cfg, pr.store)
	if err != nil {
		violated("atomicity", "node %s: the processor of partition %d does not begin: %v", pr.n.id, pr.p.id, err)
	}
	pr.proc = proc
	pr.reader = &procReader{pr: pr, r: pr.h.reader(proc.AppliedLSN()+1, pr.wake)}
	var log partition.LogAppender = noAppender{}
	if epoch != 0 {
		pr.writer = &writer{h: pr.h}
		log = procAppender{pr, pr.writer}
	}
	step, err := proc.Steps(claim, pr.reader, log, pr.trim)
	if err != nil {
		violated("leadership", "announce: %v", err)
	}
	pr.step = step
	pr.wake()
}

// trim cuts the log, as the leader wants.
func (pr *processor) trim(_ context.Context, upTo cluster.LSN) error {
	if upTo > pr.p.durable {
		violated("trim", "partition %d is to be trimmed to %d, the agreed durable point is %d", pr.p.id, upTo, pr.p.durable)
	}
	pr.n.w.trims++
	pr.n.w.trace("trim", uint64(pr.p.id), uint64(upTo), 0)
	pr.h.trim(upTo)
	return nil
}

func (pr *processor) stopStep() {
	if pr.step != nil {
		pr.step.Close()
		pr.step = nil
	}
	if pr.writer != nil {
		pr.writer.close()
		pr.writer = nil
	}
	if pr.reader != nil {
		pr.reader.r.close()
		pr.reader = nil
	}
	pr.leading = false
	pr.invoker = nil
}

// alive reports whether it leads and its process gets on.
func (pr *processor) alive() bool {
	return !pr.dead && pr.n.up && !pr.n.paused && pr.epoch != 0 && pr.step != nil
}

func (pr *processor) wake() {
	if pr.scheduled || pr.dead {
		return
	}
	pr.scheduled = true
	d := 30 * time.Microsecond
	if pr.epoch == 0 {
		d = 100 * time.Millisecond // a follower is in no hurry, and takes many records at once
	}
	pr.n.after(d, pr.steps)
}

// steps runs the processor until there is nothing to do now.
func (pr *processor) steps() {
	pr.scheduled = false
	if pr.step == nil || pr.dead {
		return
	}
	n, wake, over, err := pr.step.Step(pr.c.ctx)
	if n > 0 {
		pr.compare(pr.proc.AppliedLSN())
	}
	switch {
	case err != nil && pr.epoch == 0:
		violated("apply", "a follower of partition %d on node %s stops: %v", pr.p.id, pr.n.id, err)
	case err != nil && !errors.Is(err, partition.ErrLostLeadership) && !errors.Is(err, bifrost.ErrNotWritten) && !errors.Is(err, bifrost.ErrUnknownOutcome):
		violated("apply", "the leader of partition %d on node %s stops: %v", pr.p.id, pr.n.id, err)
	case over:
		pr.n.w.trace("over", uint64(pr.p.id), uint64(pr.n.id), uint64(pr.epoch))
		pr.follow()
		return
	}
	if pr.step.Leading() && !pr.leading {
		pr.leading = true
		pr.p.leader = pr
		pr.n.w.trace("leads", uint64(pr.p.id), uint64(pr.n.id), uint64(pr.epoch))
	}
	if pr.leading {
		pr.c.clients.poll(pr)
		pr.c.operators.poll(pr)
	}
	if n > 0 {
		pr.wake()
		return
	}
	if !wake.IsZero() {
		pr.wakeAt = wake
		pr.n.after(max(wake.Sub(pr.n.wall()), 100*time.Microsecond), func() {
			if pr.wakeAt.Equal(wake) {
				pr.wake()
			}
		})
	}
}

// compare checks that all replicas have the same rows after the same records.
func (pr *processor) compare(lsn cluster.LSN) {
	if lsn == 0 || lsn%stateEvery != 0 {
		return
	}
	h, err := pr.store.StateHash()
	if err != nil {
		violated("apply", "state hash: %v", err)
	}
	if old, ok := pr.p.hashes[lsn]; !ok {
		pr.p.hashes[lsn] = h
	} else if old != h {
		violated("determinism", "partition %d on node %s has other rows at %d than a replica before", pr.p.id, pr.n.id, lsn)
	}
}

// stateEvery is how many records are between two positions at which states are compared.
const stateEvery = 256

// claim takes the next epoch and begins a term.
func (pr *processor) claim() {
	if pr.claiming || pr.dead {
		return
	}
	pr.claiming = true
	key := metadata.EpochKey(pr.p.id)
	end := func() { pr.claiming = false }
	pr.n.w.meta.get(pr.n, key, func(v []byte, version uint64, err error) {
		if err != nil || pr.dead {
			end()
			return
		}
		l, err := placement.DecodeLeadership(v)
		if err != nil {
			violated("epochs", "leadership of partition %d: %v", pr.p.id, err)
		}
		next, err := l.Claim(pr.n.self())
		if err != nil {
			violated("epochs", "claim: %v", err)
		}
		value, err := next.Encode()
		if err != nil {
			violated("epochs", "encode: %v", err)
		}
		pr.n.w.meta.swap(pr.n, key, value, version, func(_ uint64, err error) {
			end()
			if err != nil || pr.dead {
				return // an epoch that was claimed without knowing is never used
			}
			if old, used := pr.p.epochs[next.Epoch]; used {
				violated("epochs", "epoch %d of partition %d is claimed by %s and %s", next.Epoch, pr.p.id, old, pr.n.self())
			}
			pr.p.epochs[next.Epoch] = pr.n.self()
			pr.n.w.trace("claim", uint64(pr.p.id), uint64(pr.n.id), uint64(next.Epoch))
			pr.p.leader = pr
			pr.run(next.Epoch, partition.Claim{Epoch: next.Epoch, Node: pr.n.self(), ConfigVersion: version + 1})
		})
	})
}

// crash ends the replica with its process. What the file system had not synced is gone, but perhaps for parts.
func (pr *processor) crash() {
	if pr.dead {
		return
	}
	pr.dead = true
	// A generator of its own: how often the clone draws depends on the store's background work.
	rng := rand.New(rand.NewPCG(pr.n.w.rng[disks].Uint64(), 0))
	clone := pr.machine.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50 * rng.IntN(3), RNG: rng})
	pr.stopStep()
	if err := pr.store.Close(); err != nil {
		violated("atomicity", "close the store: %v", err)
	}
	pr.machine.fs = clone
}

// session is an ordered stream of messages from a leader to that of a destination. What is lost breaks it:
// everything that has no answer fails then, in order, and nothing behind a loss arrives.
type session struct {
	from    *processor
	term    *partition.Stepper
	dest    *processor
	sent    int // messages given to the stream
	arrived int // of them, taken by the destination
	waiting []func(error)
	broken  bool
}

func (s *session) fail(err error) {
	if s.broken {
		return
	}
	s.broken = true
	waiting := s.waiting
	s.waiting = nil
	if s.from.step != s.term || s.term == nil {
		return
	}
	for _, done := range waiting {
		done(err)
	}
	s.from.wake()
}

// answer ends the oldest message without an answer.
func (s *session) answer(err error) {
	switch {
	case s.broken:
	case err != nil:
		s.fail(err)
	default:
		done := s.waiting[0]
		s.waiting = s.waiting[1:]
		if s.from.step == s.term && s.term != nil {
			done(nil)
			s.from.wake()
		}
	}
}

// Ingest implements partition.Peers: it takes messages to the leader of a partition as it is known here.
func (pr *processor) Ingest(d cluster.PartitionID, origin partition.Origin, cmds []*recordpb.Command, done func(error)) error {
	if pr.fence == 0 || pr.proc.AppliedLSN() < pr.fence {
		violated("fence", "a message by epoch %d of partition %d before its announcement was applied", pr.epoch, pr.p.id)
	}
	w, from := pr.n.w, pr.n
	dest := pr.c.partitions[d].leader
	if dest == nil || !dest.alive() || !dest.leading {
		return partition.ErrNotLeader
	}
	s := pr.sessions[d]
	if s == nil || s.broken || s.dest != dest {
		if s != nil {
			s.fail(errTimeout)
		}
		s = &session{from: pr, term: pr.step, dest: dest}
		pr.sessions[d] = s
	}
	number := s.sent
	s.sent++
	s.waiting = append(s.waiting, done)
	back := func(err error) {
		if from == dest.n {
			from.after(10*time.Microsecond, func() { s.answer(err) })
		} else if !w.lost(dest.n.id, from.id) && !w.isCut(dest.n.id, from.id) {
			d := w.streamDelay(dest.n.id, from.id)
			from.after(d, func() { s.answer(err) })
		} else {
			from.after(time.Second, func() { s.fail(errTimeout) })
		}
	}
	life := dest.n.life
	arrive := func() {
		dest.n.run(life, function(func() {
			if s.arrived != number {
				return // something before it was lost
			}
			s.arrived++
			if dest.dead || dest.step == nil || !dest.leading {
				back(partition.ErrNotLeader)
				return
			}
			copies := make([]*recordpb.Command, len(cmds))
			for i, c := range cmds {
				copies[i] = &recordpb.Command{Dedup: c.Dedup, PartitionKey: c.PartitionKey, Kind: c.Kind}
			}
			err := dest.proc.Ingest(origin, copies, func(err error) {
				if err == nil {
					for _, c := range cmds {
						pr.p.sent[c.Dedup.Sequence] = true
					}
				}
				back(err)
			})
			if err != nil {
				back(err)
			}
		}))
	}
	switch {
	case from == dest.n:
		from.after(10*time.Microsecond, arrive)
	case !w.lost(from.id, dest.n.id) && !w.isCut(from.id, dest.n.id):
		w.after(w.streamDelay(from.id, dest.n.id), arrive)
	}
	from.after(3*time.Second, func() {
		if len(s.waiting) > 0 && s.sent-len(s.waiting) <= number {
			s.fail(errTimeout)
		}
	})
	return nil
}

var errTimeout = errors.New("the leader of the destination did not answer in time")

// streamDelay is delay for messages that keep their order.
func (w *world) streamDelay(from, to cluster.NodeID) time.Duration {
	link := &w.links[from-1][to-1]
	*link = max(*link+1, w.now+w.delay(from, to))
	return *link - w.now
}

// procReader gives a processor its log, and looks at what passes.
type procReader struct {
	pr *processor
	r  *reader
}

func (r *procReader) TryNext() (bifrost.Entry, bool, error) {
	pr := r.pr
	if at := r.r.next - 1; at > 0 && at%stateEvery == 0 && pr.pauses != at {
		pr.pauses = at // a batch ends here, so that the rows can be compared
		pr.wake()
		return bifrost.Entry{}, false, nil
	}
	expect := r.r.next
	e, ok := r.r.tryNext()
	if !ok {
		return e, false, nil
	}
	pr.n.w.oracle.delivered(pr.h.id, &e, expect)
	pr.n.w.delivered++
	if e.Kind == bifrost.Data {
		pr.passed(&e)
	}
	return e, true, nil
}

func (r *procReader) Wait() <-chan struct{} { return nil }
func (r *procReader) Close()                { r.r.close() }

// passed checks a record that a replica is about to apply.
func (pr *processor) passed(e *bifrost.Entry) {
	cmd, err := record.Decode(e.Record.Payload)
	if err != nil {
		violated("records", "record %d of partition %d: %v", e.LSN, pr.p.id, err)
	}
	p := pr.p
	if a := cmd.GetAnnounceLeader(); a != nil && pr.epoch != 0 && cluster.Epoch(a.Epoch) == pr.epoch {
		pr.fence = e.LSN
	}
	if e.LSN <= p.lastLSN {
		return
	}
	p.lastLSN = e.LSN
	own := cmd.GetDedup().GetSelf()
	p.dedup(e.LSN, cmd.GetDedup())
	if t := cmd.GetTimer(); t != nil && t.FireAtMs > e.Record.CreatedAt {
		violated("timers", "partition %d: record %d fires a timer of %d at %d", p.id, e.LSN, t.FireAtMs, e.Record.CreatedAt)
	}
	if a := cmd.GetAnnounceLeader(); a != nil {
		who := cluster.GenNodeID{ID: cluster.NodeID(a.NodeId), Generation: cluster.Generation(a.NodeGeneration)}
		if p.epochs[cluster.Epoch(a.Epoch)] != who {
			violated("epochs", "partition %d: epoch %d is announced by %s, claimed by %s", p.id, a.Epoch, who, p.epochs[cluster.Epoch(a.Epoch)])
		}
	}
	if d := cmd.GetPartitionDurability(); d != nil && own {
		p.durable = max(p.durable, cluster.LSN(d.DurableLsn))
	}
	if t := cmd.GetTruncateOutbox(); t != nil && own {
		for i := p.truncated + 1; i <= t.Index; i++ {
			if !p.sent[i] {
				violated("outbox", "partition %d: the outbox is truncated up to %d, message %d was not committed by its destination", p.id, t.Index, i)
			}
			delete(p.sent, i)
		}
		p.truncated = max(p.truncated, t.Index)
	}
}

// dedup checks that no message of another partition is dropped because a later one came before it.
func (p *partitionWorld) dedup(lsn cluster.LSN, d *recordpb.Dedup) {
	by, ok := d.GetProducer().(*recordpb.Dedup_Partition)
	if !ok {
		return
	}
	m := message{by.Partition, d.Sequence}
	if d.Sequence <= p.accepted[m.from] && !p.arrived[m] {
		violated("dedup", "partition %d: record %d is message %d of partition %d, message %d was taken before it", p.id, lsn, m.index, m.from, p.accepted[m.from])
	}
	p.arrived[m] = true
	p.accepted[m.from] = max(p.accepted[m.from], d.Sequence)
}

// procAppender is a leader's way into the log.
type procAppender struct {
	pr *processor
	wr *writer
}

func (a procAppender) Append(recs []bifrost.Record, done func(cluster.LSN, error)) error {
	if a.wr.closed {
		return bifrost.ErrClosed
	}
	if len(a.wr.queue) > 200 {
		return bifrost.ErrFull
	}
	clock := uint64(a.pr.n.wall().UnixMilli())
	a.pr.p.stamped(stamp{a.pr.n.w.now, clock})
	for i := range recs {
		if recs[i].CreatedAt != clock {
			violated("time", "partition %d: epoch %d writes a record of %d, its leader's clock says %d", a.pr.p.id, a.pr.epoch, recs[i].CreatedAt, clock)
		}
		if c, ok := recs[i].Decoded.(*recordpb.Command); ok {
			if d := c.GetPartitionDurability(); d != nil {
				a.pr.machine.claimed = max(a.pr.machine.claimed, cluster.LSN(d.DurableLsn))
			}
		}
		recs[i].Decoded = nil // every replica decodes for itself: what is in the log is what counts
	}
	pr := a.pr
	a.wr.append(recs, func(lsn cluster.LSN, err error) {
		done(lsn, err)
		if err != nil {
			pr.wake()
		}
	})
	return nil
}

func (a procAppender) Close()                             { a.wr.close() }
func (a procAppender) WaitCapacity(context.Context) error { return errClosed }

// noAppender is that of a follower, which writes nothing.
type noAppender struct{}

func (noAppender) Append([]bifrost.Record, func(cluster.LSN, error)) error { return nil }
func (noAppender) Close()                                                  {}
func (noAppender) WaitCapacity(context.Context) error                      { return errClosed }

func (c *core) finished() uint64 { return c.clients.answered }

// unsettled says what is not done yet after the faults.
func (c *core) unsettled() string {
	if s := c.clients.unsettled(); s != "" {
		return s
	}
	for _, p := range c.partitions {
		if p.leader == nil || !p.leader.alive() || !p.leader.leading {
			return "partition " + strconv.Itoa(int(p.id)) + " has no leader"
		}
		if s := p.running(); s != "" {
			return s
		}
		tail := c.w.oracle.logs[p.id].tail
		for _, n := range c.w.nodes {
			for _, wk := range n.workers {
				if wk.proc.p == p && wk.proc.proc.AppliedLSN()+64 < tail {
					return fmt.Sprintf("node %s has applied partition %d up to %d, its tail is %d", n.id, p.id, wk.proc.proc.AppliedLSN(), tail)
				}
			}
		}
	}
	return ""
}

func (c *core) close() { c.cache.Unref() }
