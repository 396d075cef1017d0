// Package partition is the processor of one partition: it applies the partition's log to its store in
// order and, while it leads, carries out what the log decides.
//
// Invariants it keeps:
//   - Apply, applied LSN and dedup commit in one batch; effects leave only after that batch.
//   - A leader acts only after it has read its own announcement back from the log, and stops at the first
//     announcement of a higher epoch, at the first failed append, and when its context ends.
//   - The loop never waits for its consumers: invoker, requests and other partitions take what is handed
//     to them at once, or find it in the store later.
//
// It leaves the meaning of commands to package fsm, the rows to package store, the log to nodes/bifrost,
// user code to the invokers, and the decision who leads to nodes/worker.
package partition

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/invokers"
	"perdure/nodes/bifrost"
	"perdure/nodes/partition/fsm"
	"perdure/nodes/partition/store"
	"perdure/nodes/record"
	"perdure/nodes/record/recordpb"
)

// Config is what a processor needs. Zero durations and limits are filled in by New.
type Config struct {
	Partition cluster.PartitionID
	Range     cluster.KeyRange
	Log       cluster.LogID
	Bifrost   *bifrost.Bifrost
	// Lookup says which partition owns a key.
	Lookup func(cluster.PartitionKey) cluster.PartitionID
	// Peers reaches the leaders of all partitions, this one included.
	Peers Peers
	// OpenInvoker makes the invoker of a new leader.
	OpenInvoker func(cluster.PartitionID, invokers.Host) Invoker
	Now         func() time.Time
	Logger      *slog.Logger
	Listener    Listener

	// BatchRecords and BatchBytes bound one store batch; 32 records and 1 MiB.
	BatchRecords, BatchBytes int
	// TimersInMemory bounds the leader's timer heap; the rest stays in the store. 10,000.
	TimersInMemory int
	// OutboxInMemory and OutboxBytes bound the undelivered messages in memory; the rest stays in the store. 10,000
	// and 64 MiB. One destination has a quarter of each.
	OutboxInMemory, OutboxBytes int
	// TickInterval is the period of the leader's housekeeping; 500 ms.
	TickInterval time.Duration
	// CleanupInterval is how often expired invocations are looked for. The look-up is by index, so a short
	// interval costs little; 10 s.
	CleanupInterval time.Duration
	// TrimDelay is how long after a durable point was agreed on the log is trimmed up to it: the time in which
	// a slow follower can still read it. 10 min.
	TrimDelay time.Duration
	// DurabilityStep is by how many records the durable point must have moved to be announced; 1,000.
	DurabilityStep cluster.LSN
	// FlushRecords is how far the store's durable state may lag the applied one before it is flushed; it
	// bounds the replay after a crash. 10,000.
	FlushRecords cluster.LSN
	// FlushInterval flushes a lagging store of a quiet partition; 5 min.
	FlushInterval time.Duration
}

func (c *Config) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	num := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	num(&c.BatchRecords, 32)
	num(&c.BatchBytes, 1<<20)
	num(&c.TimersInMemory, 10_000)
	num(&c.OutboxInMemory, 10_000)
	num(&c.OutboxBytes, 64<<20)
	def(&c.TickInterval, 500*time.Millisecond)
	def(&c.CleanupInterval, 10*time.Second)
	def(&c.TrimDelay, 10*time.Minute)
	def(&c.FlushInterval, 5*time.Minute)
	if c.DurabilityStep == 0 {
		c.DurabilityStep = 1000
	}
	if c.FlushRecords == 0 {
		c.FlushRecords = 10_000
	}
	if c.Now == nil {
		c.Now = time.Now
	}
}

// Peers reaches the leaders of partitions.
type Peers interface {
	// Ingest appends commands that carry a dedup to the log of d's leader, in order, all or none. It does not
	// block. Unless it returns an error, done is called once, in the order of the calls for d; after one failed,
	// all that were in flight to the same leader fail.
	Ingest(d cluster.PartitionID, from Origin, cmds []*recordpb.Command, done func(error)) error
}

// Origin says where a batch of messages comes from, so that a leader can tell that it lacks the batch before: that one
// may have gone to its predecessor and may have failed, and to take this one first would lose it.
type Origin struct {
	Partition cluster.PartitionID
	Epoch     cluster.Epoch // of the sender
	// Conversation counts how often the sender began anew towards this destination, with nothing unanswered.
	// Batch counts the batches since, from 0.
	Conversation, Batch uint64
}

