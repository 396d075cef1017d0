package fsm

import (
	"testing"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

func pauseCommand(id ident.InvocationID) *recordpb.Command {
	return &recordpb.Command{RequestId: requestID(9), Kind: &recordpb.Command_Pause{Pause: &recordpb.Pause{InvocationId: id[:]}}}
}

func resumeCommand(id ident.InvocationID, deployment string) *recordpb.Command {
	return &recordpb.Command{RequestId: requestID(9), Kind: &recordpb.Command_Resume{Resume: &recordpb.Resume{InvocationId: id[:], DeploymentId: []byte(deployment), ProtocolVersion: 6}}}
}

func restart(id, newID ident.InvocationID, from uint32) *recordpb.Command {
	return &recordpb.Command{RequestId: requestID(9), Kind: &recordpb.Command_RestartAsNew{RestartAsNew: &recordpb.RestartAsNew{InvocationId: id[:], NewInvocationId: newID[:], From: from}}}
}

// inStatus makes an invocation of an object in a status.
func (w *world) inStatus(s storepb.Invocation_Status) ident.InvocationID {
	w.t.Helper()
	x := retained(request(objectTarget("k", schema.Exclusive), 1), 1000, 1000)
	id := ident.InvocationID(x.Id)
	switch s {
	case storepb.Invocation_FREE:
		return id
	case storepb.Invocation_SCHEDULED:
		x.ExecutionTimeMs = w.now + 100
		w.invoke(x)
	case storepb.Invocation_INBOXED:
		w.started(request(objectTarget("k", schema.Exclusive), 2))
		w.invoke(x)
	default:
		w.started(x)
		w.effects(id, pinned(6), sleepUntil(1, w.now+100))
		switch s {
		case storepb.Invocation_SUSPENDED:
			w.effects(id, suspended(&invocationpb.Future{Completions: []uint32{1}, Signals: []uint32{1}}))
		case storepb.Invocation_PAUSED:
			w.effects(id, paused())
		case storepb.Invocation_COMPLETED:
			w.effects(id, output("x"), end())
		}
	}
	w.wantStatus(id, s)
	return id
}

func TestVerbsByStatus(t *testing.T) {
	const (
		free, scheduled, inboxed = storepb.Invocation_FREE, storepb.Invocation_SCHEDULED, storepb.Invocation_INBOXED
		invoked, suspended       = storepb.Invocation_INVOKED, storepb.Invocation_SUSPENDED
		paused, completed        = storepb.Invocation_PAUSED, storepb.Invocation_COMPLETED
	)
	newID := func(id ident.InvocationID) ident.InvocationID { id[23] ^= 0xff; return id }
	verbs := map[string]func(ident.InvocationID) *recordpb.Command{
		"cancel": cancel, "kill": kill, "pause": pauseCommand,
		"resume":  func(id ident.InvocationID) *recordpb.Command { return resumeCommand(id, "") },
		"repin":   func(id ident.InvocationID) *recordpb.Command { return resumeCommand(id, "deployment-00002") },
		"purge":   func(id ident.InvocationID) *recordpb.Command { return purge(id, false, false) },
		"journal": func(id ident.InvocationID) *recordpb.Command { return purge(id, true, false) },
		"restart": func(id ident.InvocationID) *recordpb.Command { return restart(id, newID(id), 0) },
	}
	cases := []struct {
		verb  string
		from  storepb.Invocation_Status
		reply recordpb.Reply_Status
		to    storepb.Invocation_Status
		act   Kind // that must be among the actions
	}{
		{"cancel", free, recordpb.Reply_NOT_FOUND, free, 0},
		{"cancel", scheduled, recordpb.Reply_OK, free, ActTimerDeleted},
		{"cancel", inboxed, recordpb.Reply_OK, free, 0},
		{"cancel", invoked, recordpb.Reply_ACCEPTED, invoked, ActNotify},
		{"cancel", suspended, recordpb.Reply_ACCEPTED, invoked, ActInvoke},
		{"cancel", paused, recordpb.Reply_ACCEPTED, invoked, ActInvoke},
		{"cancel", completed, recordpb.Reply_ALREADY_COMPLETED, completed, 0},

		{"kill", free, recordpb.Reply_NOT_FOUND, free, ActAbort},
		{"kill", scheduled, recordpb.Reply_OK, free, ActTimerDeleted},
		{"kill", inboxed, recordpb.Reply_OK, free, 0},
		{"kill", invoked, recordpb.Reply_OK, completed, ActAbort},
		{"kill", suspended, recordpb.Reply_OK, completed, ActTimerDeleted},
		{"kill", paused, recordpb.Reply_OK, completed, 0},
		{"kill", completed, recordpb.Reply_ALREADY_COMPLETED, completed, 0},

		{"pause", free, recordpb.Reply_NOT_FOUND, free, 0},
		{"pause", scheduled, recordpb.Reply_NOT_RUNNING, scheduled, 0},
		{"pause", inboxed, recordpb.Reply_NOT_RUNNING, inboxed, 0},
		{"pause", invoked, recordpb.Reply_ACCEPTED, invoked, ActPause},
		{"pause", suspended, recordpb.Reply_OK, suspended, 0},
		{"pause", paused, recordpb.Reply_OK, paused, 0},
		{"pause", completed, recordpb.Reply_NOT_RUNNING, completed, 0},

		{"resume", free, recordpb.Reply_NOT_FOUND, free, 0},
		{"resume", scheduled, recordpb.Reply_NOT_STARTED, scheduled, 0},
		{"resume", inboxed, recordpb.Reply_NOT_STARTED, inboxed, 0},
		{"resume", invoked, recordpb.Reply_OK, invoked, ActRetryNow},
		{"resume", suspended, recordpb.Reply_OK, invoked, ActInvoke},
		{"resume", paused, recordpb.Reply_OK, invoked, ActInvoke},
		{"resume", completed, recordpb.Reply_ALREADY_COMPLETED, completed, 0},

		{"repin", invoked, recordpb.Reply_DEPLOYMENT_FIXED, invoked, 0},
		{"repin", suspended, recordpb.Reply_OK, invoked, ActInvoke},
		{"repin", paused, recordpb.Reply_OK, invoked, ActInvoke},

		{"purge", free, recordpb.Reply_NOT_FOUND, free, ActPurged},
		{"purge", scheduled, recordpb.Reply_NOT_COMPLETED, scheduled, ActPurged},
		{"purge", inboxed, recordpb.Reply_NOT_COMPLETED, inboxed, ActPurged},
		{"purge", invoked, recordpb.Reply_NOT_COMPLETED, invoked, ActPurged},
		{"purge", suspended, recordpb.Reply_NOT_COMPLETED, suspended, ActPurged},
		{"purge", paused, recordpb.Reply_NOT_COMPLETED, paused, ActPurged},
		{"purge", completed, recordpb.Reply_OK, free, ActPurged},
		{"journal", invoked, recordpb.Reply_NOT_COMPLETED, invoked, ActPurged},
		{"journal", completed, recordpb.Reply_OK, completed, ActPurged},

		{"restart", free, recordpb.Reply_NOT_FOUND, free, 0},
		{"restart", scheduled, recordpb.Reply_NOT_STARTED, scheduled, 0},
		{"restart", inboxed, recordpb.Reply_NOT_STARTED, inboxed, 0},
		{"restart", invoked, recordpb.Reply_STILL_RUNNING, invoked, 0},
		{"restart", suspended, recordpb.Reply_STILL_RUNNING, suspended, 0},
		{"restart", paused, recordpb.Reply_STILL_RUNNING, paused, 0},
		{"restart", completed, recordpb.Reply_OK, completed, ActInvoke},
	}
	for _, c := range cases {
		t.Run(c.verb+" "+c.from.String(), func(t *testing.T) {
			w := newWorld(t)
			id := w.inStatus(c.from)
			as := w.apply(verbs[c.verb](id))
			rs := ofKind(as, ActReply)
			found := false
			for _, r := range rs {
				if r.Reply.Result == nil { // the others are for sinks
					found = true
					if r.Reply.Status != c.reply {
						t.Fatalf("reply %s, want %s", r.Reply.Status, c.reply)
					}
				}
			}
			if !found {
				t.Fatalf("no reply: %+v", as)
			}
			w.wantStatus(id, c.to)
			if c.act != 0 && len(ofKind(as, c.act)) == 0 {
				t.Fatalf("no action %d: %+v", c.act, as)
			}
			if c.to == c.from && c.act != ActInvoke {
				w.none(as, ActInvoke)
			}
		})
	}
}

func TestRepinKeepsTheProtocolVersion(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	w.effects(id, paused())
	w.apply(resumeCommand(id, ""))
	w.effects(id, pinned(5), paused())
	w.wantReply(w.apply(resumeCommand(id, "deployment-00002")), recordpb.Reply_OK)
	if inv := w.row(id); string(inv.DeploymentId) != "deployment-00002" || inv.ProtocolVersion != 5 {
		t.Fatalf("pinned to %s, version %d", inv.DeploymentId, inv.ProtocolVersion)
	}
}

// TestRepinPinsWhatMadeNoProgress: an invocation that failed until it was paused is moved like any other.
func TestRepinPinsWhatMadeNoProgress(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	w.effects(id, paused())
	w.wantReply(w.apply(resumeCommand(id, "deployment-00002")), recordpb.Reply_OK)
	if inv := w.row(id); string(inv.DeploymentId) != "deployment-00002" || inv.ProtocolVersion != 6 {
		t.Fatalf("pinned to %s, version %d", inv.DeploymentId, inv.ProtocolVersion)
	}
}

// A pause that was accepted holds, whoever leads when the attempt stops and however it stops.
func TestAcceptedPauseHolds(t *testing.T) {
	for name, stops := range map[string]func(w *world, id ident.InvocationID) []Action{
		"paused": func(w *world, id ident.InvocationID) []Action { return w.effects(id, paused()) },
		"suspended": func(w *world, id ident.InvocationID) []Action {
			return w.effects(id, suspended(&invocationpb.Future{Completions: []uint32{1}, Signals: []uint32{1}}))
		},
		"suspended on what is there": func(w *world, id ident.InvocationID) []Action {
			w.now += 100
			w.apply(fire(keyspace.TimerKey{FireAtMs: w.now, Kind: keyspace.TimerSleep, ID: id, CompletionID: 1}))
			return w.effects(id, suspended(&invocationpb.Future{Completions: []uint32{1}, Signals: []uint32{1}}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			id := w.inStatus(storepb.Invocation_INVOKED)
			w.apply(pauseCommand(id))
			if !w.row(id).PauseRequested {
				t.Fatal("the row does not say that a pause was accepted")
			}
			w.none(stops(w, id), ActInvoke)
			w.wantStatus(id, storepb.Invocation_PAUSED)
			w.apply(resumeCommand(id, ""))
			w.wantStatus(id, storepb.Invocation_INVOKED)
			if w.row(id).PauseRequested {
				t.Fatal("the next attempt is to be paused, too")
			}
		})
	}
}

// A request to cancel is not kept waiting by a pause, whichever of the two the attempt hears of first.
func TestCancelIsNotHeldUpByAPause(t *testing.T) {
	w := newWorld(t)
	id := w.inStatus(storepb.Invocation_INVOKED)
	w.apply(pauseCommand(id))
	w.apply(cancel(id))
	w.one(w.effects(id, paused()), ActInvoke)
	w.wantStatus(id, storepb.Invocation_INVOKED)
	w.none(w.effects(id, paused()), ActInvoke) // the attempts since have seen it
	w.wantStatus(id, storepb.Invocation_PAUSED)
}

// A resume takes back a pause that has not happened yet.
func TestResumeTakesBackAPause(t *testing.T) {
	w := newWorld(t)
	id := w.inStatus(storepb.Invocation_INVOKED)
	w.apply(pauseCommand(id))
	before := w.row(id).Incarnation
	as := w.apply(resumeCommand(id, ""))
	w.one(as, ActInvoke)
	w.wantReply(as, recordpb.Reply_OK)
	w.effectsOf(id, before, paused())
	w.wantStatus(id, storepb.Invocation_INVOKED)
}

func TestPausedStoresAndDoesNotResume(t *testing.T) {
	w := newWorld(t)
	id := w.inStatus(storepb.Invocation_PAUSED)
	w.now += 100
	as := w.apply(fire(keyspace.TimerKey{FireAtMs: w.now, Kind: keyspace.TimerSleep, ID: id, CompletionID: 1}))
	w.none(as, ActInvoke)
	w.none(as, ActNotify)
	if n := len(w.journal(id)); n != 3 {
		t.Fatalf("journal of %d entries", n)
	}
	w.none(w.apply(signalTo(id, 17)), ActInvoke)
	w.wantStatus(id, storepb.Invocation_PAUSED)
	if n := w.count(keyspace.TagEvent); n != 1 {
		t.Fatalf("%d events, want that of the pause", n)
	}
}

func TestKillReachesTheWholeTree(t *testing.T) {
	w := newWorld(t)
	root := w.started(request(service("Root"), 1))
	call, send := callTo(service("B"), 11, 1, 2), sendTo(service("C"), 12, 3, 0)
	late := sendTo(service("D"), 13, 4, w.now+100_000)
	out := ofKind(w.effects(root, call, send, late), ActOutbox)
	for _, m := range out {
		w.apply(m.Command)
	}
	grandchild := callTo(objectTarget("k", schema.Exclusive), 14, 1, 2)
	b := ident.InvocationID(call.GetCommand().Callee.InvocationId)
	w.apply(w.one(w.effects(b, grandchild), ActOutbox).Command)
	w.effects(ident.InvocationID(send.GetCommand().Callee.InvocationId), output("x"), end()) // retained, completed
	pendingMessages := ofKind(w.apply(kill(root)), ActOutbox)
	if len(pendingMessages) != 3 {
		t.Fatalf("%d children are killed, want 3: %+v", len(pendingMessages), pendingMessages)
	}
	for len(pendingMessages) > 0 {
		m := pendingMessages[0]
		pendingMessages = append(pendingMessages[1:], ofKind(w.apply(m.Command), ActOutbox)...)
	}
	w.wantEmpty(keyspace.TagLock, keyspace.TagTimer, keyspace.TagAwaited)
	w.wantStatus(root, storepb.Invocation_FREE)
	w.wantStatus(b, storepb.Invocation_COMPLETED)
	w.wantStatus(ident.InvocationID(late.GetCommand().Callee.InvocationId), storepb.Invocation_FREE)
	if f := w.row(b).Failure; f.GetCode() != 409 || f.Message != "killed" {
		t.Fatalf("%v", f)
	}
}

func TestRestartAsNew(t *testing.T) {
	w := newWorld(t)
	x := retained(request(objectTarget("k", schema.Exclusive), 1), 1000, 1000)
	x.IdempotencyKey = ptr("ik")
	old := w.started(x)
	newID := func(n byte) ident.InvocationID { id := old; id[23], id[22] = n, 0xee; return id }
	// 0 input, 1 run, 2 sleep, 3 cancel, 4 sleep's completion, 5 run's, 6 signal 17, 7 run 3, 8 output
	w.effects(old, pinned(6), rawEntry(protocol.TypeRun, []byte{0x58, 1}), sleepUntil(2, w.now+10))
	w.apply(cancel(old))
	w.now += 10
	w.apply(fire(keyspace.TimerKey{FireAtMs: w.now, Kind: keyspace.TimerSleep, ID: old, CompletionID: 2}))
	w.effects(old, runResult(1, failure(400, "r")))
	w.apply(signalTo(old, 17))
	w.effects(old, rawEntry(protocol.TypeRun, []byte{0x58, 3}), output("x"), end())
	for _, from := range []uint32{7, 8, 9, 1 << 30} { // without its completion, with the output, beyond the end
		w.wantReply(w.apply(restart(old, newID(1), from)), recordpb.Reply_BAD_RANGE)
	}
	types := func(id ident.InvocationID) (ts []uint16) {
		for _, e := range w.journal(id) {
			ts = append(ts, e.Type)
		}
		return ts
	}
	want := func(id ident.InvocationID, want ...uint16) {
		t.Helper()
		got := types(id)
		if len(got) != len(want) {
			t.Fatalf("journal %x, want %x", got, want)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("journal %x, want %x", got, want)
			}
		}
	}
	as := w.apply(restart(old, newID(2), 0))
	if r := w.one(as, ActReply).Reply; r.Status != recordpb.Reply_OK || ident.InvocationID(r.NewInvocationId) != newID(2) {
		t.Fatalf("%v", r)
	}
	w.one(as, ActInvoke)
	want(newID(2), protocol.TypeInput)
	inv := w.row(newID(2))
	if inv.Source.Kind != invocationpb.Source_RESTART_AS_NEW || string(inv.Source.InvocationId) != string(old[:]) || inv.IdempotencyKey != nil ||
		len(inv.DeploymentId) != 0 || inv.CompletionRetentionMs != 1000 || len(inv.Sinks) != 0 {
		t.Fatalf("%v", inv)
	}
	// The same request again has the same answer and no effect.
	as = w.apply(restart(old, newID(2), 0))
	w.wantReply(as, recordpb.Reply_OK)
	w.none(as, ActInvoke)
	// The object is held by the first: the others wait.
	c := restart(old, newID(3), 1)
	c.GetRestartAsNew().DeploymentId, c.GetRestartAsNew().ProtocolVersion = []byte("deployment-00009"), 6
	w.apply(c)
	w.wantStatus(newID(3), storepb.Invocation_INBOXED)
	want(newID(3), protocol.TypeInput, protocol.TypeRun, protocol.TypeRunCompletion)
	w.apply(restart(old, newID(4), 6))
	want(newID(4), protocol.TypeInput, protocol.TypeRun, protocol.TypeSleep, protocol.TypeSleepCompletion, protocol.TypeRunCompletion, protocol.TypeSignal)
	w.effects(newID(2), output("y"), end())
	inv = w.row(newID(3))
	if inv.Status != storepb.Invocation_INVOKED || string(inv.DeploymentId) != "deployment-00009" || inv.ProtocolVersion != 6 || inv.Commands != 2 || inv.Replayed != 3 {
		t.Fatalf("%v", inv)
	}
	// What was copied is known: a suspension on it runs again at once, a second result is refused.
	w.none(w.effects(newID(3), runResult(1, success(nil))), ActNotify)
	w.one(w.effects(newID(3), suspended(node(anyOK, 1))), ActInvoke)
	w.apply(kill(newID(3)))
	w.apply(kill(newID(4)))
	w.wantEmpty(keyspace.TagLock, keyspace.TagAwaited)
	w.apply(purge(old, true, false))
	w.wantReply(w.apply(restart(old, newID(9), 0)), recordpb.Reply_INPUT_GONE)

	run := w.started(retained(request(workflowTarget("k", schema.WorkflowRun), 1), 1000, 1000))
	w.effects(run, output("x"), end())
	other := run
	other[23] ^= 1
	w.wantReply(w.apply(restart(run, other, 0)), recordpb.Reply_UNSUPPORTED)
}

// The completion ids of the commands that a restarted invocation begins with are used.
func TestRestartedInvocationKnowsItsCompletionIDs(t *testing.T) {
	w := newWorld(t)
	old := w.started(retained(request(service("A"), 1), 1000, 1000))
	w.effects(old, rawEntry(protocol.TypeRun, []byte{0x58, 5}), runResult(5, success(nil)), output("x"), end())
	again := old
	again[23] ^= 1
	w.apply(restart(old, again, 1))
	w.effects(again, sleepUntil(4, 1<<40))
	w.wantStatus(again, storepb.Invocation_INVOKED)
	w.effects(again, sleepUntil(5, 1<<40))
	w.wantStatus(again, storepb.Invocation_COMPLETED)
	if f := w.row(again).Failure; f.GetCode() != 500 {
		t.Errorf("ended with %v", f)
	}
}

// A restarted invocation brings completions along. Taken back out of the inbox it must not leave them.
func TestRestartedInvocationIsTakenBackWhole(t *testing.T) {
	for _, verb := range []func(ident.InvocationID) *recordpb.Command{cancel, kill} {
		w := newWorld(t)
		old := w.started(retained(request(objectTarget("k", schema.Exclusive), 1), 1000, 1000))
		w.effects(old, rawEntry(protocol.TypeRun, []byte{0x58, 1}), runResult(1, success(nil)), output("x"), end())
		holder := w.started(request(objectTarget("k", schema.Exclusive), 2))
		again := old
		again[23] ^= 1
		w.apply(restart(old, again, 1))
		w.wantStatus(again, storepb.Invocation_INBOXED)
		w.apply(verb(again))
		w.effects(holder, output("x"), end())
		w.apply(purge(old, false, false))
		w.wantEmpty(invocationTables...)
		w.wantEmpty(keyspace.TagLock, keyspace.TagInbox)
	}
}
