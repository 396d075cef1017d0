package fsm

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/record/recordpb"
)

// program makes a random log. It sees the actions of a machine that applies it, as a leader does, so that
// the log is one that leaders would write: attempts, messages of the outbox, timers. It also mixes in what a
// leader must not be hurt by: old attempts, repeated messages, verbs at any moment.
type program struct {
	rng      *rand.Rand
	now      uint64
	seq      uint64
	running  []attempt
	old      []attempt
	messages []outMessage
	sent     []outMessage
	timers   []keyspace.TimerKey
	ids      []ident.InvocationID
	requests int
}

type attempt struct {
	id          ident.InvocationID
	incarnation uint64
	completions uint32
}

type outMessage struct {
	index uint64
	cmd   *recordpb.Command
}

func newProgram(seed uint64) *program {
	return &program{rng: rand.New(rand.NewPCG(seed, 7)), now: 1_000_000}
}

// see takes the actions of an applied command.
func (p *program) see(as []Action) {
	for _, a := range as {
		switch a.Kind {
		case ActInvoke:
			p.retire(a.ID)
			p.running = append(p.running, attempt{id: a.ID, incarnation: a.Incarnation})
		case ActAbort:
			p.retire(a.ID)
		case ActOutbox:
			p.messages = append(p.messages, outMessage{a.Index, a.Command})
		case ActTimer:
			p.timers = append(p.timers, a.Timer)
		}
	}
}

func (p *program) retire(id ident.InvocationID) {
	for i, a := range p.running {
		if a.id == id {
			p.old = append(p.old, a)
			p.running = append(p.running[:i], p.running[i+1:]...)
			return
		}
	}
}

func (p *program) chance(percent int) bool { return p.rng.IntN(100) < percent }

// next is the next command of the log, and its time.
func (p *program) next() (*recordpb.Command, uint64) {
	p.now += uint64(p.rng.IntN(20))
	if p.chance(2) { // a clock that is set back, or another leader's
		p.now -= uint64(p.rng.IntN(300))
	}
	c := p.command()
	if c.Dedup == nil {
		p.seq++
		c.Dedup = self(1, p.seq)
	}
	if p.chance(3) { // a producer that repeats itself
		c = &recordpb.Command{Dedup: self(1, p.seq), Kind: c.Kind, RequestId: c.RequestId}
	}
	return c, p.now
}

func (p *program) command() *recordpb.Command {
	switch n := p.rng.IntN(100); {
	case n < 35 && len(p.running) > 0:
		return p.attempt(&p.running[p.rng.IntN(len(p.running))])
	case n < 38 && len(p.old) > 0:
		return p.attempt(&p.old[p.rng.IntN(len(p.old))])
	case n < 60 && len(p.messages) > 0:
		m := p.messages[0]
		p.messages = p.messages[1:]
		p.sent = append(p.sent, m)
		return delivered(m)
	case n < 63 && len(p.sent) > 0:
		return delivered(p.sent[p.rng.IntN(len(p.sent))])
	case n < 72 && len(p.timers) > 0:
		i := p.rng.IntN(len(p.timers))
		k := p.timers[i]
		if p.chance(70) {
			p.now = max(p.now, k.FireAtMs)
		}
		p.timers = append(p.timers[:i], p.timers[i+1:]...)
		return fire(k)
	case n < 82 && len(p.ids) > 0:
		return p.verb(p.ids[p.rng.IntN(len(p.ids))])
	case n < 84:
		return patch(fmt.Sprint("k", p.rng.IntN(3)), nil, map[string][]byte{"a": {byte(n)}, "b": {1}, "c": {2}, "d": {3}})
	}
	return &recordpb.Command{Kind: &recordpb.Command_Invoke{Invoke: p.invocation()}}
}

func delivered(m outMessage) *recordpb.Command {
	return &recordpb.Command{Dedup: partition(0, m.index), PartitionKey: m.cmd.PartitionKey, Kind: m.cmd.Kind}
}

func (p *program) target() *invocationpb.Target {
	key := fmt.Sprint("k", p.rng.IntN(3))
	switch p.rng.IntN(6) {
	case 0:
		return service("A")
	case 1:
		return workflowTarget(key, schema.WorkflowRun)
	case 2:
		return workflowTarget(key, schema.Shared)
	case 3:
		return objectTarget(key, schema.Shared)
	}
	return objectTarget(key, schema.Exclusive)
}