// follows reports whether a batch may be taken when the last one that was taken of its partition is last.
func (o Origin) follows(last Origin) bool {
	if o.Epoch == last.Epoch && o.Conversation == last.Conversation {
		return o.Batch == last.Batch+1
	}
	return o.Batch == 0 && cmp.Or(cmp.Compare(o.Epoch, last.Epoch), cmp.Compare(o.Conversation, last.Conversation)) > 0
}

// Listener hears of what happens to a processor; nil functions are left out. They must not block.
type Listener struct {
	Leading        func(cluster.PartitionID, cluster.Epoch)
	StoppedLeading func(cluster.PartitionID, cluster.Epoch, error)
	Applied        func(p cluster.PartitionID, records int, took time.Duration)
	// Performed: the leader carries out the actions of a batch, which must not be kept.
	Performed func(cluster.PartitionID, []fsm.Action)
	// Ended: an invocation with a trace context ended, as this leader saw it.
	Ended func(ident.InvocationID, *fsm.Ended)
}

func (l *Listener) ended(id ident.InvocationID, e *fsm.Ended) {
	if l.Ended != nil {
		l.Ended(id, e)
	}
}

func (l *Listener) leading(p cluster.PartitionID, e cluster.Epoch) {
	if l.Leading != nil {
		l.Leading(p, e)
	}
}

func (l *Listener) stoppedLeading(p cluster.PartitionID, e cluster.Epoch, err error) {
	if l.StoppedLeading != nil {
		l.StoppedLeading(p, e, err)
	}
}

// Claim is the right to lead, as the epoch claim in the metadata store made it.
type Claim struct {
	Epoch         cluster.Epoch
	Node          cluster.GenNodeID
	ConfigVersion uint64 // of the epoch object
	ReplicaSets   []byte
}

// Processor is one replica of one partition. Run may be called once.
type Processor struct {
	cfg   Config
	log   *slog.Logger
	store *store.Store
	fsm   *fsm.Machine
	txn   *store.Txn

	reader   EntryReader
	appender LogAppender
	trimLog  func(ctx context.Context, upTo cluster.LSN) error
	aside    func(f func()) // runs a flush or a trim beside the loop; Run waits for it
	actions  fsm.Actions
	applied  atomic.Uint64
	latest   atomic.Uint64 // creation time of the log's newest record so far, ms since the epoch
	failed   chan error

	leader atomic.Pointer[leader]

	lastFlush time.Time
	side      sync.WaitGroup // flushes and trims under way
	flushing  atomic.Bool
	trimming  atomic.Bool
}

// New makes the processor of an opened store. The store stays the caller's.
func New(cfg Config, st *store.Store) (*Processor, error) {
	cfg.setDefaults()
	m, err := fsm.New(cfg.Partition, cfg.Range, st)
	if err != nil {
		return nil, fmt.Errorf("load the state machine of partition %d: %w", cfg.Partition, err)
	}
	p := &Processor{
		cfg: cfg, store: st, fsm: m, txn: st.NewTxn(),
		log:    cfg.Logger.With("component", "partition", "partition", cfg.Partition),
		failed: make(chan error, 1),
	}
	lsn, err := st.AppliedLSN()
	if err != nil {
		return nil, fmt.Errorf("read the applied LSN of partition %d: %w", cfg.Partition, err)
	}
	p.applied.Store(uint64(lsn))
	p.latest.Store(m.LatestMs())
	p.aside = p.side.Go
	return p, nil
}

// AppliedLSN is the position up to which the log is applied. Any goroutine may ask.
func (p *Processor) AppliedLSN() cluster.LSN { return cluster.LSN(p.applied.Load()) }

// ClockTolerance is by how much the clocks of leaders may differ without anybody being told: more than clocks that are set
// by the network differ, and less than what matters to somebody who sleeps.
const ClockTolerance = 10 * time.Second

// ClockBehind is how far this node's clock is behind the latest creation time in the log that was applied; 0 if it is not.
// Either it is wrong now, or the clock of a former leader was. Any goroutine may ask.
func (p *Processor) ClockBehind() time.Duration { return p.clockBehind(p.cfg.Now()) }

func (p *Processor) clockBehind(now time.Time) time.Duration {
	return max(time.UnixMilli(int64(min(p.latest.Load(), math.MaxInt64))).Sub(now), 0)
}

