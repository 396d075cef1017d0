package fsm

import (
	"bytes"
	"fmt"

	"perdure/control/ident"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
)

// lock reads the lock of an object; held is false when nobody has it.
func (m *Machine) lock(o *keyspace.Object) (l *storepb.Lock, held bool, err error) {
	l = new(storepb.Lock)
	m.key = keyspace.AppendLock(m.key[:0], o)
	held, err = read(m.txn, m.key, l)
	return l, held, err
}

func (m *Machine) setLock(o *keyspace.Object, l *storepb.Lock) error {
	m.key = keyspace.AppendLock(m.key[:0], o)
	return m.write(m.key, l)
}

// enqueue puts something in the inbox of an object whose lock is held.
func (m *Machine) enqueue(o *keyspace.Object, l *storepb.Lock, b *storepb.Inboxed) (sequence uint64, err error) {
	sequence = m.counters.InboxNext
	m.counters.InboxNext++
	m.countersDirty = true
	m.key = keyspace.AppendInbox(m.key[:0], o, sequence)
	if err := m.write(m.key, b); err != nil {
		return 0, err
	}
	if l.Queued == 0 {
		l.Next = sequence
	}
	l.Queued++
	return sequence, m.setLock(o, l)
}

// leaveInbox takes an invocation out of the inbox that it waits in.
func (m *Machine) leaveInbox(r *row) error {
	o := object(&r.id, r.inv.Target)
	m.key = keyspace.AppendInbox(m.key[:0], &o, r.inv.InboxSequence)
	if err := m.txn.Delete(m.key); err != nil {
		return err
	}
	l, held, err := m.lock(&o)
	if err != nil {
		return err
	}
	if !held || l.Queued == 0 {
		return fmt.Errorf("%w: %s is in the inbox of an object that nobody waits for", keyspace.ErrCorrupt, r.id)
	}
	l.Queued--
	return m.setLock(&o, l)
}

// unlock releases the lock that the invocation may hold and gives it to the next in the inbox.
func (m *Machine) unlock(id ident.InvocationID, o *keyspace.Object) error {
	l, held, err := m.lock(o)
	if err != nil {
		return err
	}
	if !held || !bytes.Equal(l.Holder, id[:]) {
		return nil
	}
	for l.Queued > 0 {
		seq, b, err := m.firstInboxed(o, l.Next)
		if err != nil {
			return err
		}
		l.Queued--
		l.Next = seq + 1
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
		l.Holder, l.AcquiredAtMs = b.InvocationId, m.now
		if err := m.setLock(o, l); err != nil {
			return err
		}
		return m.startInboxed(b.InvocationId)
	}
	m.key = keyspace.AppendLock(m.key[:0], o)
	return m.txn.Delete(m.key)
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
		return false, b.UnmarshalVT(value)
	})
	if err == nil && b == nil {
		err = fmt.Errorf("%w: the inbox of %s/%s has less than its lock says", keyspace.ErrCorrupt, o.Service, o.Key)
	}
	return seq, b, err
}
