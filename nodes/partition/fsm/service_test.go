package fsm

import (
	"testing"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

func outputOf(s string) *protocolpb.OutputCommand {
	return &protocolpb.OutputCommand{Result: &protocolpb.OutputCommand_Value{Value: &protocolpb.Value{Content: []byte(s)}}}
}

func outputFailure(code uint32, msg string) *invocationpb.Effect {
	return entry(protocol.TypeOutput, &protocolpb.OutputCommand{Result: &protocolpb.OutputCommand_Failure{Failure: &protocolpb.Failure{
		Code: code, Message: msg, Metadata: []*protocolpb.FailureMetadata{{Key: "k", Value: "v"}},
	}}})
}

// invocationTables are those that belong to single invocations.
var invocationTables = []byte{keyspace.TagInvocation, keyspace.TagJournal, keyspace.TagAwaited, keyspace.TagSink, keyspace.TagOutput, keyspace.TagEvent, keyspace.TagTimer, keyspace.TagExpiry}

func TestServiceCallIsTwoCommands(t *testing.T) {
	w := newWorld(t)
	x := request(service("Greeter"), 1)
	x.Headers = []*invocationpb.Header{{Key: "a", Value: "b"}, {Key: "empty"}}
	a := w.one(w.invoke(x), ActInvoke)
	if a.Fresh == nil || string(a.Fresh.Invocation.Argument) != "arg-1" {
		t.Fatalf("no fresh journal: %+v", a)
	}
	var in protocolpb.InputCommand
	if err := in.UnmarshalVT(a.Fresh.Input); err != nil || string(in.Value.GetContent()) != "arg-1" || len(in.Headers) != 2 || in.Headers[0].Value != "b" || in.Headers[1].Key != "empty" {
		t.Fatalf("input %v, %v", &in, err)
	}
	id := a.ID
	w.wantStatus(id, storepb.Invocation_INVOKED)
	if j := w.journal(id); len(j) != 1 || j[0].Type != protocol.TypeInput || string(j[0].Raw) != string(a.Fresh.Input) {
		t.Fatalf("journal %v", j)
	}
	as := w.effects(id, pinned(6), output("hello"), end())
	if r := w.one(as, ActReply); string(r.Reply.Result.GetSuccess()) != "hello" || string(r.RequestID[:]) != string(requestID(1)) || r.Reply.ExpiresAtMs != 0 {
		t.Fatalf("reply %+v", r)
	}
	if a := w.one(as, ActApplied); a.Sequence != w.seq || a.ID != id {
		t.Fatalf("applied %+v", a)
	}
	w.none(as, ActAbort)
	w.wantEmpty(invocationTables...)
}

func TestEmptyInputHasAValue(t *testing.T) {
	w := newWorld(t)
	x := request(service("Greeter"), 1)
	x.Argument = nil
	id := w.started(x)
	if raw := w.journal(id)[0].Raw; string(raw) != "\x72\x00" {
		t.Fatalf("input %x, want a present and empty value", raw)
	}
}

func TestLastOutputCounts(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("Greeter"), 1))
	w.effects(id, output("first"))
	w.effects(id, output("second"))
	as := w.effects(id, end())
	if r := w.one(as, ActReply); string(r.Reply.Result.GetSuccess()) != "second" {
		t.Fatalf("reply %+v", r.Reply)
	}
}

func TestFailureTravelsUnchanged(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("Greeter"), 1))
	f := w.one(w.effects(id, outputFailure(418, "teapot"), end()), ActReply).Reply.Result.GetFailure()
	if f.GetCode() != 418 || f.Message != "teapot" || len(f.Metadata) != 1 || f.Metadata[0].Value != "v" {
		t.Fatalf("failure %v", f)
	}
}

func TestEndWithoutOutputFails(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("Greeter"), 1))
	if f := w.one(w.effects(id, end()), ActReply).Reply.Result.GetFailure(); f.GetCode() != 500 {
		t.Fatalf("failure %v", f)
	}
	w.wantEmpty(invocationTables...)
}

