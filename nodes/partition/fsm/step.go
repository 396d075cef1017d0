package fsm

import (
	"fmt"

	"perdure/control/cluster"
	"perdure/nodes/partition/store/keyspace"
)

// Reader reads rows.
type Reader interface {
	// Get reads a row. The value is valid until the next call of Get.
	Get(key []byte) (value []byte, ok bool, err error)
	// Scan calls fn for the rows from start (inclusive) to end (exclusive) in key order until fn returns
	// false. Key and value are valid until fn returns; fn neither reads nor writes rows.
	Scan(start, end []byte, fn func(key, value []byte) (more bool, err error)) error
}

// Txn is a batch of writes that its own reads see. Keys and values are copied.
type Txn interface {
	Reader
	// GetCommitted is Get as of before the batch, and cheaper.
	GetCommitted(key []byte) (value []byte, ok bool, err error)
	Set(key, value []byte) error
	Delete(key []byte) error
	DeleteRange(start, end []byte) error
	SetApplied(lsn cluster.LSN, latestMs uint64) error
}

// step is what the machine and its parts share: the rows that the command being applied reads and writes, its place in the log,
// and where its actions go. Outside of Apply and Finish it has no transaction.
type step struct {
	txn     Txn
	lsn     uint64
	now     uint64 // ms since the epoch
	out     *Actions
	dropped uint64 // commands and effects that were ignored so far

	// Scratch: key is for the next call of a transaction, val is used by write. Nothing is kept in either.
	key, val []byte
}

type message interface{ UnmarshalVT([]byte) error }

// read decodes the row at key; ok is false when there is none.
func read(r Reader, key []byte, into message) (ok bool, err error) {
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return false, err
	}
	return true, decodeRow(key, v, into)
}

// readCommitted is read for the tables whose changes are held back until Finish.
func (s *step) readCommitted(key []byte, into message) (ok bool, err error) {
	v, ok, err := s.txn.GetCommitted(key)
	if err != nil || !ok {
		return false, err
	}
	return true, decodeRow(key, v, into)
}

func decodeRow(key, v []byte, into message) error {
	if err := into.UnmarshalVT(v); err != nil {
		return fmt.Errorf("%w %x: %w", keyspace.ErrCorrupt, key, err)
	}
	return nil
}

type sized interface {
	SizeVT() int
	MarshalToSizedBufferVT([]byte) (int, error)
}

// write encodes a row and sets it.
func (s *step) write(key []byte, row sized) error {
	n := row.SizeVT()
	if cap(s.val) < n {
		s.val = make([]byte, n, 2*n)
	}
	s.val = s.val[:n]
	if _, err := row.MarshalToSizedBufferVT(s.val); err != nil {
		return fmt.Errorf("encode row %x: %w", key, err)
	}
	return s.txn.Set(key, s.val)
}

// rangeDeleteFrom is how many rows are worth a range tombstone; fewer are deleted one by one.
const rangeDeleteFrom = 64

// deletePrefix removes all rows with a prefix.
func (s *step) deletePrefix(prefix []byte) error {
	end := keyspace.PrefixEnd(nil, prefix)
	var keys [][]byte
	err := s.txn.Scan(prefix, end, func(key, _ []byte) (bool, error) {
		keys = append(keys, append([]byte(nil), key...))
		return len(keys) < rangeDeleteFrom, nil
	})
	if err != nil {
		return err
	}
	if len(keys) == rangeDeleteFrom {
		return s.txn.DeleteRange(prefix, end)
	}
	for _, k := range keys {
		if err := s.txn.Delete(k); err != nil {
			return err
		}
	}
	return nil
}
