package fsm

import (
	"encoding/hex"
	"fmt"
	"strings"
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

// wantNotified checks the only notification of the actions, and that it is the last entry of the journal.
func (w *world) wantNotified(as []Action, typ uint16, rawHex string) {
	w.t.Helper()
	a := w.one(as, ActNotify)
	w.wantNotification(a, typ, rawHex)
	j := w.journal(a.ID)
	if last := j[len(j)-1]; int(a.EntryIndex) != len(j)-1 || last.Type != typ || string(last.Raw) != string(a.Raw) {
		w.t.Fatalf("forwarded entry %d %x is not the last of the journal (%d entries, %04x %x)", a.EntryIndex, a.Raw, len(j), last.Type, last.Raw)
	}
}

func (w *world) wantNotification(a Action, typ uint16, rawHex string) {
	w.t.Helper()
	if a.Type != typ || hex.EncodeToString(a.Raw) != rawHex {
		w.t.Fatalf("notification %s %x, want %s %s", protocol.Name(a.Type), a.Raw, protocol.Name(typ), rawHex)
	}
	if a.Incarnation != w.row(a.ID).GetIncarnation() {
		w.t.Fatalf("notification for incarnation %d of %d", a.Incarnation, w.row(a.ID).GetIncarnation())
	}
}

func fire(k keyspace.TimerKey) *recordpb.Command {
	return &recordpb.Command{Kind: &recordpb.Command_Timer{Timer: &recordpb.Timer{FireAtMs: k.FireAtMs, Kind: uint32(k.Kind), InvocationId: k.ID[:], CompletionId: k.CompletionID}}}
}

func TestSleepCompletesWhenDue(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	as := w.effects(id, sleepUntil(3, w.now+100))
	w.none(as, ActNotify)
	k := w.one(as, ActTimer).Timer
	if k != (keyspace.TimerKey{FireAtMs: w.now + 100, Kind: keyspace.TimerSleep, ID: id, CompletionID: 3}) {
		t.Fatalf("timer %+v", k)
	}
	w.now += 100
	w.wantNotified(w.apply(fire(k)), protocol.TypeSleepCompletion, "08032200")
	if w.row(id).Timers != 0 {
		t.Fatal("the sleep still counts as not over")
	}
	w.none(w.apply(fire(k)), ActNotify)
	w.wantEmpty(keyspace.TagTimer)
}

func TestSleepIntoThePastCompletesAtOnce(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	as := w.effects(id, sleepUntil(1, w.now))
	w.none(as, ActTimer)
	w.wantNotified(as, protocol.TypeSleepCompletion, "08012200")
}

func TestEndTakesTimersAndCompletionsAlong(t *testing.T) {
	for _, n := range []int{1, rangeDeleteFrom + 1} {
		w := newWorld(t)
		id := w.started(retained(request(service("A"), 1), 1000, 1000))
		for i := range n {
			w.effects(id, sleepUntil(uint32(2*i+1), w.now+uint64(100+i)), callTo(service("B"), i, uint32(1000+i), uint32(2*i+2)))
		}
		as := w.effects(id, output("x"), end())
		if got := len(ofKind(as, ActTimerDeleted)); got != n {
			t.Fatalf("%d timers deleted, want %d", got, n)
		}
		w.wantEmpty(keyspace.TagTimer, keyspace.TagAwaited)
		w.apply(purge(id, false, false))
		w.wantEmpty(invocationTables...)
	}
}

func TestRunResult(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	w.none(w.effects(id, entry(protocol.TypeRun, &protocolpb.RunCommand{ResultCompletionId: 1, Name: "se"})), ActNotify)
	w.wantNotified(w.effects(id, runResult(1, success([]byte("42")))), protocol.TypeRunCompletion, "08012a040a023432")
	w.none(w.effects(id, runResult(1, success([]byte("43")))), ActNotify) // a completion id has one result
	w.wantNotified(w.effects(id, runResult(2, failure(500, "x"))), protocol.TypeRunCompletion, "0802320608f403120178")
	w.wantNotified(w.effects(id, runResult(4, success(nil))), protocol.TypeRunCompletion, "08042a00")
}

// A run must not answer what a sleep or a call is going to answer.
func TestRunResultForAnothersCompletionIsDropped(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	w.effects(id, sleepUntil(1, w.now+100))
	w.none(w.effects(id, runResult(1, success([]byte("42")))), ActNotify)
	w.now += 100
	w.wantNotified(w.apply(fire(keyspace.TimerKey{FireAtMs: w.now, Kind: keyspace.TimerSleep, ID: id, CompletionID: 1})), protocol.TypeSleepCompletion, "08012200")
}

func TestCallGoesThroughTheOutboxAndComesBack(t *testing.T) {
	w := newWorld(t)
	x := request(service("A"), 1)
	x.TraceParent = "00-t"
	id := w.started(x)
	e := callTo(objectTarget("k", schema.Exclusive), 5, 1, 2)
	as := w.effects(id, e)
	callee := ident.InvocationID(e.GetCommand().Callee.InvocationId)
	msg := w.one(as, ActOutbox)
	inv := msg.Command.GetInvoke()
	if msg.Index != 1 || msg.Command.PartitionKey != uint64(callee.PartitionKey()) || string(inv.Argument) != "p" || inv.Headers[0].Value != "v" ||
		inv.Source.Kind != invocationpb.Source_SERVICE || string(inv.Source.InvocationId) != string(id[:]) || inv.Source.Target.Service != "A" ||
		inv.CompletionRetentionMs != 100 || inv.JournalRetentionMs != 50 || inv.TraceParent != "00-t" ||
		string(inv.Sink.Caller) != string(id[:]) || inv.Sink.CompletionId != 2 {
		t.Fatalf("message %d: %v", msg.Index, msg.Command)
	}
	w.wantNotified(as, protocol.TypeCallInvocationIDCompletion, "0801820126"+hex.EncodeToString([]byte(callee.String())))
	life := inv.Sink.Life
	w.none(w.apply(response(id, life+1, 2, success([]byte("no")))), ActNotify)
	w.none(w.apply(response(id, life, 9, success([]byte("no")))), ActNotify)
	w.wantNotified(w.apply(response(id, life, 2, success([]byte("r")))), protocol.TypeCallCompletion, "08022a030a0172")
	w.none(w.apply(response(id, life, 2, success([]byte("again")))), ActNotify)
}

// The whole round trip inside of one partition: the callee's answer is a Response in the outbox.
func TestCalleeAnswersItsCaller(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	msg := w.one(w.effects(id, callTo(service("B"), 5, 1, 2)), ActOutbox)
	callee := w.one(w.apply(msg.Command), ActInvoke).ID
	back := w.one(w.effects(callee, outputFailure(409, "nope"), end()), ActOutbox)
	if back.Index != 2 {
		t.Fatalf("outbox index %d", back.Index)
	}
	as := w.apply(back.Command)
	w.wantNotified(as, protocol.TypeCallCompletion, notificationHex(2, &invocationpb.Failure{Code: 409, Message: "nope", Metadata: []*invocationpb.Header{{Key: "k", Value: "v"}}}))
}

func notificationHex(completion uint32, f *invocationpb.Failure) string {
	n := &protocolpb.Notification{Id: &protocolpb.Notification_CompletionId{CompletionId: completion}, Result: &protocolpb.Notification_Failure{Failure: &protocolpb.Failure{Code: f.Code, Message: f.Message}}}
	for _, h := range f.Metadata {
		n.GetFailure().Metadata = append(n.GetFailure().Metadata, &protocolpb.FailureMetadata{Key: h.Key, Value: h.Value})
	}
	raw, err := n.MarshalVT()
	if err != nil {
		panic(err)
	}
	return hex.EncodeToString(raw)
}

func TestOneWayCallHasNoSink(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	as := w.effects(id, sendTo(service("B"), 5, 1, w.now+700))
	inv := w.one(as, ActOutbox).Command.GetInvoke()
	if inv.Sink != nil || inv.ExecutionTimeMs != w.now+700 {
		t.Fatalf("%v", inv)
	}
	w.one(as, ActNotify)
}

func TestOutboxIsTruncatedFromTheHead(t *testing.T) {
	truncate := func(i uint64) *recordpb.Command {
		return &recordpb.Command{Kind: &recordpb.Command_TruncateOutbox{TruncateOutbox: &recordpb.TruncateOutbox{Index: i}}}
	}
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	for i := range 200 {
		w.effects(id, sendTo(service("B"), i, uint32(i+1), 0))
	}
	for _, step := range []struct{ upTo, left, head uint64 }{{3, 197, 4}, {2, 197, 4}, {150, 50, 151}, {1000, 0, 201}, {0, 0, 201}} {
		w.apply(truncate(step.upTo))
		if n := uint64(w.count(keyspace.TagOutbox)); n != step.left || w.m.counters.row.OutboxHead != step.head {
			t.Fatalf("after truncating %d: %d left, head %d; want %d, %d", step.upTo, n, w.m.counters.row.OutboxHead, step.left, step.head)
		}
	}
	if a := w.one(w.effects(id, sendTo(service("B"), 999, 999, 0)), ActOutbox); a.Index != 201 {
		t.Fatalf("index %d after truncation", a.Index)
	}
}

func stateEffects() (get func(c uint32, k string) *invocationpb.Effect, keys func(uint32) *invocationpb.Effect, set func(k, v string) *invocationpb.Effect, del func(string) *invocationpb.Effect, clear func() *invocationpb.Effect) {
	get = func(c uint32, k string) *invocationpb.Effect {
		return entry(protocol.TypeGetLazyState, &protocolpb.GetLazyStateCommand{Key: []byte(k), ResultCompletionId: c})
	}
	keys = func(c uint32) *invocationpb.Effect {
		return entry(protocol.TypeGetLazyStateKeys, &protocolpb.GetLazyStateKeysCommand{ResultCompletionId: c})
	}
	set = func(k, v string) *invocationpb.Effect {
		return entry(protocol.TypeSetState, &protocolpb.SetStateCommand{Key: []byte(k), Value: &protocolpb.Value{Content: []byte(v)}})
	}
	del = func(k string) *invocationpb.Effect {
		return entry(protocol.TypeClearState, &protocolpb.ClearStateCommand{Key: []byte(k)})
	}
	clear = func() *invocationpb.Effect {
		return entry(protocol.TypeClearAllState, &protocolpb.ClearAllStateCommand{})
	}
	return
}

func TestStateOfAnObject(t *testing.T) {
	get, keys, set, del, clear := stateEffects()
	w := newWorld(t)
	id := w.started(request(objectTarget("k", schema.Exclusive), 1))
	w.wantNotified(w.effects(id, get(1, "a")), protocol.TypeGetLazyStateCompletion, "08012200")
	w.effects(id, set("b", ""), set("a", "1"), set("ab", "2"), set("\xff", "3"))
	w.wantNotified(w.effects(id, get(2, "a")), protocol.TypeGetLazyStateCompletion, "08022a030a0131")
	w.wantNotified(w.effects(id, get(3, "b")), protocol.TypeGetLazyStateCompletion, "08032a00") // empty is a value
	w.wantNotified(w.effects(id, keys(4)), protocol.TypeGetLazyStateKeysCompletion, "0804"+"8a010d"+"0a0161"+"0a026162"+"0a0162"+"0a01ff")
	w.effects(id, del("a"), del("unknown"))
	w.wantNotified(w.effects(id, get(5, "a")), protocol.TypeGetLazyStateCompletion, "08052200")
	// Another object of the same service, whose key begins alike, has a state of its own.
	other := w.started(request(objectTarget("kk", schema.Exclusive), 2))
	w.effects(other, set("x", "y"))
	w.effects(id, clear())
	w.wantNotified(w.effects(id, keys(6)), protocol.TypeGetLazyStateKeysCompletion, "08068a0100")
	w.wantNotified(w.effects(other, get(1, "x")), protocol.TypeGetLazyStateCompletion, "08012a030a0179")
	// State changes when the command is stored and survives a kill.
	w.effects(id, set("left", "over"))
	w.apply(kill(id))
	reader := w.started(request(objectTarget("k", schema.Shared), 3))
	w.wantNotified(w.effects(reader, get(1, "left")), protocol.TypeGetLazyStateCompletion, "08012a060a046f766572")
}

func TestOnlyTheHolderWritesState(t *testing.T) {
	get, _, set, del, clear := stateEffects()
	w := newWorld(t)
	id := w.started(request(objectTarget("k", schema.Exclusive), 1))
	w.effects(id, set("a", "1"))
	for i, target := range []*invocationpb.Target{objectTarget("k", schema.Shared), service("Counter")} {
		r := w.started(request(target, 10+i))
		w.effects(r, set("a", "2"), del("a"), clear())
	}
	w.wantNotified(w.effects(id, get(1, "a")), protocol.TypeGetLazyStateCompletion, "08012a030a0131")
}

func TestClearAllOfManyKeys(t *testing.T) {
	_, keys, set, _, clear := stateEffects()
	w := newWorld(t)
	id := w.started(request(objectTarget("k", schema.Exclusive), 1))
	for i := range rangeDeleteFrom + 5 {
		w.effects(id, set(fmt.Sprint(i), "v"))
	}
	w.effects(id, clear())
	w.wantNotified(w.effects(id, keys(6)), protocol.TypeGetLazyStateKeysCompletion, "08068a0100")
	w.wantEmpty(keyspace.TagState)
}

func TestSignalsAndAwakeables(t *testing.T) {
	w := newWorld(t)
	target := w.started(request(service("T"), 1))
	sender := w.started(request(service("S"), 2))
	emit := func(e *invocationpb.Effect) []Action { return w.apply(w.one(w.effects(sender, e), ActOutbox).Command) }
	signal := func(id *protocolpb.SendSignalCommand) *invocationpb.Effect {
		id.TargetInvocationId = target.String()
		return entry(protocol.TypeSendSignal, id)
	}
	w.wantNotified(emit(signal(&protocolpb.SendSignalCommand{
		SignalId: &protocolpb.SendSignalCommand_Idx{Idx: 17}, Result: &protocolpb.SendSignalCommand_Value{Value: &protocolpb.Value{Content: []byte("v")}},
	})), protocol.TypeSignal, "10112a030a0176")
	w.wantNotified(emit(signal(&protocolpb.SendSignalCommand{
		SignalId: &protocolpb.SendSignalCommand_Name{Name: "go"}, Result: &protocolpb.SendSignalCommand_Void{Void: &protocolpb.Void{}},
	})), protocol.TypeSignal, "1a02676f2200")
	awakeable := ident.Awakeable{Invocation: target, Signal: 18}
	w.wantNotified(emit(entry(protocol.TypeCompleteAwakeable, &protocolpb.CompleteAwakeableCommand{
		AwakeableId: awakeable.String(), Result: &protocolpb.CompleteAwakeableCommand_Failure{Failure: &protocolpb.Failure{Code: 500, Message: "x"}},
	})), protocol.TypeSignal, "1012320608f403120178")
	awakeable.Old = true
	w.none(w.effects(sender, entry(protocol.TypeCompleteAwakeable, &protocolpb.CompleteAwakeableCommand{
		AwakeableId: awakeable.String(), Result: &protocolpb.CompleteAwakeableCommand_Value{Value: &protocolpb.Value{}},
	})), ActOutbox)
	// Signal 1 is a request to cancel.
	w.wantNotified(emit(signal(&protocolpb.SendSignalCommand{
		SignalId: &protocolpb.SendSignalCommand_Idx{Idx: 1}, Result: &protocolpb.SendSignalCommand_Void{Void: &protocolpb.Void{}},
	})), protocol.TypeSignal, "10012200")
	// From a request, with an answer; twice is journalled twice.
	cmd := &recordpb.Command{RequestId: requestID(8), Kind: &recordpb.Command_Signal{Signal: &recordpb.Signal{InvocationId: target[:], Id: &recordpb.Signal_Index{Index: 17}, Result: success([]byte("again"))}}}
	for range 2 {
		as := w.apply(cmd)
		w.wantReply(as, recordpb.Reply_OK)
		w.one(as, ActNotify)
	}
	if n := len(w.journal(target)); n != 7 {
		t.Fatalf("journal of %d entries", n)
	}
	// Targets that are not in flight drop it, silently.
	w.effects(target, output("x"), end())
	w.wantReply(w.apply(cmd), recordpb.Reply_OK)
	w.wantEmpty(keyspace.TagAwaited)
}

func TestAttachAndGetOutput(t *testing.T) {
	w := newWorld(t)
	target := w.started(retained(request(service("T"), 1), 10_000, 0))
	asker := w.started(request(service("S"), 2))
	attach := func(c uint32, id ident.InvocationID) *invocationpb.Effect {
		return entry(protocol.TypeAttachInvocation, &protocolpb.AttachInvocationCommand{ResultCompletionId: c, Target: &protocolpb.AttachInvocationCommand_InvocationId{InvocationId: id.String()}})
	}
	getOutput := func(c uint32, id ident.InvocationID) *invocationpb.Effect {
		return entry(protocol.TypeGetInvocationOutput, &protocolpb.GetInvocationOutputCommand{ResultCompletionId: c, Target: &protocolpb.GetInvocationOutputCommand_InvocationId{InvocationId: id.String()}})
	}
	// there and back: the question to the target's partition, the answer to the asker's.
	ask := func(e *invocationpb.Effect) []Action { return w.apply(w.one(w.effects(asker, e), ActOutbox).Command) }
	back := func(as []Action) []Action { return w.apply(w.one(as, ActOutbox).Command) }
	w.none(ask(attach(1, target)), ActOutbox)
	w.wantNotified(back(ask(getOutput(2, target))), protocol.TypeGetInvocationOutputCompletion, "08022200")
	unknown := idFor(service("U"), 9)
	w.wantNotified(back(ask(attach(3, unknown))), protocol.TypeAttachInvocationCompletion, notificationHex(3, &invocationpb.Failure{Code: 404, Message: "not found"}))
	w.wantNotified(back(ask(getOutput(4, unknown))), protocol.TypeGetInvocationOutputCompletion, notificationHex(4, &invocationpb.Failure{Code: 404, Message: "not found"}))
	as := w.effects(target, output("r"), end())
	w.one(as, ActReply) // the ingress request that started it
	w.wantNotified(back(as), protocol.TypeAttachInvocationCompletion, "08012a030a0172")
	w.wantNotified(back(ask(attach(5, target))), protocol.TypeAttachInvocationCompletion, "08052a030a0172")
	w.wantNotified(back(ask(getOutput(6, target))), protocol.TypeGetInvocationOutputCompletion, "08062a030a0172")

	request := func(kind string, id ident.InvocationID) *recordpb.Reply {
		s := &invocationpb.Sink{RequestId: requestID(5)}
		c := &recordpb.Command{Kind: &recordpb.Command_Attach{Attach: &recordpb.Attach{InvocationId: id[:], Sink: s}}}
		if kind == "output" {
			c.Kind = &recordpb.Command_GetOutput{GetOutput: &recordpb.GetOutput{InvocationId: id[:], Sink: s}}
		}
		as := ofKind(w.apply(c), ActReply)
		if len(as) == 0 {
			return nil
		}
		return as[0].Reply
	}
	if r := request("attach", target); string(r.Result.GetSuccess()) != "r" || r.ExpiresAtMs != w.now+10_000 {
		t.Fatalf("%v", r)
	}
	if r := request("output", asker); r.Status != recordpb.Reply_NOT_READY || r.Target.GetService() != "S" {
		t.Fatalf("%v", r)
	}
	if r := request("attach", asker); r != nil {
		t.Fatalf("an attach to a running invocation is answered: %v", r)
	}
	if r := request("attach", unknown); r.Status != recordpb.Reply_NOT_FOUND {
		t.Fatalf("%v", r)
	}
	if rs := ofKind(w.effects(asker, output("late"), end()), ActReply); len(rs) != 2 || rs[1].RequestID != [16]byte(requestID(5)) {
		t.Fatalf("%v", rs)
	}
}

// A completion id that an earlier command has used would give one command the other's result, and leave the timer of a sleep
// behind. Such an invocation fails, and leaves nothing. Ids that only come out of order are fine.
func TestCompletionIDsAreUsedOnce(t *testing.T) {
	get, keys, _, _, _ := stateEffects()
	sleep := func(c uint32) *invocationpb.Effect { return sleepUntil(c, 1<<40) }
	run := func(c uint32) *invocationpb.Effect {
		return entry(protocol.TypeRun, &protocolpb.RunCommand{ResultCompletionId: c})
	}
	call := func(id, result uint32) *invocationpb.Effect { return callTo(service("B"), 0, id, result) }
	for name, c := range map[string]struct {
		effects []*invocationpb.Effect
		reused  uint32 // 0: none
	}{
		"sleep, sleep":         {[]*invocationpb.Effect{sleep(1), sleepUntil(1, 1<<41)}, 1},
		"sleep, call":          {[]*invocationpb.Effect{sleep(1), sleep(2), call(3, 2)}, 2},
		"call, sleep":          {[]*invocationpb.Effect{call(1, 2), sleep(1)}, 1},
		"answered, sleep":      {[]*invocationpb.Effect{get(1, "a"), sleep(1)}, 1},
		"answered, answered":   {[]*invocationpb.Effect{get(1, "a"), keys(1)}, 1},
		"sleep, run":           {[]*invocationpb.Effect{sleep(7), run(7)}, 7},
		"run completed, sleep": {[]*invocationpb.Effect{run(1), runResult(1, success([]byte("x"))), sleep(1)}, 1},
		"call with one id":     {[]*invocationpb.Effect{call(1, 1)}, 1},
		"out of order":         {[]*invocationpb.Effect{sleep(9), call(8, 3), get(2, "a"), run(1), sleep(12)}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			id := w.started(retained(request(objectTarget("k", schema.Exclusive), 1), 1000, 0))
			w.effects(id, c.effects...)
			if c.reused == 0 {
				w.wantStatus(id, storepb.Invocation_INVOKED)
				return
			}
			w.wantStatus(id, storepb.Invocation_COMPLETED)
			want := fmt.Sprintf("two commands have the completion id %d", c.reused)
			if f := w.row(id).Failure; f.GetCode() != 500 || !strings.HasPrefix(f.Message, want) {
				t.Errorf("failed with %v, want %q", f, want)
			}
			w.wantEmpty(keyspace.TagTimer, keyspace.TagAwaited)
		})
	}
}

