// Package keyspace is the layout of a partition's store: which rows there are and how their keys are
// made. It is pure, so that the state machine can address rows without knowing the store below.
//
// A key is a tag byte that names the table, then big-endian numbers and ids so that byte order is the
// order that the table is read in. Rows that belong to a partition key begin with it after the tag: a range
// of partition keys is a range of rows in each table.
//
//	m kind                                   meta: applied LSN and time, counters, leader, durability, barrier
//	d producer                               Producer          last sequence of a producer of commands
//	i id                                     Invocation        status row
//	j id entry u32                           type u16, time u64, payload: a journal entry
//	a id kind u8, u32 or name                Awaited           a completion or signal of an invocation
//	k id, Sink                               empty             sink that the status row has no room for
//	q object, length u32, name, Sink         empty             sink that a promise's row has no room for
//	v id                                     Output            success kept after the journal is gone
//	e id n u32                               Event             journal event
//	s object, state key                      raw value         state of an object or workflow
//	l object                                 Lock              lock of an object
//	b object, sequence u64                   Inboxed           waits for the lock
//	p object, promise name                   Promise           durable promise of a workflow
//	t fire u64, kind u8, id, completion u32  empty             timer
//	x expire u64, kind u8, id                empty             expiry index
//	o index u64                              record's Command  outbox
//	~ ...                                    replica-local rows; not part of the replicated state
//
// An id is the 24 bytes of an invocation id and begins with the partition key. An object is partition key
// u64, service length u16, service, key length u32, key.
//
// The functions append to dst and return it, so that callers can reuse buffers.
package keyspace

import (
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/nodes/partition/store/storepb"
)

// The tables.
const (
	TagMeta       = 'm'
	TagProducer   = 'd'
	TagInvocation = 'i'
	TagJournal    = 'j'
	TagAwaited    = 'a'
	TagSink       = 'k'
	TagOutput     = 'v'
	TagEvent      = 'e'
	TagState      = 's'
	TagLock       = 'l'
	TagInbox      = 'b'
	TagPromise    = 'p'
	TagWaiting    = 'q'
	TagTimer      = 't'
	TagExpiry     = 'x'
	TagOutbox     = 'o'
	TagLocal      = '~' // above all others
)

// ErrCorrupt is a key or value of the store that cannot be one: the replica must stop.
var ErrCorrupt = errors.New("corrupt row in the partition store")

// Meta names a row about the whole partition.
type Meta byte

// The meta rows.
const (
	MetaApplied    Meta = 'a' // LSN u64, latest creation time u64; see AppendApplied
	MetaCounters   Meta = 'c' // storepb.Counters
	MetaLeader     Meta = 'l' // storepb.Leader
	MetaDurability Meta = 'd' // storepb.Durability
	MetaBarrier    Meta = 'b' // storepb.Barrier
)

// AppendMeta is the key of a meta row.
func AppendMeta(dst []byte, m Meta) []byte { return append(dst, TagMeta, byte(m)) }

// AppendApplied is the value of the row that says how far the log is applied: the LSN, and the latest creation
// time of the records up to it, in ms since the epoch.
func AppendApplied(dst []byte, lsn cluster.LSN, latestMs uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, uint64(lsn)), latestMs)
}

// AppliedOf reads what AppendApplied wrote. A row without the time has 0.
func AppliedOf(value []byte) (lsn cluster.LSN, latestMs uint64, err error) {
	switch len(value) {
	case 16:
		latestMs = binary.BigEndian.Uint64(value[8:])
	case 8:
	default:
		return 0, 0, fmt.Errorf("applied LSN: %w", ErrCorrupt)
	}
	return cluster.LSN(binary.BigEndian.Uint64(value)), latestMs, nil
}

// Kinds of producers.
const (
	producerSelf      = 's'
	producerPartition = 'p'
	producerOther     = 'o'
)

// AppendSelfProducer is the key of the leaders of the partition itself.
func AppendSelfProducer(dst []byte) []byte { return append(dst, TagProducer, producerSelf) }

// AppendPartitionProducer is the key of a partition's outbox as a producer.
func AppendPartitionProducer(dst []byte, p uint32) []byte {
	return binary.BigEndian.AppendUint32(append(dst, TagProducer, producerPartition), p)
}

// AppendOtherProducer is the key of a named producer.
func AppendOtherProducer(dst []byte, name string) []byte {
	return append(append(dst, TagProducer, producerOther), name...)
}

func appendID(dst []byte, tag byte, id *ident.InvocationID) []byte {
	return append(append(dst, tag), id[:]...)
}

// AppendInvocation is the key of an invocation's status row.
func AppendInvocation(dst []byte, id *ident.InvocationID) []byte {
	return appendID(dst, TagInvocation, id)
}

// InvocationOf reads the id from a key of one of the tables whose keys begin with an id.
func InvocationOf(key []byte) (id ident.InvocationID, err error) {
	if len(key) < 1+len(id) {
		return id, ErrCorrupt
	}
	copy(id[:], key[1:])
	return id, nil
}

