package invokers

import (
	"container/list"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
)

// Partition is the invoker of one led partition. Invoke, Notify, Applied, Abort, Pause and RetryNow are
// called from the partition's loop in the order of the log; they never block and never call the host.
// Status and Close may be called from anywhere.
type Partition struct {
	pool *Pool
	id   cluster.PartitionID
	host Host
	log  *slog.Logger

	ctx    context.Context // ends with Close; parent of the attempts' contexts
	cancel context.CancelFunc
	wg     sync.WaitGroup // goroutines of attempts
	next   chan *attempt  // unbuffered: taken by goroutines that are through with their attempt
	idle   atomic.Int32   // how many of them there are

	mu struct {
		sync.Mutex
		closed      bool
		invocations map[ident.InvocationID]*invocation
	}
}

func newPartition(p *Pool, id cluster.PartitionID, host Host) *Partition {
	pt := &Partition{pool: p, id: id, host: host, log: p.deps.Logger.With("component", "invoker", "partition", id)}
	pt.ctx, pt.cancel = context.WithCancel(context.Background())
	pt.next = make(chan *attempt)
	pt.mu.invocations = make(map[ident.InvocationID]*invocation)
	return pt
}

// phase says what an invocation is doing.
type phase uint8

const (
	queued  phase = iota + 1 // waits for a concurrency slot
	running                  // has an open attempt
	waiting                  // for the time of its retry, and for its proposals to be applied
	ending                   // its last effect is on its way through the log
)

// invocation is one running invocation between Invoke and the application of its last effect. All fields but
// the first three are guarded by the partition's lock.
type invocation struct {
	p           *Partition
	id          ident.InvocationID
	incarnation uint64

	phase phase
	// gone: aborted, replaced by a later incarnation, or over. Nothing may follow.
	gone bool
	slot *share // whose slot it holds, nil without one
	// fresh is the whole journal if nothing was appended to it yet.
	fresh   *Journal
	attempt *attempt // of phase running
	track   tracker

	service  string             // of the target
	pinned   ident.DeploymentID // zero before its first progress
	waitsFor *share             // guarded, with inQueue, by the pool's slots: whose slot it waits for in phase queued
	inQueue  *list.Element

	// proposing counts calls of Host.Propose with last effects that have not returned. The order of such
	// calls is the order in the log, so nobody else may propose meanwhile.
	proposing int

	timer    *time.Timer
	timerGen uint64
	due      bool // the time of the retry has come

	pauseRequested bool
	starts         uint64
	refused        int    // requests in a row that the service certainly did not see
	policyUsed     uint64 // retries that the retry policy has counted
	storedRetries  uint32 // failed attempts since the service last sent a command
	lastStart      time.Time
	nextRetry      time.Time
	lastFailure    *failure
	lastEvent      *failure // the last one that was recorded in the journal
	deployment     ident.DeploymentID
	server         string
	awaiting       *invocationpb.Future
}

// keepSlotFor is the longest retry delay during which an invocation keeps its concurrency slot.
const keepSlotFor = time.Second

// A journal that was handed in with Invoke is kept while its invocation is queued only if it is small;
// otherwise it is read from the store when its turn comes.
const keepFresh = 4 << 10

// Invoke starts an invocation, or starts it again in a new incarnation. service is that of its target, pinned the
// deployment on which it began, zero before its first progress: they say whose concurrency slot it takes. fresh, if not
// nil, is its whole journal, so that the first attempt need not read the store.
func (p *Partition) Invoke(id ident.InvocationID, incarnation uint64, service string, pinned ident.DeploymentID, fresh *Journal) {
	p.pool.metrics.enqueued.Inc()
	p.mu.Lock()
	if p.mu.closed {
		p.mu.Unlock()
		return
	}
	var slot *share
	if old := p.mu.invocations[id]; old != nil {
		if old.incarnation >= incarnation {
			p.mu.Unlock()
			return
		}
		slot = p.removeLocked(old)
	}
	inv := &invocation{p: p, id: id, incarnation: incarnation, service: service, pinned: pinned, fresh: fresh}
	p.mu.invocations[id] = inv
	p.enqueueLocked(inv)
	p.mu.Unlock()
	p.giveBack(slot)
}