// However many wait for an invocation, and however often they ask, its status row stays small and each is answered once.
func TestManySinks(t *testing.T) {
	const many = 5 * sinksInRow
	for name, c := range map[string]struct {
		delay uint64
		end   func(w *world, id ident.InvocationID) []Action
	}{
		"ends":    {0, func(w *world, id ident.InvocationID) []Action { return w.effects(id, output("x"), end()) }},
		"removed": {1000, func(w *world, id ident.InvocationID) []Action { return w.apply(kill(id)) }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			x := request(service("A"), 1)
			x.ExecutionTimeMs = w.now + c.delay
			w.invoke(x)
			id := ident.InvocationID(x.Id)
			attach := func(s *invocationpb.Sink) {
				w.apply(&recordpb.Command{Kind: &recordpb.Command_Attach{Attach: &recordpb.Attach{InvocationId: id[:], Sink: s}}})
			}
			for i := range many {
				caller := idFor(service("B"), i)
				for range 2 {
					attach(&invocationpb.Sink{RequestId: requestID(100 + i)})
					attach(&invocationpb.Sink{Caller: caller[:], CompletionId: 7, Life: uint64(i)})
				}
			}
			if n := w.row(id).SizeVT(); n > 64*sinksInRow {
				t.Errorf("the status row has %d bytes", n)
			}
			if n := w.count(keyspace.TagSink); n != 1+2*many-sinksInRow || n != int(w.row(id).MoreSinks) {
				t.Errorf("%d sinks have rows of their own, the status row says %d", n, w.row(id).MoreSinks)
			}
			as := c.end(w, id)
			requests, callers := map[[16]byte]bool{}, map[string]bool{}
			for _, a := range ofKind(as, ActReply) {
				if a.Reply.Result != nil {
					requests[a.RequestID] = true
				}
			}
			for _, a := range ofKind(as, ActOutbox) {
				if r := a.Command.GetResponse(); r.GetCompletionId() == 7 {
					callers[string(r.InvocationId)] = true
				}
			}
			if len(requests) != many+1 || len(callers) != many {
				t.Errorf("%d requests and %d callers were answered, want %d and %d", len(requests), len(callers), many+1, many)
			}
			w.wantEmpty(invocationTables...)
		})
	}
}

