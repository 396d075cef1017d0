package fsm

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// queue invokes n exclusive handlers of one object; the first runs.
func (w *world) queue(key string, n int) (ids []ident.InvocationID) {
	w.t.Helper()
	for i := range n {
		x := request(objectTarget(key, schema.Exclusive), i+1)
		w.invoke(x)
		ids = append(ids, ident.InvocationID(x.Id))
	}
	return ids
}

func TestExclusiveHandlersOfAnObjectRunInOrder(t *testing.T) {
	w := newWorld(t)
	ids := w.queue("k", 3)
	w.wantStatus(ids[0], storepb.Invocation_INVOKED)
	w.wantStatus(ids[1], storepb.Invocation_INBOXED)
	w.wantStatus(ids[2], storepb.Invocation_INBOXED)
	other := w.started(request(objectTarget("l", schema.Exclusive), 9))
	shared := w.started(request(objectTarget("k", schema.Shared), 10))
	w.effects(shared, output("s"), end())
	w.wantStatus(ids[1], storepb.Invocation_INBOXED)
	for i := range ids {
		as := w.effects(ids[i], output("x"), end())
		if i < 2 {
			if a := w.one(as, ActInvoke); a.ID != ids[i+1] {
				t.Fatalf("%s runs after %d, want %s", a.ID, i, ids[i+1])
			}
		}
	}
	w.effects(other, output("x"), end())
	w.wantEmpty(keyspace.TagLock, keyspace.TagInbox)
	w.wantEmpty(invocationTables...)
}

// Every way to end releases the lock.
func TestLockIsReleasedOnEveryPath(t *testing.T) {
	ends := map[string]func(w *world, id ident.InvocationID) []Action{
		"end":    func(w *world, id ident.InvocationID) []Action { return w.effects(id, output("x"), end()) },
		"no out": func(w *world, id ident.InvocationID) []Action { return w.effects(id, end()) },
		"failed": func(w *world, id ident.InvocationID) []Action {
			return w.effects(id, &invocationpb.Effect{Kind: &invocationpb.Effect_Failed_{Failed: &invocationpb.Effect_Failed{}}})
		},
		"bad command": func(w *world, id ident.InvocationID) []Action {
			return w.effects(id, rawEntry(protocol.TypeSetState, nil))
		},
		"kill": func(w *world, id ident.InvocationID) []Action { return w.apply(kill(id)) },
		"kill suspended": func(w *world, id ident.InvocationID) []Action {
			w.effects(id, sleepUntil(1, w.now+100), suspended(node(unknown, 1)))
			return w.apply(kill(id))
		},
		"kill paused": func(w *world, id ident.InvocationID) []Action {
			w.effects(id, paused())
			return w.apply(kill(id))
		},
	}
	for name, f := range ends {
		for _, retention := range []uint64{0, 1000} {
			t.Run(fmt.Sprintf("%s/%d", name, retention), func(t *testing.T) {
				w := newWorld(t)
				x := retained(request(objectTarget("k", schema.Exclusive), 1), retention, retention)
				id := w.started(x)
				next := request(objectTarget("k", schema.Exclusive), 2)
				w.invoke(next)
				as := f(w, id)
				if a := w.one(as, ActInvoke); a.ID != ident.InvocationID(next.Id) {
					t.Fatalf("%+v", a)
				}
				w.effects(ident.InvocationID(next.Id), output("x"), end())
				w.wantEmpty(keyspace.TagLock, keyspace.TagInbox, keyspace.TagTimer)
			})
		}
	}
}

func paused() *invocationpb.Effect {
	return &invocationpb.Effect{Kind: &invocationpb.Effect_Paused_{Paused: &invocationpb.Effect_Paused{}}}
}

