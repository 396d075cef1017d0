package fsm

import (
	"google.golang.org/protobuf/encoding/protowire"

	"perdure/control/ident"
	"perdure/control/mutant"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// awaited reads what is known of a completion or signal of r; nil when nothing is.
func (m *Machine) awaited(r *row, key []byte) (*storepb.Awaited, error) {
	if r.inv.Awaited == 0 {
		return nil, nil
	}
	a := new(storepb.Awaited)
	ok, err := read(m.txn, key, a)
	if err != nil || !ok {
		return nil, err
	}
	return a, nil
}

// expect notes that a completion will be answered later.
func (m *Machine) expect(r *row, completion uint32, typ uint16) error {
	r.inv.Awaited++
	m.key = keyspace.AppendCompletion(m.key[:0], &r.id, completion)
	return m.write(m.key, &storepb.Awaited{Type: uint32(typ)})
}

// completion appends the notification that answers a completion id. A completion id is answered once.
func (m *Machine) completion(r *row, id uint32, typ uint16, res *invocationpb.Result) error {
	_, failed := res.GetKind().(*invocationpb.Result_Failure)
	return m.completed(r, id, typ, failed, protocol.Completion(id, res))
}

func (m *Machine) completed(r *row, id uint32, typ uint16, failed bool, raw []byte) error {
	m.key = keyspace.AppendCompletion(m.key[:0], &r.id, id)
	a, err := m.awaited(r, m.key)
	if err != nil {
		return err
	}
	switch {
	case a == nil:
		r.inv.Awaited++
	case a.Done && !mutant.Is(mutant.CompletionTwice):
		m.dropped++
		return nil
	case a.FireAtMs > 0:
		r.inv.Timers--
	}
	return m.notify(r, leaf{kind: leafCompletion, number: id}, typ, failed, raw)
}

// signal appends a signal. Signals are not deduplicated: the SDK takes them in the order of the journal.
func (m *Machine) signal(r *row, l leaf, res *invocationpb.Result) error {
	raw := protocol.SignalIndex(l.number, res)
	if l.kind == leafNamed {
		raw = protocol.SignalName(l.name, res)
	}
	m.key = l.appendKey(m.key[:0], &r.id)
	a, err := m.awaited(r, m.key)
	if err != nil {
		return err
	}
	if a == nil {
		r.inv.Awaited++
	}
	_, failed := res.GetKind().(*invocationpb.Result_Failure)
	return m.notify(r, l, protocol.TypeSignal, failed, raw)
}

// notify appends a notification to the journal of an invocation in flight. A running attempt gets it
// forwarded, a suspended invocation runs again if it was what it waited for.
func (m *Machine) notify(r *row, l leaf, typ uint16, failed bool, raw []byte) error {
	if mutant.Is(mutant.PausedIsDeaf) && r.status() == storepb.Invocation_PAUSED {
		return nil
	}
	index, err := m.journal.append(r, typ, raw)
	if err != nil {
		return err
	}
	m.key = l.appendKey(m.key[:0], &r.id)
	if err := m.write(m.key, &storepb.Awaited{Done: true, Entry: index, Failed: failed}); err != nil {
		return err
	}
	switch r.status() {
	case storepb.Invocation_INVOKED:
		a := m.out.add(ActNotify)
		a.ID, a.Incarnation, a.EntryIndex, a.Type, a.Raw = r.id, r.inv.Incarnation, index, typ, raw
	case storepb.Invocation_SUSPENDED:
		rest, done := settle(r.inv.Awaiting, l, verdictOf(failed))
		if done {
			m.start(r, nil)
			return nil
		}
		r.inv.Awaiting = rest
	}
	return nil
}

// response takes the answer to a completion that was expected.
func (m *Machine) response(x *recordpb.Response) error {
	r, err := m.running(x.InvocationId)
	if r == nil || err != nil {
		return err
	}
	if x.Life != r.inv.Life {
		m.dropped++
		return nil
	}
	return m.respond(r, x.CompletionId, x.Result)
}

// respond answers a completion that was expected, with the notification that its command asked for.
func (m *Machine) respond(r *row, completion uint32, res *invocationpb.Result) error {
	m.key = keyspace.AppendCompletion(m.key[:0], &r.id, completion)
	a, err := m.awaited(r, m.key)
	if err != nil {
		return err
	}
	if a == nil || a.Done {
		m.dropped++
		return nil
	}
	return m.completion(r, completion, uint16(a.Type), res)
}

// running is the row of an invocation in flight; nil when it is not.
func (m *Machine) running(rawID []byte) (*row, error) {
	id, ok := m.idOf(rawID)
	if !ok {
		return nil, nil
	}
	r, err := m.rows.of(id)
	if err != nil {
		return nil, err
	}
	if !r.inFlight() {
		m.dropped++
		return nil, nil
	}
	return r, nil
}

func (m *Machine) signalCommand(x *recordpb.Signal, requestID []byte) error {
	var l leaf
	switch k := x.Id.(type) {
	case *recordpb.Signal_Index:
		if k.Index == protocol.SignalCancel {
			return m.terminate(&recordpb.Terminate{InvocationId: x.InvocationId, Mode: recordpb.Terminate_CANCEL}, requestID)
		}
		l = leaf{kind: leafSignal, number: k.Index}
	case *recordpb.Signal_Name:
		l = leaf{kind: leafNamed, name: k.Name}
	default:
		m.dropped++
		return nil
	}
	m.out.replyStatus(requestID, recordpb.Reply_OK)
	r, err := m.running(x.InvocationId)
	if r == nil || err != nil {
		return err
	}
	return m.signal(r, l, x.Result)
}

// timer takes a timer that the leader saw to be due.
func (m *Machine) timer(x *recordpb.Timer) error {
	id, ok := m.idOf(x.InvocationId)
	if !ok {
		return nil
	}
	t := keyspace.TimerKey{FireAtMs: x.FireAtMs, Kind: keyspace.TimerKind(x.Kind), ID: id, CompletionID: x.CompletionId}
	ok, err := m.timers.fire(t)
	if !ok || err != nil {
		return err
	}
	r, err := m.rows.of(id)
	if err != nil {
		return err
	}
	switch {
	case t.Kind == keyspace.TimerSleep && r.inFlight():
		return m.completion(r, t.CompletionID, protocol.TypeSleepCompletion, void())
	case t.Kind == keyspace.TimerInvoke && r.status() == storepb.Invocation_SCHEDULED:
		return m.admit(r, nil)
	}
	m.dropped++
	return nil
}

// calleeOf reads the invocation id that answered a call from its notification.
func calleeOf(e *keyspace.Entry) (id ident.InvocationID, ok bool) {
	if e.Type != protocol.TypeCallInvocationIDCompletion {
		return id, false
	}
	var n protocolpb.Notification
	if n.UnmarshalVT(e.Raw) != nil {
		return id, false
	}
	id, err := ident.ParseInvocationID(n.GetInvocationId())
	return id, err == nil
}

// leafOf is what a stored notification answers.
func leafOf(raw []byte) leaf {
	switch n := protocol.IdentifyNotification(raw); n.Kind {
	case protocol.BySignalIndex:
		return leaf{kind: leafSignal, number: n.Number}
	case protocol.BySignalName:
		return leaf{kind: leafNamed, name: n.Name}
	default:
		return leaf{kind: leafCompletion, number: n.Number}
	}
}

func failedNotification(raw []byte) bool {
	var n protocolpb.Notification
	return n.UnmarshalVT(raw) == nil && !protocol.Succeeded(&n)
}

// completionsOf are the first n of ids: the completion ids that a command has.
func completionsOf(typ uint16, raw []byte) (ids [2]uint32, n int) {
	switch {
	case typ == protocol.TypeCall:
		ids[0], _ = fieldOf(raw, 10)
		ids[1], _ = fieldOf(raw, 11)
		return ids, 2
	case typ == protocol.TypeOneWayCall:
		ids[0], _ = fieldOf(raw, 10)
		return ids, 1
	case protocol.CompletionType(typ) != 0:
		ids[0], _ = fieldOf(raw, 11)
		return ids, 1
	}
	return ids, 0
}

// claim notes the completion ids of a new command. ok is false if reused is that of an earlier command: its result would be
// taken for the other's. SDKs count, so only an id that is not above all others needs a look at what is awaited.
func (m *Machine) claim(r *row, typ uint16, raw []byte) (reused uint32, ok bool, err error) {
	ids, n := completionsOf(typ, raw)
	if n == 2 && ids[0] == ids[1] {
		return ids[0], false, nil
	}
	for _, c := range ids[:n] {
		if c > r.inv.HighestCompletion {
			r.inv.HighestCompletion = c
			continue
		}
		m.key = keyspace.AppendCompletion(m.key[:0], &r.id, c)
		a, err := m.awaited(r, m.key)
		if err != nil || a != nil {
			return c, false, err
		}
	}
	return 0, true, nil
}

// fieldOf reads a number field of a message.
func fieldOf(raw []byte, num protowire.Number) (v uint32, ok bool) {
	for len(raw) > 0 {
		f, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return v, ok
		}
		raw = raw[n:]
		if f == num && typ == protowire.VarintType {
			x, _ := protowire.ConsumeVarint(raw)
			v, ok = uint32(x), true
		}
		if n = protowire.ConsumeFieldValue(f, typ, raw); n < 0 {
			return v, ok
		}
		raw = raw[n:]
	}
	return v, ok
}