func TestAttachResolvesTargets(t *testing.T) {
	ik, key := "ik-1", "k"
	cases := []struct {
		name string
		cmd  *protocolpb.AttachInvocationCommand
		want ident.InvocationID
	}{
		{"service", &protocolpb.AttachInvocationCommand{Target: &protocolpb.AttachInvocationCommand_IdempotentRequestTarget{IdempotentRequestTarget: &protocolpb.IdempotentRequestTarget{ServiceName: "S", HandlerName: "h", IdempotencyKey: ik}}},
			ident.Invocation(ident.Target{Service: "S", Handler: "h", IdempotencyKey: &ik}, ident.Random{})},
		{"object", &protocolpb.AttachInvocationCommand{Target: &protocolpb.AttachInvocationCommand_IdempotentRequestTarget{IdempotentRequestTarget: &protocolpb.IdempotentRequestTarget{ServiceName: "O", ServiceKey: &key, HandlerName: "h", IdempotencyKey: ik}}},
			ident.Invocation(ident.Target{Service: "O", Handler: "h", Key: key, Keyed: true, IdempotencyKey: &ik}, ident.Random{})},
		{"workflow", &protocolpb.AttachInvocationCommand{Target: &protocolpb.AttachInvocationCommand_WorkflowTarget{WorkflowTarget: &protocolpb.WorkflowTarget{WorkflowName: "W", WorkflowKey: key}}},
			ident.Invocation(ident.Target{Service: "W", Key: key, Keyed: true, WorkflowRun: true}, ident.Random{})},
	}
	for _, c := range cases {
		w := newWorld(t)
		id := w.started(request(service("S"), 2))
		c.cmd.ResultCompletionId = 1
		if m := w.one(w.effects(id, entry(protocol.TypeAttachInvocation, c.cmd)), ActOutbox); string(m.Command.GetAttach().InvocationId) != string(c.want[:]) {
			t.Errorf("%s resolves to %x, want %x", c.name, m.Command.GetAttach().InvocationId, c.want)
		}
	}
}