// MayBeInvoked is a quick look at a status row: false says that its status is another one than INVOKED. The status
// is the row's first field.
func MayBeInvoked(value []byte) bool {
	const field, invoked = 1<<3 | byte(protowire.VarintType), byte(storepb.Invocation_INVOKED)
	return len(value) < 2 || value[0] != field || value[1] == invoked
}

// AppendJournalPrefix begins all keys of an invocation's journal.
func AppendJournalPrefix(dst []byte, id *ident.InvocationID) []byte {
	return appendID(dst, TagJournal, id)
}

// AppendJournal is the key of a journal entry.
func AppendJournal(dst []byte, id *ident.InvocationID, entry uint32) []byte {
	return binary.BigEndian.AppendUint32(appendID(dst, TagJournal, id), entry)
}

// JournalIndex reads the entry index from a journal key.
func JournalIndex(key []byte) (uint32, error) { return lastU32(key) }

// EventIndex reads the number of an event from its key.
func EventIndex(key []byte) (uint32, error) { return lastU32(key) }

func lastU32(key []byte) (uint32, error) {
	if len(key) != 1+24+4 {
		return 0, ErrCorrupt
	}
	return binary.BigEndian.Uint32(key[25:]), nil
}

// AppendSinkPrefix begins the keys of an invocation's sinks.
func AppendSinkPrefix(dst []byte, id *ident.InvocationID) []byte { return appendID(dst, TagSink, id) }

// AppendSink is the key of a sink behind its prefix, that of an invocation's or of a promise's: the sink itself, so that it is
// there only once.
func AppendSink(prefix []byte, s *invocationpb.Sink) ([]byte, error) {
	raw, err := s.MarshalVT()
	return append(prefix, raw...), err
}

// SinkOf reads a sink from what follows the prefix in its key.
func SinkOf(rest []byte) (*invocationpb.Sink, error) {
	s := new(invocationpb.Sink)
	if err := s.UnmarshalVT(rest); err != nil {
		return nil, fmt.Errorf("sink: %w: %w", ErrCorrupt, err)
	}
	return s, nil
}

// AppendOutput is the key of a kept output.
func AppendOutput(dst []byte, id *ident.InvocationID) []byte { return appendID(dst, TagOutput, id) }

// AppendEventPrefix begins all keys of an invocation's events.
func AppendEventPrefix(dst []byte, id *ident.InvocationID) []byte { return appendID(dst, TagEvent, id) }

// AppendEvent is the key of the n-th event, from 0.
func AppendEvent(dst []byte, id *ident.InvocationID, n uint32) []byte {
	return binary.BigEndian.AppendUint32(appendID(dst, TagEvent, id), n)
}

// Kinds of Awaited rows.
const (
	awaitedCompletion = 'c'
	awaitedSignal     = 'i'
	awaitedNamed      = 'n'
)

// AppendAwaitedPrefix begins all keys of an invocation's completions and signals.
func AppendAwaitedPrefix(dst []byte, id *ident.InvocationID) []byte {
	return appendID(dst, TagAwaited, id)
}

// AppendCompletion is the key of what is known of a completion.
func AppendCompletion(dst []byte, id *ident.InvocationID, completion uint32) []byte {
	return binary.BigEndian.AppendUint32(append(appendID(dst, TagAwaited, id), awaitedCompletion), completion)
}

// CompletionOf reads the completion id from the key of an Awaited row; false for a signal's row.
func CompletionOf(key []byte) (uint32, bool) {
	if len(key) != 1+24+1+4 || key[25] != awaitedCompletion {
		return 0, false
	}
	return binary.BigEndian.Uint32(key[26:]), true
}

// AppendSignal is the key of what is known of a signal with an index.
func AppendSignal(dst []byte, id *ident.InvocationID, signal uint32) []byte {
	return binary.BigEndian.AppendUint32(append(appendID(dst, TagAwaited, id), awaitedSignal), signal)
}

// AppendNamedSignal is the key of what is known of a signal with a name.
func AppendNamedSignal(dst []byte, id *ident.InvocationID, name string) []byte {
	return append(append(appendID(dst, TagAwaited, id), awaitedNamed), name...)
}

// AppendOutbox is the key of a message in the outbox.
func AppendOutbox(dst []byte, index uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, TagOutbox), index)
}

// OutboxIndex reads the index from an outbox key.
func OutboxIndex(key []byte) (uint64, error) {
	if len(key) != 9 {
		return 0, ErrCorrupt
	}
	return binary.BigEndian.Uint64(key[1:]), nil
}

// PrefixEnd appends the smallest key above all keys with the prefix. The prefix must not consist of 0xFF only.
func PrefixEnd(dst, prefix []byte) []byte {
	n := len(dst)
	dst = append(dst, prefix...)
	for i := len(dst) - 1; i >= n; i-- {
		dst[i]++
		if dst[i] != 0 {
			return dst[:i+1]
		}
	}
	return dst[:n]
}
