package fsm

import (
	"errors"
	"fmt"

	"perdure/control/ident"
	"perdure/control/mutant"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// end completes an invocation with the last output of its journal. The invoker lets no End through without
// an output; should one come all the same, the invocation fails instead of being stuck.
func (m *Machine) end(r *row) error {
	if r.inv.Output == 0 {
		return m.complete(r, failure(500, "the handler ended without an output"))
	}
	raw, err := m.journal.output(r)
	if err != nil {
		return err
	}
	var c protocolpb.OutputCommand
	if err := c.UnmarshalVT(raw); err != nil { // it was decoded before it was stored
		return fmt.Errorf("output of %s: %w: %w", r.id, keyspace.ErrCorrupt, err)
	}
	return m.complete(r, outputResult(&c))
}

// complete ends an invocation in flight: its sinks get the result, the row is kept as long as results are
// retained, and the next invocation of the object begins.
func (m *Machine) complete(r *row, res *invocationpb.Result) error {
	inv := r.inv
	if inv.TraceParent != "" {
		a := m.out.add(ActEnded)
		a.ID, a.Ended = r.id, &Ended{inv.Target, inv.TraceParent, inv.TraceState, res.GetFailure() != nil}
	}
	if err := m.answerAll(r, res); err != nil {
		return err
	}
	if err := m.dropAwaited(r); err != nil {
		return err
	}
	m.rows.touch(r)
	if inv.CompletionRetentionMs > 0 {
		if err := m.retain(r, res); err != nil {
			return err
		}
	} else if err := m.free(r); err != nil {
		return err
	}
	if exclusive(inv.Target) && !(mutant.Is(mutant.FailureKeepsLock) && res.GetFailure() != nil) {
		o := object(&r.id, inv.Target)
		return m.unlock(r.id, &o)
	}
	return nil
}

// retain turns the row into that of a completed invocation.
func (m *Machine) retain(r *row, res *invocationpb.Result) error {
	inv := r.inv
	inv.Status = storepb.Invocation_COMPLETED
	inv.CompletedAtMs = m.now
	inv.Awaiting, inv.PauseRequested = nil, false
	inv.Failure = res.GetFailure()
	if err := m.setExpiry(r, false); err != nil {
		return err
	}
	switch {
	case inv.JournalRetentionMs == 0:
		return m.dropJournal(r, res)
	case inv.JournalRetentionMs < inv.CompletionRetentionMs:
		return m.setExpiry(r, true)
	}
	return nil
}

// expiry is the row of the expiry index that a completed invocation has.
func expiry(r *row, journalOnly bool) keyspace.ExpiryKey {
	retention := r.inv.CompletionRetentionMs
	if journalOnly {
		retention = r.inv.JournalRetentionMs
	}
	return keyspace.ExpiryKey{AtMs: keyspace.ExpiresAt(r.inv.CompletedAtMs, retention), ID: r.id, JournalOnly: journalOnly}
}

func (m *Machine) setExpiry(r *row, journalOnly bool) error {
	e := expiry(r, journalOnly)
	m.key = keyspace.AppendExpiry(m.key[:0], &e)
	return m.txn.Set(m.key, nil)
}

func (m *Machine) deleteExpiry(r *row, journalOnly bool) error {
	e := expiry(r, journalOnly)
	m.key = keyspace.AppendExpiry(m.key[:0], &e)
	return m.txn.Delete(m.key)
}

// dropJournal removes journal and events of a completed invocation. A success that only the journal has
// is kept in a row of its own.
func (m *Machine) dropJournal(r *row, res *invocationpb.Result) error {
	if v, ok := res.GetKind().(*invocationpb.Result_Success); ok && !r.inv.OutputKept {
		r.inv.OutputKept = true
		m.key = keyspace.AppendOutput(m.key[:0], &r.id)
		if err := m.write(m.key, &storepb.Output{Value: v.Success}); err != nil {
			return err
		}
	}
	return m.journal.drop(r)
}

// free removes all that is left of an invocation. What belongs to a workflow goes with its run.
func (m *Machine) free(r *row) error {
	inv := r.inv
	if inv.OutputKept {
		m.key = keyspace.AppendOutput(m.key[:0], &r.id)
		if err := m.txn.Delete(m.key); err != nil {
			return err
		}
	}
	if err := m.journal.drop(r); err != nil {
		return err
	}
	r.inv = nil
	m.rows.touch(r)
	if !workflowRun(inv.Target) {
		return nil
	}
	o := object(&r.id, inv.Target)
	if err := m.states.clear(&o); err != nil {
		return err
	}
	return m.forgetPromises(&o)
}

// dropAwaited removes what is known of completions and signals, and the timers of sleeps that are not over: a
// later life of the id must not find them.
func (m *Machine) dropAwaited(r *row) error {
	inv := r.inv
	if inv.Awaited == 0 {
		return nil
	}
	prefix := keyspace.AppendAwaitedPrefix(nil, &r.id)
	if inv.Timers > 0 {
		if err := m.deleteSleeps(r, prefix); err != nil {
			return err
		}
	}
	inv.Awaited, inv.Timers = 0, 0
	return m.deletePrefix(prefix)
}

func (m *Machine) deleteSleeps(r *row, prefix []byte) error {
	var timers []keyspace.TimerKey
	err := m.txn.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(key, value []byte) (bool, error) {
		c, ok := keyspace.CompletionOf(key)
		if !ok {
			return true, nil
		}
		var a storepb.Awaited
		if err := a.UnmarshalVT(value); err != nil {
			return false, fmt.Errorf("%w: completion %d of %s: %w", keyspace.ErrCorrupt, c, r.id, err)
		}
		if !a.Done && a.FireAtMs > 0 {
			timers = append(timers, keyspace.TimerKey{FireAtMs: a.FireAtMs, Kind: keyspace.TimerSleep, ID: r.id, CompletionID: c})
		}
		return true, nil
	})
	for _, t := range timers {
		err = errors.Join(err, m.timers.takeBack(t))
	}
	return err
}

