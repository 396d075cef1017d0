package invokers

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/tracing"
	"perdure/invokers/transport"
)

// attempt is one exchange with a service for an invocation. Its goroutine (run) opens the exchange, reads
// and proposes; a second one (sender.loop) exists only while something has to be written.
type attempt struct {
	p    *Partition
	pool *Pool
	inv  *invocation

	ctx    context.Context
	cancel context.CancelCauseFunc

	// The fields below belong to run.

	journal     *Journal // nil once the exchange is open: it may be big, and an attempt may be idle for long
	target      *invocationpb.Target
	printableID string
	path        string
	resolved
	stream    transport.Stream
	header    [12]transport.Field
	pinned    bool
	output    bool   // an Output is in the journal or was received
	commands  uint32 // in the journal and received: the index of the next command
	progress  bool   // the service sent a command since the last proposal
	effects   []*invocationpb.Effect
	acks      []uint32 // indexes of the commands in effects whose sender wants an acknowledgement
	reads     lease
	terminal  bool // the last message was received
	warned    bool // about a big message
	startedAt time.Time
	span      *tracing.Attempt // nil: not traced

	replay replay
	send   sender
	idle   watchdog
}

func newAttempt(inv *invocation, fresh *Journal) *attempt {
	a := &attempt{p: inv.p, pool: inv.p.pool, inv: inv, journal: fresh}
	a.ctx, a.cancel = context.WithCancelCause(inv.p.ctx)
	a.reads.m, a.send.lease.m = &a.pool.memory, &a.pool.memory
	a.send.a, a.idle.a = a, a
	return a
}

// callOff ends the attempt without an effect. It does not block and may be called from anywhere.
func (a *attempt) callOff(cause error) {
	a.cancel(cause)
	a.send.cancelStream()
}

// notify forwards a notification that was appended to the journal.
func (a *attempt) notify(entryIndex uint32, typ uint16, raw []byte) {
	a.send.notify(entryIndex, Entry{Type: typ, Raw: raw})
}

// applied sends the acknowledgements that were asked for with the commands of a proposal.
func (a *attempt) applied(sequence uint64) { a.send.acknowledge(sequence) }

// halfClose asks the service to suspend; it has the abort timeout to obey.
func (a *attempt) halfClose() { a.idle.halfClose() }

// run is the attempt, on a goroutine of the partition.
func (a *attempt) run() {
	defer a.cancel(nil)
	a.startedAt = time.Now()
	f, err := a.exchange()
	if f != nil {
		a.traceFailure(f)
	}
	a.span.End()
	switch {
	case f != nil:
		a.fail(f)
	case err != nil:
		a.dropped()
	}
	a.pool.metrics.duration.Observe(time.Since(a.startedAt).Seconds())
	a.drain()
	a.idle.stop()
	a.send.cancelStream()
	a.reads.release()
	a.send.release()
}

// dropped leaves the invocation alone: the attempt was called off, or what it wanted to propose did not
// enter the log.
func (a *attempt) dropped() {
	a.p.mu.Lock()
	var slot *share
	if a.inv.attempt == a {
		if a.inv.gone || a.p.mu.closed {
			slot = a.inv.takeSlotLocked()
			a.inv.attempt = nil
		} else {
			slot = a.p.yieldLocked(a.inv)
		}
	}
	a.p.mu.Unlock()
	a.p.giveBack(slot)
}

// errOver ends the read loop: what followed the last message is not looked at.
var errOver = errors.New("the attempt is over")

// exchange runs the attempt up to its last message. A failure has still to be decided on; an error means that
// the attempt was called off or cannot propose; nil, nil that the last effects were proposed.
func (a *attempt) exchange() (*failure, error) {
	if f, err := a.prepare(); f != nil || err != nil {
		return f, err
	}
	if f, err := a.open(); f != nil || err != nil {
		return f, err
	}
	resp, err := a.stream.Response()
	if err != nil {
		a.pool.metrics.answered(0)
		return a.broken(err)
	}
	a.pool.metrics.answered(resp.Status)
	a.answered(&resp)
	if f := checkResponse(&resp, contentType(a.version), a.pool.deps.Now()); f != nil {
		return f, nil
	}
	return a.read()
}

