// Package bifrost is a partition's log: a chain of segments (loglets) under one growing LSN. It
// appends, reads across segments, trims, and continues a log in a new segment when the old one can
// not go on: seal it, find its tail, repair it, and put a successor into the chain by compare-and-set.
//
// What it promises: an append that was answered with an LSN is delivered to every reader that
// passes this LSN, unless trimmed; positions are delivered in order, once, with one content for
// ever; nothing uncommitted is delivered. Records may appear twice, when an append had to be repeated
// in another segment, so that consumers must recognise duplicates.
//
// Ordering within a segment is package loglet's business; who may append at all is decided by epochs
// inside of the records, not here.
package bifrost

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"perdure/control/chain"
	"perdure/control/cluster"
	"perdure/nodes/loglet"
	"perdure/nodes/logserver"
	"perdure/nodes/transport"
)

// Config of a Bifrost. Self, Net, Chains and Logger are required.
type Config struct {
	// Self is this life of the node. A second Bifrost must not be made for it.
	Self cluster.GenNodeID
	// Net reaches the log servers and sequencers of all nodes, the own ones included.
	Net transport.Caller
	// Chains is the cluster's metadata.
	Chains Chains
	// Nodes tells the storage states and locations of the nodes as known now; nil takes every node
	// for healthy and without location.
	Nodes func() cluster.StorageView
	// Place chooses the replication and node set of a new segment; previous is the node set of the
	// one before, nil for a new log. Nil means: one copy on this node.
	Place func(log cluster.LogID, previous []cluster.NodeID) (cluster.Replication, []cluster.NodeID, error)
	// Clock is the source of time; nil means the system's.
	Clock loglet.Clock
	// Logger is for the operator.
	Logger *slog.Logger
	// Registry receives the metrics; nil means none.
	Registry prometheus.Registerer
	// CacheBytes bounds the record cache; default 64 MiB. Too low sends local readers to the disk
	// when they lag.
	CacheBytes int
	// ReadTimeout is when another log server is asked for records; default 1 s.
	ReadTimeout time.Duration
	// TailPoll is how often the tail of a segment is looked for while its sequencer can not be asked;
	// default 2 s.
	TailPoll time.Duration
	// Sequencer and Finder are the limits of the machines below.
	Sequencer loglet.SequencerConfig
	Finder    loglet.FinderConfig
}

func (c Config) withDefaults() Config {
	if c.Nodes == nil {
		c.Nodes = func() cluster.StorageView { return healthyNodes{} }
	}
	if c.Place == nil {
		c.Place = func(cluster.LogID, []cluster.NodeID) (cluster.Replication, []cluster.NodeID, error) {
			return cluster.ReplicateTo(1), []cluster.NodeID{c.Self.ID}, nil
		}
	}
	if c.Clock == nil {
		c.Clock = loglet.SystemClock{}
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = 64 << 20
	}
	if c.ReadTimeout == 0 {
		c.ReadTimeout = time.Second
	}
	if c.TailPoll == 0 {
		c.TailPoll = 2 * time.Second
	}
	return c
}

// healthyNodes takes every node for healthy.
type healthyNodes struct{}

func (healthyNodes) Storage(cluster.NodeID) (cluster.StorageState, cluster.Location) {
	return cluster.StorageReadWrite, cluster.Location{}
}

// ErrNoLog means that the log has no chain: EnsureLog makes one.
var ErrNoLog = errors.New("log does not exist")

// Bifrost is the node's handle of all logs. Safe for concurrent use.
type Bifrost struct {
	cfg     Config
	cache   *recordCache
	metrics *metrics
	ctx     context.Context // ends with Close
	stop    context.CancelCauseFunc
	wg      sync.WaitGroup

	mu        sync.Mutex
	logs      map[cluster.LogID]*logState
	appenders map[*Appender]struct{}
	sealing   bool // SealAll was called: no log is made writable any more
	closed    bool
}

