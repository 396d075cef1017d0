package doctor

import (
	"bytes"
	"fmt"

	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/fsm"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// suspended needs for each thing that the handler awaits somebody who brings it about.
func (v *View) suspended(f *Finding, inv *storepb.Invocation) error {
	w := awaiting{v: v, f: f, inv: inv}
	if err := w.future(inv.Awaiting); err != nil {
		return err
	}
	if w.leaves == 0 {
		f.problem("it is suspended, but waits for nothing: only an operator can make it go on")
		return nil
	}
	if w.leaves > 1 {
		f.Needs = needs(inv.Awaiting)
	}
	if w.leaves == w.cancels {
		f.problem("it is suspended and waits for nothing but being cancelled")
	}
	return nil
}

// needs says in words how the parts of a future combine.
func needs(f *invocationpb.Future) string {
	if len(f.GetNested()) > 0 {
		return "the handler combines them; the invocation goes on when the combination is decided"
	}
	switch f.GetCombinator() {
	case invocationpb.Future_ALL_COMPLETED:
		return "it goes on when all of them are there"
	case invocationpb.Future_FIRST_SUCCEEDED_OR_ALL_FAILED:
		return "it goes on with the first success, or when all have failed"
	case invocationpb.Future_ALL_SUCCEEDED_OR_FIRST_FAILED:
		return "it goes on with the first failure, or when all have succeeded"
	}
	return "it goes on with the first of them"
}

// awaiting looks at the leaves of what a suspended invocation awaits.
type awaiting struct {
	v               *View
	f               *Finding
	inv             *storepb.Invocation
	leaves, cancels int
	commands        map[uint32]command // by the completion that answers them; read when needed
}

func (w *awaiting) future(f *invocationpb.Future) error {
	for _, n := range f.GetCompletions() {
		w.leaves++
		if err := w.completion(n); err != nil {
			return err
		}
	}
	for _, n := range f.GetSignals() {
		w.leaves++
		if n == protocol.SignalCancel {
			w.cancels++
			continue
		}
		w.f.wait(Wait{Reason: Signal, Text: fmt.Sprintf("signal %d or awakeable %s; whoever was given it completes it", n, ident.Awakeable{Invocation: w.f.ID, Signal: n})})
	}
	for _, name := range f.GetNamedSignals() {
		w.leaves++
		w.f.wait(Wait{Reason: Signal, Text: fmt.Sprintf("signal %q; somebody sends it to this invocation", name)})
	}
	for _, n := range f.GetNested() {
		if err := w.future(n); err != nil {
			return err
		}
	}
	return nil
}

// completion needs a row that expects the completion, and who the row's kind says will answer it.
func (w *awaiting) completion(n uint32) error {
	var a storepb.Awaited
	ok, err := w.v.read(keyspace.AppendCompletion(nil, &w.f.ID, n), &a)
	switch {
	case err != nil:
		return err
	case !ok:
		w.f.problem("it awaits completion %d, which no command of its journal asked for or which only the service could give", n)
		return nil
	case a.Done:
		w.f.problem("it awaits completion %d, which has been in its journal since entry %d", n, a.Entry)
		return nil
	}
	switch uint16(a.Type) {
	case protocol.TypeSleepCompletion:
		return w.v.timer(w.f, keyspace.TimerKey{FireAtMs: a.FireAtMs, Kind: keyspace.TimerSleep, ID: w.f.ID, CompletionID: n}, "its sleep", "wakes it")
	case protocol.TypeCallCompletion, protocol.TypeAttachInvocationCompletion, protocol.TypeGetInvocationOutputCompletion:
		return w.invocation(n)
	case protocol.TypeCallInvocationIDCompletion:
		w.f.problem("it awaits the id of the invocation that it called (completion %d), which is always given at once", n)
		return nil
	case protocol.TypeGetPromiseCompletion:
		return w.promise(n)
	}
	w.f.problem("it awaits completion %d of type %#04x, which is always given at once", n, a.Type)
	return nil
}

// command is a journal command that waits for an answer.
type command struct {
	callee  ident.InvocationID
	promise string
	what    string
}

// command finds the command that a completion answers.
func (w *awaiting) command(n uint32) (command, bool, error) {
	if w.commands == nil {
		if err := w.readCommands(); err != nil {
			return command{}, false, err
		}
	}
	c, ok := w.commands[n]
	return c, ok, nil
}

func (w *awaiting) readCommands() error {
	w.commands = map[uint32]command{}
	ids := map[uint32]ident.InvocationID{} // of callees, by the completion that tells them
	calls := map[uint32]uint32{}           // that completion, by the one with the result
	prefix := keyspace.AppendJournalPrefix(nil, &w.f.ID)
	err := w.v.Rows.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(_, value []byte) (bool, error) {
		e, err := keyspace.EntryOf(value)
		if err != nil {
			return false, err
		}
		return true, w.note(&e, ids, calls)
	})
	for result, told := range calls {
		c := w.commands[result]
		c.callee = ids[told]
		w.commands[result] = c
	}
	return err
}