// enqueueLocked starts an attempt as soon as there is a slot.
func (p *Partition) enqueueLocked(inv *invocation) {
	inv.phase = queued
	slot := p.pool.slots.acquire(inv, p.deploymentLocked(inv))
	if slot == nil {
		if inv.fresh != nil && len(inv.fresh.Entries[0].Raw) > keepFresh {
			inv.fresh = nil
		}
		return
	}
	p.pool.metrics.acquired.Inc()
	inv.slot = slot
	p.startLocked(inv)
}

// deploymentLocked is where the next attempt of an invocation probably goes; zero when there is nothing to go to.
func (p *Partition) deploymentLocked(inv *invocation) ident.DeploymentID {
	if !inv.pinned.IsZero() {
		return inv.pinned
	}
	if d := p.pool.deps.Schema.Current().Latest(inv.service); d != nil {
		return d.ID
	}
	return ident.DeploymentID{}
}

// granted hands a slot to a queued invocation; false means that it no longer wants one.
func (p *Partition) granted(inv *invocation, slot *share) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed || inv.gone || inv.phase != queued || inv.pauseRequested { // the last: proposeLast pauses it
		return false
	}
	p.pool.metrics.acquired.Inc()
	inv.slot = slot
	p.startLocked(inv)
	return true
}

func (p *Partition) startLocked(inv *invocation) {
	inv.phase, inv.due = running, false
	inv.starts++
	inv.lastStart, inv.nextRetry = p.pool.deps.Now(), time.Time{}
	a := newAttempt(inv, inv.fresh)
	inv.fresh, inv.attempt = nil, a
	p.pool.metrics.started.Inc()
	select {
	case p.next <- a:
	default:
		p.wg.Go(func() { p.work(a) })
	}
}

// maxIdle bounds the goroutines of a partition that wait for an attempt.
const maxIdle = 8

// work runs an attempt and then some more: a goroutine that has run one has the stack that the next one needs, which
// would grow anew in every new goroutine.
func (p *Partition) work(a *attempt) {
	for {
		a.run()
		a = nil // not kept while waiting
		if p.idle.Add(1) > maxIdle {
			p.idle.Add(-1)
			return
		}
		select {
		case a = <-p.next:
			p.idle.Add(-1)
		case <-p.ctx.Done():
			return
		}
	}
}

// Notify tells that a notification was appended to the journal at entryIndex. raw is not changed afterwards.
func (p *Partition) Notify(id ident.InvocationID, incarnation uint64, entryIndex uint32, typ uint16, raw []byte) {
	p.mu.Lock()
	inv := p.currentLocked(id, incarnation)
	if inv == nil {
		p.mu.Unlock()
		return
	}
	inv.fresh = nil // no longer the whole journal
	if inv.awaiting != nil && listed(inv.awaiting, protocol.IdentifyNotification(raw)) {
		inv.awaiting = nil
	}
	a := inv.attempt
	p.mu.Unlock()
	if a != nil { // otherwise the next attempt reads it in the journal
		a.notify(entryIndex, typ, raw)
	}
}

// currentLocked is the invocation if it exists in that incarnation.
func (p *Partition) currentLocked(id ident.InvocationID, incarnation uint64) *invocation {
	if inv := p.mu.invocations[id]; inv != nil && inv.incarnation == incarnation {
		return inv
	}
	return nil
}

// Applied tells that a proposal of an incarnation was applied, whether it had an effect or not.
func (p *Partition) Applied(id ident.InvocationID, incarnation, sequence uint64) {
	p.mu.Lock()
	inv := p.currentLocked(id, incarnation)
	if inv == nil {
		p.mu.Unlock()
		return
	}
	inv.track.observe(sequence)
	a, slot := inv.attempt, (*share)(nil)
	switch inv.phase {
	case ending:
		if inv.track.settled() {
			slot = p.removeLocked(inv)
		}
	case waiting:
		slot = p.retryLocked(inv)
	}
	p.mu.Unlock()
	if a != nil {
		a.applied(sequence)
	}
	p.giveBack(slot)
}

// retryLocked starts the next attempt if its time has come and the journal holds all that was proposed. An invocation
// that was put back while it was asked to pause is paused instead.
func (p *Partition) retryLocked(inv *invocation) (slot *share) {
	switch {
	case inv.phase != waiting || !inv.due || !inv.track.settled():
	case inv.pauseRequested:
		return p.pauseLocked(inv)
	case inv.slot != nil:
		p.startLocked(inv)
	default:
		p.enqueueLocked(inv)
	}
	return nil
}

