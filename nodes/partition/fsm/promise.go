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

// promises are the durable promises of workflows. A promise has either a result, which stays as it is, or sinks that wait for it, and
// each of these is handed out once: with the result, or when the promise is forgotten.
type promises struct{ *step }

// read reads the row of a promise; an unknown one is empty.
func (ps *promises) read(o *keyspace.Object, name string) (*storepb.Promise, error) {
	p := new(storepb.Promise)
	ps.key = keyspace.AppendPromise(ps.key[:0], o, name)
	_, err := read(ps.txn, ps.key, p)
	return p, err
}

func (ps *promises) set(o *keyspace.Object, name string, p *storepb.Promise) error {
	ps.key = keyspace.AppendPromise(ps.key[:0], o, name)
	return ps.write(ps.key, p)
}

// peek is what a promise was completed with; nil when it was not.
func (ps *promises) peek(o *keyspace.Object, name string) (*invocationpb.Result, error) {
	p, err := ps.read(o, name)
	return p.Result, err
}

// await is peek, and makes s wait when there is no result.
func (ps *promises) await(o *keyspace.Object, name string, s *invocationpb.Sink) (*invocationpb.Result, error) {
	p, err := ps.read(o, name)
	if p.Result != nil || err != nil {
		return p.Result, err
	}
	if _, err := ps.addSink(&p.Sinks, &p.MoreSinks, keyspace.AppendPromiseSinkPrefix(nil, o, name), s); err != nil {
		return nil, err
	}
	return nil, ps.set(o, name, p)
}

// complete gives a promise its result and returns who waited for it. ok is false if it has one already.
func (ps *promises) complete(o *keyspace.Object, name string, res *invocationpb.Result) (waited []*invocationpb.Sink, ok bool, err error) {
	p, err := ps.read(o, name)
	if p.Result != nil || err != nil {
		return nil, false, err
	}
	if waited, err = ps.sinks(o, name, p); err != nil {
		return nil, false, err
	}
	return waited, true, ps.set(o, name, &storepb.Promise{Result: res})
}

// sinks are all sinks of a promise; what the promise's row has no room for is removed.
func (ps *promises) sinks(o *keyspace.Object, name string, p *storepb.Promise) ([]*invocationpb.Sink, error) {
	if p.MoreSinks == 0 {
		return p.Sinks, nil
	}
	return ps.takeSinks(p.Sinks, keyspace.AppendPromiseSinkPrefix(nil, o, name))
}

// forget removes the promises of a workflow, and then calls tell for each that somebody waited for, in the order of their names.
func (ps *promises) forget(o *keyspace.Object, tell func(name string, waited []*invocationpb.Sink) error) error {
	type forgotten struct {
		name    string
		promise *storepb.Promise
	}
	var left []forgotten
	prefix := keyspace.AppendPromisePrefix(nil, o)
	err := ps.txn.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(key, value []byte) (bool, error) {
		p := new(storepb.Promise)
		err := decodeRow(key, value, p)
		if len(p.Sinks) > 0 {
			left = append(left, forgotten{string(key[len(prefix):]), p})
		}
		return true, err
	})
	if err != nil {
		return err
	}
	if err := ps.deletePrefix(prefix); err != nil {
		return err
	}
	for _, f := range left {
		waited, err := ps.sinks(o, f.name, f.promise)
		if err != nil {
			return err
		}
		if err := tell(f.name, waited); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) getPromise(r *row, c *protocolpb.GetPromiseCommand) error {
	if !workflow(r.inv.Target) {
		return m.reject(r, "only workflows have promises")
	}
	o := object(&r.id, r.inv.Target)
	res, err := m.promises.await(&o, c.Key, m.sink(r, c.ResultCompletionId))
	switch {
	case err != nil:
		return err
	case res == nil:
		return m.expect(r, c.ResultCompletionId, protocol.TypeGetPromiseCompletion)
	}
	return m.completion(r, c.ResultCompletionId, protocol.TypeGetPromiseCompletion, res)
}

func (m *Machine) peekPromise(r *row, c *protocolpb.PeekPromiseCommand) error {
	if !workflow(r.inv.Target) {
		return m.reject(r, "only workflows have promises")
	}
	o := object(&r.id, r.inv.Target)
	res, err := m.promises.peek(&o, c.Key)
	if err != nil {
		return err
	}
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
	o := object(&r.id, r.inv.Target)
	res := protocol.ResultOf(c.GetCompletionValue(), c.GetCompletionFailure())
	waited, ok, err := m.promises.complete(&o, c.Key, res)
	if err != nil {
		return err
	}
	answer := void()
	if !ok {
		answer = failure(409, "promise was already completed")
	}
	if err := m.completion(r, c.ResultCompletionId, protocol.TypeCompletePromiseCompletion, answer); err != nil {
		return err
	}
	return m.tell(waited, res)
}

// forgetPromises removes the promises of a workflow. Who waits for one of them is told so: a later life of the workflow
// has promises of its own.
func (m *Machine) forgetPromises(o *keyspace.Object) error {
	return m.promises.forget(o, func(name string, waited []*invocationpb.Sink) error {
		return m.tell(waited, failure(410, fmt.Sprintf("the workflow of the promise '%s' was forgotten", name)))
	})
}

// tell answers the sinks of a promise. They have the same workflow key and thus live in the same partition.
func (m *Machine) tell(sinks []*invocationpb.Sink, res *invocationpb.Result) error {
	for _, s := range sinks {
		id, err := ident.InvocationIDFromBytes(s.Caller)
		if err != nil {
			return fmt.Errorf("%w: who waits for a promise: %w", keyspace.ErrCorrupt, err)
		}
		r, err := m.rows.of(id)
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
