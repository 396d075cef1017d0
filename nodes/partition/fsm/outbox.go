package fsm

import (
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// counters number what the partition queues. Nearly every command counts something, so the row is written once per batch.
type counters struct {
	row   storepb.Counters
	dirty bool
}

// load reads the row. Numbers begin with 1.
func (c *counters) load(r Reader) error {
	if _, err := read(r, keyspace.AppendMeta(nil, keyspace.MetaCounters), &c.row); err != nil {
		return err
	}
	c.row.OutboxNext = max(c.row.OutboxNext, 1)
	c.row.OutboxHead = max(c.row.OutboxHead, 1)
	c.row.InboxNext = max(c.row.InboxNext, 1)
	return nil
}

// next takes the next number of one of the row's counters.
func (c *counters) next(of *uint64) uint64 {
	c.dirty = true
	*of++
	return *of - 1
}

func (c *counters) flush(s *step) error {
	if !c.dirty {
		return nil
	}
	c.dirty = false
	return s.write(keyspace.AppendMeta(s.key[:0], keyspace.MetaCounters), &c.row)
}

// outbox holds the messages to other invocations until their partitions have them. Its rows are exactly those from the head
// to below the next index; an index is the dedup sequence of its message, so none is used twice.
type outbox struct {
	*step
	counters *counters
}

// send appends a message. The command must not change afterwards.
func (o *outbox) send(c *recordpb.Command) error {
	index := o.counters.next(&o.counters.row.OutboxNext)
	act := o.out.add(ActOutbox)
	act.Index, act.Command = index, c
	o.key = keyspace.AppendOutbox(o.key[:0], index)
	return o.write(o.key, c)
}

// truncate removes the messages up to index, which have arrived. What is not there, at either end, is no error.
func (o *outbox) truncate(index uint64) error {
	row := &o.counters.row
	head, end := row.OutboxHead, min(index, row.OutboxNext-1)+1
	if end <= head {
		return nil
	}
	row.OutboxHead = end
	o.counters.dirty = true
	if end-head >= rangeDeleteFrom {
		return o.txn.DeleteRange(keyspace.AppendOutbox(nil, head), keyspace.AppendOutbox(nil, end))
	}
	for i := head; i < end; i++ {
		o.key = keyspace.AppendOutbox(o.key[:0], i)
		if err := o.txn.Delete(o.key); err != nil {
			return err
		}
	}
	return nil
}
