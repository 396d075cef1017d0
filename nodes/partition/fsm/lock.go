package fsm

import (
	"bytes"
	"fmt"

	"perdure/control/ident"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
)

// lock is the lock of an object as apply sees and changes it; row is nil when nobody has it.
type lock struct {
	object keyspace.Object
	row    *storepb.Lock
	dirty  bool
}

// locks holds the locks of objects and their inboxes. A lock that is held says how many rows the inbox has, one that is free has
// none and is no row. What waits gets its turn in the order in which it came.
//
// The lock's row is written once per batch; those of the inbox at once.
type locks struct {
	*step
	counters *counters
	known    map[keyspace.Object]*lock
	dirty    []*lock
}

func newLocks(s *step, c *counters) locks {
	return locks{step: s, counters: c, known: make(map[keyspace.Object]*lock)}
}

// of reads the lock of an object.
func (c *locks) of(o *keyspace.Object) (*lock, error) {
	if l := c.known[*o]; l != nil {
		return l, nil
	}
	row := new(storepb.Lock)
	c.key = keyspace.AppendLock(c.key[:0], o)
	ok, err := c.readCommitted(c.key, row)
	if err != nil {
		return nil, err
	}
	l := &lock{object: *o}
	if ok {
		l.row = row
	}
	c.known[*o] = l
	return l, nil
}

func (c *locks) touch(l *lock) {
	if !l.dirty {
		l.dirty = true
		c.dirty = append(c.dirty, l)
	}
}

func (c *locks) flush() error {
	for i, l := range c.dirty {
		c.dirty[i] = nil
		l.dirty = false
		c.key = keyspace.AppendLock(c.key[:0], &l.object)
		var err error
		if l.row == nil {
			err = c.txn.Delete(c.key)
		} else {
			err = c.write(c.key, l.row)
		}
		if err != nil {
			return err
		}
	}
	c.dirty = c.dirty[:0]
	if len(c.known) > cachedRows {
		clear(c.known)
	}
	return nil
}

// take gives a free lock to an invocation.
func (c *locks) take(l *lock, id ident.InvocationID) {
	l.row = &storepb.Lock{Holder: append([]byte(nil), id[:]...), AcquiredAtMs: c.now}
	c.touch(l)
}

// enqueue puts something in the inbox of an object whose lock is held.
func (c *locks) enqueue(l *lock, b *storepb.Inboxed) (sequence uint64, err error) {
	sequence = c.counters.next(&c.counters.row.InboxNext)
	if l.row.Queued == 0 {
		l.row.Next = sequence
	}
	l.row.Queued++
	c.touch(l)
	c.key = keyspace.AppendInbox(c.key[:0], &l.object, sequence)
	return sequence, c.write(c.key, b)
}

// leave takes the invocation that waits at sequence out of an inbox.
func (c *locks) leave(o *keyspace.Object, id ident.InvocationID, sequence uint64) error {
	l, err := c.of(o)
	if err != nil {
		return err
	}
	if l.row == nil || l.row.Queued == 0 {
		return fmt.Errorf("%w: %s is in the inbox of an object that nobody waits for", keyspace.ErrCorrupt, id)
	}
	l.row.Queued--
	c.touch(l)
	c.key = keyspace.AppendInbox(c.key[:0], o, sequence)
	return c.txn.Delete(c.key)
}

// pass takes the next out of the inbox of an object that id holds. An invocation has the lock from here on; before a patch of the
// state id keeps it, so that pass can be called again. Without a next the lock is free. Nil is also returned when id holds nothing.
func (c *locks) pass(id ident.InvocationID, o *keyspace.Object) (*storepb.Inboxed, error) {
	l, err := c.of(o)
	if err != nil {
		return nil, err
	}
	if l.row == nil || !bytes.Equal(l.row.Holder, id[:]) {
		return nil, nil
	}
	c.touch(l)
	if l.row.Queued == 0 {
		l.row = nil
		return nil, nil
	}
	seq, b, err := c.first(o, l.row.Next)
	if err != nil {
		return nil, err
	}
	l.row.Queued--
	l.row.Next = seq + 1
	if b.Patch == nil {
		l.row.Holder, l.row.AcquiredAtMs = b.InvocationId, c.now
	}
	c.key = keyspace.AppendInbox(c.key[:0], o, seq)
	return b, c.txn.Delete(c.key)
}

// first reads the oldest of an inbox that has something. from skips what is known to be gone: the
// deleted rows below it would have to be passed again each time.
func (c *locks) first(o *keyspace.Object, from uint64) (seq uint64, b *storepb.Inboxed, err error) {
	c.key = keyspace.AppendInbox(c.key[:0], o, from)
	end := keyspace.PrefixEnd(nil, keyspace.AppendInboxPrefix(nil, o))
	err = c.txn.Scan(c.key, end, func(key, value []byte) (bool, error) {
		if _, seq, err = keyspace.InboxOf(key); err != nil {
			return false, err
		}
		b = new(storepb.Inboxed)
		return false, decodeRow(key, value, b)
	})
	if err == nil && b == nil {
		err = fmt.Errorf("%w: the inbox of %s/%s has less than its lock says", keyspace.ErrCorrupt, o.Service, o.Key)
	}
	return seq, b, err
}
