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

func getPromise(c uint32, key string) *invocationpb.Effect {
	return entry(protocol.TypeGetPromise, &protocolpb.GetPromiseCommand{Key: key, ResultCompletionId: c})
}

func peekPromise(c uint32, key string) *invocationpb.Effect {
	return entry(protocol.TypePeekPromise, &protocolpb.PeekPromiseCommand{Key: key, ResultCompletionId: c})
}

func resolvePromise(c uint32, key, value string) *invocationpb.Effect {
	return entry(protocol.TypeCompletePromise, &protocolpb.CompletePromiseCommand{Key: key, ResultCompletionId: c, Completion: &protocolpb.CompletePromiseCommand_CompletionValue{CompletionValue: &protocolpb.Value{Content: []byte(value)}}})
}

func TestWorkflowRunsOncePerKey(t *testing.T) {
	w := newWorld(t)
	run := workflowTarget("k", schema.WorkflowRun)
	x := retained(request(run, 1), 1000, 1000)
	id := w.started(x)
	again := request(run, 1)
	again.RequestId, again.Sink = requestID(2), &invocationpb.Sink{RequestId: requestID(2)}
	conflict := func() {
		t.Helper()
		f := w.one(w.invoke(again), ActReply).Reply.Result.GetFailure()
		if f.GetCode() != 409 || f.Message != "the workflow method was already invoked" {
			t.Fatalf("failure %v", f)
		}
	}
	conflict()
	// A caller gets the same failure through its partition.
	caller := w.started(request(service("A"), 1))
	e := callTo(run, 0, 1, 2)
	as := w.apply(w.one(w.effects(caller, e), ActOutbox).Command)
	w.wantNotified(w.apply(w.one(as, ActOutbox).Command), protocol.TypeCallCompletion, notificationHex(2, &invocationpb.Failure{Code: 409, Message: "the workflow method was already invoked"}))
	send := request(run, 1)
	send.RequestId, send.Sink, send.SubmitRequestId = requestID(3), nil, requestID(3)
	w.wantReply(w.invoke(send), recordpb.Reply_PREVIOUSLY_ACCEPTED)
	w.none(w.invoke(x), ActReply) // the first request again: it waits
	if as := w.effects(id, output("r"), end()); len(ofKind(as, ActReply)) != 1 {
		t.Fatalf("%+v", as)
	}
	conflict()
	if r := w.one(w.invoke(x), ActReply).Reply; string(r.Result.GetSuccess()) != "r" {
		t.Fatalf("%v", r)
	}
}

func TestPromises(t *testing.T) {
	w := newWorld(t)
	run := w.started(retained(request(workflowTarget("k", schema.WorkflowRun), 1), 1000, 1000))
	shared := w.started(request(workflowTarget("k", schema.Shared), 2))
	w.none(w.effects(run, getPromise(1, "p")), ActNotify)
	w.wantNotified(w.effects(shared, peekPromise(1, "p")), protocol.TypePeekPromiseCompletion, "08012200")
	w.effects(run, suspended(node(unknown, 1)))
	as := w.effects(shared, getPromise(2, "p"), resolvePromise(3, "p", "v"))
	// The own answer comes first, then the listeners in their order.
	ns := ofKind(as, ActNotify)
	if len(ns) != 2 {
		t.Fatalf("%+v", as)
	}
	w.wantNotification(ns[0], protocol.TypeCompletePromiseCompletion, "08032200")
	w.wantNotification(ns[1], protocol.TypeGetPromiseCompletion, "08022a030a0176")
	if a := w.one(as, ActInvoke); a.ID != run {
		t.Fatalf("%+v", a)
	}
	w.wantNotified(w.effects(run, resolvePromise(2, "p", "w")), protocol.TypeCompletePromiseCompletion, notificationHex(2, &invocationpb.Failure{Code: 409, Message: "promise was already completed"}))
	w.wantNotified(w.effects(run, getPromise(3, "p")), protocol.TypeGetPromiseCompletion, "08032a030a0176")
	w.wantNotified(w.effects(run, entry(protocol.TypeCompletePromise, &protocolpb.CompletePromiseCommand{
		Key: "q", ResultCompletionId: 4, Completion: &protocolpb.CompletePromiseCommand_CompletionFailure{CompletionFailure: &protocolpb.Failure{Code: 400, Message: "pf"}},
	})), protocol.TypeCompletePromiseCompletion, "08042200")
	w.wantNotified(w.effects(run, peekPromise(5, "q")), protocol.TypePeekPromiseCompletion, "080532070890031202706"+"6")
	// Another key has other promises.
	other := w.started(request(workflowTarget("l", schema.Shared), 3))
	w.wantNotified(w.effects(other, peekPromise(1, "p")), protocol.TypePeekPromiseCompletion, "08012200")
}

// A listener that is gone must not keep the others from their result.
func TestPromiseWithAListenerThatIsGone(t *testing.T) {
	w := newWorld(t)
	x := request(workflowTarget("k", schema.Shared), 1)
	gone := w.started(x)
	w.effects(gone, getPromise(1, "p"))
	w.apply(kill(gone))
	w.started(x) // the id lives again, and waits for something else under the same number
	w.effects(gone, sleepUntil(1, w.now+100))
	waits := w.started(request(workflowTarget("k", schema.Shared), 2))
	w.effects(waits, getPromise(1, "p"))
	resolver := w.started(request(workflowTarget("k", schema.Shared), 3))
	ns := ofKind(w.effects(resolver, resolvePromise(1, "p", "v")), ActNotify)
	if len(ns) != 2 || ns[1].ID != waits {
		t.Fatalf("%+v", ns)
	}
}

