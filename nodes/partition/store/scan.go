package store

import (
	"bytes"
	"fmt"

	"github.com/zeebo/xxh3"

	"perdure/control/ident"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
)

// The scans below read committed rows as of the moment of the call. They call fn until it returns an
// error, which they return. They hold back the removal of old files while they run: fn should not wait.

// Invocations calls fn for the status rows in the order of the ids.
func (s *Store) Invocations(fn func(ident.InvocationID, *storepb.Invocation) error) error {
	return s.rows([]byte{keyspace.TagInvocation}, func(key, value []byte) error {
		id, err := keyspace.InvocationOf(key)
		if err != nil {
			return err
		}
		inv, err := invocationOf(value)
		if err != nil {
			return err
		}
		return fn(id, inv)
	})
}

// Invoked calls fn for the invocations that are to run now. All status rows are passed, but only theirs are decoded:
// a partition may keep a hundred thousand that sleep or have ended.
func (s *Store) Invoked(fn func(ident.InvocationID, *storepb.Invocation) error) error {
	return s.rows([]byte{keyspace.TagInvocation}, func(key, value []byte) error {
		if !keyspace.MayBeInvoked(value) {
			return nil
		}
		id, err := keyspace.InvocationOf(key)
		if err != nil {
			return err
		}
		inv, err := invocationOf(value)
		if err != nil || inv.Status != storepb.Invocation_INVOKED {
			return err
		}
		return fn(id, inv)
	})
}

// JournalEntry is an entry of an invocation's journal.
type JournalEntry struct {
	Index uint32
	keyspace.Entry
}

// Entries calls fn for the journal of an invocation. Raw is valid until fn returns.
func (s *Store) Entries(id ident.InvocationID, fn func(JournalEntry) error) error {
	return s.rows(keyspace.AppendJournalPrefix(nil, &id), func(key, value []byte) (err error) {
		var e JournalEntry
		if e.Index, err = keyspace.JournalIndex(key); err != nil {
			return err
		}
		if e.Entry, err = keyspace.EntryOf(value); err != nil {
			return err
		}
		return fn(e)
	})
}

// Events calls fn for the journal events of an invocation, or of all when id is zero.
func (s *Store) Events(id ident.InvocationID, fn func(id ident.InvocationID, n uint32, e *storepb.Event) error) error {
	prefix := []byte{keyspace.TagEvent}
	if !id.IsZero() {
		prefix = keyspace.AppendEventPrefix(nil, &id)
	}
	return s.rows(prefix, func(key, value []byte) error {
		id, err := keyspace.InvocationOf(key)
		if err != nil {
			return err
		}
		n, err := keyspace.EventIndex(key)
		if err != nil {
			return err
		}
		e := new(storepb.Event)
		if err := e.UnmarshalVT(value); err != nil {
			return fmt.Errorf("journal event: %w: %w", ErrCorrupt, err)
		}
		return fn(id, n, e)
	})
}

// State calls fn for the state of an object in key order. Key and value are valid until fn returns.
func (s *Store) State(o keyspace.Object, fn func(key, value []byte) error) error {
	prefix := keyspace.AppendStatePrefix(nil, &o)
	return s.rows(prefix, func(key, value []byte) error { return fn(key[len(prefix):], value) })
}

func (s *Store) rows(prefix []byte, fn func(key, value []byte) error) error {
	return s.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(key, value []byte) (bool, error) {
		if !bytes.HasPrefix(key, prefix) {
			return false, nil
		}
		return true, fn(key, value)
	})
}

// StateHash is a hash of all replicated rows: equal on all replicas that applied the log up to the same LSN.
func (s *Store) StateHash() ([16]byte, error) {
	h := xxh3.New()
	err := s.Scan([]byte{0}, []byte{keyspace.TagLocal}, func(key, value []byte) (bool, error) {
		var n [8]byte
		putU32(n[:4], len(key))
		putU32(n[4:], len(value))
		h.Write(n[:])
		h.Write(key)
		h.Write(value)
		return true, nil
	})
	return h.Sum128().Bytes(), err
}

func putU32(b []byte, n int) {
	b[0], b[1], b[2], b[3] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
}
