package partition

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/mutant"
	"perdure/invokers"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/nodes/bifrost"
	"perdure/nodes/partition/fsm"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// leader is what a processor has while it leads: everything here is made when the own announcement was
// read back, and undone when the leader's loop returns.
type leader struct {
	p       *Processor
	prop    *proposer
	waiters waiters
	invoker Invoker
	timers  *timerQueue
	shuffle *shuffle

	// Owned by the loop.
	truncated    uint64    // outbox index up to which truncation was proposed
	nextTick     time.Time // of the housekeeping
	nextClean    time.Time
	cleaning     map[ident.InvocationID]struct{} // purges proposed and not yet applied
	durableAsked cluster.LSN
	clockBehind  bool // it was told that the clock is behind
	trims        []trim
	acks         []ack // scratch

	mail mailbox
	over chan struct{} // closed when the leader is
}

// trim is a durable point that was agreed on and waits for its grace period.
type trim struct {
	upTo cluster.LSN
	due  time.Time
}

// mailbox carries answers of deliveries and questions of the doctor to the loop. It is unbounded in form, but there is
// at most one entry for each batch in flight and for each request that waits.
type mailbox struct {
	mu   sync.Mutex
	acks []ack
	asks []*inspection
	wake chan struct{} // 1 slot
}

type ack struct {
	dest cluster.PartitionID
	n    int
	err  error
}

func (m *mailbox) put(a ack) {
	m.mu.Lock()
	m.acks = append(m.acks, a)
	m.mu.Unlock()
	m.notify()
}

func (m *mailbox) ask(i *inspection) {
	m.mu.Lock()
	m.asks = append(m.asks, i)
	m.mu.Unlock()
	m.notify()
}

func (m *mailbox) notify() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *mailbox) take(into []ack) (acks []ack, asks []*inspection) {
	m.mu.Lock()
	defer m.mu.Unlock()
	acks, asks = append(into[:0], m.acks...), m.asks
	m.acks, m.asks = m.acks[:0], nil
	return acks, asks
}

// lead runs the partition as its leader until a higher epoch is announced (nil), the leader can no longer
// write, or ctx ends.
func (p *Processor) lead(ctx context.Context, prop *proposer) (err error) {
	l, err := p.newLeader(prop)
	if err != nil {
		return err
	}
	defer func() { l.end(err) }()
	return l.loop(ctx)
}

