package fsm

import (
	"perdure/control/ident"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
)

// row is a status row as apply sees and changes it; inv is nil when there is none.
type row struct {
	id    ident.InvocationID
	inv   *storepb.Invocation
	dirty bool
	// output is the payload of the last Output entry if it was appended in this batch.
	output []byte
	// again: what the invocation suspended on was there already; it starts again behind this command.
	again bool
}

// status is FREE for a row that is not there.
func (r *row) status() storepb.Invocation_Status { return r.inv.GetStatus() }

// inFlight reports whether the journal of the invocation takes entries.
func (r *row) inFlight() bool {
	switch r.status() {
	case storepb.Invocation_INVOKED, storepb.Invocation_SUSPENDED, storepb.Invocation_PAUSED:
		return true
	}
	return false
}

// rowCache keeps decoded status rows of the batch, and between batches those of invocations that are in
// flight, because they are likely to be needed again. It has no influence on what is written.
type rowCache struct {
	rows  map[ident.InvocationID]*row
	dirty []*row
}

// cachedRows bounds the rows kept between batches.
const cachedRows = 512

func (c *rowCache) init() { c.rows = make(map[ident.InvocationID]*row) }

// row reads the status row of an invocation.
func (m *Machine) row(id ident.InvocationID) (*row, error) {
	if r := m.rows.rows[id]; r != nil {
		return r, nil
	}
	m.key = keyspace.AppendInvocation(m.key[:0], &id)
	inv := new(storepb.Invocation)
	ok, err := m.readCommitted(m.key, inv)
	if err != nil {
		return nil, err
	}
	r := &row{id: id}
	if ok {
		r.inv = inv
	}
	m.rows.rows[id] = r
	return r, nil
}

// touch notes that a row was changed and is to be written.
func (m *Machine) touch(r *row) {
	if r.inv != nil {
		r.inv.ModifiedAtMs = m.now
	}
	if !r.dirty {
		r.dirty = true
		m.rows.dirty = append(m.rows.dirty, r)
	}
}

// flushRows writes the changed rows and forgets those that are not worth keeping.
func (m *Machine) flushRows() error {
	for i, r := range m.rows.dirty {
		m.rows.dirty[i] = nil
		r.dirty, r.output = false, nil
		m.key = keyspace.AppendInvocation(m.key[:0], &r.id)
		var err error
		if r.inv == nil {
			err = m.txn.Delete(m.key)
		} else {
			err = m.write(m.key, r.inv)
		}
		if err != nil {
			return err
		}
		if !r.inFlight() {
			delete(m.rows.rows, r.id)
		}
	}
	m.rows.dirty = m.rows.dirty[:0]
	if len(m.rows.rows) > cachedRows {
		clear(m.rows.rows)
	}
	return nil
}

// setEntry writes a journal entry.
func (m *Machine) setEntry(id *ident.InvocationID, index uint32, typ uint16, raw []byte) error {
	m.key = keyspace.AppendJournal(m.key[:0], id, index)
	m.val = keyspace.AppendEntry(m.val[:0], &keyspace.Entry{Type: typ, AppendedAtMs: m.now, Raw: raw})
	return m.txn.Set(m.key, m.val)
}

// appendEntry appends to the journal of an invocation and returns the index of the entry.
func (m *Machine) appendEntry(r *row, typ uint16, raw []byte) (uint32, error) {
	index := r.inv.Entries
	r.inv.Entries++
	m.touch(r)
	return index, m.setEntry(&r.id, index, typ, raw)
}