// note notes what a journal entry says of the answers to come.
func (w *awaiting) note(e *keyspace.Entry, ids map[uint32]ident.InvocationID, calls map[uint32]uint32) error {
	corrupt := func(err error) error {
		if err != nil {
			return fmt.Errorf("%w: journal entry of %s: %w", keyspace.ErrCorrupt, w.f.ID, err)
		}
		return nil
	}
	switch e.Type {
	case protocol.TypeCall:
		var c protocolpb.CallCommand
		if err := c.UnmarshalVT(e.Raw); err != nil {
			return corrupt(err)
		}
		calls[c.ResultCompletionId] = c.InvocationIdNotificationIdx
		w.commands[c.ResultCompletionId] = command{what: "its call of " + TargetText(&invocationpb.Target{Service: c.ServiceName, Key: c.Key, Handler: c.HandlerName})}
	case protocol.TypeCallInvocationIDCompletion:
		var n protocolpb.Notification
		if err := n.UnmarshalVT(e.Raw); err != nil {
			return corrupt(err)
		}
		id, err := ident.ParseInvocationID(n.GetInvocationId())
		ids[n.GetCompletionId()] = id
		return corrupt(err)
	case protocol.TypeAttachInvocation:
		var c protocolpb.AttachInvocationCommand
		if err := c.UnmarshalVT(e.Raw); err != nil {
			return corrupt(err)
		}
		id, _ := fsm.AttachTarget(&c)
		w.commands[c.ResultCompletionId] = command{callee: id, what: "the result that it attached to"}
	case protocol.TypeGetPromise:
		var c protocolpb.GetPromiseCommand
		if err := c.UnmarshalVT(e.Raw); err != nil {
			return corrupt(err)
		}
		w.commands[c.ResultCompletionId] = command{promise: c.Key}
	}
	return nil
}

// invocation needs the invocation that was called, or attached to, to live and to know who waits.
func (w *awaiting) invocation(n uint32) error {
	c, ok, err := w.command(n)
	if err != nil {
		return err
	}
	if !ok || c.callee.IsZero() {
		w.f.problem("it awaits the result of an invocation (completion %d), but its journal does not say of which", n)
		return nil
	}
	w.f.wait(Wait{Reason: Invocation, On: c.callee, Text: fmt.Sprintf("%s; invocation %s answers when it ends", c.what, c.callee)})
	if w.v.Peer == nil {
		return nil
	}
	callee, known := w.v.Peer(c.callee)
	if !known {
		return nil
	}
	if callee == nil || callee.Status != storepb.Invocation_COMPLETED && !w.isSink(callee, n) {
		if ok, err := w.v.sending(c.callee); ok || err != nil {
			return err
		}
	}
	switch {
	case callee == nil:
		w.f.problem("it waits for invocation %s, which does not exist", c.callee)
	case callee.Status == storepb.Invocation_COMPLETED:
		w.f.problem("it waits for invocation %s, which has ended without its answer arriving", c.callee)
	case !w.isSink(callee, n):
		w.f.problem("it waits for invocation %s, which does not know that it is waited for", c.callee)
	}
	return nil
}

func (w *awaiting) isSink(callee *storepb.Invocation, n uint32) bool {
	return w.among(callee.Sinks, n) || callee.MoreSinks > 0 // it may be in a row of its own, in the other partition
}

// among reports whether completion n of the invocation is among sinks.
func (w *awaiting) among(sinks []*invocationpb.Sink, n uint32) bool {
	for _, s := range sinks {
		if s.CompletionId == n && s.Life == w.inv.Life && bytes.Equal(s.Caller, w.f.ID[:]) {
			return true
		}
	}
	return false
}

// promise needs the waiter to be registered with a promise that is not completed.
func (w *awaiting) promise(n uint32) error {
	c, ok, err := w.command(n)
	if err != nil {
		return err
	}
	if !ok {
		w.f.problem("it awaits a promise (completion %d), but its journal does not say which", n)
		return nil
	}
	o := objectOf(w.f.ID, w.inv.Target)
	var p storepb.Promise
	if _, err := w.v.read(keyspace.AppendPromise(nil, &o, c.promise), &p); err != nil {
		return err
	}
	if p.Result != nil {
		w.f.problem("it awaits the promise %q, which is completed", c.promise)
		return nil
	}
	known := w.among(p.Sinks, n)
	if !known && p.MoreSinks > 0 {
		key, err := keyspace.AppendSink(keyspace.AppendPromiseSinkPrefix(nil, &o, c.promise), &invocationpb.Sink{Caller: w.f.ID[:], CompletionId: n, Life: w.inv.Life})
		if err != nil {
			return fmt.Errorf("encode a sink: %w", err)
		}
		if _, known, err = w.v.Rows.Get(key); err != nil {
			return err
		}
	}
	if known {
		w.f.wait(Wait{Reason: Promise, Text: fmt.Sprintf("the promise %q of workflow %s/%s; another handler of the workflow completes it", c.promise, o.Service, o.Key)})
		return nil
	}
	w.f.problem("it awaits the promise %q, which does not know that it is waited for", c.promise)
	return nil
}

// sending reports whether the outbox has a request for an invocation that may not have been delivered.
func (v *View) sending(id ident.InvocationID) (bool, error) {
	if v.outbox == nil {
		v.outbox = map[ident.InvocationID]bool{}
		prefix := []byte{keyspace.TagOutbox}
		err := v.Rows.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(_, value []byte) (bool, error) {
			var c recordpb.Command
			if err := c.UnmarshalVT(value); err != nil {
				return false, fmt.Errorf("%w: outbox: %w", keyspace.ErrCorrupt, err)
			}
			raw := c.GetInvoke().GetId()
			if raw == nil {
				raw = c.GetAttach().GetInvocationId()
			}
			if to, err := ident.InvocationIDFromBytes(raw); err == nil {
				v.outbox[to] = true
			}
			return true, nil
		})
		if err != nil {
			return false, err
		}
	}
	return v.outbox[id], nil
}