// prepare reads the journal, for which it reserves memory, and picks the deployment.
func (a *attempt) prepare() (*failure, error) {
	if a.journal == nil {
		j, err := a.p.host.ReadJournal(a.inv.id, a.eagerStateLimit, a.reserveJournal)
		switch {
		case errors.Is(err, ErrNoMemory):
			return &failure{yielded: true}, nil
		case err != nil && a.ctx.Err() != nil:
			return nil, context.Cause(a.ctx)
		case err != nil:
			return unseen(newFailure(codeInternal, "cannot read the journal: %v", err)), nil
		}
		a.journal = j
	}
	j := a.journal
	if j.Incarnation != a.inv.incarnation {
		return nil, errStale
	}
	if len(j.Entries) == 0 || j.Entries[0].Type != protocol.TypeInput {
		return unseen(newFailure(codeInternal, "the journal does not begin with an Input")), nil
	}
	a.target = j.Target
	if f := a.choose(j); f != nil {
		return f, nil
	}
	a.pinned = !j.Deployment.IsZero()
	a.printableID = a.inv.id.String()
	a.trace()
	a.path = "/invoke/" + j.Target.GetService() + "/" + j.Target.GetHandler()
	for i := range j.Entries {
		if protocol.IsCommand(j.Entries[i].Type) {
			a.commands++
			a.output = a.output || j.Entries[i].Type == protocol.TypeOutput
		}
	}
	return nil, nil
}

// choose picks the deployment and says which: Status shows it. Who removes a deployment asks that once it is not the latest any
// more; so an attempt that picked it before, and said so only after, picks again.
func (a *attempt) choose(j *Journal) (f *failure) {
	for {
		s := a.pool.deps.Schema.Current()
		if a.resolved, f = a.pool.resolve(s, j); a.deployment != nil {
			a.p.mu.Lock()
			a.inv.deployment = a.deployment.ID
			a.p.mu.Unlock()
		}
		if f != nil || s == a.pool.deps.Schema.Current() {
			return f
		}
	}
}

// reserveJournal reserves memory for a part of the journal before it is read.
func (a *attempt) reserveJournal(bytes int) bool {
	if !a.send.reserve(int64(bytes)) {
		return false
	}
	a.replay.reserved += int64(bytes)
	return true
}

// eagerStateLimit implements EagerLimit: none for a handler that wants its state lazily.
func (a *attempt) eagerStateLimit(target *invocationpb.Target, pinned ident.DeploymentID) int {
	s := a.pool.deps.Schema.Current()
	d, err := s.Latest(target.GetService()), error(nil)
	if !pinned.IsZero() {
		d, err = s.Deployment(pinned)
	}
	if d == nil || err != nil || handlerOptions(s, d, target.GetService(), target.GetHandler()).LazyState {
		return 0
	}
	return a.pool.cfg.EagerStateLimit
}

// trace begins the attempt's span, and tells that the invocation began if this is its first attempt.
func (a *attempt) trace() {
	t, j := a.pool.deps.Tracer, a.journal
	if t == nil || j.TraceParent == "" {
		return
	}
	i := tracing.Invocation{
		ID: a.inv.id, Service: j.Target.GetService(), Handler: j.Target.GetHandler(), Key: j.Target.GetKey(), Keyed: keyed(j.Target),
		Parent: tracing.Context{Parent: j.TraceParent, State: j.TraceState},
	}
	a.p.mu.Lock()
	first := !a.pinned && a.inv.starts == 1
	a.p.mu.Unlock()
	if first {
		t.Started(i)
	}
	a.span = t.Attempt(i, tracing.Deployment{ID: a.deployment.ID.String(), Address: a.deployment.Address.String(), Protocol: a.version})
}

