package fsm

import (
	"bytes"

	"perdure/control/ident"
	"perdure/control/mutant"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

func keyed(t *invocationpb.Target) bool {
	switch schema.ServiceType(t.GetServiceType()) {
	case schema.VirtualObject, schema.Workflow:
		return true
	}
	return false
}

func workflow(t *invocationpb.Target) bool {
	return schema.ServiceType(t.GetServiceType()) == schema.Workflow
}

// workflowRun reports whether the target is the handler that a workflow runs once per key.
func workflowRun(t *invocationpb.Target) bool {
	return workflow(t) && schema.HandlerType(t.GetHandlerType()) == schema.WorkflowRun
}

// exclusive reports whether invocations of the target hold the lock of their object.
func exclusive(t *invocationpb.Target) bool {
	return schema.ServiceType(t.GetServiceType()) == schema.VirtualObject && schema.HandlerType(t.GetHandlerType()) == schema.Exclusive
}

// object is what the target's key names.
func object(id *ident.InvocationID, t *invocationpb.Target) keyspace.Object {
	return keyspace.Object{Partition: id.PartitionKey(), Service: t.Service, Key: t.Key}
}

// invoke takes a request for an invocation.
func (m *Machine) invoke(x *invocationpb.Invocation) error {
	id, ok := m.idOf(x.Id)
	if !ok {
		return nil
	}
	if x.Target == nil {
		m.dropped++
		return nil
	}
	r, err := m.rows.of(id)
	if err != nil {
		return err
	}
	if r.inv != nil {
		return m.duplicate(r, x)
	}
	r.inv = &storepb.Invocation{
		Life:                  m.lsn,
		Target:                x.Target,
		Source:                x.Source,
		RequestId:             x.RequestId,
		IdempotencyKey:        x.IdempotencyKey,
		CompletionRetentionMs: x.CompletionRetentionMs,
		JournalRetentionMs:    min(x.JournalRetentionMs, x.CompletionRetentionMs),
		CreatedAtMs:           m.now,
		ExecutionTimeMs:       x.ExecutionTimeMs,
		TraceParent:           x.TraceParent,
		TraceState:            x.TraceState,
		LimitKey:              x.LimitKey,
	}
	if x.Sink != nil {
		r.inv.Sinks = []*invocationpb.Sink{x.Sink}
	}
	input := inputCommand(x)
	if _, err := m.journal.append(r, protocol.TypeInput, input); err != nil {
		return err
	}
	r.inv.Commands = 1
	m.out.submitted(x, recordpb.Reply_ACCEPTED, x.ExecutionTimeMs)
	if x.ExecutionTimeMs > m.now {
		r.inv.Status = storepb.Invocation_SCHEDULED
		r.inv.ScheduledAtMs = m.now
		return m.timers.set(keyspace.TimerKey{FireAtMs: x.ExecutionTimeMs, Kind: keyspace.TimerInvoke, ID: id})
	}
	var fresh *Fresh
	if !keyed(x.Target) {
		fresh = &Fresh{Invocation: x, Input: input, AtMs: m.now}
	}
	return m.admit(r, fresh)
}

// duplicate takes a request for an invocation that exists: the id is the idempotency key.
func (m *Machine) duplicate(r *row, x *invocationpb.Invocation) error {
	m.dropped++
	same := len(x.RequestId) > 0 && bytes.Equal(x.RequestId, r.inv.RequestId)
	status := recordpb.Reply_PREVIOUSLY_ACCEPTED
	if same {
		status = recordpb.Reply_ACCEPTED
	}
	m.out.submitted(x, status, r.inv.ExecutionTimeMs)
	switch {
	case x.Sink == nil:
		return nil
	case workflowRun(r.inv.Target) && !same:
		return m.answer(x.Sink, failure(409, "the workflow method was already invoked"), r.inv.Target, 0)
	case r.status() == storepb.Invocation_COMPLETED:
		return m.answerCompleted(r, x.Sink)
	}
	return m.await(r, x.Sink)
}

// await makes a sink wait for the invocation.
func (m *Machine) await(r *row, s *invocationpb.Sink) error {
	added, err := m.addSink(&r.inv.Sinks, &r.inv.MoreSinks, keyspace.AppendSinkPrefix(nil, &r.id), s)
	if added {
		m.rows.touch(r)
	}
	return err
}

// admit starts an invocation, or puts it in the inbox of its object.
func (m *Machine) admit(r *row, fresh *Fresh) error {
	if !exclusive(r.inv.Target) || mutant.Is(mutant.LockIgnored) {
		m.start(r, fresh)
		return nil
	}
	o := object(&r.id, r.inv.Target)
	l, err := m.locks.of(&o)
	if err != nil {
		return err
	}
	if l.row == nil {
		m.locks.take(l, r.id)
		m.start(r, fresh)
		return nil
	}
	r.inv.Status = storepb.Invocation_INBOXED
	r.inv.InboxedAtMs = m.now
	m.rows.touch(r)
	r.inv.InboxSequence, err = m.locks.enqueue(l, &storepb.Inboxed{InvocationId: r.id[:], CreatedAtMs: m.now})
	return err
}

// start makes an invocation run: the first time, after a suspension, after a pause.
func (m *Machine) start(r *row, fresh *Fresh) {
	inv := r.inv
	inv.Status = storepb.Invocation_INVOKED
	inv.Incarnation = m.lsn
	inv.Replayed = inv.Entries
	inv.Awaiting = nil
	inv.PauseRequested = false
	if inv.RunningAtMs == 0 {
		inv.RunningAtMs = m.now
	}
	m.rows.touch(r)
	a := m.out.add(ActInvoke)
	a.ID, a.Incarnation, a.Fresh = r.id, inv.Incarnation, fresh
	a.Service = inv.Target.GetService()
	copy(a.Deployment[:], inv.DeploymentId)
}