func TestEffectsAreFencedByTheIncarnation(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	first := w.row(id).Incarnation
	w.effects(id, sleepUntil(1, w.now+10), suspended(&invocationpb.Future{Completions: []uint32{1}}))
	as := w.effectsOf(id, first, output("stale"))
	w.one(as, ActApplied)
	w.one(as, ActAbort) // nothing runs any more
	w.now += 10
	if a := w.one(w.apply(fire(keyspace.TimerKey{FireAtMs: w.now, Kind: keyspace.TimerSleep, ID: id, CompletionID: 1})), ActInvoke); a.Incarnation <= first {
		t.Fatalf("incarnation %d after %d", a.Incarnation, first)
	}
	as = w.effectsOf(id, first, output("stale"), end())
	w.one(as, ActApplied)
	w.none(as, ActAbort) // the new attempt must not be hit
	if n := len(w.journal(id)); n != 3 {
		t.Fatalf("journal of %d entries", n)
	}
}

func TestPinnedDeploymentStays(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	w.effects(id, pinned(6))
	w.effects(id, &invocationpb.Effect{Kind: &invocationpb.Effect_Pinned{Pinned: &invocationpb.Effect_PinnedDeployment{DeploymentId: []byte("deployment-00002"), ProtocolVersion: 5}}})
	if inv := w.row(id); string(inv.DeploymentId) != "deployment-00001" || inv.ProtocolVersion != 6 {
		t.Fatalf("pinned to %s, version %d", inv.DeploymentId, inv.ProtocolVersion)
	}
}