// answerAll sends the result of an invocation to all its sinks, and forgets them.
func (m *Machine) answerAll(r *row, res *invocationpb.Result) error {
	inv := r.inv
	sinks := inv.Sinks
	if inv.MoreSinks > 0 {
		var err error
		if sinks, err = m.takeSinks(sinks, keyspace.AppendSinkPrefix(nil, &r.id)); err != nil {
			return err
		}
	}
	inv.Sinks, inv.MoreSinks = nil, 0
	for _, s := range sinks {
		if err := m.answer(s, res, inv.Target, 0); err != nil {
			return err
		}
	}
	return nil
}

// answer sends a result to a sink.
func (m *Machine) answer(s *invocationpb.Sink, res *invocationpb.Result, t *invocationpb.Target, expiresAtMs uint64) error {
	if len(s.RequestId) > 0 {
		m.out.reply(s.RequestId, &recordpb.Reply{Result: res, ExpiresAtMs: expiresAtMs, Target: t})
		return nil
	}
	caller, err := ident.InvocationIDFromBytes(s.Caller)
	if err != nil {
		m.dropped++
		return nil
	}
	return m.outbox.send(&recordpb.Command{
		PartitionKey: uint64(caller.PartitionKey()),
		Kind: &recordpb.Command_Response{Response: &recordpb.Response{
			InvocationId: s.Caller, CompletionId: s.CompletionId, Result: res, Life: s.Life,
		}},
	})
}

// answerCompleted sends the result of a completed invocation to a sink.
func (m *Machine) answerCompleted(r *row, s *invocationpb.Sink) error {
	res, err := m.result(r)
	if err != nil {
		return err
	}
	return m.answer(s, res, r.inv.Target, expiry(r, false).AtMs)
}

// result is what a completed invocation ended with.
func (m *Machine) result(r *row) (*invocationpb.Result, error) {
	return keyspace.Result(r.id, r.inv, func(key []byte) ([]byte, bool, error) { return m.txn.Get(key) })
}

