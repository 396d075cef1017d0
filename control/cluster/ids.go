// Package cluster is the vocabulary of a Perdure cluster: node identities, logs, partitions,
// replication properties and the quorum arithmetic over them. It is plain data and pure
// functions; it imports only the standard library and every other package may import it.
package cluster

import "strconv"

// NodeID names a node for ever; it is never reused, also not after the node was removed. 0 is invalid.
type NodeID uint32

// Generation counts the starts of a node, beginning with 1. A process with a lower generation of a
// node than another one has been preempted and must stop.
type Generation uint32

// GenNodeID names one life of a node: what a sequencer or a partition leader is bound to.
type GenNodeID struct {
	ID         NodeID
	Generation Generation
}

// IsZero reports whether g names no node.
func (g GenNodeID) IsZero() bool { return g.ID == 0 }

// String is the node's printable form, e.g. N1:7.
func (g GenNodeID) String() string {
	return "N" + strconv.FormatUint(uint64(g.ID), 10) + ":" + strconv.FormatUint(uint64(g.Generation), 10)
}

func (n NodeID) String() string { return "N" + strconv.FormatUint(uint64(n), 10) }

// PartitionID numbers the partitions from 0; the count is fixed when the cluster is provisioned.
type PartitionID uint16

// PartitionKey is the hash of what must stay together (object key, workflow key, idempotency bucket).
type PartitionKey uint64

// KeyRange is an inclusive range of partition keys.
type KeyRange struct{ Start, End PartitionKey }

// Contains reports whether k lies in the range.
func (r KeyRange) Contains(k PartitionKey) bool { return r.Start <= k && k <= r.End }

// LogID names a replicated log. The log of a partition has the partition's number.
type LogID uint32

// LSN is a position in a log. 0 is invalid, 1 the oldest. A tail is the first unwritten LSN (exclusive),
// a trim point the last deleted one (inclusive).
type LSN uint64

// LSN bounds.
const (
	InvalidLSN LSN = 0
	OldestLSN  LSN = 1
	MaxLSN     LSN = 1<<64 - 1
)

// Offset is a position inside one loglet. 0 is invalid, 1 the oldest; LSN = segment base + offset - 1.
type Offset uint32

// SegmentIndex numbers the segments of a log's chain from 0; it only grows.
type SegmentIndex uint32

// LogletID names one segment of one log for ever: log id in the upper half, segment index in the lower.
type LogletID uint64

// NewLogletID composes the id of a log's segment.
func NewLogletID(l LogID, s SegmentIndex) LogletID { return LogletID(uint64(l)<<32 | uint64(s)) }

// LogID is the log that the loglet is a segment of.
func (l LogletID) LogID() LogID { return LogID(l >> 32) }

// SegmentIndex is the loglet's place in its log's chain.
func (l LogletID) SegmentIndex() SegmentIndex { return SegmentIndex(uint32(l)) }

func (l LogletID) String() string {
	return strconv.FormatUint(uint64(l.LogID()), 10) + "_" + strconv.FormatUint(uint64(l.SegmentIndex()), 10)
}

// Epoch counts the leaders of one partition; each claim takes a higher one.
type Epoch uint64