func (p *program) invocation() *invocationpb.Invocation {
	p.requests++
	x := request(p.target(), p.rng.IntN(40))
	x.RequestId = requestID(p.requests)
	x.Sink = &invocationpb.Sink{RequestId: x.RequestId}
	if p.chance(20) {
		x.Sink, x.SubmitRequestId = nil, x.RequestId
	}
	if p.chance(15) {
		x.ExecutionTimeMs = p.now + uint64(p.rng.IntN(100))
	}
	switch p.rng.IntN(3) {
	case 0:
		retained(x, 300, 300)
	case 1:
		retained(x, 300, uint64(p.rng.IntN(300)))
	}
	p.ids = append(p.ids, ident.InvocationID(x.Id))
	return x
}

func (p *program) verb(id ident.InvocationID) *recordpb.Command {
	newID := id
	binary.BigEndian.PutUint32(newID[20:], p.rng.Uint32())
	switch p.rng.IntN(9) {
	case 0:
		return cancel(id)
	case 1:
		return kill(id)
	case 2:
		return pauseCommand(id)
	case 3:
		return resumeCommand(id, "")
	case 4:
		return purge(id, p.chance(30), p.chance(70))
	case 5:
		p.ids = append(p.ids, newID)
		return restart(id, newID, uint32(p.rng.IntN(6)))
	case 6:
		return signalTo(id, 17)
	case 7:
		return &recordpb.Command{Kind: &recordpb.Command_TruncateOutbox{TruncateOutbox: &recordpb.TruncateOutbox{Index: uint64(len(p.sent) / 2)}}}
	}
	p.requests++
	return &recordpb.Command{Kind: &recordpb.Command_Attach{Attach: &recordpb.Attach{InvocationId: id[:], Sink: &invocationpb.Sink{RequestId: requestID(p.requests)}}}}
}

// attempt lets an attempt do one to three things.
func (p *program) attempt(a *attempt) *recordpb.Command {
	var es []*invocationpb.Effect
	if p.chance(30) {
		es = append(es, pinned(6))
	}
	for range 1 + p.rng.IntN(3) {
		es = append(es, p.effect(a))
	}
	if p.chance(25) {
		es = append(es, output(fmt.Sprint("out", p.rng.IntN(100))), end())
	}
	return &recordpb.Command{Kind: &recordpb.Command_InvokerEffects{InvokerEffects: &recordpb.InvokerEffects{
		InvocationId: append([]byte(nil), a.id[:]...), Incarnation: a.incarnation, Sequence: 1, Effects: es,
	}}}
}

func (p *program) effect(a *attempt) *invocationpb.Effect {
	get, keys, set, del, clear := stateEffects()
	c := func() uint32 { a.completions++; return a.completions + uint32(a.incarnation)*100 }
	key := fmt.Sprint("s", p.rng.IntN(3))
	switch p.rng.IntN(20) {
	case 0:
		return get(c(), key)
	case 1:
		return keys(c())
	case 2, 3:
		return set(key, fmt.Sprint(p.rng.IntN(100)))
	case 4:
		return del(key)
	case 5:
		return clear()
	case 6, 7:
		return sleepUntil(c(), p.now+uint64(p.rng.IntN(60)))
	case 8:
		return runResult(c(), success([]byte("run")))
	case 9, 10:
		return callTo(p.target(), p.rng.IntN(40), c(), c())
	case 11:
		return sendTo(p.target(), p.rng.IntN(40), c(), p.now+uint64(p.rng.IntN(30))-10)
	case 12:
		return getPromise(c(), key)
	case 13:
		return resolvePromise(c(), key, "v")
	case 14:
		if len(p.ids) > 0 {
			id := p.ids[p.rng.IntN(len(p.ids))]
			return entry(protocol.TypeAttachInvocation, &protocolpb.AttachInvocationCommand{ResultCompletionId: c(), Target: &protocolpb.AttachInvocationCommand_InvocationId{InvocationId: id.String()}})
		}
	case 15:
		return paused()
	case 16:
		return &invocationpb.Effect{Kind: &invocationpb.Effect_AttemptFailed_{AttemptFailed: &invocationpb.Effect_AttemptFailed{Code: 500, Message: "x"}}}
	}
	f := &invocationpb.Future{Signals: []uint32{1}, Combinator: invocationpb.Future_Combinator(p.rng.IntN(5))}
	for i := uint32(0); i < 3 && i < a.completions; i++ {
		f.Completions = append(f.Completions, uint32(a.incarnation)*100+a.completions-i)
	}
	return suspended(f)
}