func TestBadCommandFailsTheInvocation(t *testing.T) {
	bad := map[string]*invocationpb.Effect{
		"set state without value": rawEntry(protocol.TypeSetState, []byte("\x0a\x01k")),
		"garbage":                 rawEntry(protocol.TypeSleep, []byte{0xff, 0xff}),
		"unknown type":            rawEntry(0x0500, nil),
		"notification":            rawEntry(protocol.TypeSignal, nil),
		"type out of range":       {Kind: &invocationpb.Effect_Command_{Command: &invocationpb.Effect_Command{Type: 0x10401}}},
		"call without callee":     entry(protocol.TypeCall, &protocolpb.CallCommand{ServiceName: "A", HandlerName: "b", ResultCompletionId: 2, InvocationIdNotificationIdx: 1}),
		"promise of a service":    entry(protocol.TypeGetPromise, &protocolpb.GetPromiseCommand{Key: "p", ResultCompletionId: 1}),
	}
	for name, e := range bad {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			id := w.started(request(service("Greeter"), 1))
			as := w.effects(id, e, output("late"), end())
			if f := w.one(as, ActReply).Reply.Result.GetFailure(); f.GetCode() != 500 {
				t.Fatalf("failure %v", f)
			}
			if len(ofKind(as, ActAbort)) == 0 {
				t.Fatal("the attempt is not aborted")
			}
			w.one(as, ActApplied)
			w.wantEmpty(invocationTables...)
			if w.m.Dropped() == 0 {
				t.Fatal("nothing is counted")
			}
		})
	}
}

func TestMalformedCommandsAreDropped(t *testing.T) {
	id := idFor(service("A"), 1)
	cmds := map[string]*recordpb.Command{
		"no kind":              {},
		"invoke without id":    {Kind: &recordpb.Command_Invoke{Invoke: &invocationpb.Invocation{Target: service("A")}}},
		"invoke short id":      {Kind: &recordpb.Command_Invoke{Invoke: &invocationpb.Invocation{Id: id[:5], Target: service("A")}}},
		"invoke no target":     {Kind: &recordpb.Command_Invoke{Invoke: &invocationpb.Invocation{Id: id[:]}}},
		"effects without id":   {Kind: &recordpb.Command_InvokerEffects{InvokerEffects: &recordpb.InvokerEffects{}}},
		"timer without id":     {Kind: &recordpb.Command_Timer{Timer: &recordpb.Timer{}}},
		"response without id":  {Kind: &recordpb.Command_Response{Response: &recordpb.Response{}}},
		"signal without id":    {Kind: &recordpb.Command_Signal{Signal: &recordpb.Signal{Id: &recordpb.Signal_Index{Index: 17}}}},
		"signal without name":  {Kind: &recordpb.Command_Signal{Signal: &recordpb.Signal{InvocationId: id[:]}}},
		"attach without sink":  {Kind: &recordpb.Command_Attach{Attach: &recordpb.Attach{InvocationId: id[:]}}},
		"attach without id":    {Kind: &recordpb.Command_Attach{Attach: &recordpb.Attach{Sink: &invocationpb.Sink{}}}},
		"attach empty sink":    {Kind: &recordpb.Command_Attach{Attach: &recordpb.Attach{InvocationId: id[:], Sink: &invocationpb.Sink{}}}},
		"output without sink":  {Kind: &recordpb.Command_GetOutput{GetOutput: &recordpb.GetOutput{InvocationId: id[:]}}},
		"terminate without id": {Kind: &recordpb.Command_Terminate{Terminate: &recordpb.Terminate{}}},
		"purge without id":     {Kind: &recordpb.Command_Purge{Purge: &recordpb.Purge{}}},
		"pause without id":     {Kind: &recordpb.Command_Pause{Pause: &recordpb.Pause{}}},
		"resume without id":    {Kind: &recordpb.Command_Resume{Resume: &recordpb.Resume{}}},
		"restart without id":   {Kind: &recordpb.Command_RestartAsNew{RestartAsNew: &recordpb.RestartAsNew{}}},
		"restart onto itself":  {Kind: &recordpb.Command_RestartAsNew{RestartAsNew: &recordpb.RestartAsNew{InvocationId: id[:], NewInvocationId: id[:]}}},
	}
	for name, c := range cmds {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if as := w.apply(c); len(as) > 0 {
				t.Fatalf("actions %+v", as)
			}
			if w.m.Dropped() == 0 {
				t.Fatal("not counted")
			}
			if n := len(w.txn.rows); n != 1 {
				t.Fatalf("%d rows, want the applied LSN only", n)
			}
		})
	}
}

