package store

import (
	"bytes"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"perdure/control/ident"
	"perdure/invokers"
	"perdure/invokers/invocationpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// Invocation reads the status row of an invocation; nil when there is none.
func (s *Store) Invocation(id ident.InvocationID) (*storepb.Invocation, error) {
	var key [25]byte
	v, ok, err := s.Get(keyspace.AppendInvocation(key[:0], &id))
	if err != nil || !ok {
		return nil, err
	}
	return invocationOf(v)
}

func invocationOf(v []byte) (*storepb.Invocation, error) {
	inv := new(storepb.Invocation)
	if err := inv.UnmarshalVT(v); err != nil {
		return nil, fmt.Errorf("status row: %w: %w", ErrCorrupt, err)
	}
	return inv, nil
}

// view reads several rows as of one moment.
type view struct{ it *pebble.Iterator }

func (s *Store) view() (view, error) {
	it, err := s.db.NewIter(nil)
	if err != nil {
		return view{}, fmt.Errorf("read from the store of partition %d: %w", s.partition, err)
	}
	return view{it}, nil
}

func (v view) close() { v.it.Close() }

// get reads a row; the value is valid until the view is moved.
func (v view) get(key []byte) (value []byte, ok bool, err error) {
	if !v.it.SeekGE(key) || !bytes.Equal(v.it.Key(), key) {
		return nil, false, v.it.Error()
	}
	value, err = v.it.ValueAndErr()
	return value, err == nil, err
}

// scan calls fn for the rows with the prefix.
func (v view) scan(prefix []byte, fn func(key, value []byte) (more bool, err error)) error {
	for ok := v.it.SeekGE(prefix); ok && bytes.HasPrefix(v.it.Key(), prefix); ok = v.it.Next() {
		value, err := v.it.ValueAndErr()
		if err != nil {
			return err
		}
		if more, err := fn(v.it.Key(), value); err != nil || !more {
			return err
		}
	}
	return v.it.Error()
}

// Journal is what an attempt starts from.
type Journal = invokers.Journal

// ReadJournal reads an invocation that is to run: status, journal and, for keyed targets, state, as of one
// moment. State is read in key order as long as the sum of key and value bytes stays within
// what limit says for its target; nil reads none. reserve is asked before each entry of either is kept; nil refuses nothing.
// ErrNotFound and ErrNotRunning say that there is nothing to run.
func (s *Store) ReadJournal(id ident.InvocationID, limit invokers.EagerLimit, reserve func(bytes int) bool) (*Journal, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.release()
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	defer v.close()
	if reserve == nil {
		reserve = func(int) bool { return true }
	}
	j, err := v.journal(id, limit, reserve)
	if err != nil {
		return nil, fmt.Errorf("read the journal of %s: %w", id, err)
	}
	return j, nil
}

func (v view) journal(id ident.InvocationID, limit invokers.EagerLimit, reserve func(int) bool) (*Journal, error) {
	raw, ok, err := v.get(keyspace.AppendInvocation(nil, &id))
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, ErrNotFound
	}
	inv, err := invocationOf(raw)
	if err != nil {
		return nil, err
	}
	if inv.Status != storepb.Invocation_INVOKED {
		return nil, ErrNotRunning
	}
	j := &Journal{
		ID: id, Incarnation: inv.Incarnation, Target: inv.Target, ProtocolVersion: inv.ProtocolVersion,
		IdempotencyKey: inv.IdempotencyKey, LimitKey: inv.LimitKey,
		CreatedAtMs: inv.CreatedAtMs, ModifiedAtMs: inv.ModifiedAtMs,
		TraceParent: inv.TraceParent, TraceState: inv.TraceState,
		Entries:      make([]invokers.Entry, 0, inv.Entries),
		PartialState: true,
	}
	copy(j.Deployment[:], inv.DeploymentId)
	err = v.scan(keyspace.AppendJournalPrefix(nil, &id), func(_, value []byte) (bool, error) {
		e, err := keyspace.EntryOf(value)
		if err == nil && !reserve(len(e.Raw)) {
			err = invokers.ErrNoMemory
		}
		if err != nil {
			return false, err
		}
		j.Entries = append(j.Entries, invokers.Entry{Type: e.Type, Raw: bytes.Clone(e.Raw)})
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	if len(j.Entries) != int(inv.Entries) {
		return nil, fmt.Errorf("journal has %d of %d entries: %w", len(j.Entries), inv.Entries, ErrCorrupt)
	}
	if !keyed(inv.Target) || limit == nil {
		return j, nil
	}
	if n := limit(inv.Target, j.Deployment); n > 0 {
		err = v.state(j, n, reserve)
	}
	return j, err
}

func keyed(t *invocationpb.Target) bool { return t.GetServiceType() > 1 }

func (v view) state(j *Journal, limit int, reserve func(int) bool) error {
	o := keyspace.Object{Partition: j.ID.PartitionKey(), Service: j.Target.Service, Key: j.Target.Key}
	prefix := keyspace.AppendStatePrefix(nil, &o)
	j.PartialState = false
	size := 0
	return v.scan(prefix, func(key, value []byte) (bool, error) {
		k := key[len(prefix):]
		if size += len(k) + len(value); size > limit {
			j.PartialState = true
			return false, nil
		}
		if !reserve(len(k) + len(value)) {
			return false, invokers.ErrNoMemory
		}
		j.State = append(j.State, invokers.StateEntry{Key: bytes.Clone(k), Value: bytes.Clone(value)})
		return true, nil
	})
}

// OutputState says how far an invocation is.
type OutputState uint8

// The states of an output.
const (
	OutputMissing OutputState = iota // no such invocation
	OutputPending                    // not completed
	OutputReady
)

// Output is what an invocation ended with.
type Output struct {
	State       OutputState
	Result      *invocationpb.Result // when ready
	ExpiresAtMs uint64               // when ready: end of the retention, ms since the epoch
	Target      *invocationpb.Target // unless missing
}

// Output reads what an invocation ended with.
func (s *Store) Output(id ident.InvocationID) (Output, error) {
	if err := s.enter(); err != nil {
		return Output{}, err
	}
	defer s.release()
	v, err := s.view()
	if err != nil {
		return Output{}, err
	}
	defer v.close()
	out, err := v.output(id)
	if err != nil {
		return Output{}, fmt.Errorf("read the output of %s: %w", id, err)
	}
	return out, nil
}

func (v view) output(id ident.InvocationID) (Output, error) {
	raw, ok, err := v.get(keyspace.AppendInvocation(nil, &id))
	if err != nil || !ok {
		return Output{}, err
	}
	inv, err := invocationOf(raw)
	if err != nil {
		return Output{}, err
	}
	if inv.Status != storepb.Invocation_COMPLETED {
		return Output{State: OutputPending, Target: inv.Target}, nil
	}
	r, err := keyspace.Result(id, inv, v.get)
	return Output{State: OutputReady, Result: r, ExpiresAtMs: keyspace.ExpiresAt(inv.CompletedAtMs, inv.CompletionRetentionMs), Target: inv.Target}, err
}

// TimerKey is a timer.
type TimerKey = keyspace.TimerKey

// Timers reads the timers that are greater than after, in order, at most limit.
func (s *Store) Timers(after TimerKey, limit int) ([]TimerKey, error) {
	start := append(keyspace.AppendTimer(nil, &after), 0)
	var ts []TimerKey
	err := s.Scan(start, []byte{keyspace.TagTimer + 1}, func(key, _ []byte) (bool, error) {
		t, err := keyspace.TimerOf(key)
		ts = append(ts, t)
		return len(ts) < limit, err
	})
	return ts, err
}

// Expiry is an invocation whose retention ends.
type Expiry = keyspace.ExpiryKey

// Expired reads the invocations whose retention is over at a time, the oldest first, at most limit.
func (s *Store) Expired(nowMs uint64, limit int) ([]Expiry, error) {
	end := keyspace.AppendExpiry(nil, &Expiry{AtMs: nowMs})[:9]
	var es []Expiry
	err := s.Scan([]byte{keyspace.TagExpiry}, keyspace.PrefixEnd(nil, end), func(key, _ []byte) (bool, error) {
		e, err := keyspace.ExpiryOf(key)
		es = append(es, e)
		return len(es) < limit, err
	})
	return es, err
}

// Message is a message in the outbox.
type Message struct {
	Index   uint64
	Command *recordpb.Command
	Bytes   int // size of the row
}

// Outbox reads messages from an index (inclusive) on: at most limit, and no more once their rows have bytes or more,
// but at least one if there is one. more says that there may be more.
func (s *Store) Outbox(from uint64, limit, bytes int) (ms []Message, more bool, err error) {
	size := 0
	err = s.Scan(keyspace.AppendOutbox(nil, from), []byte{keyspace.TagOutbox + 1}, func(key, value []byte) (bool, error) {
		i, err := keyspace.OutboxIndex(key)
		if err != nil {
			return false, err
		}
		c := new(recordpb.Command)
		if err := c.UnmarshalVT(value); err != nil {
			return false, fmt.Errorf("outbox message %d: %w: %w", i, ErrCorrupt, err)
		}
		ms = append(ms, Message{i, c, len(value)})
		size += len(value)
		more = len(ms) >= limit || size >= bytes
		return !more, nil
	})
	return ms, more, err
}

// OutboxHead is the oldest index of the outbox that was not truncated; there need not be a message.
func (s *Store) OutboxHead() (uint64, error) {
	v, ok, err := s.Get(keyspace.AppendMeta(nil, keyspace.MetaCounters))
	if err != nil || !ok {
		return 1, err
	}
	var c storepb.Counters
	if err := c.UnmarshalVT(v); err != nil {
		return 0, fmt.Errorf("counters: %w: %w", ErrCorrupt, err)
	}
	return max(c.OutboxHead, 1), nil
}
