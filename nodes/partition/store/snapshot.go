package store

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// Snapshot reads the rows as of the moment when it was taken. It holds back the removal of old rows and the closing of
// the store until Close. Any goroutine may use it.
type Snapshot struct {
	s     *Store
	snap  *pebble.Snapshot
	close func() error
}

// Snapshot takes a snapshot of the committed rows. The caller closes it soon.
func (s *Store) Snapshot() (*Snapshot, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	snap := s.db.NewSnapshot()
	return &Snapshot{s: s, snap: snap, close: sync.OnceValue(func() error {
		defer s.release()
		return snap.Close()
	})}, nil
}

// Close ends the snapshot. It may be called more than once, but not while a read is under way.
func (n *Snapshot) Close() error { return n.close() }

// Get reads one row; the value is the caller's.
func (n *Snapshot) Get(key []byte) (value []byte, ok bool, err error) {
	v, closer, err := n.snap.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read from a snapshot of partition %d: %w", n.s.partition, err)
	}
	value = append([]byte{}, v...)
	return value, true, closer.Close()
}

// Scan calls fn for the rows from start (inclusive) to end (exclusive) in key order, until fn returns false. Key and value
// are valid until fn returns.
func (n *Snapshot) Scan(start, end []byte, fn func(key, value []byte) (more bool, err error)) error {
	it, err := n.snap.NewIter(&pebble.IterOptions{LowerBound: start, UpperBound: end})
	if err != nil {
		return fmt.Errorf("scan a snapshot of partition %d: %w", n.s.partition, err)
	}
	return drain(it, fn)
}