func TestInvocationOfAnotherPartitionIsDropped(t *testing.T) {
	w := newWorld(t)
	x := request(service("Greeter"), 1)
	k := ident.InvocationID(x.Id).PartitionKey()
	w.m.keys.Start, w.m.keys.End = k+1, k+10
	if as := w.invoke(x); len(as) != 0 || w.m.Dropped() != 1 {
		t.Fatalf("actions %+v, dropped %d", as, w.m.Dropped())
	}
}

func TestIdempotentCallAttachesAndIsAnsweredFromTheRow(t *testing.T) {
	w := newWorld(t)
	id := w.started(retained(request(service("Greeter"), 1), 5000, 9000))
	again := retained(request(service("Greeter"), 1), 5000, 5000)
	again.RequestId, again.Sink = requestID(2), &invocationpb.Sink{RequestId: requestID(2)}
	as := w.invoke(again)
	w.none(as, ActInvoke)
	w.none(as, ActReply)
	w.invoke(again) // the same sink waits once
	as = w.effects(id, output("hello"), end())
	if rs := ofKind(as, ActReply); len(rs) != 2 || rs[0].RequestID != [16]byte(requestID(1)) || rs[1].RequestID != [16]byte(requestID(2)) {
		t.Fatalf("replies %+v", rs)
	}
	w.wantStatus(id, storepb.Invocation_COMPLETED)
	if inv := w.row(id); inv.JournalRetentionMs != 5000 {
		t.Fatalf("journal retention %d is not clamped to that of the result", inv.JournalRetentionMs)
	}
	again.RequestId, again.Sink = requestID(3), &invocationpb.Sink{RequestId: requestID(3)}
	r := w.one(w.invoke(again), ActReply).Reply
	if string(r.Result.GetSuccess()) != "hello" || r.ExpiresAtMs != w.now+5000 || r.Target.GetService() != "Greeter" {
		t.Fatalf("reply %+v", r)
	}
}

func TestSubmitIsAcceptedOnceAndAgainForTheSameRequest(t *testing.T) {
	w := newWorld(t)
	x := request(service("Greeter"), 1)
	x.Sink, x.SubmitRequestId, x.ExecutionTimeMs = nil, requestID(1), w.now+500
	want := func(x *invocationpb.Invocation, s recordpb.Reply_Status) {
		t.Helper()
		if r := w.one(w.invoke(x), ActReply).Reply; r.Status != s || r.ExecutionTimeMs != w.now+500 {
			t.Fatalf("reply %+v, want %s", r, s)
		}
	}
	want(x, recordpb.Reply_ACCEPTED)
	want(x, recordpb.Reply_ACCEPTED) // a retry of the same request
	other := request(service("Greeter"), 1)
	other.Sink, other.RequestId, other.SubmitRequestId = nil, requestID(9), requestID(9)
	want(other, recordpb.Reply_PREVIOUSLY_ACCEPTED)
}

func TestScheduledInvocationStartsByItsTimer(t *testing.T) {
	w := newWorld(t)
	x := request(service("Greeter"), 1)
	x.ExecutionTimeMs = w.now + 1000
	as := w.invoke(x)
	id := ident.InvocationID(x.Id)
	w.none(as, ActInvoke)
	w.wantStatus(id, storepb.Invocation_SCHEDULED)
	timer := w.one(as, ActTimer).Timer
	fire := &recordpb.Command{Kind: &recordpb.Command_Timer{Timer: &recordpb.Timer{
		FireAtMs: timer.FireAtMs, Kind: uint32(timer.Kind), InvocationId: timer.ID[:], CompletionId: timer.CompletionID,
	}}}
	w.now += 999
	if as := w.apply(fire); w.one(as, ActTimer).Timer != timer || w.status(id) != storepb.Invocation_SCHEDULED {
		t.Fatalf("a timer that is early by the record's time has to wait: %+v", as)
	}
	w.now++
	if a := w.one(w.apply(fire), ActInvoke); a.ID != id || a.Fresh != nil {
		t.Fatalf("invoke %+v", a)
	}
	w.wantStatus(id, storepb.Invocation_INVOKED)
	w.wantEmpty(keyspace.TagTimer)
	w.none(w.apply(fire), ActInvoke) // fires once
}

