package partition

import (
	"context"
	"fmt"
	"sync"

	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/nodes/partition/store"
	"perdure/nodes/record/recordpb"
)

type requestID = [16]byte

// waiters are the requests that wait for a command to be applied. They die with the leader.
type waiters struct {
	mu     sync.Mutex
	m      map[requestID]*waiter
	closed bool
}

type waiter struct {
	reply chan *recordpb.Reply // 1 slot; closed without one when there will be none
	err   error                // why there will be none; set before reply is closed
}

func (w *waiter) fail(err error) {
	w.err = err
	close(w.reply)
}

// register returns the waiter of a request and whether the same request waits already (and has been
// proposed already).
func (w *waiters) register(id requestID) (_ *waiter, again bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, false, ErrNotLeader
	}
	n := &waiter{reply: make(chan *recordpb.Reply, 1)}
	if old := w.m[id]; old != nil {
		again = true
		old.fail(ErrSuperseded)
	}
	if w.m == nil {
		w.m = make(map[requestID]*waiter)
	}
	w.m[id] = n
	return n, again, nil
}

func (w *waiters) forget(id requestID, wt *waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.m[id] == wt {
		delete(w.m, id)
	}
}

// abandon forgets a request that was not proposed. A later copy of it that waits relied on that, and is told
// to come again.
func (w *waiters) abandon(id requestID, wt *waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	later := w.m[id]
	delete(w.m, id)
	if later != nil && later != wt {
		later.fail(ErrOverloaded)
	}
}

// answer gives a reply to the request, if it waits here.
func (w *waiters) answer(id requestID, r *recordpb.Reply) {
	w.mu.Lock()
	wt := w.m[id]
	delete(w.m, id)
	w.mu.Unlock()
	if wt != nil {
		wt.reply <- r
	}
}

// close fails every waiter and refuses new ones.
func (w *waiters) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for id, wt := range w.m {
		wt.fail(ErrLostLeadership)
		delete(w.m, id)
	}
}

// do serves one request of this leader.
func (l *leader) do(ctx context.Context, req *recordpb.Request) (*recordpb.Reply, error) {
	if len(req.Id) != len(requestID{}) {
		return nil, fmt.Errorf("request id has %d bytes, want 16", len(req.Id))
	}
	switch k := req.Kind.(type) {
	case *recordpb.Request_GetOutput:
		return l.output(k.GetOutput.InvocationId, recordpb.Reply_NOT_READY)
	case *recordpb.Request_Attach:
		// Most attaches find the result; only waiting needs the log.
		r, err := l.output(k.Attach.InvocationId, recordpb.Reply_NOT_READY)
		if err != nil || r.Status != recordpb.Reply_NOT_READY {
			return r, err
		}
	}
	cmd, err := command(req)
	if err != nil {
		return nil, err
	}
	id := requestID(req.Id)
	w, again, err := l.waiters.register(id)
	if err != nil {
		return nil, err
	}
	defer l.waiters.forget(id, w)
	if !again {
		if err := l.proposeWaiting(ctx, cmd); err != nil {
			l.waiters.abandon(id, w)
			return nil, err
		}
	}
	select {
	case r, ok := <-w.reply:
		if !ok {
			return nil, w.err
		}
		return r, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// output answers from the store what an invocation ended with.
func (l *leader) output(rawID []byte, pending recordpb.Reply_Status) (*recordpb.Reply, error) {
	id, err := ident.InvocationIDFromBytes(rawID)
	if err != nil {
		return nil, err
	}
	out, err := l.p.store.Output(id)
	if err != nil {
		return nil, fmt.Errorf("read output of %s: %w", id, err)
	}
	switch out.State {
	case store.OutputMissing:
		return &recordpb.Reply{Status: recordpb.Reply_NOT_FOUND}, nil
	case store.OutputPending:
		return &recordpb.Reply{Status: pending, Target: out.Target}, nil
	}
	return &recordpb.Reply{Result: out.Result, ExpiresAtMs: out.ExpiresAtMs, Target: out.Target}, nil
}

// command turns a request into the command that carries it out.
func command(req *recordpb.Request) (*recordpb.Command, error) {
	c := &recordpb.Command{RequestId: req.Id}
	var id []byte
	switch k := req.Kind.(type) {
	case *recordpb.Request_Invoke_:
		inv := k.Invoke.Invocation
		inv.RequestId = req.Id
		if k.Invoke.WaitOutput {
			inv.Sink = &invocationpb.Sink{RequestId: req.Id}
		} else {
			inv.SubmitRequestId = req.Id
		}
		id = inv.Id
		c.Kind = &recordpb.Command_Invoke{Invoke: inv}
	case *recordpb.Request_Attach:
		id = k.Attach.InvocationId
		c.Kind = &recordpb.Command_Attach{Attach: &recordpb.Attach{InvocationId: id, Sink: &invocationpb.Sink{RequestId: req.Id}}}
	case *recordpb.Request_Signal:
		id = k.Signal.InvocationId
		c.Kind = &recordpb.Command_Signal{Signal: k.Signal}
	case *recordpb.Request_Terminate:
		id = k.Terminate.InvocationId
		c.Kind = &recordpb.Command_Terminate{Terminate: k.Terminate}
	case *recordpb.Request_Purge:
		id = k.Purge.InvocationId
		c.Kind = &recordpb.Command_Purge{Purge: k.Purge}
	case *recordpb.Request_Pause:
		id = k.Pause.InvocationId
		c.Kind = &recordpb.Command_Pause{Pause: k.Pause}
	case *recordpb.Request_Resume:
		id = k.Resume.InvocationId
		c.Kind = &recordpb.Command_Resume{Resume: k.Resume}
	case *recordpb.Request_RestartAsNew:
		id = k.RestartAsNew.InvocationId
		c.Kind = &recordpb.Command_RestartAsNew{RestartAsNew: k.RestartAsNew}
	case *recordpb.Request_PatchState:
		c.Kind = &recordpb.Command_PatchState{PatchState: k.PatchState}
		c.PartitionKey = uint64(ident.KeyPartition(k.PatchState.Key))
		return c, nil
	default:
		return nil, fmt.Errorf("request of unknown kind %T", req.Kind)
	}
	iid, err := ident.InvocationIDFromBytes(id)
	if err != nil {
		return nil, fmt.Errorf("invocation id of a request: %w", err)
	}
	c.PartitionKey = uint64(iid.PartitionKey())
	return c, nil
}