func (a *attempt) traceFailure(f *failure) {
	if f.yielded {
		a.span.Yielded()
		return
	}
	if a.span != nil {
		a.span.Failed(f.message)
	}
}

var errStale = errors.New("the invocation runs in another incarnation")

// open opens the exchange and sends Start and journal.
func (a *attempt) open() (*failure, error) {
	w := &a.replay
	w.prepare(a)
	if !a.send.reserve(w.size - w.reserved) {
		return &failure{yielded: true}, nil
	}
	s, err := a.pool.deps.Transport.Open(a.ctx, a.endpoint.address, transport.Request{
		Method: "POST", Path: a.path, Header: a.pool.appendHeaders(a.header[:0], a),
	})
	if err != nil {
		if a.ctx.Err() != nil {
			return nil, context.Cause(a.ctx)
		}
		a.pool.metrics.answered(0)
		return networkFailure(err), nil
	}
	a.stream, a.journal = s, nil
	half := a.options.InactivityTimeout == 0 || a.deployment.ProtocolType == schema.RequestResponse
	a.idle.start(a.options.InactivityTimeout, a.options.AbortTimeout, half)
	a.send.begin(s, w, half)
	return nil, nil
}

// answered notes what the head of the response says.
func (a *attempt) answered(r *transport.Response) {
	if server := r.Get("x-restate-server"); server != "" {
		a.p.mu.Lock()
		if a.inv.server != server {
			a.inv.server = server
		}
		a.p.mu.Unlock()
	}
}

// broken says what the failure of the exchange means.
func (a *attempt) broken(err error) (*failure, error) {
	switch {
	case a.send.yields():
		return &failure{yielded: true}, nil
	case a.idle.aborted():
		return newFailure(codeAbortTimeout,
			"the attempt was broken off: the service sent nothing for the abort timeout of %s after it was asked to suspend", a.options.AbortTimeout), nil
	case a.ctx.Err() != nil:
		return nil, context.Cause(a.ctx)
	case err == io.EOF:
		return &failure{docCode: codeHandler, code: 500, message: "unknown"}, nil
	}
	return networkFailure(err), nil
}

// fail decides what follows from a failed attempt and proposes it behind the effects that were collected.
func (a *attempt) fail(f *failure) {
	p, inv := a.p, a.inv
	policy := &a.options.Retry
	if a.endpoint == nil {
		def := a.pool.deps.Schema.Current().Defaults().Retry
		policy = &def
	}
	p.mu.Lock()
	if inv.gone || p.mu.closed {
		p.mu.Unlock()
		a.dropped()
		return
	}
	a.noteProgressLocked()
	effects, slot := p.failLocked(inv, f, policy)
	effects = append(a.effects, effects...)
	a.effects = nil
	var seq uint64
	if len(effects) > 0 {
		seq = p.lastProposalLocked(inv)
	}
	next := inv.phase
	p.mu.Unlock()
	p.giveBack(slot)
	a.logFailure(f, next)
	if len(effects) > 0 {
		p.proposeLast(p.ctx, inv, seq, effects)
	}
}

// logFailure says what an operator would want to know: that an invocation stands still, or ended by it.
func (a *attempt) logFailure(f *failure, next phase) {
	level, what := slog.LevelDebug, "attempt failed, will try again"
	switch {
	case f.yielded:
		what = "attempt put back for lack of memory"
	case next == ending:
		level, what = slog.LevelInfo, "invocation stopped after a failed attempt"
	}
	if a.p.log.Enabled(a.p.ctx, level) {
		a.p.log.Log(a.p.ctx, level, what, "invocation_id", a.inv.id.String(), "service", a.target.GetService(),
			"code", f.docCode, "err", f.message)
	}
}