// Abort drops an invocation: it was killed, ended otherwise, or what the invoker has is out of date. An open
// attempt is reset without an effect.
func (p *Partition) Abort(id ident.InvocationID) {
	p.mu.Lock()
	var slot *share
	if inv := p.mu.invocations[id]; inv != nil {
		slot = p.removeLocked(inv)
	}
	p.mu.Unlock()
	p.giveBack(slot)
}

// removeLocked forgets an invocation and calls off its attempt. slot is what the caller has to give back after
// unlocking; an attempt that still runs does that itself when it ends.
func (p *Partition) removeLocked(inv *invocation) (slot *share) {
	inv.gone = true
	if inv.phase == queued {
		p.pool.slots.leave(inv)
	}
	if p.mu.invocations[inv.id] == inv {
		delete(p.mu.invocations, inv.id)
	}
	p.stopTimerLocked(inv)
	if inv.phase == running {
		inv.attempt.callOff(errAborted)
		return nil
	}
	return inv.takeSlotLocked()
}

// takeSlotLocked takes its slot, if it has one, from an invocation.
func (inv *invocation) takeSlotLocked() (slot *share) {
	slot, inv.slot = inv.slot, nil
	return slot
}

func (p *Partition) stopTimerLocked(inv *invocation) {
	inv.timerGen++
	if inv.timer != nil {
		inv.timer.Stop()
		inv.timer = nil
	}
}

// giveBack gives back a slot that was taken from an invocation; nil is none.
func (p *Partition) giveBack(slot *share) {
	if slot != nil {
		p.pool.metrics.released.Inc()
		p.pool.slots.release(slot)
	}
}

// Pause asks an invocation to stop: an open attempt is asked to suspend, and the invocation is then paused
// whether it suspends or fails; if it ends meanwhile, it just ends. One that waits is paused at once.
func (p *Partition) Pause(id ident.InvocationID) {
	p.mu.Lock()
	inv := p.mu.invocations[id]
	if p.mu.closed || inv == nil || inv.phase == ending || inv.pauseRequested {
		p.mu.Unlock()
		return
	}
	inv.pauseRequested = true
	if a := inv.attempt; a != nil {
		p.mu.Unlock()
		a.halfClose()
		return
	}
	slot := p.pauseLocked(inv)
	p.mu.Unlock()
	p.giveBack(slot)
}

// pauseLocked pauses an invocation that has no attempt. If last effects of one are just being proposed, it
// is called again when they are.
func (p *Partition) pauseLocked(inv *invocation) (slot *share) {
	if inv.proposing > 0 {
		return nil
	}
	if inv.phase == queued {
		p.pool.slots.leave(inv)
	}
	p.stopTimerLocked(inv)
	slot = p.endLocked(inv)
	p.pool.metrics.paused.Inc()
	seq := p.lastProposalLocked(inv)
	p.wg.Add(1)
	go func() { // proposing may block
		defer p.wg.Done()
		p.proposeLast(p.ctx, inv, seq, []*invocationpb.Effect{pausedEffect(nil)})
	}()
	return slot
}

// RetryNow ends the wait of an invocation for its next attempt. It does not touch the count of retries.
func (p *Partition) RetryNow(id ident.InvocationID) {
	p.mu.Lock()
	var slot *share
	if inv := p.mu.invocations[id]; inv != nil && inv.phase == waiting {
		p.stopTimerLocked(inv)
		inv.due = true
		slot = p.retryLocked(inv)
	}
	p.mu.Unlock()
	p.giveBack(slot)
}

// Close calls off all attempts without an effect and waits for their goroutines. Idempotent.
func (p *Partition) Close() {
	p.mu.Lock()
	p.mu.closed = true
	var slots []*share
	for _, inv := range p.mu.invocations {
		slots = append(slots, p.removeLocked(inv))
	}
	p.mu.Unlock()
	p.cancel()
	for _, slot := range slots {
		p.giveBack(slot)
	}
	p.wg.Wait()
}

// errAborted is the reason why an attempt is called off.
var errAborted = errors.New("the invocation was aborted")