func TestTransientErrorsAreNotedOnceInARow(t *testing.T) {
	w := newWorld(t)
	id := w.started(retained(request(service("A"), 1), 1000, 1000))
	modified := w.row(id).ModifiedAtMs
	fail := func(msg string) *invocationpb.Effect {
		return &invocationpb.Effect{Kind: &invocationpb.Effect_AttemptFailed_{AttemptFailed: &invocationpb.Effect_AttemptFailed{Code: 500, Message: msg, DocCode: "RT0007", RelatedCommandIndex: ptr(uint32(1))}}}
	}
	w.now += 10
	for _, msg := range []string{"a", "a", "b", "a", "a"} {
		w.effects(id, fail(msg))
	}
	if n := w.count(keyspace.TagEvent); n != 3 {
		t.Fatalf("%d events, want a, b, a", n)
	}
	if w.row(id).ModifiedAtMs != modified {
		t.Fatal("an error counts as progress")
	}
	var e storepb.Event
	if _, err := read(w.txn, keyspace.AppendEvent(nil, &id, 1), &e); err != nil || e.GetTransientError().Message != "b" || e.AppendedAtMs != w.now || e.AfterEntry != 0 {
		t.Fatalf("event %v, %v", &e, err)
	}
	w.effects(id, output("x"), end())
	w.apply(purge(id, true, false))
	w.wantEmpty(keyspace.TagEvent)
}