// Who waits for a promise of a workflow that is forgotten is told so, instead of waiting for ever.
func TestForgottenPromises(t *testing.T) {
	w := newWorld(t)
	run := w.started(retained(request(workflowTarget("k", schema.WorkflowRun), 1), 1000, 1000))
	w.effects(run, getPromise(1, "p"))
	waits := w.started(request(workflowTarget("k", schema.Shared), 2))
	w.effects(waits, getPromise(1, "p"), getPromise(2, "q"), resolvePromise(3, "r", "v"), getPromise(4, "r"))
	w.effects(waits, suspended(node(unknown, 1)))
	other := w.started(request(workflowTarget("l", schema.Shared), 3))
	w.effects(other, getPromise(1, "p"))
	w.effects(run, output("x"), end())
	w.wantStatus(waits, storepb.Invocation_SUSPENDED)
	as := w.apply(purge(run, false, false))
	if a := w.one(as, ActInvoke); a.ID != waits {
		t.Fatalf("%+v", a)
	}
	w.wantNotification(w.one(as, ActNotify), protocol.TypeGetPromiseCompletion,
		notificationHex(2, &invocationpb.Failure{Code: 410, Message: "the workflow of the promise 'q' was forgotten"}))
	if n := w.count(keyspace.TagPromise); n != 1 {
		t.Fatalf("%d promises are left, want that of the other workflow", n)
	}
}

// However many wait for a promise, its row stays small and each is told.
func TestManyWaitForAPromise(t *testing.T) {
	const many = 5 * sinksInRow
	for name, c := range map[string]struct {
		end  *invocationpb.Effect
		raw  string
		left int // sinks of the other promise that have rows of their own
	}{
		"completed": {resolvePromise(1, "p", "v"), "08022a030a0176", many - sinksInRow},
		"forgotten": {end(), notificationHex(2, &invocationpb.Failure{Code: 410, Message: "the workflow of the promise 'p' was forgotten"}), 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			run := w.started(request(workflowTarget("k", schema.WorkflowRun), 1))
			for i := range many {
				waits := w.started(request(workflowTarget("k", schema.Shared), 2+i))
				w.effects(waits, getPromise(2, "p"), getPromise(3, "pp"), suspended(node(unknown, 2)))
			}
			var p storepb.Promise
			o := object(&run, workflowTarget("k", schema.WorkflowRun))
			if ok, err := read(w.txn, keyspace.AppendPromise(nil, &o, "p"), &p); !ok || err != nil || p.SizeVT() > 64*sinksInRow {
				t.Fatalf("%v, %v, the row has %d bytes", ok, err, p.SizeVT())
			}
			if n := w.count(keyspace.TagWaiting); n != 2*(many-sinksInRow) || int(p.MoreSinks) != n/2 {
				t.Fatalf("%d sinks have rows of their own, that of the promise says %d", n, p.MoreSinks)
			}
			told := map[ident.InvocationID]bool{}
			for _, a := range ofKind(w.effects(run, output("x"), c.end), ActInvoke) {
				told[a.ID] = true
				n := w.journal(a.ID)[3] // behind the input and two commands
				w.wantNotification(Action{Type: n.Type, Raw: n.Raw}, protocol.TypeGetPromiseCompletion, c.raw)
			}
			if len(told) != many {
				t.Fatalf("%d were told, want %d", len(told), many)
			}
			if n := w.count(keyspace.TagWaiting); n != c.left {
				t.Fatalf("%d sinks are left, want the %d of the other promise", n, c.left)
			}
		})
	}
}

func TestEndOfAWorkflowsRetentionClearsItsStateAndPromises(t *testing.T) {
	_, _, set, _, _ := stateEffects()
	for _, retention := range []uint64{0, 1000} {
		w := newWorld(t)
		id := w.started(retained(request(workflowTarget("k", schema.WorkflowRun), 1), retention, retention))
		other := w.started(request(workflowTarget("l", schema.WorkflowRun), 1))
		for _, r := range []ident.InvocationID{id, other} {
			w.effects(r, set("a", "1"), resolvePromise(1, "p", "v"))
		}
		w.effects(id, output("x"), end())
		if retention > 0 {
			w.wantStatus(id, storepb.Invocation_COMPLETED)
			reader := w.started(request(workflowTarget("k", schema.Shared), 2))
			get, _, _, _, _ := stateEffects()
			w.wantNotified(w.effects(reader, get(1, "a")), protocol.TypeGetLazyStateCompletion, "08012a030a0131")
			w.wantNotified(w.effects(reader, peekPromise(2, "p")), protocol.TypePeekPromiseCompletion, "08022a030a0176")
			w.now += 1000
			w.apply(purge(id, false, true))
		}
		if w.count(keyspace.TagState) != 1 || w.count(keyspace.TagPromise) != 1 {
			t.Fatalf("retention %d: %d state, %d promises left, want those of the other workflow", retention, w.count(keyspace.TagState), w.count(keyspace.TagPromise))
		}
	}
}