// Leading reports whether the processor leads its partition now.
func (p *Processor) Leading() bool { return p.leader.Load() != nil }

// Do serves a request if the processor leads. Errors have a method Safe that says whether the request
// certainly had no effect.
func (p *Processor) Do(ctx context.Context, req *recordpb.Request) (*recordpb.Reply, error) {
	l := p.leader.Load()
	if l == nil {
		return nil, ErrNotLeader
	}
	return l.do(ctx, req)
}

// Ingest appends another partition's messages if the processor leads; see Peers.
func (p *Processor) Ingest(from Origin, cmds []*recordpb.Command, done func(error)) error {
	l := p.leader.Load()
	if l == nil {
		return ErrNotLeader
	}
	return l.prop.ingest(from, cmds, done)
}

// RunLeader applies the log and leads the partition under the claim until another leader is announced
// (nil), ctx ends (its cause), or the replica cannot go on.
func (p *Processor) RunLeader(ctx context.Context, c Claim) error {
	tail, _, err := p.cfg.Bifrost.FindTail(ctx, p.cfg.Log)
	if err != nil {
		return fmt.Errorf("find the tail of log %d: %w", p.cfg.Log, err)
	}
	if p.AppliedLSN() >= tail {
		return fmt.Errorf("%w (applied %d, tail %d)", ErrAheadOfLog, p.AppliedLSN(), tail)
	}
	p.reader = p.cfg.Bifrost.Reader(p.cfg.Log, p.AppliedLSN()+1)
	defer p.reader.Close()
	defer p.side.Wait()
	p.appender = p.cfg.Bifrost.Appender(p.cfg.Log, bifrost.AppenderOptions{})
	p.trimLog = func(ctx context.Context, upTo cluster.LSN) error { return p.cfg.Bifrost.Trim(ctx, p.cfg.Log, upTo) }
	prop, err := p.announce(c)
	if err != nil {
		return err
	}
	defer prop.close()
	if mine, err := p.follow(ctx, c.Epoch); err != nil || !mine {
		return err
	}
	return p.lead(ctx, prop)
}

// announce makes the proposer of a claim and proposes the announcement with it.
func (p *Processor) announce(c Claim) (*proposer, error) {
	p.lastFlush = p.cfg.Now()
	prop := newProposer(c.Epoch, p.appender, func() uint64 { return uint64(p.cfg.Now().UnixMilli()) }, func(err error) {
		p.fail(fmt.Errorf("write to log %d: %w", p.cfg.Log, err))
	})
	if err := prop.propose(announcement(p.cfg.Range, c)); err != nil {
		prop.close()
		return nil, err
	}
	return prop, nil
}

func announcement(r cluster.KeyRange, c Claim) *recordpb.Command {
	return &recordpb.Command{Kind: &recordpb.Command_AnnounceLeader{AnnounceLeader: &recordpb.AnnounceLeader{
		Epoch: uint64(c.Epoch), NodeId: uint32(c.Node.ID), NodeGeneration: uint32(c.Node.Generation),
		KeyStart: uint64(r.Start), KeyEnd: uint64(r.End), ConfigVersion: c.ConfigVersion, ReplicaSets: c.ReplicaSets,
	}}}
}