func TestPastExecutionTimeRunsAtOnce(t *testing.T) {
	w := newWorld(t)
	x := request(service("Greeter"), 1)
	x.ExecutionTimeMs = w.now
	w.started(x)
	w.wantEmpty(keyspace.TagTimer)
}

func purge(id ident.InvocationID, journalOnly, expired bool) *recordpb.Command {
	return &recordpb.Command{RequestId: requestID(77), Kind: &recordpb.Command_Purge{Purge: &recordpb.Purge{InvocationId: id[:], JournalOnly: journalOnly, Expired: expired}}}
}

func (w *world) wantReply(as []Action, want recordpb.Reply_Status) {
	w.t.Helper()
	if r := w.one(as, ActReply).Reply; r.Status != want {
		w.t.Fatalf("reply %s, want %s", r.Status, want)
	}
}

func TestRetentionEndsByTheExpiryIndex(t *testing.T) {
	w := newWorld(t)
	id := w.started(retained(request(service("Greeter"), 1), 5000, 2000))
	w.effects(id, output("hello"), end())
	if w.count(keyspace.TagExpiry) != 2 {
		t.Fatalf("%d rows in the expiry index, want one for the journal and one for all", w.count(keyspace.TagExpiry))
	}
	w.now += 1999
	as := w.apply(purge(id, true, true))
	w.none(as, ActReply)
	w.one(as, ActPurged)
	if len(w.journal(id)) != 2 {
		t.Fatal("the journal was purged before its time")
	}
	w.now++
	w.wantReply(w.apply(purge(id, true, true)), recordpb.Reply_OK)
	w.wantEmpty(keyspace.TagJournal)
	get := &recordpb.Command{Kind: &recordpb.Command_GetOutput{GetOutput: &recordpb.GetOutput{InvocationId: id[:], Sink: &invocationpb.Sink{RequestId: requestID(4)}}}}
	if r := w.one(w.apply(get), ActReply).Reply; string(r.Result.GetSuccess()) != "hello" {
		t.Fatalf("the result went with the journal: %+v", r)
	}
	w.now += 3000
	w.wantReply(w.apply(purge(id, false, true)), recordpb.Reply_OK)
	w.wantEmpty(invocationTables...)
	w.wantReply(w.apply(purge(id, false, false)), recordpb.Reply_NOT_FOUND)
	if r := w.one(w.apply(get), ActReply).Reply; r.Status != recordpb.Reply_NOT_FOUND {
		t.Fatalf("reply %+v", r)
	}
}

func TestPurgeByAnOperator(t *testing.T) {
	for _, journal := range []uint64{5000, 2000, 0} {
		for _, failed := range []bool{false, true} {
			w := newWorld(t)
			id := w.started(retained(request(service("Greeter"), 1), 5000, journal))
			w.wantReply(w.apply(purge(id, false, false)), recordpb.Reply_NOT_COMPLETED)
			if failed {
				w.effects(id, outputFailure(400, "no"), end())
			} else {
				w.effects(id, output("hello"), end())
			}
			if (len(w.journal(id)) > 0) != (journal > 0) {
				t.Fatalf("journal of %d entries with a retention of %d", len(w.journal(id)), journal)
			}
			w.wantReply(w.apply(purge(id, true, false)), recordpb.Reply_OK)
			w.wantReply(w.apply(purge(id, true, false)), recordpb.Reply_OK)
			w.wantEmpty(keyspace.TagJournal)
			w.wantReply(w.apply(purge(id, false, false)), recordpb.Reply_OK)
			w.wantEmpty(invocationTables...)
		}
	}
}

