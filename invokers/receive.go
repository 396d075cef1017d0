package invokers

import (
	"errors"
	"fmt"
	"strings"

	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
)

// readBatch is how many received bytes are proposed together at most, apart from a bigger single message.
const readBatch = 1 << 20

// handOver is the size from which on received bytes are not copied but given away with their buffer.
const handOver = 64 << 10

// read receives messages until the last one. All messages that are there go into one proposal.
func (a *attempt) read() (*failure, error) {
	pooled := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(pooled)
	buf := (*pooled)[:0]
	for {
		var err error
		if buf, err = a.fill(buf); err != nil {
			return a.broken(err)
		}
		n, count, need, f := a.wholeFrames(buf)
		if n > 0 {
			frames := buf[:n:n]
			if n >= handOver && cap(buf) > readBufferSize {
				buf = append((*pooled)[:0], buf[n:]...)
				a.reads.release()
			} else {
				frames = append(make([]byte, 0, n), frames...)
				buf = buf[:copy(buf, buf[n:])]
			}
			if f, err := a.process(frames, count); f != nil || err != nil {
				if errors.Is(err, errOver) {
					err = nil
				}
				return f, err
			}
		}
		if f != nil {
			return f, nil
		}
		if buf, f = a.reserve(buf, need-n); f != nil {
			return f, nil
		}
	}
}

// fill reads into the free space of buf: at least once, and then on as long as that does not block.
func (a *attempt) fill(buf []byte) ([]byte, error) {
	for {
		n, err := a.stream.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		a.pool.metrics.received.Add(float64(n))
		if err != nil && n == 0 {
			return buf, err
		}
		if len(buf) == cap(buf) || len(buf) >= readBatch || a.stream.Buffered() <= 0 {
			return buf, nil
		}
	}
}

// wholeFrames is the length and the number of the whole frames at the start of b, and the length that b must reach to hold
// another one. The failure, if any, comes behind those frames.
func (a *attempt) wholeFrames(b []byte) (n, count, need int, f *failure) {
	rest := b
	for {
		_, after, more, ok, err := protocol.Split(rest, a.pool.cfg.MessageSizeLimit)
		if err != nil {
			return n, count, 0, newFailure(codeTooLarge, "%v", err)
		}
		if !ok {
			return n, count, n + more, nil
		}
		n, rest = n+len(rest)-len(after), after
		count++
	}
}

// reserve makes room in buf for need bytes.
func (a *attempt) reserve(buf []byte, need int) ([]byte, *failure) {
	if need <= cap(buf) {
		return buf, nil
	}
	if need-protocol.HeaderLen >= int(a.pool.cfg.MessageSizeWarning) && !a.warned {
		a.warned = true
		a.p.log.Warn("the service sends a big message", "invocation_id", a.printableID, "bytes", need, "limit", a.pool.cfg.MessageSizeLimit)
	}
	size := need + readBufferSize
	if !a.reads.grow(int64(size) - a.reads.held) {
		return buf, &failure{yielded: true}
	}
	return append(make([]byte, 0, size), buf...), nil
}

// process takes count whole frames, which it keeps. What came before a failure is collected, and is proposed
// with what follows from the failure.
func (a *attempt) process(frames []byte, count int) (*failure, error) {
	if a.effects == nil {
		if !a.pinned {
			count++
		}
		a.effects = make([]*invocationpb.Effect, 0, count)
	}
	for len(frames) > 0 {
		f, rest, _, _, err := protocol.Split(frames, a.pool.cfg.MessageSizeLimit)
		if err != nil {
			return nil, fmt.Errorf("split frames that were split before: %w", err)
		}
		frames = rest
		a.idle.touch()
		if fail, err := a.frame(f); fail != nil || err != nil {
			if len(frames) > 0 && a.terminal {
				a.p.log.Warn("the service sent messages after its last one; they are ignored",
					"invocation_id", a.printableID, "bytes", len(frames), "code", codeProtocol)
			}
			return fail, err
		}
		if len(a.acks) > 0 { // the acknowledgement comes before what later messages lead to
			if err := a.propose(); err != nil {
				return nil, err
			}
		}
	}
	return nil, a.propose()
}

// frame handles one received message.
func (a *attempt) frame(f protocol.Frame) (*failure, error) {
	switch f.Type {
	case protocol.TypeProposeRunCompletion:
		return a.runProposal(f), nil
	case protocol.TypeAwaitingOn:
		if a.version < 7 {
			return unexpected(f.Type), nil
		}
		return a.awaitingOn(f.Payload), nil
	case protocol.TypeSuspension:
		return a.suspension(f.Payload)
	case protocol.TypeError:
		if fail := malformed(f); fail != nil {
			return fail, nil
		}
		a.terminal = true
		return handlerFailure(f.Payload), nil
	case protocol.TypeEnd:
		return a.endMessage(f)
	}
	switch {
	case protocol.IsCommand(f.Type) && protocol.Known(f.Type) && f.Type != protocol.TypeInput:
		return a.command(f), nil
	case protocol.Known(f.Type):
		return unexpected(f.Type), nil
	}
	return newFailure(codeProtocol, "unknown protocol.message code %#x", f.Type), nil
}