// follow applies the log until the announcement of epoch (mine) or of a higher one was applied. The
// actions of what it applies are dropped: the leader of their time carried them out, and a new leader
// starts from the store.
func (p *Processor) follow(ctx context.Context, epoch cluster.Epoch) (mine bool, err error) {
	for {
		n, reached, mine, err := p.followStep(epoch)
		if err != nil || reached {
			return mine, err
		}
		if n > 0 && ctx.Err() == nil {
			continue
		}
		select {
		case <-p.reader.Wait():
		case err := <-p.failed:
			return false, err
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// followStep applies one batch. reached says that the announcement of epoch or of a higher one was applied.
func (p *Processor) followStep(epoch cluster.Epoch) (n int, reached, mine bool, err error) {
	n, err = p.applyAvailable()
	if err != nil {
		return n, false, false, err
	}
	e := p.fsm.Epoch()
	reached = n > 0 && e >= epoch
	return n, reached, reached && e == epoch, nil
}

// applyAvailable applies one batch of the records that can be read without waiting, commits it, and leaves
// its actions in p.actions.
//
// A batch ends behind an announcement: what follows is for the leader announced by it, who begins with
// the state at that point.
func (p *Processor) applyAvailable() (n int, err error) {
	p.actions.Reset()
	start := p.cfg.Now()
	size := 0
	lsn := p.AppliedLSN()
	for n < p.cfg.BatchRecords && size < p.cfg.BatchBytes {
		e, ok, err := p.reader.TryNext()
		if err != nil {
			p.txn.Discard()
			return 0, fmt.Errorf("read log %d from %d: %w", p.cfg.Log, lsn+1, err)
		}
		if !ok {
			break
		}
		cmd, err := p.command(&e, lsn)
		if err != nil {
			p.txn.Discard()
			return 0, err
		}
		lsn = e.To
		n++
		if cmd == nil { // a gap of filtered records
			continue
		}
		size += len(e.Record.Payload)
		if err := p.fsm.Apply(p.txn, lsn, e.Record.CreatedAt, cmd, &p.actions); err != nil {
			p.txn.Discard()
			return 0, fmt.Errorf("apply record %d of partition %d: %w", lsn, p.cfg.Partition, err)
		}
		if _, fence := cmd.Kind.(*recordpb.Command_AnnounceLeader); fence {
			break
		}
	}
	if n == 0 {
		return 0, nil
	}
	if err := p.fsm.Finish(p.txn, lsn); err != nil {
		p.txn.Discard()
		return 0, fmt.Errorf("finish the batch at %d of partition %d: %w", lsn, p.cfg.Partition, err)
	}
	if err := p.txn.Commit(); err != nil {
		return 0, fmt.Errorf("commit the batch at %d of partition %d: %w", lsn, p.cfg.Partition, err)
	}
	p.applied.Store(uint64(lsn))
	p.latest.Store(p.fsm.LatestMs())
	if p.cfg.Listener.Applied != nil {
		p.cfg.Listener.Applied(p.cfg.Partition, n, p.cfg.Now().Sub(start))
	}
	return n, nil
}

// command is the command of a log entry; nil for a gap that leaves nothing out.
func (p *Processor) command(e *bifrost.Entry, applied cluster.LSN) (*recordpb.Command, error) {
	if e.LSN != applied+1 {
		return nil, fmt.Errorf("log %d: read record %d after %d", p.cfg.Log, e.LSN, applied)
	}
	switch e.Kind {
	case bifrost.Data:
		if c, ok := e.Record.Decoded.(*recordpb.Command); ok {
			return c, nil
		}
		c, err := record.Decode(e.Record.Payload)
		if err != nil {
			return nil, fmt.Errorf("record %d of log %d: %w", e.LSN, p.cfg.Log, err)
		}
		return c, nil
	case bifrost.FilteredGap:
		return nil, nil
	case bifrost.TrimGap:
		return nil, fmt.Errorf("%w (applied %d, trimmed up to %d)", ErrTrimGap, applied, e.To)
	default:
		return nil, fmt.Errorf("%w (log %d, %d to %d)", ErrDataLoss, p.cfg.Log, e.LSN, e.To)
	}
}

// fail ends the processor; the first reason counts.
func (p *Processor) fail(err error) {
	select {
	case p.failed <- err:
	default:
	}
}

// maybeFlush makes the store durable in the background when it lags too far.
func (p *Processor) maybeFlush(now time.Time) error {
	durable, err := p.store.DurableLSN()
	if err != nil {
		return fmt.Errorf("read the durable LSN: %w", err)
	}
	lag := p.AppliedLSN() - durable
	if lag < p.cfg.FlushRecords && (lag == 0 || now.Sub(p.lastFlush) < p.cfg.FlushInterval) {
		return nil
	}
	if !p.flushing.CompareAndSwap(false, true) {
		return nil
	}
	p.lastFlush = now
	p.aside(func() {
		defer p.flushing.Store(false)
		if err := p.store.Flush(); err != nil {
			p.fail(fmt.Errorf("flush the store of partition %d: %w", p.cfg.Partition, err))
		}
	})
	return nil
}

// trim cuts the log in the background. Not being able to is no reason to stop: the next durable point
// tries again.
func (p *Processor) trim(ctx context.Context, upTo cluster.LSN) {
	if !p.trimming.CompareAndSwap(false, true) {
		return
	}
	p.aside(func() {
		defer p.trimming.Store(false)
		if err := p.trimLog(ctx, upTo); err != nil && !errors.Is(err, context.Canceled) {
			p.log.Warn("the log could not be trimmed; the next durable point tries again", "lsn", upTo, "err", err)
		}
	})
}