func TestCancelAndKillOfWhatHasNotBegun(t *testing.T) {
	for _, verb := range []struct {
		cmd  func(ident.InvocationID) *recordpb.Command
		text string
	}{{cancel, "canceled"}, {kill, "killed"}} {
		w := newWorld(t)
		ids := w.queue("k", 4)
		as := w.apply(verb.cmd(ids[2]))
		rs := ofKind(as, ActReply)
		if len(rs) != 2 || rs[0].Reply.Status != recordpb.Reply_OK {
			t.Fatalf("replies %+v", rs)
		}
		if f := rs[1].Reply.Result.GetFailure(); f.GetCode() != 409 || f.Message != verb.text || rs[1].RequestID != [16]byte(requestID(3)) {
			t.Fatalf("sink got %+v", rs[1])
		}
		w.wantStatus(ids[2], storepb.Invocation_FREE)
		w.wantReply(w.apply(verb.cmd(ids[2])), recordpb.Reply_NOT_FOUND)
		w.apply(verb.cmd(ids[1])) // the head of the inbox
		if a := w.one(w.effects(ids[0], output("x"), end()), ActInvoke); a.ID != ids[3] {
			t.Fatalf("%+v", a)
		}
		w.apply(verb.cmd(ids[3]))
		if verb.text == "canceled" {
			w.effects(ids[3], output("x"), end())
		}
		w.wantEmpty(keyspace.TagLock, keyspace.TagInbox)
		w.wantEmpty(invocationTables...)

		x := request(objectTarget("k", schema.Exclusive), 9)
		x.ExecutionTimeMs = w.now + 1000
		timer := w.one(w.invoke(x), ActTimer).Timer
		if a := w.one(w.apply(verb.cmd(ident.InvocationID(x.Id))), ActTimerDeleted); a.Timer != timer {
			t.Fatalf("%+v", a)
		}
		w.wantEmpty(invocationTables...)
	}
}

func patch(key string, version *string, state map[string][]byte) *recordpb.Command {
	return &recordpb.Command{RequestId: requestID(5), Kind: &recordpb.Command_PatchState{PatchState: &recordpb.PatchState{Service: "Counter", Key: key, Version: version, State: state}}}
}

func (w *world) state(key string) map[string]string {
	w.t.Helper()
	o := keyspace.Object{Partition: ident.KeyPartition(key), Service: "Counter", Key: key}
	prefix := keyspace.AppendStatePrefix(nil, &o)
	got := map[string]string{}
	if err := w.txn.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(k, v []byte) (bool, error) {
		got[string(k[len(prefix):])] = string(v)
		return true, nil
	}); err != nil {
		w.t.Fatal(err)
	}
	return got
}

func (w *world) wantState(key string, want map[string]string) {
	w.t.Helper()
	a, _ := json.Marshal(w.state(key))
	b, _ := json.Marshal(want)
	if string(a) != string(b) {
		w.t.Fatalf("state of %s is %s, want %s", key, a, b)
	}
}

func TestPatchStateReplacesAllOfIt(t *testing.T) {
	w := newWorld(t)
	w.wantReply(w.apply(patch("k", nil, map[string][]byte{"count": []byte("15"), "x": []byte("y")})), recordpb.Reply_ACCEPTED)
	w.wantState("k", map[string]string{"count": "15", "x": "y"})
	w.apply(patch("k", nil, map[string][]byte{"count": []byte("15")}))
	w.wantState("k", map[string]string{"count": "15"})
	w.apply(patch("k", ptr("S6MyUcVGhqv_Nm54F5guL_XKfJMeFCOXIi7QEc5GZZA"), map[string][]byte{"no": nil})) // that of count=5
	w.wantState("k", map[string]string{"count": "15"})
	w.apply(patch("k", ptr("ki91e9vML3Nwsq0IRR9YTEOyR8J64dAZCY7XWkdMCFs"), map[string][]byte{"name": []byte("bob")}))
	w.wantState("k", map[string]string{"name": "bob"})
	w.apply(patch("k", ptr("tDqA04Lj3_qJ-PgNPTecXDGZgpwy6jm2Ni2BYqJIthM"), nil))
	w.wantState("k", map[string]string{})
}

