package fsm

import (
	"testing"

	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
)

func outputOf(s string) *protocolpb.OutputCommand {
	return &protocolpb.OutputCommand{Result: &protocolpb.OutputCommand_Value{Value: &protocolpb.Value{Content: []byte(s)}}}
}

func TestServiceCallIsTwoCommands(t *testing.T) {
	w := newWorld(t)
	x := request(service("Greeter"), 1)
	a := w.one(w.invoke(x), ActInvoke)
	if a.Fresh == nil || string(a.Fresh.Invocation.Argument) != "arg-1" {
		t.Fatalf("no fresh journal: %+v", a)
	}
	id := a.ID
	w.wantStatus(id, storepb.Invocation_INVOKED)
	as := w.effects(id, pinned(6), output("hello"), end())
	if r := w.one(as, ActReply); string(r.Reply.Result.GetSuccess()) != "hello" || string(r.RequestID[:]) != string(requestID(1)) {
		t.Fatalf("reply %+v", r)
	}
	w.one(as, ActApplied)
	w.none(as, ActAbort)
	w.wantEmpty(keyspace.TagInvocation, keyspace.TagJournal, keyspace.TagExpiry, keyspace.TagAwaited)
}
