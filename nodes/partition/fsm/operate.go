package fsm

import (
	"bytes"

	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// The verbs of operators, and of the invocations that cancel others. Each answers the request that waits for
// it, if there is one.

// terminate cancels or kills an invocation.
func (m *Machine) terminate(x *recordpb.Terminate, requestID []byte) error {
	id, ok := m.idOf(x.InvocationId)
	if !ok {
		return nil
	}
	r, err := m.rows.of(id)
	if err != nil {
		return err
	}
	kill := x.Mode == recordpb.Terminate_KILL
	switch r.status() {
	case storepb.Invocation_FREE:
		if kill {
			m.out.abort(r.id, 0)
		}
		m.out.replyStatus(requestID, recordpb.Reply_NOT_FOUND)
		return nil
	case storepb.Invocation_COMPLETED:
		m.out.replyStatus(requestID, recordpb.Reply_ALREADY_COMPLETED)
		return nil
	case storepb.Invocation_SCHEDULED, storepb.Invocation_INBOXED:
		m.out.replyStatus(requestID, recordpb.Reply_OK)
		if kill {
			return m.remove(r, failure(409, "killed"))
		}
		return m.remove(r, failure(409, "canceled"))
	}
	if kill {
		m.out.replyStatus(requestID, recordpb.Reply_OK)
		return m.kill(r)
	}
	m.out.replyStatus(requestID, recordpb.Reply_ACCEPTED)
	return m.cancel(r)
}

// kill ends an invocation in flight and everything that it called.
func (m *Machine) kill(r *row) error {
	m.out.abort(r.id, r.inv.Incarnation)
	if err := m.killChildren(r); err != nil {
		return err
	}
	return m.complete(r, failure(409, "killed"))
}

// cancel asks an invocation in flight to end itself. A paused one runs again for it.
func (m *Machine) cancel(r *row) error {
	if err := m.signal(r, leaf{kind: leafSignal, number: protocol.SignalCancel}, void()); err != nil {
		return err
	}
	if r.status() == storepb.Invocation_PAUSED {
		m.start(r, nil)
	}
	return nil
}

// purge removes a completed invocation, or its journal.
func (m *Machine) purge(x *recordpb.Purge, requestID []byte) error {
	id, ok := m.idOf(x.InvocationId)
	if !ok {
		return nil
	}
	m.out.add(ActPurged).ID = id
	r, err := m.rows.of(id)
	if err != nil {
		return err
	}
	switch r.status() {
	case storepb.Invocation_FREE:
		m.out.replyStatus(requestID, recordpb.Reply_NOT_FOUND)
		return nil
	case storepb.Invocation_COMPLETED:
	default:
		m.out.replyStatus(requestID, recordpb.Reply_NOT_COMPLETED)
		return nil
	}
	if x.Expired && m.now < expiry(r, x.JournalOnly).AtMs {
		m.dropped++
		return nil
	}
	m.out.replyStatus(requestID, recordpb.Reply_OK)
	if r.inv.JournalRetentionMs < r.inv.CompletionRetentionMs && r.inv.JournalRetentionMs > 0 {
		if err := m.deleteExpiry(r, true); err != nil {
			return err
		}
	}
	if !x.JournalOnly {
		if err := m.deleteExpiry(r, false); err != nil {
			return err
		}
		return m.free(r)
	}
	if r.inv.Entries == 0 {
		return nil
	}
	res, err := m.result(r)
	if err != nil {
		return err
	}
	return m.dropJournal(r, res)
}

// pause asks a running invocation to stop. It stops when its attempt has reached a point where it can; the row says so
// until then, because the leader that hears of it may not be the one that sees the attempt stop.
func (m *Machine) pause(x *recordpb.Pause, requestID []byte) error {
	id, ok := m.idOf(x.InvocationId)
	if !ok {
		return nil
	}
	r, err := m.rows.of(id)
	if err != nil {
		return err
	}
	switch r.status() {
	case storepb.Invocation_FREE:
		m.out.replyStatus(requestID, recordpb.Reply_NOT_FOUND)
	case storepb.Invocation_INVOKED:
		r.inv.PauseRequested = true
		m.rows.touch(r)
		m.out.add(ActPause).ID = id
		m.out.replyStatus(requestID, recordpb.Reply_ACCEPTED)
	case storepb.Invocation_SUSPENDED, storepb.Invocation_PAUSED:
		m.out.replyStatus(requestID, recordpb.Reply_OK)
	default:
		m.out.replyStatus(requestID, recordpb.Reply_NOT_RUNNING)
	}
	return nil
}

// resume makes a paused or suspended invocation run, or one that waits for a retry try now.
func (m *Machine) resume(x *recordpb.Resume, requestID []byte) error {
	id, ok := m.idOf(x.InvocationId)
	if !ok {
		return nil
	}
	r, err := m.rows.of(id)
	if err != nil {
		return err
	}
	repin := len(x.DeploymentId) > 0
	switch r.status() {
	case storepb.Invocation_FREE:
		m.out.replyStatus(requestID, recordpb.Reply_NOT_FOUND)
	case storepb.Invocation_COMPLETED:
		m.out.replyStatus(requestID, recordpb.Reply_ALREADY_COMPLETED)
	case storepb.Invocation_SCHEDULED, storepb.Invocation_INBOXED:
		m.out.replyStatus(requestID, recordpb.Reply_NOT_STARTED)
	case storepb.Invocation_INVOKED:
		if repin {
			m.out.replyStatus(requestID, recordpb.Reply_DEPLOYMENT_FIXED)
			return nil
		}
		if r.inv.PauseRequested {
			m.start(r, nil) // the attempt was asked to stop: another one takes its place
		} else {
			m.out.add(ActRetryNow).ID = id
		}
		m.out.replyStatus(requestID, recordpb.Reply_OK)
	default:
		if repin {
			// The protocol version of a journal stays: it governs how the journal is read.
			if len(r.inv.DeploymentId) == 0 {
				r.inv.ProtocolVersion = x.ProtocolVersion
			}
			r.inv.DeploymentId = x.DeploymentId
		}
		m.start(r, nil)
		m.out.replyStatus(requestID, recordpb.Reply_OK)
	}
	return nil
}

// restartAsNew starts a new invocation with the beginning of a completed one's journal.
func (m *Machine) restartAsNew(x *recordpb.RestartAsNew, requestID []byte) error {
	id, ok := m.idOf(x.InvocationId)
	newID, ok2 := m.idOf(x.NewInvocationId)
	if !ok || !ok2 || id.PartitionKey() != newID.PartitionKey() || id == newID {
		m.dropped++
		m.out.replyStatus(requestID, recordpb.Reply_BAD_RANGE)
		return nil
	}
	old, err := m.rows.of(id)
	if err != nil {
		return err
	}
	r, err := m.rows.of(newID)
	if err != nil {
		return err
	}
	if s := restartable(old); s != recordpb.Reply_OK {
		m.out.replyStatus(requestID, s)
		return nil
	}
	if r.inv != nil {
		m.replyRestarted(r, id, x.NewInvocationId, requestID)
		return nil
	}
	entries, ok, err := m.prefix(old, x.From)
	if err != nil {
		return err
	}
	if !ok {
		m.out.replyStatus(requestID, recordpb.Reply_BAD_RANGE)
		return nil
	}
	o := old.inv
	r.inv = &storepb.Invocation{
		Life: m.lsn, Target: o.Target, RequestId: requestID,
		Source:                &invocationpb.Source{Kind: invocationpb.Source_RESTART_AS_NEW, InvocationId: x.InvocationId},
		CompletionRetentionMs: o.CompletionRetentionMs, JournalRetentionMs: o.JournalRetentionMs,
		DeploymentId: x.DeploymentId, ProtocolVersion: x.ProtocolVersion,
		CreatedAtMs: m.now, TraceParent: o.TraceParent, TraceState: o.TraceState, LimitKey: o.LimitKey,
	}
	for i := range entries {
		if err := m.copyEntry(r, &entries[i]); err != nil {
			return err
		}
	}
	m.out.reply(requestID, &recordpb.Reply{NewInvocationId: x.NewInvocationId})
	return m.admit(r, nil)
}

// replyRestarted answers a restart whose new invocation exists: it was asked for twice.
func (m *Machine) replyRestarted(r *row, from ident.InvocationID, newID, requestID []byte) {
	m.dropped++
	src := r.inv.Source
	if src.GetKind() == invocationpb.Source_RESTART_AS_NEW && bytes.Equal(src.InvocationId, from[:]) {
		m.out.reply(requestID, &recordpb.Reply{NewInvocationId: newID})
		return
	}
	m.out.replyStatus(requestID, recordpb.Reply_BAD_RANGE)
}

// restartable says whether an invocation can be restarted as a new one, and why not.
func restartable(r *row) recordpb.Reply_Status {
	switch r.status() {
	case storepb.Invocation_FREE:
		return recordpb.Reply_NOT_FOUND
	case storepb.Invocation_SCHEDULED, storepb.Invocation_INBOXED:
		return recordpb.Reply_NOT_STARTED
	case storepb.Invocation_COMPLETED:
	default:
		return recordpb.Reply_STILL_RUNNING
	}
	switch {
	case workflow(r.inv.Target):
		return recordpb.Reply_UNSUPPORTED
	case r.inv.Entries == 0:
		return recordpb.Reply_INPUT_GONE
	}
	return recordpb.Reply_OK
}

// prefix reads the entries of a journal that a restart copies: those up to from, and what completes them
// later on. ok is false if the journal does not go that far, has ended by then, or lacks a completion.
// A request to cancel is left out: it was meant for the old invocation.
func (m *Machine) prefix(r *row, from uint32) (entries []keyspace.Entry, ok bool, err error) {
	if from >= r.inv.Entries {
		return nil, false, nil
	}
	missing := map[uint32]bool{} // completions that the copied commands wait for; never ranged over
	ended := false
	index := uint32(0)
	err = m.journal.each(r, func(e keyspace.Entry) {
		inside := index <= from
		index++
		take := inside
		if protocol.IsNotification(e.Type) {
			n := protocol.IdentifyNotification(e.Raw)
			switch n.Kind {
			case protocol.ByCompletion:
				take = missing[n.Number]
				delete(missing, n.Number)
			case protocol.BySignalIndex:
				take = inside && n.Number != protocol.SignalCancel
			}
		} else if inside {
			ended = ended || e.Type == protocol.TypeOutput
			ids, n := completionsOf(e.Type, e.Raw)
			for _, c := range ids[:n] {
				missing[c] = true
			}
		}
		if take {
			e.Raw = append([]byte(nil), e.Raw...)
			entries = append(entries, e)
		}
	})
	return entries, err == nil && !ended && len(missing) == 0, err
}

// copyEntry appends an entry of another journal.
func (m *Machine) copyEntry(r *row, e *keyspace.Entry) error {
	index, err := m.journal.append(r, e.Type, e.Raw)
	if err != nil {
		return err
	}
	if !protocol.IsNotification(e.Type) {
		r.inv.Commands++
		ids, _ := completionsOf(e.Type, e.Raw)
		r.inv.HighestCompletion = max(r.inv.HighestCompletion, ids[0], ids[1])
		return nil
	}
	l := leafOf(e.Raw)
	m.key = l.appendKey(m.key[:0], &r.id)
	a, err := m.awaited(r, m.key)
	if err != nil {
		return err
	}
	if a == nil {
		r.inv.Awaited++
	}
	m.key = l.appendKey(m.key[:0], &r.id)
	return m.write(m.key, &storepb.Awaited{Done: true, Entry: index, Failed: failedNotification(e.Raw)})
}
