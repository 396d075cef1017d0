package fsm

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"math"
	"sort"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// states is the state of objects and workflows: each key has the value that was last put there, until it is removed. What replaces all of it
// does so whole or not at all.
type states struct{ *step }

// get reads a value, which is valid until the next row is read.
func (s *states) get(o *keyspace.Object, key []byte) (value []byte, ok bool, err error) {
	s.key = keyspace.AppendState(s.key[:0], o, key)
	return s.txn.Get(s.key)
}

// keys are the keys that have a value, in their order.
func (s *states) keys(o *keyspace.Object) (keys [][]byte, err error) {
	prefix := keyspace.AppendStatePrefix(nil, o)
	err = s.txn.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(key, _ []byte) (bool, error) {
		keys = append(keys, append([]byte(nil), key[len(prefix):]...))
		return true, nil
	})
	return keys, err
}

func (s *states) set(o *keyspace.Object, key, value []byte) error {
	s.key = keyspace.AppendState(s.key[:0], o, key)
	return s.txn.Set(s.key, value)
}

func (s *states) remove(o *keyspace.Object, key []byte) error {
	s.key = keyspace.AppendState(s.key[:0], o, key)
	return s.txn.Delete(s.key)
}

func (s *states) clear(o *keyspace.Object) error {
	return s.deletePrefix(keyspace.AppendStatePrefix(nil, o))
}

// patch replaces the state of an object if it is the one that the patch was made for; otherwise the patch is dropped.
func (s *states) patch(o *keyspace.Object, p *storepb.StatePatch) error {
	if p.Version != nil {
		v, err := s.version(o)
		if err != nil {
			return err
		}
		if v != p.GetVersion() {
			s.dropped++
			return nil
		}
	}
	if err := s.clear(o); err != nil {
		return err
	}
	for _, e := range p.State {
		if err := s.set(o, e.Key, e.Value); err != nil {
			return err
		}
	}
	return nil
}

// version names the content of an object's state: callers compute it as well.
func (s *states) version(o *keyspace.Object) (string, error) {
	h := sha256.New()
	prefix := keyspace.AppendStatePrefix(nil, o)
	var n [8]byte
	i := uint64(0)
	err := s.txn.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(key, value []byte) (bool, error) {
		binary.BigEndian.PutUint64(n[:], i)
		i++
		h.Write(n[:])
		h.Write([]byte{1})
		h.Write(key[len(prefix):])
		h.Write([]byte{2})
		h.Write(value)
		h.Write([]byte{3})
		return true, nil
	})
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)), err
}

// writesState reports whether the handler may change the state of its key.
func writesState(t *invocationpb.Target) bool {
	return exclusive(t) || workflow(t) && schema.HandlerType(t.GetHandlerType()) == schema.WorkflowRun
}

func (m *Machine) getState(r *row, c *protocolpb.GetLazyStateCommand) error {
	res := void()
	if keyed(r.inv.Target) {
		o := object(&r.id, r.inv.Target)
		v, ok, err := m.states.get(&o, c.Key)
		if err != nil {
			return err
		}
		if ok {
			res = success(v)
		}
	}
	// The value is copied before the next row is read.
	return m.completed(r, c.ResultCompletionId, protocol.TypeGetLazyStateCompletion, false, protocol.Completion(c.ResultCompletionId, res))
}

func (m *Machine) getStateKeys(r *row, c *protocolpb.GetLazyStateKeysCommand) error {
	var keys [][]byte
	if keyed(r.inv.Target) {
		var err error
		o := object(&r.id, r.inv.Target)
		if keys, err = m.states.keys(&o); err != nil {
			return err
		}
	}
	return m.completed(r, c.ResultCompletionId, protocol.TypeGetLazyStateKeysCompletion, false, protocol.StateKeysCompletion(c.ResultCompletionId, keys))
}

// State is changed when the command is stored, not at the end, and stays changed if the handler fails.

func (m *Machine) setState(r *row, c *protocolpb.SetStateCommand) error {
	if !writesState(r.inv.Target) {
		m.dropped++
		return nil
	}
	o := object(&r.id, r.inv.Target)
	return m.states.set(&o, c.Key, c.Value.GetContent())
}

func (m *Machine) clearStateKey(r *row, c *protocolpb.ClearStateCommand) error {
	if !writesState(r.inv.Target) {
		m.dropped++
		return nil
	}
	o := object(&r.id, r.inv.Target)
	return m.states.remove(&o, c.Key)
}

func (m *Machine) clearAllState(r *row) error {
	if !writesState(r.inv.Target) {
		m.dropped++
		return nil
	}
	o := object(&r.id, r.inv.Target)
	return m.states.clear(&o)
}

// patchState replaces the state of an object, in its turn: behind what holds the object and what waits for it.
func (m *Machine) patchState(x *recordpb.PatchState, requestID []byte) error {
	m.out.replyStatus(requestID, recordpb.Reply_ACCEPTED)
	if len(x.Service) > math.MaxUint16 {
		m.dropped++
		return nil
	}
	o := keyspace.Object{Partition: ident.KeyPartition(x.Key), Service: x.Service, Key: x.Key}
	patch := patchOf(x)
	l, err := m.locks.of(&o)
	if err != nil {
		return err
	}
	if l.row == nil {
		return m.states.patch(&o, patch)
	}
	_, err = m.locks.enqueue(l, &storepb.Inboxed{Patch: patch, CreatedAtMs: m.now})
	return err
}

// patchOf orders the state by key, so that it is written the same everywhere.
func patchOf(x *recordpb.PatchState) *storepb.StatePatch {
	p := &storepb.StatePatch{Version: x.Version, State: make([]*storepb.StateEntry, 0, len(x.State))}
	for k, v := range x.State {
		p.State = append(p.State, &storepb.StateEntry{Key: []byte(k), Value: v})
	}
	sort.Slice(p.State, func(i, j int) bool { return string(p.State[i].Key) < string(p.State[j].Key) })
	return p
}