func TestPatchStateWaitsForItsTurn(t *testing.T) {
	_, _, set, _, _ := stateEffects()
	w := newWorld(t)
	ids := w.queue("k", 1)
	w.effects(ids[0], set("count", "5"))
	w.wantReply(w.apply(patch("k", ptr("S6MyUcVGhqv_Nm54F5guL_XKfJMeFCOXIi7QEc5GZZA"), map[string][]byte{"count": []byte("15")})), recordpb.Reply_ACCEPTED)
	w.apply(patch("k", ptr("S6MyUcVGhqv_Nm54F5guL_XKfJMeFCOXIi7QEc5GZZA"), map[string][]byte{"late": nil})) // fits now, not then
	w.wantState("k", map[string]string{"count": "5"})
	next := request(objectTarget("k", schema.Exclusive), 2)
	w.invoke(next)
	if a := w.one(w.effects(ids[0], output("x"), end()), ActInvoke); a.ID != ident.InvocationID(next.Id) {
		t.Fatalf("%+v", a)
	}
	w.wantState("k", map[string]string{"count": "15"})
	w.apply(patch("k", nil, nil))
	w.effects(ident.InvocationID(next.Id), output("x"), end())
	w.wantState("k", map[string]string{})
	w.wantEmpty(keyspace.TagLock, keyspace.TagInbox)
}

func TestPatchOfAnImpossibleServiceIsDropped(t *testing.T) {
	w := newWorld(t)
	c := patch("k", nil, map[string][]byte{"a": nil})
	c.GetPatchState().Service = string(make([]byte, 1<<16))
	w.apply(c)
	w.wantEmpty(keyspace.TagState)
}

func TestScheduledExclusiveInvocationQueuesWhenDue(t *testing.T) {
	w := newWorld(t)
	late := request(objectTarget("k", schema.Exclusive), 7)
	late.ExecutionTimeMs = w.now + 10
	timer := w.one(w.invoke(late), ActTimer).Timer
	ids := w.queue("k", 1)
	w.now += 10
	w.none(w.apply(fire(timer)), ActInvoke)
	w.wantStatus(ident.InvocationID(late.Id), storepb.Invocation_INBOXED)
	if a := w.one(w.effects(ids[0], output("x"), end()), ActInvoke); a.ID != ident.InvocationID(late.Id) {
		t.Fatalf("%+v", a)
	}
}

// A row that cannot be read is told by its key and as corrupt: that is no fault of the command that meets it.
func TestCorruptInboxAndPromise(t *testing.T) {
	w := newWorld(t)
	holder := w.inStatus(storepb.Invocation_INVOKED)
	w.invoke(request(objectTarget("k", schema.Exclusive), 2))
	w.damage(keyspace.TagInbox, []byte{0xff})
	w.wantCorrupt(kill(holder))

	w = newWorld(t)
	waits := w.started(request(workflowTarget("k", schema.Shared), 1))
	w.effects(waits, getPromise(1, "p"))
	raw, err := (&storepb.Promise{Sinks: []*invocationpb.Sink{{Caller: []byte("short")}}}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	w.damage(keyspace.TagPromise, raw)
	w.wantCorrupt(&recordpb.Command{Kind: &recordpb.Command_InvokerEffects{InvokerEffects: &recordpb.InvokerEffects{
		InvocationId: waits[:], Incarnation: w.row(waits).Incarnation, Effects: []*invocationpb.Effect{resolvePromise(2, "p", "v")},
	}}})
}

// damage replaces the values of a table.
func (w *world) damage(tag byte, value []byte) {
	for k := range w.txn.rows {
		if k[0] == tag {
			w.txn.rows[k] = value
		}
	}
}

func (w *world) wantCorrupt(c *recordpb.Command) {
	w.t.Helper()
	if err := w.m.Apply(w.txn, w.lsn+1, w.now, c, &w.out); !errors.Is(err, keyspace.ErrCorrupt) {
		w.t.Errorf("%v, want %v", err, keyspace.ErrCorrupt)
	}
}
