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

// rows holds the status rows of the batch, and between batches those of invocations that are in flight, because they are likely
// to be needed again; rows that were only read are held until there are too many. A row that was touched is written once per
// batch, as it is then; what else is held has no influence on what is written.
type rows struct {
	*step
	known map[ident.InvocationID]*row
	dirty []*row
}

// cachedRows bounds the rows kept between batches.
const cachedRows = 512

func newRows(s *step) rows { return rows{step: s, known: make(map[ident.InvocationID]*row)} }

// of reads the status row of an invocation.
func (c *rows) of(id ident.InvocationID) (*row, error) {
	if r := c.known[id]; r != nil {
		return r, nil
	}
	c.key = keyspace.AppendInvocation(c.key[:0], &id)
	inv := new(storepb.Invocation)
	ok, err := c.readCommitted(c.key, inv)
	if err != nil {
		return nil, err
	}
	r := &row{id: id}
	if ok {
		r.inv = inv
	}
	c.known[id] = r
	return r, nil
}

// touch notes that a row was changed and is to be written.
func (c *rows) touch(r *row) {
	if r.inv != nil {
		r.inv.ModifiedAtMs = c.now
	}
	if !r.dirty {
		r.dirty = true
		c.dirty = append(c.dirty, r)
	}
}

// flush writes the changed rows and forgets those that are not worth keeping.
func (c *rows) flush() error {
	for i, r := range c.dirty {
		c.dirty[i] = nil
		r.dirty, r.output = false, nil
		c.key = keyspace.AppendInvocation(c.key[:0], &r.id)
		var err error
		if r.inv == nil {
			err = c.txn.Delete(c.key)
		} else {
			err = c.write(c.key, r.inv)
		}
		if err != nil {
			return err
		}
		if !r.inFlight() {
			delete(c.known, r.id)
		}
	}
	c.dirty = c.dirty[:0]
	if len(c.known) > cachedRows {
		clear(c.known)
	}
	return nil
}