func TestEventsAreBounded(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	for i := range maxEvents + 20 {
		w.effects(id, &invocationpb.Effect{Kind: &invocationpb.Effect_AttemptFailed_{AttemptFailed: &invocationpb.Effect_AttemptFailed{Message: fmt.Sprint(i)}}})
	}
	if n := w.count(keyspace.TagEvent); n != maxEvents {
		t.Fatalf("%d events are kept", n)
	}
	var e storepb.Event
	if ok, err := read(w.txn, keyspace.AppendEvent(nil, &id, maxEvents+19), &e); !ok || err != nil || e.GetTransientError().Message != fmt.Sprint(maxEvents+19) {
		t.Fatalf("the newest is %v, %v", &e, err)
	}
	// A text may be as long as a message of the service protocol. Its beginning is kept.
	long := strings.Repeat("é", maxEventText)
	f := &invocationpb.Effect_AttemptFailed{Message: long, Stacktrace: "x" + long, RelatedCommandName: &long}
	w.effects(id, &invocationpb.Effect{Kind: &invocationpb.Effect_AttemptFailed_{AttemptFailed: f}})
	w.effects(id, &invocationpb.Effect{Kind: &invocationpb.Effect_AttemptFailed_{AttemptFailed: f}}) // the same again
	w.effects(id, &invocationpb.Effect{Kind: &invocationpb.Effect_Paused_{Paused: &invocationpb.Effect_Paused{LastFailure: f}}})
	if n := w.row(id).Events; n != maxEvents+22 {
		t.Fatalf("%d events", n)
	}
	for i, get := range []func() *invocationpb.Effect_AttemptFailed{e.GetTransientError, func() *invocationpb.Effect_AttemptFailed { return e.GetPaused().GetLastFailure() }} {
		key := keyspace.AppendEvent(nil, &id, maxEvents+20+uint32(i))
		e.Reset()
		if ok, err := read(w.txn, key, &e); !ok || err != nil {
			t.Fatal(ok, err)
		}
		got, want := get(), strings.Repeat("é", maxEventText/2)+"…"
		if got.Message != want || got.GetRelatedCommandName() != want || got.Stacktrace != "x"+strings.Repeat("é", maxEventText/2-1)+"…" {
			t.Errorf("event %d has texts of %d, %d and %d bytes", i, len(got.Message), len(got.Stacktrace), len(got.GetRelatedCommandName()))
		}
	}
	w.apply(kill(id))
	w.wantEmpty(invocationTables...)
}