// An id can be used again after it was purged. What an attempt of the earlier life still proposes, and what
// still answers it, must not reach the later one.
func TestLaterLifeOfAnIDIsNotTouchedByTheEarlier(t *testing.T) {
	w := newWorld(t)
	x := request(objectTarget("k", schema.Shared), 1)
	id := w.started(x)
	old := w.row(id)
	w.effects(id, sleepUntil(1, w.now+10), callTo(service("B"), 7, 2, 3))
	w.apply(kill(id))
	w.wantEmpty(invocationTables...)
	w.started(x)
	w.effects(id, sleepUntil(1, w.now+5000), callTo(service("B"), 8, 2, 3))
	as := w.effectsOf(id, old.Incarnation, output("stale"), end())
	w.one(as, ActApplied)
	w.none(as, ActAbort)
	w.apply(response(id, old.Life, 3, success([]byte("stale"))))
	w.now += 10
	w.apply(&recordpb.Command{Kind: &recordpb.Command_Timer{Timer: &recordpb.Timer{FireAtMs: w.now, Kind: uint32(keyspace.TimerSleep), InvocationId: id[:], CompletionId: 1}}})
	if j := w.journal(id); len(j) != 4 { // input, sleep, call, callee's id
		t.Fatalf("the journal of the later life has %d entries", len(j))
	}
	if got := w.effects(id, output("mine"), end()); string(w.one(got, ActReply).Reply.Result.GetSuccess()) != "mine" {
		t.Fatalf("%+v", got)
	}
}

func kill(id ident.InvocationID) *recordpb.Command { return terminate(id, recordpb.Terminate_KILL) }

func cancel(id ident.InvocationID) *recordpb.Command { return terminate(id, recordpb.Terminate_CANCEL) }

func terminate(id ident.InvocationID, mode recordpb.Terminate_Mode) *recordpb.Command {
	return &recordpb.Command{RequestId: requestID(66), Kind: &recordpb.Command_Terminate{Terminate: &recordpb.Terminate{InvocationId: id[:], Mode: mode}}}
}

func response(id ident.InvocationID, life uint64, completion uint32, r *invocationpb.Result) *recordpb.Command {
	return &recordpb.Command{Kind: &recordpb.Command_Response{Response: &recordpb.Response{InvocationId: id[:], Life: life, CompletionId: completion, Result: r}}}
}

func sleepUntil(completion uint32, at uint64) *invocationpb.Effect {
	return entry(protocol.TypeSleep, &protocolpb.SleepCommand{WakeUpTime: at, ResultCompletionId: completion})
}

// callTo calls a target; n makes the callee's id.
func callTo(t *invocationpb.Target, n int, idCompletion, resultCompletion uint32) *invocationpb.Effect {
	e := entry(protocol.TypeCall, &protocolpb.CallCommand{
		ServiceName: t.Service, HandlerName: t.Handler, Key: t.Key, Parameter: []byte("p"),
		Headers:                     []*protocolpb.Header{{Key: "h", Value: "v"}},
		InvocationIdNotificationIdx: idCompletion, ResultCompletionId: resultCompletion,
	})
	e.GetCommand().Callee = calleeFor(t, n)
	return e
}

func sendTo(t *invocationpb.Target, n int, idCompletion uint32, at uint64) *invocationpb.Effect {
	e := entry(protocol.TypeOneWayCall, &protocolpb.OneWayCallCommand{
		ServiceName: t.Service, HandlerName: t.Handler, Key: t.Key, Parameter: []byte("p"), InvokeTime: at, InvocationIdNotificationIdx: idCompletion,
	})
	e.GetCommand().Callee = calleeFor(t, n)
	return e
}

func calleeFor(t *invocationpb.Target, n int) *invocationpb.Effect_Callee {
	id := idFor(t, n)
	return &invocationpb.Effect_Callee{InvocationId: id[:], Target: t, CompletionRetentionMs: 100, JournalRetentionMs: 50}
}
