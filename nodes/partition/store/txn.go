package store

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"perdure/control/cluster"
	"perdure/nodes/partition/store/keyspace"
)

// Txn collects the writes of a batch of records and shows them to its own reads. Only the store's one
// writer uses it, and only one at a time. After Commit or Discard it is empty and can be used again.
type Txn struct {
	s     *Store
	batch *pebble.Batch
	// before reads the store as of the beginning of the batch. Unlike Pebble's Get it uses the Bloom filters
	// of the lowest level, where nearly all rows are: most look-ups are for rows that do not exist.
	before *pebble.Iterator
	value  []byte // what Get returned last
}

// NewTxn makes the writer's transaction.
func (s *Store) NewTxn() *Txn { return &Txn{s: s} }

func (t *Txn) open() *pebble.Batch {
	if t.batch == nil {
		t.batch = t.s.db.NewIndexedBatch()
	}
	return t.batch
}

// Get reads a row. The value is valid until the next call of Get.
func (t *Txn) Get(key []byte) (value []byte, ok bool, err error) {
	v, closer, err := t.open().Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read a row: %w", err)
	}
	t.value = append(t.value[:0], v...)
	if err := closer.Close(); err != nil {
		return nil, false, fmt.Errorf("read a row: %w", err)
	}
	return t.value, true, nil
}

// GetCommitted reads a row as of the beginning of the batch. The value is valid until the next call of
// GetCommitted.
func (t *Txn) GetCommitted(key []byte) (value []byte, ok bool, err error) {
	if t.before == nil {
		if t.before, err = t.s.db.NewIter(&pebble.IterOptions{UseL6Filters: true}); err != nil {
			return nil, false, fmt.Errorf("read a row: %w", err)
		}
	}
	if !t.before.SeekPrefixGE(key) {
		if err := t.before.Error(); err != nil {
			return nil, false, fmt.Errorf("read a row: %w", err)
		}
		return nil, false, nil
	}
	if value, err = t.before.ValueAndErr(); err != nil {
		return nil, false, fmt.Errorf("read a row: %w", err)
	}
	return value, true, nil
}

// Scan calls fn for the rows from start (inclusive) to end (exclusive) in key order until fn returns
// false. Key and value are valid until fn returns. fn must not write.
func (t *Txn) Scan(start, end []byte, fn func(key, value []byte) (more bool, err error)) error {
	it, err := t.open().NewIter(&pebble.IterOptions{LowerBound: start, UpperBound: end})
	if err != nil {
		return fmt.Errorf("scan rows: %w", err)
	}
	return drain(it, fn)
}

// Set writes a row; key and value are copied.
func (t *Txn) Set(key, value []byte) error { return t.open().Set(key, value, nil) }

// Delete removes a row, if it is there.
func (t *Txn) Delete(key []byte) error { return t.open().Delete(key, nil) }

// DeleteRange removes the rows from start (inclusive) to end (exclusive).
func (t *Txn) DeleteRange(start, end []byte) error { return t.open().DeleteRange(start, end, nil) }

// SetApplied notes how far the log is applied with this batch, and the latest creation time of its records up to
// there, in ms since the epoch.
func (t *Txn) SetApplied(lsn cluster.LSN, latestMs uint64) error {
	var key [2]byte
	var v [16]byte
	return t.Set(keyspace.AppendMeta(key[:0], keyspace.MetaApplied), keyspace.AppendApplied(v[:0], lsn, latestMs))
}

// Commit makes the batch visible, all of it at once. It becomes durable with a later flush. After an error
// the store must be closed.
func (t *Txn) Commit() error {
	err := errors.Join(t.closeBefore(), t.s.failure.get())
	if t.batch != nil {
		if err == nil {
			err = t.batch.Commit(pebble.NoSync)
		}
		err = errors.Join(err, t.batch.Close())
		t.batch = nil
	}
	if err != nil {
		return fmt.Errorf("commit to the store of partition %d: %w", t.s.partition, err)
	}
	return nil
}

// Discard drops the batch. A transaction that is in use when the store is to be closed must be committed or
// discarded first.
func (t *Txn) Discard() {
	t.closeBefore() // an error of a read that nobody needs any more
	if t.batch != nil {
		t.batch.Close() // an uncommitted batch has nothing to fail with
		t.batch = nil
	}
}

func (t *Txn) closeBefore() error {
	it := t.before
	if it == nil {
		return nil
	}
	t.before = nil
	return it.Close()
}
