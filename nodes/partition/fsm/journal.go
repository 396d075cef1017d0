package fsm

import (
	"fmt"

	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
)

// journal holds the entries and events of invocations. The entries are exactly those below the number in the status row; of the events,
// the newest up to maxEvents are there.
type journal struct {
	*step
	rows *rows
}

// append appends an entry and returns its index.
func (j *journal) append(r *row, typ uint16, raw []byte) (uint32, error) {
	index := r.inv.Entries
	r.inv.Entries++
	j.rows.touch(r)
	j.key = keyspace.AppendJournal(j.key[:0], &r.id, index)
	j.val = keyspace.AppendEntry(j.val[:0], &keyspace.Entry{Type: typ, AppendedAtMs: j.now, Raw: raw})
	return index, j.txn.Set(j.key, j.val)
}

// output is the payload of the last Output entry; there is one. It is valid until the next row is read.
func (j *journal) output(r *row) ([]byte, error) {
	if r.output != nil {
		return r.output, nil
	}
	j.key = keyspace.AppendJournal(j.key[:0], &r.id, r.inv.Output-1)
	v, ok, err := j.txn.Get(j.key)
	if err != nil {
		return nil, err
	}
	e, err := keyspace.EntryOf(v)
	if err != nil || !ok {
		return nil, fmt.Errorf("output of %s: %w", r.id, keyspace.ErrCorrupt)
	}
	return e.Raw, nil
}

// each calls fn for the entries, in order. Raw is valid until fn returns; fn neither reads nor writes rows.
func (j *journal) each(r *row, fn func(keyspace.Entry)) error {
	prefix := keyspace.AppendJournalPrefix(nil, &r.id)
	return j.txn.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(_, value []byte) (bool, error) {
		e, err := keyspace.EntryOf(value)
		if err != nil {
			return false, err
		}
		fn(e)
		return true, nil
	})
}

// maxEvents is how many journal events of an invocation are kept: it may be retried for ever.
const maxEvents = 100

// note appends an event and drops the oldest one if there are too many.
func (j *journal) note(r *row, e *storepb.Event) error {
	if n := r.inv.Events; n >= maxEvents {
		j.key = keyspace.AppendEvent(j.key[:0], &r.id, n-maxEvents)
		if err := j.txn.Delete(j.key); err != nil {
			return err
		}
	}
	e.AfterEntry, e.AppendedAtMs = r.inv.Entries-1, j.now
	j.key = keyspace.AppendEvent(j.key[:0], &r.id, r.inv.Events)
	r.inv.Events++
	if !r.dirty {
		// An event is not progress: the time of the last change stays.
		at := r.inv.ModifiedAtMs
		j.rows.touch(r)
		r.inv.ModifiedAtMs = at
	}
	return j.write(j.key, e)
}

// lastNote is the newest event; nil if there is none.
func (j *journal) lastNote(r *row) (*storepb.Event, error) {
	if r.inv.Events == 0 {
		return nil, nil
	}
	last := new(storepb.Event)
	j.key = keyspace.AppendEvent(j.key[:0], &r.id, r.inv.Events-1)
	_, err := read(j.txn, j.key, last)
	return last, err
}

// drop removes all entries and events.
func (j *journal) drop(r *row) error {
	j.rows.touch(r)
	inv := r.inv
	n := inv.Entries
	inv.Entries, inv.Commands, inv.Output, inv.Replayed = 0, 0, 0, 0
	r.output = nil
	if inv.Events > 0 {
		if err := j.deletePrefix(keyspace.AppendEventPrefix(nil, &r.id)); err != nil {
			return err
		}
		inv.Events = 0
	}
	if n >= rangeDeleteFrom {
		return j.txn.DeleteRange(keyspace.AppendJournal(nil, &r.id, 0), keyspace.AppendJournal(nil, &r.id, n))
	}
	for i := range n {
		j.key = keyspace.AppendJournal(j.key[:0], &r.id, i)
		if err := j.txn.Delete(j.key); err != nil {
			return err
		}
	}
	return nil
}