// A name that is too long to be part of a row's key ends the invocation with a failure that says so; the longest one
// that is allowed works.
func TestLongNames(t *testing.T) {
	call := func(n, idempotency int, oneWay bool) *invocationpb.Effect {
		k := strings.Repeat("i", idempotency)
		c := entry(protocol.TypeCall, &protocolpb.CallCommand{ServiceName: "Counter", HandlerName: "add", Key: strings.Repeat("k", n), IdempotencyKey: &k, InvocationIdNotificationIdx: 1, ResultCompletionId: 2})
		if oneWay {
			c = entry(protocol.TypeOneWayCall, &protocolpb.OneWayCallCommand{ServiceName: "Counter", HandlerName: "add", Key: strings.Repeat("k", n), IdempotencyKey: &k, InvocationIdNotificationIdx: 1})
		}
		c.GetCommand().Callee = calleeFor(objectTarget(strings.Repeat("k", n), schema.Exclusive), 1)
		return c
	}
	get, _, set, del, _ := stateEffects()
	name := func(n int) string { return strings.Repeat("n", n) }
	object, flow := objectTarget("k", schema.Exclusive), workflowTarget("k", schema.WorkflowRun)
	for what, c := range map[string]struct {
		target *invocationpb.Target
		effect func(n int) *invocationpb.Effect
	}{
		"the key of a state: get":                {object, func(n int) *invocationpb.Effect { return get(1, name(n)) }},
		"the key of a state: set":                {object, func(n int) *invocationpb.Effect { return set(name(n), "v") }},
		"the key of a state: clear":              {object, func(n int) *invocationpb.Effect { return del(name(n)) }},
		"the name of a promise: get":             {flow, func(n int) *invocationpb.Effect { return getPromise(1, name(n)) }},
		"the name of a promise: peek":            {flow, func(n int) *invocationpb.Effect { return peekPromise(1, name(n)) }},
		"the name of a promise: complete":        {flow, func(n int) *invocationpb.Effect { return resolvePromise(1, name(n), "v") }},
		"the key of a call":                      {object, func(n int) *invocationpb.Effect { return call(n, 1, false) }},
		"the idempotency key of a call":          {object, func(n int) *invocationpb.Effect { return call(1, n, false) }},
		"the key of a call: one-way":             {object, func(n int) *invocationpb.Effect { return call(n, 1, true) }},
		"the idempotency key of a call: one-way": {object, func(n int) *invocationpb.Effect { return call(1, n, true) }},
		"the name of a signal": {object, func(n int) *invocationpb.Effect {
			return entry(protocol.TypeSendSignal, &protocolpb.SendSignalCommand{TargetInvocationId: idFor(object, 9).String(), SignalId: &protocolpb.SendSignalCommand_Name{Name: name(n)}, Result: &protocolpb.SendSignalCommand_Void{Void: &protocolpb.Void{}}})
		}},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			id := w.started(request(c.target, 1))
			w.none(w.effects(id, c.effect(ident.MaxName)), ActReply)
			w.wantStatus(id, storepb.Invocation_INVOKED)
			w = newWorld(t)
			id = w.started(request(c.target, 1))
			f := w.one(w.effects(id, c.effect(ident.MaxName+1)), ActReply).Reply.Result.GetFailure()
			what, _, _ := strings.Cut(what, ":")
			if want := what + " is 65537 bytes long, at most 65536 are allowed"; f.GetCode() != 500 || f.GetMessage() != want {
				t.Fatalf("failure %v, want %q", f, want)
			}
			w.wantStatus(id, storepb.Invocation_FREE)
		})
	}
}