func unexpected(typ uint16) *failure {
	return newFailure(codeProtocol, "received unexpected message: %s", protocol.Name(typ))
}

func malformed(f protocol.Frame) *failure { return badMessage(protocol.CheckForm(f.Type, f.Payload)) }

// badMessage turns the error of a check into a failure.
func badMessage(err error) *failure {
	if err == nil {
		return nil
	}
	f := newFailure(codeProtocol, "%v", err)
	var ce *protocol.CheckError
	switch {
	case errors.Is(err, protocol.ErrFutureTooDeep):
		f.docCode, f.mustPause = codeFutureTooDeep, true
	case errors.As(err, &ce) && ce.Precondition:
		f.docCode = codePrecondition
	}
	return f
}

func (a *attempt) command(f protocol.Frame) *failure {
	index := a.commands
	fail := badMessage(protocol.CheckCommand(f.Type, f.Payload))
	if fail == nil {
		fail = checkAccess(a.target, f.Type)
	}
	effect := commandEffect(f.Type, f.Payload, nil)
	if fail == nil && (f.Type == protocol.TypeCall || f.Type == protocol.TypeOneWayCall) {
		effect.GetCommand().Callee, fail = a.pool.resolveCallee(f.Type, f.Payload)
	}
	if fail != nil {
		fail.related = &relatedCommand{index: index, typ: f.Type, name: shorten(protocol.CommandName(f.Payload))}
		return fail
	}
	a.traceCommand(f, effect.GetCommand().GetCallee())
	a.commands++
	a.progress = true
	a.output = a.output || f.Type == protocol.TypeOutput
	if f.RequestedAck() {
		a.acks = append(a.acks, index)
	}
	a.add(effect)
	return nil
}

// traceCommand tells of a command. What it calls has the attempt as its parent.
func (a *attempt) traceCommand(f protocol.Frame, callee *invocationpb.Effect_Callee) {
	if a.span == nil {
		return
	}
	a.span.Command(strings.Replace(protocol.Label(f.Type), ": ", "/", 1), protocol.CommandName(f.Payload))
	if callee != nil {
		c := a.span.Context()
		callee.TraceParent, callee.TraceState = c.Parent, c.State
	}
}

func (a *attempt) runProposal(f protocol.Frame) *failure {
	if fail := malformed(f); fail != nil {
		return fail
	}
	id, value, failed, err := protocol.RunProposal(f.Payload)
	if err != nil {
		return badMessage(err)
	}
	if a.version >= 7 && f.RequestedAck() {
		a.send.ackRun(id)
	}
	a.progress = true
	a.span.RunEnded(id)
	a.add(runEffect(id, value, failed))
	return nil
}

func (a *attempt) awaitingOn(raw []byte) *failure {
	if fail := malformed(protocol.Frame{Type: protocol.TypeAwaitingOn, Payload: raw}); fail != nil {
		return fail
	}
	future, err := protocol.AwaitedFuture(raw, a.pool.cfg.MaxFutureDepth)
	if err != nil {
		return badMessage(err)
	}
	a.p.mu.Lock()
	a.inv.awaiting = future
	a.p.mu.Unlock()
	return nil
}

func (a *attempt) suspension(raw []byte) (*failure, error) {
	if fail := malformed(protocol.Frame{Type: protocol.TypeSuspension, Payload: raw}); fail != nil {
		return fail, nil
	}
	future, err := protocol.SuspensionFuture(a.version, raw, a.pool.cfg.MaxFutureDepth)
	if err != nil {
		return badMessage(err), nil
	}
	a.terminal = true
	a.span.Suspended()
	a.pin()
	return nil, a.end(suspendedEffect(future))
}

func (a *attempt) endMessage(f protocol.Frame) (*failure, error) {
	if fail := malformed(f); fail != nil {
		return fail, nil
	}
	if !a.output {
		return newFailure(codeProtocol, "the service ended the invocation without an output"), nil
	}
	a.terminal = true
	a.pin()
	return nil, a.end(endEffect())
}

// pin makes sure that the last effect does not come before the pinned deployment.
func (a *attempt) pin() {
	if !a.pinned {
		a.pinned = true
		a.effects = append(a.effects, pinnedEffect(a.deployment.ID, a.version))
	}
}