// noteProgressLocked notes the deployment that the invocation keeps, and resets the count that SDKs see once the service
// sent a command.
func (a *attempt) noteProgressLocked() {
	if a.pinned {
		a.inv.pinned = a.deployment.ID
	}
	if a.progress {
		a.progress = false
		a.inv.storedRetries = 0
	}
}

// propose puts the collected effects into the log. The invocation goes on.
func (a *attempt) propose() error {
	if len(a.effects) == 0 {
		return nil
	}
	a.p.mu.Lock()
	if a.inv.gone || a.p.mu.closed {
		a.p.mu.Unlock()
		return errAborted
	}
	a.noteProgressLocked()
	seq := a.inv.track.next()
	a.p.mu.Unlock()
	if len(a.acks) > 0 {
		a.send.expect(seq, a.acks)
		a.acks = nil
	}
	effects := a.effects
	a.effects = nil
	a.idle.proposes(true)
	err := a.p.host.Propose(a.ctx, a.inv.id, a.inv.incarnation, seq, effects)
	a.idle.proposes(false)
	if err == nil {
		return nil
	}
	a.p.mu.Lock()
	a.inv.track.undo()
	a.p.mu.Unlock()
	if a.ctx.Err() == nil {
		a.p.log.Warn("cannot propose effects", "invocation_id", a.printableID, "err", err)
	}
	return err
}

// end proposes the collected effects with the last one behind them; then the invocation is over for the
// invoker. A suspension becomes a pause if an operator asked for one.
func (a *attempt) end(last *invocationpb.Effect) error {
	p, inv := a.p, a.inv
	p.mu.Lock()
	if inv.gone || p.mu.closed {
		p.mu.Unlock()
		return errAborted
	}
	switch suspends := last.GetSuspended() != nil; {
	case suspends && inv.pauseRequested:
		last = pausedEffect(nil)
		a.pool.metrics.paused.Inc()
	case suspends:
		a.pool.metrics.suspended.Inc()
	default:
		a.pool.metrics.completed.Inc()
	}
	a.effects = append(a.effects, last)
	slot := p.endLocked(inv)
	seq := p.lastProposalLocked(inv)
	p.mu.Unlock()
	effects := a.effects
	a.effects = nil
	p.proposeLast(p.ctx, inv, seq, effects)
	p.giveBack(slot)
	return errOver
}

// add collects an effect, behind the pinned deployment if this is the first progress of the invocation.
func (a *attempt) add(e *invocationpb.Effect) {
	if !a.pinned {
		a.pinned = true
		a.effects = append(a.effects, pinnedEffect(a.deployment.ID, a.version))
	}
	a.effects = append(a.effects, e)
}

// drain answers the end of the service's side with the end of ours and waits a moment for the end of the
// response, so that the service sees a regular end and an HTTP/1.1 connection can be used again. An attempt that drains
// holds no slot any more, so there is a limit of its own: a service that ends no response is not waited for many times.
func (a *attempt) drain() {
	if !a.terminal {
		return
	}
	a.send.close()
	defer a.pool.draining.Add(-1)
	if int(a.pool.draining.Add(1)) > a.pool.cfg.ConcurrencyLimit {
		return
	}
	a.idle.drain(a.pool.cfg.DrainTimeout)
	buf := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(buf)
	extra := 0
	for {
		n, err := a.stream.Read(*buf)
		extra += n
		if err != nil || extra > maxDrained {
			break
		}
	}
	if extra > 0 {
		a.p.log.Warn("the service sent bytes after its last message; they are ignored",
			"invocation_id", a.printableID, "bytes", extra, "code", codeProtocol)
	}
}

// maxDrained bounds what is read and thrown away after the last message.
const maxDrained = 1 << 20

// readBuffers are the buffers of attempts that receive small messages.
var readBuffers = sync.Pool{New: func() any { b := make([]byte, readBufferSize); return &b }}

const readBufferSize = 16 << 10