// newLeader makes what a leader has, from the store, and starts what runs.
func (p *Processor) newLeader(prop *proposer) (_ *leader, err error) {
	l := &leader{p: p, prop: prop, cleaning: map[ident.InvocationID]struct{}{}, over: make(chan struct{})}
	l.mail.wake = make(chan struct{}, 1)
	l.timers = newTimerQueue(p.cfg.TimersInMemory, p.store.Timers)
	head, err := p.store.OutboxHead()
	if err != nil {
		return nil, fmt.Errorf("read the outbox head: %w", err)
	}
	from := Origin{Partition: p.cfg.Partition, Epoch: prop.epoch}
	l.shuffle = newShuffle(from, head, p.cfg.OutboxInMemory, p.cfg.OutboxBytes, p.cfg.Lookup)
	l.shuffle.send, l.shuffle.load = l.deliver, l.loadOutbox
	l.truncated = head - 1
	l.invoker = p.cfg.OpenInvoker(p.cfg.Partition, l)
	defer func() {
		if err != nil {
			l.end(err)
		}
	}()
	err = p.store.Invoked(func(id ident.InvocationID, inv *storepb.Invocation) error {
		var pinned ident.DeploymentID
		copy(pinned[:], inv.DeploymentId)
		l.invoker.Invoke(id, inv.Incarnation, inv.Target.GetService(), pinned, nil)
		if inv.PauseRequested {
			l.invoker.Pause(id)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("start the running invocations: %w", err)
	}
	p.leader.Store(l)
	p.cfg.Listener.leading(p.cfg.Partition, prop.epoch)
	return l, nil
}

// end undoes newLeader.
func (l *leader) end(err error) {
	l.p.leader.Store(nil)
	close(l.over)
	l.p.cfg.Listener.stoppedLeading(l.p.cfg.Partition, l.prop.epoch, err)
	l.prop.close()
	l.invoker.Close()
	l.waiters.close()
}

// step does what can be done now: applies a batch, carries out what it decided, and what time asks for. n is
// the number of records applied; over says that another leader was announced; wake is when to come again.
func (l *leader) step(ctx context.Context) (n int, over bool, wake time.Time, err error) {
	n, err = l.p.applyAvailable()
	if err != nil {
		return n, false, wake, err
	}
	if n > 0 && l.perform(l.p.actions.List) {
		return n, true, wake, nil
	}
	now := l.p.cfg.Now()
	var asks []*inspection
	l.acks, asks = l.mail.take(l.acks)
	for _, a := range l.acks {
		l.shuffle.acked(a.dest, a.n, a.err, now)
	}
	for _, i := range asks {
		i.capture(l)
	}
	wake, err = l.housekeep(ctx, now)
	return n, false, wake, err
}

func (l *leader) loop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		n, over, wake, err := l.step(ctx)
		if err != nil || over {
			return err
		}
		if n > 0 { // more may be there; cancellation and failure are looked at once it is calm, or every so often
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case err := <-l.p.failed:
				return err
			default:
				continue
			}
		}
		// Not longer than a tick: the clock may have been set since wake was computed.
		timer.Reset(min(wake.Sub(l.p.cfg.Now()), l.p.cfg.TickInterval))
		select {
		case <-l.p.reader.Wait():
		case <-l.mail.wake:
		case <-timer.C:
		case err := <-l.p.failed:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// perform carries out the effects of a committed batch. over says that another leader was announced.
func (l *leader) perform(actions []fsm.Action) (over bool) {
	now := l.p.cfg.Now()
	if f := l.p.cfg.Listener.Performed; f != nil && len(actions) > 0 {
		f(l.p.cfg.Partition, actions)
	}
	for i := range actions {
		a := &actions[i]
		switch a.Kind {
		case fsm.ActInvoke:
			l.invoker.Invoke(a.ID, a.Incarnation, a.Service, a.Deployment, freshJournal(a))
		case fsm.ActNotify:
			l.invoker.Notify(a.ID, a.Incarnation, a.EntryIndex, a.Type, a.Raw)
		case fsm.ActApplied:
			l.invoker.Applied(a.ID, a.Incarnation, a.Sequence)
		case fsm.ActAbort:
			l.invoker.Abort(a.ID)
		case fsm.ActPause:
			l.invoker.Pause(a.ID)
		case fsm.ActRetryNow:
			l.invoker.RetryNow(a.ID)
		case fsm.ActReply:
			l.waiters.answer(a.RequestID, a.Reply)
		case fsm.ActTimer:
			l.timers.add(a.Timer)
		case fsm.ActOutbox:
			l.shuffle.add(outMessage{index: a.Index, cmd: a.Command, bytes: a.Command.SizeVT()}, now)
		case fsm.ActPurged:
			delete(l.cleaning, a.ID)
		case fsm.ActDurable:
			l.trims = append(l.trims, trim{upTo: a.LSN, due: now.Add(l.p.cfg.TrimDelay)})
		case fsm.ActEnded:
			l.p.cfg.Listener.ended(a.ID, a.Ended)
		case fsm.ActAnnounced:
			if a.Epoch > l.prop.epoch {
				return true
			}
		}
	}
	return false
}

// housekeep does what time asks for and says when it wants to be called again.
func (l *leader) housekeep(ctx context.Context, now time.Time) (wake time.Time, err error) {
	if wake, err = l.fireTimers(now); err != nil {
		return wake, err
	}
	if l.shuffle.pending() {
		if err := l.shuffle.refill(now); err != nil {
			return wake, fmt.Errorf("read the outbox: %w", err)
		}
		if t := l.shuffle.wake(now); !t.IsZero() && t.Before(wake) {
			wake = t
		}
	}
	tick := isTime(now, l.nextTick, l.p.cfg.TickInterval)
	if tick {
		l.nextTick = now.Add(l.p.cfg.TickInterval)
	}
	if d := l.shuffle.delivered(); d > l.truncated && (tick || d-l.truncated >= truncateAfter) {
		if l.offer(&recordpb.Command{Kind: &recordpb.Command_TruncateOutbox{TruncateOutbox: &recordpb.TruncateOutbox{Index: d}}}) {
			l.truncated = d
		}
	}
	if tick {
		if err := l.tick(ctx, now); err != nil {
			return wake, err
		}
	}
	if l.nextTick.Before(wake) {
		wake = l.nextTick
	}
	return wake, nil
}

// isTime reports whether what is done every so often, and next at a time, is to be done now: also when the clock was set
// back behind the last time.
func isTime(now, next time.Time, every time.Duration) bool {
	d := next.Sub(now)
	return d <= 0 || d > every
}

// truncateAfter is how many delivered messages are truncated at once while the leader is busy.
const truncateAfter = 4096

// fireTimers proposes the timers that are due by this node's clock, which may be set at any time: each tick looks again.
func (l *leader) fireTimers(now time.Time) (wake time.Time, err error) {
	nowMs := uint64(now.UnixMilli())
	if mutant.Is(mutant.TimerEarly) {
		nowMs += 1000
	}
	for {
		k, ok, err := l.timers.next()
		switch {
		case err != nil:
			return wake, fmt.Errorf("read timers: %w", err)
		case !ok:
			return now.Add(time.Hour), nil
		case k.FireAtMs > nowMs:
			return time.UnixMilli(int64(min(k.FireAtMs, math.MaxInt64))), nil
		}
		c := &recordpb.Command{
			PartitionKey: uint64(k.ID.PartitionKey()),
			Kind: &recordpb.Command_Timer{Timer: &recordpb.Timer{
				FireAtMs: k.FireAtMs, Kind: uint32(k.Kind), InvocationId: bytes.Clone(k.ID[:]), CompletionId: k.CompletionID,
			}},
		}
		if !l.offer(c) {
			return now.Add(retryFull), nil
		}
		l.timers.pop()
	}
}

const retryFull = 5 * time.Millisecond

// offer proposes a command of the loop; false means that there is no room now. A failed proposer shows in
// the processor's failed channel.
func (l *leader) offer(c *recordpb.Command) bool {
	return l.prop.propose(c) == nil
}

// tick is the slow housekeeping: retention, durability, trimming.
func (l *leader) tick(ctx context.Context, now time.Time) error {
	if behind := l.p.clockBehind(now); behind > ClockTolerance != l.clockBehind {
		if l.clockBehind = !l.clockBehind; l.clockBehind {
			l.p.log.Warn("the clock of this node is behind the latest time in the log: timers are late if it is wrong; if a former leader's was, what was recorded then is kept longer",
				"by", behind.Round(time.Second))
		}
	}
	if isTime(now, l.nextClean, l.p.cfg.CleanupInterval) {
		l.nextClean = now.Add(l.p.cfg.CleanupInterval)
		if err := l.clean(now); err != nil {
			return err
		}
	}
	if err := l.p.maybeFlush(now); err != nil {
		return err
	}
	durable, err := l.p.store.DurableLSN()
	if err != nil {
		return fmt.Errorf("read the durable LSN: %w", err)
	}
	if mutant.Is(mutant.DurableIsApplied) {
		durable = l.p.AppliedLSN()
	}
	if durable >= l.durableAsked+l.p.cfg.DurabilityStep {
		c := &recordpb.Command{Kind: &recordpb.Command_PartitionDurability{PartitionDurability: &recordpb.PartitionDurability{DurableLsn: uint64(durable)}}}
		if l.offer(c) {
			l.durableAsked = durable
		}
	}
	var due cluster.LSN
	for len(l.trims) > 0 && !now.Before(l.trims[0].due) {
		due = l.trims[0].upTo
		l.trims = l.trims[1:]
	}
	if mutant.Is(mutant.TrimApplied) && due > 0 {
		due = l.p.AppliedLSN()
	}
	if due > 0 {
		l.p.trim(ctx, due)
	}
	return nil
}

// clean proposes the purge of what is no longer retained.
func (l *leader) clean(now time.Time) error {
	const perRound = 1000
	es, err := l.p.store.Expired(uint64(now.UnixMilli()), perRound)
	if err != nil {
		return fmt.Errorf("read the expiry index: %w", err)
	}
	for _, e := range es {
		if _, asked := l.cleaning[e.ID]; asked {
			continue
		}
		c := &recordpb.Command{
			PartitionKey: uint64(e.ID.PartitionKey()),
			Kind:         &recordpb.Command_Purge{Purge: &recordpb.Purge{InvocationId: e.ID[:], JournalOnly: e.JournalOnly, Expired: true}},
		}
		if !l.offer(c) {
			break
		}
		l.cleaning[e.ID] = struct{}{}
	}
	if len(es) == perRound {
		l.nextClean = now.Add(l.p.cfg.TickInterval)
	}
	return nil
}

// deliver sends a batch of the outbox to its destination's leader.
func (l *leader) deliver(d cluster.PartitionID, b batch) error {
	cmds := make([]*recordpb.Command, len(b.messages))
	producer := &recordpb.Dedup_Partition{Partition: uint32(l.p.cfg.Partition)}
	for i, m := range b.messages {
		c := &recordpb.Command{PartitionKey: m.cmd.PartitionKey, Kind: m.cmd.Kind}
		cmds[i] = c
		// The destination's log gets the outbox index as the sequence, whoever sends and however often.
		c.Dedup = &recordpb.Dedup{Producer: producer, Sequence: m.index}
	}
	n := len(cmds)
	return l.p.cfg.Peers.Ingest(d, b.from, cmds, func(err error) { l.mail.put(ack{dest: d, n: n, err: err}) })
}

func (l *leader) loadOutbox(from uint64, limit, bytes int) (out []outMessage, more bool, err error) {
	ms, more, err := l.p.store.Outbox(from, limit, bytes)
	if err != nil {
		return nil, false, err
	}
	out = make([]outMessage, len(ms))
	for i, m := range ms {
		out[i] = outMessage{index: m.Index, cmd: m.Command, bytes: m.Bytes}
	}
	return out, more, nil
}

// proposeWaiting proposes, waiting for room as long as ctx allows.
func (l *leader) proposeWaiting(ctx context.Context, c *recordpb.Command) error {
	for {
		err := l.prop.propose(c)
		if !errors.Is(err, bifrost.ErrFull) {
			return err
		}
		if l.p.appender.WaitCapacity(ctx) != nil {
			return ErrOverloaded
		}
	}
}

// Invoker is a led partition's invoker; *invokers.Partition is it in production. All methods but Close
// return at once.
type Invoker interface {
	Invoke(id ident.InvocationID, incarnation uint64, service string, pinned ident.DeploymentID, fresh *invokers.Journal)
	Notify(id ident.InvocationID, incarnation uint64, entryIndex uint32, typ uint16, raw []byte)
	Applied(id ident.InvocationID, incarnation, sequence uint64)
	Abort(id ident.InvocationID)
	Pause(id ident.InvocationID)
	RetryNow(id ident.InvocationID)
	// Status calls fn for each invocation that it has, as of one moment, until fn returns false.
	Status(fn func(invokers.Status) bool)
	Close()
}

var _ invokers.Host = (*leader)(nil)

// Propose puts effects of an attempt into the log.
func (l *leader) Propose(ctx context.Context, id ident.InvocationID, incarnation, sequence uint64, effects []*invocationpb.Effect) error {
	return l.proposeWaiting(ctx, &recordpb.Command{
		PartitionKey: uint64(id.PartitionKey()),
		Kind: &recordpb.Command_InvokerEffects{InvokerEffects: &recordpb.InvokerEffects{
			InvocationId: id[:], Incarnation: incarnation, Sequence: sequence, Effects: effects,
		}},
	})
}

// ReadJournal reads what an attempt starts from.
func (l *leader) ReadJournal(id ident.InvocationID, limit invokers.EagerLimit, reserve func(int) bool) (*invokers.Journal, error) {
	return l.p.store.ReadJournal(id, limit, reserve)
}

// freshJournal is the journal of an invocation that was just created; nil when the store must be read.
func freshJournal(a *fsm.Action) *invokers.Journal {
	if a.Fresh == nil {
		return nil
	}
	inv := a.Fresh.Invocation
	return &invokers.Journal{
		ID: a.ID, Incarnation: a.Incarnation, Target: inv.Target,
		Entries:        []invokers.Entry{{Type: protocol.TypeInput, Raw: a.Fresh.Input}},
		PartialState:   true, // a plain service has no state
		IdempotencyKey: inv.IdempotencyKey, LimitKey: inv.LimitKey,
		CreatedAtMs: a.Fresh.AtMs, ModifiedAtMs: a.Fresh.AtMs,
		TraceParent: inv.TraceParent, TraceState: inv.TraceState,
	}
}