// remove takes back an invocation that has not begun. Nothing of it is retained.
func (m *Machine) remove(r *row, res *invocationpb.Result) error {
	inv := r.inv
	err := m.answerAll(r, res)
	if err != nil {
		return err
	}
	switch inv.Status {
	case storepb.Invocation_SCHEDULED:
		err = m.timers.takeBack(keyspace.TimerKey{FireAtMs: inv.ExecutionTimeMs, Kind: keyspace.TimerInvoke, ID: r.id})
	case storepb.Invocation_INBOXED:
		o := object(&r.id, inv.Target)
		err = m.locks.leave(&o, r.id, inv.InboxSequence)
	}
	if err != nil {
		return err
	}
	if err := m.dropAwaited(r); err != nil { // one that was restarted as new has copied completions
		return err
	}
	if err := m.journal.drop(r); err != nil {
		return err
	}
	r.inv = nil
	m.rows.touch(r)
	return nil
}

func (m *Machine) attach(a *recordpb.Attach) error {
	r, err := m.asked(a.InvocationId, a.Sink)
	if r == nil || err != nil {
		return err
	}
	if r.status() == storepb.Invocation_COMPLETED {
		return m.answerCompleted(r, a.Sink)
	}
	return m.await(r, a.Sink)
}

func (m *Machine) getOutput(g *recordpb.GetOutput) error {
	r, err := m.asked(g.InvocationId, g.Sink)
	if r == nil || err != nil {
		return err
	}
	if r.status() == storepb.Invocation_COMPLETED {
		return m.answerCompleted(r, g.Sink)
	}
	if len(g.Sink.RequestId) > 0 {
		m.out.reply(g.Sink.RequestId, &recordpb.Reply{Status: recordpb.Reply_NOT_READY, Target: r.inv.Target})
		return nil
	}
	return m.answer(g.Sink, void(), r.inv.Target, 0)
}

// asked is the row that a sink asks for; nil when there is none, which the sink is then told.
func (m *Machine) asked(rawID []byte, s *invocationpb.Sink) (*row, error) {
	if s == nil {
		m.dropped++
		return nil, nil
	}
	id, ok := m.idOf(rawID)
	if !ok {
		return nil, nil
	}
	r, err := m.rows.of(id)
	if err != nil || r.inv != nil {
		return r, err
	}
	if len(s.RequestId) > 0 {
		m.out.replyStatus(s.RequestId, recordpb.Reply_NOT_FOUND)
		return nil, nil
	}
	return nil, m.answer(s, failure(404, "not found"), nil, 0)
}

// killChildren sends a kill to every invocation that the journal called, also to those that nobody waits for.
func (m *Machine) killChildren(r *row) error {
	if r.inv.Awaited == 0 { // each call has got at least the id of its callee
		return nil
	}
	ids, err := m.callees(r)
	if err != nil {
		return err
	}
	for _, id := range ids {
		err := m.outbox.send(&recordpb.Command{
			PartitionKey: uint64(id.PartitionKey()),
			Kind: &recordpb.Command_Terminate{Terminate: &recordpb.Terminate{
				InvocationId: append([]byte(nil), id[:]...), Mode: recordpb.Terminate_KILL,
			}},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// callees are the invocations that the journal called, in its order.
func (m *Machine) callees(r *row) (ids []ident.InvocationID, err error) {
	err = m.journal.each(r, func(e keyspace.Entry) {
		if id, ok := calleeOf(&e); ok {
			ids = append(ids, id)
		}
	})
	return ids, err
}

// unlock releases the lock that the invocation may hold and gives it to the next in the inbox.
func (m *Machine) unlock(id ident.InvocationID, o *keyspace.Object) error {
	for {
		next, err := m.locks.pass(id, o)
		switch {
		case err != nil || next == nil:
			return err
		case next.Patch == nil:
			return m.startInboxed(next.InvocationId)
		}
		if err := m.states.patch(o, next.Patch); err != nil {
			return err
		}
	}
}

func (m *Machine) startInboxed(raw []byte) error {
	id, err := ident.InvocationIDFromBytes(raw)
	if err != nil {
		return fmt.Errorf("%w: inbox: %w", keyspace.ErrCorrupt, err)
	}
	r, err := m.rows.of(id)
	if err != nil {
		return err
	}
	if r.status() != storepb.Invocation_INBOXED {
		return fmt.Errorf("%w: %s waits in an inbox with status %s", keyspace.ErrCorrupt, id, r.status())
	}
	r.inv.InboxSequence = 0
	m.start(r, nil)
	return nil
}