// New returns a Bifrost without any log loaded. It starts nothing.
func New(cfg Config) (*Bifrost, error) {
	cfg = cfg.withDefaults()
	m, err := newMetrics(cfg.Registry)
	if err != nil {
		return nil, fmt.Errorf("register bifrost metrics: %w", err)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	return &Bifrost{
		cfg: cfg, cache: newRecordCache(cfg.CacheBytes), metrics: m, ctx: ctx, stop: stop,
		logs: map[cluster.LogID]*logState{}, appenders: map[*Appender]struct{}{},
	}, nil
}

// Close ends all appenders (answering every append) and readers, and waits for all goroutines. It
// seals nothing: the next life of the node does that. Idempotent.
func (b *Bifrost) Close() {
	b.mu.Lock()
	b.closed = true
	appenders := make([]*Appender, 0, len(b.appenders))
	for a := range b.appenders {
		appenders = append(appenders, a)
	}
	logs := make([]*logState, 0, len(b.logs))
	for _, l := range b.logs {
		logs = append(logs, l)
	}
	b.mu.Unlock()
	b.stop(ErrClosed)
	for _, a := range appenders {
		a.Close()
	}
	for _, l := range logs {
		l.close()
	}
	b.wg.Wait()
}

// SealAll ends the sequencers of this node and seals their segments, so that whoever continues the
// logs need not wait for them. Appends that are under way end in their appenders' recovery, which
// does not succeed any more: close the appenders first. For an orderly shutdown.
func (b *Bifrost) SealAll(ctx context.Context) error {
	b.mu.Lock()
	b.sealing = true
	logs := make([]*logState, 0, len(b.logs))
	for _, l := range b.logs {
		logs = append(logs, l)
	}
	b.mu.Unlock()
	errs := make([]error, len(logs))
	var wg sync.WaitGroup
	for i, l := range logs {
		wg.Go(func() { errs[i] = l.sealOwn(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// log returns the state of a log, and begins to watch its chain.
func (b *Bifrost) log(id cluster.LogID) *logState {
	b.mu.Lock()
	l := b.logs[id]
	if l == nil {
		l = newLogState(b, id)
		if b.closed { // usable as a value, but it is not kept and ends at once
			b.mu.Unlock()
			l.close()
			return l
		}
		b.logs[id] = l
	}
	b.mu.Unlock()
	l.watchOnce.Do(l.watch)
	return l
}

func (b *Bifrost) adopt(a *Appender) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.appenders[a] = struct{}{}
	return true
}

func (b *Bifrost) disown(a *Appender) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.appenders, a)
}

// refusesWrites reports whether no log is made writable any more.
func (b *Bifrost) refusesWrites() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sealing || b.closed
}

// run starts a goroutine that Close waits for; after Close it does nothing and returns false.
func (b *Bifrost) run(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.wg.Go(f)
	return true
}

// pause waits for d or the end of ctx.
func (b *Bifrost) pause(ctx context.Context, d time.Duration) {
	over := make(chan struct{})
	t := b.cfg.Clock.AfterFunc(d, func() { close(over) })
	defer t.Stop()
	select {
	case <-over:
	case <-ctx.Done():
	}
}

// bound returns a context that ends with ctx and with the Bifrost.
func (b *Bifrost) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if b.ctx.Err() != nil {
		cancel(ErrClosed)
	}
	stop := context.AfterFunc(b.ctx, func() { cancel(ErrClosed) })
	return ctx, func() { stop(); cancel(nil) }
}

// EnsureLog creates the log if it does not exist.
func (b *Bifrost) EnsureLog(ctx context.Context, log cluster.LogID) error {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	return b.log(log).ensure(ctx)
}

// SealAndExtend ends the log's open segment and continues it in a new one, sequenced by this node.
func (b *Bifrost) SealAndExtend(ctx context.Context, log cluster.LogID) error {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	return b.log(log).sealAndExtend(ctx)
}

// FindTail returns a tail of the log: everything below it is committed, and it is not lower than any
// tail that was the answer of an append or of an earlier FindTail. sealed says that the log ends
// there until somebody extends it.
func (b *Bifrost) FindTail(ctx context.Context, log cluster.LogID) (tail cluster.LSN, sealed bool, err error) {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	return b.log(log).findTail(ctx)
}

// KnownTail is the tail of a log as far as this node knows without asking anybody: only the log's sequencer knows it.
func (b *Bifrost) KnownTail(log cluster.LogID) (tail cluster.LSN, known bool) {
	driver, base := b.log(log).active()
	if driver == nil {
		return 0, false
	}
	return lsnOf(base, driver.Tail().Load()), true
}

// Trim deletes the log's records up to and including upTo, but none at or above the committed tail.
func (b *Bifrost) Trim(ctx context.Context, log cluster.LogID, upTo cluster.LSN) error {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	return b.log(log).trim(ctx, upTo)
}

// TrimPoint is the last trimmed LSN as far as can be found out, 0 when nothing was trimmed. It may be
// lower than the true one while log servers are down.
func (b *Bifrost) TrimPoint(ctx context.Context, log cluster.LogID) (cluster.LSN, error) {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	return b.log(log).trimPoint(ctx)
}

// Handle answers the requests to the sequencers of this node: the handler of transport.Sequencer.
func (b *Bifrost) Handle(_ cluster.GenNodeID, m transport.Message, reply transport.ReplyFunc) {
	r, ok := m.(*loglet.TailRequest)
	if !ok {
		reply(nil, fmt.Errorf("sequencer does not know message %T", m))
		return
	}
	b.answerTail(r, reply)
}

// segment is a chain's segment with what reading and sealing it needs.
type segment struct {
	id        cluster.LogletID
	base, end cluster.LSN // end is exclusive, 0 while open
	sequencer cluster.GenNodeID
	quorum    *cluster.Quorum
	order     []int // positions of the node set, in the order in which reads try them
}

func lsnOf(base cluster.LSN, o cluster.Offset) cluster.LSN { return base + cluster.LSN(o) - 1 }

func (s *segment) lsnOf(o cluster.Offset) cluster.LSN { return lsnOf(s.base, o) }

// offsetOf is the offset of an LSN at or above the base.
func (s *segment) offsetOf(l cluster.LSN) cluster.Offset {
	return cluster.Offset(min(uint64(l-s.base)+1, uint64(logserver.MaxOffset)))
}

func (s *segment) params() loglet.Params {
	return loglet.Params{ID: s.id, Sequencer: s.sequencer, Quorum: s.quorum}
}

// segmentOf prepares a segment of a chain.
func (b *Bifrost) segmentOf(s chain.Segment, end cluster.LSN, open bool) segment {
	seg := segment{id: s.Loglet, base: s.Base, sequencer: s.Sequencer, quorum: cluster.NewQuorum(s.NodeSet, s.Replication, b.cfg.Nodes())}
	if !open {
		seg.end = end
	}
	seg.order = readOrder(s, seg.quorum.Readable(), b.cfg.Self.ID)
	return seg
}

// readOrder is the own node first, then the others, beginning at a place that depends on the segment
// so that readers of different logs spread. Nodes that can not be read from come not at all, unless
// there are no others.
func readOrder(s chain.Segment, readable cluster.Members, self cluster.NodeID) []int {
	n := len(s.NodeSet)
	var own, others []int
	for i := range n {
		at := (i + int(s.Loglet.LogID()) + int(self)) % n
		switch {
		case !readable.Has(at) && !readable.Empty():
		case s.NodeSet[at] == self:
			own = append(own, at)
		default:
			others = append(others, at)
		}
	}
	return append(own, others...)
}