// waitLocked makes an invocation wait for its next attempt.
func (p *Partition) waitLocked(inv *invocation, delay time.Duration) (slot *share) {
	inv.phase, inv.due, inv.attempt = waiting, false, nil
	inv.nextRetry = p.pool.deps.Now().Add(delay)
	p.stopTimerLocked(inv)
	gen := inv.timerGen
	inv.timer = time.AfterFunc(delay, func() {
		p.mu.Lock()
		var slot *share
		if !inv.gone && inv.timerGen == gen {
			inv.due, inv.timer = true, nil
			slot = p.retryLocked(inv)
		}
		p.mu.Unlock()
		p.giveBack(slot)
	})
	if delay > keepSlotFor {
		return inv.takeSlotLocked()
	}
	return nil
}

// yieldLocked makes an invocation wait for its next attempt without its slot: others may be able to go on.
func (p *Partition) yieldLocked(inv *invocation) (slot *share) {
	slot = inv.takeSlotLocked()
	p.waitLocked(inv, p.pool.cfg.YieldDelay)
	return slot
}

// lastProposalLocked takes the sequence number of last effects; proposeLast must follow.
func (p *Partition) lastProposalLocked(inv *invocation) (seq uint64) {
	inv.proposing++
	return inv.track.next()
}

// proposeLast proposes the last effects that an invocation or its attempt has to say. If they cannot enter
// the log although the partition is still led, the invocation is tried again later: its journal is what it
// was.
func (p *Partition) proposeLast(ctx context.Context, inv *invocation, seq uint64, effects []*invocationpb.Effect) {
	err := p.host.Propose(ctx, inv.id, inv.incarnation, seq, effects)
	p.mu.Lock()
	inv.proposing--
	var slot *share
	switch {
	case inv.gone || p.mu.closed:
	case err != nil:
		slot = p.proposalLostLocked(inv)
	case inv.pauseRequested && (inv.phase == waiting || inv.phase == queued):
		slot = p.pauseLocked(inv)
	}
	p.mu.Unlock()
	p.giveBack(slot)
	if err != nil && ctx.Err() == nil {
		p.log.Warn("cannot propose effects", "invocation_id", inv.id.String(), "err", err)
	}
}

// proposalLostLocked makes up for a proposal that did not enter the log.
func (p *Partition) proposalLostLocked(inv *invocation) (slot *share) {
	inv.track.undo()
	return p.yieldLocked(inv)
}

// failLocked decides what becomes of an invocation whose attempt failed and puts it into the phase that
// follows. It returns the effects to propose and the slot to give back.
func (p *Partition) failLocked(inv *invocation, f *failure, policy *schema.RetryPolicy) (effects []*invocationpb.Effect, slot *share) {
	m := p.pool.metrics
	if f.yielded {
		m.yielded.Inc()
		return nil, p.yieldLocked(inv)
	}
	inv.lastFailure = f
	if !f.unseen {
		inv.storedRetries++
	}
	if !f.refused {
		inv.refused = 0
	} else if inv.refused++; inv.refused <= maxRefused && f.delay == nil {
		f.delay = new(time.Duration)
		*f.delay = refusedDelay
	}
	d := decide(policy, inv.policyUsed, f, inv.pauseRequested, p.pool.deps.Jitter())
	switch d.verdict {
	case retry:
		m.failed.Inc()
		if d.counted {
			inv.policyUsed++
		}
		if !sameEvent(inv.lastEvent, f) {
			inv.lastEvent = f
			effects = append(effects, failedEffect(f))
		}
		return effects, p.waitLocked(inv, d.delay)
	case kill:
		m.failed.Inc()
		return []*invocationpb.Effect{endWithFailure(f)}, p.endLocked(inv)
	}
	m.paused.Inc()
	return []*invocationpb.Effect{pausedEffect(f)}, p.endLocked(inv)
}

// endLocked says that the last effect of an invocation is about to be proposed.
func (p *Partition) endLocked(inv *invocation) (slot *share) {
	inv.phase, inv.attempt = ending, nil
	return inv.takeSlotLocked()
}

// listed reports whether a future waits for a notification.
func listed(f *invocationpb.Future, id protocol.NotificationID) bool {
	var numbers []uint32
	switch id.Kind {
	case protocol.ByCompletion:
		numbers = f.Completions
	case protocol.BySignalIndex:
		numbers = f.Signals
	case protocol.BySignalName:
		for _, n := range f.NamedSignals {
			if n == id.Name {
				return true
			}
		}
	}
	for _, n := range numbers {
		if n == id.Number {
			return true
		}
	}
	for _, n := range f.Nested {
		if listed(n, id) {
			return true
		}
	}
	return false
}
