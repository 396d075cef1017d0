package fsm

import (
	"fmt"

	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
)

// promise reads a durable promise of the invocation's workflow; an unknown one is not completed.
func (m *Machine) promise(r *row, name string) (o keyspace.Object, p *storepb.Promise, err error) {
	o = object(&r.id, r.inv.Target)
	p = new(storepb.Promise)
	m.key = keyspace.AppendPromise(m.key[:0], &o, name)
	_, err = read(m.txn, m.key, p)
	return o, p, err
}

func (m *Machine) setPromise(o *keyspace.Object, name string, p *storepb.Promise) error {
	m.key = keyspace.AppendPromise(m.key[:0], o, name)
	return m.write(m.key, p)
}

func (m *Machine) getPromise(r *row, c *protocolpb.GetPromiseCommand) error {
	if !workflow(r.inv.Target) {
		return m.reject(r, "only workflows have promises")
	}
	o, p, err := m.promise(r, c.Key)
	if err != nil {
		return err
	}
	if p.Result != nil {
		return m.completion(r, c.ResultCompletionId, protocol.TypeGetPromiseCompletion, p.Result)
	}
	p.Listeners = append(p.Listeners, &storepb.Listener{InvocationId: append([]byte(nil), r.id[:]...), CompletionId: c.ResultCompletionId, Life: r.inv.Life})
	if err := m.setPromise(&o, c.Key, p); err != nil {
		return err
	}
	return m.expect(r, c.ResultCompletionId, protocol.TypeGetPromiseCompletion)
}

func (m *Machine) peekPromise(r *row, c *protocolpb.PeekPromiseCommand) error {
	if !workflow(r.inv.Target) {
		return m.reject(r, "only workflows have promises")
	}
	_, p, err := m.promise(r, c.Key)
	if err != nil {
		return err
	}
	res := p.Result
	if res == nil {
		res = void()
	}
	return m.completion(r, c.ResultCompletionId, protocol.TypePeekPromiseCompletion, res)
}

// completePromise completes a promise, the first time. Its own answer comes before that of the listeners.
func (m *Machine) completePromise(r *row, c *protocolpb.CompletePromiseCommand) error {
	if !workflow(r.inv.Target) {
		return m.reject(r, "only workflows have promises")
	}
	o, p, err := m.promise(r, c.Key)
	if err != nil {
		return err
	}
	if p.Result != nil {
		return m.completion(r, c.ResultCompletionId, protocol.TypeCompletePromiseCompletion, failure(409, "promise was already completed"))
	}
	res := protocol.ResultOf(c.GetCompletionValue(), c.GetCompletionFailure())
	listeners := p.Listeners
	if err := m.setPromise(&o, c.Key, &storepb.Promise{Result: res}); err != nil {
		return err
	}
	if err := m.completion(r, c.ResultCompletionId, protocol.TypeCompletePromiseCompletion, void()); err != nil {
		return err
	}
	for _, l := range listeners {
		if err := m.tell(l, res); err != nil {
			return err
		}
	}
	return nil
}

// forgetPromises removes the promises of a workflow. Who waits for one of them is told so: a later life of the workflow
// has promises of its own.
func (m *Machine) forgetPromises(o *keyspace.Object) error {
	type waiting struct {
		promise  string
		listener *storepb.Listener
	}
	var left []waiting
	prefix := keyspace.AppendPromisePrefix(nil, o)
	err := m.txn.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(key, value []byte) (bool, error) {
		var p storepb.Promise
		err := decodeRow(key, value, &p)
		for _, l := range p.Listeners {
			left = append(left, waiting{string(key[len(prefix):]), l})
		}
		return true, err
	})
	if err != nil {
		return err
	}
	if err := m.deletePrefix(prefix); err != nil {
		return err
	}
	for _, w := range left {
		if err := m.tell(w.listener, failure(410, fmt.Sprintf("the workflow of the promise '%s' was forgotten", w.promise))); err != nil {
			return err
		}
	}
	return nil
}

// tell answers a listener. It has the same workflow key and thus lives in the same partition.
func (m *Machine) tell(l *storepb.Listener, res *invocationpb.Result) error {
	id, err := ident.InvocationIDFromBytes(l.InvocationId)
	if err != nil {
		return fmt.Errorf("%w: the listener of a promise: %w", keyspace.ErrCorrupt, err)
	}
	r, err := m.row(id)
	if err != nil {
		return err
	}
	if !r.inFlight() || r.inv.Life != l.Life {
		m.dropped++
		return nil
	}
	return m.respond(r, l.CompletionId, res)
}
