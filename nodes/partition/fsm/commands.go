package fsm

import (
	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

func (m *Machine) sleep(r *row, c *protocolpb.SleepCommand) error {
	if c.WakeUpTime <= m.now {
		return m.completion(r, c.ResultCompletionId, protocol.TypeSleepCompletion, void())
	}
	r.inv.Awaited++
	r.inv.Timers++
	m.key = keyspace.AppendCompletion(m.key[:0], &r.id, c.ResultCompletionId)
	if err := m.write(m.key, &storepb.Awaited{Type: uint32(protocol.TypeSleepCompletion), FireAtMs: c.WakeUpTime}); err != nil {
		return err
	}
	return m.timers.set(keyspace.TimerKey{FireAtMs: c.WakeUpTime, Kind: keyspace.TimerSleep, ID: r.id, CompletionID: c.ResultCompletionId})
}

func (m *Machine) call(r *row, c *protocolpb.CallCommand, callee *invocationpb.Effect_Callee) error {
	x, id, ok := m.callee(r, callee, c.Parameter, c.Headers, c.IdempotencyKey)
	if !ok {
		return m.reject(r, "the callee of a call is missing")
	}
	x.LimitKey = c.GetLimitKey()
	x.Sink = m.sink(r, c.ResultCompletionId)
	if err := m.outbox.send(invokeMessage(id, x)); err != nil {
		return err
	}
	if err := m.expect(r, c.ResultCompletionId, protocol.TypeCallCompletion); err != nil {
		return err
	}
	return m.called(r, c.InvocationIdNotificationIdx, id)
}

func (m *Machine) oneWayCall(r *row, c *protocolpb.OneWayCallCommand, callee *invocationpb.Effect_Callee) error {
	x, id, ok := m.callee(r, callee, c.Parameter, c.Headers, c.IdempotencyKey)
	if !ok {
		return m.reject(r, "the callee of a one-way call is missing")
	}
	x.LimitKey = c.GetLimitKey()
	x.ExecutionTimeMs = c.InvokeTime
	if err := m.outbox.send(invokeMessage(id, x)); err != nil {
		return err
	}
	return m.called(r, c.InvocationIdNotificationIdx, id)
}

// callee is the invocation that a call asks for.
func (m *Machine) callee(r *row, callee *invocationpb.Effect_Callee, parameter []byte, headers []*protocolpb.Header, idempotencyKey *string) (*invocationpb.Invocation, ident.InvocationID, bool) {
	id, err := ident.InvocationIDFromBytes(callee.GetInvocationId())
	if err != nil || callee.Target == nil {
		return nil, id, false
	}
	x := &invocationpb.Invocation{
		Id:                    callee.InvocationId,
		Target:                callee.Target,
		Argument:              parameter,
		Headers:               make([]*invocationpb.Header, len(headers)),
		Source:                &invocationpb.Source{Kind: invocationpb.Source_SERVICE, InvocationId: append([]byte(nil), r.id[:]...), Target: r.inv.Target},
		CompletionRetentionMs: callee.CompletionRetentionMs,
		JournalRetentionMs:    callee.JournalRetentionMs,
		TraceParent:           r.inv.TraceParent,
		TraceState:            r.inv.TraceState,
	}
	if callee.TraceParent != "" {
		x.TraceParent, x.TraceState = callee.TraceParent, callee.TraceState
	}
	if !workflowRun(callee.Target) {
		x.IdempotencyKey = idempotencyKey
	}
	for i, h := range headers {
		x.Headers[i] = &invocationpb.Header{Key: h.Key, Value: h.Value}
	}
	return x, id, true
}

func invokeMessage(id ident.InvocationID, x *invocationpb.Invocation) *recordpb.Command {
	return &recordpb.Command{PartitionKey: uint64(id.PartitionKey()), Kind: &recordpb.Command_Invoke{Invoke: x}}
}

// called tells the caller the id of its callee at once: it needs it to cancel it.
func (m *Machine) called(r *row, completion uint32, id ident.InvocationID) error {
	return m.completed(r, completion, protocol.TypeCallInvocationIDCompletion, false, protocol.InvocationIDCompletion(completion, id.String()))
}

// sink is a completion of the invocation as the place where a result goes.
func (m *Machine) sink(r *row, completion uint32) *invocationpb.Sink {
	return &invocationpb.Sink{Caller: append([]byte(nil), r.id[:]...), CompletionId: completion, Life: r.inv.Life}
}

func (m *Machine) attachCommand(r *row, c *protocolpb.AttachInvocationCommand) error {
	id, ok := targetOf(c.GetInvocationId(), c.GetIdempotentRequestTarget(), c.GetWorkflowTarget())
	if !ok {
		return m.reject(r, "the target of an attach cannot be resolved")
	}
	if err := m.expect(r, c.ResultCompletionId, protocol.TypeAttachInvocationCompletion); err != nil {
		return err
	}
	return m.outbox.send(&recordpb.Command{
		PartitionKey: uint64(id.PartitionKey()),
		Kind:         &recordpb.Command_Attach{Attach: &recordpb.Attach{InvocationId: id[:], Sink: m.sink(r, c.ResultCompletionId)}},
	})
}

func (m *Machine) getOutputCommand(r *row, c *protocolpb.GetInvocationOutputCommand) error {
	id, ok := targetOf(c.GetInvocationId(), c.GetIdempotentRequestTarget(), c.GetWorkflowTarget())
	if !ok {
		return m.reject(r, "the target of a get-output cannot be resolved")
	}
	if err := m.expect(r, c.ResultCompletionId, protocol.TypeGetInvocationOutputCompletion); err != nil {
		return err
	}
	return m.outbox.send(&recordpb.Command{
		PartitionKey: uint64(id.PartitionKey()),
		Kind:         &recordpb.Command_GetOutput{GetOutput: &recordpb.GetOutput{InvocationId: id[:], Sink: m.sink(r, c.ResultCompletionId)}},
	})
}

// AttachTarget is the invocation that a stored attach waits for; false for a target that names none.
func AttachTarget(c *protocolpb.AttachInvocationCommand) (ident.InvocationID, bool) {
	return targetOf(c.GetInvocationId(), c.GetIdempotentRequestTarget(), c.GetWorkflowTarget())
}

// targetOf resolves what an attach or get-output names.
func targetOf(printable string, i *protocolpb.IdempotentRequestTarget, w *protocolpb.WorkflowTarget) (id ident.InvocationID, ok bool) {
	switch {
	case i != nil:
		return ident.Invocation(ident.Target{
			Service: i.ServiceName, Handler: i.HandlerName, Key: i.GetServiceKey(), Keyed: i.ServiceKey != nil,
			IdempotencyKey: &i.IdempotencyKey,
		}, ident.Random{}), true
	case w != nil:
		return ident.Invocation(ident.Target{Service: w.WorkflowName, Key: w.WorkflowKey, Keyed: true, WorkflowRun: true}, ident.Random{}), true
	}
	id, err := ident.ParseInvocationID(printable)
	return id, err == nil
}

func (m *Machine) sendSignal(r *row, c *protocolpb.SendSignalCommand) error {
	id, err := ident.ParseInvocationID(c.TargetInvocationId)
	if err != nil {
		return m.reject(r, "the target of a signal cannot be resolved")
	}
	res := protocol.ResultOf(c.GetValue(), c.GetFailure())
	if k, ok := c.SignalId.(*protocolpb.SendSignalCommand_Name); ok {
		return m.outbox.send(signalMessage(id, &recordpb.Signal{InvocationId: id[:], Id: &recordpb.Signal_Name{Name: k.Name}, Result: res}))
	}
	return m.outbox.send(signalMessage(id, &recordpb.Signal{InvocationId: id[:], Id: &recordpb.Signal_Index{Index: c.GetIdx()}, Result: res}))
}

func (m *Machine) completeAwakeable(r *row, c *protocolpb.CompleteAwakeableCommand) error {
	a, err := ident.ParseAwakeable(c.AwakeableId)
	if err != nil {
		return m.reject(r, "the id of an awakeable cannot be read")
	}
	if a.Old { // belongs to a journal of a protocol that is no longer spoken
		return nil
	}
	return m.outbox.send(signalMessage(a.Invocation, &recordpb.Signal{
		InvocationId: a.Invocation[:], Id: &recordpb.Signal_Index{Index: a.Signal}, Result: protocol.ResultOf(c.GetValue(), c.GetFailure()),
	}))
}

// signalMessage carries a signal; its target takes index 1 as the request to cancel.
func signalMessage(id ident.InvocationID, s *recordpb.Signal) *recordpb.Command {
	return &recordpb.Command{PartitionKey: uint64(id.PartitionKey()), Kind: &recordpb.Command_Signal{Signal: s}}
}

// outputResult is what an Output command says.
func outputResult(c *protocolpb.OutputCommand) *invocationpb.Result {
	if f := c.GetFailure(); f != nil {
		return &invocationpb.Result{Kind: &invocationpb.Result_Failure{Failure: protocol.FailureOf(f)}}
	}
	return success(c.GetValue().GetContent())
}
