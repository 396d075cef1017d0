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
	prefix := keyspace.AppendPromiseSinkPrefix(nil, &o, c.Key)
	if _, err := m.addSink(&p.Sinks, &p.MoreSinks, prefix, m.sink(r, c.ResultCompletionId)); err != nil {
		return err
	}
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

// completePromise completes a promise, the first time. Its own answer comes before that of the sinks.
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
	sinks, err := m.sinksOfPromise(&o, c.Key, p)
	if err != nil {
		return err
	}
	res := protocol.ResultOf(c.GetCompletionValue(), c.GetCompletionFailure())
	if err := m.setPromise(&o, c.Key, &storepb.Promise{Result: res}); err != nil {
		return err
	}
	if err := m.completion(r, c.ResultCompletionId, protocol.TypeCompletePromiseCompletion, void()); err != nil {
		return err
	}
	return m.tell(sinks, res)
}

// sinksOfPromise are all sinks of a promise; what the promise's row has no room for is removed.
func (m *Machine) sinksOfPromise(o *keyspace.Object, name string, p *storepb.Promise) ([]*invocationpb.Sink, error) {
	if p.MoreSinks == 0 {
		return p.Sinks, nil
	}
	return m.takeSinks(p.Sinks, keyspace.AppendPromiseSinkPrefix(nil, o, name))
}

// forgetPromises removes the promises of a workflow. Who waits for one of them is told so: a later life of the workflow
// has promises of its own.
func (m *Machine) forgetPromises(o *keyspace.Object) error {
	type waited struct {
		name    string
		promise *storepb.Promise
	}
	var left []waited
	prefix := keyspace.AppendPromisePrefix(nil, o)
	err := m.txn.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(key, value []byte) (bool, error) {
		p := new(storepb.Promise)
		err := decodeRow(key, value, p)
		if len(p.Sinks) > 0 {
			left = append(left, waited{string(key[len(prefix):]), p})
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
		sinks, err := m.sinksOfPromise(o, w.name, w.promise)
		if err != nil {
			return err
		}
		if err := m.tell(sinks, failure(410, fmt.Sprintf("the workflow of the promise '%s' was forgotten", w.name))); err != nil {
			return err
		}
	}
	return nil
}

// tell answers the sinks of a promise. They have the same workflow key and thus live in the same partition.
func (m *Machine) tell(sinks []*invocationpb.Sink, res *invocationpb.Result) error {
	for _, s := range sinks {
		id, err := ident.InvocationIDFromBytes(s.Caller)
		if err != nil {
			return fmt.Errorf("%w: who waits for a promise: %w", keyspace.ErrCorrupt, err)
		}
		r, err := m.row(id)
		if err != nil {
			return err
		}
		if !r.inFlight() || r.inv.Life != s.Life {
			m.dropped++
			continue
		}
		if err := m.respond(r, s.CompletionId, res); err != nil {
			return err
		}
	}
	return nil
}
