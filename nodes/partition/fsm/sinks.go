package fsm

import (
	"bytes"
	"fmt"

	"perdure/invokers/invocationpb"
	"perdure/nodes/partition/store/keyspace"
)

// sinksInRow is how many sinks the row of an invocation or a promise holds. Most have one or none; one that is waited for by
// many, or again and again for a long time, has the others in rows of their own, so that its row stays small.
const sinksInRow = 16

// addSink makes sink one of the sinks of a row, or of those in rows of their own, whose keys begin with prefix and are counted by
// more; the same one only once. added says that the row has changed.
func (s *step) addSink(sinks *[]*invocationpb.Sink, more *uint32, prefix []byte, sink *invocationpb.Sink) (added bool, err error) {
	for _, old := range *sinks {
		if sameSink(old, sink) {
			return false, nil
		}
	}
	if len(*sinks) < sinksInRow {
		*sinks = append(*sinks, sink)
		return true, nil
	}
	key, err := keyspace.AppendSink(prefix, sink)
	if err != nil {
		return false, fmt.Errorf("encode a sink: %w", err)
	}
	if _, known, err := s.txn.Get(key); known || err != nil {
		return false, err
	}
	*more++
	return true, s.txn.Set(key, nil)
}

func sameSink(a, b *invocationpb.Sink) bool {
	return a.CompletionId == b.CompletionId && a.Life == b.Life && bytes.Equal(a.Caller, b.Caller) && bytes.Equal(a.RequestId, b.RequestId)
}

// takeSinks appends the sinks that have rows of their own to those of a row, and removes the rows.
func (s *step) takeSinks(sinks []*invocationpb.Sink, prefix []byte) ([]*invocationpb.Sink, error) {
	err := s.txn.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(key, _ []byte) (bool, error) {
		sink, err := keyspace.SinkOf(key[len(prefix):])
		sinks = append(sinks, sink)
		return true, err
	})
	if err != nil {
		return nil, err
	}
	return sinks, s.deletePrefix(prefix)
}
