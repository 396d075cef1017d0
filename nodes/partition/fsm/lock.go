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

// lockCache is for locks what rowCache is for status rows.
type lockCache struct {
	locks map[keyspace.Object]*lock
	dirty []*lock
}

func (c *lockCache) init() { c.locks = make(map[keyspace.Object]*lock) }

func (m *Machine) lock(o *keyspace.Object) (*lock, error) {
	if l := m.locks.locks[*o]; l != nil {
		return l, nil
	}
	row := new(storepb.Lock)
	m.key = keyspace.AppendLock(m.key[:0], o)
	ok, err := m.readCommitted(m.key, row)
	if err != nil {
		return nil, err
	}
	l := &lock{object: *o}
	if ok {
		l.row = row
	}
	m.locks.locks[*o] = l
	return l, nil
}

func (m *Machine) touchLock(l *lock) {
	if !l.dirty {
		l.dirty = true
		m.locks.dirty = append(m.locks.dirty, l)
	}
}

func (m *Machine) flushLocks() error {
	for i, l := range m.locks.dirty {
		m.locks.dirty[i] = nil
		l.dirty = false
		m.key = keyspace.AppendLock(m.key[:0], &l.object)
		var err error
		if l.row == nil {
			err = m.txn.Delete(m.key)
		} else {
			err = m.write(m.key, l.row)
		}
		if err != nil {
			return err
		}
	}
	m.locks.dirty = m.locks.dirty[:0]
	if len(m.locks.locks) > cachedRows {
		clear(m.locks.locks)
	}
	return nil
}

// take gives a free lock to an invocation.
func (m *Machine) take(l *lock, id ident.InvocationID) {
	l.row = &storepb.Lock{Holder: append([]byte(nil), id[:]...), AcquiredAtMs: m.now}
	m.touchLock(l)
}

// enqueue puts something in the inbox of an object whose lock is held.
func (m *Machine) enqueue(l *lock, b *storepb.Inboxed) (sequence uint64, err error) {
	sequence = m.counters.next(&m.counters.row.InboxNext)
	if l.row.Queued == 0 {
		l.row.Next = sequence
	}
	l.row.Queued++
	m.touchLock(l)
	m.key = keyspace.AppendInbox(m.key[:0], &l.object, sequence)
	return sequence, m.write(m.key, b)
}

// leaveInbox takes an invocation out of the inbox that it waits in.
func (m *Machine) leaveInbox(r *row) error {
	o := object(&r.id, r.inv.Target)
	l, err := m.lock(&o)
	if err != nil {
		return err
	}
	if l.row == nil || l.row.Queued == 0 {
		return fmt.Errorf("%w: %s is in the inbox of an object that nobody waits for", keyspace.ErrCorrupt, r.id)
	}
	l.row.Queued--
	m.touchLock(l)
	m.key = keyspace.AppendInbox(m.key[:0], &o, r.inv.InboxSequence)
	return m.txn.Delete(m.key)
}

// unlock releases the lock that the invocation may hold and gives it to the next in the inbox.
func (m *Machine) unlock(id ident.InvocationID, o *keyspace.Object) error {
	l, err := m.lock(o)
	if err != nil {
		return err
	}
	if l.row == nil || !bytes.Equal(l.row.Holder, id[:]) {
		return nil
	}
	m.touchLock(l)
	for l.row.Queued > 0 {
		seq, b, err := m.firstInboxed(o, l.row.Next)
		if err != nil {
			return err
		}
		l.row.Queued--
		l.row.Next = seq + 1
		m.key = keyspace.AppendInbox(m.key[:0], o, seq)
		if err := m.txn.Delete(m.key); err != nil {
			return err
		}
		if b.Patch != nil {
			if err := m.applyPatch(o, b.Patch); err != nil {
				return err
			}
			continue
		}
		l.row.Holder, l.row.AcquiredAtMs = b.InvocationId, m.now
		return m.startInboxed(b.InvocationId)
	}
	l.row = nil
	return nil
}

func (m *Machine) startInboxed(raw []byte) error {
	id, err := ident.InvocationIDFromBytes(raw)
	if err != nil {
		return fmt.Errorf("%w: inbox: %w", keyspace.ErrCorrupt, err)
	}
	r, err := m.row(id)
	if err != nil {
		return err
	}
	if r.status() != storepb.Invocation_INBOXED {
		return fmt.Errorf("%w: %s waits in an inbox with status %s", keyspace.ErrCorrupt, id, r.status())
	}
	r.inv.InboxSequence = 0
	m.start(r, nil)
	return nil
}

// firstInboxed reads the oldest of an inbox that has something. from skips what is known to be gone: the
// deleted rows below it would have to be passed again each time.
func (m *Machine) firstInboxed(o *keyspace.Object, from uint64) (seq uint64, b *storepb.Inboxed, err error) {
	m.key = keyspace.AppendInbox(m.key[:0], o, from)
	end := keyspace.PrefixEnd(nil, keyspace.AppendInboxPrefix(nil, o))
	err = m.txn.Scan(m.key, end, func(key, value []byte) (bool, error) {
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
